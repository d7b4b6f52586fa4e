"""Copying out of an image: what arrives is what was there, and nothing lands beside it."""

import errno
import os
import stat

import pytest

from tests.kit.image import CREATED_NS, Extent, ImageKit
from tests.kit.sample import ACL, make_sample
from xipfs.errors import InvalidArgumentError, NoSpaceError
from xipfs.fs.copyout import copy_out
from xipfs.fs.namei import path_lookup
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SIZE


@pytest.fixture
def copy(tmp_path):
    """(image, path) -> (where it was copied to, CopyStatistics, warnings)"""

    def copy(image, path=b"/"):
        target = tmp_path / "copy"
        warnings: list[str] = []
        sb = SuperBlock.open(image.write(tmp_path / "nvram.img"))
        try:
            inode = path_lookup(sb, path, follow=False)
            statistics = copy_out(sb, inode, os.fsencode(target), warn=warnings.append)
            assert sb.nr_inodes_in_memory <= 2, "inodes are not given back"
        finally:
            sb.close()
        return target, statistics, warnings

    return copy


def plain_sample() -> ImageKit:
    """What anybody may make."""
    kit = ImageKit(fanout=3)
    etc = kit.add_dir(INO_ROOT, b"etc", mode=0o500)
    for i in range(10):
        kit.add_file(etc, b"%d" % i, b"%d" % i * i, mode=stat.S_IFREG | 0o600 + i)
    hard = kit.add_file(INO_ROOT, b"hard", b"\xaa" * 5000)
    kit.link(etc, b"link", hard)
    kit.add_symlink(INO_ROOT, b"short", b"nowhere")
    kit.add_symlink(INO_ROOT, b"long", b"x/" * 300)
    kit.add_special(INO_ROOT, b"fifo", stat.S_IFIFO | 0o640)
    kit.add_special(INO_ROOT, b"socket", stat.S_IFSOCK | 0o600)
    kit.add_file(INO_ROOT, b"\xff\n", b"odd")
    kit.add_dir(etc, b"empty")
    return kit


def test_a_tree_arrives_whole(copy):
    target, statistics, warnings = copy(plain_sample().build())
    assert warnings == []
    assert statistics.nr_files == 20
    assert (target / "etc" / "3").read_bytes() == b"333"
    assert (target / "hard").stat().st_ino == (target / "etc" / "link").stat().st_ino
    assert (target / "hard").read_bytes() == b"\xaa" * 5000
    assert os.readlink(target / "short") == "nowhere"
    assert os.readlink(target / "long") == "x/" * 300
    assert stat.S_ISFIFO((target / "fifo").stat().st_mode)
    assert stat.S_ISSOCK((target / "socket").stat().st_mode)
    assert (target / os.fsdecode(b"\xff\n")).read_bytes() == b"odd"
    assert os.listdir(target / "etc" / "empty") == []


def test_modes_and_times_arrive_also_on_directories_and_links(copy):
    target, _, _ = copy(plain_sample().build())
    for path, mode in (("etc", 0o500), ("etc/7", 0o607), ("fifo", 0o640), ("hard", 0o644)):
        status = os.lstat(target / path)
        assert stat.S_IMODE(status.st_mode) == mode
        assert status.st_mtime_ns == CREATED_NS
    assert os.lstat(target / "short").st_mtime_ns == CREATED_NS
    assert os.lstat(target).st_mtime_ns == CREATED_NS


def test_attributes_arrive(copy):
    kit = ImageKit()
    ino = kit.add_file(INO_ROOT, b"file", b"x")
    kit.set_xattrs(ino, {b"user.comment": b"\0\xff", b"user.empty": b""})
    target, _, warnings = copy(kit.build(), b"file")
    assert warnings == []
    assert os.getxattr(target, "user.comment") == b"\0\xff"
    assert os.getxattr(target, "user.empty") == b""


def test_an_attribute_that_the_disk_refuses_is_said(copy):
    kit = ImageKit()
    ino = kit.add_file(INO_ROOT, b"file", b"x")
    kit.set_xattrs(ino, {b"nonsense.name": b"1"})
    target, statistics, warnings = copy(kit.build(), b"file")
    assert statistics.nr_failures == len(warnings) == 1
    assert "copy: attribute nonsense.name: " in warnings[0]
    assert target.read_bytes() == b"x"
    assert os.lstat(target).st_mtime_ns == CREATED_NS


def test_holes_stay_holes(copy):
    kit = ImageKit()
    data = b"\xbb" * PAGE_SIZE
    kit.add_extents(INO_ROOT, b"file", [Extent(1, data), Extent(1 << 20, data)], 1 << 34)
    target, _, _ = copy(kit.build(), b"file")
    status = target.stat()
    assert status.st_size == 1 << 34
    assert status.st_blocks * 512 <= 64 * PAGE_SIZE
    with target.open("rb") as file:
        assert file.read(3 * PAGE_SIZE) == bytes(PAGE_SIZE) + data + bytes(PAGE_SIZE)
        file.seek(1 << 32)
        assert file.read(PAGE_SIZE) == data


