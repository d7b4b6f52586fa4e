"""Wear: cycles by block, and only where something was written."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.mm import make_nvram
from xipfs.errors import DeviceError
from xipfs.phys.nvram import NvramDevice
from xipfs.phys.wear import Wear, WearFacts
from xipfs.units import PAGE_SIZE

BLOCK = 256


def test_nothing_written_is_nothing_worn():
    assert Wear(BLOCK).facts() == WearFacts(0, 0, 0.0)


def test_a_page_is_a_cycle_of_each_of_its_blocks():
    wear = Wear(BLOCK)
    wear.record(PAGE_SIZE, PAGE_SIZE)
    assert wear.facts() == WearFacts(PAGE_SIZE // BLOCK, 1, 1.0)
    wear.record(PAGE_SIZE, 8)
    assert wear.facts() == WearFacts(16, 2, 17 / 16)


def test_pages_of_one_erase_sector_wear_it_each():
    wear = Wear(128 << 10)
    for pgoff in range(32):
        wear.record(pgoff * PAGE_SIZE, PAGE_SIZE)
    assert wear.facts() == WearFacts(1, 32, 32.0)


def test_a_write_of_no_bytes_wears_nothing():
    wear = Wear(BLOCK)
    wear.record(BLOCK, 0)
    assert wear.facts().nr_blocks == 0


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 1 << 18)), max_size=20))
def test_as_counted_block_by_block(writes):
    wear = Wear(BLOCK)
    cycles: Counter[int] = Counter()
    for offset, size_bytes in writes:
        wear.record(offset, size_bytes)
        cycles.update(range(offset // BLOCK, (offset + size_bytes - 1) // BLOCK + 1))
    nr_blocks, max_cycles, mean_cycles = wear.facts()
    assert nr_blocks == len(cycles)
    assert max_cycles == max(cycles.values(), default=0)
    assert mean_cycles * nr_blocks == pytest.approx(cycles.total())


def test_memory_grows_with_what_is_written_not_with_the_image():
    """A write at 64 TiB costs one leaf."""
    wear = Wear(BLOCK)
    wear.record(1 << 46, 1)
    assert wear.facts().nr_blocks == 1
    assert len(wear._leaves) == 1


def test_the_device_tells_what_it_stored(tmp_path: Path):
    nvram = NvramDevice.scratch(4 * PAGE_SIZE)
    nvram.store_bytes(0, bytes(BLOCK))  # nobody wants to know
    nvram.wear = Wear(BLOCK)
    nvram.store_bytes(PAGE_SIZE, bytes(BLOCK))
    nvram.load(0, PAGE_SIZE)
    assert nvram.wear.facts() == WearFacts(1, 1, 1.0)
    nvram.close()


def test_a_store_that_is_refused_wears_nothing(tmp_path: Path):
    nvram = make_nvram(tmp_path / "region", 4)
    nvram.wear = Wear(BLOCK)
    with pytest.raises(DeviceError):
        nvram.store_bytes(0, b"x")
    assert nvram.wear.facts().nr_blocks == 0
    nvram.close()
