"""fork, case by case: which page tables a child gets, and what of each pte."""

import numpy as np
import pytest

from tests.kit.mm import PRIVATE_RW, SHARED_RW, World, archs, block_bytes, iter_ptes
from xipfs.mm.access import access_page, access_range, user_load, user_store
from xipfs.mm.fork import dup_mm
from xipfs.mm.migrate import promote_pages
from xipfs.mm.pgtable import PMD_SHIFT, PTE_RW, pte_index, pte_pfn, pte_special, pte_write
from xipfs.mm.remap import remap_pfn_range
from xipfs.mm.vma import VM_MAYWRITE, VM_PFNMAP, VM_READ, VM_WRITE, VM_XIP_FILE, Mm, Vma
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, Pfn, Pgoff, Vaddr

in_2008 = archs(lambda arch: arch.is_2008)
now = archs(lambda arch: not arch.is_2008)


def fork(world: World) -> Mm:
    child = dup_mm(world.mm)
    assert isinstance(child, Mm)
    world.mms.append(child)
    return child


def mapped(mm: Mm) -> dict[int, int]:
    """Return pgoff -> pte of all there are."""
    return {int(pgoff): pte for _, pgoff, pte in iter_ptes(mm)}


@pytest.fixture
def private(world: World) -> Vma:
    """Pages 0 and 1 without struct page and 2 with one, all mapped, none written to."""
    mapping = world.fs.make_file({0: 3, 1: 4, 2: 5, 3: 6})
    promote_pages(world.machine, mapping, np.array([2]))
    vma = world.mmap(mapping, vm_flags=PRIVATE_RW)
    for pgoff in range(3):
        access_page(vma, Pgoff(pgoff))
    return vma


@in_2008
def test_38_mixed_map_without_copies_is_left_to_faults_in_2008(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}), vm_flags=PRIVATE_RW)
    for pgoff in range(2):
        access_page(vma, Pgoff(pgoff))
    child = fork(world)
    assert mapped(child) == {}
    assert user_load(child, vma.vm_start, 2 * PAGE_SIZE) == block_bytes(3) + block_bytes(4)
    world.check()


@in_2008
def test_38_mixed_map_with_a_copy_is_copied_with_its_special_ptes(world: World, private: Vma):
    assert user_store(world.mm, private.vm_start, b"mine") is None
    child = fork(world)
    assert sorted(mapped(child)) == [0, 1, 2]
    assert user_load(child, private.vm_start, 4) == b"mine"
    world.check()


@in_2008
def test_38_mixed_map_with_an_inserted_page_is_copied(world: World):
    """VM_INSERTPAGE, which 3.7 merged into VM_MIXEDMAP: the sparse page sets it, a bare pfn not."""
    vma = world.mmap(world.fs.make_file({0: 3}, nr_pages=2))
    access_page(vma, Pgoff(0))
    assert mapped(fork(world)) == {}
    access_page(vma, Pgoff(1))
    assert sorted(mapped(fork(world))) == [0, 1]
    world.check()


@in_2008
def test_38_page_in_ram_is_an_inserted_one_where_there_is_a_bit(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4})
    promote_pages(world.machine, mapping, np.array([0, 1]))
    one_by_one, at_once = world.mmap(mapping), world.mmap(mapping)
    access_page(one_by_one, Pgoff(0))
    access_range(at_once, Pgoff(0), 2)
    has_bit = world.machine.arch.pte_special
    assert len(list(iter_ptes(fork(world)))) == (3 if has_bit else 0), "else vm_insert_mixed did it"
    world.check()


@now
def test_38_mixed_map_is_always_copied_now(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}))
    access_page(vma, Pgoff(1))
    child = fork(world)
    assert mapped(child) == {1: world.pte(vma, 1)}
    world.check()


def test_38_pfnmap_is_always_copied(world: World):
    flags = VM_READ | VM_WRITE | VM_MAYWRITE | VM_PFNMAP
    vma = world.mmap(world.fs.make_file({}, nr_pages=2), vm_flags=flags)
    assert remap_pfn_range(vma, vma.vm_start, Pfn(NVRAM_PFN_START + 20), 2) == 0
    child = fork(world)
    assert user_load(child, vma.vm_start, PAGE_SIZE) == block_bytes(20)
    assert len(mapped(child)) == 2
    world.check()


def test_39_child_has_the_same_ptes_read_only_and_old(world: World, private: Vma):
    """Special ones uncounted; normal ones with a reference, an rmap entry and rss of their own."""
    assert user_store(world.mm, private.vm_start, b"mine") is None
    copy, frame = pte_pfn(world.pte(private, 0)), private.vm_file.i_pages[2]
    before = mapped(world.mm)
    assert pte_write(before[0])
    child = fork(world)
    expected = {pgoff: pte & ~PTE_RW for pgoff, pte in before.items()}
    assert mapped(child) == expected
    assert mapped(world.mm) == expected, "the parent's, too: who writes first copies"
    assert pte_special(expected[1]) is world.machine.arch.pte_special
    assert (pte_special(expected[0]), pte_special(expected[2])) == (False, False)
    leaf = child.page_table.leaves[private.vm_start >> PMD_SHIFT]
    assert not leaf.accessed.any()
    assert leaf.dirty_bytes[pte_index(private.vm_start)] == 1, "private: the bytes are still so"
    assert world.counts(copy, child) == (2, 2, 1, 1)
    assert world.counts(frame, child) == (3, 2, 1, 1)
    assert world.counts(frame) == (3, 2, 1, 1)
    world.check()


def test_39_parent_and_child_write_apart(world: World, private: Vma):
    assert user_store(world.mm, private.vm_start, b"both") is None
    child = fork(world)
    for mm, data in ((child, b"child"), (world.mm, b"parent")):
        for pgoff in range(3):
            assert user_store(mm, private.address(Pgoff(pgoff)), data) is None
    for pgoff, block in ((1, 4), (2, 5)):
        at = private.address(Pgoff(pgoff))
        assert user_load(child, at, 8) == b"child" + block_bytes(block)[5:8]
        assert user_load(world.mm, at, 8) == b"parent" + block_bytes(block)[6:8]
    assert [(mm.rss_file, mm.rss_anon) for mm in world.mms] == [(0, 3), (0, 3)]
    world.check()


@now
def test_39_pte_of_a_shared_area_stays_writable_and_is_clean_in_the_child(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}, read_only=False), vm_flags=SHARED_RW)
    access_page(vma, Pgoff(0))
    leaf = world.mm.page_table.leaves[vma.vm_start >> PMD_SHIFT]
    index = pte_index(vma.vm_start)
    leaf.dirty_bytes[index] = 1
    child = fork(world)
    assert mapped(child) == mapped(world.mm) == {0: leaf.words[index]}
    assert pte_write(leaf.words[index])
    assert child.page_table.leaves[vma.vm_start >> PMD_SHIFT].dirty_bytes[index] == 0
    assert leaf.dirty_bytes[index] == 1
    world.check()


def test_39_child_reads_its_own_map_of_a_read_only_file(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=VM_XIP_FILE)
    access_page(vma, Pgoff(0))
    child = fork(world)
    assert user_load(child, Vaddr(vma.vm_start + 8), 8) == block_bytes(3)[8:16]
    assert child.find_vma(vma.vm_start) in vma.vm_file.i_mmap
