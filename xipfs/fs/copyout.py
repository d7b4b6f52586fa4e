"""Copy a file or a tree out of an image: modes, times, attributes, links, holes, special files.

Nothing that exists is replaced or followed: each file is created anew, so that whatever an image
names its files, they end up below the destination and nowhere else. Directories get their modes
and times when all is in them. What fails is reported and left out, and the rest is copied.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from xipfs.errors import (
    FormatError,
    InvalidArgumentError,
    NoSpaceError,
    XipfsError,
)
from xipfs.fs.contents import iter_data, list_directory, printable
from xipfs.fs.inode import Inode
from xipfs.fs.namei import PATH_MAX
from xipfs.fs.superblock import SuperBlock
from xipfs.units import PAGE_SHIFT, Ino

__all__ = ["CopyStatistics", "copy_out"]


class CopyStatistics(NamedTuple):
    """What was copied. nr_failures: lines that *warn* got."""

    nr_files: int
    nr_failures: int


def copy_out(
    sb: SuperBlock,
    inode: Inode,
    target: bytes,
    *,
    warn: Callable[[str], None],
) -> CopyStatistics:
    """Copy *inode*, and all below it, to the path *target*, which must not exist.

    Owners are kept by root only; without them set-id bits are dropped. warn: gets one line for
    each thing that could not be copied.
    Raises: InvalidArgumentError if *target* exists; NoSpaceError.
    """
    if os.path.lexists(target):
        raise InvalidArgumentError(f"{os.fsdecode(target)}: exists, and nothing is replaced")
    copy = _Copy(sb, warn)
    copy.run(inode, target)
    return CopyStatistics(copy.nr_files, copy.nr_failures)


class _Copy:
    """One copy under way. paths: where inodes with several names went."""

    __slots__ = (
        "_dirs",
        "_is_root",
        "_nr_left_bytes",
        "_paths",
        "_sb",
        "_warn",
        "nr_failures",
        "nr_files",
    )

    def __init__(self, sb: SuperBlock, warn: Callable[[str], None]) -> None:
        self._sb = sb
        self._warn = warn
        self._nr_left_bytes = sb.disk.nr_pages << PAGE_SHIFT
        self._is_root = os.geteuid() == 0
        self._paths: dict[Ino, bytes] = {}
        self._dirs: set[Ino] = set()
        self.nr_files = self.nr_failures = 0

    def run(self, inode: Inode, target: bytes) -> None:
        """Copy *inode*, and all below it, one after the other."""
        # (inode number, path, already made?): a directory comes back when all in it is copied.
        waiting = [(inode.ino, target, False)]
        while waiting:
            ino, path, made = waiting.pop()
            try:
                inode = self._sb.iget(ino)
                try:
                    if made:
                        self._finish(inode, path)
                    elif inode.is_dir:
                        children = self._make_directory(inode, path)
                        waiting += [(ino, path, True), *children]
                    else:
                        self._make_file(inode, path)
                finally:
                    self._sb.drop_unused(inode)
            except OSError as exc:
                if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise NoSpaceError(f"{os.fsdecode(path)}: {exc.strerror}") from exc
                self._fail(path, exc.strerror or str(exc))
            except XipfsError as exc:
                self._fail(path, str(exc))

    def _make_directory(self, inode: Inode, path: bytes) -> list[tuple[Ino, bytes, bool]]:
        if inode.ino in self._dirs:
            raise FormatError(f"directory {inode.ino} has two names: run xipfs fsck")
        self._dirs.add(inode.ino)
        os.mkdir(path, 0o700)
        self.nr_files += 1
        try:
            entries = list_directory(self._sb, inode)
        except XipfsError as exc:
            self._fail(path, str(exc))
            return []
        return [(entry.ino, os.path.join(path, entry.name), False) for entry in entries[::-1]]

    def _make_file(self, inode: Inode, path: bytes) -> None:
        """Copy what is no directory."""
        if inode.disk.nlink > 1 and inode.ino in self._paths:
            os.link(self._paths[inode.ino], path, follow_symlinks=False)
        else:
            self._make_inode(inode, path)
            self._finish(inode, path)
            self._paths[inode.ino] = path
        self.nr_files += 1

    def _make_inode(self, inode: Inode, path: bytes) -> None:
        disk = inode.disk
        if inode.is_regular:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(path, flags, 0o600)
            try:
                for offset, data in iter_data(self._sb, inode):
                    self._take_room(inode, len(data))
                    _write_all(fd, data, offset)
                os.ftruncate(fd, disk.size_bytes)
            finally:
                os.close(fd)
        elif stat.S_ISLNK(disk.mode):
            link = self._sb.read_all(inode, PATH_MAX)
            if b"\0" in link:
                raise FormatError(f"inode {inode.ino}: a symbolic link with a NUL in it")
            os.symlink(link, path)
        elif stat.S_IFMT(disk.mode) in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
            os.mknod(path, stat.S_IFMT(disk.mode) | 0o600, disk.rdev)
        else:
            raise FormatError(f"inode {inode.ino} has a mode of no type: {disk.mode:#o}")

    def _take_room(self, inode: Inode, size_bytes: int) -> None:
        """Count what is copied: every page has one owner, so it cannot be more than there is."""
        self._nr_left_bytes -= size_bytes
        if self._nr_left_bytes < 0:
            raise FormatError(
                f"inode {inode.ino}: the copy has more pages than the image has: extents overlap"
            )

    def _finish(self, inode: Inode, path: bytes) -> None:
        """Give what was made its owner, mode, attributes and times: in this order, each counts."""
        disk = inode.disk
        mode = stat.S_IMODE(disk.mode)
        if self._is_root:
            os.chown(path, disk.uid, disk.gid, follow_symlinks=False)
        else:
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        if not stat.S_ISLNK(disk.mode):
            os.chmod(path, mode)
        for name, value in self._sb.read_xattrs(inode).items():
            try:
                if b"\0" in name:
                    raise FormatError("a NUL in its name")
                os.setxattr(path, name, value, follow_symlinks=False)
            except (OSError, FormatError) as exc:
                self._fail(path, f"attribute {printable(name)}: {exc}")
        os.utime(path, ns=(disk.atime_ns, disk.mtime_ns), follow_symlinks=False)

    def _fail(self, path: bytes, reason: str) -> None:
        self.nr_failures += 1
        self._warn(f"{printable(path)}: {reason}")


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
