"""ImageBuilder: takes entries one by one, then writes all metadata behind their contents.

    builder = ImageBuilder(PageWriter(fd), now_ns)
    for entry in source:
        builder.add(entry)                        contents go to the image at once
    seed, hash_key = ...                          from builder.digest(), or at random
    inode_file = builder.write_metadata(seed, hash_key)

What stays in memory until the end is 256 bytes for each inode and the name of each entry.

The rules are those of unpacking an archive: the root is there from the start; a directory that no
entry names, but a path goes through, is made with mode 0755; an entry with a name that exists
takes its place, but a directory is never replaced with what is in it.
"""

import hashlib
import stat
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from xipfs.errors import SourceError, bug_on
from xipfs.fs.hotarea import HotArea
from xipfs.fs.inodetable import BLANK_INODE, GENERATION_FIRST, InodeTable
from xipfs.fs.pack import pack_directory, pack_extents, seal_records
from xipfs.fs.pagewriter import PageWriter
from xipfs.fs.source import Entry, Piece, shown
from xipfs.ondisk.dentry import NAME_SIZE_BYTES_MAX
from xipfs.ondisk.extent import EXTENT_DTYPE, NR_INLINE_EXTENTS, ExtentArray
from xipfs.ondisk.inode import (
    FILE_SIZE_BYTES_MAX,
    INO_INODE_FILE,
    INO_ROOT,
    INODE,
    PAYLOAD_SIZE_BYTES,
    DiskInode,
    InodeFlags,
)
from xipfs.ondisk.record import Buffer
from xipfs.ondisk.xattr import (
    NR_XATTR_PAGES_MAX,
    XATTR_RUN,
    XATTR_VALUE_SIZE_BYTES_MAX,
    encode_xattrs,
)
from xipfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Block, Ino

__all__ = ["ImageBuilder"]

SYMLINK_SIZE_BYTES_MAX = 4095
XATTR_NAME_SIZE_BYTES_MAX = 255
_XATTRS_BYTES_MAX = NR_XATTR_PAGES_MAX * PAGE_SIZE - XATTR_RUN.size_bytes
NR_EXTENT_PAGES_MAX = (1 << 32) - 1
_TIMES_NS = range(-(1 << 63), 1 << 63)
_NO_INO = Ino(0)

_KINDS = {
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
}

Extent = tuple[int, int, int, int]
"""One row of EXTENT_DTYPE."""


class _Directory:
    """A directory in the making: what it holds, by name."""

    __slots__ = ("ino", "names")

    def __init__(self, ino: Ino) -> None:
        self.ino = ino
        self.names: dict[bytes, Ino] = {}


