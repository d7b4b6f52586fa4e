"""The redo journal: a ring of transactions in its own pages, replayed before a dirty image is used.

The first page of the area holds two headers, the other pages are a ring of 8-byte aligned records:

    | header 0 | header 1 | - | DATA | bytes | DATA | bytes | COMMIT | DATA | ...

A header is more than one atomic store, so a new one never goes over the newest: it takes the other
place, and the sealed one of the higher sequence counts.

A transaction is some DATA records and one COMMIT record, all with its sequence number. A DATA
record carries the bytes to store at `target` (a byte offset of the image); the COMMIT record's
`size_bytes` is 0 and its `target` the number of DATA records. Replay starts at `head` with
`sequence`, and ends at the first record that is not sealed, or not of the sequence expected; a
transaction without its COMMIT never happened. docs/FORMAT.md, "Journal", has all the rules.
"""

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from xipfs.errors import FormatError
from xipfs.ondisk.record import Buffer, RecordFormat, fields_dtype

__all__ = [
    "JOURNAL_HEADER",
    "JOURNAL_RECORD",
    "NR_JOURNAL_HEADERS",
    "SEQUENCE_MAX",
    "DiskJournalHeader",
    "JournalRecordKind",
    "decode_journal_header",
    "differing_ranges",
    "encode_journal_record",
    "journal_record_size_bytes",
    "merged_ranges",
]

JOURNAL_HEADER = RecordFormat(
    "journal header",
    int.from_bytes(b"XJNL", "little"),
    fields_dtype(
        64,
        [
            (0, "<u4", "magic"),
            (4, "<u4", "checksum"),
            (8, "<u8", "sequence"),
            (16, "<u8", "head"),
        ],
    ),
)

NR_JOURNAL_HEADERS = 2
SEQUENCE_MAX = (1 << 63) - 1
"""More transactions than will ever be; a header that says more is damaged, or a lie."""

JOURNAL_RECORD = RecordFormat(
    "journal record",
    int.from_bytes(b"XJRC", "little"),
    fields_dtype(
        40,
        [
            (0, "<u4", "magic"),
            (4, "<u4", "checksum"),
            (8, "<u8", "sequence"),
            (16, "<u4", "kind"),
            (20, "<u4", "size_bytes"),
            (24, "<u8", "target"),
        ],
    ),
)


_RECORD_MAGIC = JOURNAL_RECORD.magic.to_bytes(4, "little")
_RECORD_BODY = struct.Struct("<QIIQ8x")
"""JOURNAL_RECORD behind its checksum, which covers the bytes that follow, too."""


class JournalRecordKind(IntEnum):
    """What a journal record says."""

    DATA = 1
    COMMIT = 2


class DiskJournalHeader(NamedTuple):
    """Where replay starts: the byte `head` of the ring, with transaction `sequence`."""

    sequence: int
    head: int

    def encode(self, seed: int) -> bytes:
        """Return the sealed record."""
        return JOURNAL_HEADER.encode_values(seed, self)


def decode_journal_header(page: Buffer, seed: int) -> DiskJournalHeader:
    """Return the newest sealed header in the first page of the journal.

    Raises: FormatError if there is none.
    """
    view = memoryview(page)
    headers, damage = [], []
    for number in range(NR_JOURNAL_HEADERS):
        start = number * JOURNAL_HEADER.size_bytes
        record = view[start : start + JOURNAL_HEADER.size_bytes]
        try:
            fields = JOURNAL_HEADER.decode(record, seed, f"journal header {number}")
            headers.append(DiskJournalHeader(*fields))
        except FormatError as exc:
            damage.append(str(exc))
    if not headers:
        raise FormatError("; ".join(damage))
    return max(headers)


def journal_record_size_bytes(size_bytes: int) -> int:
    """Return what a record with *size_bytes* behind it takes of the ring."""
    return JOURNAL_RECORD.size_bytes + (size_bytes + 7 & ~7)


def encode_journal_record(
    seed: int, sequence: int, kind: JournalRecordKind, target: int, data: bytes
) -> bytes:
    """Return a sealed record and the bytes behind it, filled up with zeros to a multiple of 8."""
    body = _RECORD_BODY.pack(sequence, kind, len(data), target)
    crc = zlib.crc32(data, zlib.crc32(body, zlib.crc32(_RECORD_MAGIC, seed)))
    return b"".join((_RECORD_MAGIC, crc.to_bytes(4, "little"), body, data, bytes(-len(data) % 8)))


def differing_ranges(old: Buffer, new: Buffer) -> list[tuple[int, int]]:
    """Return which bytes of two buffers of one size differ, as [start, end): what to log.

    Bytes between two ranges that would be less than another record are part of one.

    >>> differing_ranges(bytes(200), b"x" + bytes(10) + b"y" + bytes(180) + bytes(7) + b"z")
    [(0, 12), (199, 200)]
    """
    where = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
    if not len(where):
        return []
    breaks = np.flatnonzero(where[1:] - where[:-1] > JOURNAL_RECORD.size_bytes)
    starts = [int(where[0]), *where[breaks + 1].tolist()]
    ends = [*where[breaks].tolist(), int(where[-1])]
    return [(start, end + 1) for start, end in zip(starts, ends, strict=True)]


def merged_ranges(ranges: list[tuple[int, int]], gap: int = 0) -> list[tuple[int, int]]:
    """Return [start, end) ranges sorted, and as one where no more than *gap* is between them.

    >>> merged_ranges([(40, 50), (0, 8), (8, 9), (45, 46)])
    [(0, 9), (40, 50)]
    """
    if len(ranges) == 1:
        return ranges
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start - merged[-1][1] <= gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
