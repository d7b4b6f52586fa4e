"""The kernel's tracepoints: its ring buffer decoded, and what is missing said in a line."""

import struct
from pathlib import Path

import numpy as np
import pytest

from xipfs.errors import TracingError
from xipfs.policy.contract import page_id
from xipfs.tiering.filemap_events import EventFormat, FilemapEvents, decode_ring_page

READ = EventFormat(id=599, i_ino=8, first_index=24, last_index=32)
FAULT = EventFormat(id=597, i_ino=8, first_index=24, last_index=24)

TIME_EXTEND = struct.pack("<II", 30 | 1 << 5, 77)
PADDING = struct.pack("<II", 29, 64)


def event(kind: EventFormat, ino: int, index: int, last_index: int = 0) -> bytes:
    fields = struct.pack("<HBBiQIIQ", kind.id, 0, 0, 4711, ino, 57, 0, index)
    if kind is READ:
        fields += struct.pack("<Q", last_index)
    return struct.pack("<I", len(fields) // 4 | 123 << 5) + fields


def long_event(kind: EventFormat, ino: int, index: int) -> bytes:
    """As the ring has events that are too long for five bits: the length in a word of its own."""
    fields = event(kind, ino, index)[4:]
    return struct.pack("<II", 0, len(fields) + 4) + fields


def ring_page(*parts: bytes, flags: int = 0, rest: bytes = b"") -> bytes:
    data = b"".join(parts)
    head = struct.pack("<QQ", 1234567, len(data) | flags)
    return (head + data + rest).ljust(4096, b"\xff")


def pages(*parts: tuple[int, int]) -> list[int]:
    return [page_id(*part) for part in parts]


def test_reads_in_their_order():
    found = decode_ring_page(ring_page(event(READ, 7, 3, 3), event(READ, 9, 1, 2)), READ)
    assert found.dtype == np.int64
    assert found.tolist() == pages((7, 3), (9, 1), (9, 2))


def test_times_between_events_and_what_lies_behind_the_end():
    page = ring_page(
        TIME_EXTEND,
        event(READ, 7, 3, 3),
        event(READ, 7, 4, 4),
        TIME_EXTEND,
        event(READ, 7, 5, 5),
        rest=event(READ, 7, 99, 99),
    )
    assert decode_ring_page(page, READ).tolist() == pages((7, 3), (7, 4), (7, 5))


def test_a_page_that_ends_with_padding_and_lost_events():
    page = ring_page(event(READ, 7, 3, 3), PADDING, flags=1 << 31)
    assert decode_ring_page(page, READ).tolist() == pages((7, 3))
    assert decode_ring_page(ring_page(), READ).tolist() == []


def test_each_kind_for_itself():
    page = ring_page(event(FAULT, 7, 1), event(READ, 7, 2, 3), event(FAULT, 8, 4))
    assert decode_ring_page(page, FAULT).tolist() == pages((7, 1), (8, 4))
    assert decode_ring_page(page, READ).tolist() == pages((7, 2), (7, 3))


def test_a_length_of_its_own():
    page = ring_page(long_event(FAULT, 7, 1), event(FAULT, 7, 2))
    assert decode_ring_page(page, FAULT).tolist() == pages((7, 1), (7, 2))


def test_one_long_read_counts_each_page_once():
    """read(2) asks for what is left of its range, several times."""
    page = ring_page(event(READ, 7, 0, 9), event(READ, 7, 4, 9), event(READ, 7, 8, 9))
    assert decode_ring_page(page, READ).tolist() == pages(*((7, i) for i in range(10)))


def test_the_same_page_again_counts_again():
    page = ring_page(event(READ, 7, 4, 4), event(READ, 7, 4, 4))
    assert decode_ring_page(page, READ).tolist() == pages((7, 4), (7, 4))


def test_a_range_without_bounds():
    found = decode_ring_page(ring_page(event(READ, 7, 0, 1 << 31)), READ)
    assert found.tolist() == pages(*((7, i) for i in range(512)))


def test_no_tracefs(tmp_path: Path):
    with pytest.raises(TracingError, match=f"no tracefs: mount -t tracefs nodev {tmp_path}$"):
        FilemapEvents.open("0:57", tmp_path)


def test_a_tracefs_for_root_alone(tmp_path: Path):
    """Looking for a file there is an error, not a no. (Another one than root would meet, here.)"""
    with pytest.raises(TracingError, match=r"x: File name too long$"):
        FilemapEvents.open("0:57", tmp_path / ("x" * 300))


def test_a_kernel_without_the_event(tmp_path: Path):
    (tmp_path / "events" / "filemap").mkdir(parents=True)
    with pytest.raises(TracingError, match="no event mm_filemap_get_pages"):
        FilemapEvents.open("0:57", tmp_path)


def test_an_instance_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "events" / "filemap" / "mm_filemap_get_pages").mkdir(parents=True)
    with pytest.raises(TracingError, match="No such file or directory"):
        FilemapEvents.open("0:57", tmp_path)
