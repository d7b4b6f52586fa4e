"""fsck of extents: those in the inodes, by numpy for many at once, and the trees of nodes below."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import FormatError
from xipfs.fs.extent import EXTENT_DEPTH_MAX
from xipfs.fs.fsck.overlay import ReadableImage
from xipfs.fs.fsck.pages import KIND_DATA, KIND_NODE, KIND_UNWRITTEN
from xipfs.fs.fsck.report import Findings, Invariant
from xipfs.fs.fsck.volume import check_reserved
from xipfs.ondisk.extent import (
    EXTENT_DTYPE,
    EXTENT_NODE,
    NR_INLINE_EXTENTS,
    ExtentArray,
    ExtentFlags,
    decode_node,
)
from xipfs.ondisk.inode import FILE_SIZE_BYTES_MAX, InodeFlags
from xipfs.ondisk.superblock import DiskSuperblock
from xipfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

__all__ = [
    "BLOCK_FIRST",
    "EXTENT_ROW_DTYPE",
    "Tree",
    "check_extent_nodes",
    "check_extents",
    "collect_extents",
]

EXTENT_ROW_DTYPE = np.dtype(
    [
        ("index", np.int64),
        ("pgoff", np.int64),
        ("block", np.int64),
        ("nr_pages", np.int64),
        ("flags", np.int64),
        ("kind", np.int64),
    ]
)
"""One extent or node of one of many inodes: index is that of the inode in the records at hand.

