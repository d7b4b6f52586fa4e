"""Changes to the extents of one inode: a B-tree whose root is the inode's payload.

    inode = insert_extent(tx, inode, pgoff, block, nr_pages)        pages that were holes
    inode = mark_written(tx, inode, pgoff, nr_pages)                UNWRITTEN no more
    inode, nr_freed = remove_extents(tx, inode, first, end)         holes again, blocks free

Each takes the inode as it stands in the transaction and returns it changed; it is put into the
transaction, too. All three are one walk: down to the leaf, an edit of its extents, and back up as
far as something changed.

    payload  | index | index |        5 entries; too many: they move down to a node, one level more
                 |                    one child with at most 5: its entries move up
    node     | index | index | ..     169; too many: split; none: the node is freed
                 |
    leaf     | extent | extent | ..

An index entry always names the lowest page below it. Nodes are changed in their place, which the
journal makes safe; a node that is not full is left so.
"""

import itertools
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from xipfs.errors import RangeError, bug_on
from xipfs.fs.extent import (
    EXTENT_DEPTH_MAX,
    check_depth,
    check_extents,
    check_index,
    load_node,
)
from xipfs.ondisk.extent import (
    EXTENT_DTYPE,
    NR_INLINE_EXTENTS,
    NR_NODE_EXTENTS,
    ExtentArray,
    ExtentFlags,
    encode_node,
)
from xipfs.ondisk.inode import PAYLOAD_SIZE_BYTES, DiskInode
from xipfs.units import PAGE_SHIFT, Block

if TYPE_CHECKING:
    from xipfs.fs.transaction import Transaction

__all__ = ["end_of_extents", "insert_extent", "mark_written", "remove_extents"]

_NR_PAGES_MAX = (1 << 32) - 1
"""What nr_pages of one extent can say."""

_PGOFF_END = 1 << 33
_UNLIMITED = 1 << 62
_ROW = struct.Struct("<qqII")
"""One row of EXTENT_DTYPE."""

Edit: TypeAlias = Callable[[ExtentArray, int, int], ExtentArray]
"""(extents of a leaf, first and end of the file pages that are the leaf's) -> its new extents."""


class _Step(NamedTuple):
    """A node on the way down, and which of its entries was taken. block: None for the payload."""

    block: Block | None
    entries: ExtentArray
    i: int


def insert_extent(
    tx: "Transaction", inode: DiskInode, pgoff: int, block: int, nr_pages: int, flags: int = 0
) -> DiskInode:
    """Map file pages [pgoff, pgoff + nr_pages), a hole so far, to those of the image from *block*.

    The extent is merged with its neighbours of the same leaf where it can be.
    Raises: NoSpaceError for a node of the tree, RangeError for more extents than can be.
    Bug: some of these pages are mapped already.
    """
    new = (pgoff, block, nr_pages, flags)
    if not inode.extent_depth:
        inserted = _insert_inline(inode, new)
        if inserted is not None:
            tx.put_inode(inserted)
            return inserted

    def edit(entries: ExtentArray, _first: int, _end: int) -> ExtentArray:
        i = int(np.searchsorted(entries["pgoff"], pgoff))
        # Five rows at most: what is left of the new one, and right of it.
        low, high = max(i - 1, 0), min(i + 1, len(entries))
        rows = [*entries[low:i].tolist(), new, *entries[i:high].tolist()]
        for before, after in itertools.pairwise(rows):
            bug_on(before[0] + before[2] > after[0], "extents overlap", before=before, after=after)
        return _replaced(entries, low, high, _merged(rows))

    inode, nr_nodes = _edit_leaf(tx, inode, pgoff, edit)
    inode = inode._replace(nr_pages=inode.nr_pages + nr_pages + nr_nodes)
    tx.put_inode(inode)
    return inode


