"""Repairs of names: directories are made again from their entries, the nameless get to /lost+found.

There is one way to change a directory, `put_entries`: all its pages are made again, from fresh
pages as long as there are any, and its inode names them in one store. Keys may get other sequences
by that, so what was at a position for readdir may be at another.
"""

import stat
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from xipfs.errors import FormatError, NoSpaceError
from xipfs.fs.dentry import name_legal
from xipfs.fs.fsck.repair_extents import Extent, merged
from xipfs.fs.fsck.repair_inode_file import grow_inode_file
from xipfs.fs.fsck.repairer import InodeRecord, Repairer, is_directory
from xipfs.fs.fsck.report import Invariant
from xipfs.fs.pack import pack_directory
from xipfs.ondisk.dentry import (
    DIR_PAGE,
    DIR_SLOT_DTYPE,
    SEQUENCE_BITS,
    decode_dir_page,
    name_key,
)
from xipfs.ondisk.inode import INO_MAX, INO_ROOT, INODE
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Ino

__all__ = [
    "DirEntry",
    "put_entries",
    "repair_connected",
    "repair_directories",
    "repair_entries",
    "repair_nlink",
    "repair_nr_entries",
    "repair_parents",
]

LOST_FOUND = b"lost+found"
_NR_NAMES_OF_A_HASH_MAX = 1 << SEQUENCE_BITS


class DirEntry(NamedTuple):
    """A name in a directory. is_sure: it stood in a sealed page."""

    name: bytes
    ino: int
    d_type: int
    is_sure: bool = True


# The pages of one directory


def repair_directories(repairer: Repairer) -> None:
    """I17 to I19: build a directory anew from all entries that can be read.

    Of a damaged page those are taken whose name has the hash that their key says, and whose inode
    has not got all its names.
    """
    for ino in repairer.inos(Invariant.DIR_PAGES, Invariant.DIR_KEYS, Invariant.DIR_NAMES):
        record = repairer.record(ino)
        entries = _usable(repairer, list(_read_entries(repairer, record)))
        put_entries(repairer, ino, record, entries)
        nr_said = int(record["nr_entries"][0])
        repairer.did(
            Invariant.DIR_PAGES,
            f"inode {ino}: a directory of {len(entries)} names, which said it had {nr_said}",
        )


def put_entries(repairer: Repairer, ino: int, record: InodeRecord, entries: list[DirEntry]) -> None:
    """Make *entries* those of directory *ino*. Raises: NoSpaceError."""
    old, _ = repairer.extents(record)
    pages = pack_directory(
        repairer.disk.seed,
        repairer.disk.hash_key,
        ino=ino,
        generation=int(record["generation"][0]),
        entries=[entry[:3] for entry in entries],
    )
    try:
        runs = repairer.allocate(len(pages))
    except NoSpaceError:
        runs = [(block, nr_pages) for _, block, nr_pages, _ in old.tolist()]
        if sum(nr_pages for _, nr_pages in runs) < len(pages):
            raise
    blocks = [block + i for block, nr_pages in runs for i in range(nr_pages)][: len(pages)]
    extents: list[Extent] = [(pgoff, block, 1, 0) for pgoff, block in enumerate(blocks)]
    changed = record.copy()
    changed["size_bytes"] = len(pages) << PAGE_SHIFT
    changed["nr_entries"] = len(entries)
    repairer.set_extents(changed, merged(extents))
    for block, page in zip(blocks, pages, strict=True):
        repairer.put_page(block, page)
    repairer.put_record(ino, changed)


def _read_entries(repairer: Repairer, record: InodeRecord) -> Iterator[DirEntry]:
    """Yield all entries in the pages of a directory, sealed pages first."""
    owner = (int(record["ino"][0]), int(record["generation"][0]))
    extents, _ = repairer.extents(record)
    damaged: list[bytes] = []
    for _, start, nr_pages, _ in extents.tolist():
        for block in range(start, start + nr_pages):
            data = repairer.load_page(block)
            try:
                page = decode_dir_page(data, repairer.disk.seed, "")
            except FormatError:
                damaged.append(data)
                continue
            if (page.ino, page.generation) != owner or page.level:
                continue
            for slot in page.entries:
                name_start = int(slot["name_offset"])
                name = data[name_start : name_start + int(slot["name_size_bytes"])]
                yield DirEntry(name, int(slot["ino"]), int(slot["d_type"]))
    for data in damaged:
        yield from _salvage(repairer, data)


def _salvage(repairer: Repairer, data: bytes) -> Iterator[DirEntry]:
    """Yield from a damaged page the slots whose key is that of their name."""
    nr_slots = (PAGE_SIZE - DIR_PAGE.size_bytes) // DIR_SLOT_DTYPE.itemsize
    for slot in np.frombuffer(data, DIR_SLOT_DTYPE, nr_slots, DIR_PAGE.size_bytes):
        start, size_bytes = int(slot["name_offset"]), int(slot["name_size_bytes"])
        name = data[start : start + size_bytes]
        if len(name) != size_bytes or not name_legal(name):
            continue
        key = int(slot["key"]) & -_NR_NAMES_OF_A_HASH_MAX
        if key == name_key(name, repairer.disk.hash_key):
            yield DirEntry(name, int(slot["ino"]), int(slot["d_type"]), is_sure=False)


