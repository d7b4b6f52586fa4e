"""The superblock (page 0, and a replica in the last page) and the filesystem's state (page 1).

The superblock holds what mkfs decides and nothing changes later, so that the replica is always
equal. What changes (free pages, lists of inodes) is in DiskState, which has no replica: all of it
can be counted again. See docs/FORMAT.md, "Superblock" and "State".
"""

from enum import IntFlag
from typing import NamedTuple

from xipfs.errors import FormatError
from xipfs.ondisk.record import Buffer, RecordFormat, checksum_seed, fields_dtype
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Block, Ino

__all__ = [
    "CHECKSUM_CRC32",
    "COMPAT_KNOWN",
    "FORMAT_VERSION",
    "INCOMPAT_KNOWN",
    "RO_COMPAT_KNOWN",
    "STATE",
    "STATE_BLOCK",
    "STATE_INODE_OFFSET",
    "SUPERBLOCK",
    "Compat",
    "DiskState",
    "DiskSuperblock",
    "StateFlags",
    "decode_state",
    "decode_superblock",
]

FORMAT_VERSION = 1
CHECKSUM_CRC32 = 1
STATE_BLOCK = Block(1)
STATE_INODE_OFFSET = 256
"""Byte offset in the state page of the inode of the inode file."""


class Compat(IntFlag):
    """Features that an implementation may ignore."""

    ACL = 1
    """Some inode has a POSIX ACL: a mount asks the kernel to enforce them."""


COMPAT_KNOWN = Compat.ACL
RO_COMPAT_KNOWN = 0
"""Features that an implementation must know to write; it may read without. None so far."""
INCOMPAT_KNOWN = 0
"""Features that an implementation must know to read. None so far."""


class StateFlags(IntFlag):
    """What is known of the image as a whole."""

    CLEAN = 1
    """The journal holds nothing that the image does not: set by mkfs, unmount and recovery."""
    ERROR = 2
    """Something was found damaged: `xipfs fsck` must look."""


SUPERBLOCK = RecordFormat(
    "superblock",
    int.from_bytes(b"XIPF", "little"),
    fields_dtype(
        PAGE_SIZE,
        [
            (0, "<u4", "magic"),
            (4, "<u4", "checksum"),
            (8, "<u4", "version"),
            (12, "<u4", "checksum_type"),
            (16, "<u8", "compat"),
            (24, "<u8", "ro_compat"),
            (32, "<u8", "incompat"),
            (40, "V16", "uuid"),
            (56, "V16", "hash_key"),
            (72, "V64", "label"),
            (136, "<i8", "created_ns"),
            (144, "<u4", "page_shift"),
            (148, "<u4", "group_shift"),
            (152, "<u8", "nr_pages"),
            (160, "<u8", "nr_groups"),
            (168, "<u8", "gdt_block"),
            (176, "<u8", "bitmap_block"),
            (184, "<u8", "journal_block"),
            (192, "<u8", "nr_journal_pages"),
        ],
    ),
)

STATE = RecordFormat(
    "state record",
    int.from_bytes(b"XIPT", "little"),
    fields_dtype(
        STATE_INODE_OFFSET,
        [
            (0, "<u4", "magic"),
            (4, "<u4", "checksum"),
            (8, "<u8", "flags"),
            (16, "<u8", "nr_free_pages"),
            (24, "<u8", "nr_inodes"),
            (32, "<u8", "ino_end"),
            (40, "<u8", "free_ino_head"),
            (48, "<u8", "orphan_ino_head"),
            (56, "<i8", "mounted_ns"),
            (64, "<i8", "written_ns"),
            (72, "<u8", "mount_count"),
        ],
    ),
)


class DiskSuperblock(NamedTuple):
    """What mkfs decided; field by field in docs/FORMAT.md."""

    version: int
    checksum_type: int
    compat: int
    ro_compat: int
    incompat: int
    uuid: bytes
    hash_key: bytes
    label: bytes
    created_ns: int
    page_shift: int
    group_shift: int
    nr_pages: int
    nr_groups: int
    gdt_block: Block
    bitmap_block: Block
    journal_block: Block
    nr_journal_pages: int

    @property
    def seed(self) -> int:
        """Start value of all checksums of this image but the superblock's own."""
        return checksum_seed(self.uuid)

    def encode(self) -> bytes:
        """Return the sealed page."""
        return SUPERBLOCK.encode(0, **self._asdict())


class DiskState(NamedTuple):
    """What changes while the filesystem is written; field by field in docs/FORMAT.md."""

    flags: int
    nr_free_pages: int
    nr_inodes: int
    ino_end: Ino
    free_ino_head: Ino
    orphan_ino_head: Ino
    mounted_ns: int
    written_ns: int
    mount_count: int

    def encode(self, seed: int) -> bytes:
        """Return the sealed record."""
        return STATE.encode_values(seed, self)


def decode_superblock(page: Buffer, where: str) -> DiskSuperblock:
    """Check and decode one copy of the superblock.

    Only what is needed to trust the other fields is checked: magic, checksum (its seed is 0, the
    uuid is inside), version, checksum type, page size and features that must be known to read.

    Raises: FormatError; a newer image is told apart from a damaged one.
    """
    superblock = DiskSuperblock(*SUPERBLOCK.decode(page, 0, where))
    if superblock.version != FORMAT_VERSION:
        raise FormatError(
            f"{where}: image format version {superblock.version}, this xipfs reads only "
            f"{FORMAT_VERSION}: use a newer xipfs"
        )
    if superblock.checksum_type != CHECKSUM_CRC32 or superblock.page_shift != PAGE_SHIFT:
        raise FormatError(
            f"{where}: checksum type {superblock.checksum_type} and page size "
            f"2^{superblock.page_shift}, this xipfs reads only type {CHECKSUM_CRC32} and "
            f"2^{PAGE_SHIFT}"
        )
    unknown = superblock.incompat & ~INCOMPAT_KNOWN
    if unknown:
        raise FormatError(
            f"{where}: the image uses incompatible features {unknown:#x} that this xipfs does "
            f"not know: use a newer xipfs"
        )
    return superblock


def decode_state(record: Buffer, seed: int) -> DiskState:
    """Check and decode the state record (the first STATE.size_bytes of the state page)."""
    return DiskState(*STATE.decode(record, seed, "page 1"))
