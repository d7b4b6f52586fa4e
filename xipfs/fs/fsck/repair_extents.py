"""Repairs of extents: order in one file, its tree of nodes, and one owner for each page."""

from collections.abc import Iterator

import numpy as np
from sortedcontainers import SortedDict

from xipfs.errors import FormatError, NoSpaceError
from xipfs.fs.fsck.extents import BLOCK_FIRST
from xipfs.fs.fsck.repairer import InodeRecord, Repairer, is_directory
from xipfs.fs.fsck.report import Invariant
from xipfs.fs.layout import metadata_areas
from xipfs.ondisk.dentry import decode_dir_page
from xipfs.ondisk.extent import EXTENT_DTYPE, ExtentArray, ExtentFlags
from xipfs.ondisk.inode import FILE_SIZE_BYTES_MAX, INO_INODE_FILE, InodeFlags
from xipfs.units import PAGE_SHIFT, bytes_to_pages

__all__ = [
    "Extent",
    "merged",
    "ordered_extents",
    "repair_extents",
    "repair_nr_pages",
    "repair_owners",
]

NR_COPIED_PAGES_MAX = 1 << 14
"""64 MiB: more pages that two files claim than this are no accident of one extent."""

_PGOFF_END = FILE_SIZE_BYTES_MAX >> PAGE_SHIFT
_UNWRITTEN = int(ExtentFlags.UNWRITTEN)
_NR_EXTENT_PAGES_MAX = (1 << 32) - 1

Extent = tuple[int, int, int, int]
"""(pgoff, block, nr_pages, flags), as in EXTENT_DTYPE."""


def repair_extents(repairer: Repairer) -> None:
    """I11, I12: keep the extents that can be read and can be, in a new tree if need be."""
    for ino in repairer.inos(Invariant.EXTENTS, Invariant.EXTENT_NODES):
        if ino == INO_INODE_FILE:
            continue  # `repair_inode_file`
        record = repairer.record(ino)
        entries, _ = repairer.extents(record)
        size_bytes = min(int(record["size_bytes"][0]), FILE_SIZE_BYTES_MAX)
        grows = is_directory(record) or record["flags"][0] & InodeFlags.ORPHAN
        extents = ordered_extents(
            entries.tolist(),
            repairer.disk.nr_pages,
            _PGOFF_END if grows else bytes_to_pages(size_bytes),
        )
        if is_directory(record):
            end = max((pgoff + nr for pgoff, _, nr, _ in extents), default=0)
            record["size_bytes"] = end << PAGE_SHIFT
        repairer.set_extents(record, merged(extents))
        repairer.put_record(ino, record)
        nr_lost = int(entries["nr_pages"].sum(dtype=np.int64)) - sum(e[2] for e in extents)
        repairer.did(
            Invariant.EXTENTS,
            f"inode {ino}: keeps {len(extents)} extents"
            + (f", {nr_lost} pages are now a hole" if nr_lost > 0 else ""),
        )


def ordered_extents(entries: list[Extent], nr_pages: int, file_end: int) -> list[Extent]:
    """Return what of *entries* can be: in an image of *nr_pages*, in order, without overlap.

    file_end: written extents are cut there. Of two that overlap the first of the lower pgoff stays
    as it is.
    """
    ordered: list[Extent] = []
    end = 0
    for pgoff, block, nr_extent_pages, flags in sorted(entries, key=lambda entry: entry[0]):
        flags &= _UNWRITTEN
        last = pgoff + nr_extent_pages
        if block < BLOCK_FIRST or block + nr_extent_pages > nr_pages - 1:
            continue
        if pgoff < 0 or last > _PGOFF_END:
            continue
        first = max(pgoff, end)
        last = last if flags else min(last, file_end)
        if first < last:
            ordered.append((first, block + first - pgoff, last - first, flags))
            end = last
    return ordered


def repair_nr_pages(repairer: Repairer) -> None:
    """I13: count the pages of an inode."""
    for ino in repairer.inos(Invariant.NR_PAGES):
        record = repairer.record(ino)
        entries, nodes = repairer.extents(record)
        nr_pages = int(entries["nr_pages"].sum(dtype=np.int64)) + len(nodes)
        record["nr_pages"] = nr_pages + int(record["nr_xattr_pages"][0])
        repairer.put_record(ino, record)
        repairer.did(Invariant.NR_PAGES, f"inode {ino}: {record['nr_pages'][0]} pages")


