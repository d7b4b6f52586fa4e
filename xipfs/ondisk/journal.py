"""The redo journal: a ring of transactions in its own pages, replayed before a dirty image is used.

The first page of the area holds the header; the other pages are a ring of 8-byte aligned records.
A transaction is some DATA records and one COMMIT record, all with its sequence number. A DATA
record carries the bytes to store at `target` (a byte offset of the image); the COMMIT record's
`size_bytes` is 0 and its `target` the number of DATA records. Replay starts at `head` with
`sequence`, and ends at the first record that is not sealed, or not of the sequence expected; a
transaction without its COMMIT never happened.

mkfs writes an empty journal; nothing writes transactions yet.
"""

from enum import IntEnum
from typing import NamedTuple

from xipfs.ondisk.record import Buffer, RecordFormat, fields_dtype

__all__ = [
    "JOURNAL_HEADER",
    "JOURNAL_RECORD",
    "DiskJournalHeader",
    "JournalRecordKind",
    "decode_journal_header",
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
        return JOURNAL_HEADER.encode(seed, **self._asdict())


def decode_journal_header(record: Buffer, seed: int) -> DiskJournalHeader:
    """Check and decode the header. Raises: FormatError."""
    return DiskJournalHeader(*JOURNAL_HEADER.decode(record, seed, "journal"))
