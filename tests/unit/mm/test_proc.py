"""Runs of pages alike, as pagemap, kpagecount and the reference counts have them."""

import numpy as np
import pytest

from tests.kit.mm import PRIVATE_RW, World
from xipfs.mm.access import access_page, user_load, user_store
from xipfs.mm.arch import get_arch
from xipfs.mm.migrate import promote_pages
from xipfs.mm.pgtable import PTE_NONE, PTRS_PER_PTE, pte_pfn
from xipfs.mm.proc import PagemapRun, kpagecount, pagemap_runs
from xipfs.mm.remap import remap_pfn_range
from xipfs.mm.vm_fault import VmOperations
from xipfs.mm.vma import VM_MAYREAD, VM_PFNMAP, VM_READ, Vma
from xipfs.units import NVRAM_PFN_START, Pfn, Pgoff


def runs(vma: Vma) -> list[PagemapRun]:
    return pagemap_runs(vma, vma.vm_start, vma.vm_end, vma.nr_pages)


def nvram(pgoff: int, nr_pages: int, block: int, heat: int = 1) -> PagemapRun:
    pfn = Pfn(NVRAM_PFN_START + block)
    return PagemapRun(Pgoff(pgoff), nr_pages, True, "nvram", pfn, 0, None, heat)


def untouched(pgoff: int, nr_pages: int) -> PagemapRun:
    return PagemapRun(Pgoff(pgoff), nr_pages, False, None, None, 0, None, 0)


def test_nothing_was_touched(world: World):
    assert runs(world.mmap(world.fs.make_file({}, nr_pages=2000))) == [untouched(0, 2000)]


def test_neighbours_in_nvram_are_one_run_until_they_lie_apart(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4, 2: 9, 3: 10}))
    for pgoff in range(4):
        access_page(vma, Pgoff(pgoff))
    assert runs(vma) == [nvram(0, 2, 3), nvram(2, 2, 9)]
    access_page(vma, Pgoff(1))
    whole = [nvram(0, 1, 3), nvram(1, 1, 4, heat=2), nvram(2, 2, 9)]
    assert runs(vma) == whole
    for nr_runs_max in range(1, 5):
        told = pagemap_runs(vma, vma.vm_start, vma.vm_end, nr_runs_max)
        assert told == whole[:nr_runs_max]


def test_holes_are_one_run_of_one_frame(world: World):
    vma = world.mmap(world.fs.make_file({}, nr_pages=3))
    for pgoff in range(3):
        access_page(vma, Pgoff(pgoff))
    (run,) = runs(vma)
    assert (run.nr_pages, run.tier, run.pfn) == (3, "hole", world.machine.sparse_pfn)
    assert (run.kpagecount, run.refcount) == (3, 4)


def test_a_promoted_page_before_and_after_its_fault(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4, 2: 5})
    vma = world.mmap(mapping)
    promote_pages(world.machine, mapping, np.array([1]))
    frame = mapping.i_pages[1]
    _, before, _ = runs(vma)
    assert before == PagemapRun(Pgoff(1), 1, False, "ram", frame, 0, 1, 0)
    access_page(vma, Pgoff(1))
    _, after, _ = runs(vma)
    assert (after.present, after.pfn, after.heat) == (True, frame, 1)
    counted = 0 if world.machine.arch.pte_special and world.machine.arch.is_2008 else 1
    assert (after.kpagecount, after.refcount) == (counted, 1 + counted)


def test_a_part_of_an_area(world: World):
    """Pages of other leaves and files, and pages in RAM outside of the part, are not told."""
    blocks = {pgoff: pgoff % 60 for pgoff in range(PTRS_PER_PTE + 8)}
    mapping = world.fs.make_file(blocks)
    vma = world.mmap(mapping)
    promote_pages(world.machine, mapping, np.array([0, PTRS_PER_PTE + 7]))
    for pgoff in range(PTRS_PER_PTE - 4, PTRS_PER_PTE + 4):
        access_page(vma, Pgoff(pgoff))
    first = PTRS_PER_PTE - 2
    found = pagemap_runs(vma, vma.address(Pgoff(first)), vma.address(Pgoff(first + 4)), 9)
    assert found == [nvram(first, 4, first % 60)]


def test_one_page_at_a_time_says_the_same(world: World):
    """The runs unrolled are what pte, mapcount and refcount say of each page."""
    mapping = world.fs.make_file({i: (7 * i) % 60 for i in range(40) if i % 5}, nr_pages=40)
    vma = world.mmap(mapping)
    private = world.mmap(mapping, vm_flags=PRIVATE_RW)
    promote_pages(world.machine, mapping, np.array([1, 2, 11, 33]))
    for pgoff in (0, 1, 2, 3, 5, 10, 11, 12, 13, 33, 39):
        access_page(vma, Pgoff(pgoff))
    assert user_store(world.mm, private.address(Pgoff(3)), b"mine") is None
    assert isinstance(user_load(world.mm, private.address(Pgoff(2)), 1), bytes)
    mem_map = world.machine.mem_map
    for area in (vma, private):
        told = runs(area)
        assert sum(run.nr_pages for run in told) == 40
        for run in told:
            for i in range(run.nr_pages):
                address = area.address(Pgoff(run.pgoff + i))
                pte = area.vm_mm.page_table.find_pte(address)
                assert run.present == (pte != PTE_NONE)
                if not run.present:
                    assert (run.tier == "ram") == (run.pgoff + i in mapping.i_pages)
                    continue
                pfn = pte_pfn(pte)
                assert run.pfn == (pfn if run.tier == "hole" else pfn - i)
                assert run.kpagecount == kpagecount(area.vm_mm, pfn)
                has_page = pfn < mem_map.nr_frames
                assert run.refcount == (mem_map.page_count(pfn) if has_page else None)


def test_an_area_without_a_file(world: World):
    empty = world.mm.mmap(None, nr_pages=5, pgoff=Pgoff(2), vm_flags=0, vm_ops=VmOperations())
    assert runs(empty) == [untouched(2, 5)]


@pytest.mark.parametrize("arch", [get_arch("um", "6.1")])
def test_areas_of_bare_pfns_are_passed_over_as_in_pagemap(world: World):
    flags = VM_READ | VM_MAYREAD | VM_PFNMAP
    vma = world.mmap(world.fs.make_file({}, nr_pages=2), vm_flags=flags)
    assert remap_pfn_range(vma, vma.vm_start, Pfn(NVRAM_PFN_START + 20), 2) == 0
    assert runs(vma) == [untouched(0, 2)]