class ImageBuilder:
    """The tree so far. now_ns: time of birth and of change of every inode. hot_area: where the
    hot pages of files go, if any are.

    free_runs: (block, nr_pages) of contents that lost their last name. data_bytes: of all regular
    files, without holes. has_acls: some inode has a POSIX ACL.
    """

    def __init__(self, writer: PageWriter, now_ns: int, hot_area: HotArea | None = None) -> None:
        self._hot_area = hot_area
        self.inodes = InodeTable()
        self.free_runs: list[tuple[Block, int]] = []
        self.free_ino_head = _NO_INO
        self.data_bytes = 0
        self._writer = writer
        self._now_ns = now_ns
        self._directories = {b"": _Directory(INO_ROOT)}
        self._extents: dict[Ino, ExtentArray] = {}  # of files with more than an inode holds
        self._xattrs: dict[Ino, Mapping[bytes, bytes]] = {}
        root = Entry(b"", stat.S_IFDIR | 0o755, 0, 0, now_ns)
        self._put_inode(INO_ROOT, root, nlink=2, parent_ino=INO_ROOT)

    def add(self, entry: Entry) -> None:
        """Take one entry, with its contents.

        Raises: SourceError for what an image cannot hold or the rules above forbid; OSError.
        """
        if entry.hard_link is not None:
            self._add_link(entry.path, entry.hard_link)
            return
        _check_entry(entry)
        if stat.S_ISDIR(entry.mode):
            self._add_directory(entry)
        else:
            parent, name = self._make_room(entry.path)
            ino = self.inodes.new_ino()
            self._put_inode(ino, entry, nlink=1)
            parent.names[name] = ino

    def _add_directory(self, entry: Entry) -> _Directory:
        directory = self._directories.get(entry.path)
        if directory is not None:
            self._update_inode(directory.ino, entry)
            return directory
        parent, name = self._make_room(entry.path)
        directory = _Directory(self.inodes.new_ino())
        self._put_inode(directory.ino, entry, nlink=2, parent_ino=parent.ino)
        self.inodes[parent.ino]["nlink"] += 1
        self._directories[entry.path] = directory
        parent.names[name] = directory.ino
        return directory

    def _add_link(self, path: bytes, first_path: bytes) -> None:
        ino = self._find(first_path)
        if ino is None:
            raise SourceError(
                f"{shown(path)}: a hard link to {shown(first_path)}, which is missing"
            )
        if first_path in self._directories:
            raise SourceError(f"{shown(path)}: a hard link to {shown(first_path)}, a directory")
        if self._find(path) == ino:
            return
        parent, name = self._make_room(path)
        self.inodes[ino]["nlink"] += 1
        parent.names[name] = ino

    def _find(self, path: bytes) -> Ino | None:
        parent_path, _, name = path.rpartition(b"/")
        parent = self._directories.get(parent_path)
        return None if parent is None else parent.names.get(name)

    def _make_room(self, path: bytes) -> tuple[_Directory, bytes]:
        """Return the directory that *path* is in, and the name, which is free there now."""
        parent_path, _, name = path.rpartition(b"/")
        parent = self._directories.get(parent_path)
        if parent is None:
            parent = self._make_parents(parent_path, path)
        if name in parent.names:
            self._remove(parent, name, path)
        elif len(name) > NAME_SIZE_BYTES_MAX:
            raise SourceError(f"{shown(path)}: its name has {len(name)} bytes, 255 may be")
        elif name in (b"", b".", b"..") or b"\0" in name:
            raise SourceError(f"{shown(path)}: not a name")
        return parent, name

    def _make_parents(self, parent_path: bytes, path: bytes) -> _Directory:
        names = parent_path.split(b"/")
        for end in range(1, len(names) + 1):
            prefix = b"/".join(names[:end])
            if prefix not in self._directories:
                if self._find(prefix) is not None:
                    raise SourceError(f"{shown(path)}: {shown(prefix)} is not a directory")
                self._add_directory(Entry(prefix, stat.S_IFDIR | 0o755, 0, 0, self._now_ns))
        return self._directories[parent_path]

    def _remove(self, parent: _Directory, name: bytes, path: bytes) -> None:
        """Take the name away from its inode, and what the inode had if that was its last one."""
        ino = parent.names[name]
        record = self.inodes[ino]
        directory = self._directories.get(path)
        if directory is not None:
            if directory.names:
                raise SourceError(f"{shown(path)}: would replace a directory that is not empty")
            del self._directories[path]
            self.inodes[parent.ino]["nlink"] -= 1
        elif record["nlink"] > 1:
            record["nlink"] -= 1
            del parent.names[name]
            return
        del parent.names[name]
        self.free_runs += [
            (Block(int(extent["block"])), int(extent["nr_pages"]))
            for extent in self._extents_of(ino)
        ]
        self._extents.pop(ino, None)
        self._xattrs.pop(ino, None)
        self.inodes.free(ino, self.free_ino_head)
        self.free_ino_head = ino

    def _extents_of(self, ino: Ino) -> ExtentArray:
        if ino in self._extents:
            return self._extents[ino]
        record = self.inodes[ino]
        return np.frombuffer(record["payload"].tobytes(), EXTENT_DTYPE, int(record["nr_extents"]))

    def _put_inode(self, ino: Ino, entry: Entry, *, nlink: int, parent_ino: Ino = _NO_INO) -> None:
        """Make inode *ino* of *entry*, and store its contents."""
        size_bytes, flags, payload = entry.size_bytes, 0, b""
        extents: list[Extent] = []
        if stat.S_ISREG(entry.mode):
            extents = self._store(ino, entry.pieces)
        elif stat.S_ISLNK(entry.mode):
            size_bytes = len(entry.target)
            if size_bytes <= PAYLOAD_SIZE_BYTES:
                flags, payload = InodeFlags.INLINE, entry.target
            else:
                extents = [(0, self._writer.append(entry.target), 1, 0)]
        nr_extents = len(extents)
        if nr_extents > NR_INLINE_EXTENTS:
            self._extents[ino] = np.array(extents, EXTENT_DTYPE)
            nr_extents = 0  # the top of their tree comes later
        elif nr_extents:
            payload = np.array(extents, EXTENT_DTYPE).tobytes()
        if entry.xattrs:
            self._xattrs[ino] = entry.xattrs
        self.inodes.put(
            DiskInode(
                ino=ino,
                generation=GENERATION_FIRST,
                flags=flags,
                mode=entry.mode,
                nlink=nlink,
                uid=entry.uid,
                gid=entry.gid,
                size_bytes=size_bytes,
                nr_pages=sum([nr_pages for _, _, nr_pages, _ in extents]),
                atime_ns=entry.mtime_ns,
                mtime_ns=entry.mtime_ns,
                ctime_ns=self._now_ns,
                btime_ns=self._now_ns,
                rdev=entry.rdev,
                nr_entries=0,
                parent_ino=parent_ino,
                next_ino=_NO_INO,
                xattr_block=Block(0),
                nr_xattr_pages=0,
                extent_depth=0,
                nr_extents=nr_extents,
                payload=payload,
            )
        )

    def _update_inode(self, ino: Ino, entry: Entry) -> None:
        """Give a directory that is there the attributes of *entry*."""
        record = self.inodes[ino]
        record["mode"], record["uid"], record["gid"] = entry.mode, entry.uid, entry.gid
        record["atime_ns"] = record["mtime_ns"] = entry.mtime_ns
        self._xattrs.pop(ino, None)
        if entry.xattrs:
            self._xattrs[ino] = entry.xattrs

    def _store(self, ino: Ino, pieces: Iterable[Piece]) -> list[Extent]:
        """Write the contents of a file; return its extents."""
        extents: list[Extent] = []
        pgoff_end = block_end = 0
        for pgoff, data, home in self._place(ino, pieces):
            bug_on(pgoff < pgoff_end, "pieces out of order", pgoff=pgoff, pgoff_end=pgoff_end)
            if home is None:
                block = self._writer.append(data)
            else:
                block = home
                self._writer.write_at(block, data)
            nr_pages = (len(data) + PAGE_MASK) >> PAGE_SHIFT
            extent: Extent = (pgoff, block, nr_pages, 0)
            if extents and pgoff == pgoff_end and block == block_end:
                first_pgoff, first_block, nr_first_pages, _ = extents[-1]
                if nr_first_pages + nr_pages <= NR_EXTENT_PAGES_MAX:
                    extent = (first_pgoff, first_block, nr_first_pages + nr_pages, 0)
                    extents.pop()
            extents.append(extent)
            pgoff_end, block_end = pgoff + nr_pages, block + nr_pages
            self.data_bytes += len(data)
        return extents

    def _place(
        self, ino: Ino, pieces: Iterable[Piece]
    ) -> Iterator[tuple[int, Buffer, Block | None]]:
        """Yield pieces of a file, and where each has to go, None for the next place."""
        for pgoff, data in pieces:
            if self._hot_area is None:
                yield pgoff, data, None
            else:
                yield from self._hot_area.split(ino, pgoff, data)

    def digest(self) -> bytes:
        """Return a digest of all metadata: same entries, same digest. Contents do not count."""
        digest = hashlib.sha256()
        for records in self.inodes.chunks():
            digest.update(records.view(np.uint8).data)
        for directory in self._directories.values():
            for name in sorted(directory.names):
                digest.update(b"%d %s/" % (directory.names[name], name))
        for ino, xattrs in self._xattrs.items():
            for name in sorted(xattrs):
                digest.update(b"%d %d %d " % (ino, len(name), len(xattrs[name])))
                digest.update(name + xattrs[name])
        for ino, extents in self._extents.items():
            digest.update(b"%d %d " % (ino, len(extents)) + extents.tobytes())
        return digest.digest()

    @property
    def has_acls(self) -> bool:
        """Does any inode have a POSIX ACL?"""
        return any(
            name.startswith(b"system.posix_acl_")
            for xattrs in self._xattrs.values()
            for name in xattrs
        )

    def write_metadata(self, seed: int, hash_key: bytes) -> DiskInode:
        """Write all that hangs on the inodes, then the inodes; return the inode file's own inode.

        Raises: OSError.
        """
        self._write_extent_nodes(seed)
        self._write_directories(seed, hash_key)
        self._write_xattrs(seed)
        return self._write_inode_file(seed)

    def _write_extent_nodes(self, seed: int) -> None:
        for ino, extents in self._extents.items():
            pages, top, depth = pack_extents(
                seed,
                ino=ino,
                generation=GENERATION_FIRST,
                extents=extents,
                first_block=self._writer.next_block,
            )
            for page in pages:
                self._writer.append(page)
            record = self.inodes[ino]
            record["nr_pages"] += len(pages)
            record["extent_depth"] = depth
            record["nr_extents"] = len(top)
            record["payload"] = top.tobytes()

    def _write_directories(self, seed: int, hash_key: bytes) -> None:
        inodes = self.inodes
        for directory in self._directories.values():
            pages = pack_directory(
                seed,
                hash_key,
                ino=directory.ino,
                generation=GENERATION_FIRST,
                entries=[(name, ino, inodes.d_type(ino)) for name, ino in directory.names.items()],
            )
            block = self._writer.next_block
            for page in pages:
                self._writer.append(page)
            record = inodes[directory.ino]
            record["size_bytes"] = len(pages) * PAGE_SIZE
            record["nr_pages"] = len(pages)
            record["nr_entries"] = len(directory.names)
            record["nr_extents"] = 1
            record["payload"] = np.array([(0, block, len(pages), 0)], EXTENT_DTYPE).tobytes()

    def _write_xattrs(self, seed: int) -> None:
        for ino, xattrs in self._xattrs.items():
            run = encode_xattrs(dict(xattrs), seed, ino, GENERATION_FIRST)
            nr_pages = len(run) >> PAGE_SHIFT
            record = self.inodes[ino]
            record["xattr_block"] = self._writer.append(run)
            record["nr_xattr_pages"] = nr_pages
            record["nr_pages"] += nr_pages

    def _write_inode_file(self, seed: int) -> DiskInode:
        block = self._writer.next_block
        for records in self.inodes.chunks():
            seal_records(INODE, records, seed, np.flatnonzero(records["magic"]).tolist())
            self._writer.append(records.view(np.uint8).data)
        nr_pages = self._writer.next_block - block
        return BLANK_INODE._replace(
            ino=INO_INODE_FILE,
            generation=GENERATION_FIRST,
            size_bytes=nr_pages * PAGE_SIZE,
            nr_pages=nr_pages,
            nr_extents=1,
            payload=np.array([(0, block, nr_pages, 0)], EXTENT_DTYPE).tobytes(),
        )


