"""Every request as a plain, synchronous function of the core: typed arguments in, values out.

No pyfuse3 and no trio here, so that any front can call them: the pyfuse3 adapter, tests, and a
second, faster way in. All are called through `Mount.dispatch`, which holds the lock.

    reading   ->  inode (fs) or handle  ->  vma  ->  access (mm)  ->  runs of physical bytes
    changing  ->  inode (fs)  ->  one transaction (fs/namespace, attributes, file)

A change that returned is in the image, and what was written to a file is with `fsync`. What fails
has changed nothing.

Lookup counts are FUSE's contract: `lookup`, what makes a name, and each entry that `readdir` hands
out, count one; `forget` takes them back, and an inode that nobody knows goes, with its vma. If it
has no name any more, its pages are free then.
"""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import (
    ExistsError,
    FormatError,
    InvalidArgumentError,
    IsDirError,
    NoDataError,
    NotDirError,
    NotSupportedError,
    ReadOnlyFsError,
    StaleError,
    XipfsError,
)
from xipfs.fs import attributes, namespace
from xipfs.fs.file import sync_file, truncate_file, write_file
from xipfs.fs.inode import Inode
from xipfs.fs.namei import PATH_MAX
from xipfs.fs.namespace import Owner
from xipfs.fs.orphans import release_orphan
from xipfs.fs.posix_acl import XATTR_ACL_ACCESS, XATTR_ACL_DEFAULT
from xipfs.fs.superblock import SuperBlock
from xipfs.fuse.view import extents_json, tiers_json
from xipfs.mm.access import access_page, access_range
from xipfs.mm.filemap_xip import xip_file_mmap
from xipfs.mm.mmap import munmap
from xipfs.mm.mremap import expand_to_file
from xipfs.mm.truncate import truncate_setsize
from xipfs.mm.vma import Mm
from xipfs.ondisk.inode import INO_MAX, INO_ROOT
from xipfs.phys.physmem import PhysMem, Run
from xipfs.policy.contract import PGOFF_BITS, AccessKind, Tier
from xipfs.tiering.access_log import AccessLog, access_origin
from xipfs.units import (
    NVRAM_PFN_START,
    PAGE_MASK,
    PAGE_SHIFT,
    Fh,
    Ino,
    Pgoff,
    bytes_to_pages,
)

__all__ = ["Changes", "Handle", "Operations", "StatFs"]

_NVRAM_PADDR_START = NVRAM_PFN_START << PAGE_SHIFT

XATTR_TIERS = b"user.xipfs.tiers"
XATTR_EXTENTS = b"user.xipfs.extents"
XATTR_CONTROL = b"user.xipfs.control"

_XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.")

Emit = Callable[[bytes, Inode, int], bool]
"""(name, inode, position) -> was there room for the entry?"""


class StatFs(NamedTuple):
    """What statfs(2) answers, in pages of PAGE_SIZE bytes and in inodes.

    nr_available_pages: without those kept for operations that will free some.
    """

    nr_pages: int
    nr_free_pages: int
    nr_available_pages: int
    nr_inodes: int
    nr_free_inodes: int


class Changes(NamedTuple):
    """What setattr shall change; None: not that."""

    size_bytes: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@dataclass(slots=True)
class Handle:
    """An open file or directory.

    origin, write_origin: of the accesses that come by it, see `tiering.access_log`. drops_suid:
    whether it is ours to clear setuid and setgid when something is written.
    """

    inode: Inode
    origin: int
    write_origin: int
    drops_suid: bool


