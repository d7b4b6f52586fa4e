"""What mkfs builds an image from: a stream of entries. Here: from a directory tree.

An entry is one name with all that its inode needs. A source yields directories before what is in
them and the first name of a file before its hard links; the path b"" is the root. The contents of
a regular file come as pieces, (first page, bytes): pages rise, every piece but the last of a file
is a whole number of pages, and what no piece covers is a hole. Pieces must be taken before the
next entry is asked for, so that neither a tree nor a stream needs more memory than one piece.

    for entry in walk_tree("/usr/lib/python3"):
        for pgoff, data in entry.pieces: ...

Access times are left out: reading the source changes them, and the same tree must always make the
same image. `xipfs.fs.tarsource` is the other source.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from xipfs.errors import SourceError
from xipfs.fs.newimage import TEMPORARY_PREFIX
from xipfs.ondisk.record import Buffer
from xipfs.units import PAGE_MASK, PAGE_SHIFT

__all__ = [
    "NO_XATTRS",
    "PIECE_SIZE_BYTES",
    "XATTR_PREFIXES",
    "Entry",
    "Piece",
    "shown",
    "walk_tree",
]

Piece: TypeAlias = tuple[int, Buffer]
"""(pgoff, data): data belongs at byte pgoff << PAGE_SHIFT of the file."""

PIECE_SIZE_BYTES = 1 << 20
"""The longest piece that the sources here make."""

NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class Entry(NamedTuple):
    """One name of the tree that becomes an image.

    path: relative, without "." or ".."; b"" is the root. mode: with the type bits. rdev: as in
    st_rdev. target: what a symbolic link says. hard_link: the path of an earlier entry whose inode
    this name shares; all fields but the path are then void.
    """

    path: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size_bytes: int = 0
    rdev: int = 0
    target: bytes = b""
    hard_link: bytes | None = None
    xattrs: Mapping[bytes, bytes] = NO_XATTRS
    pieces: Iterable[Piece] = ()


# What an image stores. Others (system.nfs4_acl, btrfs.*, ..) belong to the filesystem they are on.
XATTR_PREFIXES = ("user.", "security.", "trusted.", "system.posix_acl_")
_XATTR_UNREADABLE = {errno.EPERM, errno.EACCES, errno.ENODATA, errno.ENOTSUP}

# O_NONBLOCK: should a fifo take the file's place after we looked, the open must not wait.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_BLOCK_SIZE_BYTES = 512  # the unit of st_blocks, whatever the filesystem's own

FileId: TypeAlias = tuple[int, int]


def walk_tree(
    root: str | os.PathLike[str], *, image: str | os.PathLike[str] | None = None
) -> Iterator[Entry]:
    """Yield the tree below *root*, each directory's names in the order of their bytes.

    Other filesystems mounted below *root* are part of it. image: the file that mkfs writes, left
    out if it lies inside the tree.
    Raises: SourceError on anything that cannot be read, or shrinks or vanishes meanwhile.
    """
    top = os.path.realpath(os.fsencode(root))
    start = len(top.rstrip(b"/")) + 1
    image_path = None if image is None else os.path.realpath(os.fsencode(image))
    first_names: dict[FileId, bytes] = {}
    path = top
    try:
        yield _directory_entry(b"", top)
        listings = [_list_directory(top, image_path)]
        while listings:
            found = next(listings[-1], None)
            if found is None:
                listings.pop()
                continue
            path = found.path
            if found.is_dir(follow_symlinks=False):
                yield _directory_entry(path[start:], path)
                listings.append(_list_directory(path, image_path))
            elif found.is_file(follow_symlinks=False):
                fd = os.open(path, _OPEN_FLAGS)
                try:
                    yield _file_entry(path[start:], path, fd, first_names)
                finally:
                    os.close(fd)
            else:
                yield _special_entry(path[start:], path, first_names)
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _list_directory(path: bytes, image_path: bytes | None) -> Iterator[os.DirEntry[bytes]]:
    with os.scandir(path) as listing:
        found = sorted(listing, key=attrgetter("name"))
    if image_path is not None and path == os.path.dirname(image_path):
        # Also what an mkfs writes to where there are no unnamed files.
        found = [f for f in found if f.path != image_path and not _is_temporary(f.name)]
    return iter(found)


def _is_temporary(name: bytes) -> bool:
    return name.startswith(os.fsencode(TEMPORARY_PREFIX))


def _directory_entry(relative: bytes, path: bytes) -> Entry:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise SourceError(f"{shown(path)}: not a directory")
    return Entry(
        relative,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        xattrs=_read_xattrs(path),
    )


def _file_entry(relative: bytes, path: bytes, fd: int, first_names: dict[FileId, bytes]) -> Entry:
    """Return the entry of the regular file open as *fd*: its status is that of what is read."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{shown(path)}: was replaced while the tree was read")
    first_name = _first_name(relative, status, first_names)
    return Entry(
        relative,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        size_bytes=status.st_size,
        hard_link=first_name,
        xattrs=_read_xattrs(fd),
        pieces=() if first_name is not None else _read_pieces(fd, status, path),
    )


