"""Adapter: pyfuse3's calls to `Mount.dispatch`, and errors to errno. Nothing is decided here.

A handler raises FUSEError and nothing else (pyfuse3's contract): an operating error becomes its
errno; anything else is a bug of ours, is logged with its traceback, and the client gets EIO. The
mount lives on.

No handler awaits anything but an open that empties a file, before it begins. So between the end of
an operation and the reply that carries its views nothing else of the mount runs. (But for `inject`,
whose reads wait, and take copies.)
"""

import errno
import functools
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import pyfuse3
import trio

from xipfs.errors import DeviceError, FormatError, NoEntryError, XipfsError
from xipfs.fs.inode import Inode
from xipfs.fs.namespace import Owner
from xipfs.fuse.mount import Mount
from xipfs.fuse.operations import Changes
from xipfs.fuse.options import CacheMode
from xipfs.ondisk.dentry import NAME_SIZE_BYTES_MAX
from xipfs.ondisk.superblock import Compat
from xipfs.phys.physmem import Run
from xipfs.units import PAGE_SIZE, Fh, Ino

__all__ = ["Adapter", "fuse_error"]

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_S = 86400.0
"""How long the kernel may keep names and attributes: all that changes does so by its requests, and
it asks again for what a request may have changed beside its reply."""

_HOLD_POLL_S = 0.0005

_SECTORS_PER_PAGE = PAGE_SIZE // 512
_NR_PAGES_MAX = 1 << 52
"""More than any image has; st_blocks is an off_t, and a damaged inode may say anything."""


