"""A second, slow reader of images, by docs/FORMAT.md and `xipfs.ondisk` alone: checks all it meets.

    image = read_image(path)
    image.read(b"etc/hosts"), image.inode(b"etc").nr_entries

Whatever a sound image promises is asserted while it is read: seals, orders, counts, that every page
in use has exactly one user, and that no other page is marked as in use.
"""

import os
import stat
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np

from xipfs.ondisk.dentry import KEY_MAX, SEQUENCE_BITS, decode_dir_page, name_key
from xipfs.ondisk.extent import NR_INLINE_EXTENTS, decode_node
from xipfs.ondisk.group import (
    GROUP_DESC,
    GROUP_SHIFT,
    NR_GROUP_PAGES,
    GroupFlags,
    bitmap_checksum,
    decode_group_desc,
)
from xipfs.ondisk.inode import (
    INO_FIRST,
    INO_ROOT,
    INODE,
    INODES_PER_PAGE,
    DiskInode,
    InodeFlags,
    decode_inode,
)
from xipfs.ondisk.journal import decode_journal_header
from xipfs.ondisk.superblock import (
    STATE,
    STATE_BLOCK,
    STATE_INODE_OFFSET,
    StateFlags,
    decode_state,
    decode_superblock,
)
from xipfs.ondisk.xattr import decode_xattrs
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Ino, bytes_to_pages

__all__ = ["ReadImage", "read_image"]


_SIZE_BYTES_MAX = 256 << 20
"""Larger files are not kept in memory: they are all holes, one hopes."""


def read_image(path: Path) -> "ReadImage":
    return ReadImage(path)


