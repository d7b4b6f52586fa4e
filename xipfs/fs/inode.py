"""Inode: one file in memory. Its record is read once, its extents and pages when they are needed.

States: an inode is in the superblock's table while the front knows it (`nr_lookups` > 0, until
FORGET) or while some of its pages are in RAM; `SuperBlock.drop_unused` takes it out after that.
"""

import stat
from collections.abc import Container

from xipfs.fs.extent import ExtentMap
from xipfs.mm.address_space import AddressSpace, AddressSpaceOperations
from xipfs.ondisk.inode import DiskInode, InodeFlags
from xipfs.phys.nvram import NvramDevice
from xipfs.units import Ino

__all__ = ["Inode"]

_INLINE = int(InodeFlags.INLINE)  # operators of IntFlag are slow


class Inode:
    """An inode and what hangs on it. disk: the record as it stands in the image.

    times_dirty: but for mtime and ctime, which are newer in memory, see `SuperBlock.touch`.
    nr_lookups: how many lookups the front has not forgotten yet. dentry: the directory and the name
    of the last one, None before the first.
    """

    __slots__ = ("dentry", "disk", "extents", "mapping", "nr_lookups", "times_dirty")

    def __init__(
        self,
        disk: DiskInode,
        nvram: NvramDevice,
        seed: int,
        a_ops: AddressSpaceOperations,
        *,
        read_only: bool,
    ) -> None:
        self.disk = disk
        self.extents = ExtentMap(nvram, seed, disk)
        self.mapping = AddressSpace(
            disk.ino, a_ops, i_size_bytes=disk.size_bytes, read_only=read_only
        )
        self.nr_lookups = 0
        self.times_dirty = False
        self.dentry: tuple[Ino, bytes] | None = None

    def renew(self, disk: DiskInode, changed: Container[int]) -> None:
        """Take over what a transaction that *changed* these blocks has made of the record.

        The mapping's size is mm's.
        """
        self.disk = disk
        self.times_dirty = False
        self.extents.renew(disk, changed)

    @property
    def ino(self) -> Ino:
        """Its number, which FUSE knows it by too."""
        return self.disk.ino

    @property
    def is_dir(self) -> bool:
        """A directory?"""
        return stat.S_ISDIR(self.disk.mode)

    @property
    def is_regular(self) -> bool:
        """A regular file, the only kind with pages to map?"""
        return stat.S_ISREG(self.disk.mode)

    @property
    def inline(self) -> bytes | None:
        """The file's bytes if they stand in the inode itself."""
        if self.disk.flags & _INLINE:
            return self.disk.payload[: self.disk.size_bytes]
        return None
