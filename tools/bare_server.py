"""The least that pyfuse3 can be: one file, whose read returns a view of an image. No filesystem.

    bare_server.py IMAGE MNT        serves MNT/image until unmounted

It is what `tools/bench` compares xipfs with: the same pyfuse3, the same kernel options, and nothing
between a request and its bytes.
"""

import errno
import mmap
import os
import stat
import sys
from pathlib import Path
from typing import cast

import pyfuse3
import trio

from xipfs.fuse.server import raise_read_ahead

__all__ = ["BareServer", "main"]

_ROOT, _FILE = 1, 2
_NAME = b"image"


class BareServer(pyfuse3.Operations):
    """A root directory with one file, the image itself."""

    def __init__(self, image: str, *, direct_io: bool) -> None:
        super().__init__()
        fd = os.open(image, os.O_RDONLY)
        self._size_bytes = os.fstat(fd).st_size
        self._view = memoryview(mmap.mmap(fd, self._size_bytes, access=mmap.ACCESS_READ))
        self._direct_io = direct_io

    def _entry(self, ino: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(ino)
        is_root = ino == _ROOT
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755 if is_root else stat.S_IFREG | 0o444)
        entry.st_size = 0 if is_root else self._size_bytes
        entry.st_nlink = 1
        entry.entry_timeout = entry.attr_timeout = 86400
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Know one name."""
        if name != _NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(_FILE)

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return the attributes."""
        return self._entry(inode)

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Open the image."""
        return pyfuse3.FileInfo(
            fh=pyfuse3.FileHandleT(inode), direct_io=self._direct_io, keep_cache=True
        )

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Return a view of the image."""
        return cast("bytes", self._view[off : off + size])

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Refuse once."""
        raise pyfuse3.FUSEError(errno.ENOSYS)


def main(image: str, mountpoint: str, cache: str) -> None:
    """Serve until unmounted."""
    server = BareServer(image, direct_io=cache == "none")
    options = {"fsname=bare", "subtype=bare", "default_permissions", "ro"}
    pyfuse3.init(server, mountpoint, options)
    try:
        trio.run(_serve, Path(mountpoint))
    finally:
        pyfuse3.close(unmount=True)


async def _serve(mountpoint: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_read_ahead, mountpoint)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    main(*sys.argv[1:])