def repair_owners(repairer: Repairer) -> None:
    """I14: let each page have one owner, and who comes later a copy.

    First come the areas that the superblock names and the inode file, then what is sealed as its
    inode's own: nodes, attributes, pages of directories. Then the files, by their numbers. A file
    gets a copy, since nobody knows whose bytes they were: so nothing is lost. Of metadata, and
    where no pages are free or too many are claimed, it gets none, and has a hole there.
    """
    owners = _Owners()
    for area in metadata_areas(repairer.disk):
        owners.owned.add(area.block, area.nr_pages)
    entries, nodes = repairer.extents(repairer.record(int(INO_INODE_FILE)))
    for block in nodes:
        owners.owned.add(block, 1)
    for _, block, nr_pages, _ in entries.tolist():
        owners.owned.add(block, nr_pages)
    inos: list[int] = repairer.table.rows["ino"].tolist()
    homeless = {ino for ino in inos if not _own_sealed_pages(repairer, ino, owners)}
    owners.sealed = owners.owned.copy()
    for ino in inos:
        record = repairer.record(ino)
        extents, nr_copies, nr_lost_pages = _own_extents(repairer, record, owners)
        if nr_copies or nr_lost_pages or ino in homeless:
            repairer.set_extents(record, merged(extents))
            repairer.put_record(ino, record)
            repairer.did(
                Invariant.ONE_OWNER,
                f"inode {ino}: of pages that others hold, it has copies of {nr_copies}"
                + (f", and {nr_lost_pages} are now a hole" if nr_lost_pages else ""),
            )


class _Owners:
    """What has an owner. sealed: what had one before any file; dir_blocks: by directory."""

    __slots__ = ("dir_blocks", "nr_copied_pages", "owned", "sealed")

    def __init__(self) -> None:
        self.owned = _OwnedPages()
        self.sealed = _OwnedPages()
        self.dir_blocks: dict[int, set[int]] = {}
        self.nr_copied_pages = 0


def _own_extents(
    repairer: Repairer, record: InodeRecord, owners: _Owners
) -> tuple[list[Extent], int, int]:
    """Let a file own what has no owner; return its extents then, and pages copied and lost."""
    owned, is_dir = owners.owned, is_directory(record)
    dir_blocks = owners.dir_blocks.get(int(record["ino"][0]), set())
    extents: list[Extent] = []
    nr_copies = nr_lost_pages = 0
    entries, _ = repairer.extents(record)
    for pgoff, block, nr_pages, flags in entries.tolist():
        for start, end, is_owned in _split_at(owned, dir_blocks, block, nr_pages):
            here, nr_here = pgoff + start - block, end - start
            if start in dir_blocks:
                dir_blocks.remove(start)
                extents.append((here, start, 1, flags))
            elif not is_owned:
                owned.add(start, nr_here)
                extents.append((here, start, nr_here, flags))
            elif (
                not is_dir
                and not flags
                and not owners.sealed.overlaps(start, nr_here)
                and owners.nr_copied_pages + nr_here <= NR_COPIED_PAGES_MAX
                and (copies := _copy_pages(repairer, here, start, nr_here))
            ):
                extents += copies
                owners.nr_copied_pages += nr_here
                nr_copies += nr_here
            else:
                nr_lost_pages += nr_here
    return extents, nr_copies, nr_lost_pages


