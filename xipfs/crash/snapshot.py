"""Snapshot: the tree of a filesystem as programs see it, to be compared with another.

    tree = take_snapshot(sb, read_file)
    tree["/A/foo"].size_bytes

What a program cannot see is not in it: where pages lie, the order of a directory, atime (which
nothing here updates). Inode numbers are: hard links show by them, and they never change.
"""

import stat
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from xipfs.fs.inode import Inode
from xipfs.fs.namei import PATH_MAX
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import INO_ROOT

__all__ = ["Node", "Tree", "take_snapshot"]


class Node(NamedTuple):
    """What stat(2), read(2), readlink(2) and getxattr(2) tell of one name.

    content: of a regular file, or the target of a symbolic link. entries: names of a directory,
    sorted. xattrs: (name, value), sorted.
    """

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size_bytes: int
    rdev: int
    mtime_ns: int
    ctime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    content: bytes
    entries: tuple[bytes, ...]


Tree: TypeAlias = dict[str, Node]
"""Path from the root, "/A/foo", names decoded as by os.fsdecode -> Node; the root is "/"."""


def take_snapshot(sb: SuperBlock, read_file: Callable[[Inode], bytes]) -> Tree:
    """Walk all names of *sb*. read_file: the bytes of a regular file, as read(2) would tell now.

    Raises: XipfsError where the tree cannot be read.
    """
    tree: Tree = {}
    nodes: dict[int, Node] = {}  # by inode: a file of several names is read once
    waiting = [("", sb.iget(INO_ROOT))]
    while waiting:
        path, inode = waiting.pop()
        disk = inode.disk
        content = b""
        names: list[bytes] = []
        node = nodes.get(disk.ino)
        if node is not None:
            tree[path or "/"] = node
            continue
        if inode.is_regular:
            content = read_file(inode)
        elif stat.S_ISLNK(disk.mode):
            content = sb.read_all(inode, PATH_MAX)
        elif inode.is_dir:
            for entry in sb.dir_reader.iter_entries(disk, inode.extents, 0):
                if entry.name not in (b".", b".."):
                    name = entry.name.decode("utf-8", "surrogateescape")
                    waiting.append((f"{path}/{name}", sb.iget(entry.ino)))
                names.append(entry.name)
        node = Node(
            ino=disk.ino,
            mode=disk.mode,
            nlink=disk.nlink,
            uid=disk.uid,
            gid=disk.gid,
            size_bytes=disk.size_bytes,
            rdev=disk.rdev,
            mtime_ns=disk.mtime_ns,
            ctime_ns=disk.ctime_ns,
            xattrs=tuple(sb.read_xattrs(inode).items()),
            content=content,
            entries=tuple(sorted(names)),
        )
        tree[path or "/"] = nodes[disk.ino] = node
    return tree