class ReadImage:
    """paths: path -> ino of every name; inodes: all in use; dir_levels: of directories' roots."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._fd = file.fileno()
            self._read_all()

    def inode(self, path: bytes) -> DiskInode:
        return self.inodes[self.paths[path]]

    def read(self, path: bytes) -> bytes:
        """Return the contents of a file or the target of a symbolic link, holes as zeros."""
        return self.contents[self.paths[path]]

    def page(self, path: bytes, pgoff: int) -> bytes | None:
        """Return one page of a file of any size, None for a hole."""
        for first, block, nr_pages in self.all_extents[self.paths[path]]:
            if first <= pgoff < first + nr_pages:
                with self.path.open("rb") as file:
                    return os.pread(file.fileno(), PAGE_SIZE, (block + pgoff - first) << PAGE_SHIFT)
        return None

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        return self.all_xattrs.get(self.paths[path], {})

    def _read_all(self) -> None:
        self.users: Counter[int] = Counter()
        self.size_bytes = os.fstat(self._fd).st_size
        page = self._pages(0, 1)
        self.superblock = decode_superblock(page, "page 0")
        nr_pages = self.superblock.nr_pages
        assert self.size_bytes == nr_pages * PAGE_SIZE
        assert self._pages(nr_pages - 1, 1) == page
        self.seed = self.superblock.seed
        page = self._pages(STATE_BLOCK, 1)
        self.state = decode_state(page[: STATE.size_bytes], self.seed)
        assert self.state.flags == StateFlags.CLEAN
        record = page[STATE_INODE_OFFSET : STATE_INODE_OFFSET + INODE.size_bytes]
        assert not any(page[STATE_INODE_OFFSET + INODE.size_bytes :])
        self.all_extents: dict[int, list[tuple[int, int, int]]] = {}
        self.inode_file = decode_inode(record, self.seed, Ino(0))
        self._read_inodes()
        self.contents: dict[int, bytes] = {}
        self.all_xattrs: dict[int, dict[bytes, bytes]] = {}
        self.paths: dict[bytes, int] = {b"": INO_ROOT}
        self.dir_levels: dict[int, int] = {}
        self.names: Counter[int] = Counter()
        self.subdirs: Counter[int] = Counter()
        for ino, inode in self.inodes.items():
            self._read_contents(ino, inode)
        self._read_directory(b"", INO_ROOT, INO_ROOT)
        self._check_counts()
        self._check_space()

    def _pages(self, block: int, nr_pages: int) -> bytes:
        for used in range(block, block + nr_pages):
            self.users[used] += 1
        data = os.pread(self._fd, nr_pages << PAGE_SHIFT, block << PAGE_SHIFT)
        assert len(data) == nr_pages << PAGE_SHIFT
        return data

    def _read_inodes(self) -> None:
        nr_pages = bytes_to_pages(self.state.ino_end * INODE.size_bytes)
        assert self.inode_file.size_bytes == nr_pages * PAGE_SIZE
        records = self._read_file(self.inode_file)
        assert len(records) == nr_pages * PAGE_SIZE
        self.inodes: dict[int, DiskInode] = {}
        free = {}
        for ino in range(nr_pages * INODES_PER_PAGE):
            record = records[ino * INODE.size_bytes : (ino + 1) * INODE.size_bytes]
            if not any(record):
                assert ino < INO_FIRST or ino >= self.state.ino_end, f"inode {ino} is blank"
                continue
            inode = decode_inode(record, self.seed, Ino(ino))
            assert inode.generation == 1
            if inode.mode:
                self.inodes[ino] = inode
            else:
                blank = inode._replace(ino=0, generation=0, next_ino=0, payload=b"")
                assert not any(blank)
                free[ino] = inode.next_ino
        ino = self.state.free_ino_head
        while ino:
            ino = free.pop(ino)
        assert not free, "free inodes that are in no list"
        assert self.state.orphan_ino_head == 0
        assert self.state.nr_inodes == len(self.inodes)

    def _read_extents(self, inode: DiskInode) -> list[tuple[int, int, int]]:
        """Return (pgoff, block, nr_pages) of all extents; count the pages of their tree."""
        level = [(row, inode.extent_depth) for row in inode.extents.tolist()]
        assert not any(inode.payload[inode.nr_extents * 24 :])
        extents, self.nr_node_pages = [], 0
        while level:
            (pgoff, block, nr_pages, flags), depth = level.pop(0)
            assert flags == 0
            if depth == 0:
                extents.append((pgoff, block, nr_pages))
                continue
            assert nr_pages == 0
            self.nr_node_pages += 1
            ino, generation, found_depth, entries = decode_node(
                self._pages(block, 1), self.seed, f"node of inode {inode.ino}"
            )
            assert (ino, generation, found_depth) == (inode.ino, inode.generation, depth - 1)
            assert entries["pgoff"][0] == pgoff
            level[:0] = [(row, depth - 1) for row in entries.tolist()]
        if inode.extent_depth:
            assert len(extents) > NR_INLINE_EXTENTS
        for (pgoff, _, nr_pages), (next_pgoff, _, _) in pairwise(extents):
            assert pgoff + nr_pages <= next_pgoff
        self.all_extents[inode.ino] = extents
        return extents

    def _read_file(self, inode: DiskInode) -> bytes:
        """Return its bytes, b"" for a very large file; what is behind its end must be zeros."""
        is_large = inode.size_bytes > _SIZE_BYTES_MAX
        data = bytearray(0 if is_large else inode.size_bytes)
        for pgoff, block, nr_pages in self._read_extents(inode):
            pages = self._pages(block, nr_pages)
            start = pgoff << PAGE_SHIFT
            room = inode.size_bytes - start
            assert room > len(pages) - PAGE_SIZE
            assert not any(pages[room:])
            if not is_large:
                data[start : start + len(pages)] = pages[:room]
        return bytes(data)

    def _read_contents(self, ino: int, inode: DiskInode) -> None:
        nr_pages = 0
        if inode.flags & InodeFlags.INLINE:
            assert inode.flags == InodeFlags.INLINE
            assert stat.S_ISLNK(inode.mode)
            assert inode.nr_extents == 0
            assert not any(inode.payload[inode.size_bytes :])
            self.contents[ino] = inode.payload[: inode.size_bytes]
        elif stat.S_ISREG(inode.mode) or stat.S_ISLNK(inode.mode) or stat.S_ISDIR(inode.mode):
            self.contents[ino] = self._read_file(inode)
            nr_pages = self.nr_node_pages + sum(n for _, _, n in self.all_extents[ino])
        else:
            assert not any(inode.payload)
            assert inode.size_bytes == 0
        assert inode.parent_ino == 0 or stat.S_ISDIR(inode.mode)
        assert inode.nr_entries == 0 or stat.S_ISDIR(inode.mode)
        if inode.nr_xattr_pages:
            run = self._pages(inode.xattr_block, inode.nr_xattr_pages)
            self.all_xattrs[ino] = decode_xattrs(run, self.seed, ino, inode.generation)
            nr_pages += inode.nr_xattr_pages
        assert inode.nr_pages == nr_pages

    def _read_directory(self, path: bytes, ino: int, parent_ino: int) -> None:
        inode = self.inodes[ino]
        assert inode.parent_ino == parent_ino
        entries = self._dir_entries(inode)
        assert inode.nr_entries == len(entries)
        keys = [key for key, _, _, _ in entries]
        assert keys == sorted(set(keys))
        for key, child_ino, d_type, name in entries:
            assert key >> SEQUENCE_BITS == name_key(name, self.superblock.hash_key) >> SEQUENCE_BITS
            child = self.inodes[child_ino]
            assert d_type == child.mode >> 12
            child_path = path + b"/" + name if path else name
            assert child_path not in self.paths
            self.paths[child_path] = child_ino
            self.names[child_ino] += 1
            if stat.S_ISDIR(child.mode):
                self.subdirs[ino] += 1
                self._read_directory(child_path, child_ino, ino)

    def _dir_entries(self, inode: DiskInode) -> list[tuple[int, int, int, bytes]]:
        pages = self.contents[inode.ino]
        nr_pages = len(pages) >> PAGE_SHIFT
        assert self.all_extents[inode.ino][0][2] == nr_pages
        found = []
        seen = set()

        def descend(pgoff: int, level: int | None, first_key: int, end_key: int) -> None:
            assert pgoff not in seen
            seen.add(pgoff)
            page = pages[pgoff << PAGE_SHIFT : (pgoff + 1) << PAGE_SHIFT]
            dir_page = decode_dir_page(page, self.seed, f"directory {inode.ino}, page {pgoff}")
            assert (dir_page.ino, dir_page.generation) == (inode.ino, inode.generation)
            if level is None:
                self.dir_levels[inode.ino] = dir_page.level
            else:
                assert dir_page.level == level
                assert len(dir_page.entries)
            rows = dir_page.entries.tolist()
            for key, *_ in rows:
                assert first_key <= key < end_key
            if dir_page.level:
                ends = [*(key for key, _ in rows[1:]), end_key]
                for (key, child), end in zip(rows, ends, strict=True):
                    descend(child, dir_page.level - 1, key, end)
            else:
                for slot, (key, ino, _, _, d_type) in enumerate(rows):
                    found.append((key, ino, d_type, dir_page.name(slot)))

        descend(0, None, 0, KEY_MAX + 1)
        assert len(seen) == nr_pages, "directory pages that nothing names"
        return found

    def _check_counts(self) -> None:
        for ino, inode in self.inodes.items():
            if stat.S_ISDIR(inode.mode):
                assert inode.nlink == 2 + self.subdirs[ino]
                assert self.names[ino] == (ino != INO_ROOT)
            else:
                assert inode.nlink == self.names[ino] > 0, f"inode {ino}"

    def _check_space(self) -> None:
        sb = self.superblock
        assert decode_journal_header(self._pages(sb.journal_block, 1), self.seed).sequence == 1
        assert not any(self._pages(sb.journal_block + 1, sb.nr_journal_pages - 1))
        assert sb.nr_groups == -(-sb.nr_pages // NR_GROUP_PAGES)
        table = self._pages(sb.gdt_block, bytes_to_pages(sb.nr_groups * GROUP_DESC.size_bytes))
        self.descriptors = [
            decode_group_desc(table[i * 32 : (i + 1) * 32], self.seed, i)
            for i in range(sb.nr_groups)
        ]
        bitmaps = [self._pages(sb.bitmap_block + i, 1) for i in range(sb.nr_groups)]
        nr_free_pages = 0
        for descriptor, bitmap in zip(self.descriptors, bitmaps, strict=True):
            in_use = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
            start = descriptor.group << GROUP_SHIFT
            end = min(start + NR_GROUP_PAGES, sb.nr_pages)
            expected = np.ones(NR_GROUP_PAGES, np.uint8)
            expected[: end - start] = 0
            used = [b - start for b in self.users if start <= b < end]
            expected[used] = 1
            assert np.array_equal(in_use, expected)
            assert descriptor.nr_free_pages == NR_GROUP_PAGES - in_use.sum()
            if descriptor.flags & GroupFlags.BITMAP_UNINIT:
                assert not in_use.any()
                assert descriptor.bitmap_checksum == 0
            else:
                assert in_use.any()
                assert descriptor.bitmap_checksum == bitmap_checksum(bitmap, self.seed)
            nr_free_pages += descriptor.nr_free_pages
        assert self.state.nr_free_pages == nr_free_pages
        assert nr_free_pages + len(self.users) == sb.nr_pages
        assert max(self.users.values()) == 1, "a page with two users"