def _errors_to_errno(
    handler: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make *handler* raise FUSEError and nothing else: anything else would end the mount."""

    @functools.wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except Exception as exc:
            raise fuse_error(exc) from None

    return wrapper


class Adapter(pyfuse3.Operations):
    """The operations of *mount* as pyfuse3 wants them.

    hold: `Notifier.hold`, if there is a notifier; set by the server.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, mount: Mount) -> None:
        super().__init__()
        self._mount = mount
        self._operations = mount.operations
        self._dispatch = mount.dispatch
        # Bound once and typed as pyfuse3 wants them: these two are on the way of every read.
        self._read = cast("Callable[[int, int, int], list[Run]]", mount.operations.read)
        self._read_bytes = cast("Callable[[list[Run]], bytes]", mount.read_bytes)
        self._direct_io = mount.options.cache is CacheMode.NONE
        mount.operations.direct_io = self._direct_io
        self.hold: Callable[[Ino], bool] = lambda ino: False
        # The kernel asks for ACLs of every inode on the way if this is on.
        self.enable_acl = mount.options.acl or bool(mount.sb.disk.compat & Compat.ACL)
        mount.operations.has_acl = self.enable_acl

    @_errors_to_errno
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Look a name up; that it is not there is cached too."""
        try:
            inode = self._dispatch(self._operations.lookup, Ino(parent_inode), name)
        except NoEntryError:
            return _negative_entry()
        return _entry(inode)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Take lookups back. Never raises: FORGET has no reply."""
        for ino, nr_lookups in inode_list:
            try:
                self._dispatch(self._operations.forget, Ino(ino), nr_lookups)
            except Exception:
                _log.exception("forget of inode %d failed", ino)

    @_errors_to_errno
    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return the attributes."""
        return _entry(self._dispatch(self._operations.getattr, Ino(inode)))

    @_errors_to_errno
    async def readlink(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileNameT:
        """Return a symbolic link's target."""
        return pyfuse3.FileNameT(self._dispatch(self._operations.readlink, Ino(inode)))

    @_errors_to_errno
    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Make a file, fifo, socket or device; the umask is applied already."""
        return _entry(
            self._dispatch(self._operations.mknod, Ino(parent_inode), name, mode, _owner(ctx), rdev)
        )

    @_errors_to_errno
    async def mkdir(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Make a directory."""
        return _entry(
            self._dispatch(self._operations.mkdir, Ino(parent_inode), name, mode, _owner(ctx))
        )

    @_errors_to_errno
    async def symlink(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        target: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Make a symbolic link."""
        return _entry(
            self._dispatch(self._operations.symlink, Ino(parent_inode), name, target, _owner(ctx))
        )

    @_errors_to_errno
    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Give a file another name."""
        return _entry(
            self._dispatch(self._operations.link, Ino(inode), Ino(new_parent_inode), new_name)
        )

    @_errors_to_errno
    async def unlink(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Remove a name."""
        self._dispatch(self._operations.unlink, Ino(parent_inode), name)

    @_errors_to_errno
    async def rmdir(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Remove an empty directory."""
        self._dispatch(self._operations.rmdir, Ino(parent_inode), name)

    @_errors_to_errno
    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: pyfuse3.FileNameT,
        parent_inode_new: pyfuse3.InodeT,
        name_new: pyfuse3.FileNameT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Give something another name."""
        self._dispatch(
            self._operations.rename,
            Ino(parent_inode_old),
            name_old,
            Ino(parent_inode_new),
            name_new,
            flags,
        )

    @_errors_to_errno
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Change attributes, the size among them."""
        changes = Changes(
            size_bytes=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return _entry(self._dispatch(self._operations.setattr, Ino(inode), changes))

    @_errors_to_errno
    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        """Open a directory."""
        return pyfuse3.FileHandleT(self._dispatch(self._operations.opendir, Ino(inode)))

    @_errors_to_errno
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        """List a directory with attributes (READDIRPLUS)."""

        def emit(name: bytes, inode: Inode, position: int) -> bool:
            return pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), _entry(inode), position)

        self._dispatch(self._operations.readdir, Fh(fh), start_id, emit)

    @_errors_to_errno
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        """Close a directory."""
        self._dispatch(self._operations.release, Fh(fh))

    @_errors_to_errno
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Open a file, cached by the kernel or not as `cache=` says."""
        if flags & os.O_TRUNC:
            while self.hold(Ino(inode)):  # noqa: ASYNC110 (the notifier is a thread)
                await trio.sleep(_HOLD_POLL_S)
        fh = self._dispatch(self._operations.open, Ino(inode), flags, ctx.pid, ctx.uid)
        return self._file_info(fh)

    @_errors_to_errno
    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Make a file and open it."""
        fh, inode = self._dispatch(
            self._operations.create, Ino(parent_inode), name, mode, flags, _owner(ctx), ctx.pid
        )
        return self._file_info(fh), _entry(inode)

    def _file_info(self, fh: Fh) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(
            fh=pyfuse3.FileHandleT(fh), direct_io=self._direct_io, keep_cache=True
        )

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Return the bytes that the ptes name: a view where they are contiguous, else a copy."""
        try:
            runs = self._dispatch(self._read, fh, off, size)
            return self._read_bytes(runs)
        except Exception as exc:
            raise fuse_error(exc) from None

    @_errors_to_errno
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        """Write; the kernel sends what was written by write(2) at once, and dirty maps later."""
        return self._dispatch(self._operations.write, Fh(fh), off, buf)

    @_errors_to_errno
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Make what was written durable."""
        self._dispatch(self._operations.fsync, Fh(fh), datasync)

    @_errors_to_errno
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Make the changes of a directory durable."""
        self._dispatch(self._operations.fsync, Fh(fh), datasync)

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Refuse once, so that the kernel never asks again: close(2) then costs no round trip."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @_errors_to_errno
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Close a file."""
        self._dispatch(self._operations.release, Fh(fh))

    @_errors_to_errno
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return how full the image is."""
        facts = self._dispatch(self._operations.statfs)
        reply = pyfuse3.StatvfsData()
        reply.f_bsize = reply.f_frsize = PAGE_SIZE
        reply.f_blocks = facts.nr_pages
        reply.f_bfree = facts.nr_free_pages
        reply.f_bavail = facts.nr_available_pages
        reply.f_files = facts.nr_inodes + facts.nr_free_inodes
        reply.f_ffree = reply.f_favail = facts.nr_free_inodes
        reply.f_namemax = NAME_SIZE_BYTES_MAX
        return reply

    @_errors_to_errno
    async def getxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> bytes:
        """Return an extended attribute."""
        return self._dispatch(self._operations.getxattr, Ino(inode), name)

    @_errors_to_errno
    async def setxattr(
        self,
        inode: pyfuse3.InodeT,
        name: pyfuse3.XAttrNameT,
        value: bytes,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Set an extended attribute; pyfuse3 has seen to XATTR_CREATE and XATTR_REPLACE."""
        self._dispatch(self._operations.setxattr, Ino(inode), name, value)

    @_errors_to_errno
    async def removexattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Remove an extended attribute."""
        self._dispatch(self._operations.removexattr, Ino(inode), name)

    @_errors_to_errno
    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[pyfuse3.XAttrNameT]:
        """Return the names of the extended attributes."""
        names = self._dispatch(self._operations.listxattr, Ino(inode))
        return [pyfuse3.XAttrNameT(name) for name in names]


def _owner(ctx: pyfuse3.RequestContext) -> Owner:
    return Owner(ctx.uid, ctx.gid)


def fuse_error(exc: Exception) -> pyfuse3.FUSEError:
    """Return what the client shall see; log what the owner should know."""
    if isinstance(exc, XipfsError):
        if isinstance(exc, FormatError | DeviceError):
            _log.error("%s", exc)
        return pyfuse3.FUSEError(exc.errno)
    _log.error("a bug in xipfs: the client gets EIO", exc_info=exc)
    return pyfuse3.FUSEError(errno.EIO)


def _entry(inode: Inode) -> pyfuse3.EntryAttributes:
    disk = inode.disk
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(disk.ino)
    entry.generation = disk.generation
    entry.entry_timeout = entry.attr_timeout = TIMEOUT_S
    entry.st_mode = pyfuse3.ModeT(disk.mode)
    entry.st_nlink = disk.nlink
    entry.st_uid = disk.uid
    entry.st_gid = disk.gid
    entry.st_rdev = disk.rdev
    entry.st_size = disk.size_bytes
    entry.st_blksize = PAGE_SIZE
    entry.st_blocks = min(disk.nr_pages, _NR_PAGES_MAX) * _SECTORS_PER_PAGE
    entry.st_atime_ns = disk.atime_ns
    entry.st_mtime_ns = disk.mtime_ns
    entry.st_ctime_ns = disk.ctime_ns
    return entry


def _negative_entry() -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = TIMEOUT_S
    return entry
