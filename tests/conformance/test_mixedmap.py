"""What Linux does with a VM_MIXEDMAP area, case by case, on both kinds of architecture.

    bare      no pte special bit: pfn_valid decides whether a page is counted
    special   with one: vm_insert_mixed never counts, and pages in RAM enter as pages

A case is numbered, and named by what the kernel (2.6.28 unless said otherwise) does. Numbers that
are missing belong to what mm does not model yet: private writes, fork, get_user_pages, VM_PFNMAP,
mprotect and mremap, two CPUs at once.
"""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.kit.mm import ARCH_KINDS, ZEROS, World, block_bytes, make_extent_file, make_nvram
from xipfs.errors import BugError, DeviceError, FormatError, NoDataError
from xipfs.mm.access import access_page, access_range
from xipfs.mm.arch import ARCHS, Arch, get_arch
from xipfs.mm.fault import handle_mm_fault
from xipfs.mm.filemap_xip import xip_file_fault
from xipfs.mm.machine import Machine
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.mixedmap import vm_insert_mixed, vm_insert_page, vm_normal_page
from xipfs.mm.mmap import munmap
from xipfs.mm.pgtable import PTE_PRESENT, PTE_SPECIAL, mk_pte, pte_pfn, pte_present, pte_special
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.mm.vm_fault import FaultResult, VmFault
from xipfs.mm.vma import (
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_XIP_FILE,
    Vma,
)
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, Pfn, Pgoff, Vaddr, virt_to_pfn

SIGBUS, OOM, NOPAGE = FaultResult.SIGBUS, FaultResult.OOM, FaultResult.NOPAGE

VM_FILLS_HOLES = VM_XIP_FILE | VM_SHARED | VM_MAYWRITE
VM_PRIVATE = VM_READ | VM_MAYWRITE | VM_MIXEDMAP
"""MAP_PRIVATE: may be written, but is not shared."""

BARE = Pfn(NVRAM_PFN_START + 7)


@pytest.fixture(params=ARCH_KINDS.values(), ids=ARCH_KINDS)
def arch(request: pytest.FixtureRequest) -> Arch:
    return request.param


@pytest.fixture
def world(tmp_path: Path, arch: Arch) -> Iterator[World]:
    world = World(tmp_path / "region", arch)
    yield world
    world.close()


@pytest.fixture
def vma(world: World) -> Vma:
    """Eight pages of a file, none mapped yet."""
    return world.mmap(world.fs.make_file({pgoff: 10 + pgoff for pgoff in range(8)}))


@pytest.fixture
def frame(world: World) -> Pfn:
    """A frame of RAM that the test holds a reference of."""
    frame = world.machine.mem_map.alloc_page()
    assert frame is not None
    return frame


def counts(world: World, frame: Pfn) -> tuple[int, int, int]:
    """Return (references, ptes, rss)."""
    mem_map = world.machine.mem_map
    return mem_map.page_count(frame), mem_map.page_mapcount(frame), world.mm.rss_file


def fault(vma: Vma, pgoff: int) -> FaultResult:
    return handle_mm_fault(vma, vma.address(Pgoff(pgoff)))


# --- Insertion ---


def test_01_vma_without_mixedmap_is_a_bug(world: World, frame: Pfn):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=VM_READ)
    for pfn in (BARE, frame):
        with pytest.raises(BugError, match="vm_insert_mixed needs VM_MIXEDMAP"):
            vm_insert_mixed(vma, vma.vm_start, pfn)
    assert world.pte(vma, 0) == 0


def test_02_address_outside_of_the_vma_is_efault(world: World, vma: Vma, frame: Pfn):
    for insert, pfn in ((vm_insert_mixed, BARE), (vm_insert_mixed, frame), (vm_insert_page, frame)):
        for address in (vma.vm_end, vma.vm_start - PAGE_SIZE):
            assert insert(vma, Vaddr(address), pfn) == -errno.EFAULT
    assert not world.mm.page_table.leaves
    assert counts(world, frame) == (1, 0, 0)
    assert vm_insert_mixed(vma, Vaddr(vma.vm_end - PAGE_SIZE), BARE) == 0


