"""Changes to the names in one directory: insert, replace and remove in its B-tree of pages.

    directory = insert_entry(tx, directory, b"hosts", ino, d_type)
    directory = replace_entry(tx, directory, b"hosts", ino, d_type)
    directory = remove_entry(tx, directory, b"hosts")

Each takes the directory as it stands in the transaction and returns it changed (entries, size,
pages, mtime, ctime); it is put into the transaction, too. nlink is the caller's.

    insert    a leaf that is full is split; its right half goes to a new page, which the index
              above names from then on; that one may be split, too. Page 0 stays the root: what
              was in it moves to two new pages
    remove    a leaf that becomes empty leaves the tree, and so does an index; a root with one
              child takes that child's place. The last page of the file moves to where the page
              was, so a directory has no holes and shrinks at its end

No entry's key ever changes, so positions of readdir hold whatever happens to other entries.
"""

import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xipfs.errors import (
    ExistsError,
    FormatError,
    NameTooLongError,
    NoEntryError,
    NoSpaceError,
    bug_on,
)
from xipfs.fs.dentry import DIR_LEVEL_MAX, DirEntry, load_dir_page
from xipfs.fs.extent import ExtentMap
from xipfs.fs.extentwriter import end_of_extents, insert_extent, remove_extents
from xipfs.ondisk.dentry import (
    DIR_PAGE,
    DIR_SLOT_DTYPE,
    NAME_SIZE_BYTES_MAX,
    NR_INDEX_ENTRIES,
    SEQUENCE_BITS,
    DiskDirPage,
    encode_dir_index,
    encode_dir_leaf,
    leaf_size_bytes,
    name_key,
)
from xipfs.ondisk.inode import DiskInode
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Block, Ino, Pgoff

if TYPE_CHECKING:
    from xipfs.fs.transaction import Transaction

__all__ = ["find_entry", "insert_entry", "make_directory", "remove_entry", "replace_entry"]

_SEQUENCE_MASK = (1 << SEQUENCE_BITS) - 1
_SLOT_SIZE = DIR_SLOT_DTYPE.itemsize

Slot = tuple[int, int, int, bytes]
"""(key, ino, d_type, name), as `encode_dir_leaf` takes them."""


def make_directory(tx: "Transaction", inode: DiskInode) -> DiskInode:
    """Give a new directory its page 0, without entries. Raises: NoSpaceError."""
    tree = _Tree(tx, inode)
    tree.add_page(tree.encode_leaf([]))
    tx.put_inode(tree.inode)
    return tree.inode


def find_entry(tx: "Transaction", directory: DiskInode, name: bytes) -> DirEntry | None:
    """Return the entry *name*, None if there is none. Raises: NameTooLongError, FormatError."""
    found = _Tree(tx, directory).find(name)
    if found.slot is None:
        return None
    key, ino, _, _, d_type = found.way[-1].page.entries[found.slot].item()
    return DirEntry(name, Ino(ino), d_type, key)


def insert_entry(
    tx: "Transaction", directory: DiskInode, name: bytes, ino: int, d_type: int
) -> DiskInode:
    """Let *name* stand for *ino*, whose mode >> 12 is *d_type*.

    Raises: ExistsError, NameTooLongError; NoSpaceError for pages, or for the 129th name of one
            hash; FormatError, DeviceError on a bad image.
    """
    tree = _Tree(tx, directory)
    found = tree.find(name)
    if found.slot is not None:
        raise ExistsError(f"{os.fsdecode(name)!r} exists in inode {directory.ino}")
    if found.free_key is None:
        raise NoSpaceError(f"inode {directory.ino}: too many names with the hash of {name!r}")
    tree.insert((found.free_key, ino, d_type, name))
    return tree.finish(nr_entries=1)


def replace_entry(
    tx: "Transaction", directory: DiskInode, name: bytes, ino: int, d_type: int
) -> DiskInode:
    """Let *name*, which exists, stand for another inode. Raises: NoEntryError, .."""
    tree = _Tree(tx, directory)
    way, slot = tree.find_existing(name)
    page = bytearray(way[-1].page.page)
    slots = np.frombuffer(page, DIR_SLOT_DTYPE, slot + 1, DIR_PAGE.size_bytes)
    slots["ino"][slot], slots["d_type"][slot] = ino, d_type
    tree.store(way[-1].pgoff, tree.seal(page))
    return tree.finish(nr_entries=0)