kind: as in `fs.fsck.pages`.
"""

BLOCK_FIRST = 2
"""The first page of an image that a file can have."""

_PGOFF_END = FILE_SIZE_BYTES_MAX >> PAGE_SHIFT


class Tree(NamedTuple):
    """The extent tree of one inode. entries: EXTENT_DTYPE, of all leaves in file order.

    sound: whether all nodes could be read, so that these are all its extents.
    """

    entries: ExtentArray
    node_blocks: list[int]
    sound: bool


def collect_extents(
    nvram: ReadableImage, disk: DiskSuperblock, records: NDArray[np.void], findings: Findings
) -> tuple[NDArray[np.void], NDArray[np.void], NDArray[np.bool_]]:
    """Return all extents of *records* (INODE.dtype), the nodes they stand in, and who is sound.

    extents, nodes: EXTENT_ROW_DTYPE, the extents sorted by index and then as in the file; sound:
    bool, one for each record, false if some of its extents could not be read.
    """
    inline_bytes = (records["flags"] & InodeFlags.INLINE) != 0
    sound = (records["nr_extents"] <= NR_INLINE_EXTENTS) & ~inline_bytes
    in_inode = sound & (records["extent_depth"] == 0)
    nr_extents = np.where(in_inode, records["nr_extents"], 0)
    payloads = np.frombuffer(
        np.ascontiguousarray(records["payload"]).tobytes(), EXTENT_DTYPE
    ).reshape(-1, NR_INLINE_EXTENTS)
    taken = np.arange(NR_INLINE_EXTENTS) < nr_extents[:, None]
    parts = [_rows(np.nonzero(taken)[0], payloads[taken])]
    nodes: list[tuple[int, int, int, int, int, int]] = []
    for index in np.flatnonzero(sound & (records["extent_depth"] > 0)).tolist():
        top = payloads[index, : records["nr_extents"][index]]
        tree = check_extent_nodes(nvram, disk, records[index], top, findings)
        sound[index] = tree.sound
        nodes += [(index, 0, block, 1, 0, KIND_NODE) for block in tree.node_blocks]
        parts.append(_rows(np.full(len(tree.entries), index), tree.entries))
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows["index"], kind="stable")]
    return rows, np.array(nodes, EXTENT_ROW_DTYPE), sound | inline_bytes


def check_extent_nodes(
    nvram: ReadableImage,
    disk: DiskSuperblock,
    record: np.void,
    top: ExtentArray,
    findings: Findings,
) -> Tree:
    """I12, for one inode: walk its tree, whose highest index entries are *top*."""
    ino, depth = int(record["ino"]), int(record["extent_depth"])
    nr_findings = len(findings.found)

    def wrong(text: str) -> None:
        findings.add(Invariant.EXTENT_NODES, f"inode {ino}: {text}", ino)

    if depth > EXTENT_DEPTH_MAX or not len(top):
        wrong(f"{len(top)} index entries at depth {depth}, which is at most {EXTENT_DEPTH_MAX}")
        return Tree(top[:0], [], sound=False)
    leaves: list[ExtentArray] = [top[:0]]
    nr_extents = 0
    seen: set[int] = set()
    # (block, depth, file pages that its entries may start in), the next one last. The walk goes
    # down first, so that at most one node of each depth has its children in this list.
    waiting = _children(top, depth - 1, 0, _PGOFF_END, wrong)
    while waiting:
        block, depth, first, end = waiting.pop()
        if not BLOCK_FIRST <= block < disk.nr_pages - 1 or block in seen:
            wrong(f"page {block} as a node is outside of the image, or named twice")
            continue
        seen.add(block)
        where = f"page {block}, extents of inode {ino}"
        page = nvram.load(block << PAGE_SHIFT, PAGE_SIZE)
        try:
            node_ino, generation, node_depth, entries = decode_node(page, disk.seed, where)
        except FormatError as exc:
            wrong(str(exc))
            continue
        if (node_ino, generation, node_depth) != (ino, record["generation"], depth):
            wrong(
                f"page {block} as a node of depth {depth} says inode {node_ino}, "
                f"generation {generation}, depth {node_depth}"
            )
            continue
        check_reserved(np.frombuffer(page, EXTENT_NODE.dtype, 1), where, findings, ino)
        starts = entries["pgoff"]
        if not len(entries) or starts[0] < first or starts[-1] >= end:
            wrong(f"page {block} as a node for file pages [{first}, {end}) holds others, or none")
        if depth:
            waiting += _children(entries, depth - 1, first, end, wrong)
            continue
        leaves.append(entries)
        nr_extents += len(entries)
        if nr_extents > disk.nr_pages:
            wrong(f"more extents than the {disk.nr_pages} pages of the image")
            break
    return Tree(np.concatenate(leaves), sorted(seen), len(findings.found) == nr_findings)


def check_extents(
    disk: DiskSuperblock, records: NDArray[np.void], rows: NDArray[np.void], findings: Findings
) -> NDArray[np.bool_]:
    """I11, for the extents of many inodes: return which *rows* lie in the image."""
    pgoff, block, nr_pages = rows["pgoff"], rows["block"], rows["nr_pages"]
    in_image = (nr_pages > 0) & (block >= BLOCK_FIRST) & (block <= disk.nr_pages - 1 - nr_pages)
    in_file = (pgoff >= 0) & (pgoff <= _PGOFF_END - nr_pages)
    known = (rows["flags"] & ~int(ExtentFlags.UNWRITTEN)) == 0
    in_order = np.ones(len(rows), bool)
    in_order[1:] = (rows["index"][1:] != rows["index"][:-1]) | (
        (pgoff[1:] > pgoff[:-1]) & (pgoff[1:] - nr_pages[:-1] >= pgoff[:-1])
    )
    size_bytes = records["size_bytes"][rows["index"]]
    file_end = ((np.minimum(size_bytes, FILE_SIZE_BYTES_MAX) + PAGE_MASK) >> PAGE_SHIFT).astype(
        np.int64
    )
    orphan = (records["flags"][rows["index"]] & InodeFlags.ORPHAN) != 0  # being cut, perhaps
    before_end = orphan | (rows["kind"] == KIND_UNWRITTEN) | (pgoff <= file_end - nr_pages)
    inos = records["ino"][rows["index"]]
    for sound, text in (
        (in_image, "outside of the image"),
        (in_file, "outside of what a file can be"),
        (known, "with unknown flags"),
        (in_order | ~in_file, "before, or over, the one in front of it"),
        (before_end | ~in_file, "written behind the end of the file"),
    ):
        for i in np.flatnonzero(~sound).tolist():
            findings.add(
                Invariant.EXTENTS,
                f"inode {inos[i]}: extent of {nr_pages[i]} pages at file page {pgoff[i]}, "
                f"image page {block[i]}: {text}",
                int(inos[i]),
            )
    return in_image


def _children(
    entries: ExtentArray, depth: int, first: int, end: int, wrong: Callable[[str], None]
) -> list[tuple[int, int, int, int]]:
    """Return (block, depth, first, end) of what index *entries* name, the last entry first."""
    starts = entries["pgoff"].tolist()
    if (entries["pgoff"][1:] <= entries["pgoff"][:-1]).any() or (starts and starts[0] < first):
        wrong("index entries out of order")
    if entries["nr_pages"].any() or entries["flags"].any():
        wrong("index entries with nr_pages or flags")
    rows = zip(entries["block"].tolist(), starts, [*starts[1:], end], strict=False)
    return [(block, depth, start, stop) for block, start, stop in rows][::-1]


def _rows(index: NDArray[np.int64], entries: ExtentArray) -> NDArray[np.void]:
    rows = np.empty(len(entries), EXTENT_ROW_DTYPE)
    rows["index"] = index
    for name in ("pgoff", "block", "nr_pages", "flags"):
        rows[name] = entries[name]
    unwritten = (rows["flags"] & int(ExtentFlags.UNWRITTEN)) != 0
    rows["kind"] = np.where(unwritten, KIND_UNWRITTEN, KIND_DATA)
    return rows
