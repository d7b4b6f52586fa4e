"""The orphan list: inodes whose pages take more than one transaction to free.

    release_orphan(sb, ino, now_ns)      an unlinked file that nobody uses any more: it goes
    finish_orphans(sb, now_ns)           all that a crash has left, before a mount is served

An orphan without a name is freed with all it holds; one with names was cut to its size, and what
it holds behind that goes. Pages go from the end on, in as many transactions as the journal's size
asks for. Each leaves a sound image and an orphan, so that another mount can go on.
"""

from typing import TYPE_CHECKING

from xipfs.errors import FormatError, bug_on
from xipfs.fs.extentwriter import remove_extents
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.group import NR_GROUP_PAGES
from xipfs.ondisk.inode import DiskInode, InodeFlags
from xipfs.units import Ino, bytes_to_pages

if TYPE_CHECKING:
    from xipfs.fs.transaction import Transaction

__all__ = ["finish_orphans", "release_orphan"]

_NR_EXTENTS_PER_STEP = 64
_NR_PAGES_MAX = 4 * NR_GROUP_PAGES
"""What one transaction frees: some bitmaps may change as a whole."""


def release_orphan(sb: SuperBlock, ino: Ino, now_ns: int) -> None:
    """Free inode *ino*, which has no name, and its pages; it leaves memory, too.

    Raises: FormatError, DeviceError, ReadOnlyFsError: it stays an orphan then.
    Bug: it is in use: it has a name, or pages in RAM, or is mapped.
    """
    inode = sb.find_inode(ino)
    if inode is not None:
        in_use = bool(inode.mapping.i_pages or inode.mapping.i_mmap)
        bug_on(in_use, "release_orphan: an inode in use", ino=ino)
    is_done = False
    while not is_done:
        with sb.transaction(now_ns, use_reserve=True) as tx:
            disk = tx.inode(ino)
            bug_on(disk.nlink != 0, "release_orphan: it has a name", ino=ino, nlink=disk.nlink)
            disk, is_done = _remove_some(tx, disk, 0)
            if is_done:
                if disk.nr_xattr_pages:
                    tx.free(disk.xattr_block, disk.nr_xattr_pages)
                tx.put_inode(disk._replace(nr_pages=disk.nr_pages - disk.nr_xattr_pages))
                tx.free_inode(ino)


def finish_orphans(sb: SuperBlock, now_ns: int) -> int:
    """Finish all inodes in the orphan list of an image that nobody uses yet; return how many.

    Raises: FormatError, DeviceError, ReadOnlyFsError: some are left then.
    """
    nr_orphans = 0
    while ino := sb.state.orphan_ino_head:
        disk = sb.load_inode(ino)
        if not disk.flags & InodeFlags.ORPHAN:
            raise FormatError(f"inode {ino}: in the orphan list, but no orphan: run xipfs fsck")
        sb.orphan_before[ino] = Ino(0)
        if disk.nlink:
            _finish_cut(sb, ino, now_ns)
        else:
            release_orphan(sb, ino, now_ns)
        nr_orphans += 1
    return nr_orphans


def _finish_cut(sb: SuperBlock, ino: Ino, now_ns: int) -> None:
    """Free what a file holds behind its size, and take it out of the list."""
    is_done = False
    while not is_done:
        with sb.transaction(now_ns, use_reserve=True) as tx:
            disk = tx.inode(ino)
            _, is_done = _remove_some(tx, disk, bytes_to_pages(disk.size_bytes))
            if is_done:
                tx.remove_orphan(ino)


def _remove_some(tx: "Transaction", disk: DiskInode, first: int) -> tuple[DiskInode, bool]:
    """Remove extents from page *first* on, as many as *tx* can take; were that all?"""
    nr_pages_left = _NR_PAGES_MAX
    while nr_pages_left and not tx.nearly_full:
        disk, nr_freed = remove_extents(
            tx,
            disk,
            first,
            nr_extents_max=_NR_EXTENTS_PER_STEP,
            nr_pages_max=nr_pages_left,
        )
        if not nr_freed:
            return disk, True
        nr_pages_left -= nr_freed
    return disk, False
