"""fsck of names: the tree of pages of each directory, the names in it, and who is reached by them.

Directories are walked one after the other in the order of their numbers, not from the root: so
each page is looked at once, whatever the names make of the tree, and what is reached is counted
afterwards from three numbers for each inode (`Links`).
"""

import stat
from bisect import bisect_right
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import FormatError
from xipfs.fs.dentry import DIR_LEVEL_MAX, name_legal
from xipfs.fs.fsck.inodes import InodeTable
from xipfs.fs.fsck.overlay import ReadableImage
from xipfs.fs.fsck.pages import KIND_DATA
from xipfs.fs.fsck.report import Findings, Invariant
from xipfs.fs.fsck.volume import check_reserved
from xipfs.ondisk.dentry import (
    DIR_PAGE,
    KEY_MAX,
    SEQUENCE_BITS,
    DiskDirPage,
    decode_dir_page,
    name_key,
)
from xipfs.ondisk.inode import INO_ROOT, InodeFlags
from xipfs.ondisk.superblock import DiskSuperblock
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = [
    "Links",
    "check_connected",
    "check_dir_entries",
    "check_dir_keys",
    "check_dir_names",
    "check_dir_pages",
    "check_nlink",
    "check_nr_entries",
    "check_parents",
    "scan_directories",
]

_KEY_FIRST = 1 << SEQUENCE_BITS
_SEQUENCE_MASK = _KEY_FIRST - 1
_NONE = -1


class Links:
    """What names make of the inodes: int64 arrays, one element for each row of the InodeTable.

    nr_names: how many names an inode has; nr_subdirs: how many directories are named in it;
    parent: the row of the directory that names it, of directories only, else -1. damaged: bool,
    the directories that could not be read to their end.
    """

    __slots__ = ("damaged", "nr_names", "nr_subdirs", "parent")

    def __init__(self, nr_inodes: int) -> None:
        self.nr_names = np.zeros(nr_inodes, np.int64)
        self.nr_subdirs = np.zeros(nr_inodes, np.int64)
        self.parent = np.full(nr_inodes, _NONE)
        self.damaged = np.zeros(nr_inodes, bool)


class _Directory:
    """One directory in the course of its check."""

    __slots__ = ("blocks", "generation", "ino", "last_hash", "names", "pgoffs", "row")

    def __init__(self, table: InodeTable, row: int, extents: NDArray[np.void]) -> None:
        self.row = row
        self.ino = int(table.rows["ino"][row])
        self.generation = int(table.rows["generation"][row])
        # Its extents, for `find_block`: first pages, and (end, image page) of each.
        self.pgoffs: list[int] = extents["pgoff"].tolist()
        ends = extents["pgoff"] + extents["nr_pages"]
        self.blocks: list[tuple[int, int]] = list(
            zip(ends.tolist(), extents["block"].tolist(), strict=True)
        )
        # All names with the last hash that was seen.
        self.last_hash = 0
        self.names: list[bytes] = []

    def find_block(self, pgoff: int) -> int | None:
        """Return the image page of page *pgoff*, None for a hole."""
        i = bisect_right(self.pgoffs, pgoff) - 1
        if i < 0 or pgoff >= self.blocks[i][0]:
            return None
        return self.blocks[i][1] + pgoff - self.pgoffs[i]

    @property
    def nr_pages(self) -> int:
        """Pages that it has in the image."""
        return sum(end - start for start, (end, _) in zip(self.pgoffs, self.blocks, strict=True))


def scan_directories(
    nvram: ReadableImage,
    disk: DiskSuperblock,
    table: InodeTable,
    claims: NDArray[np.void],
    findings: Findings,
    progress: Callable[[int, int], None],
) -> Links:
    """I17 to I21: look at all directories; return who names whom.

    claims: CLAIM_DTYPE, of all inodes; those of one inode in the order of its file.
    """
    links = Links(len(table.rows))
    dirs = np.flatnonzero(table.is_dir)
    extents = claims[
        (claims["kind"] == KIND_DATA) & np.isin(claims["ino"], table.rows["ino"][dirs])
    ]
    extents = extents[np.argsort(extents["ino"], kind="stable")]
    starts = np.searchsorted(extents["ino"], table.rows["ino"][dirs])
    ends = np.searchsorted(extents["ino"], table.rows["ino"][dirs], side="right")
    for number, (row, start, end) in enumerate(
        zip(dirs.tolist(), starts.tolist(), ends.tolist(), strict=True), 1
    ):
        directory = _Directory(table, row, extents[start:end])
        nr_entries = check_dir_pages(nvram, disk, table, directory, links, findings)
        if not links.damaged[row]:
            check_nr_entries(table, row, nr_entries, findings)
        progress(number, len(dirs))
    return links


