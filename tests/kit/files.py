"""One scenario, two doors: a small file API over a mount in this process, and over a real one.

DirectFiles plays the kernel's part: it walks paths by lookups, opens, reads, and forgets every
lookup it caused. What fails is an OSError through either door.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from xipfs.errors import XipfsError
from xipfs.fs.inode import Inode
from xipfs.fuse.mount import Mount
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import Fh

__all__ = ["Attributes", "DirectFiles", "Files", "KernelFiles", "attributes"]


class Attributes(NamedTuple):
    """What lstat(2) tells of a file, wherever it lies: no inode number, blocks or ctime."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    mtime_ns: int


def attributes(path: bytes | Path) -> Attributes:
    """The attributes of a file of the host."""
    status = os.lstat(path)
    return Attributes(
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_size,
        status.st_mtime_ns,
    )


class Files(Protocol):
    """Paths are relative to the root of the filesystem, b"" is the root; all raise OSError."""

    def attributes(self, path: bytes) -> Attributes: ...
    def ino(self, path: bytes) -> int: ...
    def names(self, path: bytes) -> list[bytes]: ...
    def readlink(self, path: bytes) -> bytes: ...
    def xattrs(self, path: bytes) -> list[bytes]: ...
    def xattr(self, path: bytes, name: bytes) -> bytes: ...
    def open(self, path: bytes, flags: int = os.O_RDONLY) -> Any: ...
    def read(self, opened: Any, offset: int, size_bytes: int) -> bytes: ...
    def close(self, opened: Any) -> None: ...
    def space(self) -> tuple[int, int, int, int]:
        """Size in pages, free ones, inodes that can be, free ones."""
        ...


class KernelFiles:
    """Through the kernel: files below the directory *root*."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)

    def _path(self, path: bytes) -> bytes:
        return os.path.join(self._root, path) if path else self._root

    def attributes(self, path: bytes) -> Attributes:
        return attributes(self._path(path))

    def ino(self, path: bytes) -> int:
        return os.lstat(self._path(path)).st_ino

    def names(self, path: bytes) -> list[bytes]:
        return os.listdir(self._path(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._path(path))

    def xattrs(self, path: bytes) -> list[bytes]:
        names = os.listxattr(self._path(path), follow_symlinks=False)
        return [os.fsencode(name) for name in names]

    def xattr(self, path: bytes, name: bytes) -> bytes:
        return os.getxattr(self._path(path), name, follow_symlinks=False)

    def open(self, path: bytes, flags: int = os.O_RDONLY) -> int:
        return os.open(self._path(path), flags)

    def read(self, opened: int, offset: int, size_bytes: int) -> bytes:
        return os.pread(opened, size_bytes, offset)

    def close(self, opened: int) -> None:
        os.close(opened)

    def space(self) -> tuple[int, int, int, int]:
        facts = os.statvfs(self._root)
        assert facts.f_bsize == facts.f_frsize == 4096
        assert facts.f_bavail == facts.f_bfree
        return facts.f_blocks, facts.f_bfree, facts.f_files, facts.f_ffree


class DirectFiles:
    """By `Mount.dispatch`, as a front would; every lookup is taken back."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.operations = mount.operations

    def call(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self.mount.dispatch(operation, *arguments)
        except XipfsError as exc:
            raise OSError(exc.errno, os.strerror(exc.errno)) from exc

    def walk(self, path: bytes) -> list[Inode]:
        """Look up every name of *path*, not following symbolic links; the root comes first."""
        inodes = [self.call(self.operations.getattr, INO_ROOT)]
        try:
            for name in path.split(b"/") if path else []:
                inodes.append(self.call(self.operations.lookup, inodes[-1].ino, name))
        except BaseException:
            self.forget(inodes)
            raise
        return inodes

    def forget(self, inodes: list[Inode]) -> None:
        for inode in inodes:
            self.call(self.operations.forget, inode.ino, 1)

    @contextmanager
    def inode(self, path: bytes) -> Iterator[Inode]:
        inodes = self.walk(path)
        try:
            yield inodes[-1]
        finally:
            self.forget(inodes)

    def attributes(self, path: bytes) -> Attributes:
        with self.inode(path) as found:
            disk = self.call(self.operations.getattr, found.ino).disk
        return Attributes(
            disk.mode, disk.nlink, disk.uid, disk.gid, disk.rdev, disk.size_bytes, disk.mtime_ns
        )

    def ino(self, path: bytes) -> int:
        with self.inode(path) as inode:
            return inode.ino

    def names(self, path: bytes) -> list[bytes]:
        found: list[bytes] = []
        with self.inode(path) as inode:
            fh = self.call(self.operations.opendir, inode.ino)
            position, nr_before = 0, -1
            while len(found) > nr_before:
                nr_before = len(found)
                position = self.list_some(fh, position, found, 37)
            self.call(self.operations.release, fh)
        return [name for name in found if name not in (b".", b"..")]

    def list_some(self, fh: Fh, position: int, found: list[bytes], nr_entries: int) -> int:
        """Append up to nr_entries names behind *position*; return the position behind them."""
        listed: list[tuple[bytes, Inode, int]] = []

        def emit(name: bytes, inode: Inode, entry_position: int) -> bool:
            if len(listed) == nr_entries:
                return False
            listed.append((name, inode, entry_position))
            return True

        self.call(self.operations.readdir, fh, position, emit)
        self.forget([inode for name, inode, _ in listed if name not in (b".", b"..")])
        found += [name for name, _, _ in listed]
        return listed[-1][2] if listed else position

    def readlink(self, path: bytes) -> bytes:
        with self.inode(path) as inode:
            target: bytes = self.call(self.operations.readlink, inode.ino)
        return target

    def xattrs(self, path: bytes) -> list[bytes]:
        with self.inode(path) as inode:
            names: list[bytes] = self.call(self.operations.listxattr, inode.ino)
        return names

    def xattr(self, path: bytes, name: bytes) -> bytes:
        with self.inode(path) as inode:
            value: bytes = self.call(self.operations.getxattr, inode.ino, name)
        return value

    def open(self, path: bytes, flags: int = os.O_RDONLY) -> tuple[Fh, Inode]:
        *parents, inode = self.walk(path)
        try:
            if stat.S_ISLNK(inode.disk.mode):
                raise OSError(errno.ELOOP, "a symbolic link is the kernel's to follow")
            fh = self.call(self.operations.open, inode.ino, flags)
        except OSError:
            self.forget([inode])
            raise
        finally:
            self.forget(parents)
        return fh, inode  # the kernel remembers the inode of an open file

    def read(self, opened: tuple[Fh, Inode], offset: int, size_bytes: int) -> bytes:
        runs = self.call(self.operations.read, opened[0], offset, size_bytes)
        return bytes(self.mount.read_bytes(runs))

    def close(self, opened: tuple[Fh, Inode]) -> None:
        self.call(self.operations.release, opened[0])
        self.forget([opened[1]])

    def space(self) -> tuple[int, int, int, int]:
        facts = self.call(self.operations.statfs)
        return (
            facts.nr_pages,
            facts.nr_free_pages,
            facts.nr_inodes + facts.nr_free_inodes,
            facts.nr_free_inodes,
        )
