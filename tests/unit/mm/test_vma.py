"""Vma and Mm: where vmas are placed, how they are found, and the invariants, broken and noticed."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.mm import DictFs, World
from xipfs.errors import BugError, OutOfFramesError
from xipfs.mm.access import access_page
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.filemap_xip import xip_file_mmap
from xipfs.mm.machine import Machine
from xipfs.mm.mmap import munmap
from xipfs.mm.pgtable import PMD_SHIFT, PTE_PRESENT, PTRS_PER_PTE, mk_pte
from xipfs.mm.vma import VM_MAYWRITE, VM_MIXEDMAP, VM_WRITE, VM_XIP_FILE, Mm, Vma
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Pfn, Pgoff, Vaddr


def file_of(nr_pages: int) -> AddressSpace:
    return AddressSpace(16, DictFs(), i_size_bytes=nr_pages << PAGE_SHIFT, read_only=True)


def leaves_of(vma: Vma) -> range:
    return range(vma.vm_start >> PMD_SHIFT, ((vma.vm_end - 1) >> PMD_SHIFT) + 1)


# Many small ones, and sizes on both sides of the borders between size classes and leaves.
sizes = st.integers(1, 9) | st.sampled_from([255, 256, 257, 511, 512, 513, 1024, 1025, 5000])


@given(steps=st.lists(sizes | st.none(), max_size=60), data=st.data())
def test_vmas_never_overlap_and_small_ones_lie_in_one_leaf(
    steps: list[int | None], data: st.DataObject
):
    """A number maps so many pages, None takes one of the vmas away."""
    mm = Mm(Machine.__new__(Machine))  # placing vmas asks nothing of the machine
    vmas: list[Vma] = []
    for nr_pages in steps:
        if nr_pages is not None:
            vmas.append(xip_file_mmap(mm, file_of(nr_pages), nr_pages=nr_pages))
        elif vmas:
            mm.remove_vma(vmas.pop(data.draw(st.integers(0, len(vmas) - 1))))
    vmas.sort(key=lambda vma: vma.vm_start)
    assert list(mm.vmas.values()) == vmas
    end = PAGE_SIZE  # nothing at address 0
    for vma in vmas:
        assert vma.vm_start >= end
        end = vma.vm_end
        nr_pages = (vma.vm_end - vma.vm_start) >> PAGE_SHIFT
        assert nr_pages == vma.vm_file.nr_pages
        if nr_pages >= PTRS_PER_PTE:
            assert vma.vm_start % (1 << PMD_SHIFT) == 0
        else:
            assert len(leaves_of(vma)) == 1
        assert vma.vm_file.i_mmap == [vma]


def test_range_is_used_again_by_one_of_its_size(world: World):
    mapping = world.fs.make_file({0: 1}, nr_pages=600)
    vmas = [world.mmap(mapping, nr_pages=nr_pages) for nr_pages in (3, 4, 600)]
    for vma in vmas:
        munmap(vma)
    assert mapping.i_mmap == []
    assert world.mmap(mapping, nr_pages=600).vm_start == vmas[2].vm_start
    assert world.mmap(mapping, nr_pages=3).vm_start == vmas[1].vm_start
    assert world.mmap(mapping, nr_pages=4).vm_start == vmas[0].vm_start
    assert world.mmap(mapping, nr_pages=4).vm_start not in {vma.vm_start for vma in vmas}


def test_find_vma_knows_both_ends(world: World):
    mapping = world.fs.make_file({0: 1}, nr_pages=3)
    first, second = world.mmap(mapping), world.mmap(mapping)
    assert world.mm.find_vma(first.vm_start) is first
    assert world.mm.find_vma(Vaddr(first.vm_end - 1)) is first
    assert world.mm.find_vma(first.vm_end) is None, "the range is 4 pages, the vma 3"
    assert world.mm.find_vma(second.vm_start) is second
    assert world.mm.find_vma(Vaddr(first.vm_start - 1)) is None
    assert world.mm.find_vma(Vaddr(second.vm_end + (1 << 40))) is None
    assert Mm(world.machine).find_vma(first.vm_start) is None


def test_address_and_pgoff_are_inverse_from_vm_pgoff_on(world: World):
    vma = world.mmap(world.fs.make_file({}, nr_pages=40), pgoff=30)
    assert vma.address(Pgoff(30)) == vma.vm_start
    assert [vma.pgoff(vma.address(Pgoff(pgoff))) for pgoff in range(30, 40)] == list(range(30, 40))
    assert vma.pgoff(Vaddr(vma.vm_end - 1)) == 39


def test_vma_of_a_file_is_mixed_and_never_to_be_written(world: World):
    vma = world.mmap(world.fs.make_file({0: 1}))
    assert vma.vm_flags == VM_XIP_FILE
    assert vma.vm_flags & VM_MIXEDMAP
    assert not vma.vm_flags & (VM_WRITE | VM_MAYWRITE)
    assert repr(vma) == f"Vma({vma.vm_start:#x}-{vma.vm_end:#x} file 16 pgoff 0 flags 0x10000091)"


def test_map_of_no_pages_is_a_bug(world: World):
    with pytest.raises(BugError, match="mmap of no pages"):
        world.mmap(world.fs.make_file({}), nr_pages=0)


def test_address_space_ends(world: World):
    mapping = world.fs.make_file({}, nr_pages=1 << 43)
    world.mmap(mapping)
    with pytest.raises(OutOfFramesError, match="no address range for 8796093022208 pages"):
        world.mmap(mapping)
    assert len(mapping.i_mmap) == len(world.mm.vmas) == 1
    world.mmap(mapping, nr_pages=1)


def overlap(vma: Vma) -> None:
    vma.vm_end = Vaddr(vma.vm_end + 4 * PAGE_SIZE)


def move(vma: Vma) -> None:
    vma.vm_start = Vaddr(vma.vm_start + PAGE_SIZE)


def leave_the_file(vma: Vma) -> None:
    vma.vm_file.i_mmap.remove(vma)


def stand_twice_in_the_file(vma: Vma) -> None:
    vma.vm_file.i_mmap.append(vma)


def shrink(vma: Vma) -> None:
    vma.vm_end = Vaddr(vma.vm_start + PAGE_SIZE)


def miscount(vma: Vma) -> None:
    vma.vm_mm.page_table.leaves[vma.vm_start >> PMD_SHIFT].nr_present += 1


def lose_rss(vma: Vma) -> None:
    vma.vm_mm.rss_file -= 1


def map_a_page_uncounted(vma: Vma) -> None:
    vma.vm_mm.page_table.leaves[vma.vm_start >> PMD_SHIFT].words[1] = mk_pte(Pfn(0), PTE_PRESENT)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (overlap, "I1: vmas overlap"),
        (move, "I1: vmas overlap"),
        (leave_the_file, "I1: not in i_mmap once"),
        (stand_twice_in_the_file, "I1: not in i_mmap once"),
        (shrink, "I3: a pte in no vma"),
        (miscount, "I3: nr_present is wrong"),
        (lose_rss, "rss is wrong|C[12]: "),
        (map_a_page_uncounted, "rss is wrong|C[12]: "),
    ],
)
def test_damage_is_noticed(world: World, damage: Callable[[Vma], None], message: str):
    mapping = world.fs.make_file({0: 1, 1: 2}, nr_pages=4)
    vma, neighbour = world.mmap(mapping), world.mmap(mapping)
    for pgoff in range(4):
        access_page(vma, Pgoff(pgoff))
        access_page(neighbour, Pgoff(pgoff))
    world.check()
    damage(vma)
    with pytest.raises(BugError, match=message):
        world.check()


def test_room_is_not_where_an_area_grew_or_was_put(world: World):
    """The next free address was handed out though an area had grown over it."""
    mapping = world.fs.make_file({}, nr_pages=1024)
    first = world.mmap(mapping, nr_pages=2)
    first.vm_end = Vaddr(first.vm_end + 4 * PAGE_SIZE)
    second = world.mmap(mapping, nr_pages=2)
    assert second.vm_start == first.vm_end
    fixed = world.mm.mmap(
        mapping,
        nr_pages=1,
        pgoff=Pgoff(0),
        vm_flags=VM_XIP_FILE,
        vm_ops=second.vm_ops,
        address=Vaddr(second.vm_end + PAGE_SIZE),
    )
    assert world.mmap(mapping, nr_pages=1).vm_start == second.vm_end
    assert world.mmap(mapping, nr_pages=1).vm_start == fixed.vm_end
    world.check()
