"""Orphans are freed, in one transaction or in many, and again after a crash in between."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.volume import OWNER, Volume
from xipfs.errors import BugError, FormatError
from xipfs.fs import orphans
from xipfs.fs.attributes import setxattr
from xipfs.fs.extentwriter import insert_extent
from xipfs.fs.inode import Inode
from xipfs.fs.namespace import mkdir, mknod, rmdir, unlink
from xipfs.fs.orphans import finish_orphans, release_orphan
from xipfs.units import PAGE_SIZE

FILE = stat.S_IFREG | 0o644


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume(tmp_path / "nvram.img", 64 << 20) as volume:
        yield volume


def make_file(volume: Volume, name: bytes, nr_extents: int, nr_pages: int = 1) -> Inode:
    """A file of many extents with holes between, its last page before nr_extents * 2 * nr_pages."""
    inode = mknod(volume.sb, volume.root, name, FILE, OWNER, volume.tick())
    for start in range(0, nr_extents, 100):
        with volume.sb.transaction(volume.tick()) as tx:
            disk = tx.inode(inode.ino)
            for n in range(start, min(start + 100, nr_extents)):
                for block, nr_run_pages in tx.allocate(nr_pages):
                    disk = insert_extent(tx, disk, 2 * n * nr_pages, block, nr_run_pages)
                    tx.new_page(block, bytes(PAGE_SIZE))
            tx.put_inode(disk._replace(size_bytes=2 * nr_extents * nr_pages * PAGE_SIZE))
    return inode


def count_transactions(volume: Volume) -> int:
    return volume.sb.journal._sequence


def test_a_large_file_goes_in_many_transactions(volume):
    before = volume.sb.state
    inode = make_file(volume, b"a", 5000)
    setxattr(volume.sb, inode, b"user.a", b"v" * 9000, 0, 5)
    volume.check()
    inode = volume.find(b"a")
    assert unlink(volume.sb, volume.root, b"a", volume.tick()) is inode
    first = count_transactions(volume)
    release_orphan(volume.sb, inode.ino, volume.tick())
    assert count_transactions(volume) - first > 1
    after = volume.sb.state
    assert (after.nr_inodes, after.orphan_ino_head) == (before.nr_inodes, 0)
    volume.check()
    assert volume.sb.state.nr_free_pages >= before.nr_free_pages - 8  # pages of the inode file


def test_a_huge_extent_goes_in_parts(volume, monkeypatch):
    """Each changes a bounded part of the bitmaps."""
    monkeypatch.setattr(orphans, "_NR_PAGES_MAX", 1000)
    before = volume.sb.state.nr_free_pages
    inode = make_file(volume, b"a", 1, 3500)
    taken = before - volume.sb.state.nr_free_pages
    assert taken >= 3500
    unlink(volume.sb, volume.root, b"a", volume.tick())
    first = count_transactions(volume)
    release_orphan(volume.sb, inode.ino, volume.tick())
    assert count_transactions(volume) - first == 4


def test_a_crash_between_its_transactions(volume, monkeypatch):
    """Whatever was done by then: a mount goes on, and the space is there."""
    make_file(volume, b"a", 3000)
    volume.check()
    expected = volume.sb.state.nr_free_pages + volume.find(b"a").disk.nr_pages
    inode = volume.find(b"a")
    unlink(volume.sb, volume.root, b"a", volume.tick())
    monkeypatch.setattr(orphans, "_NR_PAGES_MAX", 1000)
    nr_transactions = 0
    real = orphans._remove_some

    def crash(*args):
        nonlocal nr_transactions
        nr_transactions += 1
        if nr_transactions == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(orphans, "_remove_some", crash)
    with pytest.raises(KeyboardInterrupt):
        release_orphan(volume.sb, inode.ino, volume.tick())
    monkeypatch.setattr(orphans, "_remove_some", real)
    left = volume.sb.find_inode(inode.ino).disk.nr_pages
    assert 2000 <= left < 2050
    volume.check()  # fsck takes an orphan for what it is, and the mount behind it finishes it
    assert volume.sb.state.nr_free_pages == expected
    assert volume.sb.state.orphan_ino_head == 0


def test_many_orphans_of_all_kinds_are_finished(volume):
    """Unlinked files, removed directories, and files that were to be cut."""
    for n in range(4):
        make_file(volume, b"%d" % n, 10)
        mkdir(volume.sb, volume.root, b"d%d" % n, 0o755, OWNER, 5)
    for n in range(3):
        unlink(volume.sb, volume.root, b"%d" % n, 5)
        rmdir(volume.sb, volume.root, b"d%d" % n, 5)
    with volume.sb.transaction(5) as tx:
        cut = volume.find(b"3")
        tx.put_inode(cut.disk._replace(size_bytes=5 * PAGE_SIZE))
        tx.add_orphan(cut.ino)
    volume.check()
    assert sorted(volume.tree()) == [b"3", b"d3"]
    cut = volume.find(b"3").disk
    assert (cut.nr_pages, cut.flags, cut.nlink) == (3, 0, 1)
    assert (volume.sb.state.nr_inodes, volume.sb.state.orphan_ino_head) == (3, 0)


def test_a_large_file_that_nobody_knows_goes_with_its_name(volume, monkeypatch):
    """In the transaction that removes the name, or where that is too small in those behind it."""
    for nr_pages_max in (10_000, 100):
        monkeypatch.setattr(orphans, "_NR_PAGES_MAX", nr_pages_max)
        make_file(volume, b"a", 500)
        volume.check()
        first = count_transactions(volume)
        assert unlink(volume.sb, volume.root, b"a", volume.tick()) is None
        assert (count_transactions(volume) - first == 1) == (nr_pages_max == 10_000)
        assert (volume.sb.state.nr_inodes, volume.sb.state.orphan_ino_head) == (1, 0)


def test_what_is_in_use_is_not_released(volume):
    inode = make_file(volume, b"a", 1)
    with pytest.raises(BugError, match="it has a name"):
        release_orphan(volume.sb, inode.ino, 5)
    unlink(volume.sb, volume.root, b"a", 5)
    inode.mapping.i_pages[0] = 7
    with pytest.raises(BugError, match="in use"):
        release_orphan(volume.sb, inode.ino, 5)
    inode.mapping.i_pages.clear()
    release_orphan(volume.sb, inode.ino, 5)


def test_a_list_of_what_is_no_orphan(volume):
    inode = make_file(volume, b"a", 1)
    with volume.sb.transaction(5) as tx:
        tx.state = tx.state._replace(orphan_ino_head=inode.ino)
    with pytest.raises(FormatError, match="no orphan"):
        finish_orphans(volume.sb, 5)
    with volume.sb.transaction(5) as tx:
        tx.state = tx.state._replace(orphan_ino_head=0)
