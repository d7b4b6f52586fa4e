"""PhysMem: RAM and NVRAM as one address space; runs, views, gathered copies."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.mm import ZEROS, block_bytes, make_nvram
from xipfs.errors import BugError, DeviceError, OutOfFramesError
from xipfs.phys.nvram import IOV_MAX, NvramDevice
from xipfs.phys.physmem import PhysMem
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, PAGE_SIZE, Paddr, Pfn

NR_RAM_FRAMES = 4


@pytest.fixture
def physmem(tmp_path: Path) -> Iterator[PhysMem]:
    nvram = make_nvram(tmp_path / "region", 8)
    physmem = PhysMem(nvram, nr_ram_frames=NR_RAM_FRAMES)
    yield physmem
    physmem.close()
    nvram.close()


def nvram_paddr(block: int, offset: int = 0) -> Paddr:
    return Paddr((NVRAM_PFN_START + block << PAGE_SHIFT) + offset)


def test_ram_starts_as_zeros_and_keeps_what_is_written(physmem: PhysMem):
    assert bytes(physmem.view(Paddr(0), NR_RAM_FRAMES * PAGE_SIZE)) == ZEROS * NR_RAM_FRAMES
    physmem.frame(Pfn(2))[:] = block_bytes(99)
    assert bytes(physmem.view(Paddr(2 * PAGE_SIZE + 8), 16)) == block_bytes(99)[8:24]
    assert bytes(physmem.frame(Pfn(1))) == bytes(physmem.frame(Pfn(3))) == ZEROS


def test_view_of_nvram_starts_at_its_fixed_pfn_and_is_read_only(physmem: PhysMem):
    view = physmem.view(nvram_paddr(7, 8), PAGE_SIZE - 8)
    assert bytes(view) == block_bytes(7)[8:]
    assert view.readonly
    assert physmem.nr_nvram_frames == 8


@pytest.mark.parametrize(
    "paddr",
    [-PAGE_SIZE, NR_RAM_FRAMES * PAGE_SIZE, NR_RAM_FRAMES * PAGE_SIZE - 1, nvram_paddr(8)],
)
def test_view_of_no_memory_is_a_bug(physmem: PhysMem, paddr: int):
    """It was silently cut down to what there is, and a client would have got a short page."""
    with pytest.raises(BugError, match="no memory"):
        physmem.view(Paddr(paddr), PAGE_SIZE)


@pytest.mark.parametrize("pfn", [-1, NR_RAM_FRAMES, NVRAM_PFN_START])
def test_only_ram_has_frames_to_write(physmem: PhysMem, pfn: int):
    with pytest.raises(BugError, match=f"not a RAM frame: pfn={pfn}"):
        physmem.frame(Pfn(pfn))


def test_gather_joins_runs_of_both_kinds_in_order(physmem: PhysMem):
    physmem.frame(Pfn(3))[:] = block_bytes(33)
    runs = [
        (nvram_paddr(5, 4000), 96 + PAGE_SIZE),
        (Paddr(3 * PAGE_SIZE), PAGE_SIZE),
        (nvram_paddr(0), 7),
    ]
    assert physmem.gather(runs) == (
        block_bytes(5)[4000:] + block_bytes(6) + block_bytes(33) + block_bytes(0)[:7]
    )
    assert physmem.gather([]) == b""


def test_gathered_bytes_last_until_the_next_time(physmem: PhysMem):
    """One buffer, as large as the largest so far: fresh memory costs more than the copying."""
    physmem.gather([(nvram_paddr(0), 2 * PAGE_SIZE)])
    small = physmem.gather([(nvram_paddr(3), 9)])
    assert bytes(small) == block_bytes(3)[:9]
    again = physmem.gather([(nvram_paddr(4), PAGE_SIZE), (nvram_paddr(6), 1)])
    assert bytes(again) == block_bytes(4) + block_bytes(6)[:1]
    assert np.shares_memory(np.frombuffer(small, np.uint8), np.frombuffer(again, np.uint8))
    large = physmem.gather([(nvram_paddr(0), 8 * PAGE_SIZE)])
    assert bytes(large) == b"".join(block_bytes(block) for block in range(8))
    assert bytes(again) == block_bytes(4) + block_bytes(6)[:1], "a larger one is another buffer"


def test_gather_past_the_end_fails(physmem: PhysMem):
    with pytest.raises(DeviceError, match="no byte at 0x8000"):
        physmem.gather([(nvram_paddr(7), 2 * PAGE_SIZE)])
    with pytest.raises(BugError, match="no memory"):
        physmem.gather([(Paddr(NR_RAM_FRAMES * PAGE_SIZE), 1)])


def test_copy_to_frames_scatters_a_run(physmem: PhysMem):
    physmem.copy_to_frames(Pfn(NVRAM_PFN_START + 4), [Pfn(3), Pfn(0), Pfn(2)])
    frames = [bytes(physmem.frame(Pfn(pfn))) for pfn in range(NR_RAM_FRAMES)]
    assert frames == [block_bytes(5), ZEROS, block_bytes(6), block_bytes(4)]


def test_copy_past_the_end_fails(physmem: PhysMem):
    with pytest.raises(DeviceError, match="no byte at 0x8000"):
        physmem.copy_to_frames(Pfn(NVRAM_PFN_START + 7), [Pfn(0), Pfn(1)])


def test_copy_of_more_than_one_system_call_takes(tmp_path: Path):
    nr_pages = IOV_MAX + 2
    nvram = make_nvram(tmp_path / "region", nr_pages)
    physmem = PhysMem(nvram, nr_ram_frames=nr_pages)
    physmem.copy_to_frames(Pfn(NVRAM_PFN_START), [Pfn(pfn) for pfn in reversed(range(nr_pages))])
    for pfn in (0, 1, 2, nr_pages - 1):
        assert bytes(physmem.frame(Pfn(pfn))) == block_bytes(nr_pages - 1 - pfn)
    physmem.close()
    nvram.close()


def test_ram_that_the_host_refuses_is_one_clear_error(physmem: PhysMem):
    with pytest.raises(OutOfFramesError, match="no 4096 PiB of RAM"):
        PhysMem(physmem.nvram, nr_ram_frames=1 << 50)


def test_close_reports_a_view_that_somebody_holds(tmp_path: Path):
    nvram = make_nvram(tmp_path / "region", 1)
    physmem = PhysMem(nvram, nr_ram_frames=1)
    view = physmem.view(Paddr(0), 8)
    with pytest.raises(BufferError):
        physmem.close()
    view.release()
    physmem.close()
    nvram.close()


# --- runs ---

pfns = st.integers(0, NR_RAM_FRAMES - 1) | st.integers(NVRAM_PFN_START, NVRAM_PFN_START + 7)


@st.composite
def reads(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Frames, many of them neighbours, with a byte range that begins and ends within them."""
    frames: list[int] = []
    for start in draw(st.lists(pfns, min_size=1, max_size=6)):
        end = NR_RAM_FRAMES if start < NR_RAM_FRAMES else NVRAM_PFN_START + 8
        frames += range(start, min(start + draw(st.integers(1, 4)), end))
    offset = draw(st.integers(0, PAGE_SIZE - 1))
    end = draw(st.integers(1, PAGE_SIZE)) + (len(frames) - 1) * PAGE_SIZE
    return frames, offset, max(end - offset, 1)


