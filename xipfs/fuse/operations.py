"""Every request as a plain, synchronous function of the core: typed arguments in, values out.

No pyfuse3 and no trio here, so that any front can call them: the pyfuse3 adapter, tests, and a
second, faster way in. All are called through `Mount.dispatch`, which holds the lock.

    request   ->  inode (fs) or handle  ->  vma  ->  access (mm)  ->  runs of physical bytes

Lookup counts are FUSE's contract: `lookup`, and each entry that `readdir` hands out, count one;
`forget` takes them back, and an inode that nobody knows goes, with its vma.
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
    FormatError,
    InvalidArgumentError,
    IsDirError,
    NoDataError,
    NotDirError,
    ReadOnlyFsError,
    StaleError,
    XipfsError,
)
from xipfs.fs.inode import Inode
from xipfs.fs.namei import PATH_MAX
from xipfs.fs.superblock import SuperBlock
from xipfs.fuse.view import extents_json, tiers_json
from xipfs.mm.access import access_page, access_range
from xipfs.mm.filemap_xip import xip_file_mmap
from xipfs.mm.mmap import munmap
from xipfs.mm.vma import Mm, Vma
from xipfs.ondisk.inode import INO_MAX, INO_ROOT
from xipfs.phys.physmem import PhysMem, Run
from xipfs.policy.contract import PGOFF_BITS, AccessKind
from xipfs.tiering.access_log import AccessLog, access_origin
from xipfs.units import NVRAM_PFN_START, PAGE_MASK, PAGE_SHIFT, Fh, Ino, Pgoff

__all__ = ["Handle", "Operations", "StatFs"]

_NVRAM_PADDR_START = NVRAM_PFN_START << PAGE_SHIFT

XATTR_TIERS = b"user.xipfs.tiers"
XATTR_EXTENTS = b"user.xipfs.extents"
XATTR_CONTROL = b"user.xipfs.control"

Emit = Callable[[bytes, Inode, int], bool]
"""(name, inode, position) -> was there room for the entry?"""


class StatFs(NamedTuple):
    """What statfs(2) answers, in pages of PAGE_SIZE bytes and in inodes."""

    nr_pages: int
    nr_free_pages: int
    nr_inodes: int
    nr_free_inodes: int


@dataclass(slots=True)
class Handle:
    """An open file or directory.

    vma: None where there is nothing to map. origin: of the accesses that come by it, see
    `tiering.access_log`.
    """

    inode: Inode
    vma: Vma | None
    origin: int


class Operations:
    """The requests on one image.

    control_address: what XATTR_CONTROL answers on the root directory; set by the server.
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

    # Names

    def lookup(self, parent: Ino, name: bytes) -> Inode:
        """Return what *name* in directory *parent* is; counts one lookup. Raises: NoEntryError."""
        inode = self._sb.lookup(self._get_inode(parent), name)
        inode.nr_lookups += 1
        inode.dentry = (parent, name)
        return inode

    def forget(self, ino: Ino, nr_lookups: int) -> None:
        """Take lookups back; the last one unmaps the file and forgets the inode."""
        inode = self._sb.find_inode(ino)
        if inode is None or ino == INO_ROOT:
            return
        inode.nr_lookups -= nr_lookups
        if inode.nr_lookups <= 0:
            for vma in list(inode.mapping.i_mmap):
                munmap(vma)
            self._sb.drop_unused(inode)

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
        return StatFs(nr_pages, nr_free_pages, nr_inodes, nr_free_pages)

    # Directories

    def opendir(self, ino: Ino) -> Fh:
        """Open a directory. Raises: NotDirError."""
        inode = self._get_inode(ino)
        if not inode.is_dir:
            raise NotDirError(f"inode {ino}: not a directory")
        return self._new_handle(inode, None)

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

    def open(self, ino: Ino, flags: int, client: int = 0) -> Fh:
        """Open a file for reading; its vma is made when it is opened for the first time.

        client: the process that opens it: who reads, FUSE does not tell later.
        Raises: ReadOnlyFsError for a way of opening that writes, IsDirError.
        """
        inode = self._get_inode(ino)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise ReadOnlyFsError(f"inode {ino}: mounted read-only")
        if inode.is_dir:
            raise IsDirError(f"inode {ino}: a directory")
        return self._new_handle(inode, self._vma(inode), client)

    def read(self, fh: Fh, off: int, size: int) -> list[Run]:
        """Return the bytes [off, off + size) of an open file as runs of physical memory, in order.

        The runs end where the file ends; they are what the ptes of the file's vma name. They are
        valid until the lock is given back and an epoch may move pages.

        Raises: DeviceError, FormatError (a damaged image).
        """
        # The hottest way through the house: every name and call here is paid for by every read.
        handle = self._get_handle(fh)
        vma = handle.vma
        if vma is None:
            return []
        mapping = vma.vm_file
        assert mapping is not None, "a handle's vma maps its file"
        end = off + size
        if end > mapping.i_size_bytes:
            end = mapping.i_size_bytes
        if end <= off:
            return []
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

    def release(self, fh: Fh) -> None:
        """Close an open file or directory; the vma stays until the inode is forgotten."""
        self._handles.pop(fh, None)

    # Attributes

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """Return an extended attribute; those of our own (user.xipfs.*) are made now.

        Raises: NoDataError.
        """
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

    def _new_handle(self, inode: Inode, vma: Vma | None, client: int = 0) -> Fh:
        fh = Fh(self._next_fh)
        self._next_fh += 1
        self._handles[fh] = Handle(inode, vma, access_origin(client, AccessKind.READ))
        return fh

    def _vma(self, inode: Inode) -> Vma | None:
        mapping = inode.mapping
        if mapping.i_mmap:
            return mapping.i_mmap[0]
        if not inode.is_regular or not mapping.nr_pages:
            return None
        if inode.inline is not None:
            raise FormatError(f"inode {inode.ino}: a regular file with its bytes in the inode")
        return xip_file_mmap(self._mm, mapping, nr_pages=mapping.nr_pages)


def _json_line(facts: object) -> bytes:
    return json.dumps(facts, separators=(",", ":")).encode()
