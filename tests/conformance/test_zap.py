"""Taking pages away, case by case: unmapping, migration, mprotect and mremap."""

import errno

import numpy as np
import pytest

from tests.kit.mm import PRIVATE_RW, SHARED_RW, World, archs, at_step, block_bytes
from xipfs.mm.access import access_page, access_range, user_load, user_store
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.mixedmap import vm_normal_page
from xipfs.mm.mmap import do_munmap, munmap
from xipfs.mm.mprotect import do_mprotect
from xipfs.mm.mremap import MREMAP_FIXED, MREMAP_MAYMOVE, do_mremap
from xipfs.mm.pgtable import PMD_SHIFT, pte_index, pte_pfn, pte_special, pte_write
from xipfs.mm.remap import remap_pfn_range
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.mm.vma import (
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, Pfn, Pgoff, Vaddr

PRIVATE_RO = VM_READ | VM_MAYREAD | VM_MAYWRITE | VM_MIXEDMAP

now = archs(lambda arch: not arch.is_2008)


# --- Zap ---


@pytest.mark.parametrize("nr_pages", [1, 3], ids=["one by one", "at once"])
def test_40_unmapping_gives_back_what_was_counted_and_nothing_else(world: World, nr_pages: int):
    mapping = world.fs.make_file({0: 3, 1: 4}, nr_pages=3)
    promote_pages(world.machine, mapping, np.array([1]))
    vma = world.mmap(mapping)
    access_range(vma, Pgoff(0), 3)
    frame, sparse = mapping.i_pages[1], world.machine.sparse_pfn
    assert (world.counts(frame), world.counts(sparse)) == ((2, 1, 2, 0), (2, 1, 2, 0))
    for pgoff in range(0, 3, nr_pages):
        assert do_munmap(world.mm, vma.address(Pgoff(pgoff)), nr_pages) == 0
    assert (world.counts(frame), world.counts(sparse)) == ((1, 0, 0, 0), (1, 0, 0, 0))
    assert world.machine.vmstat.xip_zap == 3
    assert user_load(world.mm, vma.vm_start, 1) == ("SIGSEGV", 1)
    world.check()


def test_40_page_is_freed_after_its_pte_is_gone(world: World):
    """The reference goes last, after the flush: in between only old translations lead there."""
    mapping = world.fs.make_file({0: 3})
    promote_pages(world.machine, mapping, np.array([0]))
    vma = world.mmap(mapping)
    access_page(vma, Pgoff(0))
    seen: list[tuple[int, tuple[int, ...]]] = []
    with at_step(
        "tlb: flush",
        lambda: seen.append((world.pte(vma, 0), world.counts(mapping.i_pages[0]))),
    ):
        munmap(vma)
    assert seen == [(0, (2, 0, 0, 0))]
    world.check()


def test_41_unmapping_by_offset_reaches_every_process(world: World):
    """Also pages that no struct page could lead from: this is what migration rests on."""
    mapping = world.fs.make_file({pgoff: 10 + pgoff for pgoff in range(8)})
    promote_pages(world.machine, mapping, np.array([3]))
    vmas = [
        world.mmap(mapping),
        world.mmap(mapping, pgoff=2, mm=world.make_mm()),
        world.mmap(mapping, pgoff=3, nr_pages=1, mm=world.make_mm(), vm_flags=PRIVATE_RO),
    ]
    for vma in vmas:
        access_range(vma, vma.vm_pgoff, vma.nr_pages)
    assert world.machine.mem_map.page_mapcount(mapping.i_pages[3]) == 3
    assert unmap_mapping_range(mapping, Pgoff(2), 2, even_cows=True) == 2 + 2 + 1
    assert [world.pte(vma, 3) for vma in vmas] == [0, 0, 0]
    assert [world.pte(vma, 2) for vma in vmas[:2]] == [0, 0]
    assert world.pte(vmas[0], 1)
    assert world.pte(vmas[1], 4)
    assert world.machine.mem_map.page_mapcount(mapping.i_pages[3]) == 0
    world.check()


@pytest.mark.parametrize("nr_pages", [1, 4], ids=["one by one", "at once"])
def test_41_private_copies_stay_unless_even_cows(world: World, nr_pages: int):
    mapping = world.fs.make_file({pgoff: 3 + pgoff for pgoff in range(4)})
    promote_pages(world.machine, mapping, np.array([2, 3]))
    vma = world.mmap(mapping, vm_flags=PRIVATE_RW)
    for pgoff in range(4):
        access_page(vma, Pgoff(pgoff))
    for pgoff in (1, 3):  # of a page without struct page, and of one with
        assert user_store(world.mm, vma.address(Pgoff(pgoff)), b"mine") is None

    def unmap(*, even_cows: bool) -> int:
        return sum(
            unmap_mapping_range(mapping, Pgoff(pgoff), nr_pages, even_cows=even_cows)
            for pgoff in range(0, 4, nr_pages)
        )

    assert unmap(even_cows=False) == 2
    assert [bool(world.pte(vma, pgoff)) for pgoff in range(4)] == [False, True, False, True]
    assert (world.mm.rss_file, world.mm.rss_anon) == (0, 2)
    assert user_load(world.mm, vma.address(Pgoff(1)), 4) == b"mine"
    assert unmap(even_cows=True) == 2
    assert (world.mm.rss_file, world.mm.rss_anon) == (0, 0)
    assert user_load(world.mm, vma.address(Pgoff(3)), PAGE_SIZE) == block_bytes(6)
    world.check()


@pytest.mark.parametrize("nr_pages", [1, 2], ids=["one by one", "at once"])
def test_42_sparse_page_stays_mapped_in_2008_without_even_cows(world: World, nr_pages: int):
    """Its struct page names no file. Now only anonymous pages are spared."""
    mapping = world.fs.make_file({}, nr_pages=2)
    vma = world.mmap(mapping)
    for pgoff in range(2):
        access_page(vma, Pgoff(pgoff))
    nr_zapped = sum(
        unmap_mapping_range(mapping, Pgoff(pgoff), nr_pages, even_cows=False)
        for pgoff in range(0, 2, nr_pages)
    )
    in_2008 = world.machine.arch.is_2008
    assert nr_zapped == (0 if in_2008 else 2)
    assert world.counts(world.machine.sparse_pfn) == ((3, 2, 2, 0) if in_2008 else (1, 0, 0, 0))
    assert unmap_mapping_range(mapping, Pgoff(0), 2, even_cows=True) == 2 - nr_zapped
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
    assert world.counts(mapping.i_pages[1]) == (3, 2, 1, 0)
    world.check()


def test_43_private_copies_outlive_a_promotion(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4})
    private = world.mmap(mapping, vm_flags=PRIVATE_RW)
    reader = world.mmap(mapping, mm=world.make_mm())
    assert user_store(world.mm, private.vm_start, b"mine") is None
    access_page(reader, Pgoff(0))
    promote_pages(world.machine, mapping, np.array([0]))
    assert access_page(reader, Pgoff(0)) == mapping.i_pages[0]
    assert user_load(world.mm, private.vm_start, 8) == b"mine" + block_bytes(3)[4:8]
    assert user_load(reader.vm_mm, reader.vm_start, 8) == block_bytes(3)[:8]
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


