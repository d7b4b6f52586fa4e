"""mixedmap: insert_range, and misuse. The kernel's cases are in tests/conformance."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.kit.mm import World
from xipfs.errors import BugError
from xipfs.mm.mixedmap import insert_range, vm_insert_mixed, vm_insert_page, vm_normal_page
from xipfs.mm.pgtable import PTE_PRESENT, PTE_SPECIAL, mk_pte, pte_pfn, pte_present, pte_special
from xipfs.mm.vma import VM_READ, Vma
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, PFN_NONE, Pfn, Pgoff, Vaddr


@pytest.fixture
def vma(world: World) -> Vma:
    """Four leaves' worth of vma, with a leaf of its own."""
    return world.mmap(world.fs.make_file({}, nr_pages=2048))


def nvram(*blocks: int) -> list[int]:
    return [NVRAM_PFN_START + block for block in blocks]


def test_range_takes_every_page_by_its_kind(world: World, vma: Vma):
    machine = world.machine
    frame = machine.mem_map.alloc_page()
    assert frame is not None
    bare = nvram(3, 9)
    pfns = np.array([bare[0], PFN_NONE, frame, PFN_NONE, bare[1], frame])
    assert insert_range(vma, vma.address(Pgoff(5)), pfns) == 6
    ptes = [world.pte(vma, pgoff) for pgoff in range(5, 11)]
    assert [pte_pfn(pte) for pte in ptes] == [
        bare[0],
        machine.sparse_pfn,
        frame,
        machine.sparse_pfn,
        bare[1],
        frame,
    ]
    has_bit = machine.arch.pte_special
    assert [pte_special(pte) for pte in ptes] == [has_bit, False, False, False, has_bit, False]
    assert machine.mem_map.page_mapcount(frame) == machine.mem_map.page_count(frame) - 1 == 2
    assert machine.mem_map.page_mapcount(machine.sparse_pfn) == 2
    assert world.mm.rss_file == 4
    vmstat = machine.vmstat
    assert (vmstat.xip_insert_pfn, vmstat.xip_insert_page, vmstat.xip_insert_sparse) == (2, 4, 2)
    world.check(pins=[frame])


def test_range_leaves_what_is_there(world: World, vma: Vma):
    vm_insert_mixed(vma, vma.address(Pgoff(1)), Pfn(nvram(50)[0]))
    vm_insert_page(vma, vma.address(Pgoff(3)), world.machine.sparse_pfn)
    assert insert_range(vma, vma.vm_start, np.array(nvram(0, 1, 2, 3, 4))) == 3
    assert [pte_pfn(world.pte(vma, pgoff)) for pgoff in range(5)] == [
        *nvram(0, 50, 2),
        world.machine.sparse_pfn,
        *nvram(4),
    ]
    assert insert_range(vma, vma.vm_start, np.array(nvram(5, 6, 7, 8, 9))) == 0
    world.check()


def test_range_of_a_whole_leaf(world: World, vma: Vma):
    blocks = np.arange(512) + NVRAM_PFN_START
    assert insert_range(vma, vma.address(Pgoff(512)), blocks) == 512
    assert [pte_pfn(world.pte(vma, pgoff)) for pgoff in range(512, 1024)] == blocks.tolist()
    assert not pte_present(world.pte(vma, 511))
    assert not pte_present(world.pte(vma, 1024))
    assert len(world.mm.page_table.leaves) == 1


@pytest.mark.parametrize(
    ("pgoff", "nr_pages"), [(-1, 1), (-1, 2), (511, 2), (2047, 2), (2048, 1), (0, 513)]
)
def test_range_beyond_its_vma_or_leaf_is_a_bug(world: World, vma: Vma, pgoff: int, nr_pages: int):
    pfns = np.arange(nr_pages) + NVRAM_PFN_START
    with pytest.raises(BugError, match="a range outside of its vma or leaf"):
        insert_range(vma, vma.address(Pgoff(pgoff)), pfns)
    assert not world.mm.page_table.leaves


def test_only_mixed_maps_take_ranges(world: World, vma: Vma):
    vma.vm_flags = VM_READ
    with pytest.raises(BugError, match="insert_range needs VM_MIXEDMAP"):
        insert_range(vma, vma.vm_start, np.array(nvram(1)))


@pytest.mark.parametrize("pfn", [PFN_NONE, 1 << 20, NVRAM_PFN_START])
def test_page_path_needs_a_struct_page(world: World, vma: Vma, pfn: int):
    """-1 counted on the last frame, silently: memoryviews count backwards from their end."""
    with pytest.raises(BugError, match=f"vm_insert_page without struct page: pfn={pfn}"):
        vm_insert_page(vma, vma.vm_start, Pfn(pfn))
    world.check()


def test_normal_pte_without_struct_page_is_reported_where_the_bit_would_tell(
    world: World, vma: Vma, expected_logs: Callable[[str], None]
):
    pte = mk_pte(Pfn(NVRAM_PFN_START), PTE_PRESENT)
    if world.machine.arch.pte_special:
        expected_logs("ERROR .*bad page map at 0x200000: pte 0x1000000000001")
        assert vm_normal_page(vma, vma.vm_start, pte) is None
    else:
        assert vm_normal_page(vma, vma.vm_start, pte) is None
        assert vm_normal_page(vma, vma.vm_start, pte | PTE_SPECIAL) is None


def test_insertion_takes_one_leaf_at_most(world: World, vma: Vma):
    vm_insert_mixed(vma, Vaddr(vma.vm_end - (1 << PAGE_SHIFT)), Pfn(nvram(7)[0]))
    (leaf,) = world.mm.page_table.leaves.values()
    assert leaf.nr_present == 1