def check_dir_pages(
    nvram: ReadableImage,
    disk: DiskSuperblock,
    table: InodeTable,
    directory: _Directory,
    links: Links,
    findings: Findings,
) -> int:
    """I17, for one directory: walk its tree, and have I18 to I20 checked in every page.

    Returns how many entries were seen.
    """

    def wrong(text: str) -> None:
        links.damaged[directory.row] = True
        findings.add(Invariant.DIR_PAGES, f"inode {directory.ino}: {text}", directory.ino)

    size_bytes = int(table.rows["size_bytes"][directory.row])
    nr_file_pages = directory.blocks[-1][0] if directory.blocks else 0
    if size_bytes != nr_file_pages << PAGE_SHIFT:
        wrong(f"a directory of {size_bytes} bytes, its last page ends at {nr_file_pages} pages")
    nr_entries = 0
    seen: set[int] = set()
    # (page, its level or None for any, keys that it may have), the next one last.
    waiting: list[tuple[int, int | None, int, int]] = [(0, None, _KEY_FIRST, KEY_MAX + 1)]
    while waiting:
        pgoff, level, key_first, key_end = waiting.pop()
        block = directory.find_block(pgoff)
        if block is None or pgoff in seen:
            wrong(f"directory page {pgoff} is a hole, or named twice")
            continue
        seen.add(pgoff)
        where = f"directory page {pgoff} of inode {directory.ino}"
        data = nvram.load(block << PAGE_SHIFT, PAGE_SIZE)
        try:
            page = decode_dir_page(data, disk.seed, where)
        except FormatError as exc:
            wrong(str(exc))
            continue
        if (page.ino, page.generation) != (directory.ino, directory.generation):
            wrong(f"page {pgoff} belongs to inode {page.ino}, generation {page.generation}")
            continue
        if page.level != level and (level is not None or page.level > DIR_LEVEL_MAX):
            wrong(f"page {pgoff} has level {page.level}")
            continue
        check_reserved(np.frombuffer(data, DIR_PAGE.dtype, 1), where, findings, page.ino)
        check_reserved(page.entries, where, findings, page.ino)
        check_dir_keys(page, where, key_first, key_end, findings)
        if page.level:
            pgoffs = page.entries["pgoff"].tolist()
            # The first entry's key bounds nothing: whatever is lower goes there, too.
            bounds = [key_first, *page.entries["key"][1:].tolist(), key_end]
            children = zip(pgoffs, bounds, bounds[1:], strict=False)
            waiting += [(child, page.level - 1, low, high) for child, low, high in children][::-1]
        else:
            nr_entries += len(page.entries)
            check_dir_names(disk, page, where, directory, findings)
            check_dir_entries(table, page, where, directory, links, findings)
    if len(seen) != directory.nr_pages:
        wrong(f"{directory.nr_pages} pages, its tree has {len(seen)}")
    return nr_entries


def check_dir_keys(
    page: DiskDirPage, where: str, key_first: int, key_end: int, findings: Findings
) -> None:
    """I18, for the order: keys rise, and lie in [key_first, key_end), as the index above says."""
    keys = page.entries["key"]
    if page.level:
        keys = keys[1:]  # the first entry's key bounds nothing
    if (page.entries["key"][1:] <= page.entries["key"][:-1]).any():
        findings.add(Invariant.DIR_KEYS, f"{where}: keys out of order", page.ino)
    elif len(keys) and not (key_first <= keys[0] and keys[-1] < key_end):
        findings.add(
            Invariant.DIR_KEYS,
            f"{where}: keys {keys[0]:#x} to {keys[-1]:#x}, not in [{key_first:#x}, {key_end:#x})",
            page.ino,
        )


def check_dir_names(
    disk: DiskSuperblock,
    page: DiskDirPage,
    where: str,
    directory: _Directory,
    findings: Findings,
) -> None:
    """I18 for keys and names, I19: the names of one leaf."""
    starts = page.entries["name_offset"].astype(np.int64)
    ends = starts + page.entries["name_size_bytes"]
    order = np.argsort(starts, kind="stable")
    if (
        (starts < page.names_start).any()
        or (ends > PAGE_SIZE).any()
        or (starts[order][1:] < ends[order][:-1]).any()
    ):
        findings.add(
            Invariant.DIR_NAMES,
            f"{where}: names outside of their place, or one in another",
            page.ino,
        )
    rows = zip(page.entries["key"].tolist(), starts.tolist(), ends.tolist(), strict=True)
    for slot, (key, start, end) in enumerate(rows):
        name = bytes(page.page[start:end])
        if not name_legal(name):
            text = f"{where}: slot {slot} has the impossible name {name!r}"
            findings.add(Invariant.DIR_NAMES, text, page.ino)
        name_hash = name_key(name, disk.hash_key)
        if key & ~_SEQUENCE_MASK != name_hash:
            findings.add(
                Invariant.DIR_KEYS,
                f"{where}: {name!r} has key {key:#x}, its hash is {name_hash:#x}",
                page.ino,
            )
        # Equal names have equal hashes, so they are neighbours, perhaps in two leaves.
        if name_hash != directory.last_hash:
            directory.last_hash = name_hash
            directory.names.clear()
        elif name in directory.names:
            findings.add(Invariant.DIR_NAMES, f"{where}: {name!r} comes twice", page.ino)
        directory.names.append(name)