def test_03_page_without_struct_page_is_mapped_and_not_counted(world: World, vma: Vma):
    assert vm_insert_mixed(vma, vma.vm_start, BARE) == 0
    pte = world.pte(vma, 0)
    assert (pte_present(pte), pte_pfn(pte)) == (True, BARE)
    assert pte_special(pte) is world.machine.arch.pte_special
    assert world.mm.rss_file == 0
    world.check()


def test_04_and_05_page_with_struct_page_is_counted_only_without_a_special_bit(
    world: World, vma: Vma, frame: Pfn
):
    assert vm_insert_mixed(vma, vma.vm_start, frame) == 0
    pte = world.pte(vma, 0)
    assert pte_pfn(pte) == frame
    if world.machine.arch.pte_special:
        assert pte_special(pte)
        assert counts(world, frame) == (1, 0, 0)
    else:
        assert not pte_special(pte)
        assert counts(world, frame) == (2, 1, 1)
    world.check(pins=[frame])


def test_06_no_insertion_overwrites_a_pte_not_even_with_itself(world: World, vma: Vma, frame: Pfn):
    vm_insert_mixed(vma, vma.address(Pgoff(0)), BARE)
    vm_insert_page(vma, vma.address(Pgoff(1)), frame)
    before = counts(world, frame)
    for pgoff in (0, 1):
        pte = world.pte(vma, pgoff)
        for insert, pfn in (
            (vm_insert_mixed, BARE),
            (vm_insert_mixed, Pfn(BARE + 1)),
            (vm_insert_mixed, frame),
            (vm_insert_page, frame),
            (vm_insert_page, world.machine.sparse_pfn),
        ):
            assert insert(vma, vma.address(Pgoff(pgoff)), pfn) == -errno.EBUSY
            assert world.pte(vma, pgoff) == pte
    assert counts(world, frame) == before
    world.check(pins=[frame])


def test_10_page_path_counts_and_refuses_in_its_order(world: World, vma: Vma, frame: Pfn):
    free = Pfn(8)
    assert world.machine.mem_map.page_count(free) == 0
    outside = vma.vm_end
    assert vm_insert_page(vma, outside, free) == -errno.EFAULT, "range before references"
    assert vm_insert_page(vma, vma.vm_start, free) == -errno.EINVAL
    assert vm_insert_page(vma, vma.vm_start, frame) == 0
    assert counts(world, frame) == (2, 1, 1)
    assert not pte_special(world.pte(vma, 0))
    assert vm_insert_page(vma, vma.vm_start, free) == -errno.EINVAL, "references before busy"
    assert vm_insert_page(vma, vma.vm_start, frame) == -errno.EBUSY
    assert counts(world, frame) == (2, 1, 1)
    world.check(pins=[frame])


def test_10_page_path_maps_one_page_many_times(world: World, vma: Vma, frame: Pfn):
    for pgoff in range(4):
        assert vm_insert_page(vma, vma.address(Pgoff(pgoff)), frame) == 0
    assert counts(world, frame) == (5, 4, 4)
    world.check(pins=[frame])


def test_15_fault_that_comes_second_finds_the_pte_and_is_content(world: World):
    """2.6.28 stopped with BUG_ON here; 3.14 knows that another fault may have been faster."""
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}, nr_pages=3))
    promote_pages(world.machine, vma.vm_file, np.array([1]))
    for pgoff in (0, 1, 2):  # in NVRAM, in RAM, and a hole
        assert fault(vma, pgoff) == NOPAGE
        pte = world.pte(vma, pgoff)
        vmf = VmFault(vma, vma.address(Pgoff(pgoff)), Pgoff(pgoff), flags=0)
        assert xip_file_fault(vmf) == NOPAGE
        assert world.pte(vma, pgoff) == pte
    assert world.machine.mem_map.page_mapcount(vma.vm_file.i_pages[1]) == 1
    assert world.machine.mem_map.page_mapcount(world.machine.sparse_pfn) == 1
    assert world.machine.vmstat.xip_insert_sparse == 1
    world.check()


# --- vm_normal_page ---


