"""exchange_pages: a page leaves RAM, another takes its frame, and none is free."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.kit.mm import World, block_bytes
from xipfs.errors import BugError, DeviceError
from xipfs.mm.access import access_page, access_range
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.filemap_xip import xip_file_read, xip_file_write
from xipfs.mm.migrate import DemoteReason, exchange_pages, promote_pages
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, Pfn, Pgoff


def exchange(
    world: World, out: tuple[AddressSpace, list[int]], into: tuple[AddressSpace, list[int]]
) -> tuple[int, int]:
    """Return (migrated, failed)."""
    pages = [(mapping, np.array(pgoffs, np.int64)) for mapping, pgoffs in (out, into)]
    statistics = exchange_pages(world.machine, *pages, DemoteReason.KSWAPD)
    return statistics.nr_migrated, statistics.nr_failed


@pytest.fixture
def files(world: World) -> tuple[AddressSpace, AddressSpace]:
    """One whose first eight pages fill the tier, and one in NVRAM."""
    full = world.fs.make_file({pgoff: 10 + pgoff for pgoff in range(12)})
    other = world.fs.make_file({pgoff: 30 + pgoff for pgoff in range(9)}, nr_pages=10)
    promote_pages(world.machine, full, np.arange(8))
    return full, other


def test_pages_change_places_without_a_free_frame(
    world: World, files: tuple[AddressSpace, AddressSpace]
):
    full, other = files
    vmas = [world.mmap(full), world.mmap(other)]
    for vma in vmas:
        access_range(vma, Pgoff(0), 9)
    frames = [full.i_pages[pgoff] for pgoff in (5, 0, 2)]
    assert exchange(world, (full, [5, 0, 2]), (other, [1, 7, 3])) == (6, 0)
    assert [other.i_pages[pgoff] for pgoff in (1, 7, 3)] == frames
    assert sorted(full.i_pages) == [1, 3, 4, 6, 7]
    assert [world.page(frame) for frame in frames] == [block_bytes(30 + i) for i in (1, 7, 3)]
    assert [world.pte(vmas[0], pgoff) for pgoff in (5, 0, 2)] == [0, 0, 0]
    assert [world.pte(vmas[1], pgoff) for pgoff in (1, 7, 3)] == [0, 0, 0]
    assert access_page(vmas[0], Pgoff(5)) == NVRAM_PFN_START + 15
    assert access_page(vmas[1], Pgoff(7)) == frames[1]
    vmstat = world.machine.vmstat
    assert (vmstat.xip_exchange, vmstat.pgpromote_success, vmstat.pgdemote_kswapd) == (3, 11, 3)
    assert (vmstat.pgmigrate_success, vmstat.pgmigrate_fail, vmstat.xip_shadow_hit) == (14, 0, 3)
    world.check()


def test_pages_of_one_file_change_places(world: World, files: tuple[AddressSpace, AddressSpace]):
    full, _ = files
    vma = world.mmap(full)
    access_range(vma, Pgoff(0), 12)
    assert exchange(world, (full, [0, 1]), (full, [9, 8])) == (4, 0)
    assert sorted(full.i_pages) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert full.invalidate_seq % 2 == 0
    found = access_range(vma, Pgoff(0), 12)
    assert [world.page(pfn) for pfn in found] == [block_bytes(10 + i) for i in range(12)]
    world.check()


def test_no_fault_gets_in_while_pages_of_one_file_move(
    world: World, files: tuple[AddressSpace, AddressSpace], monkeypatch: pytest.MonkeyPatch
):
    """Begun twice, the sequence number was even, and a fault saw nothing amiss."""
    full, _ = files
    seen = []
    copy = type(world.machine.physmem).copy_to_frames

    def watch(self: object, pfn: Pfn, frames: list[Pfn]) -> None:
        seen.append(full.invalidate_seq % 2)
        copy(world.machine.physmem, pfn, frames)

    monkeypatch.setattr(type(world.machine.physmem), "copy_to_frames", watch)
    exchange(world, (full, [0]), (full, [9]))
    assert seen == [1]


def test_busy_page_keeps_its_frame_and_the_other_its_place(
    world: World, files: tuple[AddressSpace, AddressSpace]
):
    full, other = files
    before = dict(full.i_pages)
    world.machine.mem_map.get_page(before[1])
    assert exchange(world, (full, [0, 1]), (other, [0, 1])) == (2, 2)
    assert full.i_pages == {pgoff: pfn for pgoff, pfn in before.items() if pgoff != 0}
    assert other.i_pages == {0: before[0]}
    assert world.machine.vmstat.pgmigrate_fail == 2
    world.check(pins=[before[1]])
    world.machine.mem_map.put_page(before[1])


def test_pair_of_which_one_is_in_the_wrong_tier_fails(
    world: World, files: tuple[AddressSpace, AddressSpace]
):
    full, other = files
    before = dict(full.i_pages)
    hole, beyond, not_resident, resident = 9, 50, 9, 3
    assert exchange(world, (full, [0, 1]), (other, [hole, beyond])) == (0, 4)
    assert exchange(world, (full, [not_resident]), (other, [0])) == (0, 2)
    assert exchange(world, (full, [2]), (full, [resident])) == (0, 2)
    assert (full.i_pages, other.i_pages) == (before, {})
    world.check()


def test_page_that_cannot_be_read_leaves_a_free_frame(
    world: World, files: tuple[AddressSpace, AddressSpace], monkeypatch: pytest.MonkeyPatch
):
    full, other = files
    copy = type(world.machine.physmem).copy_to_frames

    def fail_one(self: object, pfn: Pfn, frames: list[Pfn]) -> None:
        if pfn <= NVRAM_PFN_START + 31 < pfn + len(frames):
            raise DeviceError("a bad page")
        copy(world.machine.physmem, pfn, frames)

    monkeypatch.setattr(type(world.machine.physmem), "copy_to_frames", fail_one)
    assert exchange(world, (full, [0, 1, 2]), (other, [0, 1, 2])) == (5, 1)
    assert (sorted(full.i_pages), sorted(other.i_pages)) == ([3, 4, 5, 6, 7], [0, 2])
    assert world.machine.mem_map.nr_free == 1
    assert world.machine.vmstat.xip_exchange == 2
    world.check()


def test_dirty_page_is_written_back_first(writable: World):
    full = writable.fs.make_file({pgoff: 10 + pgoff for pgoff in range(8)}, read_only=False)
    other = writable.fs.make_file({0: 30})
    promote_pages(writable.machine, full, np.arange(8))
    xip_file_write(writable.machine, full, 3 * PAGE_SIZE, b"written")
    nvram = writable.machine.physmem.nvram
    assert exchange(writable, (full, [2, 3]), (other, [0, 5])) == (2, 2), "page 5 is not there"
    assert exchange(writable, (full, [3]), (full, [2])) == (2, 0)
    assert (nvram.nr_fences, nvram.nr_flushed_lines) == (1, 64)
    assert xip_file_read(writable.machine, full, 3 * PAGE_SIZE, 7) == b"written"
    assert writable.page(full.i_pages[2]) == block_bytes(12)
    assert (writable.machine.vmstat.xip_writeback, writable.machine.vmstat.xip_shadow_hit) == (1, 1)
    writable.check()


def test_dirty_page_that_cannot_be_written_keeps_its_frame(
    writable: World,
    monkeypatch: pytest.MonkeyPatch,
    expected_logs: Callable[[str], None],
):
    expected_logs("page 3 of file 16 stays in RAM: worn out")
    full = writable.fs.make_file({pgoff: 10 + pgoff for pgoff in range(8)}, read_only=False)
    other = writable.fs.make_file({0: 30, 1: 31})
    promote_pages(writable.machine, full, np.arange(8))
    xip_file_write(writable.machine, full, 3 * PAGE_SIZE, b"written")

    def fail(self: object, frame: Pfn, pfn: Pfn) -> None:
        raise DeviceError("worn out")

    monkeypatch.setattr(type(writable.machine.physmem), "copy_from_frame", fail)
    assert exchange(writable, (full, [3, 4]), (other, [0, 1])) == (2, 2)
    assert sorted(other.i_pages) == [1]
    assert xip_file_read(writable.machine, full, 3 * PAGE_SIZE, 7) == b"written"
    assert writable.machine.vmstat.xip_writeback_fail == 1
    writable.check()


@pytest.mark.parametrize("pairs", [([0, 0], [1, 2]), ([0, 1], [2, 2]), ([0], [1, 2])])
def test_each_page_is_in_one_pair(
    world: World, files: tuple[AddressSpace, AddressSpace], pairs: tuple[list[int], list[int]]
):
    full, other = files
    with pytest.raises((BugError, ValueError)):
        exchange(world, (full, pairs[0]), (other, pairs[1]))
    assert not full.i_rwsem.is_write_locked
    world.check()


def test_nothing_to_exchange_is_nothing(world: World, files: tuple[AddressSpace, AddressSpace]):
    assert exchange(world, (files[0], []), (files[1], [])) == (0, 0)
    world.check()