def _own_sealed_pages(repairer: Repairer, ino: int, owners: _Owners) -> bool:
    """Let *ino* own what is sealed as its own, but what has an owner already.

    Attributes that have one are dropped. Returns false if the nodes must go elsewhere.
    """
    owned = owners.owned
    record = repairer.record(ino)
    nr_xattr_pages = int(record["nr_xattr_pages"][0])
    if nr_xattr_pages:
        block = int(record["xattr_block"][0])
        if owned.overlaps(block, nr_xattr_pages):
            record["nr_pages"] -= np.uint64(nr_xattr_pages)
            record["nr_xattr_pages"] = record["xattr_block"] = 0
            repairer.put_record(ino, record)
            repairer.did(Invariant.ONE_OWNER, f"inode {ino}: attributes in others' pages dropped")
        owned.add(block, nr_xattr_pages)
    entries, nodes = repairer.extents(record)
    are_own = not any(owned.overlaps(block, 1) for block in nodes)
    for block in nodes:
        owned.add(block, 1)
    if is_directory(record):
        for _, start, nr_pages, _ in entries.tolist():
            for block in range(start, start + nr_pages):
                if not owned.overlaps(block, 1) and _is_own_dir_page(repairer, record, block):
                    owned.add(block, 1)
                    owners.dir_blocks.setdefault(ino, set()).add(block)
    return are_own


def _split_at(
    owned: "_OwnedPages", dir_blocks: set[int], block: int, nr_pages: int
) -> Iterator[tuple[int, int, bool]]:
    """As `split` of *owned*, with each of *dir_blocks* in a part of its own."""
    for start, end, is_owned in owned.split(block, nr_pages):
        if not (is_owned and dir_blocks):
            yield start, end, is_owned
            continue
        for page in range(start, end):
            yield page, page + 1, True


class _OwnedPages:
    """Disjoint runs of pages that have an owner."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: SortedDict = SortedDict()  # start -> end

    def copy(self) -> "_OwnedPages":
        other = _OwnedPages()
        other._runs = self._runs.copy()
        return other

    def add(self, block: int, nr_pages: int) -> None:
        """Take [block, block + nr_pages), also what is taken already."""
        for start, end, is_owned in list(self.split(block, nr_pages)):
            if not is_owned:
                self._runs[start] = end

    def overlaps(self, block: int, nr_pages: int) -> bool:
        return any(is_owned for _, _, is_owned in self.split(block, nr_pages))

    def split(self, block: int, nr_pages: int) -> list[tuple[int, int, bool]]:
        """Cut [block, block + nr_pages) into (start, end, whether it has an owner)."""
        parts: list[tuple[int, int, bool]] = []
        end = block + nr_pages
        position = block
        before = self._runs.bisect_right(block) - 1
        first = self._runs.keys()[before] if before >= 0 else block
        for start in self._runs.irange(first, end, inclusive=(True, False)):
            stop = self._runs[start]
            if stop <= position:
                continue
            if start > position:
                parts.append((position, start, False))
                position = start
            parts.append((position, min(stop, end), True))
            position = min(stop, end)
        if position < end:
            parts.append((position, end, False))
        return parts


def _is_own_dir_page(repairer: Repairer, record: InodeRecord, block: int) -> bool:
    """Is this page sealed as one of the directory?"""
    try:
        page = decode_dir_page(repairer.load_page(block), repairer.disk.seed, "")
    except FormatError:
        return False
    return (page.ino, page.generation) == (record["ino"][0], record["generation"][0])


def _copy_pages(repairer: Repairer, pgoff: int, block: int, nr_pages: int) -> list[Extent]:
    """Copy pages to free ones; return the extents of the copy, none where there is no room."""
    try:
        runs = repairer.allocate(nr_pages)
    except NoSpaceError:
        return []
    copies: list[Extent] = []
    for start, nr_run_pages in runs:
        for i in range(nr_run_pages):
            repairer.put_page(start + i, repairer.load_page(block + i))
        copies.append((pgoff, start, nr_run_pages, 0))
        pgoff += nr_run_pages
        block += nr_run_pages
    return copies


def merged(extents: list[Extent]) -> ExtentArray:
    """Return *extents*, in order, as an array in which neighbours are one."""
    rows: list[Extent] = []
    for pgoff, block, nr_pages, flags in extents:
        if rows:
            last_pgoff, last_block, nr_last, last_flags = rows[-1]
            follows = (pgoff, block, flags) == (
                last_pgoff + nr_last,
                last_block + nr_last,
                last_flags,
            )
            if follows and nr_last + nr_pages <= _NR_EXTENT_PAGES_MAX:
                rows[-1] = (last_pgoff, last_block, nr_last + nr_pages, flags)
                continue
        rows.append((pgoff, block, nr_pages, flags))
    return np.array(rows, EXTENT_DTYPE)