def test_44_who_gets_the_page_after_the_unmapping_is_seen(world: World):
    mapping = world.fs.make_file({0: 3})
    promote_pages(world.machine, mapping, np.array([0]))
    vma = world.mmap(mapping)
    access_page(vma, Pgoff(0))
    frame = mapping.i_pages[0]
    with at_step("demote: busy?", lambda: world.machine.mem_map.get_page(frame)):
        statistics = demote_pages(world.machine, mapping, [0], DemoteReason.KSWAPD)
    assert (statistics.nr_migrated, mapping.i_pages) == (0, {0: frame})
    world.check(pins=[frame])


# --- munmap, mprotect, mremap ---


@pytest.mark.parametrize("step", ["munmap: zap", "munmap: unlink"])
@pytest.mark.parametrize("blocks", [{0: 3}, {0: 3, 1: 4}], ids=["one page", "two pages"])
def test_55_nobody_reaches_the_page_after_unmapping_by_offset_amid_a_munmap(
    world: World, step: str, blocks: dict[int, int]
):
    """The area leaves its file after its ptes: else who unmaps would find no area, and be wrong.

    With TLBs, and in every order: tests/model/test_interleavings.py.
    """
    mapping = world.fs.make_file(blocks)
    vma = world.mmap(mapping)
    access_range(vma, Pgoff(0), len(blocks))
    left: list[int] = []

    def unmap() -> None:
        unmap_mapping_range(mapping, Pgoff(0), len(blocks), even_cows=False)
        left.extend(world.pte(vma, pgoff) for pgoff in blocks)
        assert mapping.i_mmap == [vma]

    with at_step(step, unmap):
        assert do_munmap(world.mm, vma.vm_start, len(blocks)) == 0
    assert left == [0] * len(blocks)
    assert mapping.i_mmap == []
    world.check()


