"""What is counted, and what /proc tells of it, case by case."""

from pathlib import Path

import numpy as np
import pytest

from tests.kit.mm import BARE, PRIVATE_RW, World, archs, make_nvram
from xipfs.mm.access import access_page, access_range, user_store
from xipfs.mm.arch import Arch
from xipfs.mm.machine import Machine
from xipfs.mm.mem_map import MemMap
from xipfs.mm.migrate import promote_pages
from xipfs.mm.proc import kpagecount, pagemap_entry, smaps, vm_flag_names
from xipfs.mm.remap import remap_pfn_range
from xipfs.mm.vma import VM_PFNMAP, VM_READ, VM_SHARED
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, Pfn, Pgoff


def test_51_rss_counts_pages_with_a_struct_page_only(world: World):
    mapping = world.fs.make_file({pgoff: pgoff for pgoff in range(6)}, nr_pages=8)
    promote_pages(world.machine, mapping, np.array([1, 2, 3]))
    vmas = [world.mmap(mapping), world.mmap(mapping, mm=world.make_mm())]
    for vma in vmas:
        access_range(vma, Pgoff(0), 8)
    assert [mm.rss_file for mm in world.mms] == [3 + 2] * 2, "the frames, and a page of zeros twice"
    assert world.machine.mem_map.mapcount.sum() == 10
    world.check()


def test_51_smaps_counts_special_ptes_in_rss_in_2008_and_nowhere_now(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4, 2: 5, 3: 6})
    promote_pages(world.machine, mapping, np.array([2]))
    vma = world.mmap(mapping)
    other = world.mmap(mapping, mm=world.make_mm())
    access_range(vma, Pgoff(0), 2)
    found = smaps(vma)
    in_2008 = world.machine.arch.is_2008
    assert found.rss_bytes == (2 * PAGE_SIZE if in_2008 else 0)
    assert (found.pss_bytes, found.referenced_bytes) == (0, 0)
    assert (found.shared_clean_bytes, found.private_clean_bytes) == (0, 0)
    for shared in (vma, other):
        access_page(shared, Pgoff(2))
    found = smaps(vma)
    assert found.rss_bytes == (3 * PAGE_SIZE if in_2008 else PAGE_SIZE)
    assert (found.pss_bytes, found.shared_clean_bytes) == (PAGE_SIZE / 2, PAGE_SIZE)


def test_52_kpagecount_of_a_page_without_struct_page_is_0_however_often_it_is_mapped(
    world: World,
):
    mapping = world.fs.make_file({0: 7, 1: 4})
    promote_pages(world.machine, mapping, np.array([1]))
    vmas = [world.mmap(mapping, mm=world.make_mm()) for _ in range(5)]
    for vma in vmas:
        access_range(vma, Pgoff(0), 2)
        entry = pagemap_entry(vma.vm_mm, vma.vm_start)
        assert entry == (True, False, False, BARE)
    assert kpagecount(world.mm, BARE) == 0
    frame = mapping.i_pages[1]
    assert kpagecount(world.mm, frame) == 5
    entry = pagemap_entry(vmas[0].vm_mm, vmas[0].address(Pgoff(1)))
    assert entry == (True, True, False, frame)


def test_52_pagemap_of_a_private_copy_is_no_files_and_exclusive(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}, nr_pages=2), vm_flags=PRIVATE_RW)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    entry = pagemap_entry(world.mm, vma.vm_start)
    assert entry[:3] == (True, False, True)
    assert kpagecount(world.mm, entry.pfn) == 1
    assert pagemap_entry(world.mm, vma.address(Pgoff(1))) == (False, False, False, 0)


@archs(lambda arch: not arch.is_2008)
def test_53_flags_tell_a_mixed_map_from_a_pfnmap(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4})
    names = vm_flag_names(world.mmap(mapping).vm_flags)
    assert "mm" in names
    assert "pf" not in names
    # A file mapped whole and at once, as cramfs does it.
    whole = world.mmap(mapping, vm_flags=VM_READ | VM_SHARED | VM_PFNMAP)
    assert remap_pfn_range(whole, whole.vm_start, Pfn(NVRAM_PFN_START + 3), 2) == 0
    names = vm_flag_names(whole.vm_flags)
    assert "pf" in names
    assert "mm" not in names


@pytest.mark.parametrize("nr_guests", [1, 3])
def test_54_region_costs_no_struct_page(tmp_path: Path, arch: Arch, nr_guests: int):
    """Only RAM does: whole sections of it where the memory model has those."""
    nvram = make_nvram(tmp_path / "region", 300)
    guests = [Machine(nvram, nr_tier_frames=5, arch=arch) for _ in range(nr_guests)]
    nr_struct_pages = arch.pfn_valid(5 + 2).struct_pages_end
    for machine in guests:
        assert machine.mem_map.nr_frames == nr_struct_pages
        assert machine.mem_map.size_bytes == nr_struct_pages * 64
        assert machine.struct_page_saved_bytes == 300 * 64 == MemMap(300).size_bytes
        machine.close()
    nvram.close()