def _check_entry(entry: Entry) -> None:
    """Refuse what no inode can hold. Raises: SourceError."""
    path = entry.path
    if stat.S_IFMT(entry.mode) not in _KINDS:
        raise SourceError(f"{shown(path)}: not a file of any known type, mode {entry.mode:#o}")
    if entry.size_bytes > FILE_SIZE_BYTES_MAX:
        raise SourceError(f"{shown(path)}: {entry.size_bytes} bytes, {FILE_SIZE_BYTES_MAX} may be")
    if entry.mtime_ns not in _TIMES_NS:
        raise SourceError(f"{shown(path)}: its time is not between the years 1677 and 2262")
    if stat.S_ISLNK(entry.mode):
        target_size_bytes = len(entry.target)
        if not 0 < target_size_bytes <= SYMLINK_SIZE_BYTES_MAX or b"\0" in entry.target:
            raise SourceError(
                f"{shown(path)}: a symbolic link to {target_size_bytes} bytes: "
                f"1 to {SYMLINK_SIZE_BYTES_MAX} may be, none of them NUL"
            )
    if entry.xattrs:
        _check_xattrs(path, entry.xattrs)


def _check_xattrs(path: bytes, xattrs: Mapping[bytes, bytes]) -> None:
    for name, value in xattrs.items():
        if not 0 < len(name) <= XATTR_NAME_SIZE_BYTES_MAX or b"\0" in name:
            raise SourceError(f"{shown(path)}: no name of an attribute: {shown(name)}")
        if len(value) > XATTR_VALUE_SIZE_BYTES_MAX:
            raise SourceError(
                f"{shown(path)}: attribute {shown(name)} has {len(value)} bytes, "
                f"{XATTR_VALUE_SIZE_BYTES_MAX} may be"
            )
    if sum(len(name) + len(value) + 16 for name, value in xattrs.items()) > _XATTRS_BYTES_MAX:
        raise SourceError(f"{shown(path)}: more than 1 MiB of attributes")
