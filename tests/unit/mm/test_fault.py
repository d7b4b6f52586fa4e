"""Accesses: marks, counters, errors, and that bytes come through the pte and nothing else."""

import numpy as np
import pytest

from tests.kit.mm import ZEROS, World, block_bytes
from xipfs.errors import BugError, DeviceError, FormatError
from xipfs.mm.access import access_page, access_range
from xipfs.mm.fault import handle_mm_fault, handle_mm_fault_range
from xipfs.mm.migrate import promote_pages
from xipfs.mm.pgtable import PMD_SHIFT, PTE_PRESENT, Leaf, mk_pte, pte_index
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.mm.vm_fault import FaultResult
from xipfs.mm.vma import VM_MAYWRITE, VM_XIP_FILE, Vma
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, Paddr, Pfn, Pgoff, Vaddr


def place(vma: Vma, pgoff: int) -> tuple[Leaf, int]:
    address = vma.address(Pgoff(pgoff))
    return vma.vm_mm.page_table.leaves[address >> PMD_SHIFT], pte_index(address)


def heat(vma: Vma, pgoff: int) -> tuple[int, int]:
    """Return (accessed, heat) of a page."""
    leaf, index = place(vma, pgoff)
    return int(leaf.accessed[index]), int(leaf.heat[index])


def test_first_access_faults_and_later_ones_do_not(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}))
    vmstat = world.machine.vmstat
    assert world.page(access_page(vma, Pgoff(1))) == block_bytes(4)
    assert (vmstat.pgfault, vmstat.xip_access, world.fs.nr_calls["get_xip_mem"]) == (1, 1, 1)
    access_page(vma, Pgoff(1))
    assert (vmstat.pgfault, vmstat.xip_access, world.fs.nr_calls["get_xip_mem"]) == (1, 2, 1)
    assert access_range(vma, Pgoff(0), 2).tolist() == [NVRAM_PFN_START + 3, NVRAM_PFN_START + 4]
    assert (vmstat.pgfault, vmstat.xip_access) == (2, 4)
    assert world.fs.nr_calls == {"get_xip_mem": 1, "get_xip_pfns": 1}
    access_range(vma, Pgoff(0), 2)
    assert world.fs.nr_calls == {"get_xip_mem": 1, "get_xip_pfns": 1}


def test_accesses_leave_marks_that_stop_at_255(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4, 2: 5}))
    for _ in range(250):
        access_page(vma, Pgoff(0))
    access_range(vma, Pgoff(0), 2)
    assert [heat(vma, 0), heat(vma, 1), heat(vma, 2)] == [(1, 251), (1, 1), (0, 0)]
    for _ in range(10):
        access_page(vma, Pgoff(0))
        access_range(vma, Pgoff(0), 2)
    assert [heat(vma, 0), heat(vma, 1), heat(vma, 2)] == [(1, 255), (1, 11), (0, 0)]


def test_accesses_of_ram_are_counted_apart(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4, 2: 5}, nr_pages=4)
    vma = world.mmap(mapping)
    promote_pages(world.machine, mapping, np.array([1]))
    vmstat = world.machine.vmstat
    for pgoff in range(4):
        access_page(vma, Pgoff(pgoff))
    assert (vmstat.xip_access, vmstat.xip_access_ram) == (4, 2), "the frame and the sparse page"
    access_range(vma, Pgoff(0), 4)
    assert (vmstat.xip_access, vmstat.xip_access_ram) == (8, 4)


def test_access_to_nothing_is_nothing(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}))
    pfns = access_range(vma, Pgoff(0), 0)
    assert (pfns.dtype, pfns.shape) == (np.int64, (0,))
    assert world.machine.vmstat.xip_access == 0


def test_frames_returned_are_the_callers_own(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}))
    pfns = access_range(vma, Pgoff(0), 2)
    pfns[:] = 0
    assert access_range(vma, Pgoff(0), 2).tolist() == [NVRAM_PFN_START + 3, NVRAM_PFN_START + 4]


