"""unmap_mapping_pages: many pages at once are what each of them alone would be."""

from typing import Any

import numpy as np
import pytest

from tests.kit.mm import ARCH_KINDS, PRIVATE_RW, SHARED_RW, World, block_bytes, snapshot
from xipfs.mm.access import access_page, access_range, user_store
from xipfs.mm.arch import ARCHS, Arch
from xipfs.mm.mem_map import PG_DIRTY
from xipfs.mm.migrate import promote_pages
from xipfs.mm.rmap import page_mkclean, unmap_mapping_pages, unmap_mapping_range
from xipfs.mm.vma import VM_XIP_FILE, Vma
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, Pfn, Pgoff

NR_PAGES = 1200


def make_world(arch: Arch) -> tuple[World, list[Vma]]:
    """Bare, counted, dirty, sparse and private ptes all over three leaves, in three mms."""
    nvram = NvramDevice.scratch(64 << PAGE_SHIFT)
    for block in range(60):
        nvram.store_bytes(block << PAGE_SHIFT, block_bytes(block))
    world = World(None, arch, nr_tier_frames=60, nvram=nvram)
    world._owns_nvram = True
    blocks = {pgoff: pgoff % 60 for pgoff in range(NR_PAGES) if pgoff % 7}
    mapping = world.fs.make_file(blocks, nr_pages=NR_PAGES)
    promote_pages(world.machine, mapping, np.arange(2, NR_PAGES, 29))
    vmas = [
        world.mmap(mapping, vm_flags=vm_flags, mm=world.make_mm(), pgoff=pgoff)
        for vm_flags, pgoff in ((VM_XIP_FILE, 0), (SHARED_RW, 100), (PRIVATE_RW, 5))
    ]
    for pgoff in range(200, NR_PAGES, 3):
        for vma in vmas:
            access_page(vma, Pgoff(pgoff))
    for vma in vmas[1:]:
        for pgoff in range(205, NR_PAGES, 58):
            if pgoff in blocks:
                assert user_store(vma.vm_mm, vma.address(Pgoff(pgoff)), b"stored") is None
    return world, vmas


def state(world: World) -> dict[str, Any]:
    found = snapshot(world.machine, world.mms, world.fs.files)
    found["flags"] = world.machine.mem_map.flags.tolist()
    found["rss_anon"] = [mm.rss_anon for mm in world.mms]
    return found


@pytest.mark.parametrize("step", [1, 3, 29, 58, 399])
@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: f"{arch.name}-{arch.version}")
def test_as_one_by_one(arch: Arch, step: int):
    pgoffs = list(range(2, NR_PAGES + 50, step))
    (world, _), (other, _) = make_world(arch), make_world(arch)
    found = unmap_mapping_pages(world.fs.files[0], pgoffs)
    expected = sum(
        unmap_mapping_range(other.fs.files[0], Pgoff(pgoff), 1, even_cows=False) for pgoff in pgoffs
    )
    assert found == expected > 0
    assert state(world) == state(other)
    world.check()
    world.close()
    other.close()


@pytest.mark.parametrize("arch", ARCH_KINDS.values(), ids=ARCH_KINDS)
def test_many_dirty_ptes_make_their_pages_dirty(arch: Arch):
    """From 16 scattered ptes on, arrays do it."""
    world, vmas = make_world(arch)
    mapping = world.fs.files[0]
    stored = [p for p in mapping.i_pages if p >= 205 and (p - 205) % 29 == 0]
    for pgoff in stored:
        assert user_store(vmas[1].vm_mm, vmas[1].address(Pgoff(pgoff)), b"stored") is None
    assert len(stored) >= 16
    world.machine.mem_map.flags &= ~np.uint8(PG_DIRTY)
    unmap_mapping_pages(mapping, [0, *stored])
    flags = world.machine.mem_map.page_flags
    assert {p for p, frame in mapping.i_pages.items() if flags(frame) & PG_DIRTY} == set(stored)
    world.check()
    world.close()


def test_no_pages_no_ptes(world: World):
    assert unmap_mapping_pages(world.fs.make_file({0: 1}), []) == 0


def test_mkclean_spares_what_maps_another_frame(world: World):
    mapping = world.fs.make_file({0: 1, 1: 2})
    promote_pages(world.machine, mapping, np.array([0]))
    vma = world.mmap(mapping, vm_flags=PRIVATE_RW)
    user_store(vma.vm_mm, vma.address(Pgoff(0)), b"mine")
    before = world.pte(vma, 0)
    assert not page_mkclean(mapping, Pgoff(0), mapping.i_pages[0])
    assert world.pte(vma, 0) == before
    world.check()


def test_scattered_pages_that_all_are_bare(world: World):
    mapping = world.fs.make_file({pgoff: pgoff % 60 for pgoff in range(200)})
    vma = world.mmap(mapping)
    access_range(vma, Pgoff(0), 200)
    assert unmap_mapping_pages(mapping, list(range(0, 200, 2))) == 100
    world.check()


def test_page_mkclean_passes_over_areas_without_a_page_table(world: World):
    mapping = world.fs.make_file({0: 3})
    world.mmap(mapping)
    assert not page_mkclean(mapping, Pgoff(0), Pfn(5))
