"""Orphans: inodes whose pages take more than one transaction to free, and how they end.

    drop_inode(tx, inode)             nlink is 0 and nobody has it open: free all of it, or begin to
    cut_inode(tx, inode, first)       no pages from file page *first* on: free them, or begin to
    finish_orphan(sb, ino)            go on with one of them until it is done
    finish_orphans(sb)                of all that are in the list: at a mount, after a crash

Both beginnings free as much as one transaction can take. If something is left the inode is in the
orphan list, so that a crash at any time leaves an image that knows what is still to be done.
"""

from typing import TYPE_CHECKING

from xipfs.errors import FormatError
from xipfs.fs.extentwriter import end_of_extents, remove_extents
from xipfs.fs.transaction import Transaction
from xipfs.ondisk.group import GROUP_DESC, NR_GROUP_PAGES
from xipfs.ondisk.inode import DiskInode, InodeFlags
from xipfs.ondisk.journal import journal_record_size_bytes
from xipfs.units import PAGE_SIZE, Block, Ino, bytes_to_pages

if TYPE_CHECKING:
    from xipfs.fs.superblock import SuperBlock

__all__ = ["cut_inode", "drop_inode", "finish_orphan", "finish_orphans"]

_RUN_LOG_BYTES = journal_record_size_bytes(8) + journal_record_size_bytes(GROUP_DESC.size_bytes)
"""What freeing one extent adds to a transaction: some bits, and the descriptor of their group."""
_GROUP_LOG_BYTES = journal_record_size_bytes(PAGE_SIZE)
_REST_LOG_BYTES = 4 * _GROUP_LOG_BYTES
"""Inodes, the state, and a node of each level that stays."""


def drop_inode(tx: Transaction, inode: DiskInode) -> bool:
    """Free *inode*, which has no name, with all it holds; return whether that is done.

    If not, it is in the orphan list, and `finish_orphan` goes on.
    Raises: NoSpaceError, FormatError, DeviceError.
    """
    inode, done = _free_pages(tx, inode, 0)
    if done:
        if inode.nr_xattr_pages:
            tx.free(inode.xattr_block, inode.nr_xattr_pages)
            nr_pages = inode.nr_pages - inode.nr_xattr_pages
            inode = inode._replace(xattr_block=Block(0), nr_xattr_pages=0, nr_pages=nr_pages)
            tx.put_inode(inode)
        tx.free_inode(inode.ino)
    elif not inode.flags & InodeFlags.ORPHAN:
        tx.add_orphan(inode.ino)
    return done


def cut_inode(tx: Transaction, inode: DiskInode, first: int) -> bool:
    """Free the pages of *inode* from file page *first* on; return whether that is done.

    If not, it is in the orphan list with its new size, and `finish_orphan` goes on.
    Raises: NoSpaceError, FormatError, DeviceError.
    """
    inode, done = _free_pages(tx, inode, first)
    if not done and not inode.flags & InodeFlags.ORPHAN:
        tx.add_orphan(inode.ino)
    elif done and inode.flags & InodeFlags.ORPHAN and inode.nlink:
        tx.remove_orphan(inode.ino)
    return done


def finish_orphan(sb: "SuperBlock", ino: Ino) -> None:
    """Do what is left to do for an inode in the orphan list. Raises: as `drop_inode`."""
    done = False
    while not done:
        with sb.transaction(sb.clock(), use_reserve=True) as tx:
            inode = tx.inode(ino)
            if inode.nlink:
                done = cut_inode(tx, inode, bytes_to_pages(inode.size_bytes))
            else:
                done = drop_inode(tx, inode)


def finish_orphans(sb: "SuperBlock") -> int:
    """Finish all inodes in the orphan list, none of which is in use; return how many.

    Raises: as `drop_inode`.
    """
    nr_orphans = 0
    while ino := sb.state.orphan_ino_head:
        if not sb.load_inode(ino).flags & InodeFlags.ORPHAN:
            raise FormatError(f"inode {ino}: in the orphan list, but no orphan: run xipfs fsck")
        finish_orphan(sb, ino)
        nr_orphans += 1
    return nr_orphans


def _free_pages(tx: Transaction, inode: DiskInode, first: int) -> tuple[DiskInode, bool]:
    """Free pages from file page *first* on, as many as a transaction takes; return if all are."""
    if inode.flags & InodeFlags.INLINE or not inode.nr_extents:
        tx.put_inode(inode)
        return inode, True
    room_bytes = tx.sb.journal.size_bytes_max // 2 - _REST_LOG_BYTES
    nr_extents_max = max(room_bytes // 2 // _RUN_LOG_BYTES, 1)
    nr_pages_max = max(room_bytes // 2 // _GROUP_LOG_BYTES, 1) * NR_GROUP_PAGES
    inode, _ = remove_extents(
        tx, inode, first, nr_extents_max=nr_extents_max, nr_pages_max=nr_pages_max
    )
    return inode, not inode.nr_extents or (first > 0 and end_of_extents(tx, inode) <= first)