def test_no_access_beyond_the_vma_even_where_a_neighbour_is_mapped(world: World):
    """Small vmas lie side by side: page 1 of one file would have been page 0 of the next."""
    vmas = [world.mmap(world.fs.make_file({0: block})) for block in (3, 4, 5)]
    for vma in vmas:
        access_page(vma, Pgoff(0))
    for pgoff in (-1, 1):
        with pytest.raises(BugError, match="access outside"):
            access_page(vmas[1], Pgoff(pgoff))
    for pgoff, nr_pages in ((-1, 1), (-1, 2), (0, 2), (1, 1)):
        with pytest.raises(BugError, match="access outside"):
            access_range(vmas[1], Pgoff(pgoff), nr_pages)
    with pytest.raises(BugError, match="fault outside of the vma"):
        handle_mm_fault(vmas[1], vmas[1].vm_end)


def test_map_of_a_part_knows_the_part_only(world: World):
    mapping = world.fs.make_file({pgoff: pgoff for pgoff in range(20)})
    vma = world.mmap(mapping, pgoff=10, nr_pages=5)
    assert world.page(access_page(vma, Pgoff(10))) == block_bytes(10)
    assert access_range(vma, Pgoff(10), 5).tolist() == list(
        range(NVRAM_PFN_START + 10, NVRAM_PFN_START + 15)
    )
    with pytest.raises(BugError):
        access_page(vma, Pgoff(9))
    with pytest.raises(BugError):
        access_range(vma, Pgoff(10), 6)


# --- through the pte ---


def test_bytes_follow_a_redirected_pte(world: World):
    """What a client gets is what the pte names, whatever file, tier and filesystem say."""
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}))
    access_range(vma, Pgoff(0), 2)
    leaf, index = place(vma, 0)
    leaf.words[index] = mk_pte(Pfn(NVRAM_PFN_START + 44), PTE_PRESENT)
    assert world.page(access_page(vma, Pgoff(0))) == block_bytes(44)
    runs = world.machine.physmem.runs(access_range(vma, Pgoff(0), 2), 0, 2 * PAGE_SIZE)
    assert world.machine.physmem.gather(runs) == block_bytes(44) + block_bytes(4)


