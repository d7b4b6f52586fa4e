"""The operations, called as FUSE would: what lookups hold, where a listing resumes, the way of
bytes through ptes, and what becomes of all that when pages move.
"""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.kit.files import DirectFiles
from tests.kit.tree import NR_MANY
from xipfs.errors import (
    IsDirError,
    NoDataError,
    NoEntryError,
    NotDirError,
    ReadOnlyFsError,
    StaleError,
)
from xipfs.fs.inode import Inode
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import MountOptions
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.pgtable import PMD_SHIFT, PTE_PRESENT, mk_pte, pte_index, pte_pfn
from xipfs.ondisk.inode import INO_ROOT
from xipfs.policy import page_id
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, PAGE_SIZE, Fh, Ino, Pgoff

NR_PAGES = 20


def page_bytes(number: int) -> bytes:
    return b"%15d\n" % number * (PAGE_SIZE // 16)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of our own: file, of 20 pages that tell their number; other, of 3; dir/inner."""
    entries = [
        Entry(b"", 0o040755, 0, 0, 0),
        *[
            Entry(
                name,
                0o100644,
                0,
                0,
                0,
                size_bytes=count * PAGE_SIZE,
                pieces=[(0, b"".join(page_bytes(start + i) for i in range(count)))],
            )
            for name, start, count in (
                (b"file", 0, NR_PAGES),
                (b"other", 100, 3),
                (b"dir/inner", 200, 1),
            )
        ],
        Entry(b"empty", 0o100644, 0, 0, 0),
    ]
    mkfs(tmp_path / "nvram.img", entries, now_ns=0)
    return tmp_path / "nvram.img"


@pytest.fixture
def mount(image: Path):
    mount = Mount.open(image, MountOptions(ro=True, ram_bytes=16 * PAGE_SIZE, policy="none"))
    yield mount
    mount.mm.check_invariants()
    mount.machine.mem_map.check_invariants()
    mount.close()


@pytest.fixture
def files(mount: Mount) -> DirectFiles:
    return DirectFiles(mount)


def look_up(mount: Mount, *names: bytes) -> Inode:
    inode = mount.dispatch(mount.operations.getattr, INO_ROOT)
    for name in names:
        inode = mount.dispatch(mount.operations.lookup, inode.ino, name)
    return inode


def open_file(mount: Mount, *names: bytes) -> tuple[Inode, Fh]:
    inode = look_up(mount, *names)
    return inode, mount.dispatch(mount.operations.open, inode.ino, os.O_RDONLY)


def read(mount: Mount, fh: Fh, offset: int, size_bytes: int) -> bytes:
    return bytes(mount.read_bytes(mount.dispatch(mount.operations.read, fh, offset, size_bytes)))


def read_page(mount: Mount, fh: Fh, pgoff: int) -> bytes:
    return read(mount, fh, pgoff * PAGE_SIZE, PAGE_SIZE)


def promote(mount: Mount, inode: Inode, *pgoffs: int) -> None:
    assert promote_pages(mount.machine, inode.mapping, np.array(pgoffs)).nr_migrated == len(pgoffs)


def demote(mount: Mount, inode: Inode, *pgoffs: int) -> None:
    done = demote_pages(mount.machine, inode.mapping, pgoffs, DemoteReason.KSWAPD)
    assert done.nr_migrated == len(pgoffs)


# Lookups


def test_a_mount_starts_with_next_to_nothing_in_memory(mount: Mount):
    """Only the root, which is looked at to see that the image has one."""
    assert mount.sb.nr_inodes_in_memory <= 1
    assert len(mount.mm.vmas) == 0
    assert mount.mm.page_table.leaves == {}


def test_the_last_forget_drops_the_inode(mount: Mount):
    inode = look_up(mount, b"file")
    look_up(mount, b"file")
    mount.dispatch(mount.operations.forget, inode.ino, 1)
    assert mount.sb.find_inode(inode.ino) is inode
    mount.dispatch(mount.operations.forget, inode.ino, 1)
    assert mount.sb.find_inode(inode.ino) is None
    with pytest.raises(StaleError):
        mount.dispatch(mount.operations.getattr, inode.ino)


def test_forget_unmaps_the_file(mount: Mount):
    inode, fh = open_file(mount, b"file")
    read(mount, fh, 0, NR_PAGES * PAGE_SIZE)
    mount.dispatch(mount.operations.release, fh)
    assert len(mount.mm.vmas) == 1, "a closed file stays mapped"
    mount.dispatch(mount.operations.forget, inode.ino, 1)
    assert len(mount.mm.vmas) == 0
    assert mount.mm.page_table.leaves == {}
    assert mount.machine.vmstat.xip_zap == NR_PAGES


def test_forget_keeps_what_is_in_ram(mount: Mount):
    """Pages that are promoted keep their file in memory; the next lookup finds them."""
    inode, fh = open_file(mount, b"file")
    read(mount, fh, 0, NR_PAGES * PAGE_SIZE)
    promote(mount, inode, 3, 4)
    mount.dispatch(mount.operations.release, fh)
    mount.dispatch(mount.operations.forget, inode.ino, 1)
    assert mount.sb.find_inode(inode.ino) is inode
    assert set(inode.mapping.i_pages) == {3, 4}
    assert len(mount.mm.vmas) == 0
    again, fh = open_file(mount, b"file")
    assert again is inode
    assert read_page(mount, fh, 3) == page_bytes(3)
    assert mount.machine.vmstat.xip_access_ram == 1
    mount.dispatch(mount.operations.release, fh)
    mount.dispatch(mount.operations.forget, inode.ino, 1)
    assert mount.sb.find_inode(inode.ino) is inode


def test_a_forgotten_file_goes_when_its_last_page_leaves_ram(mount: Mount):
    inode, fh = open_file(mount, b"file")
    read(mount, fh, 0, PAGE_SIZE)
    promote(mount, inode, 0, 1)
    mount.dispatch(mount.operations.release, fh)
    mount.dispatch(mount.operations.forget, inode.ino, 1)
    demote(mount, inode, 0)
    mount._mapping_emptied(inode.mapping)
    assert mount.sb.find_inode(inode.ino) is inode
    demote(mount, inode, 1)
    mount._mapping_emptied(inode.mapping)
    assert mount.sb.find_inode(inode.ino) is None


def test_the_root_is_never_forgotten(mount: Mount):
    mount.dispatch(mount.operations.getattr, INO_ROOT)
    mount.dispatch(mount.operations.forget, INO_ROOT, 10**9)
    assert look_up(mount, b"file").disk.size_bytes == NR_PAGES * PAGE_SIZE


def test_forgetting_what_is_not_known(mount: Mount):
    mount.dispatch(mount.operations.forget, Ino(999), 1)
    mount.dispatch(mount.operations.forget, Ino(0), 1)


def test_dot_and_dotdot(mount: Mount):
    directory = look_up(mount, b"dir")
    assert look_up(mount, b"dir", b".") is directory
    assert look_up(mount, b"dir", b"..").ino == INO_ROOT
    assert look_up(mount, b"..").ino == INO_ROOT


def test_whoever_was_never_looked_up_is_stale(mount: Mount):
    ino = look_up(mount, b"file").ino
    mount.dispatch(mount.operations.forget, ino, 1)
    operations = mount.operations
    for operation, *arguments in (
        (operations.lookup, ino, b"x"),
        (operations.getattr, ino),
        (operations.readlink, ino),
        (operations.open, ino, 0),
        (operations.opendir, ino),
        (operations.getxattr, ino, b"user.x"),
        (operations.listxattr, ino),
    ):
        with pytest.raises(StaleError):
            mount.dispatch(operation, *arguments)


def test_wrong_kinds(mount: Mount):
    file, directory = look_up(mount, b"file"), look_up(mount, b"dir")
    for wrong, operation, *arguments in (
        (NotDirError, mount.operations.lookup, file.ino, b"x"),
        (NotDirError, mount.operations.opendir, file.ino),
        (IsDirError, mount.operations.open, directory.ino, 0),
        (ReadOnlyFsError, mount.operations.open, file.ino, os.O_RDWR),
        (NoEntryError, mount.operations.lookup, directory.ino, b"file"),
        (NoDataError, mount.operations.getxattr, file.ino, b"user.x"),
    ):
        with pytest.raises(wrong):
            mount.dispatch(operation, *arguments)


# Handles


def test_stale_handles(mount: Mount):
    _, fh = open_file(mount, b"file")
    mount.dispatch(mount.operations.release, fh)
    mount.dispatch(mount.operations.release, fh)
    for bad in (fh, Fh(0), Fh(1 << 63), Fh(fh + 1)):
        with pytest.raises(StaleError):
            mount.dispatch(mount.operations.read, bad, 0, 1)
        with pytest.raises(StaleError):
            mount.dispatch(mount.operations.readdir, bad, 0, lambda *_: True)


def test_handles_are_never_reused(mount: Mount):
    seen = set()
    for _ in range(10):
        _, fh = open_file(mount, b"file")
        mount.dispatch(mount.operations.release, fh)
        seen.add(fh)
    assert len(seen) == 10
    assert mount.operations.nr_handles == 0


def test_one_vma_for_each_file(mount: Mount):
    first, fh = open_file(mount, b"file")
    _, second_fh = open_file(mount, b"file")
    assert fh != second_fh
    assert len(first.mapping.i_mmap) == len(mount.mm.vmas) == 1
    read(mount, fh, 0, 1)
    read(mount, second_fh, 0, 1)
    assert mount.machine.vmstat.pgfault == 1, "what one has faulted in, the other finds"
    vma = first.mapping.i_mmap[0]
    assert (vma.vm_end - vma.vm_start) >> PAGE_SHIFT == NR_PAGES
    assert vma.vm_pgoff == 0


def test_accesses_are_logged_but_for_holes(tmp_path: Path):
    """A policy that saw holes promoted them in vain, epoch after epoch, and demoted others."""
    pieces = [(pgoff, page_bytes(pgoff)) for pgoff in (1, 2, 5, 9)]
    entry = Entry(b"sparse", 0o100644, 0, 0, 0, size_bytes=12 * PAGE_SIZE, pieces=pieces)
    mkfs(tmp_path / "sparse.img", [entry], now_ns=0)
    mount = Mount.open(tmp_path / "sparse.img", MountOptions(ro=True, ram_bytes=16 * PAGE_SIZE))
    inode, fh = open_file(mount, b"sparse")
    for first, count, expected in (
        (0, 12, [1, 2, 5, 9]),
        (0, 1, []),
        (1, 1, [1]),
        (3, 2, []),
        (5, 5, [5, 9]),
        (1, 2, [1, 2]),
        (10, 2, []),
    ):
        data = read(mount, fh, first * PAGE_SIZE, count * PAGE_SIZE)
        assert len(data) == count * PAGE_SIZE
        logged = mount.log.take()[0] - page_id(inode.ino, 0)
        assert logged.tolist() == expected
    promote(mount, inode, 2)
    read(mount, fh, 0, 12 * PAGE_SIZE)
    assert (mount.log.take()[0] - page_id(inode.ino, 0)).tolist() == [1, 2, 5, 9]
    for _ in range(5):
        read(mount, fh, 0, 12 * PAGE_SIZE)
        mount.run_epoch()
    assert set(inode.mapping.i_pages) == {1, 2, 5, 9}
    assert mount.machine.vmstat.pgmigrate_fail == 0
    mount.close()


def test_an_empty_file_has_nothing_to_map(mount: Mount):
    inode, fh = open_file(mount, b"empty")
    assert read(mount, fh, 0, 100) == b""
    assert inode.mapping.i_mmap == []


def test_reading_outside_of_the_file(mount: Mount):
    _, fh = open_file(mount, b"file")
    size_bytes = NR_PAGES * PAGE_SIZE
    for offset in (size_bytes, size_bytes + 1, 1 << 62):
        assert mount.dispatch(mount.operations.read, fh, offset, PAGE_SIZE) == []
    assert mount.dispatch(mount.operations.read, fh, 0, 0) == []
    assert mount.machine.vmstat.pgfault == 0
    mount.run_epoch()
    assert mount.log.take()[0].tolist() == []


# Directories


def test_a_listing_resumes_behind_any_entry(direct: DirectFiles):
    """Whatever the buffer held: the next request goes on behind the entry it names."""
    operations = direct.operations
    with direct.inode(b"many") as inode:
        fh = direct.call(operations.opendir, inode.ino)
        names: list[bytes] = []
        positions = []
        position = 0
        while True:
            count = len(names)
            position = direct.list_some(fh, position, names, 1)
            if len(names) == count:
                break
            positions.append(position)
        assert len(names) == NR_MANY + 2
        assert len(set(positions)) == len(positions)
        assert set(names[:2]) == {b".", b".."}
        for start in (0, 1, 2, 50, 51, 52, 1000, NR_MANY, NR_MANY + 1):
            rest: list[bytes] = []
            direct.list_some(fh, positions[start], rest, NR_MANY + 2)
            assert rest == names[start + 1 :]
        direct.call(operations.release, fh)


def test_a_listing_can_be_asked_for_in_any_order(direct: DirectFiles):
    with direct.inode(b"many") as inode:
        fh = direct.call(direct.operations.opendir, inode.ino)
        whole: list[bytes] = []
        direct.list_some(fh, 0, whole, NR_MANY + 2)
        again: list[bytes] = []
        direct.list_some(fh, 0, again, NR_MANY + 2)
        assert again == whole
        # A position of no entry (they are 63 bits, of which a hash makes most) is one in between.
        odd: list[bytes] = []
        direct.list_some(fh, 1 << 40, odd, NR_MANY + 2)
        assert odd == whole[-len(odd) :]
        direct.call(direct.operations.release, fh)


def test_what_is_listed_is_looked_up_and_dots_are_not(mount: Mount):
    fh = mount.dispatch(mount.operations.opendir, INO_ROOT)
    listed: dict[bytes, Inode] = {}

    def emit(name: bytes, inode: Inode, position: int) -> bool:
        listed[name] = inode
        return True

    mount.dispatch(mount.operations.readdir, fh, 0, emit)
    assert set(listed) == {b".", b"..", b"file", b"other", b"dir", b"empty"}
    counts = {name: inode.nr_lookups for name, inode in listed.items()}
    assert [counts[name] for name in (b"file", b"other", b"dir", b"empty")] == [1, 1, 1, 1]
    for inode in listed.values():
        mount.dispatch(mount.operations.forget, inode.ino, 1)
    assert mount.sb.nr_inodes_in_memory == 1


def test_an_entry_without_room_is_not_looked_up(mount: Mount):
    fh = mount.dispatch(mount.operations.opendir, INO_ROOT)
    mount.dispatch(mount.operations.readdir, fh, 0, lambda *_: False)
    assert mount.sb.nr_inodes_in_memory == 1


# The way of the bytes


def redirect(mount: Mount, inode: Inode, pgoff: int, pfn: int) -> None:
    """Overwrite the word of one pte, as no code of ours would."""
    vma = inode.mapping.i_mmap[0]
    address = vma.address(Pgoff(pgoff))
    leaf = mount.mm.page_table.leaves[address >> PMD_SHIFT]
    assert leaf.words[pte_index(address)]
    leaf.words[pte_index(address)] = mk_pte(pfn, PTE_PRESENT)


def pfn_of(mount: Mount, inode: Inode, pgoff: int) -> int:
    address = inode.mapping.i_mmap[0].address(Pgoff(pgoff))
    return pte_pfn(mount.mm.page_table.find_pte(address))


def test_bytes_come_through_the_pte(mount: Mount):
    """One pte is redirected, and what is read follows it."""
    inode, fh = open_file(mount, b"file")
    other, other_fh = open_file(mount, b"other")
    read(mount, fh, 0, NR_PAGES * PAGE_SIZE)
    read_page(mount, other_fh, 2)
    own = pfn_of(mount, inode, 7)
    redirect(mount, inode, 7, pfn_of(mount, other, 2))
    assert read_page(mount, fh, 7) == page_bytes(102)
    # As one page, in the middle of many, and in part.
    assert read(mount, fh, 0, NR_PAGES * PAGE_SIZE) == b"".join(
        page_bytes(102 if i == 7 else i) for i in range(NR_PAGES)
    )
    assert read(mount, fh, 7 * PAGE_SIZE + 5, 20) == page_bytes(102)[5:25]
    redirect(mount, inode, 7, own)
    assert read_page(mount, fh, 7) == page_bytes(7)


def test_a_pte_redirected_to_ram(mount: Mount):
    inode, fh = open_file(mount, b"file")
    read_page(mount, fh, 0)
    frame = mount.machine.mem_map.alloc_page()
    assert frame is not None
    mount.machine.physmem.frame(frame)[:] = b"R" * PAGE_SIZE
    own = pfn_of(mount, inode, 0)
    assert own >= NVRAM_PFN_START
    redirect(mount, inode, 0, frame)
    assert read_page(mount, fh, 0) == b"R" * PAGE_SIZE
    redirect(mount, inode, 0, own)
    mount.machine.mem_map.put_page(frame)


def scribble(mount: Mount, inode: Inode, pgoff: int, text: bytes) -> None:
    """Write into the image file, behind the mount's back."""
    block = inode.extents.find_block(Pgoff(pgoff))
    assert block is not None
    with open(mount.sb.nvram.path, "r+b") as file:
        file.seek(block << PAGE_SHIFT)
        file.write(text)


def test_nvram_is_served_in_place(mount: Mount):
    """What is written to the image is seen at once: nothing is kept of an NVRAM page."""
    inode, fh = open_file(mount, b"file")
    assert read_page(mount, fh, 1) == page_bytes(1)
    scribble(mount, inode, 1, b"NEW")
    assert read_page(mount, fh, 1) == b"NEW" + page_bytes(1)[3:]


def test_a_promoted_page_is_served_from_ram_and_the_shadow_from_then_on(mount: Mount):
    """The NVRAM copy under a promoted page is scribbled on: only demotion brings that to light."""
    inode, fh = open_file(mount, b"file")
    read(mount, fh, 0, 4 * PAGE_SIZE)
    promote(mount, inode, 1, 2)
    scribble(mount, inode, 2, b"SCRIBBLE")
    assert read_page(mount, fh, 2) == page_bytes(2)
    assert read(mount, fh, 0, 4 * PAGE_SIZE) == b"".join(map(page_bytes, range(4)))
    assert json.loads(mount.operations.getxattr(inode.ino, b"user.xipfs.tiers"))["ram"] == 2
    demote(mount, inode, 2)
    assert read_page(mount, fh, 2) == b"SCRIBBLE" + page_bytes(2)[8:]
    assert read_page(mount, fh, 1) == page_bytes(1)


def test_scribbling_in_ram_does_not_reach_the_image(mount: Mount, image: Path):
    before = image.read_bytes()
    inode, fh = open_file(mount, b"file")
    promote(mount, inode, 5)
    mount.machine.physmem.frame(inode.mapping.i_pages[5])[:3] = b"RAM"
    assert read_page(mount, fh, 5) == b"RAM" + page_bytes(5)[3:]
    assert image.read_bytes() == before


def test_reading_across_both_tiers(mount: Mount):
    """Runs of RAM and NVRAM in turns, frames in no order."""
    inode, fh = open_file(mount, b"file")
    for pgoff in (9, 3, 4, 15, 10):
        promote(mount, inode, pgoff)
    for offset in (0, 1, 3 * PAGE_SIZE - 1, 5 * PAGE_SIZE + 77):
        expected = b"".join(map(page_bytes, range(NR_PAGES)))[offset:]
        assert read(mount, fh, offset, NR_PAGES * PAGE_SIZE) == expected
    runs = mount.dispatch(mount.operations.read, fh, 0, NR_PAGES * PAGE_SIZE)
    assert len(runs) > 5
    assert sum(size_bytes for _, size_bytes in runs) == NR_PAGES * PAGE_SIZE


def test_inserts_are_counted_by_kind(mount: Mount):
    inode, fh = open_file(mount, b"file")
    promote(mount, inode, 0, 1, 2)
    read(mount, fh, 0, 8 * PAGE_SIZE)
    vmstat = mount.machine.vmstat
    assert (vmstat.pgfault, vmstat.xip_insert_pfn, vmstat.xip_insert_page) == (8, 5, 3)
    assert mount.mm.rss_file == 3
    read(mount, fh, 0, 8 * PAGE_SIZE)
    assert vmstat.pgfault == 8
    assert (vmstat.xip_access, vmstat.xip_access_ram) == (16, 6)


def test_statistics_have_every_figure(mount: Mount):
    inode, fh = open_file(mount, b"file")
    read(mount, fh, 0, 5 * PAGE_SIZE)
    promote(mount, inode, 0, 1)
    read(mount, fh, 0, PAGE_SIZE)
    facts = mount.statistics()
    assert facts["image"] == str(mount.sb.nvram.path)
    assert facts["pid"] == os.getpid()
    assert (facts["ram_frames"], facts["ram_free_frames"], facts["ram_pages"]) == (16, 14, 2)
    assert facts["struct_pages"] == 18
    assert facts["struct_page_bytes"] == 18 * 64
    assert facts["struct_page_saved_bytes"] == facts["nvram_pages"] * 64
    assert facts["nvram_pages"] == os.stat(mount.sb.nvram.path).st_size // PAGE_SIZE
    assert facts["rss_file_pages"] == 1
    assert (facts["open_handles"], facts["vmas"], facts["page_table_leaves"]) == (1, 1, 1)
    assert facts["vmstat"]["pgpromote_success"] == 2
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize("arch", ["generic", "x86", "powerpc", "s390"])
def test_every_architecture_serves_the_same_bytes(image: Path, arch: str):
    """With a pte special bit and without, with pages in RAM and without."""
    mount = Mount.open(
        image, MountOptions(ro=True, ram_bytes=16 * PAGE_SIZE, policy="none", arch=arch)
    )
    inode, fh = open_file(mount, b"file")
    expected = b"".join(map(page_bytes, range(NR_PAGES)))
    for _ in range(2):
        assert read(mount, fh, 0, len(expected)) == expected
        promote(mount, inode, 0, 5, 6)
        assert read(mount, fh, 0, len(expected)) == expected
        demote(mount, inode, 0, 5, 6)
    assert mount.machine.vmstat.pgdemote_kswapd == 6
    assert mount.mm.rss_file == 0
    mount.mm.check_invariants()
    mount.close()


def test_no_ram_at_all(image: Path):
    """ram=0: nothing can be promoted, everything is served."""
    mount = Mount.open(image, MountOptions(ro=True, ram_bytes=0))
    _, fh = open_file(mount, b"file")
    for _ in range(5):
        assert read_page(mount, fh, 3) == page_bytes(3)
        mount.run_epoch()
    assert mount.machine.vmstat.pgpromote_success == 0
    assert mount.statistics()["struct_pages"] == 2
    mount.close()


def test_a_huge_sparse_file(tmp_path: Path):
    """16 TiB in three pages: reading it costs what is read of it."""
    size_bytes = 16 << 40
    last = (size_bytes >> PAGE_SHIFT) - 1
    middle = last // 2
    pieces = [(pgoff, page_bytes(i)) for i, pgoff in enumerate((0, middle, last))]
    entry = Entry(b"huge", 0o100644, 0, 0, 0, size_bytes=size_bytes, pieces=pieces)
    mkfs(tmp_path / "huge.img", [entry], now_ns=0)
    mount = Mount.open(tmp_path / "huge.img", MountOptions(ro=True, ram_bytes=16 * PAGE_SIZE))
    inode, fh = open_file(mount, b"huge")
    assert inode.disk.size_bytes == size_bytes
    for i, pgoff in enumerate((0, middle, last)):
        assert read_page(mount, fh, pgoff) == page_bytes(i)
    assert read(mount, fh, size_bytes - 5, 100) == page_bytes(2)[-5:]
    zeros = read(mount, fh, 5 << 40, 1 << 20)
    assert zeros == bytes(1 << 20)
    assert read(mount, fh, (middle - 1) * PAGE_SIZE, 3 * PAGE_SIZE) == (
        bytes(PAGE_SIZE) + page_bytes(1) + bytes(PAGE_SIZE)
    )
    extents = json.loads(mount.operations.getxattr(inode.ino, b"user.xipfs.extents"))
    assert extents["nr_extents"] == 3
    tiers = json.loads(mount.operations.getxattr(inode.ino, b"user.xipfs.tiers"))
    assert tiers == {"pages": last + 1, "ram": 0, "nvram": 3, "hole": last - 2}
    assert len(mount.mm.page_table.leaves) < 10
    mount.run_epoch()
    mount.dispatch(mount.operations.forget, inode.ino, 1)
    assert mount.mm.page_table.leaves == {}
    mount.close()


def test_errors_are_told_by_errno(files: DirectFiles):
    """The door used by these tests says what a program would see."""
    with pytest.raises(OSError) as caught:
        files.attributes(b"missing")
    assert caught.value.errno == errno.ENOENT
