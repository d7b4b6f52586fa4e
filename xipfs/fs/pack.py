"""From lists to sealed pages: how mkfs lays out directories, extent trees and the free map.

All of it is packed as it would be after much careful inserting: sorted, and with room in each
directory page for a few more names. docs/FORMAT.md says what the pages mean.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import bug_on
from xipfs.ondisk.dentry import (
    NR_INDEX_ENTRIES,
    SEQUENCE_BITS,
    encode_dir_index,
    encode_dir_leaf,
    leaf_size_bytes,
    name_key,
)
from xipfs.ondisk.extent import (
    EXTENT_DTYPE,
    NR_INLINE_EXTENTS,
    NR_NODE_EXTENTS,
    ExtentArray,
    encode_node,
)
from xipfs.ondisk.group import (
    GROUP_DESC,
    GROUP_SHIFT,
    NR_GROUP_PAGES,
    GroupFlags,
    bitmap_checksum,
)
from xipfs.ondisk.record import RecordFormat
from xipfs.units import PAGE_SIZE, Block

__all__ = ["pack_directory", "pack_extents", "pack_groups", "seal_records"]

LEAF_SIZE_BYTES_MAX = PAGE_SIZE * 9 // 10
NR_INDEX_ENTRIES_MAX = NR_INDEX_ENTRIES * 9 // 10

Slot = tuple[int, int, int, bytes]
Rows = TypeVar("Rows", list[tuple[int, int]], NDArray[np.void])


def pack_directory(
    seed: int,
    hash_key: bytes,
    *,
    ino: int,
    generation: int,
    entries: Iterable[tuple[bytes, int, int]],
) -> list[bytes]:
    """Return the pages of a directory, the root first; at least one.

    entries: (name, ino, d_type) in any order, names unique.
    """
    leaves = list(_split_into_leaves(_sorted_slots(hash_key, entries)))
    pages = [encode_dir_leaf(seed, ino=ino, generation=generation, slots=s) for s in leaves]
    if len(pages) == 1:
        return pages
    # The root will stand before all others, so page number i of this list has pgoff i + 1.
    below = [(slots[0][0], pgoff) for pgoff, slots in enumerate(leaves, 1)]
    level = 1
    while len(below) > NR_INDEX_ENTRIES_MAX:
        chunks = list(_chunks(below, NR_INDEX_ENTRIES_MAX))
        below = [(chunk[0][0], pgoff) for pgoff, chunk in enumerate(chunks, len(pages) + 1)]
        pages += [
            encode_dir_index(seed, ino=ino, generation=generation, level=level, entries=chunk)
            for chunk in chunks
        ]
        level += 1
    root = encode_dir_index(seed, ino=ino, generation=generation, level=level, entries=below)
    return [root, *pages]


def _sorted_slots(hash_key: bytes, entries: Iterable[tuple[bytes, int, int]]) -> list[Slot]:
    """Give each name its key: of names with one hash, the first in byte order has sequence 0."""
    slots: list[Slot] = []
    previous = -1
    for key, name, ino, d_type in sorted(
        (name_key(name, hash_key), name, ino, d_type) for name, ino, d_type in entries
    ):
        unique_key = max(key, previous + 1)
        bug_on(unique_key - key >> SEQUENCE_BITS > 0, "too many names with one hash", name=name)
        slots.append((unique_key, ino, d_type, name))
        previous = unique_key
    return slots


def _split_into_leaves(slots: list[Slot]) -> Iterator[list[Slot]]:
    """Yield as many slots at a time as a leaf takes; an empty directory is one empty leaf."""
    start = name_sizes_bytes = 0
    for i, (_, _, _, name) in enumerate(slots):
        if leaf_size_bytes(name_sizes_bytes + len(name), i + 1 - start) > LEAF_SIZE_BYTES_MAX:
            yield slots[start:i]
            start, name_sizes_bytes = i, 0
        name_sizes_bytes += len(name)
    yield slots[start:]


def pack_extents(
    seed: int, *, ino: int, generation: int, extents: ExtentArray, first_block: Block
) -> tuple[list[bytes], ExtentArray, int]:
    """Return the nodes of the tree over *extents*, what stands in the inode, and the depth.

    The nodes will stand in the pages from *first_block* on. None are needed, and the depth is 0,
    where the inode holds all *extents* itself.
    """
    pages: list[bytes] = []
    level, depth = extents, 0
    while len(level) > NR_INLINE_EXTENTS:
        chunks = list(_chunks(level, NR_NODE_EXTENTS))
        above = np.zeros(len(chunks), EXTENT_DTYPE)
        above["pgoff"] = level["pgoff"][::NR_NODE_EXTENTS]
        above["block"] = first_block + len(pages) + np.arange(len(chunks))
        pages += [
            encode_node(seed, ino=ino, generation=generation, depth=depth, entries=chunk)
            for chunk in chunks
        ]
        level, depth = above, depth + 1
    return pages, level, depth


def pack_groups(
    seed: int, *, nr_pages: int, used_end: Block, free_runs: Sequence[tuple[Block, int]]
) -> tuple[NDArray[np.void], dict[int, bytes]]:
    """Return the sealed group descriptors, and the bitmaps of the groups that need one, by group.

    In use are [0, used_end) without *free_runs* of (block, nr_pages), the last page of the image,
    and what lies past it in the last group.
    """
    nr_groups = -(-nr_pages >> GROUP_SHIFT)
    descriptors = np.zeros(nr_groups, GROUP_DESC.dtype)
    descriptors["group"] = np.arange(nr_groups)
    descriptors["flags"] = GroupFlags.BITMAP_UNINIT
    descriptors["nr_free_pages"] = NR_GROUP_PAGES
    bitmaps: dict[int, bytes] = {}
    for group in sorted({*range(-(-used_end >> GROUP_SHIFT)), nr_groups - 1}):
        first = group << GROUP_SHIFT
        in_use = np.zeros(NR_GROUP_PAGES, bool)
        in_use[: max(used_end - first, 0)] = True
        for block, nr_run_pages in free_runs:
            in_use[max(block - first, 0) : max(block + nr_run_pages - first, 0)] = False
        if group == nr_groups - 1:
            in_use[nr_pages - 1 - first :] = True
        if in_use.any():
            bitmap = np.packbits(in_use, bitorder="little").tobytes()
            bitmaps[group] = bitmap
            nr_free_pages = NR_GROUP_PAGES - int(np.count_nonzero(in_use))
            descriptors["flags"][group] = 0
            descriptors["nr_free_pages"][group] = nr_free_pages
            descriptors["bitmap_checksum"][group] = bitmap_checksum(bitmap, seed)
    seal_records(GROUP_DESC, descriptors, seed)
    return descriptors, bitmaps


def seal_records(
    record_format: RecordFormat,
    records: NDArray[np.void],
    seed: int,
    rows: Iterable[int] | None = None,
) -> None:
    """Seal all *records* (dtype of the format), or only those in *rows*, in place."""
    size_bytes = record_format.size_bytes
    view = records.view(np.uint8).data
    for row in range(len(records)) if rows is None else rows:
        record_format.seal(view[row * size_bytes : (row + 1) * size_bytes], seed)


def _chunks(rows: Rows, size: int) -> Iterator[Rows]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