def test_16_special_pte_is_no_page_even_of_a_frame_with_struct_page(
    world: World, vma: Vma, frame: Pfn
):
    pte = mk_pte(frame, PTE_PRESENT | PTE_SPECIAL)
    if world.machine.arch.pte_special:
        assert vm_normal_page(vma, vma.vm_start, pte) is None
        assert vm_normal_page(vma, vma.vm_start, mk_pte(frame, PTE_PRESENT)) == frame
    else:
        assert vm_normal_page(vma, vma.vm_start, pte) == frame, "there is no such bit here"


def test_17_pfn_valid_tells_where_there_is_no_bit(world: World, vma: Vma, frame: Pfn):
    vm_insert_mixed(vma, vma.address(Pgoff(0)), frame)
    vm_insert_mixed(vma, vma.address(Pgoff(1)), BARE)
    has_bit = world.machine.arch.pte_special
    assert vm_normal_page(vma, vma.vm_start, world.pte(vma, 0)) == (None if has_bit else frame)
    assert vm_normal_page(vma, vma.vm_start, world.pte(vma, 1)) is None


def test_20_pfn_valid_is_never_asked_where_there_is_a_bit(world: World, vma: Vma, frame: Pfn):
    pfn_valid = world.machine.pfn_valid
    asked = pfn_valid.nr_calls
    has_bit = world.machine.arch.pte_special
    for pte in (
        mk_pte(frame, PTE_PRESENT),
        mk_pte(BARE, PTE_PRESENT | (PTE_SPECIAL if has_bit else 0)),
    ):
        vm_normal_page(vma, vma.vm_start, pte)
    assert pfn_valid.nr_calls - asked == (0 if has_bit else 2)
    # Nor on the way of a page from the fault to the unmapping.
    asked = pfn_valid.nr_calls
    promote_pages(world.machine, vma.vm_file, np.array([1]))
    access_page(vma, Pgoff(0))
    access_range(vma, Pgoff(0), 8)
    munmap(vma)
    assert (pfn_valid.nr_calls > asked) is not has_bit
    assert pfn_valid.nr_locks == 0


@pytest.mark.parametrize("arch", [get_arch("x86", "2.6.28"), get_arch("x86", "6.1")])
def test_21_ordinary_vma_has_no_special_ptes(world: World, expected_logs: Callable[[str], None]):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=VM_READ)
    pte = mk_pte(BARE, PTE_PRESENT | PTE_SPECIAL)
    if world.machine.arch.is_2008:
        with pytest.raises(BugError):
            vm_normal_page(vma, vma.vm_start, pte)
        return
    expected_logs("bad page map")
    assert vm_normal_page(vma, vma.vm_start, pte) is None
    zero = mk_pte(world.machine.zero_pfn, PTE_PRESENT | PTE_SPECIAL)
    assert vm_normal_page(vma, vma.vm_start, zero) is None


# --- Files ---


@pytest.mark.parametrize(
    ("size_bytes", "nr_pages"), [(0, 0), (1, 1), (4095, 1), (4096, 1), (4097, 2), (8192, 2)]
)
def test_22_last_page_maps_even_in_part_and_the_next_one_is_sigbus(
    world: World, size_bytes: int, nr_pages: int
):
    mapping = world.fs.make_file({0: 3, 1: 4, 2: 5}, size_bytes=size_bytes)
    vma = world.mmap(mapping, nr_pages=3)
    results = [fault(vma, pgoff) for pgoff in range(3)]
    assert results == [NOPAGE] * nr_pages + [SIGBUS] * (3 - nr_pages)
    assert [bool(world.pte(vma, pgoff)) for pgoff in range(3)] == [
        pgoff < nr_pages for pgoff in range(3)
    ]
    with pytest.raises(DeviceError, match="SIGBUS"):
        access_page(vma, Pgoff(2))


def test_23_filesystem_that_fails_is_oom_and_one_that_cannot_allocate_sigbus(
    world: World, expected_logs
):
    expected_logs("a damaged extent")
    mapping = world.fs.make_file({0: 3}, nr_pages=3, read_only=False)
    vma = world.mmap(mapping, vm_flags=VM_FILLS_HOLES)
    world.fs.errors[mapping.id, 0] = FormatError("a damaged extent")
    assert fault(vma, 0) == OOM
    world.fs.free_blocks.clear()
    assert fault(vma, 1) == SIGBUS
    world.fs.errors[mapping.id, 1] = NoDataError("still none, though asked to make one")
    assert fault(vma, 1) == SIGBUS
    assert not world.mm.page_table.leaves
    world.check()