def _usable(repairer: Repairer, found: list[DirEntry]) -> list[DirEntry]:
    """Return what can be in a directory: legal names, once, of inodes in use, by their type."""
    table, links = repairer.table, repairer.check.links
    inos = np.array([entry.ino & ((1 << 63) - 1) for entry in found], np.int64)
    rows = table.find(inos).tolist()
    names: set[bytes] = set()
    nr_of_hash: Counter[int] = Counter()
    nr_new_names: Counter[int] = Counter()
    usable: list[DirEntry] = []
    for entry, row in zip(found, rows, strict=True):
        if row < 0 or entry.ino >> 63 or not name_legal(entry.name) or entry.name in names:
            continue
        d_type = int(table.rows["mode"][row]) >> 12
        if not entry.is_sure and links is not None:
            nr_missing = int(table.rows["nlink"][row] - links.nr_names[row])
            if stat.S_ISDIR(d_type << 12):
                nr_missing = 1 - int(links.nr_names[row])
            if d_type != entry.d_type or nr_new_names[row] >= nr_missing:
                continue
            nr_new_names[row] += 1
        key = name_key(entry.name, repairer.disk.hash_key)
        if nr_of_hash[key] == _NR_NAMES_OF_A_HASH_MAX:
            continue
        nr_of_hash[key] += 1
        names.add(entry.name)
        usable.append(entry._replace(d_type=d_type, is_sure=True))
    return usable


# Entries


def repair_entries(repairer: Repairer) -> None:
    """I20: drop names of inodes that are not in use, and correct what names say of the type."""
    for ino in repairer.inos(Invariant.DIR_ENTRIES):
        record = repairer.record(ino)
        before = list(_read_entries(repairer, record))
        after = _usable(repairer, before)
        put_entries(repairer, ino, record, after)
        kept = {entry.name for entry in after}
        for entry in before:
            if entry.name not in kept:
                text = f"inode {ino}: dropped the name {entry.name!r}, of inode {entry.ino}"
                repairer.did(Invariant.DIR_ENTRIES, text)
        nr_others = len(set(after) - set(before))
        if nr_others:
            text = f"inode {ino}: {nr_others} names say another type now"
            repairer.did(Invariant.DIR_ENTRIES, text)


def repair_nr_entries(repairer: Repairer) -> None:
    """I21: count the names in a directory."""
    for ino in repairer.inos(Invariant.NR_ENTRIES):
        record = repairer.record(ino)
        record["nr_entries"] = sum(1 for _ in _read_entries(repairer, record))
        repairer.put_record(ino, record)
        repairer.did(Invariant.NR_ENTRIES, f"inode {ino}: {record['nr_entries'][0]} names")


def repair_parents(repairer: Repairer) -> None:
    """I22: leave a directory the name that its parent has for it, or else the first; root none.

    Where it has one name only, that tells its parent.
    """
    table, links = repairer.table, repairer.check.links
    wanted = set(repairer.inos(Invariant.PARENTS))
    if links is None:
        return
    names: dict[int, list[tuple[int, bytes]]] = {}
    for parent_ino in table.rows["ino"][table.is_dir].tolist():
        for entry in _read_entries(repairer, repairer.record(parent_ino)):
            if entry.ino in wanted:
                names.setdefault(entry.ino, []).append((parent_ino, entry.name))
    dropped: dict[int, set[bytes]] = {}
    for ino in sorted(wanted):
        record = repairer.record(ino)
        found = names.get(ino, [])
        said = [place for place in found if place[0] == record["parent_ino"][0]]
        kept = (said or found)[:1] if ino != INO_ROOT else []
        for parent_ino, name in found:
            if (parent_ino, name) not in kept:
                dropped.setdefault(parent_ino, set()).add(name)
                text = f"inode {ino}: dropped its name {name!r} in inode {parent_ino}"
                repairer.did(Invariant.PARENTS, text)
        parent_ino = kept[0][0] if kept else int(INO_ROOT)
        if record["parent_ino"][0] != parent_ino:
            record["parent_ino"] = parent_ino
            repairer.put_record(ino, record)
            repairer.did(Invariant.PARENTS, f"inode {ino}: its parent is inode {parent_ino}")
    for parent_ino, gone in dropped.items():
        _drop_names(repairer, parent_ino, gone)


def _drop_names(repairer: Repairer, ino: int, names: set[bytes]) -> None:
    record = repairer.record(ino)
    entries = [entry for entry in _read_entries(repairer, record) if entry.name not in names]
    put_entries(repairer, ino, record, entries)


# The tree


