"""DiskInode: one file of any kind, 256 bytes in the inode file at `ino * 256`.

The inode file is itself described by an inode: number 0, in the state page. `payload` holds the
first extents or index entries, or, with InodeFlags.INLINE, the file's bytes themselves (symbolic
links). A free inode has mode 0 and keeps its generation; an all-zero record was never used.
"""

from enum import IntFlag
from typing import NamedTuple

import numpy as np

from xipfs.errors import FormatError
from xipfs.ondisk.extent import EXTENT_DTYPE, NR_INLINE_EXTENTS, ExtentArray
from xipfs.ondisk.record import Buffer, RecordFormat, fields_dtype
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Block, Ino

__all__ = [
    "FILE_SIZE_BYTES_MAX",
    "INODE",
    "INODES_PER_PAGE",
    "INO_FIRST",
    "INO_INODE_FILE",
    "INO_MAX",
    "INO_ROOT",
    "PAYLOAD_SIZE_BYTES",
    "DiskInode",
    "InodeFlags",
    "decode_inode",
]

INO_INODE_FILE = Ino(0)
INO_ROOT = Ino(1)
INO_FIRST = Ino(16)
"""Inodes 2 to 15 are reserved and free."""
INO_MAX = Ino((1 << 31) - 1)
FILE_SIZE_BYTES_MAX = 1 << (32 + PAGE_SHIFT)
"""16 TiB: a page offset fits 32 bits, an inode 31, both together one int64 (policy.PageId)."""

_MODE_MAX = 0o177777
"""What mode_t of Linux holds."""

PAYLOAD_SIZE_BYTES = NR_INLINE_EXTENTS * EXTENT_DTYPE.itemsize

INODE = RecordFormat(
    "inode",
    int.from_bytes(b"XINO", "little"),
    fields_dtype(
        256,
        [
            (0, "<u4", "magic"),
            (4, "<u4", "checksum"),
            (8, "<u8", "ino"),
            (16, "<u4", "generation"),
            (20, "<u4", "flags"),
            (24, "<u4", "mode"),
            (28, "<u4", "nlink"),
            (32, "<u4", "uid"),
            (36, "<u4", "gid"),
            (40, "<u8", "size_bytes"),
            (48, "<u8", "nr_pages"),
            (56, "<i8", "atime_ns"),
            (64, "<i8", "mtime_ns"),
            (72, "<i8", "ctime_ns"),
            (80, "<i8", "btime_ns"),
            (88, "<u8", "rdev"),
            (96, "<u8", "nr_entries"),
            (104, "<u8", "parent_ino"),
            (112, "<u8", "next_ino"),
            (120, "<u8", "xattr_block"),
            (128, "<u4", "nr_xattr_pages"),
            (132, "<u2", "extent_depth"),
            (134, "<u2", "nr_extents"),
            (136, f"V{PAYLOAD_SIZE_BYTES}", "payload"),
        ],
    ),
)
INODES_PER_PAGE = PAGE_SIZE // INODE.size_bytes


class InodeFlags(IntFlag):
    """Properties of one inode."""

    INLINE = 1
    """The payload holds the file's bytes, size_bytes of them; there are no extents."""
    ORPHAN = 2
    """On the orphan list: unlinked but open, or not yet cut to its size; recovery finishes it."""
    IMMUTABLE = 4
    """Cannot be changed (chattr +i). Stored; not settable yet."""
    APPEND = 8
    """Can only grow (chattr +a). Stored; not settable yet."""


class DiskInode(NamedTuple):
    """One inode as it stands in the image; field by field in docs/FORMAT.md.

    Times are nanoseconds since 1970, signed. nr_pages counts all image pages that this inode
    holds: data, extent nodes, directory pages and attributes.
    """

    ino: Ino
    generation: int
    flags: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size_bytes: int
    nr_pages: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    rdev: int
    nr_entries: int
    parent_ino: Ino
    next_ino: Ino
    xattr_block: Block
    nr_xattr_pages: int
    extent_depth: int
    nr_extents: int
    payload: bytes

    @property
    def extents(self) -> ExtentArray:
        """The extents or index entries in the payload, a read-only view."""
        return np.frombuffer(self.payload, EXTENT_DTYPE, self.nr_extents)

    def encode(self, seed: int) -> bytes:
        """Return the sealed record."""
        return INODE.encode_values(seed, self)


def decode_inode(record: Buffer, seed: int, ino: Ino) -> DiskInode:
    """Check and decode the inode that must be number *ino*.

    Raises: FormatError, also for a sound record of another inode (a misdirected write) and for
    counts that the payload cannot hold.
    """
    inode = DiskInode(*INODE.decode(record, seed, f"inode {ino}"))
    if inode.ino != ino:
        raise FormatError(f"inode {ino}: its place holds inode {inode.ino}")
    if inode.nr_extents > NR_INLINE_EXTENTS:
        raise FormatError(f"inode {ino}: {inode.nr_extents} extents, at most {NR_INLINE_EXTENTS}")
    # The size first: operators of IntFlag are slow, and this is on the way of every lookup.
    if inode.size_bytes > PAYLOAD_SIZE_BYTES and inode.flags & InodeFlags.INLINE:
        raise FormatError(
            f"inode {ino}: {inode.size_bytes} bytes inline, at most {PAYLOAD_SIZE_BYTES}"
        )
    if inode.mode > _MODE_MAX:
        raise FormatError(f"inode {ino}: mode {inode.mode:#o}, at most {_MODE_MAX:#o}")
    if inode.size_bytes > FILE_SIZE_BYTES_MAX:
        raise FormatError(f"inode {ino}: {inode.size_bytes} bytes, at most {FILE_SIZE_BYTES_MAX}")
    return inode