@pytest.mark.parametrize("vm_flags", [VM_XIP_FILE, VM_PRIVATE], ids=["readonly", "private"])
def test_24_hole_is_the_sparse_page_counted_and_nothing_is_allocated(world: World, vm_flags: int):
    mapping = world.fs.make_file({1: 3}, nr_pages=3, read_only=False)
    vma = world.mmap(mapping, vm_flags=vm_flags)
    sparse = world.machine.sparse_pfn
    assert fault(vma, 0) == NOPAGE
    assert counts(world, sparse) == (2, 1, 1)
    assert not pte_special(world.pte(vma, 0))
    assert vm_normal_page(vma, vma.vm_start, world.pte(vma, 0)) == sparse
    assert access_page(vma, Pgoff(2)) == sparse
    assert counts(world, sparse) == (3, 2, 2)
    assert world.page(sparse) == ZEROS
    assert len(world.fs.free_blocks) == 4
    assert world.machine.vmstat.xip_insert_sparse == 2
    world.check()


def test_25_hole_in_a_shared_map_that_may_be_written_is_filled_by_a_mere_read(world: World):
    mapping = world.fs.make_file({1: 3}, nr_pages=3, read_only=False)
    vma = world.mmap(mapping, vm_flags=VM_FILLS_HOLES)
    pfn = access_page(vma, Pgoff(0))
    assert world.machine.is_nvram(pfn)
    assert world.page(pfn) == ZEROS
    assert pte_special(world.pte(vma, 0)) is world.machine.arch.pte_special
    assert (len(world.fs.free_blocks), world.mm.rss_file) == (3, 0)
    assert world.machine.vmstat.xip_insert_sparse == 0
    world.check()


def test_25_nothing_is_filled_on_a_read_only_filesystem(world: World):
    vma = world.mmap(world.fs.make_file({}, nr_pages=1), vm_flags=VM_FILLS_HOLES)
    assert access_page(vma, Pgoff(0)) == world.machine.sparse_pfn
    assert len(world.fs.free_blocks) == 4


def test_26_who_read_zeros_from_the_sparse_page_sees_the_block_that_replaced_it(world: World):
    """The sparse page stayed mapped in the others, and they would have read zeros for ever."""
    mapping = world.fs.make_file({}, nr_pages=3, read_only=False)
    readers = [
        world.mmap(mapping),
        world.mmap(mapping, vm_flags=VM_PRIVATE, mm=world.make_mm()),
    ]
    for reader in readers:
        access_range(reader, Pgoff(0), 3)
    assert [mm.rss_file for mm in world.mms] == [3, 3]
    writer = world.mmap(mapping, vm_flags=VM_FILLS_HOLES, mm=world.make_mm())
    pfn = access_page(writer, Pgoff(1))
    for reader in readers:
        assert world.pte(reader, 1) == 0
        assert pte_pfn(world.pte(reader, 0)) == world.machine.sparse_pfn, "other holes stay"
        assert access_page(reader, Pgoff(1)) == pfn
    assert [mm.rss_file for mm in world.mms] == [2, 2, 0]
    world.check()


def test_28_reading_a_hole_is_zeros_and_allocates_nothing(world: World):
    mapping = world.fs.make_file({0: 3, 3: 4}, nr_pages=4, read_only=False)
    vma = world.mmap(mapping)
    physmem = world.machine.physmem
    runs = physmem.runs(access_range(vma, Pgoff(0), 4), 5, 4 * PAGE_SIZE - 10)
    expected = (block_bytes(3) + ZEROS * 2 + block_bytes(4))[5:-5]
    assert physmem.gather(runs) == expected, "and not a byte more than was asked for"
    assert len(world.fs.free_blocks) == 4


def test_29_what_is_stored_in_the_region_shows_through_ptes_that_are_there(world: World, vma: Vma):
    pfn = access_page(vma, Pgoff(1))
    with world.machine.physmem.nvram.path.open("r+b") as image:
        image.seek((pfn - NVRAM_PFN_START) * PAGE_SIZE)
        image.write(ZEROS)
    pgfault = world.machine.vmstat.pgfault
    assert world.page(access_page(vma, Pgoff(1))) == ZEROS
    assert world.machine.vmstat.pgfault == pgfault