def repair_connected(repairer: Repairer) -> None:
    """I23: make a root if there is none, cut circles, and name the nameless in /lost+found."""
    table, links = repairer.table, repairer.check.links
    wanted = repairer.inos(Invariant.CONNECTED)
    root = table.find(np.array([INO_ROOT]))[0]
    if root < 0 or not table.is_dir[root]:
        _make_root(repairer)
        return
    if links is None:
        return
    rows = table.find(np.array(wanted)).tolist()
    nameless = [ino for ino, row in zip(wanted, rows, strict=True) if not links.nr_names[row]]
    if nameless:
        _name_in_lost_found(repairer, nameless)
        return
    in_circle = dict(zip(rows, wanted, strict=True))
    while in_circle:
        row, ino = in_circle.popitem()
        parent = int(links.parent[row])
        parent_ino = int(table.rows["ino"][parent])
        record = repairer.record(parent_ino)
        entries = list(_read_entries(repairer, record))
        put_entries(repairer, parent_ino, record, [e for e in entries if e.ino != ino])
        repairer.did(
            Invariant.CONNECTED,
            f"inode {ino}: dropped its name in inode {parent_ino}, which is below it",
        )
        while parent != row:  # the rest of this circle is none any more
            in_circle.pop(parent, None)
            parent = int(links.parent[parent])


def _make_root(repairer: Repairer) -> None:
    record = repairer.record(int(INO_ROOT))
    generation = record["generation"][0] if record["mode"][0] else repairer.next_generation()
    _put_new_directory(repairer, int(INO_ROOT), int(generation), int(INO_ROOT), 0o755)
    repairer.did(Invariant.CONNECTED, f"inode {INO_ROOT}: a root directory was made")


def _name_in_lost_found(repairer: Repairer, inos: list[int]) -> None:
    lost_found = _find_lost_found(repairer)
    if lost_found in inos:  # it was found itself: it gets its name first
        inos = [ino for ino in inos if ino != lost_found]
    record = repairer.record(lost_found)
    entries = list(_read_entries(repairer, record))
    names = {entry.name for entry in entries}
    for ino in inos:
        name = _free_name(b"#%d" % ino, names)
        names.add(name)
        found = repairer.record(ino)
        entries.append(DirEntry(name, ino, int(found["mode"][0]) >> 12))
        if is_directory(found):
            found["parent_ino"] = lost_found
            repairer.put_record(ino, found)
        text = f"inode {ino}: is now /{LOST_FOUND.decode()}/{name.decode()}"
        repairer.did(Invariant.CONNECTED, text)
    put_entries(repairer, lost_found, record, entries)


def _find_lost_found(repairer: Repairer) -> int:
    """Return the directory lost+found in the root, made if need be. Raises: NoSpaceError."""
    root = repairer.record(int(INO_ROOT))
    entries = list(_read_entries(repairer, root))
    for entry in entries:
        if entry.name == LOST_FOUND and stat.S_ISDIR(entry.d_type << 12):
            return entry.ino
    name = _free_name(LOST_FOUND, {entry.name for entry in entries})
    ino = _take_ino(repairer)
    _put_new_directory(repairer, ino, repairer.next_generation(), int(INO_ROOT), 0o700)
    entries.append(DirEntry(name, ino, stat.S_IFDIR >> 12))
    put_entries(repairer, int(INO_ROOT), root, entries)
    repairer.did(Invariant.CONNECTED, f"inode {ino}: made as the directory /{name.decode()}")
    return ino


def _free_name(name: bytes, names: set[bytes]) -> bytes:
    number, free_name = 1, name
    while free_name in names:
        number += 1
        free_name = b"%b-%d" % (name, number)
    return free_name


def _take_ino(repairer: Repairer) -> int:
    """Return an inode that is free, or one more; the lists are chained anew later."""
    free = repairer.table.free["ino"]
    if len(free):
        return int(free[0])
    state = repairer.state()
    ino = int(state.ino_end)
    if ino > INO_MAX:
        raise NoSpaceError(f"{repairer.image.path}: no inode is free for /{LOST_FOUND.decode()}")
    if repairer.record_offset(ino) is None:
        grow_inode_file(repairer)
    repairer.put_state(state._replace(ino_end=Ino(ino + 1)))
    return ino


def _put_new_directory(
    repairer: Repairer, ino: int, generation: int, parent_ino: int, mode: int
) -> None:
    """Make *ino* an empty directory. Raises: NoSpaceError."""
    record = np.zeros(1, INODE.dtype)
    record["ino"] = ino
    record["generation"] = generation
    record["mode"] = stat.S_IFDIR | mode
    record["nlink"] = 2
    record["parent_ino"] = parent_ino
    for name in ("atime_ns", "mtime_ns", "ctime_ns", "btime_ns"):
        record[name] = repairer.now_ns
    put_entries(repairer, ino, record, [])


def repair_nlink(repairer: Repairer) -> None:
    """I24: count the names of an inode, and the directories in it."""
    table, links = repairer.table, repairer.check.links
    if links is None:
        return
    for ino in repairer.inos(Invariant.NLINK):
        row = int(table.find(np.array([ino]))[0])
        record = repairer.record(ino)
        is_dir = is_directory(record)
        record["nlink"] = 2 + links.nr_subdirs[row] if is_dir else links.nr_names[row]
        repairer.put_record(ino, record)
        repairer.did(Invariant.NLINK, f"inode {ino}: {record['nlink'][0]} links")