def _insert_inline(inode: DiskInode, new: tuple[int, int, int, int]) -> DiskInode | None:
    """Return *inode* with *new* among the extents of its payload; None if they are too many.

    What `insert_extent` does for most files, and for every page that is appended to one.
    """
    rows = list(_ROW.iter_unpack(inode.payload[: inode.nr_extents * _ROW.size]))
    rows.append(new)
    if inode.nr_extents and rows[-2] > new:
        rows.sort()
    for before, after in itertools.pairwise(rows):
        if before[0] + before[2] > after[0]:
            bug_on(True, "extents overlap", before=before, after=after)
    rows = _merged(rows)
    if len(rows) > NR_INLINE_EXTENTS:
        return None
    return inode._replace(
        nr_pages=inode.nr_pages + new[2],
        nr_extents=len(rows),
        payload=b"".join([_ROW.pack(*row) for row in rows]).ljust(PAYLOAD_SIZE_BYTES, b"\0"),
    )


def mark_written(tx: "Transaction", inode: DiskInode, pgoff: int, nr_pages: int) -> DiskInode:
    """Take UNWRITTEN from file pages [pgoff, pgoff + nr_pages), all of which are mapped.

    Raises: as `insert_extent`.
    """
    position, end = pgoff, pgoff + nr_pages

    def edit(entries: ExtentArray, _first: int, leaf_end: int) -> ExtentArray:
        nonlocal position
        low, high = _overlapping(entries, pgoff, end)
        rows: list[tuple[int, int, int, int]] = []
        # One neighbour on each side, since what becomes written may go together with it.
        low, high = max(low - 1, 0), min(high + 1, len(entries))
        for row in entries[low:high].tolist():
            before, inside, after = _cut(row, pgoff, end)
            inside = [(p, b, n, f & ~int(ExtentFlags.UNWRITTEN)) for p, b, n, f in inside]
            rows += before + inside + after
        position = leaf_end
        return _replaced(entries, low, high, _merged(rows))

    while position < end:
        inode, nr_nodes = _edit_leaf(tx, inode, position, edit)
        inode = inode._replace(nr_pages=inode.nr_pages + nr_nodes)
    tx.put_inode(inode)
    return inode


def remove_extents(
    tx: "Transaction",
    inode: DiskInode,
    first: int,
    end: int = _PGOFF_END,
    *,
    nr_extents_max: int | None = None,
    nr_pages_max: int | None = None,
) -> tuple[DiskInode, int]:
    """Make a hole of the file pages [first, end), and free their blocks; the last ones first.

    nr_extents_max, nr_pages_max: stop when so many were freed or cut, so that the transaction
    stays small; whoever asks again in the next one goes on.

    Returns: the inode and the number of pages that were freed: 0 when there is nothing left.
    Raises: NoSpaceError where an extent is cut in two and that takes another node.
    """
    nr_extents_left = _UNLIMITED if nr_extents_max is None else nr_extents_max
    nr_pages_left = _UNLIMITED if nr_pages_max is None else nr_pages_max
    bug_on(nr_extents_left <= 0 or nr_pages_left <= 0, "nothing may be removed", ino=inode.ino)
    nr_freed = 0

    def edit(entries: ExtentArray, leaf_first: int, _end: int) -> ExtentArray:
        nonlocal end, nr_extents_left, nr_pages_left, nr_freed
        low, high = _overlapping(entries, first, end)
        rows: list[tuple[int, int, int, int]] = []
        kept = high
        while kept > low and nr_extents_left and nr_pages_left:
            kept -= 1
            row = entries[kept].item()
            start = max(first, min(row[0] + row[2], end) - nr_pages_left)
            before, inside, after = _cut(row, start, end)
            for _, block, nr_pages, _ in inside:
                tx.free(Block(block), nr_pages)
                nr_freed += nr_pages
                nr_pages_left -= nr_pages
            nr_extents_left -= 1
            rows = before + after + rows
        end = leaf_first
        return _replaced(entries, kept, high, rows)

    while first < end and nr_extents_left and nr_pages_left:
        nr_freed_before = nr_freed
        inode, nr_nodes = _edit_leaf(tx, inode, end - 1, edit)
        nr_pages = inode.nr_pages - (nr_freed - nr_freed_before) + nr_nodes
        inode = inode._replace(nr_pages=nr_pages)
    tx.put_inode(inode)
    return inode, nr_freed


