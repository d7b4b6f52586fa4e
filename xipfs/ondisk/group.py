"""Allocation groups: the allocator's state, kept in place so that mounting reads none of it.

The image is cut into groups of 2^group_shift pages. Each has a descriptor in the table at
`gdt_block` and one bitmap page at `bitmap_block + group`: bit n of byte n // 8 set means that page
`group << group_shift | n` is in use. Pages past the end of the image count as in use. A descriptor
with BITMAP_UNINIT stands for a bitmap never written: all pages of the group are free.
"""

import zlib
from enum import IntFlag
from typing import NamedTuple

from xipfs.errors import FormatError, bug_on
from xipfs.ondisk.record import Buffer, RecordFormat, fields_dtype
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = [
    "GROUP_DESC",
    "GROUP_SHIFT",
    "NR_GROUP_PAGES",
    "DiskGroupDesc",
    "GroupFlags",
    "bitmap_checksum",
    "decode_group_desc",
]

GROUP_SHIFT = PAGE_SHIFT + 3
"""One bitmap page covers its group: 32768 pages, 128 MiB."""
NR_GROUP_PAGES = 1 << GROUP_SHIFT

GROUP_DESC = RecordFormat(
    "group descriptor",
    int.from_bytes(b"XGRP", "little"),
    fields_dtype(
        32,
        [
            (0, "<u4", "magic"),
            (4, "<u4", "checksum"),
            (8, "<u4", "group"),
            (12, "<u4", "flags"),
            (16, "<u4", "nr_free_pages"),
            (20, "<u4", "bitmap_checksum"),
        ],
    ),
)


class GroupFlags(IntFlag):
    """Properties of one group."""

    BITMAP_UNINIT = 1
    """The bitmap page was never written; every page of the group is free."""


class DiskGroupDesc(NamedTuple):
    """One group; field by field in docs/FORMAT.md."""

    group: int
    flags: int
    nr_free_pages: int
    bitmap_checksum: int

    def encode(self, seed: int) -> bytes:
        """Return the sealed record."""
        return GROUP_DESC.encode_values(seed, self)


def decode_group_desc(record: Buffer, seed: int, group: int) -> DiskGroupDesc:
    """Check and decode descriptor number *group*.

    Raises: FormatError, also for a sound descriptor of another group (a misdirected write).
    """
    desc = DiskGroupDesc(*GROUP_DESC.decode(record, seed, f"group {group}"))
    if desc.group != group:
        raise FormatError(f"group {group}: its place holds group {desc.group}")
    return desc


def bitmap_checksum(bitmap: Buffer, seed: int) -> int:
    """Return the checksum of a bitmap page, which has no head of its own."""
    bug_on(len(bitmap) != PAGE_SIZE, "a bitmap is one page", size_bytes=len(bitmap))
    return zlib.crc32(bitmap, seed)