class Operations:
    """The requests on one image.

    control_address: what XATTR_CONTROL answers on the root directory; set by the server.
    direct_io: whether the kernel reads and writes past its page cache; set by the front.
    has_acl: whether it enforces ACLs; set by the front.
    pages_gone: told of a file that was cut, and where: nothing is left in RAM from there on.
    """

    def __init__(self, sb: SuperBlock, mm: Mm, log: AccessLog) -> None:
        self._sb = sb
        self._mm = mm
        self._record = log.record
        self._sparse_pfn = mm.machine.sparse_pfn
        self._vmstat = mm.machine.vmstat
        self._handles: dict[Fh, Handle] = {}
        self._next_fh = 1
        self.control_address = b""
        self.direct_io = False
        self.has_acl = True
        self.pages_gone: Callable[[Ino, int], object] = lambda ino, first: None

    # Names

    def lookup(self, parent: Ino, name: bytes) -> Inode:
        """Return what *name* in directory *parent* is; counts one lookup.

        "." in *parent*, which need be no directory and may be unknown yet, is how a file is found
        by its handle.
        Raises: NoEntryError, ..; StaleError for a "." that is not there.
        """
        if name == b".":
            return self._known(self._find_stale(parent))
        inode = self._sb.lookup(self._get_inode(parent), name)
        if name != b"..":
            inode.dentry = (parent, name)
        return self._known(inode)

    def forget(self, ino: Ino, nr_lookups: int) -> None:
        """Take lookups back; the last one unmaps the file and forgets the inode.

        Raises: FormatError, DeviceError: of a file without a name, which then stays an orphan.
        """
        inode = self._sb.find_inode(ino)
        if inode is None or ino == INO_ROOT:
            return
        inode.nr_lookups -= nr_lookups
        self._end_if_unused(inode)

    def getattr(self, ino: Ino) -> Inode:
        """Return the inode, whose `disk` has the attributes."""
        return self._get_inode(ino)

    def readlink(self, ino: Ino) -> bytes:
        """Return where a symbolic link points. Raises: InvalidArgumentError for another kind."""
        inode = self._get_inode(ino)
        if not stat.S_ISLNK(inode.disk.mode):
            raise InvalidArgumentError(f"inode {ino}: not a symbolic link")
        return self._sb.read_all(inode, PATH_MAX)

    def statfs(self) -> StatFs:
        """Return how full the image is, or says it is, within what can be."""
        nr_pages = self._sb.disk.nr_pages
        nr_free_pages = min(self._sb.state.nr_free_pages, nr_pages)
        nr_inodes = min(self._sb.state.nr_inodes, INO_MAX)
        nr_reserved = self._sb.allocator.nr_reserved_pages if self._sb.writable else 0
        nr_available = max(0, nr_free_pages - nr_reserved)
        return StatFs(nr_pages, nr_free_pages, nr_available, nr_inodes, nr_available)

    # Changes of names: what they make is looked up once

    def mknod(self, parent: Ino, name: bytes, mode: int, owner: Owner, rdev: int = 0) -> Inode:
        """Make a file of any kind but a directory or symbolic link. Raises: see `namespace`."""
        directory = self._get_inode(parent)
        now_ns = self._now_ns()
        inode = namespace.mknod(self._sb, directory, name, mode, owner, now_ns, rdev=rdev)
        return self._named(inode, parent, name)

    def create(
        self, parent: Ino, name: bytes, mode: int, flags: int, owner: Owner, client: int = 0
    ) -> tuple[Fh, Inode]:
        """Make a regular file and open it; open it if it exists, and *flags* have no O_EXCL."""
        try:
            inode = self.mknod(parent, name, stat.S_IFREG | mode & 0o7777, owner)
        except ExistsError:
            if flags & os.O_EXCL:
                raise
            inode = self.lookup(parent, name)
        try:
            return self.open(inode.ino, flags, client, owner.uid), inode
        except XipfsError:
            self.forget(inode.ino, 1)
            raise

    def mkdir(self, parent: Ino, name: bytes, mode: int, owner: Owner) -> Inode:
        """Make a directory. Raises: see `namespace`."""
        directory = self._get_inode(parent)
        inode = namespace.mkdir(self._sb, directory, name, mode, owner, self._now_ns())
        return self._named(inode, parent, name)

    def symlink(self, parent: Ino, name: bytes, target: bytes, owner: Owner) -> Inode:
        """Make a symbolic link. Raises: see `namespace`."""
        directory = self._get_inode(parent)
        inode = namespace.symlink(self._sb, directory, name, target, owner, self._now_ns())
        return self._named(inode, parent, name)

    def link(self, ino: Ino, new_parent: Ino, new_name: bytes) -> Inode:
        """Give a file another name. Raises: see `namespace`."""
        inode, directory = self._get_inode(ino), self._get_inode(new_parent)
        namespace.link(self._sb, inode, directory, new_name, self._now_ns())
        return self._named(inode, new_parent, new_name)

    def unlink(self, parent: Ino, name: bytes) -> None:
        """Remove a name; an open file goes on without. Raises: see `namespace`."""
        directory = self._get_inode(parent)
        self._orphaned(namespace.unlink(self._sb, directory, name, self._now_ns()))

    def rmdir(self, parent: Ino, name: bytes) -> None:
        """Remove an empty directory. Raises: see `namespace`."""
        directory = self._get_inode(parent)
        self._orphaned(namespace.rmdir(self._sb, directory, name, self._now_ns()))

    def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> None:
        """Give something another name. flags: of renameat2(2). Raises: see `namespace`."""
        old, new = self._get_inode(parent), self._get_inode(new_parent)
        now_ns = self._now_ns()
        self._orphaned(namespace.rename(self._sb, old, name, new, new_name, flags, now_ns))

    # Directories

    def opendir(self, ino: Ino) -> Fh:
        """Open a directory. Raises: NotDirError."""
        inode = self._get_inode(ino)
        if not inode.is_dir:
            raise NotDirError(f"inode {ino}: not a directory")
        return self._new_handle(inode, 0, 0)

    def readdir(self, fh: Fh, position: int, emit: Emit) -> None:
        """Hand the entries behind *position* to *emit* until it has no room; count their lookups.

        "." and ".." count none.
        Raises: FormatError, DeviceError, for the first of these entries only: what comes before a
                bad one is handed out, and who asks for more meets it then.
        """
        directory = self._get_handle(fh).inode
        entries = self._sb.dir_reader.iter_entries(directory.disk, directory.extents, position)
        nr_taken = 0
        while True:
            try:
                entry = next(entries, None)
                if entry is None:
                    return
                inode = self._sb.iget(entry.ino)
            except XipfsError:
                # A listing that fails is not sent, and its lookups would never be forgotten.
                if not nr_taken:
                    raise
                return
            taken = emit(entry.name, inode, entry.position)
            if taken and entry.name not in (b".", b".."):
                inode.nr_lookups += 1
                inode.dentry = (directory.ino, entry.name)
            self._sb.drop_unused(inode)
            if not taken:
                return
            nr_taken += 1

    # Files

    def open(self, ino: Ino, flags: int, client: int = 0, uid: int = 0) -> Fh:
        """Open a file; its vma is made when it is opened for the first time. O_TRUNC empties it.

        client: the process that opens it: who reads, FUSE does not tell later. uid: its user.
        Raises: ReadOnlyFsError for a way of opening that writes, IsDirError; see `truncate_file`.
        """
        inode = self._get_inode(ino)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if writes and not self._sb.writable:
            raise ReadOnlyFsError(f"inode {ino}: mounted read-only")
        if inode.is_dir:
            raise IsDirError(f"inode {ino}: a directory")
        if flags & os.O_TRUNC and inode.is_regular:
            # The kernel leaves setuid and setgid to us here: root alone may keep them.
            if uid:
                self._drop_suidgid(inode)
            self._truncate(inode, 0)
        self._span(inode)
        return self._new_handle(inode, flags, client)

    def read(self, fh: Fh, off: int, size: int) -> list[Run]:
        """Return the bytes [off, off + size) of an open file as runs of physical memory, in order.

        The runs end where the file ends; they are what the ptes of the file's vma name. They are
        valid until the lock is given back and an epoch may move pages.

        Raises: DeviceError, FormatError (a damaged image).
        """
        # The hottest way through the house: every name and call here is paid for by every read.
        handle = self._get_handle(fh)
        mapping = handle.inode.mapping
        end = off + size
        if end > mapping.i_size_bytes:
            end = mapping.i_size_bytes
        if end <= off or not mapping.i_mmap:
            return []
        vma = mapping.i_mmap[0]
        first = off >> PAGE_SHIFT
        nr_pages = ((end - 1) >> PAGE_SHIFT) - first + 1
        page = mapping.id << PGOFF_BITS | first
        if nr_pages == 1:
            pfn = access_page(vma, Pgoff(first))
            if pfn != self._sparse_pfn:
                self._record(page, 1, handle.origin | (pfn >= NVRAM_PFN_START))
            else:
                self._vmstat.xip_access_sparse += 1
            return [(pfn << PAGE_SHIFT | off & PAGE_MASK, end - off)]
        pfns = access_range(vma, Pgoff(first), nr_pages)
        runs = PhysMem.runs(pfns, off & PAGE_MASK, end - off)
        if len(runs) == 1:
            self._record(page, nr_pages, handle.origin | (runs[0][0] >= _NVRAM_PADDR_START))
        else:
            self._record_by_tier(page, pfns, handle.origin)
        return runs

    def write(self, fh: Fh, off: int, data: bytes) -> int:
        """Write to an open file; return how many bytes, which is fewer where the image is full.

        Raises: see `write_file`.
        """
        handle = self._get_handle(fh)
        inode = handle.inode
        if not inode.is_regular:
            raise InvalidArgumentError(f"inode {inode.ino}: written, but not a regular file")
        if handle.drops_suid:
            self._drop_suidgid(inode)
        written = write_file(self._sb, self._mm.machine, inode, off, data, self._now_ns())
        self._span(inode)
        if written:
            first = off >> PAGE_SHIFT
            nr_pages = bytes_to_pages(off + written) - first
            mapping = inode.mapping
            page, origin = mapping.id << PGOFF_BITS | first, handle.write_origin
            # What was written to is no hole: most often all is in one tier.
            if not mapping.i_pages:
                self._record(page, nr_pages, origin | Tier.NVRAM)
            elif nr_pages == 1:
                self._record(page, 1, origin | (first not in mapping.i_pages))
            else:
                pfns = mapping.a_ops.get_xip_pfns(mapping, Pgoff(first), nr_pages)
                self._record_by_tier(page, pfns, origin)
        return written

    def fsync(self, fh: Fh, datasync: bool) -> None:
        """Make durable what was written to a file, by whatever handle. Raises: see `sync_file`.

        Of a directory all is already: a change of names is durable when it returns.
        """
        inode = self._get_handle(fh).inode
        if self._sb.writable:
            sync_file(self._sb, self._mm.machine, inode, datasync=datasync)

    def release(self, fh: Fh) -> None:
        """Close an open file or directory; the vma stays until the inode is forgotten."""
        self._handles.pop(fh, None)

    # Attributes

    def setattr(self, ino: Ino, changes: Changes) -> Inode:
        """Change attributes, the size among them. Raises: see `notify_change`, `truncate_file`."""
        inode = self._get_inode(ino)
        size_bytes, mode, uid, gid, atime_ns, mtime_ns = changes
        if size_bytes is not None and not inode.is_regular:
            raise InvalidArgumentError(f"inode {ino}: cut, but not a regular file")
        # First the mode: setuid is gone before there are other bytes.
        attributes.notify_change(self._sb, inode, self._now_ns(), mode=mode, uid=uid, gid=gid)
        if size_bytes is not None:
            self._truncate(inode, size_bytes)
        attributes.notify_change(
            self._sb, inode, self._now_ns(), atime_ns=atime_ns, mtime_ns=mtime_ns
        )
        return inode

    def setxattr(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute. flags: of setxattr(2). Raises: see `attributes`."""
        _check_namespace(name)
        if name in (XATTR_ACL_ACCESS, XATTR_ACL_DEFAULT) and not self.has_acl:
            # It would be stored, and obeyed by nobody until the next mount.
            raise NotSupportedError(f"inode {ino}: ACLs need a mount with -o acl")
        inode = self._get_inode(ino)
        attributes.setxattr(self._sb, inode, name, value, flags, self._now_ns())

    def removexattr(self, ino: Ino, name: bytes) -> None:
        """Remove an extended attribute. Raises: see `attributes`."""
        _check_namespace(name)
        attributes.removexattr(self._sb, self._get_inode(ino), name, self._now_ns())

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """Return an extended attribute; those of our own (user.xipfs.*) are made now.

        Raises: NoDataError; NotSupportedError for names that Linux does not have.
        """
        _check_namespace(name)
        inode = self._get_inode(ino)
        if name == XATTR_TIERS and inode.is_regular:
            return _json_line(tiers_json(self._sb, inode))
        if name == XATTR_EXTENTS and (inode.is_regular or inode.is_dir):
            return _json_line(extents_json(self._sb, inode))
        if name == XATTR_CONTROL and ino == INO_ROOT and self.control_address:
            return self.control_address
        try:
            return self._sb.read_xattrs(inode)[name]
        except KeyError:
            raise NoDataError(f"inode {ino}: no attribute {os.fsdecode(name)}") from None

    def listxattr(self, ino: Ino) -> list[bytes]:
        """Return the names of the attributes in the image; ours are not listed."""
        return list(self._sb.read_xattrs(self._get_inode(ino)))

    # Inside

    @property
    def nr_handles(self) -> int:
        """Open files and directories."""
        return len(self._handles)

    def _record_by_tier(self, page: int, pfns: NDArray[np.int64], origin: int) -> None:
        """Log the accesses to *page* and those behind it, but for holes: no policy can move them.

        Holes are counted instead.

        They were logged once, and a policy promoted them in vain, epoch after epoch, demoting
        others to make room.
        """
        kinds = np.where(pfns == self._sparse_pfn, -1, pfns >= NVRAM_PFN_START)
        starts = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], len(pfns)], strict=True):
            if kinds[start] >= 0:
                self._record(page + start, end - start, origin | int(kinds[start]))
            else:
                self._vmstat.xip_access_sparse += end - start

    def _get_inode(self, ino: Ino) -> Inode:
        inode = self._sb.find_inode(ino)
        if inode is None:
            if ino != INO_ROOT:
                raise StaleError(f"inode {ino}: never looked up")
            inode = self._sb.iget(INO_ROOT)
            inode.nr_lookups += 1
        return inode

    def _get_handle(self, fh: Fh) -> Handle:
        handle = self._handles.get(fh)
        if handle is None:
            raise StaleError(f"no open file {fh}")
        return handle

    def _new_handle(self, inode: Inode, flags: int, client: int) -> Fh:
        fh = Fh(self._next_fh)
        self._next_fh += 1
        self._handles[fh] = Handle(
            inode,
            access_origin(client, AccessKind.READ),
            access_origin(client, AccessKind.WRITE),
            # Past the page cache the kernel does not, and FUSE does not tell who writes.
            self.direct_io or bool(flags & os.O_DIRECT),
        )
        return fh

    def _now_ns(self) -> int:
        """Return the time of a change. Raises: ReadOnlyFsError."""
        if not self._sb.writable:
            raise ReadOnlyFsError(f"{self._sb.nvram.path}: mounted read-only")
        return self._sb.clock()

    def _known(self, inode: Inode) -> Inode:
        """Count a lookup."""
        inode.nr_lookups += 1
        return inode

    def _named(self, inode: Inode, parent: Ino, name: bytes) -> Inode:
        inode.dentry = (parent, name)
        return self._known(inode)

    def _orphaned(self, inode: Inode | None) -> None:
        """See to an inode that has lost its last name."""
        if inode is not None:
            self._end_if_unused(inode)

    def _end_if_unused(self, inode: Inode) -> None:
        """Let an inode that was never looked up, or forgotten, go: its vma, and without a name all.

        Pages in RAM keep one that has a name.
        """
        if inode.nr_lookups > 0:
            return
        for vma in list(inode.mapping.i_mmap):
            munmap(vma)
        if inode.disk.nlink or not self._sb.writable:
            self._sb.drop_unused(inode)
            return
        truncate_setsize(self._mm.machine, inode.mapping, 0)
        self.pages_gone(inode.ino, 0)
        release_orphan(self._sb, inode.ino, self._now_ns())

    def end_orphans(self) -> None:
        """At the end of the mount, when nobody uses anything: free what has no name."""
        for inode in self._sb.inodes():
            if not inode.disk.nlink:
                inode.nr_lookups = 0
                self._end_if_unused(inode)

    def _find_stale(self, ino: Ino) -> Inode:
        """Return an inode that somebody has the number of, from long ago perhaps."""
        inode = self._sb.find_inode(ino)
        if inode is None:
            try:
                inode = self._sb.iget(ino)
            except FormatError as exc:
                raise StaleError(f"inode {ino}: gone, or never was") from exc
        if not inode.disk.nlink and not inode.nr_lookups:
            self._sb.drop_unused(inode)
            raise StaleError(f"inode {ino}: gone")
        return inode

    def _truncate(self, inode: Inode, size_bytes: int) -> None:
        truncate_file(self._sb, self._mm.machine, inode, size_bytes, self._now_ns())
        self.pages_gone(inode.ino, bytes_to_pages(size_bytes))
        self._span(inode)

    def _drop_suidgid(self, inode: Inode) -> None:
        mode = attributes.drop_suidgid(inode.disk.mode)
        if mode != inode.disk.mode:
            attributes.notify_change(self._sb, inode, self._now_ns(), mode=mode)

    def _span(self, inode: Inode) -> None:
        """Let a regular file have a vma that spans it, and may be longer."""
        mapping = inode.mapping
        if not mapping.nr_pages or not inode.is_regular:
            return
        if inode.inline is not None:
            raise FormatError(f"inode {inode.ino}: a regular file with its bytes in the inode")
        if mapping.i_mmap:
            expand_to_file(mapping.i_mmap[0])
        else:
            xip_file_mmap(self._mm, mapping, nr_pages=mapping.nr_pages)


def _check_namespace(name: bytes) -> None:
    """Refuse names that Linux does not have: FUSE passes any."""
    if not name.startswith(_XATTR_NAMESPACES):
        raise NotSupportedError(f"an attribute {os.fsdecode(name)}: no such namespace")


def _json_line(facts: object) -> bytes:
    return json.dumps(facts, separators=(",", ":")).encode()
