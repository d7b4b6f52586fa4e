"""ExtentMap: from a page of a file to a page of the image, by the inode's extents.

Small files have all extents in the inode. For others the map keeps one leaf of the tree in memory,
the one last used, and reads another when the page asked for lies outside of it.

Invariants:
    I1  Whatever is returned lies inside the image (checked when a leaf is taken in).
    I2  An unwritten extent is a hole to its readers; only who fills it asks for it.
"""

from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import FormatError
from xipfs.ondisk.extent import ExtentArray, ExtentFlags, decode_node
from xipfs.ondisk.inode import FILE_SIZE_BYTES_MAX, DiskInode, InodeFlags
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
    "check_depth",
    "check_extents",
    "check_index",
    "iter_extents",
    "iter_nodes",
    "load_node",
    "may_hold",
]

EXTENT_DEPTH_MAX = 4
"""Enough for 5 * 169^4 extents: about as many as the largest file has pages."""

_PGOFF_END = 1 << 64
_FILE_PAGES_MAX = FILE_SIZE_BYTES_MAX >> PAGE_SHIFT
_UNWRITTEN = int(ExtentFlags.UNWRITTEN)


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

    __slots__ = (
        "_blocks",
        "_end",
        "_ends",
        "_first",
        "_inode",
        "_nodes",
        "_nvram",
        "_seed",
        "_starts",
        "_unwritten",
    )

    def __init__(self, nvram: ImageReader, seed: int, inode: DiskInode) -> None:
        self._nvram = nvram
        self._seed = seed
        self._inode = inode
        self._first = self._end = 0  # the window of the leaf in memory: empty
        self._nodes: list[Block] = []  # the way to it
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._blocks: list[int] = []
        self._unwritten: list[tuple[int, int, int, int]] = []

    def renew(self, inode: DiskInode, changed: Container[int]) -> None:
        """Go on with *inode*, the same file after a transaction that *changed* these blocks.

        Most change no extents, and the leaf stays in memory.
        """
        before, self._inode = self._inode, inode
        if inode.payload != before.payload or any(block in changed for block in self._nodes):
            self._first = self._end = 0

    def find_block(self, pgoff: Pgoff) -> Block | None:
        """Return the image page of file page *pgoff*, None for a hole. Raises: FormatError."""
        if not self._first <= pgoff < self._end:
            self._take_leaf(pgoff)
        i = bisect_right(self._starts, pgoff) - 1
        if i >= 0 and pgoff < self._ends[i]:
            return Block(self._blocks[i] + pgoff - self._starts[i])
        return None

    def pieces(self, pgoff: Pgoff, nr_pages: int) -> list[tuple[Pgoff, Block | None, int]]:
        """Return these file pages as (pgoff, block, nr_pages), in order; block None for holes.

        Raises: FormatError.
        """
        found: list[tuple[Pgoff, Block | None, int]] = []
        position, end = int(pgoff), pgoff + nr_pages
        while position < end:
            if not self._first <= position < self._end:
                self._take_leaf(Pgoff(position))
            i = bisect_right(self._starts, position) - 1
            if i >= 0 and position < self._ends[i]:
                stop = min(self._ends[i], end, self._end)
                block: Block | None = Block(self._blocks[i] + position - self._starts[i])
            else:
                stop = min(end, self._end)
                if i + 1 < len(self._starts):
                    stop = min(stop, self._starts[i + 1])
                block = None
            found.append((Pgoff(position), block, stop - position))
            position = stop
        return found

    def find_unwritten(self, pgoff: Pgoff, nr_pages: int) -> list[tuple[Pgoff, Block, int]]:
        """Return which of these file pages have a page of the image that was never written.

        Returns: (pgoff, block, nr_pages), in order. Raises: FormatError.
        """
        found: list[tuple[Pgoff, Block, int]] = []
        position, end = int(pgoff), pgoff + nr_pages
        while position < end:
            if not self._first <= position < self._end:
                self._take_leaf(Pgoff(position))
            for first, block, nr_extent_pages, _ in self._unwritten:
                start, stop = max(first, position), min(first + nr_extent_pages, end, self._end)
                if start < stop:
                    found.append((Pgoff(start), Block(block + start - first), stop - start))
            position = self._end
        return found

    def goal(self, pgoff: Pgoff) -> Block:
        """Return where in the image file page *pgoff* best is: behind the page before it.

        0 if there is no such page. Raises: FormatError.
        """
        before = self.find_block(Pgoff(pgoff - 1)) if pgoff else None
        return Block(0) if before is None else Block(before + 1)

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
        check_depth(self._inode)
        nodes = []
        while depth:
            check_index(self._inode, entries)
            i = max(int(np.searchsorted(entries["pgoff"], pgoff, side="right")) - 1, 0)
            first = max(first, int(entries["pgoff"][i])) if i else first
            if i + 1 < len(entries):
                end = min(end, int(entries["pgoff"][i + 1]))
            depth -= 1
            nodes.append(Block(int(entries["block"][i])))
            entries = load_node(self._nvram, self._seed, self._inode, nodes[-1], depth)
        rows = entries.tolist()
        check_extents(self._nvram, self._inode, rows)
        written = [row for row in rows if not row[3] & _UNWRITTEN]
        self._unwritten = [row for row in rows if row[3] & _UNWRITTEN] if written != rows else []
        self._starts = [row[0] for row in written]
        self._ends = [row[0] + row[2] for row in written]
        self._blocks = [row[1] for row in written]
        self._first, self._end = first, end
        self._nodes = nodes


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
    check_depth(inode)
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
        rows = entries.tolist()
        check_extents(nvram, inode, rows)
        nr_left -= sum(row[2] for row in rows)
        if nr_left < 0:
            raise FormatError(f"inode {inode.ino}: more pages than the image has: extents overlap")
        yield from rows


def check_depth(inode: DiskInode) -> None:
    """Refuse a tree that is deeper than any can be. Raises: FormatError."""
    if inode.extent_depth > EXTENT_DEPTH_MAX:
        raise FormatError(
            f"inode {inode.ino}: an extent tree of depth {inode.extent_depth}, "
            f"at most {EXTENT_DEPTH_MAX} can be"
        )


def check_index(inode: DiskInode, entries: ExtentArray) -> None:
    """Refuse an index that leads nowhere, or back. Raises: FormatError."""
    if not len(entries) or (entries["pgoff"][1:] <= entries["pgoff"][:-1]).any():
        raise FormatError(f"inode {inode.ino}: an index of extents is empty or out of order")


def check_extents(
    nvram: ImageReader, inode: DiskInode, rows: list[tuple[int, int, int, int]]
) -> None:
    """Refuse extents, in a leaf or inode, of pages that no file can have. Raises: FormatError."""
    nr_image_pages = nvram.size_bytes >> PAGE_SHIFT
    metadata_runs = nvram.metadata_runs
    end = 0
    for pgoff, block, nr_pages, _ in rows:
        block_end = block + nr_pages
        bad = pgoff < end or nr_pages < 1 or block <= 0 or block_end > nr_image_pages
        for run_start, run_end in metadata_runs:
            if block < run_end and block_end > run_start:
                bad = True
        end = pgoff + nr_pages
        if bad or end > _FILE_PAGES_MAX:
            raise FormatError(
                f"inode {inode.ino}: extent of {nr_pages} pages at file page {pgoff}, image "
                f"page {block}: outside of the image's {nr_image_pages} pages, in its metadata, "
                f"or out of order"
            )
