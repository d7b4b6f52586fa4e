"""pfn_valid: does a struct page exist for a pfn? One class for each memory model.

    FlatMem        0 <= pfn < max_mapnr; holes inside count as valid
    SectionMem     the section of the pfn is present, whole sections of 128 MiB at a time
    SubsectionMem  the same, and a bitmap of 2 MiB subsections within the section
    ListMem        extents in a list under a mutex: a truthful pfn_valid of s390

True says that there is a struct page, which may describe a hole; so `struct_pages_end` tells how
far mem_map must reach for the RAM there is. NVRAM is in none of them.

nr_calls and nr_locks count what `vm_normal_page` costs where it has to ask: the reason why
pte_special came. Source: include/asm-generic/memory_model.h, include/linux/mmzone.h of 2.6.26 and
6.18; arch/s390/mm/vmem.c for the list; the mail of 12 Mar 2008 for why it "will suck".
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from xipfs.units import Pfn

__all__ = ["FlatMem", "ListMem", "PfnValid", "SectionMem", "SubsectionMem"]

_PAGES_PER_SECTION = 1 << 15
_PAGES_PER_SUBSECTION = 1 << 9


class PfnValid(ABC):
    """A memory model over RAM frames [0, nr_ram_frames).

    struct_pages_end: struct pages exist, and pfn_valid answers True, up to here.
    nr_calls: pfns asked for. nr_locks: times that a lock was taken to answer.
    """

    def __init__(self, nr_ram_frames: int) -> None:
        self.nr_calls = 0
        self.nr_locks = 0
        self.struct_pages_end = nr_ram_frames

    def __call__(self, pfn: Pfn) -> bool:
        """Has *pfn* a struct page?"""
        self.nr_calls += 1
        return self._is_valid(pfn)

    def of_array(self, pfns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Ask for many: int64, shape (nr_pages,) -> bool, same shape. Counted as that many calls.

        All models agree on these: memory begins at 0 and has no gap.
        """
        self.nr_calls += len(pfns)
        return (pfns >= 0) & (pfns < self.struct_pages_end)

    @abstractmethod
    def _is_valid(self, pfn: Pfn) -> bool: ...


class FlatMem(PfnValid):
    """One mem_map. Source: include/asm-generic/memory_model.h."""

    def _is_valid(self, pfn: Pfn) -> bool:
        return 0 <= pfn < self.struct_pages_end


class SectionMem(PfnValid):
    """SPARSEMEM of 2.6.26: a section has all its struct pages or none.

    Source: include/linux/mmzone.h, pfn_valid.
    """

    nr_unit_pages = _PAGES_PER_SECTION

    def __init__(self, nr_ram_frames: int) -> None:
        super().__init__(nr_ram_frames)
        nr_units = -(-nr_ram_frames // self.nr_unit_pages)
        self._present = [True] * nr_units
        self.struct_pages_end = nr_units * self.nr_unit_pages

    def _is_valid(self, pfn: Pfn) -> bool:
        unit = pfn // self.nr_unit_pages
        return 0 <= unit < len(self._present) and self._present[unit]


class SubsectionMem(SectionMem):
    """SPARSEMEM_VMEMMAP of 6.18, memory that was not there at boot: subsections count.

    Source: include/linux/mmzone.h, pfn_valid and pfn_section_valid.
    """

    nr_unit_pages = _PAGES_PER_SUBSECTION


class ListMem(PfnValid):
    """Segments in a list, searched under a mutex at each call: dynamic, truthful and slow.

    Source: arch/s390/mm/vmem.c (mem_segs, vmem_mutex), v3.9.
    """

    def __init__(self, nr_ram_frames: int) -> None:
        super().__init__(nr_ram_frames)
        self._segments = [(0, nr_ram_frames)]

    def of_array(self, pfns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Ask for many; the list is searched, and the mutex taken, for each of them."""
        self.nr_calls += len(pfns)
        return np.array([self._is_valid(Pfn(pfn)) for pfn in pfns.tolist()], np.bool_)

    def _is_valid(self, pfn: Pfn) -> bool:
        self.nr_locks += 1
        return any(start <= pfn < start + nr for start, nr in self._segments)