@given(read=reads())
def test_runs_are_the_bytes_of_the_frames_in_as_few_pieces_as_can_be(
    read: tuple[list[int], int, int],
):
    frames, offset, size_bytes = read
    runs = PhysMem.runs(np.array(frames), offset, size_bytes)
    found = [np.arange(paddr, paddr + length) for paddr, length in runs]
    positions = np.arange(offset, offset + size_bytes)
    expected = (np.array(frames)[positions >> PAGE_SHIFT] << PAGE_SHIFT) + positions % PAGE_SIZE
    assert np.array_equal(np.concatenate(found), expected)
    for (paddr, length), (next_paddr, _) in itertools.pairwise(runs):
        assert paddr + length != next_paddr, "these two are one run"


def test_runs_of_one_page_are_the_part_asked_for():
    assert PhysMem.runs(np.array([NVRAM_PFN_START + 3]), 100, 7) == [(nvram_paddr(3, 100), 7)]


def test_sparse_page_repeated_is_a_run_each_time():
    assert PhysMem.runs(np.array([0, 0, 1]), 10, 3 * PAGE_SIZE - 20) == [
        (10, PAGE_SIZE - 10),
        (0, 2 * PAGE_SIZE - 10),
    ]


def test_device_is_not_closed_with_the_ram(tmp_path: Path):
    nvram: NvramDevice = make_nvram(tmp_path / "region", 1)
    PhysMem(nvram, nr_ram_frames=1).close()
    assert nvram.load(0, 8) == block_bytes(0)[:8]
    nvram.close()
