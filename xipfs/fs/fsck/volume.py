"""fsck of what stands once in an image: superblocks, layout, journal, state."""

import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import FormatError
from xipfs.fs.fsck.overlay import ReadableImage
from xipfs.fs.fsck.report import Findings, Invariant
from xipfs.fs.layout import layout_problems
from xipfs.ondisk.inode import INO_FIRST, INO_MAX, INODE
from xipfs.ondisk.journal import (
    JOURNAL_HEADER,
    JOURNAL_RECORD,
    NR_JOURNAL_HEADERS,
    SEQUENCE_MAX,
    DiskJournalHeader,
    JournalRecordKind,
)
from xipfs.ondisk.superblock import (
    CHECKSUM_CRC32,
    COMPAT_KNOWN,
    FORMAT_VERSION,
    INCOMPAT_KNOWN,
    RO_COMPAT_KNOWN,
    STATE,
    STATE_BLOCK,
    STATE_INODE_OFFSET,
    SUPERBLOCK,
    DiskState,
    DiskSuperblock,
    StateFlags,
    decode_state,
)
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = [
    "check_features",
    "check_journal",
    "check_layout",
    "check_replica",
    "check_reserved",
    "check_size",
    "check_state",
    "check_superblock",
    "check_zero",
    "reserved_bytes",
]

_CRC_CHUNK_BYTES = 1 << 20


def check_superblock(
    nvram: ReadableImage, findings: Findings
) -> tuple[DiskSuperblock, bytes] | None:
    """I1: return the superblock and its page, of the replica where page 0 is damaged.

    Returns None where both are. Raises: FormatError when nothing looks like an image; DeviceError.
    """
    page = nvram.load(0, PAGE_SIZE)
    try:
        return DiskSuperblock(*SUPERBLOCK.decode(page, 0, "page 0")), page
    except FormatError as exc:
        damage = str(exc)
    block = (nvram.size_bytes >> PAGE_SHIFT) - 1
    replica = nvram.load(block << PAGE_SHIFT, PAGE_SIZE)
    magic = SUPERBLOCK.magic.to_bytes(4, "little")
    if not page.startswith(magic) and not replica.startswith(magic):
        raise FormatError(
            f"{nvram.path}: no xipfs image: neither its first nor its last page is a superblock"
        )
    try:
        disk = DiskSuperblock(*SUPERBLOCK.decode(replica, 0, f"page {block}"))
    except FormatError as exc:
        findings.add(Invariant.SUPERBLOCK, damage)
        findings.add(Invariant.REPLICA, str(exc))
        return None
    findings.add(Invariant.SUPERBLOCK, f"{damage}; its replica in page {block} is sound")
    return disk, replica


def check_replica(
    nvram: ReadableImage, disk: DiskSuperblock, superblock_page: bytes, findings: Findings
) -> None:
    """I2: the last page of the image is equal to the superblock."""
    block = disk.nr_pages - 1
    replica = nvram.load(block << PAGE_SHIFT, PAGE_SIZE)
    if replica == superblock_page:
        return
    try:
        SUPERBLOCK.decode(replica, 0, f"page {block}")
    except FormatError as exc:
        findings.add(Invariant.REPLICA, str(exc))
    else:
        findings.add(Invariant.REPLICA, f"page {block}: sealed, but unlike page 0")


def check_features(disk: DiskSuperblock, findings: Findings) -> bool:
    """I3: return whether this fsck knows all that the image uses."""
    unknown = []
    if disk.version != FORMAT_VERSION:
        unknown.append(f"format version {disk.version} (this xipfs knows {FORMAT_VERSION})")
    elif disk.checksum_type != CHECKSUM_CRC32:
        unknown.append(f"checksum type {disk.checksum_type}")
    else:
        for name, found, known in (
            ("compat", disk.compat, COMPAT_KNOWN),
            ("ro_compat", disk.ro_compat, RO_COMPAT_KNOWN),
            ("incompat", disk.incompat, INCOMPAT_KNOWN),
        ):
            if found & ~int(known):
                unknown.append(f"{name} features {found & ~int(known):#x}")
    for text in unknown:
        findings.add(Invariant.FEATURES, f"the image uses {text}: check it with a newer xipfs")
    return not unknown


def check_size(nvram: ReadableImage, disk: DiskSuperblock, findings: Findings) -> bool:
    """I4: return whether the file is as long as the image."""
    nr_file_pages = nvram.size_bytes >> PAGE_SHIFT
    if nr_file_pages >= disk.nr_pages:
        return True
    findings.add(
        Invariant.SIZE,
        f"the file has {nr_file_pages} pages of {disk.nr_pages}: it was cut short, copy it again",
    )
    return False


def check_layout(disk: DiskSuperblock, findings: Findings) -> bool:
    """I5: return whether the areas that the superblock names can be looked into."""
    problems = layout_problems(disk)
    for text in problems:
        findings.add(Invariant.LAYOUT, text)
    return not problems