@pytest.mark.parametrize("is_in_ram", [False, True], ids=["bare", "in ram"])
def test_55_munmap_amid_another(world: World, is_in_ram: bool):
    mapping = world.fs.make_file({0: 3})
    if is_in_ram:
        promote_pages(world.machine, mapping, np.array([0]))
    first, second = world.mmap(mapping), world.mmap(mapping, mm=world.make_mm())
    for vma in (first, second):
        access_page(vma, Pgoff(0))
    with at_step("munmap: unlink", lambda: do_munmap(second.vm_mm, second.vm_start, 1)):
        do_munmap(first.vm_mm, first.vm_start, 1)
    assert unmap_mapping_range(mapping, Pgoff(0), 1, even_cows=False) == 0
    assert [world.pte(vma, 0) for vma in (first, second)] == [0, 0]
    world.check()


def test_56_mprotect_keeps_a_special_pte_and_the_next_write_copies(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RO)
    access_page(vma, Pgoff(0))
    pte = world.pte(vma, 0)
    assert do_mprotect(world.mm, vma.vm_start, 1, VM_READ | VM_WRITE) == 0
    assert world.pte(vma, 0) == pte
    assert not pte_write(pte)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    assert world.mm.rss_anon == 1
    assert world.page(NVRAM_PFN_START + 3) == block_bytes(3)
    world.check()


def test_56_mprotect_none_and_back_keeps_pfn_and_special(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RO)
    access_page(vma, Pgoff(0))
    pte = world.pte(vma, 0)
    assert do_mprotect(world.mm, vma.vm_start, 1, 0) == 0
    assert pte_pfn(world.pte(vma, 0)) == NVRAM_PFN_START + 3
    assert user_load(world.mm, vma.vm_start, 1) == ("SIGSEGV", 2)
    assert do_mprotect(world.mm, vma.vm_start, 1, VM_READ) == 0
    assert world.pte(vma, 0) == pte
    assert user_load(world.mm, vma.vm_start, PAGE_SIZE) == block_bytes(3)
    world.check()


@now
def test_56_mprotect_gives_our_own_copy_its_write_bit_back_and_a_special_pte_not(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}), vm_flags=PRIVATE_RW)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    access_page(vma, Pgoff(1))
    assert do_mprotect(world.mm, vma.vm_start, 2, VM_READ) == 0
    assert [pte_write(world.pte(vma, pgoff)) for pgoff in range(2)] == [False, False]
    assert do_mprotect(world.mm, vma.vm_start, 2, VM_READ | VM_WRITE) == 0
    assert [pte_write(world.pte(vma, pgoff)) for pgoff in range(2)] == [True, False]
    world.check()


def test_56_mremap_moves_special_ptes_as_they_are(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}), vm_flags=PRIVATE_RW)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    access_page(vma, Pgoff(1))
    ptes = [world.pte(vma, pgoff) for pgoff in range(2)]
    leaf = world.mm.page_table.leaves[vma.vm_start >> PMD_SHIFT]
    assert leaf.dirty_bytes[pte_index(vma.vm_start)] == 1
    target = Vaddr(vma.vm_start + (1 << 30))
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    assert do_mremap(world.mm, vma.vm_start, 2, 2, flags, target) == target
    moved = world.mm.find_vma(target)
    assert moved is not None
    assert [world.pte(moved, pgoff) for pgoff in range(2)] == ptes
    assert pte_special(ptes[1]) is world.machine.arch.pte_special
    leaf = world.mm.page_table.leaves[target >> PMD_SHIFT]
    assert leaf.dirty_bytes[pte_index(target)] == 1
    assert user_load(world.mm, target, PAGE_SIZE) == b"mine" + block_bytes(3)[4:]
    assert user_load(world.mm, vma.vm_start, 1) == ("SIGSEGV", 1)
    world.check()


def test_56_mixed_map_may_grow_and_a_pfnmap_not(world: World):
    mapping = world.fs.make_file({pgoff: 3 + pgoff for pgoff in range(4)})
    mixed = world.mmap(mapping, nr_pages=2, vm_flags=SHARED_RW)
    access_page(mixed, Pgoff(0))
    address = do_mremap(world.mm, mixed.vm_start, 2, 4, MREMAP_MAYMOVE)
    assert address > 0
    assert user_load(world.mm, Vaddr(address), 4 * PAGE_SIZE) == b"".join(
        block_bytes(3 + pgoff) for pgoff in range(4)
    )
    pfnmap = world.mmap(mapping, nr_pages=1, vm_flags=VM_READ | VM_SHARED | VM_PFNMAP)
    assert remap_pfn_range(pfnmap, pfnmap.vm_start, Pfn(NVRAM_PFN_START + 20), 1) == 0
    assert do_mremap(world.mm, pfnmap.vm_start, 1, 2, MREMAP_MAYMOVE) == -errno.EFAULT
    assert do_mremap(world.mm, pfnmap.vm_start, 1, 1, MREMAP_MAYMOVE) == pfnmap.vm_start
    world.check()
