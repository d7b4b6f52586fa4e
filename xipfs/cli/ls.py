"""`xipfs ls IMAGE[:PATH]`: names in an image, without a mount."""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

import typer

from xipfs.cli.imagepath import open_image, split_image_path
from xipfs.errors import FormatError
from xipfs.fs.contents import list_directory, printable
from xipfs.fs.inode import Inode
from xipfs.fs.namei import PATH_MAX, path_lookup
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import DiskInode
from xipfs.units import Ino

__all__ = ["ls"]

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_HEADER = ("mode", "links", "uid", "gid", "size_bytes", "mtime_utc", "name")


class _Row(NamedTuple):
    """One name. path: from the argument on; target: of a symbolic link."""

    name: bytes
    path: bytes
    inode: DiskInode
    target: bytes | None


def ls(
    target: Annotated[str, typer.Argument(metavar="IMAGE[:PATH]")],
    long: Annotated[bool, typer.Option("-l", help="Modes, owners, sizes and times.")] = False,
    recursive: Annotated[bool, typer.Option("-R", help="Directories below it, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, for programs.")] = False,
) -> None:
    """List a file or directory in an image. Odd bytes of names are shown as \\xff."""
    image, path = split_image_path(target)
    with open_image(image) as sb:
        # As ls(1): a link at the end is followed to a directory, unless it is itself looked at.
        inode = path_lookup(sb, path, follow=not long or path.endswith(b"/"))
        directories = _walk(sb, inode, path, recursive=recursive)
        if as_json:
            _print_json(row for _, rows in directories for row in rows)
            return
        for number, (directory, rows) in enumerate(directories):
            if recursive:
                print("\n" * (number > 0) + f"{printable(directory)}:")
            _print_rows(rows, long=long)


def _walk(
    sb: SuperBlock, top: Inode, path: bytes, *, recursive: bool
) -> Iterator[tuple[bytes, list[_Row]]]:
    """Yield (path, its rows) of directory *top*, and of those below it; of a file, its own row.

    Raises: FormatError, DeviceError.
    """
    if not top.is_dir:
        yield path, [_row(sb, top.ino, path, path)]
        return
    waiting = [(top.ino, path)]
    seen: set[Ino] = set()
    while waiting:
        ino, path = waiting.pop()
        if ino in seen:
            raise FormatError(f"directory {ino} has two names: run xipfs fsck")
        seen.add(ino)
        directory = sb.iget(ino)
        rows = [
            _row(sb, entry.ino, entry.name, os.path.join(path, entry.name))
            for entry in list_directory(sb, directory)
        ]
        sb.drop_unused(directory)
        yield path, rows
        if recursive:
            below = [(row.inode.ino, row.path) for row in rows if stat.S_ISDIR(row.inode.mode)]
            waiting += below[::-1]


def _row(sb: SuperBlock, ino: Ino, name: bytes, path: bytes) -> _Row:
    inode = sb.iget(ino)
    target = sb.read_all(inode, PATH_MAX) if stat.S_ISLNK(inode.disk.mode) else None
    sb.drop_unused(inode)
    return _Row(name, path, inode.disk, target)


def _print_rows(rows: list[_Row], *, long: bool) -> None:
    if not long:
        for row in rows:
            print(printable(row.name))
        return
    table = [_HEADER, *map(_columns, rows)]
    widths = [max(len(columns[i]) for columns in table) for i in range(len(_HEADER) - 1)]
    for columns in table:
        # Modes and times to the left, figures to the right, and the name as long as it is.
        cells = [
            columns[i].ljust(width) if i in (0, 5) else columns[i].rjust(width)
            for i, width in enumerate(widths)
        ]
        print(*cells, columns[-1])


def _columns(row: _Row) -> tuple[str, ...]:
    inode = row.inode
    name = printable(row.name)
    if row.target is not None:
        name += f" -> {printable(row.target)}"
    size = str(inode.size_bytes)
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        size = f"{os.major(inode.rdev)},{os.minor(inode.rdev)}"
    mtime = datetime.fromtimestamp(inode.mtime_ns // 10**9, UTC)
    return (
        stat.filemode(inode.mode),
        str(inode.nlink),
        str(inode.uid),
        str(inode.gid),
        size,
        f"{mtime:%Y-%m-%d %H:%M:%S}",
        name,
    )


def _print_json(rows: Iterable[_Row]) -> None:
    """Print an array, one name a line; bytes that are no UTF-8 as Python's surrogates."""
    separator = "["
    for row in rows:
        inode = row.inode
        facts = {
            "path": os.fsdecode(row.path),
            "ino": inode.ino,
            "type": _TYPES.get(stat.S_IFMT(inode.mode), "unknown"),
            "mode": f"{stat.S_IMODE(inode.mode):04o}",
            "nlink": inode.nlink,
            "uid": inode.uid,
            "gid": inode.gid,
            "size_bytes": inode.size_bytes,
            "nr_pages": inode.nr_pages,
            "mtime_ns": inode.mtime_ns,
            "rdev": inode.rdev,
        }
        if row.target is not None:
            facts["target"] = os.fsdecode(row.target)
        print(separator + json.dumps(facts), end="")
        separator = ",\n "
    print("]" if separator != "[" else "[]")