def check_dir_entries(
    table: InodeTable,
    page: DiskDirPage,
    where: str,
    directory: _Directory,
    links: Links,
    findings: Findings,
) -> None:
    """I20: the entries of one leaf; take note of what they name."""
    rows = table.find(page.entries["ino"].astype(np.int64))  # from 2^63 on: negative, so nobody's
    known = rows >= 0
    modes = table.rows["mode"][rows]
    agrees = page.entries["d_type"] == modes >> 12
    for slot in np.flatnonzero(~known | ~agrees).tolist():
        start = int(page.entries["name_offset"][slot])
        name = bytes(page.page[start : start + int(page.entries["name_size_bytes"][slot])])
        findings.add(
            Invariant.DIR_ENTRIES,
            f"{where}: {name!r} stands for inode {page.entries['ino'][slot]}, "
            + (
                f"of type {modes[slot] >> 12:#o}, and says {page.entries['d_type'][slot]:#o}"
                if known[slot]
                else "which is not in use"
            ),
            page.ino,
        )
    rows = rows[known]
    np.add.at(links.nr_names, rows, 1)
    subdirs = rows[(modes[known] & 0o170000) == stat.S_IFDIR]
    links.nr_subdirs[directory.row] += len(subdirs)
    links.parent[subdirs] = directory.row


def check_nr_entries(table: InodeTable, row: int, nr_entries: int, findings: Findings) -> None:
    """I21, for one directory."""
    if table.rows["nr_entries"][row] != nr_entries:
        findings.add(
            Invariant.NR_ENTRIES,
            f"inode {table.rows['ino'][row]}: {table.rows['nr_entries'][row]} entries, "
            f"its pages have {nr_entries}",
            int(table.rows["ino"][row]),
        )


def check_parents(table: InodeTable, links: Links, findings: Findings) -> None:
    """I22: what a directory says of its parent, and how often it is named."""
    rows = table.rows
    is_dir = table.is_dir
    is_root = rows["ino"] == INO_ROOT
    findings.add_inodes(
        Invariant.PARENTS, is_root & (links.nr_names > 0), rows["ino"], "the root has a name"
    )
    findings.add_inodes(
        Invariant.PARENTS,
        is_dir & ~is_root & (links.nr_names > 1),
        rows["ino"],
        "a directory with more than one name",
    )
    parent_ino = np.where(is_root, INO_ROOT, rows["ino"][links.parent])
    named_once = is_dir & (is_root | (links.nr_names == 1))
    for row in np.flatnonzero(named_once & (rows["parent_ino"] != parent_ino)).tolist():
        findings.add(
            Invariant.PARENTS,
            f"inode {rows['ino'][row]}: says its parent is inode {rows['parent_ino'][row]}, "
            f"which is inode {parent_ino[row]}",
            int(rows["ino"][row]),
        )


def check_connected(table: InodeTable, links: Links, findings: Findings) -> None:
    """I23: there is a root, everything else has a name, and directories make no circle."""
    rows = table.rows
    root = int(table.find(np.array([INO_ROOT]))[0])
    if root < 0 or not table.is_dir[root]:
        findings.add(
            Invariant.CONNECTED, f"inode {INO_ROOT}: there is no root directory", int(INO_ROOT)
        )
        return
    nameless = (links.nr_names == 0) & ~_is_unlinked(table)
    nameless[root] = False
    findings.add_inodes(Invariant.CONNECTED, nameless, rows["ino"], "no directory names it")
    # Where one ends up by going to the parent again and again: each round doubles the steps.
    up = np.where(links.parent == _NONE, np.arange(len(rows)), links.parent)
    up[root] = root
    for _ in range(len(rows).bit_length()):
        up = up[up]
    # At the root, at one that has no parent, or for ever in a circle.
    in_circle = np.zeros(len(rows), bool)
    in_circle[up[(up != root) & (links.parent[up] != _NONE)]] = True
    findings.add_inodes(
        Invariant.CONNECTED, in_circle, rows["ino"], "a directory in a circle of directories"
    )


def check_nlink(table: InodeTable, links: Links, findings: Findings) -> None:
    """I24: of a directory 2 and one for each directory in it, of all others their names."""
    rows = table.rows
    is_dir = table.is_dir
    unlinked = _is_unlinked(table)
    nlink = np.where(is_dir & ~unlinked, 2 + links.nr_subdirs, links.nr_names)
    # Of an inode without any name I23 has spoken.
    known = ~links.damaged & (unlinked | (links.nr_names > 0) | (rows["ino"] == INO_ROOT))
    for row in np.flatnonzero(known & (rows["nlink"] != nlink)).tolist():
        findings.add(
            Invariant.NLINK,
            f"inode {rows['ino'][row]}: nlink is {rows['nlink'][row]}, {nlink[row]} were counted",
            int(rows["ino"][row]),
        )


def _is_unlinked(table: InodeTable) -> NDArray[np.bool_]:
    """Return which inodes may be without a name: orphans but those that are only to be cut."""
    orphan = (table.rows["flags"] & int(InodeFlags.ORPHAN)) != 0
    unlinked: NDArray[np.bool_] = orphan & (table.rows["nlink"] == 0)
    return unlinked
