"""ExtentMap: from a page of a file to a page of the image, by the inode's extents.

Small files have all extents in the inode. For others the map keeps one leaf of the tree in memory,
the one last used, and reads another when the page asked for lies outside of it.

Invariants:
    I1  Whatever is returned lies inside the image (checked when a leaf is taken in).
    I2  An unwritten extent is a hole to its readers.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import FormatError
from xipfs.ondisk.extent import ExtentArray, ExtentFlags, decode_node
from xipfs.ondisk.inode import DiskInode, InodeFlags
from xipfs.units import (
    NVRAM_PFN_START,
    PAGE_SHIFT,
    PAGE_SIZE,
    PFN_NONE,
    Block,
    Pgoff,
)

__all__ = [
    "EXTENT_DEPTH_MAX",
    "ExtentMap",
    "ImageReader",
    "iter_extents",
    "iter_nodes",
    "load_node",
    "may_hold",
]

EXTENT_DEPTH_MAX = 4
"""Enough for 5 * 169^4 extents: about as many as the largest file has pages."""

_PGOFF_END = 1 << 64


class ImageReader(Protocol):
    """Bytes of an image: an NvramDevice, or a Transaction, whose pending changes are seen too."""

    @property
    def size_bytes(self) -> int:
        """Of the image."""
        ...

    @property
    def metadata_runs(self) -> tuple[tuple[int, int], ...]:
        """Pages [start, end) of the image that no file may have: see `fs.layout`."""
        ...

    def load(self, offset: int, size_bytes: int) -> bytes:
        """Return a copy of [offset, offset + size_bytes). Raises: DeviceError."""
        ...


class ExtentMap:
    """The extents of *inode*."""

    __slots__ = ("_blocks", "_end", "_ends", "_first", "_inode", "_nvram", "_seed", "_starts")

    def __init__(self, nvram: ImageReader, seed: int, inode: DiskInode) -> None:
        self._nvram = nvram
        self._seed = seed
        self._inode = inode
        self._first = self._end = 0  # the window of the leaf in memory: empty
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._blocks: list[int] = []

    def renew(self, inode: DiskInode) -> None:
        """Go on with *inode*, the same file after a change."""
        self._inode = inode
        self._first = self._end = 0

    def find_block(self, pgoff: Pgoff) -> Block | None:
        """Return the image page of file page *pgoff*, None for a hole. Raises: FormatError."""
        if not self._first <= pgoff < self._end:
            self._take_leaf(pgoff)
        i = bisect_right(self._starts, pgoff) - 1
        if i >= 0 and pgoff < self._ends[i]:
            return Block(self._blocks[i] + pgoff - self._starts[i])
        return None

    def pfns(self, pgoff: Pgoff, nr_pages: int) -> NDArray[np.int64]:
        """Return the NVRAM frames of nr_pages pages, int64, PFN_NONE for holes.

        Raises: FormatError.
        """
        if not self._first <= pgoff < self._end:
            self._take_leaf(pgoff)
        i = bisect_right(self._starts, pgoff) - 1
        if i >= 0 and pgoff + nr_pages <= min(self._ends[i], self._end):  # most often, by far
            pfn = NVRAM_PFN_START + self._blocks[i] + pgoff - self._starts[i]
            return np.arange(pfn, pfn + nr_pages, dtype=np.int64)
        pfns = np.full(nr_pages, PFN_NONE, np.int64)
        position, end = int(pgoff), pgoff + nr_pages
        while position < end:
            if not self._first <= position < self._end:
                self._take_leaf(Pgoff(position))
            window_end = min(end, self._end)
            for i in range(max(bisect_right(self._starts, position) - 1, 0), len(self._starts)):
                start = max(self._starts[i], position)
                stop = min(self._ends[i], window_end)
                if self._starts[i] >= window_end:
                    break
                if start < stop:
                    pfn = NVRAM_PFN_START + self._blocks[i] + start - self._starts[i]
                    pfns[start - pgoff : stop - pgoff] = np.arange(pfn, pfn + stop - start)
            position = window_end
        return pfns

    def _take_leaf(self, pgoff: Pgoff) -> None:
        """Read the leaf that covers *pgoff* into memory."""
        entries, first, end = self._inode.extents, 0, _PGOFF_END
        depth = self._inode.extent_depth
        _check_depth(self._inode)
        while depth:
            _check_index(self._inode, entries)
            i = max(int(np.searchsorted(entries["pgoff"], pgoff, side="right")) - 1, 0)
            first = max(first, int(entries["pgoff"][i])) if i else first
            if i + 1 < len(entries):
                end = min(end, int(entries["pgoff"][i + 1]))
            depth -= 1
            entries = load_node(
                self._nvram, self._seed, self._inode, Block(int(entries["block"][i])), depth
            )
        _check_extents(self._nvram, self._inode, entries)
        written = entries[(entries["flags"] & ExtentFlags.UNWRITTEN) == 0]
        self._starts = written["pgoff"].tolist()
        self._ends = (written["pgoff"] + written["nr_pages"]).tolist()
        self._blocks = written["block"].tolist()
        self._first, self._end = first, end


def may_hold(image: ImageReader, block: int, nr_pages: int) -> bool:
    """May some inode have the pages [block, block + nr_pages), as far as the superblock tells?"""
    end = block + nr_pages
    return 0 < block <= end <= image.size_bytes >> PAGE_SHIFT and not any(
        block < run_end and end > run_start for run_start, run_end in image.metadata_runs
    )


def load_node(
    nvram: ImageReader, seed: int, inode: DiskInode, block: Block, depth: int
) -> ExtentArray:
    """Read one node of *inode*'s extent tree; return its entries, checked for owner and depth.

    Raises: FormatError, DeviceError.
    """
    where = f"page {block}, extents of inode {inode.ino}"
    if not may_hold(nvram, block, 1):
        raise FormatError(f"{where}: outside of the image, or in its metadata")
    page = nvram.load(block << PAGE_SHIFT, PAGE_SIZE)
    ino, generation, found_depth, entries = decode_node(page, seed, where)
    if (ino, generation, found_depth) != (inode.ino, inode.generation, depth):
        raise FormatError(
            f"{where}: the node says inode {ino}, generation {generation}, depth {found_depth}; "
            f"expected generation {inode.generation}, depth {depth}"
        )
    return entries


def iter_nodes(
    nvram: ImageReader, seed: int, inode: DiskInode
) -> Iterator[tuple[Block, int, ExtentArray]]:
    """Yield (block, depth, entries) of every node of the tree, parents before their children.

    Raises: FormatError, DeviceError.
    """
    _check_depth(inode)
    if inode.flags & InodeFlags.INLINE or not inode.extent_depth:
        return
    waiting = [(Block(int(block)), inode.extent_depth - 1) for block in inode.extents["block"]]
    waiting.reverse()
    seen: set[Block] = set()
    while waiting:
        block, depth = waiting.pop()
        if block in seen:
            raise FormatError(f"inode {inode.ino}: extent node in page {block} is named twice")
        seen.add(block)
        entries = load_node(nvram, seed, inode, block, depth)
        yield block, depth, entries
        if depth:
            waiting += [(Block(int(b)), depth - 1) for b in entries["block"][::-1]]


def iter_extents(
    nvram: ImageReader, seed: int, inode: DiskInode
) -> Iterator[tuple[Pgoff, Block, int, int]]:
    """Yield (pgoff, block, nr_pages, flags) of every extent in file order.

    Raises: FormatError, DeviceError.
    """
    if inode.flags & InodeFlags.INLINE:
        return
    leaves: Iterable[ExtentArray] = [inode.extents]
    if inode.extent_depth:
        leaves = (e for _, depth, e in iter_nodes(nvram, seed, inode) if depth == 0)
    nr_left = nvram.size_bytes >> PAGE_SHIFT
    for entries in leaves:
        _check_extents(nvram, inode, entries)
        for extent in entries.tolist():
            nr_left -= extent[2] or 1
            if nr_left < 0:
                raise FormatError(
                    f"inode {inode.ino}: more pages than the image has: extents overlap"
                )
            yield extent


def _check_depth(inode: DiskInode) -> None:
    if inode.extent_depth > EXTENT_DEPTH_MAX:
        raise FormatError(
            f"inode {inode.ino}: an extent tree of depth {inode.extent_depth}, "
            f"at most {EXTENT_DEPTH_MAX} can be"
        )


def _check_index(inode: DiskInode, entries: ExtentArray) -> None:
    if not len(entries) or (entries["pgoff"][1:] <= entries["pgoff"][:-1]).any():
        raise FormatError(f"inode {inode.ino}: an index of extents is empty or out of order")


def _check_extents(nvram: ImageReader, inode: DiskInode, entries: ExtentArray) -> None:
    starts, blocks = entries["pgoff"], entries["block"]
    nr_pages = entries["nr_pages"].astype(np.int64)
    nr_image_pages = nvram.size_bytes >> PAGE_SHIFT
    # Differences, not sums: what a damaged image says may be at the end of what int64 holds.
    bad = (starts < 0) | (blocks <= 0) | (blocks > nr_image_pages - nr_pages)
    bad[1:] |= (starts[1:] < starts[:-1]) | (starts[1:] - starts[:-1] < nr_pages[:-1])
    for start, end in nvram.metadata_runs:
        bad |= (blocks < end) & (blocks > start - nr_pages)
    if bad.any():
        pgoff, block, nr_extent_pages, _ = entries[int(np.argmax(bad))].item()
        raise FormatError(
            f"inode {inode.ino}: extent of {nr_extent_pages} pages at file page {pgoff}, image "
            f"page {block}: outside of the image's {nr_image_pages} pages, in its metadata, or "
            f"out of order"
        )
