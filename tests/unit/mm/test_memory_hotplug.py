"""memory_hotplug: the tier gets another size while pages are in it."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from tests.kit.mm import World, block_bytes, make_nvram
from xipfs.errors import BugError
from xipfs.mm.access import access_range
from xipfs.mm.arch import ARCHS, Arch
from xipfs.mm.machine import Machine
from xipfs.mm.memory_hotplug import offline_pages, online_pages, resize_tier
from xipfs.mm.migrate import promote_pages
from xipfs.units import PAGE_SIZE, Pfn, Pgoff


def find_fd(name: str) -> int:
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            if name in os.readlink(f"/proc/self/fd/{fd}"):
                return fd
    raise AssertionError(name)


def test_free_frames_go_first_then_victims_in_their_order(world: World):
    mapping = world.fs.make_file({pgoff: pgoff for pgoff in range(20)})
    promote_pages(world.machine, mapping, np.arange(6))
    assert resize_tier(world.machine, 7) == 0
    assert (world.machine.nr_tier_frames, world.machine.mem_map.nr_free) == (7, 1)
    world.check()
    assert resize_tier(world.machine, 4, [(mapping, [5, 0, 3, 1])]) == 0
    assert sorted(mapping.i_pages) == [1, 2, 3, 4]
    assert (world.machine.nr_tier_frames, world.machine.mem_map.nr_free) == (4, 0)
    assert world.machine.vmstat.pgdemote_direct == 2
    world.check()


def test_frames_that_somebody_holds_stay_and_are_told_of(world: World):
    mapping = world.fs.make_file({pgoff: pgoff for pgoff in range(20)})
    promote_pages(world.machine, mapping, np.arange(8))
    frame = mapping.i_pages[3]
    world.machine.mem_map.pin_page(frame)
    assert resize_tier(world.machine, 0, [(mapping, list(mapping.i_pages))]) == 1
    assert (world.machine.nr_tier_frames, mapping.i_pages) == (1, {3: frame})
    world.machine.mem_map.unpin_page(frame)
    world.check()
    assert resize_tier(world.machine, 0) == 1, "there are no victims"
    assert resize_tier(world.machine, 0, [(mapping, [3])]) == 0
    assert promote_pages(world.machine, mapping, np.arange(3)).nr_failed == 3
    world.check()


def test_tier_never_holds_more_than_its_size(world: World):
    mapping = world.fs.make_file({pgoff: pgoff for pgoff in range(20)})
    resize_tier(world.machine, 3)
    assert promote_pages(world.machine, mapping, np.arange(20)).nr_migrated == 3
    assert resize_tier(world.machine, 5) == 0
    assert promote_pages(world.machine, mapping, np.arange(20)).nr_migrated == 2
    assert [world.page(pfn) for pfn in mapping.i_pages.values()] == [
        block_bytes(pgoff) for pgoff in mapping.i_pages
    ]
    world.check()


def test_tier_grows_up_to_what_the_machine_can_have(world: World):
    assert resize_tier(world.machine, 12) == 4, "8 was the most from the start"
    assert world.machine.nr_tier_frames == 8
    world.check()


@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: f"{arch.name}-{arch.version}")
def test_new_frames_have_struct_pages_and_hold_pages(tmp_path: Path, arch: Arch):
    world = World(tmp_path / "region", arch, nr_tier_frames=2)
    nvram = world.machine.physmem.nvram
    world.machine.close()
    world.machine = machine = Machine(nvram, nr_tier_frames=2, nr_tier_frames_max=600, arch=arch)
    world.mms.clear()
    mm = world.make_mm()
    mapping = world.fs.make_file({pgoff: pgoff % 60 for pgoff in range(700)})
    vma = world.mmap(mapping, mm=mm)
    promote_pages(machine, mapping, np.arange(2))
    access_range(vma, Pgoff(0), 5)
    nr_calls = machine.pfn_valid.nr_calls
    assert resize_tier(machine, 599) == 0
    assert machine.pfn_valid.nr_calls == nr_calls
    world.check()
    assert promote_pages(machine, mapping, np.arange(5, 700)).nr_migrated == 597
    found = access_range(vma, Pgoff(0), 700).tolist()
    assert [world.page(pfn) for pfn in found] == [block_bytes(pgoff % 60) for pgoff in range(700)]
    assert mm.rss_file == 599
    assert all(machine.pfn_valid(Pfn(pfn)) for pfn in mapping.i_pages.values())
    world.check()
    assert resize_tier(machine, 1, [(mapping, range(700))]) == 0
    assert resize_tier(machine, 700) == 100
    assert machine.nr_tier_frames == machine.mem_map.nr_free + 1 == 600
    assert machine.nr_tier_frames_max == 600
    world.check()
    world.close()


def test_no_more_memory_than_there_is_room_for(world: World):
    with pytest.raises(BugError, match="no place for RAM"):
        world.machine.add_memory(1)


def test_host_has_the_memory_of_frames_that_are_offline(tmp_path: Path):
    """By the allocated blocks of the file in memory."""
    nvram = make_nvram(tmp_path / "region", 1)
    machine = Machine(nvram, nr_tier_frames=0, nr_tier_frames_max=1 << 28)
    assert machine.mem_map.nr_frames == 2, "a TiB of addresses, and nothing else"
    resize_tier(machine, 1000)
    for pfn in range(2, 1002):
        machine.physmem.frame(Pfn(pfn))[:8] = b"not zero"
    fd = find_fd("xipfs-ram")
    assert os.fstat(fd).st_blocks * 512 >= 1000 * PAGE_SIZE
    assert offline_pages(machine, 900) == 900
    assert os.fstat(fd).st_blocks * 512 <= 110 * PAGE_SIZE
    assert online_pages(machine, 10) == 10
    machine.close()
    nvram.close()
