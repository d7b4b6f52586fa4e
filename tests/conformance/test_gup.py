"""get_user_pages, case by case: what a page without struct page is to who wants one."""

import errno

import numpy as np
import pytest

from tests.kit.mm import PRIVATE_RW, SHARED_RW, World, archs, at_step, block_bytes
from xipfs.mm.access import access_page, user_load
from xipfs.mm.arch import FastGup
from xipfs.mm.gup import (
    FOLL_DUMP,
    FOLL_FAST_ONLY,
    FOLL_PIN,
    FOLL_WRITE,
    get_user_pages,
    get_user_pages_fast,
    put_user_page,
)
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.mmap import munmap
from xipfs.mm.pgtable import PMD_SHIFT, pte_index, pte_pfn
from xipfs.mm.remap import remap_pfn_range
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.mm.vma import VM_IO, VM_PFNMAP, VM_READ, VM_SHARED, VM_XIP_FILE, Vma
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, Pfn, Pgoff

in_2008 = archs(lambda arch: arch.is_2008)
now = archs(lambda arch: not arch.is_2008)
with_fast_gup = archs(lambda arch: arch.fast_gup is not None)
with_recheck = archs(lambda arch: arch.fast_gup is FastGup.RECHECK)


@pytest.fixture
def mixed(world: World) -> Vma:
    """Pages 0 and 2 in RAM, 1 not, all mapped."""
    mapping = world.fs.make_file({0: 3, 1: 4, 2: 5})
    promote_pages(world.machine, mapping, np.array([0, 2]))
    vma = world.mmap(mapping)
    for pgoff in range(3):
        access_page(vma, Pgoff(pgoff))
    return vma


def put_all(world: World, pages: list[Pfn], flags: int = 0) -> None:
    for page in pages:
        put_user_page(world.mm, page, flags)


def refuses(world: World) -> int:
    """What a page without struct page is."""
    return -errno.EFAULT if world.machine.arch.is_2008 else -errno.EEXIST


# --- slow ---


@pytest.mark.parametrize("is_mapped", [True, False])
def test_45_reading_a_page_without_struct_page_fails(world: World, is_mapped: bool):
    vma = world.mmap(world.fs.make_file({0: 3}))
    if is_mapped:
        access_page(vma, Pgoff(0))
    pages: list[Pfn] = []
    assert get_user_pages(world.mm, vma.vm_start, 1, 0, pages) == refuses(world)
    assert pages == []
    assert pte_pfn(world.pte(vma, 0)) == NVRAM_PFN_START + 3, "though it was faulted in"
    world.check()


@in_2008
def test_45_populating_ends_at_such_a_page_in_2008(world: World, mixed: Vma):
    assert get_user_pages(world.mm, mixed.vm_start, 3, 0, None) == 1
    assert get_user_pages(world.mm, mixed.address(Pgoff(1)), 2, 0, None) == -errno.EFAULT
    world.check()


@now
def test_45_populating_passes_over_such_a_page_now_and_marks_it_used(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}, read_only=False), vm_flags=SHARED_RW)
    assert get_user_pages(world.mm, vma.vm_start, 2, 0, None) == 2
    leaf = world.mm.page_table.leaves[vma.vm_start >> PMD_SHIFT]
    index = pte_index(vma.vm_start)
    assert (leaf.accessed_bytes[index], leaf.dirty_bytes[index]) == (1, 0)
    assert get_user_pages(world.mm, vma.vm_start, 1, FOLL_WRITE, None) == 1
    assert (leaf.accessed_bytes[index], leaf.dirty_bytes[index]) == (1, 1)
    world.check()


def test_45_core_dumps_get_efault(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}))
    for pages in ([], None):
        assert get_user_pages(world.mm, vma.vm_start, 1, FOLL_DUMP, pages) == -errno.EFAULT


def test_45_pages_got_before_it_count(world: World, mixed: Vma):
    pages: list[Pfn] = []
    assert get_user_pages(world.mm, mixed.vm_start, 3, 0, pages) == 1
    assert pages == [mixed.vm_file.i_pages[0]]
    assert world.counts(pages[0]) == (3, 1, 2, 0)
    world.check(pins=pages)
    put_all(world, pages)
    world.check()


def test_46_writing_to_a_private_page_copies_first_and_gets_the_copy(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RW)
    pages: list[Pfn] = []
    assert get_user_pages(world.mm, vma.vm_start, 1, FOLL_WRITE, pages) == 1
    (copy,) = pages
    assert copy == pte_pfn(world.pte(vma, 0))
    assert world.counts(copy) == (2, 1, 0, 1)
    assert world.machine.mem_map.page_anon(copy)
    assert world.page(copy) == block_bytes(3)
    world.machine.physmem.frame(copy)[:4] = b"mine"
    assert user_load(world.mm, vma.vm_start, 4) == b"mine"
    assert world.page(NVRAM_PFN_START + 3) == block_bytes(3)
    world.check(pins=pages)
    put_all(world, pages)
    world.check()


def test_46_writing_to_a_shared_page_makes_its_pte_dirty_at_most(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}, read_only=False), vm_flags=SHARED_RW)
    pages: list[Pfn] = []
    assert get_user_pages(world.mm, vma.vm_start, 1, FOLL_WRITE, pages) == refuses(world)
    assert world.mm.rss_anon == 0
    world.check()


