"""SuperBlock: an open image, and the inodes of it that are in memory.

sb = SuperBlock.open("image.img")      O(1): two pages are read, whatever the image's size
inode = sb.iget(INO_ROOT)              from memory, else from its place in the inode file
sb.lookup(inode, b"etc")
sb.close()
"""

import os

from xipfs.errors import DeviceError, FormatError, NotDirError
from xipfs.fs.dentry import DirReader
from xipfs.fs.extent import ExtentMap
from xipfs.fs.inode import Inode
from xipfs.fs.xip import XipOperations
from xipfs.ondisk.inode import INODE, INODES_PER_PAGE, DiskInode, decode_inode
from xipfs.ondisk.superblock import (
    STATE,
    STATE_BLOCK,
    STATE_INODE_OFFSET,
    DiskState,
    DiskSuperblock,
    StateFlags,
    decode_state,
    decode_superblock,
)
from xipfs.ondisk.xattr import NR_XATTR_PAGES_MAX, decode_xattrs
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Ino, Pgoff, bytes_to_pages

__all__ = ["SuperBlock", "read_superblock"]


class SuperBlock:
    """One image. disk: what mkfs decided; state: what changes; seed: of all checksums."""

    __slots__ = ("_a_ops", "_inode_file", "_inodes", "dir_reader", "disk", "nvram", "seed", "state")

    def __init__(self, nvram: NvramDevice, disk: DiskSuperblock, state: DiskState) -> None:
        self.nvram = nvram
        self.disk = disk
        self.state = state
        self.seed = disk.seed
        self.dir_reader = DirReader(nvram, self.seed, disk.hash_key)
        self._inodes: dict[Ino, Inode] = {}
        self._a_ops = XipOperations(self.iget)
        record = nvram.load((STATE_BLOCK << PAGE_SHIFT) + STATE_INODE_OFFSET, INODE.size_bytes)
        self._inode_file = ExtentMap(nvram, self.seed, decode_inode(record, self.seed, Ino(0)))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "SuperBlock":
        """Open the image at *path* for reading.

        Raises: DeviceError, ImageBusyError; FormatError when it is no image, is damaged, newer,
                or shorter than it says; or when its journal must be replayed first.
        """
        nvram = NvramDevice.open(path)
        try:
            disk = read_superblock(nvram)
            state = decode_state(nvram.load(STATE_BLOCK << PAGE_SHIFT, STATE.size_bytes), disk.seed)
            if not state.flags & StateFlags.CLEAN:
                raise FormatError(
                    f"{nvram.path}: not cleanly unmounted, its journal must be replayed: "
                    f"this version of xipfs cannot, use the one that wrote it"
                )
            return cls(nvram, disk, state)
        except FormatError as exc:
            nvram.close()
            raise FormatError(_prefixed(nvram, exc)) from exc
        except BaseException:
            nvram.close()
            raise

    def iget(self, ino: Ino) -> Inode:
        """Return inode *ino*, from memory or from the image. Raises: FormatError, DeviceError."""
        inode = self._inodes.get(ino)
        if inode is None:
            inode = Inode(self.load_inode(ino), self.nvram, self.seed, self._a_ops)
            self._inodes[ino] = inode
        return inode

    def find_inode(self, ino: Ino) -> Inode | None:
        """Return inode *ino* if it is in memory."""
        return self._inodes.get(ino)

    def load_inode(self, ino: Ino) -> DiskInode:
        """Read the record of inode *ino*, in use. Raises: FormatError, DeviceError."""
        page, index = divmod(ino, INODES_PER_PAGE)
        block = self._inode_file.find_block(Pgoff(page)) if ino > 0 else None
        if block is None:
            raise FormatError(f"inode {ino}: the inode file has no such page")
        offset = (block << PAGE_SHIFT) + index * INODE.size_bytes
        inode = decode_inode(self.nvram.load(offset, INODE.size_bytes), self.seed, ino)
        if inode.mode == 0:
            raise FormatError(f"inode {ino}: named, but free")
        return inode

    def lookup(self, directory: Inode, name: bytes) -> Inode:
        """Return what *name* in *directory* stands for.

        Raises: NotDirError, NoEntryError, NameTooLongError; FormatError, DeviceError.
        """
        if not directory.is_dir:
            raise NotDirError(f"inode {directory.ino}: not a directory")
        return self.iget(self.dir_reader.lookup(directory.disk, directory.extents, name))

    def read_xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return all extended attributes of *inode*, sorted by name. Raises: FormatError, .."""
        disk = inode.disk
        if not disk.nr_xattr_pages:
            return {}
        if (
            disk.nr_xattr_pages > NR_XATTR_PAGES_MAX
            or disk.xattr_block + disk.nr_xattr_pages > self.disk.nr_pages
        ):
            raise FormatError(
                f"inode {disk.ino}: {disk.nr_xattr_pages} pages of attributes at page "
                f"{disk.xattr_block}, in an image of {self.disk.nr_pages}"
            )
        run = self.nvram.load(disk.xattr_block << PAGE_SHIFT, disk.nr_xattr_pages << PAGE_SHIFT)
        return decode_xattrs(run, self.seed, disk.ino, disk.generation)

    def read_all(self, inode: Inode, limit_bytes: int) -> bytes:
        """Return the bytes of a small file or a symbolic link, past any mm. Raises: FormatError."""
        if inode.inline is not None:
            return inode.inline
        size_bytes = inode.disk.size_bytes
        if size_bytes > limit_bytes:
            raise FormatError(f"inode {inode.ino}: {size_bytes} bytes, at most {limit_bytes}")
        pages = []
        for pgoff in range(bytes_to_pages(size_bytes)):
            block = inode.extents.find_block(Pgoff(pgoff))
            pages.append(
                bytes(PAGE_SIZE)
                if block is None
                else self.nvram.load(block << PAGE_SHIFT, PAGE_SIZE)
            )
        return b"".join(pages)[:size_bytes]

    def drop_unused(self, inode: Inode) -> bool:
        """Take *inode* out of memory if nobody looked it up and none of its pages are in RAM."""
        if inode.nr_lookups or inode.mapping.i_pages or inode.mapping.i_mmap:
            return False
        return self._inodes.pop(inode.ino, None) is not None

    @property
    def nr_inodes_in_memory(self) -> int:
        """Inodes in the table."""
        return len(self._inodes)

    def close(self) -> None:
        """Close the image. Raises: BufferError while somebody holds a view of it."""
        self._inodes.clear()
        self.nvram.close()


def read_superblock(nvram: NvramDevice) -> DiskSuperblock:
    """Read page 0 and compare it with the file; of a bad one, say whether the replica is sound.

    Raises: FormatError, DeviceError.
    """
    try:
        disk = decode_superblock(nvram.load(0, PAGE_SIZE), "page 0")
    except FormatError as exc:
        replica_block = (nvram.size_bytes >> PAGE_SHIFT) - 1
        try:
            decode_superblock(
                nvram.load(replica_block << PAGE_SHIFT, PAGE_SIZE), f"page {replica_block}"
            )
        except (FormatError, DeviceError):
            raise exc from None
        raise FormatError(f"{exc}; the replica in page {replica_block} is sound") from exc
    if disk.nr_pages << PAGE_SHIFT > nvram.size_bytes:
        raise FormatError(
            f"cut short: {nvram.size_bytes} bytes of {disk.nr_pages << PAGE_SHIFT}: "
            f"copy the image again"
        )
    return disk


def _prefixed(nvram: NvramDevice, exc: Exception) -> str:
    text = str(exc)
    return text if text.startswith(str(nvram.path)) else f"{nvram.path}: {text}"
