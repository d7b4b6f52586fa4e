"""Extents: which image pages hold which file pages. Inline in the inode, or a tree of nodes.

An extent maps [pgoff, pgoff + nr_pages) of a file to [block, block + nr_pages) of the image.
Extents of one file are sorted by pgoff and do not overlap; what no extent covers is a hole. Up to
NR_INLINE_EXTENTS stand in the inode (depth 0). More go to a tree of pages: the entries of a node
of depth 0 are extents, of a deeper node the same 24 bytes with `block` naming the child node,
`pgoff` the lowest page below it, and nr_pages = flags = 0. One node holds 169 entries, so depth 1
is enough for 5 * 169 and depth 2 for 5 * 169^2 one-page extents.

    offset 0  8  16        20
    +------+-----+---------+-----+
    |pgoff |block|nr_pages |flags|
    +------+-----+---------+-----+
"""

from enum import IntFlag
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import FormatError, bug_on
from xipfs.ondisk.record import Buffer, RecordFormat, fields_dtype
from xipfs.units import PAGE_SIZE

__all__ = [
    "EXTENT_DTYPE",
    "EXTENT_NODE",
    "NR_INLINE_EXTENTS",
    "NR_NODE_EXTENTS",
    "ExtentArray",
    "ExtentFlags",
    "decode_node",
    "encode_node",
]

EXTENT_DTYPE = fields_dtype(
    24,
    [
        (0, "<i8", "pgoff"),
        (8, "<i8", "block"),
        (16, "<u4", "nr_pages"),
        (20, "<u4", "flags"),
    ],
)

ExtentArray: TypeAlias = NDArray[np.void]
"""dtype EXTENT_DTYPE, shape (nr_extents,), sorted by pgoff."""

NR_INLINE_EXTENTS = 5


class ExtentFlags(IntFlag):
    """Properties of one extent."""

    UNWRITTEN = 1
    """Allocated, never written: reads as zeros."""


EXTENT_NODE = RecordFormat(
    "extent node",
    int.from_bytes(b"XEXT", "little"),
    fields_dtype(
        40,
        [
            (0, "<u4", "magic"),
            (4, "<u4", "checksum"),
            (8, "<u8", "ino"),
            (16, "<u4", "generation"),
            (20, "<u2", "depth"),
            (22, "<u2", "nr_entries"),
        ],
    ),
)

NR_NODE_EXTENTS = (PAGE_SIZE - EXTENT_NODE.size_bytes) // EXTENT_DTYPE.itemsize


def decode_node(page: Buffer, seed: int, where: str) -> tuple[int, int, int, ExtentArray]:
    """Check one page of an extent tree; return (ino, generation, depth, entries), a view of *page*.

    Raises: FormatError, also for more entries than a page holds.
    """
    ino, generation, depth, nr_entries = EXTENT_NODE.decode(page, seed, where)
    if EXTENT_NODE.size_bytes + nr_entries * EXTENT_DTYPE.itemsize > len(page):
        raise FormatError(f"{where}: {nr_entries} extents, a node holds {NR_NODE_EXTENTS}")
    return (
        ino,
        generation,
        depth,
        np.frombuffer(page, EXTENT_DTYPE, nr_entries, EXTENT_NODE.size_bytes),
    )


def encode_node(seed: int, *, ino: int, generation: int, depth: int, entries: ExtentArray) -> bytes:
    """Return the sealed page of one node with at most NR_NODE_EXTENTS *entries*."""
    bug_on(len(entries) > NR_NODE_EXTENTS, "too many extents", ino=ino, nr_entries=len(entries))
    head = EXTENT_NODE.encode(
        seed, ino=ino, generation=generation, depth=depth, nr_entries=len(entries)
    )
    page = bytearray(PAGE_SIZE)
    page[: len(head)] = head
    page[len(head) : len(head) + entries.nbytes] = entries.tobytes()
    EXTENT_NODE.seal(page, seed)
    return bytes(page)