def test_31_kernel_address_and_pfn_name_the_same_frame(world: World):
    nvram = world.machine.physmem.nvram
    mapping = make_extent_file(nvram, [(0, 9, 2), (4, 30, 3)], nr_pages=8)
    for pgoff, block in ((0, 9), (1, 10), (4, 30), (6, 32)):
        kaddr, pfn = mapping.a_ops.get_xip_mem(mapping, Pgoff(pgoff), create=False)
        assert virt_to_pfn(kaddr) == pfn == NVRAM_PFN_START + block
        assert world.page(pfn) == block_bytes(block)
    for pgoff in (2, 3, 7, 8, 1 << 40):
        with pytest.raises(NoDataError):
            mapping.a_ops.get_xip_mem(mapping, Pgoff(pgoff), create=False)


# --- Zap ---


def test_40_unmapping_gives_back_what_was_counted_and_nothing_else(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4}, nr_pages=3)
    promote_pages(world.machine, mapping, np.array([1]))
    vma = world.mmap(mapping)
    access_range(vma, Pgoff(0), 3)
    frame, sparse = mapping.i_pages[1], world.machine.sparse_pfn
    assert (counts(world, frame), counts(world, sparse)) == ((2, 1, 2), (2, 1, 2))
    munmap(vma)
    assert (counts(world, frame), counts(world, sparse)) == ((1, 0, 0), (1, 0, 0))
    assert world.machine.vmstat.xip_zap == 3
    world.check()


def test_41_unmapping_by_offset_reaches_every_process(world: World):
    """Also pages that no struct page could lead from: this is what migration rests on."""
    mapping = world.fs.make_file({pgoff: 10 + pgoff for pgoff in range(8)})
    promote_pages(world.machine, mapping, np.array([3]))
    vmas = [
        world.mmap(mapping),
        world.mmap(mapping, pgoff=2, mm=world.make_mm()),
        world.mmap(mapping, pgoff=3, nr_pages=1, mm=world.make_mm(), vm_flags=VM_PRIVATE),
    ]
    for vma in vmas:
        access_range(vma, vma.vm_pgoff, (vma.vm_end - vma.vm_start) // PAGE_SIZE)
    assert world.machine.mem_map.page_mapcount(mapping.i_pages[3]) == 3
    assert unmap_mapping_range(mapping, Pgoff(2), 2, even_cows=True) == 2 + 2 + 1
    assert [world.pte(vma, 3) for vma in vmas] == [0, 0, 0]
    assert [world.pte(vma, 2) for vma in vmas[:2]] == [0, 0]
    assert world.pte(vmas[0], 1)
    assert world.pte(vmas[1], 4)
    assert world.machine.mem_map.page_mapcount(mapping.i_pages[3]) == 0
    world.check()


# --- Promotion and demotion ---


def test_43_after_promotion_the_next_access_faults_and_gets_the_counted_page(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4})
    vmas = [world.mmap(mapping), world.mmap(mapping, mm=world.make_mm())]
    for vma in vmas:
        access_range(vma, Pgoff(0), 2)
    promote_pages(world.machine, mapping, np.array([1]))
    pgfault = world.machine.vmstat.pgfault
    for vma in vmas:
        pfn = access_page(vma, Pgoff(1))
        assert pfn == mapping.i_pages[1]
        assert world.page(pfn) == block_bytes(4)
        assert vm_normal_page(vma, vma.vm_start, world.pte(vma, 1)) == pfn
        assert access_page(vma, Pgoff(0)) == NVRAM_PFN_START + 3
    assert world.machine.vmstat.pgfault == pgfault + 2
    assert counts(world, mapping.i_pages[1]) == (3, 2, 1)
    world.check()


def test_43_with_a_special_bit_a_page_in_ram_enters_by_the_page_path(world: World):
    """By vm_insert_mixed it would be special, uncounted, and freed under its ptes."""
    mapping = world.fs.make_file({0: 3, 1: 4, 2: 5})
    promote_pages(world.machine, mapping, np.array([0, 1]))
    vma = world.mmap(mapping)
    access_page(vma, Pgoff(0))
    access_range(vma, Pgoff(1), 2)
    has_bit = world.machine.arch.pte_special
    ptes = [world.pte(vma, pgoff) for pgoff in range(3)]
    assert [pte_special(pte) for pte in ptes] == [False, False, has_bit]
    vmstat = world.machine.vmstat
    assert (vmstat.xip_insert_page, vmstat.xip_insert_pfn, world.mm.rss_file) == (2, 1, 2)
    world.check()


