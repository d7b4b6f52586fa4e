"""mem_map: the struct pages, for RAM frames and none for NVRAM; and the page allocator.

A struct page here is a row over a few arrays:

    refcount  who must put_page before the frame is free; a pin counts GUP_PIN_COUNTING_BIAS
    mapcount  ptes that map it
    mapping   id of the AddressSpace whose page it holds, -1 for none
    index     its pgoff there
    flags     PG_*, PAGE_*

Invariants:
    I1  A free frame has refcount 0, mapcount 0, no mapping, no flags; it is in the free list once.
    I2  mapcount <= refcount.

Differs from Linux: one zone, one order; the free list is a stack. Rows beyond the RAM there is,
which a memory model may need, describe holes: PG_reserved, one reference, never given out.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import bug_on
from xipfs.units import STRUCT_PAGE_SIZE_BYTES, Pfn

__all__ = [
    "GUP_PIN_COUNTING_BIAS",
    "PAGE_ANON",
    "PAGE_ANON_EXCLUSIVE",
    "PAGE_TYPED",
    "PG_DIRTY",
    "PG_RESERVED",
    "MemMap",
]

PG_DIRTY = 0x1
PG_RESERVED = 0x2
PAGE_ANON = 0x4
"""The page belongs to an anon_vma (the low bit of page->mapping)."""
PAGE_ANON_EXCLUSIVE = 0x8
"""One process maps it, and may write to it in place (since 5.19)."""
PAGE_TYPED = 0x10
"""A slab, buddy or page table page: nothing to map to users (page_has_type)."""

GUP_PIN_COUNTING_BIAS = 1 << 10


class MemMap:
    """Struct pages for frames [0, nr_frames); the first nr_ram_frames exist, and are free at first.

    refcount, mapcount: int32, shape (nr_frames,); mapping, index: int64; flags: uint8.
    """

    __slots__ = (
        "_flags",
        "_free",
        "_mapcount",
        "_refcount",
        "flags",
        "index",
        "mapcount",
        "mapping",
        "refcount",
    )

    def __init__(self, nr_ram_frames: int, nr_frames: int | None = None) -> None:
        nr_frames = nr_ram_frames if nr_frames is None else nr_frames
        self.refcount: NDArray[np.int32] = np.zeros(nr_frames, np.int32)
        self.mapcount: NDArray[np.int32] = np.zeros(nr_frames, np.int32)
        self.mapping: NDArray[np.int64] = np.full(nr_frames, -1, np.int64)
        self.index: NDArray[np.int64] = np.zeros(nr_frames, np.int64)
        self.flags: NDArray[np.uint8] = np.zeros(nr_frames, np.uint8)
        self.refcount[nr_ram_frames:] = 1
        self.flags[nr_ram_frames:] = PG_RESERVED
        # The same memory for one row at a time: three times as fast as indexing the array.
        self._refcount = self.refcount.data
        self._mapcount = self.mapcount.data
        self._flags = self.flags.data
        self._free = list(range(nr_ram_frames - 1, -1, -1))

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

    def page_flags(self, pfn: Pfn) -> int:
        """PG_* and PAGE_* of *pfn*."""
        return self._flags[pfn]

    def set_page_flags(self, pfn: Pfn, flags: int) -> None:
        """Add *flags* to those of *pfn*."""
        self._flags[pfn] |= flags

    def clear_page_flags(self, pfn: Pfn, flags: int) -> None:
        """Take *flags* from those of *pfn*."""
        self._flags[pfn] &= ~flags & 0xFF

    def page_anon(self, pfn: Pfn) -> bool:
        """Is it a private copy or other anonymous memory (PageAnon)?"""
        return bool(self._flags[pfn] & PAGE_ANON)

    def set_page_dirty(self, pfn: Pfn) -> None:
        """Note that the page holds bytes its backing has not."""
        self._flags[pfn] |= PG_DIRTY

    def get_page(self, pfn: Pfn) -> None:
        """Take a reference; somebody else must hold one already."""
        bug_on(pfn < 0 or self._refcount[pfn] <= 0, "get_page on a free frame", pfn=pfn)
        self._refcount[pfn] += 1

    def get_page_unless_zero(self, pfn: Pfn) -> bool:
        """Take a reference, unless the frame is free: for who holds nothing that keeps it."""
        if self._refcount[pfn] <= 0:
            return False
        self._refcount[pfn] += 1
        return True

    def put_page(self, pfn: Pfn) -> None:
        """Drop a reference; the last one frees the frame."""
        bug_on(pfn < 0, "put_page on no frame", pfn=pfn)
        refcount = self._refcount[pfn] - 1
        bug_on(refcount < self._mapcount[pfn], "put_page below mapcount", pfn=pfn, now=refcount)
        self._refcount[pfn] = refcount
        if refcount == 0:
            self._free_page(pfn)

    def pin_page(self, pfn: Pfn) -> None:
        """Take the references of a pin (FOLL_PIN): try_grab_page."""
        self.get_page(pfn)
        self._refcount[pfn] += GUP_PIN_COUNTING_BIAS - 1

    def unpin_page(self, pfn: Pfn) -> None:
        """Drop a pin: unpin_user_page."""
        self._refcount[pfn] -= GUP_PIN_COUNTING_BIAS - 1
        self.put_page(pfn)

    def page_maybe_dma_pinned(self, pfn: Pfn) -> bool:
        """Has it so many references that some may be pins? Source: include/linux/mm.h, 6.1."""
        return self._refcount[pfn] >= GUP_PIN_COUNTING_BIAS

    def page_add_file_rmap(self, pfn: Pfn) -> None:
        """Count one more pte, whose reference the caller has taken."""
        self._mapcount[pfn] += 1

    def page_add_new_anon_rmap(self, pfn: Pfn) -> None:
        """Make a fresh frame, with the caller's reference, one process's private page."""
        self._flags[pfn] = PAGE_ANON | PAGE_ANON_EXCLUSIVE
        self._mapcount[pfn] = 1

    def page_remove_rmap(self, pfn: Pfn) -> None:
        """Count one pte less; its reference is the caller's to drop."""
        bug_on(self._mapcount[pfn] <= 0, "unmapping a frame that nobody maps", pfn=pfn)
        self._mapcount[pfn] -= 1

    def remove_rmaps(self, pfns: NDArray[np.int64]) -> None:
        """Do `page_remove_rmap` and `put_page` for each of *pfns*: int64, shape (nr_pages,)."""
        np.subtract.at(self.mapcount, pfns, 1)
        np.subtract.at(self.refcount, pfns, 1)
        mapcounts, refcounts = self.mapcount[pfns], self.refcount[pfns]
        bug_on(bool((mapcounts < 0).any()), "unmapping frames that nobody maps", pfns=pfns)
        bug_on(bool((refcounts < mapcounts).any()), "put_page below mapcount", pfns=pfns)
        for pfn in dict.fromkeys(pfns[refcounts == 0].tolist()):
            self._free_page(Pfn(pfn))

    def add_file_rmaps(self, pfns: NDArray[np.int64]) -> None:
        """Do `get_page` and `page_add_file_rmap` for each of *pfns*: int64, shape (nr_pages,)."""
        # add.at, since one page may be among them many times.
        np.add.at(self.refcount, pfns, 1)
        np.add.at(self.mapcount, pfns, 1)

    def check_invariants(self) -> None:
        """Raise BugError where I1 or I2 is broken."""
        free = np.zeros(self.nr_frames, np.int64)
        np.add.at(free, np.array(self._free, np.int64), 1)
        bug_on(bool((free > 1).any()), "I1: a frame is free twice")
        idle = (self.refcount == 0) & (self.mapcount == 0) & (self.mapping == -1)
        idle &= self.flags == 0
        bug_on(bool(((free == 1) != idle).any()), "I1: a free frame in use, or one in use free")
        bug_on(bool((self.mapcount > self.refcount).any()), "I2: mapcount above refcount")

    def _free_page(self, pfn: Pfn) -> None:
        self.mapping[pfn] = -1
        self.index[pfn] = 0
        self._flags[pfn] = 0
        self._free.append(pfn)
