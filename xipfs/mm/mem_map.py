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
which a memory model may need, describe holes: PG_reserved, one reference, never given out. A frame
that is offline (PageOffline, as in a balloon) keeps its struct page and one reference.
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
    "PG_WRITEBACK",
    "MemMap",
]

PG_DIRTY = 0x1
PG_RESERVED = 0x2
PAGE_ANON = 0x4
"""The page belongs to an anon_vma (the low bit of page->mapping)."""
PAGE_ANON_EXCLUSIVE = 0x8
"""One process maps it, and may write to it in place (since 5.19)."""
PAGE_TYPED = 0x10
"""A slab, buddy, page table or offline page: nothing to map to users (page_has_type)."""
PG_WRITEBACK = 0x20
"""Its bytes are on their way to NVRAM, and not known to be durable yet."""

GUP_PIN_COUNTING_BIAS = 1 << 10


class MemMap:
    """Struct pages for frames [0, nr_frames); the first nr_ram_frames exist, and are free at first.

    refcount, mapcount: int32, shape (nr_frames,); mapping, index: int64; flags: uint8.
    """

    __slots__ = (
        "_flags",
        "_free",
        "_index",
        "_mapcount",
        "_mapping",
        "_nr_ram_frames",
        "_offline",
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
        self._nr_ram_frames = nr_ram_frames
        self._take_views()
        self._free = [Pfn(pfn) for pfn in range(nr_ram_frames - 1, -1, -1)]
        self._offline: list[Pfn] = []

    @property
    def nr_frames(self) -> int:
        """Frames that have a struct page."""
        return len(self._refcount)

    @property
    def nr_free(self) -> int:
        """Frames that `alloc_page` can give."""
        return len(self._free)

    @property
    def offline_pfns(self) -> list[Pfn]:
        """Frames that were taken away and can come back; a copy."""
        return self._offline.copy()

    @property
    def size_bytes(self) -> int:
        """What these struct pages would take in a kernel."""
        return self.nr_frames * STRUCT_PAGE_SIZE_BYTES

    def alloc_page(self) -> Pfn | None:
        """Return a frame with one reference, its contents void; None when none is free."""
        if not self._free:
            return None
        pfn = self._free.pop()
        self._refcount[pfn] = 1
        return pfn

    def alloc_pages(self, nr_pages: int) -> list[Pfn]:
        """Do `alloc_page` up to nr_pages times, as far as frames are free."""
        start = max(len(self._free) - nr_pages, 0)
        pfns = self._free[start:]
        del self._free[start:]
        pfns.reverse()
        for pfn in pfns:
            self._refcount[pfn] = 1
        return pfns

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

    def set_page_mapping(self, pfn: Pfn, mapping_id: int, index: int) -> None:
        """Let the frame hold page *index* of a file; -1, 0 for none."""
        self._mapping[pfn] = mapping_id
        self._index[pfn] = index

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
        if pfn < 0:
            bug_on(True, "put_page on no frame", pfn=pfn)
        refcount = self._refcount[pfn] - 1
        if refcount < self._mapcount[pfn]:
            bug_on(True, "put_page below mapcount", pfn=pfn, now=refcount)
        self._refcount[pfn] = refcount
        if refcount == 0:
            self._free_page(pfn)

    def offline_pages(self, nr_pages: int) -> list[Pfn]:
        """Take free frames away, up to nr_pages. Returns: these, sorted."""
        pfns = sorted(self.alloc_pages(nr_pages))
        for pfn in pfns:
            self._flags[pfn] = PAGE_TYPED
        self._offline += pfns
        return pfns

    def online_pages(self, nr_pages: int) -> int:
        """Bring offline frames back, up to nr_pages, their contents void. Returns: how many."""
        start = max(len(self._offline) - nr_pages, 0)
        pfns = self._offline[start:]
        del self._offline[start:]
        for pfn in pfns:
            self.put_page(pfn)
        return len(pfns)

    def grow(self, nr_ram_frames: int, nr_frames: int) -> None:
        """Let frames up to nr_ram_frames exist, and be free; struct pages reach up to nr_frames.

        Rows that described holes come to describe RAM. Who keeps an array of ours keeps an old one.
        """
        nr_old, self._nr_ram_frames = self._nr_ram_frames, nr_ram_frames
        nr_more = nr_frames - self.nr_frames
        bug_on(nr_ram_frames < nr_old or nr_more < 0, "RAM cannot shrink", nr_frames=nr_frames)
        self.refcount = np.append(self.refcount, np.ones(nr_more, np.int32))
        self.mapcount = np.append(self.mapcount, np.zeros(nr_more, np.int32))
        self.mapping = np.append(self.mapping, np.full(nr_more, -1, np.int64))
        self.index = np.append(self.index, np.zeros(nr_more, np.int64))
        self.flags = np.append(self.flags, np.full(nr_more, PG_RESERVED, np.uint8))
        self._take_views()
        for pfn in range(nr_ram_frames - 1, nr_old - 1, -1):
            self.put_page(Pfn(pfn))

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
        """Do `page_remove_rmap` for each of *pfns*: int64, shape (nr_pages,)."""
        np.subtract.at(self.mapcount, pfns, 1)
        negative = self.mapcount[pfns] < 0
        bug_on(bool(negative.any()), "unmapping frames that nobody maps", pfns=pfns)

    def put_pages(self, pfns: NDArray[np.int64]) -> None:
        """Do `put_page` for each of *pfns*: int64, shape (nr_pages,)."""
        np.subtract.at(self.refcount, pfns, 1)
        refcounts = self.refcount[pfns]
        below = refcounts < self.mapcount[pfns]
        bug_on(bool(below.any()), "put_page below mapcount", pfns=pfns)
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

    def _take_views(self) -> None:
        # The same memory for one row at a time: three times as fast as indexing the array.
        self._refcount = self.refcount.data
        self._mapcount = self.mapcount.data
        self._flags = self.flags.data
        self._mapping = self.mapping.data
        self._index = self.index.data

    def _free_page(self, pfn: Pfn) -> None:
        self._mapping[pfn] = -1
        self._index[pfn] = 0
        self._flags[pfn] = 0
        self._free.append(pfn)
