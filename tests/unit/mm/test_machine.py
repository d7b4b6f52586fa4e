"""Machine: what the tier may use, what has a struct page, what that saves."""

from pathlib import Path

import numpy as np
import pytest

from tests.kit.mm import ZEROS, World, make_nvram
from xipfs.errors import OutOfFramesError
from xipfs.mm.machine import Machine
from xipfs.mm.migrate import promote_pages
from xipfs.units import NVRAM_PFN_START, Pfn


def test_sparse_page_is_zeros_with_a_struct_page_and_a_reference(world: World):
    machine = world.machine
    assert machine.pfn_valid(machine.sparse_pfn)
    assert machine.mem_map.page_count(machine.sparse_pfn) == 1
    assert world.page(machine.sparse_pfn) == ZEROS


def test_tier_has_all_its_frames_and_never_the_sparse_page(world: World):
    machine = world.machine
    mapping = world.fs.make_file({pgoff: pgoff for pgoff in range(20)})
    assert machine.mem_map.nr_free == machine.nr_tier_frames == 8
    promote_pages(machine, mapping, np.arange(20))
    assert len(mapping.i_pages) == 8
    assert machine.sparse_pfn not in mapping.i_pages.values()
    assert world.page(machine.sparse_pfn) == ZEROS
    world.check()


def test_machine_without_a_tier_promotes_nothing(tmp_path: Path):
    world = World(tmp_path / "region", nr_tier_frames=0)
    mapping = world.fs.make_file({0: 1})
    statistics = promote_pages(world.machine, mapping, np.array([0]))
    assert (statistics.nr_migrated, statistics.nr_failed) == (0, 1)
    world.close()


def test_nvram_is_the_region_and_nothing_beside_it(world: World):
    pfns = [0, NVRAM_PFN_START - 1, NVRAM_PFN_START, NVRAM_PFN_START + 63, NVRAM_PFN_START + 64]
    assert [world.machine.is_nvram(Pfn(pfn)) for pfn in pfns] == [False, False, True, True, False]


def test_struct_pages_are_saved_for_the_region_and_paid_for_ram(world: World):
    assert world.machine.nr_nvram_frames == 64
    assert world.machine.struct_page_saved_bytes == 64 * 64
    nr_struct_pages = world.machine.pfn_valid.struct_pages_end
    assert nr_struct_pages >= 8 + 2
    assert world.machine.mem_map.size_bytes == nr_struct_pages * 64


def test_impossible_tier_is_one_clear_error(tmp_path: Path):
    nvram = make_nvram(tmp_path / "region", 1)
    with pytest.raises(OutOfFramesError, match="of RAM"):
        Machine(nvram, nr_tier_frames=1 << 50)
    with pytest.raises(OutOfFramesError, match="no RAM frame for the sparse page"):
        Machine(nvram, nr_tier_frames=-1)
    nvram.close()
