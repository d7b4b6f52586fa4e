"""AddressSpace: the file side of mappings (struct address_space), one per inode.

It knows which of its pages are in RAM (`i_pages`) and which vmas map it (`i_mmap`). The filesystem
hands in an AddressSpaceOperations, the only call from mm up to fs.

Invariants:
    I1  i_pages is written by `mm.migrate` only, or, as a page cache, by the file's ->fault only.
    I2  A frame in i_pages has one reference for being there, and its struct page names the page.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import bug_on
from xipfs.mm.lock import RwLock, wait_for
from xipfs.units import Kaddr, Pfn, Pgoff, bytes_to_pages

if TYPE_CHECKING:
    from xipfs.mm.mem_map import MemMap
    from xipfs.mm.vma import Vma

__all__ = ["AddressSpace", "AddressSpaceOperations"]


class AddressSpaceOperations(Protocol):
    """What a filesystem does for its mappings (struct address_space_operations)."""

    def get_xip_mem(
        self, mapping: "AddressSpace", pgoff: Pgoff, *, create: bool
    ) -> tuple[Kaddr, Pfn]:
        """Return where page *pgoff* is: (kaddr, pfn).

        kaddr reaches its bytes. pfn is what to map if the page is memory without struct page; for
        a page in RAM it is PFN_NONE, and the caller maps `virt_to_pfn(kaddr)`.

        create: allocate a zeroed page where there is none.
        Raises: NoDataError for a hole (the kernel's -ENODATA); another XipfsError if the
                filesystem cannot tell.
        Source: fs/ext2/xip.c ext2_get_xip_mem, Linux 2.6.28.
        """
        ...

    def get_xip_pfns(
        self, mapping: "AddressSpace", pgoff: Pgoff, nr_pages: int
    ) -> NDArray[np.int64]:
        """Return the frames of [pgoff, pgoff + nr_pages): `get_xip_mem(create=False)` on each.

        Returns: int64, shape (nr_pages,), PFN_NONE for a hole; owned by the caller.
        Raises: XipfsError if the filesystem cannot tell.
        """
        ...

    def get_nvram_pfns(self, mapping: "AddressSpace", pgoffs: Sequence[int]) -> list[int]:
        """Return the NVRAM frames that pages are kept in, also of pages that are in RAM just now.

        pgoffs: sorted, all before the end of the file.
        Returns: as many pfns, PFN_NONE for a hole.
        Raises: XipfsError if the filesystem cannot tell of all of them.
        """
        ...


class AddressSpace:
    """The pages of one file.

    id: names the file in page ids (`policy.page_id`): its inode number.
    i_pages: pgoff -> RAM frame, for the pages that are promoted, or in a page cache.
    i_mmap_rwsem: who unmaps by offset reads it; who takes an area away, or splits one, writes.
    i_rwsem: who writes through kernel addresses, moves pages or changes the size holds it.
    invalidate_seq: odd while pages change their place; a fault looks at it before it maps one.
    fsync: what msync(MS_SYNC) calls; None where there is nothing to write back.
    is_device: a character device, no regular file (S_ISCHR).
    """

    __slots__ = (
        "a_ops",
        "fsync",
        "i_mmap",
        "i_mmap_rwsem",
        "i_pages",
        "i_rwsem",
        "i_size_bytes",
        "id",
        "invalidate_seq",
        "is_device",
        "read_only",
    )

    def __init__(
        self,
        ident: int,
        a_ops: AddressSpaceOperations,
        *,
        i_size_bytes: int,
        read_only: bool,
        is_device: bool = False,
    ) -> None:
        self.id = ident
        self.a_ops = a_ops
        self.i_size_bytes = i_size_bytes
        self.read_only = read_only
        self.is_device = is_device
        self.i_pages: dict[int, Pfn] = {}
        self.i_mmap: list[Vma] = []
        self.i_mmap_rwsem = RwLock("i_mmap_rwsem")
        self.i_rwsem = RwLock("i_rwsem")
        self.invalidate_seq = 0
        self.fsync: Callable[[], int] | None = None

    @property
    def nr_pages(self) -> int:
        """Pages up to the end of the file, holes included."""
        return bytes_to_pages(self.i_size_bytes)

    def read_invalidate_begin(self) -> int:
        """Return invalidate_seq once no page is on the move (read_seqcount_begin)."""
        if self.invalidate_seq & 1:
            wait_for("invalidate_seq", lambda: not self.invalidate_seq & 1)
        return self.invalidate_seq

    @contextmanager
    def invalidate(self) -> Iterator[None]:
        """Let pages change their place: faults that looked before look again, others wait.

        Source: the pattern of mmu_notifier_invalidate_range_start and _end.
        """
        self.invalidate_seq += 1
        try:
            yield
        finally:
            self.invalidate_seq += 1

    def check_invariants(self, mem_map: "MemMap") -> None:
        """Raise BugError where I2 is broken, or a frame holds two pages."""
        bug_on(len(set(self.i_pages.values())) != len(self.i_pages), "a frame holds two pages")
        for pgoff, pfn in self.i_pages.items():
            named = (int(mem_map.mapping[pfn]), int(mem_map.index[pfn]))
            bug_on(named != (self.id, pgoff), "I2: another page", pfn=pfn, is_=named, pgoff=pgoff)
            bug_on(mem_map.page_count(pfn) < 1, "I2: a free frame", pfn=pfn, pgoff=pgoff)