def end_of_extents(tx: "Transaction", inode: DiskInode) -> int:
    """Return one more than the highest file page that is mapped, 0 if there is none."""
    entries = _walk(tx, inode, _PGOFF_END)[0][-1].entries
    return int(entries["pgoff"][-1]) + int(entries["nr_pages"][-1]) if len(entries) else 0


def _edit_leaf(
    tx: "Transaction", inode: DiskInode, pgoff: int, edit: Edit
) -> tuple[DiskInode, int]:
    """Let *edit* change the leaf that *pgoff* belongs to; return (inode, nodes more than before).

    The inode is not put: its nr_pages is still to be set.
    """
    way, first, end = _walk(tx, inode, pgoff)
    step = way.pop()
    entries = edit(step.entries, first, end)
    nr_nodes = 0
    depth = 0
    fits_above = False
    # From the leaf up: each node's entries become none, one or two nodes, which the index above
    # names instead of the one before.
    while way:
        if entries is step.entries:
            return inode, nr_nodes
        block = step.block
        assert block is not None, "the payload is the first step"
        parts = _parts(step.entries, entries)
        names = []
        for number, part in enumerate(parts):
            node = encode_node(
                tx.sb.seed, ino=inode.ino, generation=inode.generation, depth=depth, entries=part
            )
            if number:
                node_block = _new_node(tx, Block(block), node)
            else:
                node_block = block
                tx.store(block << PAGE_SHIFT, node)
            names.append((int(part["pgoff"][0]), int(node_block), 0, 0))
        nr_nodes += len(parts) - 1
        if not parts:
            tx.free(block, 1)
        fits_above = len(parts) == 1 and len(parts[0]) <= NR_INLINE_EXTENTS
        step = way.pop()
        entries = step.entries
        if names != [entries[step.i].item()]:
            entries = _replaced(entries, step.i, step.i + 1, names)
        depth += 1
    if entries is not step.entries or (fits_above and len(entries) == 1):
        inode, nr_more = _put_payload(tx, inode, depth, entries)
        nr_nodes += nr_more
    return inode, nr_nodes


def _put_payload(
    tx: "Transaction", inode: DiskInode, depth: int, entries: ExtentArray
) -> tuple[DiskInode, int]:
    """Make *entries* those of the payload, in a tree higher or lower if they ask for it."""
    nr_nodes = 0
    if len(entries) > NR_INLINE_EXTENTS:
        if depth == EXTENT_DEPTH_MAX:
            raise RangeError(f"inode {inode.ino}: its extents are more than a tree can hold")
        node = encode_node(
            tx.sb.seed, ino=inode.ino, generation=inode.generation, depth=depth, entries=entries
        )
        block = _new_node(tx, Block(0), node)
        entries = np.array([(entries["pgoff"][0], block, 0, 0)], EXTENT_DTYPE)
        depth += 1
        nr_nodes += 1
    while depth and len(entries) <= 1:
        if not len(entries):
            depth = 0
            break
        block = Block(int(entries["block"][0]))
        below = load_node(tx, tx.sb.seed, inode, block, depth - 1)
        if len(below) > NR_INLINE_EXTENTS:
            break
        entries = below
        tx.free(block, 1)
        depth -= 1
        nr_nodes -= 1
    return (
        inode._replace(
            extent_depth=depth,
            nr_extents=len(entries),
            payload=entries.tobytes().ljust(PAYLOAD_SIZE_BYTES, b"\0"),
        ),
        nr_nodes,
    )