def test_44_page_that_somebody_holds_cannot_leave_and_is_looked_at_after_the_unmapping(
    world: World,
):
    mapping = world.fs.make_file({0: 3})
    promote_pages(world.machine, mapping, np.array([0]))
    vma = world.mmap(mapping)
    access_page(vma, Pgoff(0))
    frame = mapping.i_pages[0]
    mem_map = world.machine.mem_map
    assert (mem_map.page_count(frame), mem_map.page_mapcount(frame)) == (2, 1)

    mem_map.get_page(frame)
    statistics = demote_pages(world.machine, mapping, [0], DemoteReason.KSWAPD)
    assert (statistics.nr_migrated, statistics.nr_failed) == (0, 1)
    assert mapping.i_pages == {0: frame}
    assert world.pte(vma, 0) == 0

    access_page(vma, Pgoff(0))  # mapped again: that alone makes nobody busy
    mem_map.put_page(frame)
    statistics = demote_pages(world.machine, mapping, [0], DemoteReason.KSWAPD)
    assert (statistics.nr_migrated, statistics.nr_failed) == (1, 0)
    assert (mapping.i_pages, mem_map.page_count(frame)) == ({}, 0)
    assert access_page(vma, Pgoff(0)) == NVRAM_PFN_START + 3
    world.check()


# --- Accounting ---


def test_51_and_52_rss_counts_pages_with_a_struct_page_only(world: World):
    mapping = world.fs.make_file({pgoff: pgoff for pgoff in range(6)}, nr_pages=8)
    promote_pages(world.machine, mapping, np.array([1, 2, 3]))
    vmas = [world.mmap(mapping), world.mmap(mapping, mm=world.make_mm())]
    for vma in vmas:
        access_range(vma, Pgoff(0), 8)
    assert [mm.rss_file for mm in world.mms] == [3 + 2] * 2, "the frames, and a page of zeros twice"
    assert world.machine.mem_map.mapcount.sum() == 10
    world.check()


def test_53_area_is_mixed_and_not_a_pfnmap(vma: Vma):
    assert vma.vm_flags & VM_MIXEDMAP
    assert not vma.vm_flags & VM_PFNMAP


def test_54_region_costs_no_struct_page(tmp_path: Path):
    nvram = make_nvram(tmp_path / "region", 300)
    machine = Machine(nvram, nr_tier_frames=5)
    assert machine.mem_map.nr_frames == 5 + 2
    assert machine.mem_map.size_bytes == 7 * 64
    assert machine.struct_page_saved_bytes == 300 * 64
    machine.close()
    nvram.close()


# --- All architectures alike ---


@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: f"{arch.name}-{arch.version}")
def test_what_a_program_reads_is_the_same_everywhere(world: World):
    mapping = world.fs.make_file({pgoff: pgoff + 20 for pgoff in range(6)}, nr_pages=8)
    vma = world.mmap(mapping)
    expected = [block_bytes(pgoff + 20) for pgoff in range(6)] + [ZEROS] * 2
    for pgoffs in ([], [1, 2, 5]):
        promote_pages(world.machine, mapping, np.array(pgoffs, np.int64))
        assert [world.page(access_page(vma, Pgoff(pgoff))) for pgoff in range(8)] == expected
        assert [world.page(pfn) for pfn in access_range(vma, Pgoff(0), 8).tolist()] == expected
        world.check()


def test_fault_names_the_page_by_offset_not_by_address(world: World):
    mapping = world.fs.make_file({pgoff: pgoff + 20 for pgoff in range(8)})
    vma = world.mmap(mapping, pgoff=4)
    assert xip_file_fault(VmFault(vma, vma.address(Pgoff(5)), Pgoff(5), flags=0)) == NOPAGE
    assert pte_pfn(world.pte(vma, 5)) == NVRAM_PFN_START + 25