def _special_entry(relative: bytes, path: bytes, first_names: dict[FileId, bytes]) -> Entry:
    """Return the entry of a symbolic link, device node, fifo or socket."""
    status = os.lstat(path)
    is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return Entry(
        relative,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        rdev=status.st_rdev if is_device else 0,
        target=os.readlink(path) if stat.S_ISLNK(status.st_mode) else b"",
        hard_link=_first_name(relative, status, first_names),
        xattrs=_read_xattrs(path),
    )


def _first_name(
    relative: bytes, status: os.stat_result, first_names: dict[FileId, bytes]
) -> bytes | None:
    """Return the name under which this file was seen before, None if it was not."""
    if status.st_nlink == 1:
        return None
    first = first_names.setdefault((status.st_dev, status.st_ino), relative)
    return None if first is relative else first


def _read_xattrs(file: bytes | int) -> Mapping[bytes, bytes]:
    """Return what attributes we may see of a path (not followed) or an open file."""
    follow = isinstance(file, int)
    try:
        names = os.listxattr(file, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:
            return NO_XATTRS
        raise
    if not names:
        return NO_XATTRS
    xattrs = {}
    for name in names:
        if name.startswith(XATTR_PREFIXES):
            try:
                xattrs[os.fsencode(name)] = os.getxattr(file, name, follow_symlinks=follow)
            except OSError as exc:
                if exc.errno not in _XATTR_UNREADABLE:
                    raise
    return xattrs


def _read_pieces(fd: int, status: os.stat_result, path: bytes) -> Iterable[Piece]:
    size_bytes = status.st_size
    is_sparse = status.st_blocks * _BLOCK_SIZE_BYTES < size_bytes
    if size_bytes == 0:
        return ()
    if size_bytes <= PIECE_SIZE_BYTES and not is_sparse:
        return ((0, _read(fd, 0, size_bytes, path)),)
    runs = _data_runs(fd, size_bytes) if is_sparse else [(0, size_bytes)]
    return _read_runs(fd, size_bytes, runs, path)


def _read_runs(
    fd: int, size_bytes: int, runs: Iterable[tuple[int, int]], path: bytes
) -> Iterator[Piece]:
    try:
        for start, end in runs:
            for offset in range(start, end, PIECE_SIZE_BYTES):
                piece_size_bytes = min(PIECE_SIZE_BYTES, end - offset)
                yield offset >> PAGE_SHIFT, _read(fd, offset, piece_size_bytes, path)
        # Behind the end of a file that shrank everything looks like one hole.
        if os.fstat(fd).st_size < size_bytes:
            raise _shrank(path)
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _data_runs(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of the bytes whose pages are not wholly in a hole."""
    offset = 0
    while offset < size_bytes:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            if exc.errno != errno.EINVAL:
                raise
            start, end = offset, size_bytes  # this filesystem cannot tell: all of it is data
        end = (end + PAGE_MASK) & ~PAGE_MASK
        yield start & ~PAGE_MASK, min(end, size_bytes)
        offset = end


def _read(fd: int, offset: int, size_bytes: int, path: bytes) -> bytes:
    data = os.pread(fd, size_bytes, offset)
    while len(data) < size_bytes:
        more = os.pread(fd, size_bytes - len(data), offset + len(data))
        if not more:
            raise _shrank(path)
        data += more
    return data


def _shrank(path: bytes) -> SourceError:
    return SourceError(f"{shown(path)}: shrank while it was read: try again when nobody writes it")


def _unreadable(path: bytes, exc: OSError) -> SourceError:
    return SourceError(f"{shown(path)}: cannot be read: {exc.strerror}")


def shown(path: bytes) -> str:
    """Return *path* for a message: one line, whatever its bytes are."""
    return repr(os.fsdecode(path))