def test_scribbling_on_the_copy_in_nvram_shows_only_without_the_frame(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4})
    vma = world.mmap(mapping)
    promote_pages(world.machine, mapping, np.array([0]))
    access_range(vma, Pgoff(0), 2)
    with world.machine.physmem.nvram.path.open("r+b") as image:
        image.seek(3 * PAGE_SIZE)
        image.write(b"scribble" * (2 * PAGE_SIZE // 8))
    assert world.page(access_page(vma, Pgoff(0))) == block_bytes(3), "the frame"
    assert world.page(access_page(vma, Pgoff(1))) == b"scribble" * (PAGE_SIZE // 8), "in place"
    frame = mapping.i_pages[0]
    world.machine.physmem.frame(frame)[:8] = b"in frame"
    assert world.page(access_page(vma, Pgoff(0)))[:8] == b"in frame"


def test_view_of_an_access_is_the_memory_itself(world: World):
    mapping = world.fs.make_file({0: 3})
    vma = world.mmap(mapping)
    promote_pages(world.machine, mapping, np.array([0]))
    pfn = access_page(vma, Pgoff(0))
    view = world.machine.physmem.view(Paddr(pfn * PAGE_SIZE), 8)
    world.machine.physmem.frame(pfn)[:8] = b"no copy!"
    assert bytes(view) == b"no copy!"
    view.release()


# --- faults that fail ---


def test_page_past_the_end_of_the_file_is_an_error(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}, size_bytes=10), nr_pages=4)
    message = "file 16: a page cannot be mapped: VM_FAULT_SIGBUS"
    with pytest.raises(DeviceError, match=message):
        access_page(vma, Pgoff(1))
    assert not world.mm.page_table.leaves, "a fault that fails costs no leaf"
    with pytest.raises(DeviceError, match=message):
        access_range(vma, Pgoff(1), 2)
    assert not world.mm.page_table.leaves
    with pytest.raises(DeviceError, match=message):
        access_range(vma, Pgoff(0), 4)
    assert world.machine.vmstat.xip_access == 0
    assert world.page(access_page(vma, Pgoff(0))) == block_bytes(3)
    world.check()


def test_range_with_a_page_that_fails_ends_as_the_page_alone_would(world: World, expected_logs):
    """The error of the filesystem itself came out, where a single fault says VM_FAULT_OOM."""
    expected_logs("a damaged extent")
    mapping = world.fs.make_file({pgoff: pgoff + 1 for pgoff in range(6)})
    vma = world.mmap(mapping)
    world.fs.errors[mapping.id, 3] = FormatError("a damaged extent")
    for access in (lambda: access_page(vma, Pgoff(3)), lambda: access_range(vma, Pgoff(0), 6)):
        with pytest.raises(DeviceError, match="file 16: a page cannot be mapped: VM_FAULT_OOM"):
            access()
    assert [world.pte(vma, pgoff) != 0 for pgoff in range(6)] == [True] * 3 + [False] * 3
    assert world.machine.vmstat.pgfault == 1 + 4
    assert handle_mm_fault_range(vma, vma.vm_start, 3) == FaultResult.NOPAGE
    world.fs.errors.clear()
    assert len(access_range(vma, Pgoff(0), 6)) == 6
    world.check()


def test_leaves_before_the_one_that_fails_are_counted(world: World, expected_logs):
    expected_logs("a damaged extent")
    mapping = world.fs.make_file({511: 1, 512: 2}, nr_pages=1024)
    vma = world.mmap(mapping)
    world.fs.errors[mapping.id, 512] = FormatError("a damaged extent")
    with pytest.raises(DeviceError):
        access_range(vma, Pgoff(510), 4)
    assert (world.machine.vmstat.xip_access, world.machine.vmstat.xip_access_ram) == (2, 1)
    assert [heat(vma, 510), heat(vma, 511)] == [(1, 1), (1, 1)]


def test_range_that_may_fill_holes_fills_them_one_by_one(world: World):
    mapping = world.fs.make_file({0: 3, 2: 5}, nr_pages=4, read_only=False)
    vma = world.mmap(mapping, vm_flags=VM_XIP_FILE | VM_MAYWRITE)
    pfns = access_range(vma, Pgoff(0), 4)
    assert [world.page(pfn) for pfn in pfns.tolist()] == [
        block_bytes(3),
        ZEROS,
        block_bytes(5),
        ZEROS,
    ]
    assert (pfns >= NVRAM_PFN_START).all(), "no hole is left"
    assert len(set(pfns.tolist())) == 4
    assert world.fs.nr_calls["get_xip_pfns"] == 0
    world.check()


def test_writable_filesystem_alone_makes_no_range_slow(world: World):
    mapping = world.fs.make_file({0: 3}, nr_pages=4, read_only=False)
    vma = world.mmap(mapping)
    access_range(vma, Pgoff(0), 4)
    assert world.fs.nr_calls == {"get_xip_pfns": 1}
    assert world.machine.vmstat.xip_insert_sparse == 3


def test_access_after_unmapping_faults_again(world: World):
    mapping = world.fs.make_file({pgoff: pgoff for pgoff in range(8)})
    vma = world.mmap(mapping)
    access_range(vma, Pgoff(0), 8)
    unmap_mapping_range(mapping, Pgoff(2), 3, even_cows=True)
    assert world.machine.vmstat.pgfault == 8
    access_range(vma, Pgoff(0), 8)
    assert world.machine.vmstat.pgfault == 11
    assert handle_mm_fault(vma, Vaddr(vma.vm_start)) == FaultResult.DONE, "a pte is there"
    world.check()
