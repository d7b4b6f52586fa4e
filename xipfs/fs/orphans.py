"""Orphans: inodes whose pages take more than one transaction to free, and how they end.

    drop_inode(tx, inode)             it has no name, nobody uses it: free it, or make it an orphan
    cut_inode(tx, inode, first)       free its pages from file page *first* on, or some of them
    release_orphan(sb, ino, now_ns)   an orphan without a name that nobody uses any more: it goes
    finish_orphans(sb, now_ns)        all that a crash has left, before a mount is served

Pages go from the end on, as many as a transaction takes. If something is left the inode is in the
orphan list, so that a crash at any time leaves an image that knows what is still to be done.
"""

from typing import TYPE_CHECKING

from xipfs.errors import FormatError, bug_on
from xipfs.fs.extentwriter import remove_extents
from xipfs.ondisk.group import NR_GROUP_PAGES
from xipfs.ondisk.inode import DiskInode, InodeFlags
from xipfs.units import Block, Ino, bytes_to_pages

if TYPE_CHECKING:
    from xipfs.fs.superblock import SuperBlock
    from xipfs.fs.transaction import Transaction

__all__ = ["cut_inode", "drop_inode", "finish_orphans", "release_orphan"]

_NR_EXTENTS_PER_STEP = 64
_NR_PAGES_MAX = 4 * NR_GROUP_PAGES
"""What one transaction frees: some bitmaps may change as a whole."""


def drop_inode(tx: "Transaction", inode: DiskInode) -> bool:
    """Free *inode*, which has no name, with all it holds; return whether that is done.

    If not, it is in the orphan list, and `release_orphan` goes on.
    Raises: NoSpaceError, FormatError, DeviceError.
    """
    inode, done = _remove_some(tx, inode, 0)
    if done:
        if inode.nr_xattr_pages:
            tx.free(inode.xattr_block, inode.nr_xattr_pages)
        nr_pages = inode.nr_pages - inode.nr_xattr_pages
        tx.put_inode(inode._replace(xattr_block=Block(0), nr_xattr_pages=0, nr_pages=nr_pages))
        tx.free_inode(inode.ino)
    elif not inode.flags & InodeFlags.ORPHAN:
        tx.add_orphan(inode.ino)
    return done


def cut_inode(tx: "Transaction", inode: DiskInode, first: int) -> bool:
    """Free the pages of *inode* from file page *first* on; return whether that is done.

    If not, it is in the orphan list, and to be cut again in another transaction.
    Raises: NoSpaceError, FormatError, DeviceError.
    """
    inode, done = _remove_some(tx, inode, first)
    is_orphan = bool(inode.flags & InodeFlags.ORPHAN)
    if done and is_orphan and inode.nlink:
        tx.remove_orphan(inode.ino)
    elif not done and not is_orphan:
        tx.add_orphan(inode.ino)
    return done


def release_orphan(sb: "SuperBlock", ino: Ino, now_ns: int) -> None:
    """Free inode *ino*, which has no name, and its pages; it leaves memory, too.

    Raises: FormatError, DeviceError, ReadOnlyFsError: it stays an orphan then.
    Bug: it is in use: it has a name, or pages in RAM, or is mapped.
    """
    inode = sb.find_inode(ino)
    if inode is not None:
        in_use = bool(inode.mapping.i_pages or inode.mapping.i_mmap)
        bug_on(in_use, "release_orphan: an inode in use", ino=ino)
    done = False
    while not done:
        with sb.transaction(now_ns, use_reserve=True) as tx:
            disk = tx.inode(ino)
            bug_on(disk.nlink != 0, "release_orphan: it has a name", ino=ino, nlink=disk.nlink)
            done = drop_inode(tx, disk)


def finish_orphans(sb: "SuperBlock", now_ns: int) -> int:
    """Finish all inodes in the orphan list of an image that nobody uses yet; return how many.

    Raises: FormatError, DeviceError, ReadOnlyFsError: some are left then.
    """
    nr_orphans = 0
    while ino := sb.state.orphan_ino_head:
        disk = sb.load_inode(ino)
        if not disk.flags & InodeFlags.ORPHAN:
            raise FormatError(f"inode {ino}: in the orphan list, but no orphan: run xipfs fsck")
        sb.orphan_before[ino] = Ino(0)
        if not disk.nlink:
            release_orphan(sb, ino, now_ns)
        else:
            _finish_cut(sb, ino, now_ns)
        nr_orphans += 1
    return nr_orphans


def _finish_cut(sb: "SuperBlock", ino: Ino, now_ns: int) -> None:
    done = False
    while not done:
        with sb.transaction(now_ns, use_reserve=True) as tx:
            disk = tx.inode(ino)
            done = cut_inode(tx, disk, bytes_to_pages(disk.size_bytes))


def _remove_some(tx: "Transaction", inode: DiskInode, first: int) -> tuple[DiskInode, bool]:
    """Free pages from file page *first* on, as many as *tx* can take; were that all?"""
    if inode.flags & InodeFlags.INLINE:
        return inode, True
    nr_pages_left = _NR_PAGES_MAX
    while True:
        inode, nr_freed = remove_extents(
            tx, inode, first, nr_extents_max=_NR_EXTENTS_PER_STEP, nr_pages_max=nr_pages_left
        )
        if not nr_freed:
            return inode, True
        nr_pages_left -= nr_freed
        if not nr_pages_left or tx.nearly_full:
            return inode, False
