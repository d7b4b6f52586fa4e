"""From a path to an inode, for commands that look into an image without a mount."""

import os
import stat

from xipfs.errors import FormatError, NoEntryError, NotDirError, SymlinkLoopError
from xipfs.fs.inode import Inode
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import INO_ROOT

__all__ = ["PATH_MAX", "path_lookup"]

PATH_MAX = 4096
NR_SYMLINKS_MAX = 40


def path_lookup(sb: SuperBlock, path: bytes, *, follow: bool = True) -> Inode:
    """Return the inode that *path* names, from the image's root, whether it starts with / or not.

    follow: of a symbolic link at the very end, return what it points to. A slash behind it asks
    for that too, as everywhere on Linux. Nothing leads out of the image: ".." of the root is the
    root, and absolute links start there.

    Raises: NoEntryError, NotDirError, NameTooLongError, SymlinkLoopError; FormatError, DeviceError.
    """
    shown = os.fsdecode(path)
    inode = sb.iget(INO_ROOT)
    parents: list[Inode] = []
    names = path.split(b"/")[::-1]
    nr_symlinks = 0
    while names:
        name = names.pop()
        if not inode.is_dir:
            raise NotDirError(f"{shown!r}: a directory is needed where a file stands")
        if name in (b"", b"."):
            continue
        if name == b"..":
            inode = parents.pop() if parents else inode
            continue
        try:
            child = sb.lookup(inode, name)
        except NoEntryError:
            raise NoEntryError(f"{shown!r}: no such file or directory in the image") from None
        if stat.S_ISLNK(child.disk.mode) and (follow or names):
            nr_symlinks += 1
            if nr_symlinks > NR_SYMLINKS_MAX:
                raise SymlinkLoopError(f"{shown!r}: more than {NR_SYMLINKS_MAX} symbolic links")
            target = sb.read_all(child, PATH_MAX)
            if not target:
                raise FormatError(f"inode {child.ino}: a symbolic link to nothing")
            if target.startswith(b"/"):
                inode, parents = sb.iget(INO_ROOT), []
            names += target.split(b"/")[::-1]
            continue
        parents.append(inode)
        inode = child
    return inode
