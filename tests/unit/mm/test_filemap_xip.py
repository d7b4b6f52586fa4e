"""filemap_xip: when a fault may fill a hole, and errors. The contract is in tests/conformance."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from tests.kit.mm import World, at_step, block_bytes, fault
from tests.kit.power import PowerLoss
from xipfs.errors import BugError, FormatError, NoSpaceError
from xipfs.mm.access import access_page
from xipfs.mm.filemap_xip import (
    allocates_on_fault,
    xip_file_read,
    xip_file_write,
    xip_file_write_range,
    xip_hole_filled,
)
from xipfs.mm.mem_map import PG_DIRTY
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.vm_fault import FaultResult
from xipfs.mm.vma import VM_MAYSHARE, VM_MAYWRITE, VM_MIXEDMAP, VM_READ, VM_SHARED, VM_WRITE
from xipfs.units import NVRAM_PFN_START, Pgoff


@pytest.mark.parametrize("read_only", [True, False])
def test_only_a_shared_map_that_may_be_written_fills_holes(world: World, read_only: bool):
    mapping = world.fs.make_file({}, nr_pages=1, read_only=read_only)
    flags = [VM_WRITE, VM_MAYWRITE, VM_SHARED, VM_MAYSHARE, VM_READ]
    for chosen in itertools.product([False, True], repeat=len(flags)):
        write, maywrite, shared, mayshare, _ = chosen
        vm_flags = VM_MIXEDMAP | sum(itertools.compress(flags, chosen))
        vma = world.mmap(mapping, vm_flags=vm_flags)
        expected = (write or maywrite) and (shared or mayshare) and not read_only
        assert allocates_on_fault(vma) is expected, chosen


def test_read_ends_before_a_page_that_fails_and_fails_at_the_first(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4})
    world.fs.errors[mapping.id, 1] = FormatError("a damaged extent")
    assert xip_file_read(world.machine, mapping, 0, 8192) == block_bytes(3)
    with pytest.raises(FormatError):
        xip_file_read(world.machine, mapping, 4096, 1)


def test_write_ends_before_a_page_that_cannot_be_had_and_fails_at_the_first(writable: World):
    mapping = writable.fs.make_file({0: 3}, nr_pages=3, read_only=False)
    writable.fs.free_blocks.clear()
    assert xip_file_write(writable.machine, mapping, 4000, b"x" * 200) == 96
    with pytest.raises(NoSpaceError):
        xip_file_write(writable.machine, mapping, 4096, b"x")
    assert mapping.nr_pages == 3


def test_write_makes_the_file_longer_and_its_frame_dirty(writable: World):
    mapping = writable.fs.make_file({0: 3}, size_bytes=10, read_only=False)
    promote_pages(writable.machine, mapping, np.array([0]))
    assert xip_file_write(writable.machine, mapping, 8, b"xyz") == 3
    assert mapping.i_size_bytes == 11
    frame = mapping.i_pages[0]
    assert writable.page(frame)[8:11] == b"xyz"
    assert writable.machine.mem_map.page_flags(frame) & PG_DIRTY
    assert writable.page(NVRAM_PFN_START + 3) == block_bytes(3), "until it is written back"
    demote_pages(writable.machine, mapping, [0], DemoteReason.KSWAPD)
    assert writable.page(NVRAM_PFN_START + 3)[8:11] == b"xyz"
    writable.check()


def test_fault_asks_again_where_its_page_moved_meanwhile(world: World):
    mapping = world.fs.make_file({0: 3})
    vma = world.mmap(mapping)
    with at_step(
        "xip_file_fault: insert", lambda: promote_pages(world.machine, mapping, np.array([0]))
    ):
        assert access_page(vma, Pgoff(0)) == mapping.i_pages[0]
    world.check()


def test_fault_on_a_hole_asks_again_where_pages_moved_meanwhile(world: World):
    mapping = world.fs.make_file({0: 3}, nr_pages=2)
    vma = world.mmap(mapping)
    with at_step(
        "xip_file_fault: sparse", lambda: promote_pages(world.machine, mapping, np.array([0]))
    ):
        assert access_page(vma, Pgoff(1)) == world.machine.sparse_pfn
    assert world.fs.nr_calls["get_xip_mem"] == 4
    world.check()


def test_error_at_the_second_look_at_a_hole_is_oom(
    world: World, expected_logs: Callable[[str], None]
):
    expected_logs("damaged meanwhile")
    mapping = world.fs.make_file({}, nr_pages=1)
    vma = world.mmap(mapping)

    def damage() -> None:
        world.fs.errors[mapping.id, 0] = FormatError("damaged meanwhile")

    with at_step("xip_file_fault: sparse", damage):
        assert fault(vma, 0) == FaultResult.OOM
    assert not world.machine.xip_sparse_mutex.is_write_locked
    world.check()


@pytest.mark.parametrize(("pos", "size_bytes"), [(0, 1), (4000, 200), (5000, 15000), (8192, 8192)])
def test_many_pages_are_written_as_one_after_the_other(writable: World, pos: int, size_bytes: int):
    data = bytes(range(1, 256)) * 80
    files = []
    for first in (10, 20):
        blocks = {0: first, 1: first + 1, 2: first + 2, 3: first + 5, 4: first + 4}
        mapping = writable.fs.make_file(blocks, read_only=False)
        promote_pages(writable.machine, mapping, np.array([2]))
        files.append(mapping)
    xip_file_write(writable.machine, files[0], pos, data[:size_bytes])
    nvram = writable.machine.physmem.nvram
    power = PowerLoss(nvram)
    xip_file_write_range(writable.machine, files[1], pos, memoryview(data)[:size_bytes])
    nvram.fence()
    assert not power.unsafe_lines(), "all was flushed"
    written = [xip_file_read(writable.machine, mapping, pos, size_bytes) for mapping in files]
    assert written == [data[:size_bytes]] * 2
    around = xip_file_read(writable.machine, files[1], 0, 5 * 4096)
    expected = b"".join(block_bytes(block) for block in (20, 21, 22, 25, 24))
    assert around == expected[:pos] + data[:size_bytes] + expected[pos + size_bytes :]
    flags = [writable.machine.mem_map.page_flags(mapping.i_pages[2]) for mapping in files]
    assert flags[0] == flags[1]
    assert bool(flags[1] & PG_DIRTY) == (pos < 3 * 4096 and pos + size_bytes > 2 * 4096)
    writable.check()


def test_a_range_with_a_hole_is_no_range(writable: World):
    mapping = writable.fs.make_file({0: 3}, nr_pages=2, read_only=False)
    with pytest.raises(BugError, match="written over a hole"):
        xip_file_write_range(writable.machine, mapping, 4000, b"x" * 200)


def test_who_has_read_a_hole_sees_what_fills_it(writable: World):
    mapping = writable.fs.make_file({0: 3}, nr_pages=4, read_only=False)
    xip_hole_filled(writable.machine, mapping, Pgoff(1), 2)  # nobody maps it
    vma = writable.mmap(mapping)
    sparse = writable.machine.sparse_pfn
    assert [access_page(vma, Pgoff(i)) for i in (1, 2, 3)] == [sparse] * 3
    writable.fs.blocks |= {(mapping.id, 1): 11, (mapping.id, 2): 12}
    xip_hole_filled(writable.machine, mapping, Pgoff(1), 2)
    found = [access_page(vma, Pgoff(i)) for i in (1, 2, 3)]
    assert found == [NVRAM_PFN_START + 11, NVRAM_PFN_START + 12, sparse]
    writable.check()