def check_journal(
    nvram: ReadableImage, disk: DiskSuperblock, findings: Findings, *, clean: bool
) -> bool:
    """I6: return whether the image is what it is, and not what a replay will make of it.

    clean: the state says so.
    """
    page = nvram.load(disk.journal_block << PAGE_SHIFT, PAGE_SIZE)
    ring_size_bytes = (disk.nr_journal_pages - 1) << PAGE_SHIFT
    headers: list[DiskJournalHeader] = []
    damage = []
    for number in range(NR_JOURNAL_HEADERS):
        start = number * JOURNAL_HEADER.size_bytes
        record = page[start : start + JOURNAL_HEADER.size_bytes]
        where = f"journal header {number}"
        if not any(record):
            continue  # never written
        try:
            header = DiskJournalHeader(*JOURNAL_HEADER.decode(record, disk.seed, where))
        except FormatError as exc:
            damage.append(str(exc))
            continue
        check_reserved(np.frombuffer(record, JOURNAL_HEADER.dtype), where, findings)
        in_range = 1 <= header.sequence <= SEQUENCE_MAX
        if not in_range or header.head % 8 or header.head >= ring_size_bytes:
            damage.append(f"{where}: sequence {header.sequence}, head {header.head:#x}")
        else:
            headers.append(header)
    check_zero(page[NR_JOURNAL_HEADERS * JOURNAL_HEADER.size_bytes :], "journal page 0", findings)
    if headers and _record_waits(nvram, disk, max(headers)):
        # A crash just behind the transaction that set CLEAN leaves that one, which does no harm.
        if not clean:
            findings.add(Invariant.JOURNAL, "a transaction waits to be replayed")
        return clean
    # A crash may tear one header. Of a clean image it was the last to be written, and the
    # transaction that it should have ended is still there.
    if clean or not headers:
        for text in damage or ["journal: no header was ever written"] * (not headers):
            findings.add(Invariant.JOURNAL, text)
    return True


def check_state(nvram: ReadableImage, disk: DiskSuperblock, findings: Findings) -> DiskState | None:
    """I7: return the state, None if it cannot be read."""
    page = nvram.load(STATE_BLOCK << PAGE_SHIFT, PAGE_SIZE)
    check_zero(page[STATE_INODE_OFFSET + INODE.size_bytes :], "page 1", findings)
    try:
        state = decode_state(page[: STATE.size_bytes], disk.seed)
    except FormatError as exc:
        findings.add(Invariant.STATE, str(exc))
        return None
    check_reserved(np.frombuffer(page, STATE.dtype, 1), "the state", findings)
    problems = []
    if unknown := state.flags & ~int(StateFlags.CLEAN | StateFlags.ERROR):
        problems.append(f"unknown flags {unknown:#x}")
    if not state.flags & StateFlags.CLEAN:
        problems.append("not cleanly unmounted")
    if state.flags & StateFlags.ERROR:
        problems.append("a mount found damage and left word")
    sane = INO_FIRST <= state.ino_end <= INO_MAX + 1
    if not sane:
        problems.append(f"ino_end {state.ino_end}")
    for text in problems:
        findings.add(Invariant.STATE, f"the state: {text}")
    return state if sane else None


def check_reserved(
    records: NDArray[np.void], where: str, findings: Findings, ino: int | None = None
) -> None:
    """I30: what no field covers is zero. records: straight from the image, of their dtype."""
    found = records.view(np.uint8).reshape(len(records), records.dtype.itemsize)
    reserved = reserved_bytes(records.dtype)
    if found[:, reserved].any():
        offset = int(np.argmax((found * reserved).any(axis=0)))
        findings.add(Invariant.RESERVED, f"{where}: reserved byte {offset} is not zero", ino)


def check_zero(data: bytes, where: str, findings: Findings) -> None:
    """I30, for the bytes behind the last record of *where*."""
    if data.count(0) != len(data):
        findings.add(Invariant.RESERVED, f"{where}: bytes behind its records are not zero")


@cache
def reserved_bytes(dtype: np.dtype[np.void]) -> NDArray[np.bool_]:
    """Return which bytes of a record no field covers: bool, shape (itemsize,)."""
    reserved = np.ones(dtype.itemsize, bool)
    for field_dtype, offset, *_ in (dtype.fields or {}).values():
        reserved[offset : offset + field_dtype.itemsize] = False
    return reserved


def _record_waits(nvram: ReadableImage, disk: DiskSuperblock, header: DiskJournalHeader) -> bool:
    """Is there a sealed record of the expected sequence where replay would start?"""
    head = _load_ring(nvram, disk, header.head, JOURNAL_RECORD.size_bytes)
    record = np.frombuffer(head, JOURNAL_RECORD.dtype, 1)[0]
    size_bytes = int(record["size_bytes"])
    kind = JournalRecordKind.DATA if size_bytes else JournalRecordKind.COMMIT
    ring_size_bytes = (disk.nr_journal_pages - 1) << PAGE_SHIFT
    if (
        (record["magic"], record["sequence"], record["kind"])
        != (JOURNAL_RECORD.magic, header.sequence, kind)
    ) or JOURNAL_RECORD.size_bytes + size_bytes > ring_size_bytes:
        return False
    crc = zlib.crc32(head[8:], zlib.crc32(head[:4], disk.seed))
    for start in range(0, size_bytes, _CRC_CHUNK_BYTES):
        offset = header.head + JOURNAL_RECORD.size_bytes + start
        part_bytes = min(_CRC_CHUNK_BYTES, size_bytes - start)
        crc = zlib.crc32(_load_ring(nvram, disk, offset, part_bytes), crc)
    return bool(crc == record["checksum"])


def _load_ring(nvram: ReadableImage, disk: DiskSuperblock, offset: int, size_bytes: int) -> bytes:
    """Return bytes of the journal's ring, which goes on at its start."""
    ring_offset = (disk.journal_block + 1) << PAGE_SHIFT
    ring_size_bytes = (disk.nr_journal_pages - 1) << PAGE_SHIFT
    offset %= ring_size_bytes
    before_end = min(size_bytes, ring_size_bytes - offset)
    return nvram.load(ring_offset + offset, before_end) + nvram.load(
        ring_offset, size_bytes - before_end
    )