@pytest.mark.parametrize("vm_flags", [VM_PFNMAP, VM_IO])
@pytest.mark.parametrize("pages", [[], None])
def test_47_pfnmap_and_io_areas_are_refused_at_once(
    world: World, vm_flags: int, pages: list[Pfn] | None
):
    flags = VM_READ | VM_SHARED | vm_flags
    vma = world.mmap(world.fs.make_file({}, nr_pages=2), vm_flags=flags)
    if vm_flags == VM_PFNMAP:
        frame = world.machine.mem_map.alloc_page()
        assert remap_pfn_range(vma, vma.vm_start, frame, 1) == 0
    pgfault = world.machine.vmstat.pgfault
    assert get_user_pages(world.mm, vma.vm_start, 2, 0, pages) == -errno.EFAULT
    assert world.machine.vmstat.pgfault == pgfault


# --- fast ---


@with_fast_gup
def test_48_fast_walk_stops_at_the_special_bit_and_the_slow_error_is_kept_back(
    world: World, mixed: Vma
):
    pages: list[Pfn] = []
    assert get_user_pages_fast(world.mm, mixed.vm_start, 3, FOLL_FAST_ONLY, pages) == 1
    assert get_user_pages_fast(world.mm, mixed.vm_start, 3, 0, pages) == 1
    frame = mixed.vm_file.i_pages[0]
    assert pages == [frame, frame]
    world.check(pins=pages)
    put_all(world, pages)
    assert get_user_pages_fast(world.mm, mixed.address(Pgoff(1)), 2, 0, []) == refuses(world)
    world.check()


@with_fast_gup
def test_48_slow_walk_gets_the_rest(world: World, mixed: Vma):
    """What is not mapped ends the fast walk, too, and the slow one faults it in."""
    unmap_mapping_range(mixed.vm_file, Pgoff(0), 1, even_cows=True)
    pages: list[Pfn] = []
    promote_pages(world.machine, mixed.vm_file, np.array([1]))
    access_page(mixed, Pgoff(0))
    assert get_user_pages_fast(world.mm, mixed.vm_start, 3, 0, pages) == 3
    assert pages == [mixed.vm_file.i_pages[pgoff] for pgoff in range(3)]
    put_all(world, pages)
    world.check()


@with_recheck
@pytest.mark.parametrize("step", ["gup_fast: get unless zero", "gup_fast: recheck pte"])
@pytest.mark.parametrize("flags", [0, FOLL_PIN])
def test_49_page_whose_pte_changed_is_given_back(world: World, mixed: Vma, step: str, flags: int):
    frame = mixed.vm_file.i_pages[0]
    pages: list[Pfn] = []
    with at_step(step, lambda: unmap_mapping_range(mixed.vm_file, Pgoff(0), 1, even_cows=True)):
        nr_got = get_user_pages_fast(world.mm, mixed.vm_start, 1, FOLL_FAST_ONLY | flags, pages)
    assert (nr_got, pages) == (0, [])
    assert world.counts(frame) == (1, 0, 1, 0)
    world.check()


@with_recheck
def test_49_page_that_was_freed_is_not_got_from_zero_references(world: World, mixed: Vma):
    frame = mixed.vm_file.i_pages[0]
    pages: list[Pfn] = []
    with at_step(
        "gup_fast: get unless zero",
        lambda: demote_pages(world.machine, mixed.vm_file, [0], DemoteReason.KSWAPD),
    ):
        nr_got = get_user_pages_fast(world.mm, mixed.vm_start, 1, FOLL_FAST_ONLY, pages)
    assert (nr_got, pages) == (0, [])
    assert world.machine.mem_map.page_count(frame) == 0
    world.check()


@with_recheck
def test_49_frame_that_holds_another_page_by_now_is_given_back(world: World, mixed: Vma):
    """It has references again, so only the second look at the pte tells."""
    frame = mixed.vm_file.i_pages[0]

    def free_and_use_again() -> None:
        demote_pages(world.machine, mixed.vm_file, [0], DemoteReason.KSWAPD)
        assert world.machine.mem_map.alloc_page() == frame

    with at_step("gup_fast: get unless zero", free_and_use_again):
        assert get_user_pages_fast(world.mm, mixed.vm_start, 1, FOLL_FAST_ONLY, []) == 0
    assert world.machine.mem_map.page_count(frame) == 1
    world.check(pins=[frame])


@with_recheck
def test_49_page_got_before_the_unmapping_cannot_leave(world: World, mixed: Vma):
    pages: list[Pfn] = []
    assert get_user_pages_fast(world.mm, mixed.vm_start, 1, FOLL_FAST_ONLY, pages) == 1
    statistics = demote_pages(world.machine, mixed.vm_file, [0], DemoteReason.KSWAPD)
    assert (statistics.nr_migrated, statistics.nr_failed) == (0, 1)
    munmap(mixed)
    assert world.page(pages[0]) == block_bytes(3)
    world.check(pins=pages)


@archs(lambda arch: not arch.pte_special)
def test_50_nothing_is_got_fast_without_a_special_bit(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4})
    promote_pages(world.machine, mapping, np.array([0, 1]))
    vma = world.mmap(mapping, vm_flags=VM_XIP_FILE)
    for pgoff in range(2):
        access_page(vma, Pgoff(pgoff))
    pages: list[Pfn] = []
    assert get_user_pages_fast(world.mm, vma.vm_start, 2, FOLL_FAST_ONLY, pages) == 0
    assert get_user_pages_fast(world.mm, vma.vm_start, 2, 0, pages) == 2, "but slowly"
    assert pages == [mapping.i_pages[0], mapping.i_pages[1]]
    put_all(world, pages)
    assert user_load(world.mm, vma.vm_start, PAGE_SIZE) == block_bytes(3)
    world.check()
