"""Journal: writes transactions to the ring and to their places, and replays a dead writer's.

    journal = Journal(nvram, disk)              reads the headers
    journal.replay()                            on an image that does not say CLEAN
    journal.commit([(target, bytes), ...])      durable when it returns, or did not happen

Steps of a commit, each with its flushes and a fence behind it; step 1 is the caller's stores, which
the first fence covers (docs/FORMAT.md, "Journal"):

    1 fence     pages that become reachable are in their places
    2 ring      DATA | bytes | DATA | bytes | COMMIT       from here on it has happened
    3 targets   the bytes go where they belong
    4 header    sequence + 1, head behind the COMMIT, in the place of the older header

One transaction is under way at a time and the next starts after its step 4, so the ring is always
empty for it: it may be as large as the ring, `size_bytes_max`.

What can go wrong: before step 2 nothing has changed. In step 2 the records are abandoned, as if
never written. Behind it the transaction has happened, but not all of its bytes are in place: only
a replay can put that right, so the journal is `aborted` and takes no other.
"""

import zlib
from collections.abc import Sequence

from xipfs.errors import DeviceError, FormatError, NoSpaceError
from xipfs.ondisk.journal import (
    JOURNAL_HEADER,
    JOURNAL_RECORD,
    NR_JOURNAL_HEADERS,
    SEQUENCE_MAX,
    DiskJournalHeader,
    JournalRecordKind,
    decode_journal_header,
    encode_journal_record,
    journal_record_size_bytes,
)
from xipfs.ondisk.record import checksum
from xipfs.ondisk.superblock import DiskSuperblock
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["Journal"]

_CHUNK_BYTES = 1 << 20
_COMMIT_SIZE_BYTES = JOURNAL_RECORD.size_bytes