def _walk(tx: "Transaction", inode: DiskInode, pgoff: int) -> tuple[list[_Step], int, int]:
    """Return the way from the payload to the leaf of *pgoff*, and what pages are that leaf's.

    Raises: FormatError, DeviceError.
    """
    entries, first, end = inode.extents, 0, _PGOFF_END
    block: Block | None = None
    way = []
    check_depth(inode)
    for depth in range(inode.extent_depth - 1, -1, -1):
        check_index(inode, entries)
        starts = entries["pgoff"]
        i = max(int(np.searchsorted(starts, pgoff, side="right")) - 1, 0)
        if i:
            first = int(starts[i])
        if i + 1 < len(entries):
            end = int(starts[i + 1])
        way.append(_Step(block, entries, i))
        block = Block(int(entries["block"][i]))
        entries = load_node(tx, tx.sb.seed, inode, block, depth)
    check_extents(tx, inode, entries.tolist())
    way.append(_Step(block, entries, 0))
    return way, first, end


def _parts(old: ExtentArray, new: ExtentArray) -> list[ExtentArray]:
    """Return *new* as the entries of no, one or two nodes."""
    if len(new) <= NR_NODE_EXTENTS:
        return [new] if len(new) else []
    # A file that grows leaves full nodes behind; any other split leaves room on both sides.
    appended = len(old) and new["pgoff"][-1] > old["pgoff"][-1]
    middle = NR_NODE_EXTENTS if appended else len(new) // 2
    return [new[:middle], new[middle:]]


def _new_node(tx: "Transaction", near: Block, node: bytes) -> Block:
    [(block, _)] = tx.allocate(1, near)
    tx.new_page(block, node)
    return block


def _overlapping(entries: ExtentArray, first: int, end: int) -> tuple[int, int]:
    """Return [low, high): which of *entries* have pages of [first, end)."""
    starts = entries["pgoff"]
    low = int(np.searchsorted(starts, first, side="right"))
    if low and int(starts[low - 1]) + int(entries["nr_pages"][low - 1]) > first:
        low -= 1
    return low, max(low, int(np.searchsorted(starts, end)))


_Rows: TypeAlias = list[tuple[int, int, int, int]]


def _cut(row: tuple[int, int, int, int], first: int, end: int) -> tuple[_Rows, _Rows, _Rows]:
    """Return what of one extent lies before, in and behind the pages [first, end): 0 or 1 each."""
    pgoff, block, nr_pages, flags = row
    bounds = [pgoff, *(min(max(cut, pgoff), pgoff + nr_pages) for cut in (first, end))]
    before, inside, after = (
        [(start, block + start - pgoff, stop - start, flags)] if start < stop else []
        for start, stop in zip(bounds, [*bounds[1:], pgoff + nr_pages], strict=True)
    )
    return before, inside, after


def _merged(rows: _Rows) -> _Rows:
    """Return *rows* with those that go on where the one before ends made one."""
    merged: _Rows = []
    for pgoff, block, nr_pages, flags in rows:
        if merged:
            last_pgoff, last_block, last_nr_pages, last_flags = merged[-1]
            if (
                pgoff == last_pgoff + last_nr_pages
                and block == last_block + last_nr_pages
                and flags == last_flags
                and nr_pages + last_nr_pages <= _NR_PAGES_MAX
            ):
                merged[-1] = (last_pgoff, last_block, last_nr_pages + nr_pages, flags)
                continue
        merged.append((pgoff, block, nr_pages, flags))
    return merged


def _replaced(entries: ExtentArray, low: int, high: int, rows: _Rows) -> ExtentArray:
    """Return *entries* with [low, high) replaced by *rows*; the same array if nothing changes."""
    if entries[low:high].tolist() == rows:
        return entries
    # Joined as bytes: numpy takes its time to find that all three have one dtype.
    parts = [entries[:low].tobytes(), *(_ROW.pack(*row) for row in rows), entries[high:].tobytes()]
    return np.frombuffer(b"".join(parts), EXTENT_DTYPE)
