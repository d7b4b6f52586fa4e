"""From a path to an inode, for commands that look into an image without a mount."""

import stat

from xipfs.errors import NotDirError, SymlinkLoopError
from xipfs.fs.inode import Inode
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import INO_ROOT

__all__ = ["PATH_MAX", "path_lookup"]

PATH_MAX = 4096
_NR_SYMLINKS_MAX = 40


def path_lookup(sb: SuperBlock, path: bytes, *, follow: bool = True) -> Inode:
    """Return the inode that *path* names, from the image's root, whether it starts with / or not.

    follow: of a symbolic link at the very end, return what it points to.
    Raises: NoEntryError, NotDirError, NameTooLongError, SymlinkLoopError; FormatError, DeviceError.
    """
    inode = sb.iget(INO_ROOT)
    names = path.split(b"/")
    names.reverse()
    nr_symlinks = 0
    parents: list[Inode] = []
    while names:
        name = names.pop()
        if name in (b"", b"."):
            if not inode.is_dir and not all(n == b"" for n in names):
                raise NotDirError(f"{path!r}: not a directory on the way")
            continue
        if name == b"..":
            inode = parents.pop() if parents else sb.iget(INO_ROOT)
            continue
        child = sb.lookup(inode, name)
        if stat.S_ISLNK(child.disk.mode) and (follow or any(names)):
            nr_symlinks += 1
            if nr_symlinks > _NR_SYMLINKS_MAX:
                raise SymlinkLoopError(f"{path!r}: more than {_NR_SYMLINKS_MAX} symbolic links")
            target = sb.read_all(child, PATH_MAX)
            if target.startswith(b"/"):
                inode, parents = sb.iget(INO_ROOT), []
            names += target.split(b"/")[::-1]
            continue
        parents.append(inode)
        inode = child
    return inode