class Journal:
    """The journal of one image. aborted: a commit was cut short behind its step 2.

    Raises: FormatError for a journal without a sealed header; DeviceError.
    """

    __slots__ = (
        "_area_end",
        "_area_start",
        "_head",
        "_image_end",
        "_next_slot",
        "_nvram",
        "_ring_offset",
        "_ring_size_bytes",
        "_seed",
        "_sequence",
        "aborted",
    )

    def __init__(self, nvram: NvramDevice, disk: DiskSuperblock) -> None:
        self._nvram = nvram
        self._seed = disk.seed
        self._area_start = disk.journal_block << PAGE_SHIFT
        self._area_end = disk.journal_block + disk.nr_journal_pages << PAGE_SHIFT
        self._image_end = disk.nr_pages << PAGE_SHIFT
        self._ring_offset = self._area_start + PAGE_SIZE
        self._ring_size_bytes = self._area_end - self._ring_offset
        self.aborted = False
        if self._ring_size_bytes <= 0 or self._area_end > self._image_end:
            raise FormatError(
                f"a journal of {disk.nr_journal_pages} pages at page {disk.journal_block}: "
                f"run xipfs fsck"
            )
        page = nvram.load(self._area_start, PAGE_SIZE)
        header, number = _newest_header(page, self._seed)
        sane = 1 <= header.sequence <= SEQUENCE_MAX and header.head < self._ring_size_bytes
        if not sane or header.head % 8:
            raise FormatError(
                f"the journal starts with sequence {header.sequence} at byte {header.head:#x} of "
                f"{self._ring_size_bytes:#x}: run xipfs fsck"
            )
        self._sequence, self._head = header
        self._next_slot = (number + 1) % NR_JOURNAL_HEADERS

    @property
    def size_bytes_max(self) -> int:
        """Bytes that the records of one transaction may have, by `size_bytes`."""
        return self._ring_size_bytes

    @staticmethod
    def size_bytes(records: Sequence[tuple[int, bytes]]) -> int:
        """Return what a transaction of *records* takes of the ring."""
        sizes = (journal_record_size_bytes(len(data)) for _, data in records)
        return _COMMIT_SIZE_BYTES + sum(sizes)

    def check_usable(self) -> None:
        """Raise DeviceError if the journal is aborted: the image may have half of a change."""
        if self.aborted:
            raise DeviceError(
                f"{self._nvram.path}: writing failed earlier: unmount it, a mount will recover it"
            )

    def commit(self, records: Sequence[tuple[int, bytes]]) -> None:
        """Make what was flushed before and all *records* (target, bytes) durable, or none of them.

        records: at least one, no target in the journal; of overlapping ones the later counts.
        Raises: NoSpaceError when they are too many for the ring or the host's disk is full, and
                DeviceError: nothing has happened then, unless the journal is aborted.
        """
        self.check_usable()
        nvram, seed, sequence = self._nvram, self._seed, self._sequence
        parts = [
            encode_journal_record(seed, sequence, JournalRecordKind.DATA, target, data)
            for target, data in records
        ]
        parts.append(
            encode_journal_record(seed, sequence, JournalRecordKind.COMMIT, len(records), b"")
        )
        log = b"".join(parts)
        if len(log) > self._ring_size_bytes:
            raise NoSpaceError(
                f"{nvram.path}: a change of {len(log)} bytes, its journal holds "
                f"{self._ring_size_bytes}"
            )
        # All blocks of the host's disk first: no store below may fail for want of room.
        for offset, size_bytes in self._ring_ranges(self._head, len(log)):
            nvram.reserve(offset, size_bytes)
        nvram.reserve(self._area_start, PAGE_SIZE)
        for target, data in records:
            nvram.reserve(target, len(data))
        nvram.fence()
        try:
            self._store_ring(self._head, log)
            nvram.fence()
        except BaseException:
            self._abandon()
            raise
        try:
            self._store_targets(records)
            self._head = (self._head + len(log)) % self._ring_size_bytes
            self._write_header(sequence + 1)
        except BaseException:
            self.aborted = True
            raise

    def replay(self) -> int:
        """Put all that was committed in its place, and begin anew; return how many transactions.

        It can be cut short anywhere and be started again.
        Raises: FormatError, DeviceError, NoSpaceError.
        """
        nvram = self._nvram
        nr_transactions = 0
        while (found := self._check_transaction()) is not None:
            nr_records, end = found
            position = self._head
            for _ in range(nr_records):
                position = self._replay_record(position)
            self._head = end
            self._sequence += 1
            nr_transactions += 1
        nvram.fence()
        # A record that is still in the ring can be of no sequence from here on.
        self._write_header(self._sequence + self._ring_size_bytes)
        return nr_transactions

    def _abandon(self) -> None:
        """Let records that a failed commit left in the ring never count."""
        try:
            self._write_header(self._sequence + self._ring_size_bytes)
        except BaseException:
            self.aborted = True
            raise

    def _store_targets(self, records: Sequence[tuple[int, bytes]]) -> None:
        nvram = self._nvram
        for target, data in records:
            nvram.store_bytes(target, data)
            nvram.flush(target, len(data))
        nvram.fence()

    def _write_header(self, sequence: int) -> None:
        """Begin at the head, with *sequence*; the newest header stays as it is."""
        nvram = self._nvram
        offset = self._area_start + self._next_slot * JOURNAL_HEADER.size_bytes
        nvram.store_bytes(offset, DiskJournalHeader(sequence, self._head).encode(self._seed))
        nvram.flush(offset, JOURNAL_HEADER.size_bytes)
        nvram.fence()
        self._sequence = sequence
        self._next_slot = (self._next_slot + 1) % NR_JOURNAL_HEADERS

    def _check_transaction(self) -> tuple[int, int] | None:
        """Return the number of DATA records of the transaction at the head, and where it ends.

        None if there is none that is whole. Nothing is kept of it: it may be as large as the ring.
        """
        position, nr_left_bytes, nr_records = self._head, self._ring_size_bytes, 0
        while nr_left_bytes >= JOURNAL_RECORD.size_bytes:
            head = self._load_ring(position, JOURNAL_RECORD.size_bytes)
            magic, crc, sequence, kind, size_bytes, target = JOURNAL_RECORD.unpack(head)
            taken_bytes = journal_record_size_bytes(size_bytes)
            if (magic, sequence) != (JOURNAL_RECORD.magic, self._sequence):
                return None
            if taken_bytes > nr_left_bytes or crc != self._checksum(head, position, size_bytes):
                return None
            position = (position + taken_bytes) % self._ring_size_bytes
            nr_left_bytes -= taken_bytes
            if kind == JournalRecordKind.COMMIT:
                is_whole = not size_bytes and nr_records and target == nr_records
                return (nr_records, position) if is_whole else None
            if kind != JournalRecordKind.DATA or not self._may_store(target, size_bytes):
                return None
            nr_records += 1
        return None

    def _replay_record(self, position: int) -> int:
        """Store what the DATA record at *position* says; return where the next one is."""
        head = self._load_ring(position, JOURNAL_RECORD.size_bytes)
        _, _, _, _, size_bytes, target = JOURNAL_RECORD.unpack(head)
        start = position + JOURNAL_RECORD.size_bytes
        for done in range(0, size_bytes, _CHUNK_BYTES):
            part_bytes = min(_CHUNK_BYTES, size_bytes - done)
            self._nvram.store_bytes(target + done, self._load_ring(start + done, part_bytes))
        self._nvram.flush(target, size_bytes)
        return (position + journal_record_size_bytes(size_bytes)) % self._ring_size_bytes

    def _may_store(self, target: int, size_bytes: int) -> bool:
        end = target + size_bytes
        is_outside = end <= self._area_start or target >= self._area_end
        return size_bytes > 0 and end <= self._image_end and is_outside

    def _checksum(self, head: bytes, position: int, size_bytes: int) -> int:
        crc = checksum(head, self._seed)
        start = position + JOURNAL_RECORD.size_bytes
        for done in range(0, size_bytes, _CHUNK_BYTES):
            crc = zlib.crc32(
                self._load_ring(start + done, min(_CHUNK_BYTES, size_bytes - done)), crc
            )
        return crc

    def _ring_ranges(self, position: int, size_bytes: int) -> list[tuple[int, int]]:
        """Return where bytes of the ring are in the image: (offset, size) once or twice."""
        position %= self._ring_size_bytes
        before_end = min(size_bytes, self._ring_size_bytes - position)
        ranges = [(self._ring_offset + position, before_end)]
        if size_bytes > before_end:
            ranges.append((self._ring_offset, size_bytes - before_end))
        return ranges

    def _load_ring(self, position: int, size_bytes: int) -> bytes:
        parts = [self._nvram.load(*found) for found in self._ring_ranges(position, size_bytes)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _store_ring(self, position: int, log: bytes) -> None:
        done = 0
        for offset, size_bytes in self._ring_ranges(position, len(log)):
            self._nvram.store_bytes(offset, log[done : done + size_bytes])
            self._nvram.flush(offset, size_bytes)
            done += size_bytes


def _newest_header(page: bytes, seed: int) -> tuple[DiskJournalHeader, int]:
    """Return the sealed header that counts, and its number. Raises: FormatError."""
    newest = decode_journal_header(page, seed)
    record = newest.encode(seed)
    for number in range(NR_JOURNAL_HEADERS):
        start = number * JOURNAL_HEADER.size_bytes
        if page[start : start + JOURNAL_HEADER.size_bytes] == record:
            return newest, number
    raise FormatError("the journal's header has bytes set that are reserved: run xipfs fsck")
