"""mem_map: the struct pages, one for each RAM frame and none for NVRAM; and the page allocator.

A struct page here is a row over a few arrays:

    refcount  who must put_page before the frame is free
    mapcount  ptes that map it
    mapping   id of the AddressSpace whose page it holds, -1 for none
    index     its pgoff there

Invariants:
    I1  A free frame has refcount 0, mapcount 0 and no mapping; it is in the free list once.
    I2  mapcount <= refcount.

Differs from Linux: one zone, one order; the free list is a stack. Frames beyond the RAM tier
are never asked for: `pfn_valid` is exact (the flat model without holes).
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import bug_on
from xipfs.units import STRUCT_PAGE_SIZE_BYTES, Pfn

__all__ = ["MemMap"]


class MemMap:
    """Struct pages for RAM frames [0, nr_frames), all free at first.

    refcount, mapcount: int32, shape (nr_frames,); mapping, index: int64, same shape.
    """

    __slots__ = ("_free", "_mapcount", "_refcount", "index", "mapcount", "mapping", "refcount")

    def __init__(self, nr_frames: int) -> None:
        self.refcount: NDArray[np.int32] = np.zeros(nr_frames, np.int32)
        self.mapcount: NDArray[np.int32] = np.zeros(nr_frames, np.int32)
        self.mapping: NDArray[np.int64] = np.full(nr_frames, -1, np.int64)
        self.index: NDArray[np.int64] = np.zeros(nr_frames, np.int64)
        # The same memory for one row at a time: three times as fast as indexing the array.
        self._refcount = self.refcount.data
        self._mapcount = self.mapcount.data
        self._free = list(range(nr_frames - 1, -1, -1))

    def pfn_valid(self, pfn: Pfn) -> bool:
        """Has *pfn* a struct page? Source: include/asm-generic/memory_model.h."""
        return 0 <= pfn < len(self._refcount)

    @property
    def nr_frames(self) -> int:
        """Frames that have a struct page."""
        return len(self._refcount)

    @property
    def nr_free(self) -> int:
        """Frames that `alloc_page` can give."""
        return len(self._free)

    @property
    def size_bytes(self) -> int:
        """What these struct pages would take in a kernel."""
        return self.nr_frames * STRUCT_PAGE_SIZE_BYTES

    def alloc_page(self) -> Pfn | None:
        """Return a frame with one reference, its contents void; None when none is free."""
        if not self._free:
            return None
        pfn = Pfn(self._free.pop())
        self._refcount[pfn] = 1
        return pfn

    def page_count(self, pfn: Pfn) -> int:
        """References to *pfn*."""
        return self._refcount[pfn]

    def page_mapcount(self, pfn: Pfn) -> int:
        """Ptes that map *pfn*."""
        return self._mapcount[pfn]

    def get_page(self, pfn: Pfn) -> None:
        """Take a reference; somebody else must hold one already."""
        bug_on(pfn < 0 or self._refcount[pfn] <= 0, "get_page on a free frame", pfn=pfn)
        self._refcount[pfn] += 1

    def put_page(self, pfn: Pfn) -> None:
        """Drop a reference; the last one frees the frame."""
        bug_on(pfn < 0, "put_page on no frame", pfn=pfn)
        refcount = self._refcount[pfn] - 1
        bug_on(refcount < self._mapcount[pfn], "put_page below mapcount", pfn=pfn, now=refcount)
        self._refcount[pfn] = refcount
        if refcount == 0:
            self.mapping[pfn] = -1
            self.index[pfn] = 0
            self._free.append(pfn)

    def page_add_file_rmap(self, pfn: Pfn) -> None:
        """Count one more pte, with its reference."""
        self.get_page(pfn)
        self._mapcount[pfn] += 1

    def page_remove_rmap(self, pfn: Pfn) -> None:
        """Count one pte less, and drop its reference."""
        bug_on(self._mapcount[pfn] <= 0, "unmapping a frame that nobody maps", pfn=pfn)
        self._mapcount[pfn] -= 1
        self.put_page(pfn)

    def check_invariants(self) -> None:
        """Raise BugError where I1 or I2 is broken."""
        free = np.zeros(self.nr_frames, np.int64)
        np.add.at(free, np.array(self._free, np.int64), 1)
        bug_on(bool((free > 1).any()), "I1: a frame is free twice")
        idle = (self.refcount == 0) & (self.mapcount == 0) & (self.mapping == -1)
        bug_on(bool(((free == 1) != idle).any()), "I1: a free frame in use, or one in use free")
        bug_on(bool((self.mapcount > self.refcount).any()), "I2: mapcount above refcount")
