"""A transaction in memory: for trees of pages that are built and changed without any image."""

from types import SimpleNamespace

from xipfs.ondisk.inode import DiskInode
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Block

__all__ = ["MemoryTransaction"]


class MemoryTransaction:
    def __init__(self, nr_pages: int = 1 << 20) -> None:
        self.size_bytes = nr_pages << PAGE_SHIFT
        self.metadata_runs = ()
        self.now_ns = 1
        self.sb = SimpleNamespace(
            seed=7,
            disk=SimpleNamespace(hash_key=bytes(16), nr_pages=nr_pages),
            find_inode=lambda _: None,
        )
        self.pages: dict[int, bytes] = {}
        self.inodes: dict[int, DiskInode] = {}
        self.next_block = 2
        self.used: set[int] = set()

    def load(self, offset: int, size_bytes: int) -> bytes:
        assert (offset % PAGE_SIZE, size_bytes) == (0, PAGE_SIZE)
        return self.pages[offset >> PAGE_SHIFT]

    def store(self, offset: int, data: bytes) -> None:
        page = bytearray(self.pages[offset >> PAGE_SHIFT])
        start = offset & (PAGE_SIZE - 1)
        page[start : start + len(data)] = data
        assert len(page) == PAGE_SIZE
        self.pages[offset >> PAGE_SHIFT] = bytes(page)

    def new_page(self, block: Block, data: bytes) -> None:
        assert block in self.used
        assert len(data) == PAGE_SIZE
        self.pages[block] = data

    def allocate(self, nr_pages: int, near: Block | None = None) -> list[tuple[Block, int]]:
        block = self.next_block
        self.next_block += nr_pages
        self.used |= set(range(block, block + nr_pages))
        return [(Block(block), nr_pages)]

    def free(self, block: Block, nr_pages: int) -> None:
        freed = set(range(block, block + nr_pages))
        assert freed <= self.used
        self.used -= freed
        for page in freed:
            self.pages.pop(page, None)

    def put_inode(self, inode: DiskInode) -> None:
        self.inodes[inode.ino] = inode

    def inode(self, ino: int) -> DiskInode:
        return self.inodes[ino]