@pytest.mark.root
def test_root_keeps_owners_devices_set_id_bits_and_acls(copy):
    sample = make_sample()
    sample.image.change_inode(sample.hosts, mode=stat.S_IFREG | 0o6755, uid=12, gid=34)
    target, _, warnings = copy(sample.image)
    assert warnings == []
    status = os.lstat(target / "etc" / "hosts")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12, 34, 0o6755)
    assert os.lstat(target / "short").st_uid == 1000
    assert os.lstat(target / "null").st_rdev == os.makedev(1, 3)
    assert os.getxattr(target / "etc", "system.posix_acl_access") == ACL


def test_without_root_owners_are_ours_and_set_id_bits_go(copy, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    kit = ImageKit()
    kit.add_file(INO_ROOT, b"file", b"x", mode=stat.S_IFREG | 0o6755)
    target, _, warnings = copy(kit.build(), b"file")
    assert warnings == []
    status = target.stat()
    assert status.st_uid == os.getuid()
    assert stat.S_IMODE(status.st_mode) == 0o755


def test_nothing_is_replaced(copy, tmp_path):
    (tmp_path / "copy").symlink_to("nowhere")
    with pytest.raises(InvalidArgumentError, match="exists"):
        copy(plain_sample().build())


def test_a_directory_in_itself_ends(copy):
    """A damaged image: etc is an entry of etc. Such a copy once had no end in sight."""
    sample = make_sample()
    sample.image.change_entry(sample.etc, b"sub", ino=sample.etc)
    target, _, warnings = copy(sample.image, b"etc")
    assert len(warnings) == 1
    assert "two names" in warnings[0]
    assert (target / "hosts").exists()


def test_names_that_lead_out_do_not(copy, tmp_path):
    """A damaged directory has the name "x" twice: a link to elsewhere, then a directory."""
    kit = ImageKit()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    kit.add_symlink(INO_ROOT, b"x", os.fsencode(elsewhere))
    evil = kit.add_dir(INO_ROOT, b"y")
    kit.add_file(evil, b"file", b"gotcha")
    image = kit.build()
    image.change_name(INO_ROOT, b"y", b"x")
    target, statistics, warnings = copy(image)
    assert statistics.nr_failures == 1
    assert "File exists" in warnings[0]
    assert list(elsewhere.iterdir()) == []
    assert os.path.lexists(target / "x")


def test_files_that_show_the_same_pages_do_not_fill_the_disk(copy):
    """A hundred files of the same 100 pages: small in the image, and any number of them fits."""
    kit = ImageKit()
    inos = [kit.add_file(INO_ROOT, b"%02d" % i, b"\xaa" * PAGE_SIZE) for i in range(100)]
    image = kit.build()
    for ino in inos:
        image.change_extent(ino, 0, block=2, nr_pages=100)
        image.change_inode(ino, size_bytes=100 * PAGE_SIZE)
    target, statistics, warnings = copy(image)
    assert len(list(target.iterdir())) == 100
    assert sum(path.stat().st_blocks * 512 for path in target.iterdir()) <= 256 * PAGE_SIZE
    assert statistics.nr_failures == 98
    assert "more pages than the image has" in warnings[0]


def test_damage_below_does_not_end_the_copy(copy):
    sample = make_sample()
    image = sample.image
    image.data[image.inode_offset(sample.empty) + 70] ^= 1
    image.page(image.node_block(sample.tree))[50] ^= 1
    image.page(image.dir_block(sample.sub))[50] ^= 1
    image.page(image.inode(sample.hosts).xattr_block)[50] ^= 1
    image.change_inode(sample.fifo, mode=0o600)
    target, statistics, warnings = copy(image)
    assert statistics.nr_failures == len(warnings)
    warnings = [text for text in warnings if "not permitted" not in text]  # the device, to users
    texts = "\n".join(warnings)
    assert len(warnings) == 5
    for path in ("empty: ", "tree: ", "etc/sub: ", "etc/hosts: ", "fifo: "):
        assert f"{target}/{path}" in texts
    assert (target / "hard").read_bytes() == b"\xaa" * PAGE_SIZE


def test_a_full_disk_ends_it(copy, monkeypatch):
    def pwrite(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(NoSpaceError, match="No space left"):
        copy(plain_sample().build())


def test_short_writes_are_continued(copy, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:100], offset))
    target, _, _ = copy(plain_sample().build(), b"hard")
    assert target.read_bytes() == b"\xaa" * 5000
