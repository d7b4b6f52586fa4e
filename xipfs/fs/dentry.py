"""Names in a directory: lookup and readdir over its pages, read in place and checked every time.

A position of readdir is the key of an entry, which never changes (`ondisk.dentry`); entries
"." and ".." come first, at positions below every key.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from xipfs.errors import FormatError, NameTooLongError, NoEntryError
from xipfs.fs.extent import ExtentMap, ImageReader
from xipfs.ondisk.dentry import (
    KEY_MAX,
    NAME_SIZE_BYTES_MAX,
    SEQUENCE_BITS,
    DiskDirPage,
    decode_dir_page,
    name_key,
)
from xipfs.ondisk.inode import DiskInode
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Block, Ino, Pgoff

__all__ = ["DIR_LEVEL_MAX", "DirEntry", "DirReader", "load_dir_page", "name_legal"]

DIR_LEVEL_MAX = 5
"""254^5 leaves: more than inodes can be."""

NR_CACHED_PAGES = 256
"""Checked directory pages kept per image: 1 MiB."""

_SEQUENCE_MASK = (1 << SEQUENCE_BITS) - 1
_POSITION_DOT, _POSITION_DOTDOT = 1, 2


class DirEntry(NamedTuple):
    """One name. position: pass it to `iter_entries` to go on behind this entry."""

    name: bytes
    ino: Ino
    d_type: int
    position: int


class DirReader:
    """Looks names up in any directory of one image. Keeps the pages last used, checked.

    What it keeps is what the image holds: who has changed a page there calls `forget_page`.
    """

    __slots__ = ("_hash_key", "_nvram", "_pages", "_seed")

    def __init__(self, nvram: ImageReader, seed: int, hash_key: bytes) -> None:
        self._nvram = nvram
        self._seed = seed
        self._hash_key = hash_key
        self._pages: OrderedDict[int, DiskDirPage] = OrderedDict()

    def lookup(self, directory: DiskInode, extents: ExtentMap, name: bytes) -> Ino:
        """Return the inode number that *name* stands for.

        Raises: NoEntryError; NameTooLongError; FormatError, DeviceError on a bad image.
        """
        if len(name) > NAME_SIZE_BYTES_MAX:
            raise NameTooLongError(f"a name of {len(name)} bytes, {NAME_SIZE_BYTES_MAX} may be")
        if name == b".":
            return directory.ino
        if name == b"..":
            return directory.parent_ino
        key = name_key(name, self._hash_key)
        for leaf in self._leaves(directory, extents, key):
            keys = leaf.entries["key"]
            for slot in range(int(np.searchsorted(keys, key)), len(keys)):
                if int(keys[slot]) > key | _SEQUENCE_MASK:
                    raise NoEntryError(f"no {os.fsdecode(name)!r} in inode {directory.ino}")
                if leaf.name(slot) == name:
                    return Ino(int(leaf.entries["ino"][slot]))
        raise NoEntryError(f"no {os.fsdecode(name)!r} in inode {directory.ino}")

    def iter_entries(
        self, directory: DiskInode, extents: ExtentMap, position: int = 0
    ) -> Iterator[DirEntry]:
        """Yield the entries behind *position*, 0 for all; "." and ".." first.

        Raises: FormatError, DeviceError on a bad image.
        """
        dt_dir = 4
        if position < _POSITION_DOT:
            yield DirEntry(b".", directory.ino, dt_dir, _POSITION_DOT)
        if position < _POSITION_DOTDOT:
            yield DirEntry(b"..", directory.parent_ino, dt_dir, _POSITION_DOTDOT)
        if position >= KEY_MAX:
            return
        position = max(position, _POSITION_DOTDOT)
        for number, leaf in enumerate(self._leaves(directory, extents, position + 1)):
            start = 0
            if number == 0:
                start = int(np.searchsorted(leaf.entries["key"], position, side="right"))
            for slot, (key, ino, name_offset, name_size, d_type) in enumerate(
                leaf.entries[start:].tolist(), start
            ):
                name = bytes(leaf.page[name_offset : name_offset + name_size])
                if name_offset < leaf.names_start or not name_legal(name):
                    raise FormatError(
                        f"inode {directory.ino}: entry {slot} has the impossible name {name!r}"
                    )
                # Who lists a directory goes on from here: a lower key would send him in circles.
                if key <= position:
                    raise FormatError(
                        f"inode {directory.ino}: entry {name!r} is out of order: key {key:#x} "
                        f"follows {position:#x}"
                    )
                position = key
                yield DirEntry(name, Ino(ino), d_type, key)

    def load_page(self, directory: DiskInode, extents: ExtentMap, pgoff: Pgoff) -> DiskDirPage:
        """Return page *pgoff* of *directory*, checked. Raises: FormatError, DeviceError."""
        block = extents.find_block(pgoff)
        page = None if block is None else self._pages.get(block)
        if block is None or page is None:
            page = load_dir_page(self._nvram, self._seed, directory, extents, pgoff)
            assert block is not None, "load_dir_page refuses holes"
            self._pages[block] = page
            if len(self._pages) > NR_CACHED_PAGES:
                self._pages.popitem(last=False)
        else:
            self._pages.move_to_end(block)
            _check_owner(page, directory, pgoff)
        return page

    def forget_page(self, block: Block) -> None:
        """Read page *block* of the image anew: its bytes have changed."""
        self._pages.pop(block, None)

    def _leaves(self, directory: DiskInode, extents: ExtentMap, key: int) -> Iterator[DiskDirPage]:
        """Yield the leaf in which *key* is or would be, and all leaves behind it."""
        page = self.load_page(directory, extents, Pgoff(0))
        if page.level > DIR_LEVEL_MAX:
            raise FormatError(f"inode {directory.ino}: a directory of {page.level} levels")
        # The way from the root to the page that is read next: index pages, and which child of each.
        way: list[tuple[DiskDirPage, int]] = []
        first = True
        # No page comes twice on a sound way, so a damaged one cannot be longer than the image.
        nr_pages_left = min(directory.size_bytes, self._nvram.size_bytes) >> PAGE_SHIFT
        while True:
            if page.level:
                i = 0
                if first:
                    i = max(int(np.searchsorted(page.entries["key"], key, side="right")) - 1, 0)
                way.append((page, i))
            else:
                yield page
                first = False
                while way and way[-1][1] + 1 == len(way[-1][0].entries):
                    way.pop()
                if not way:
                    return
                parent, i = way.pop()
                way.append((parent, i + 1))
            if not nr_pages_left:
                raise FormatError(f"inode {directory.ino}: an index names pages more than once")
            nr_pages_left -= 1
            page = self._child(directory, extents, *way[-1])

    def _child(
        self, directory: DiskInode, extents: ExtentMap, parent: DiskDirPage, i: int
    ) -> DiskDirPage:
        pgoff = Pgoff(int(parent.entries["pgoff"][i]))
        page = self.load_page(directory, extents, pgoff)
        if page.level != parent.level - 1:
            raise FormatError(
                f"inode {directory.ino}: directory page {pgoff} has level {page.level}, "
                f"its index has {parent.level}"
            )
        return page


def load_dir_page(
    image: ImageReader, seed: int, directory: DiskInode, extents: ExtentMap, pgoff: Pgoff
) -> DiskDirPage:
    """Read page *pgoff* of *directory*, checked for its owner. Raises: FormatError, DeviceError."""
    block = extents.find_block(pgoff)
    where = f"directory page {pgoff} of inode {directory.ino}"
    if block is None:
        raise FormatError(f"{where}: a hole")
    page = decode_dir_page(image.load(block << PAGE_SHIFT, PAGE_SIZE), seed, where)
    _check_owner(page, directory, pgoff)
    return page


def _check_owner(page: DiskDirPage, directory: DiskInode, pgoff: Pgoff) -> None:
    if (page.ino, page.generation) != (directory.ino, directory.generation):
        raise FormatError(
            f"directory page {pgoff} of inode {directory.ino}: the page belongs to inode "
            f"{page.ino}, generation {page.generation}"
        )


def name_legal(name: bytes) -> bool:
    """Can this be a name in a directory?"""
    return bool(name) and b"/" not in name and b"\0" not in name and name not in (b".", b"..")
