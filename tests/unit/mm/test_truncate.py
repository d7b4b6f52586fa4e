"""Truncation under mappings."""

import numpy as np
import pytest

from tests.kit.mm import PRIVATE_RW, ZEROS, World, block_bytes
from xipfs.errors import DeviceError, FormatError
from xipfs.mm.access import Signal, access_page, user_load, user_store
from xipfs.mm.filemap_xip import xip_file_read, xip_truncate_page
from xipfs.mm.migrate import promote_pages
from xipfs.mm.truncate import truncate_setsize
from xipfs.units import PAGE_SIZE, Pgoff

SIGBUS = Signal("SIGBUS", 2)


def test_pages_past_the_end_leave_all_page_tables_and_ram(writable: World):
    world = writable
    mapping = world.fs.make_file({pgoff: 3 + pgoff for pgoff in range(4)}, read_only=False)
    promote_pages(world.machine, mapping, np.array([0, 1, 3]))
    vma = world.mmap(mapping, vm_flags=PRIVATE_RW)
    for pgoff in range(4):
        access_page(vma, Pgoff(pgoff))
    assert user_store(world.mm, vma.address(Pgoff(2)), b"mine") is None
    truncate_setsize(world.machine, mapping, PAGE_SIZE + 100)
    assert mapping.nr_pages == 2
    assert [bool(world.pte(vma, pgoff)) for pgoff in range(4)] == [True, True, False, False]
    assert sorted(mapping.i_pages) == [0, 1]
    assert (world.mm.rss_file, world.mm.rss_anon) == (2, 0)
    found = user_load(world.mm, vma.address(Pgoff(1)), PAGE_SIZE)
    assert found == block_bytes(4)[:100] + ZEROS[100:]
    assert user_load(world.mm, vma.address(Pgoff(2)), 1) == SIGBUS
    world.check()


def test_file_grows_with_zeros(writable: World):
    mapping = writable.fs.make_file({0: 3}, size_bytes=10, read_only=False)
    vma = writable.mmap(mapping, nr_pages=3)
    assert user_load(writable.mm, vma.address(Pgoff(2)), 1) == SIGBUS
    truncate_setsize(writable.machine, mapping, 3 * PAGE_SIZE)
    assert user_load(writable.mm, vma.address(Pgoff(2)), PAGE_SIZE) == ZEROS
    writable.check()


def test_pinned_frame_lives_on_as_nobodys(writable: World):
    mapping = writable.fs.make_file({0: 3}, read_only=False)
    promote_pages(writable.machine, mapping, np.array([0]))
    frame = mapping.i_pages[0]
    writable.machine.mem_map.get_page(frame)
    truncate_setsize(writable.machine, mapping, 0)
    assert writable.page(frame) == block_bytes(3)
    assert (mapping.i_pages, writable.counts(frame)) == ({}, (1, 0, 0, 0))
    writable.machine.mem_map.put_page(frame)
    writable.check()


def test_rest_of_a_hole_is_zeros_already(writable: World):
    mapping = writable.fs.make_file({}, nr_pages=2, read_only=False)
    truncate_setsize(writable.machine, mapping, 10)
    assert xip_file_read(writable.machine, mapping, 0, 100) == bytes(10)
    xip_truncate_page(writable.machine, mapping, PAGE_SIZE)
    assert len(writable.fs.free_blocks) == 4


def test_nothing_is_done_where_the_last_page_cannot_be_zeroed(world: World):
    """The region is open for reading only."""
    mapping = world.fs.make_file({0: 3, 1: 4}, read_only=False)
    vma = world.mmap(mapping)
    access_page(vma, Pgoff(1))
    with pytest.raises(DeviceError):
        truncate_setsize(world.machine, mapping, 10)
    world.fs.errors[mapping.id, 0] = FormatError("a damaged extent")
    with pytest.raises(FormatError):
        truncate_setsize(world.machine, mapping, 10)
    assert mapping.nr_pages == 2
    assert world.pte(vma, 1)