def remove_entry(tx: "Transaction", directory: DiskInode, name: bytes) -> DiskInode:
    """Take *name* out of the directory. Raises: NoEntryError; FormatError, DeviceError."""
    tree = _Tree(tx, directory)
    way, slot = tree.find_existing(name)
    if len(way) > 1 and len(way[-1].page.entries) == 1:
        tree.drop_leaf(way)
    else:
        tree.store(way[-1].pgoff, tree.seal(_without_slot(way[-1].page, slot)))
    return tree.finish(nr_entries=-1)


class _Step(NamedTuple):
    """A page on the way from the root to a leaf. i: which child was taken; of the leaf 0."""

    pgoff: Pgoff
    page: DiskDirPage
    i: int


class _Found(NamedTuple):
    """Where a name is: slot *slot* of the leaf at the end of *way*; None if there is none.

    free_key: the key that a new entry of this name takes, None if all are taken.
    """

    way: list[_Step]
    slot: int | None
    free_key: int | None


class _Tree:
    """The pages of one directory within one transaction. inode: the directory as it is now.

    While the transaction has not touched the directory, its pages are those that the superblock's
    DirReader keeps, checked; after that they are read from the transaction.
    """

    __slots__ = ("_extents", "_is_touched", "_seed", "_tx", "inode")

    def __init__(self, tx: "Transaction", inode: DiskInode) -> None:
        self._tx = tx
        self._seed = tx.sb.seed
        self.inode = inode
        found = tx.sb.find_inode(inode.ino)
        # The very record that is in memory: any change would have made another one.
        if found is not None and found.disk is inode:
            self._is_touched = False
            self._extents = found.extents
        else:
            self._set_inode(inode)

    def find(self, name: bytes) -> _Found:
        """Look for *name* in all leaves that its keys may be in."""
        if len(name) > NAME_SIZE_BYTES_MAX:
            raise NameTooLongError(f"a name of {len(name)} bytes, {NAME_SIZE_BYTES_MAX} may be")
        first = name_key(name, self._tx.sb.disk.hash_key)
        last = first | _SEQUENCE_MASK
        free_key = first
        way: list[_Step] | None = self.way(first)
        while way is not None:
            leaf = way[-1].page
            keys = leaf.entries["key"]
            for slot in range(int(np.searchsorted(keys, first)), len(keys)):
                key = int(keys[slot])
                if key > last:
                    way = None
                    break
                if leaf.name(slot) == name:
                    return _Found(way, slot, None)
                if key == free_key:
                    free_key += 1
            else:
                way = self._next_leaf(way, last)
        return _Found([], None, None if free_key > last else free_key)

    def find_existing(self, name: bytes) -> tuple[list[_Step], int]:
        """Return the way to the leaf of *name* and its slot there. Raises: NoEntryError."""
        found = self.find(name)
        if found.slot is None:
            raise NoEntryError(f"no {os.fsdecode(name)!r} in inode {self.inode.ino}")
        return found.way, found.slot

    def way(self, key: int) -> list[_Step]:
        """Return the way from the root to the leaf that *key* is or would be in."""
        page = self._load(Pgoff(0))
        if page.level > DIR_LEVEL_MAX:
            raise FormatError(f"inode {self.inode.ino}: a directory of {page.level} levels")
        pgoff = Pgoff(0)
        way = []
        while page.level:
            i = max(int(np.searchsorted(page.entries["key"], key, side="right")) - 1, 0)
            way.append(_Step(pgoff, page, i))
            pgoff, page = self._child(page, i)
        way.append(_Step(pgoff, page, 0))
        return way

    def insert(self, new: Slot) -> None:
        """Put *new* into the leaf of its key."""
        way = self.way(new[0])
        leaf = way[-1].page
        position = int(np.searchsorted(leaf.entries["key"], new[0]))
        page = _with_slot(leaf, position, new)
        if page is not None:
            self.store(way[-1].pgoff, self.seal(page))
            return
        slots = _slots(leaf)
        slots.insert(position, new)
        size_bytes = leaf_size_bytes(sum(len(name) for *_, name in slots), len(slots))
        if size_bytes <= PAGE_SIZE:  # names that went have left gaps
            self.store(way[-1].pgoff, self.encode_leaf(slots))
            return
        middle = _middle(slots)
        left, right = slots[:middle], slots[middle:]
        self._split(
            way, (left[0][0], self.encode_leaf(left)), (right[0][0], self.encode_leaf(right))
        )

    def drop_leaf(self, way: list[_Step]) -> None:
        """Take the leaf at the end of *way*, which is not the root, out of the tree."""
        dropped = []
        entries: list[tuple[int, int]] = []
        while not entries and len(way) > 1:
            dropped.append(way.pop().pgoff)
            entries = way[-1].page.entries.tolist()
            del entries[way[-1].i]
        level = way[-1].page.level
        page = self._encode_index(level, entries) if entries else self.encode_leaf([])
        self.store(way[-1].pgoff, page)
        root = self._load(Pgoff(0))
        while root.level and len(root.entries) == 1:
            child, root = self._child(root, 0)
            self.store(Pgoff(0), bytes(root.page))
            dropped.append(child)
        # From the end of the file on: what lies behind a page is then still in the tree.
        for pgoff in sorted(dropped, reverse=True):
            self._free_page(pgoff)

    def add_page(self, page: bytes) -> Pgoff:
        """Append *page* to the directory's file; return where it is. Raises: NoSpaceError."""
        pgoff = Pgoff(self.inode.size_bytes >> PAGE_SHIFT)
        last = self._extents.find_block(Pgoff(pgoff - 1)) if pgoff else None
        [(block, _)] = self._tx.allocate(1, Block(0 if last is None else last + 1))
        self._tx.new_page(block, page)
        inode = insert_extent(self._tx, self.inode, pgoff, block, 1)
        self._set_inode(inode._replace(size_bytes=(pgoff + 1) << PAGE_SHIFT))
        return pgoff

    def store(self, pgoff: Pgoff, page: bytes) -> None:
        """Change page *pgoff*."""
        block = self._extents.find_block(pgoff)
        bug_on(block is None, "a directory page in a hole", ino=self.inode.ino, pgoff=pgoff)
        assert block is not None
        self._tx.store(block << PAGE_SHIFT, page)
        self._is_touched = True

    def seal(self, page: bytearray) -> bytes:
        """Return *page* with its checksum."""
        DIR_PAGE.seal(page, self._seed)
        return bytes(page)

    def encode_leaf(self, slots: list[Slot]) -> bytes:
        """Return the sealed leaf of *slots*."""
        inode = self.inode
        return encode_dir_leaf(self._seed, ino=inode.ino, generation=inode.generation, slots=slots)

    def finish(self, *, nr_entries: int) -> DiskInode:
        """Put the directory, now with *nr_entries* more, and return it."""
        inode = self.inode._replace(
            nr_entries=self.inode.nr_entries + nr_entries,
            mtime_ns=self._tx.now_ns,
            ctime_ns=self._tx.now_ns,
        )
        self._tx.put_inode(inode)
        return inode

    def _set_inode(self, inode: DiskInode) -> None:
        self._is_touched = True
        self.inode = inode
        self._extents = ExtentMap(self._tx, self._seed, inode)

    def _load(self, pgoff: Pgoff) -> DiskDirPage:
        if not self._is_touched:
            return self._tx.sb.dir_reader.load_page(self.inode, self._extents, pgoff)
        return load_dir_page(self._tx, self._seed, self.inode, self._extents, pgoff)

    def _child(self, index: DiskDirPage, i: int) -> tuple[Pgoff, DiskDirPage]:
        pgoff = Pgoff(int(index.entries["pgoff"][i]))
        page = self._load(pgoff)
        if page.level != index.level - 1:
            raise FormatError(
                f"inode {self.inode.ino}: directory page {pgoff} has level {page.level}, "
                f"its index has {index.level}"
            )
        return pgoff, page

    def _next_leaf(self, way: list[_Step], key_max: int) -> list[_Step] | None:
        """Return the way to the leaf behind that of *way*, None if it cannot have *key_max*."""
        way = way[:-1]
        while way:
            step = way.pop()
            keys = step.page.entries["key"]
            if step.i + 1 == len(keys):
                continue
            if int(keys[step.i + 1]) > key_max:
                return None
            way.append(step._replace(i=step.i + 1))
            pgoff, page = self._child(step.page, step.i + 1)
            while page.level:
                way.append(_Step(pgoff, page, 0))
                pgoff, page = self._child(page, 0)
            way.append(_Step(pgoff, page, 0))
            return way
        return None

    def _split(self, way: list[_Step], left: tuple[int, bytes], right: tuple[int, bytes]) -> None:
        """Let two pages take the place of the one at the end of *way*: (lowest key, page) each."""
        step = way.pop()
        right_pgoff = self.add_page(right[1])
        if not way:
            level = step.page.level + 1
            bug_on(level > DIR_LEVEL_MAX, "a directory too deep", ino=self.inode.ino)
            left_pgoff = self.add_page(left[1])
            entries = [(left[0], int(left_pgoff)), (right[0], int(right_pgoff))]
            self.store(step.pgoff, self._encode_index(level, entries))
            return
        self.store(step.pgoff, left[1])
        parent = way[-1]
        entries = parent.page.entries.tolist()
        # The first entry's key may be above the lowest that came since.
        entries[parent.i] = (min(entries[parent.i][0], left[0]), int(step.pgoff))
        entries.insert(parent.i + 1, (right[0], int(right_pgoff)))
        level = parent.page.level
        if len(entries) <= NR_INDEX_ENTRIES:
            self.store(parent.pgoff, self._encode_index(level, entries))
            return
        halves = entries[: len(entries) // 2], entries[len(entries) // 2 :]
        self._split(way, *((half[0][0], self._encode_index(level, half)) for half in halves))

    def _encode_index(self, level: int, entries: list[tuple[int, int]]) -> bytes:
        inode = self.inode
        return encode_dir_index(
            self._seed, ino=inode.ino, generation=inode.generation, level=level, entries=entries
        )

    def _free_page(self, pgoff: Pgoff) -> None:
        """Give the page back, which is in the tree no more, and cut the file at its last page."""
        last = Pgoff((self.inode.size_bytes >> PAGE_SHIFT) - 1)
        if pgoff != last and self._move_page(last, pgoff):
            pgoff = last
        inode, _ = remove_extents(self._tx, self.inode, pgoff, pgoff + 1)
        size_bytes = end_of_extents(self._tx, inode) << PAGE_SHIFT
        self._set_inode(inode._replace(size_bytes=size_bytes))

    def _move_page(self, pgoff: Pgoff, new_pgoff: Pgoff) -> bool:
        """Put the page to another place of the file, whose page is free for it.

        Returns: False if its own first key does not lead to it, as may be in a tree that was not
        made here; then it stays.
        """
        page = self._load(pgoff)
        if not len(page.entries):
            return False
        for step in self.way(int(page.entries["key"][0])):
            if step.page.level and int(step.page.entries["pgoff"][step.i]) == pgoff:
                entries = step.page.entries.tolist()
                entries[step.i] = (entries[step.i][0], int(new_pgoff))
                self.store(new_pgoff, bytes(page.page))
                self.store(step.pgoff, self._encode_index(step.page.level, entries))
                return True
        return False


def _slots(leaf: DiskDirPage) -> list[Slot]:
    """Return all entries of a leaf."""
    rows = zip(
        leaf.entries["key"].tolist(),
        leaf.entries["ino"].tolist(),
        leaf.entries["d_type"].tolist(),
        strict=True,
    )
    return [(*row, leaf.name(slot)) for slot, row in enumerate(rows)]


def _with_slot(leaf: DiskDirPage, position: int, new: Slot) -> bytearray | None:
    """Return the page of *leaf* with one entry more, unsealed; None if its free part is too small.

    The name goes in front of the names that are there.
    """
    key, ino, d_type, name = new
    nr_entries = len(leaf.entries)
    end = DIR_PAGE.size_bytes + nr_entries * _SLOT_SIZE
    names_start = leaf.names_start - len(name)
    if end + _SLOT_SIZE > names_start:
        return None
    page = bytearray(leaf.page)
    page[names_start : leaf.names_start] = name
    start = DIR_PAGE.size_bytes + position * _SLOT_SIZE
    slot = np.zeros(1, DIR_SLOT_DTYPE)
    slot[0] = (key, ino, names_start, len(name), d_type)
    page[start : end + _SLOT_SIZE] = slot.tobytes() + page[start:end]
    _set_head(page, nr_entries + 1, names_start)
    return page


def _without_slot(leaf: DiskDirPage, slot: int) -> bytearray:
    """Return the page of *leaf* without one of its entries, unsealed; the name leaves a gap."""
    nr_entries = len(leaf.entries)
    end = DIR_PAGE.size_bytes + nr_entries * _SLOT_SIZE
    page = bytearray(leaf.page)
    start = DIR_PAGE.size_bytes + slot * _SLOT_SIZE
    page[start:end] = page[start + _SLOT_SIZE : end] + bytes(_SLOT_SIZE)
    _, _, name_offset, name_size_bytes, _ = leaf.entries[slot].item()
    names_start = leaf.names_start
    if nr_entries == 1:
        names_start = PAGE_SIZE
    elif name_offset == names_start:
        names_start += name_size_bytes
    _set_head(page, nr_entries - 1, names_start)
    return page


def _set_head(page: bytearray, nr_entries: int, names_start: int) -> None:
    head = np.frombuffer(page, DIR_PAGE.dtype, 1)
    head["nr_entries"] = nr_entries
    head["names_start"] = names_start


def _middle(slots: list[Slot]) -> int:
    """Return where to cut, so that both sides take about as much room, and have an entry."""
    sizes = np.cumsum([_SLOT_SIZE + len(name) for *_, name in slots])
    return min(max(int(np.searchsorted(sizes, sizes[-1] / 2)), 1), len(slots) - 1)
