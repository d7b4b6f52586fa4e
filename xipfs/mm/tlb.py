"""Freeing what CPUs may still reach: translations they remember, and walks without locks.

A CPU goes on using a translation that its TLB has until it is told to forget it, whatever became of
the pte. And fast GUP follows page tables that somebody may be taking apart. So who takes ptes away

    with MmuGather(mm) as tlb:     tlb_gather_mmu
        ...                        clears ptes; tlb.remove_page queues what they led to
        tlb.flush_tlbonly()        tlb_free_vmas: before an area leaves its file
        tlb.pte_free(leaf)         queues a leaf that the page table has no more
                                   tlb_finish_mmu: CPUs forget; pages are put; leaves are freed

Two callers may take ptes of one mm at a time. The second finds none left, and would return before
the first has told the CPUs; so it tells them, too, if it is not alone (tlb_flush_pending).

In the mount a translation is a pte, and all of this is a few counters (see `lock.Scheduler`).

Source: mm/mmu_gather.c and include/asm-generic/tlb.h, 6.18. Differs from Linux: pages are queued
without limit; leaves are freed as when no memory is left to do it later (tlb_remove_table_one).
"""

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from xipfs.mm.arch import FastGup
from xipfs.mm.lock import atomic_step, forget_leaf, forget_translations, wait_for
from xipfs.mm.pgtable import Leaf
from xipfs.mm.vma import Mm
from xipfs.units import PAGE_MASK, PAGE_SIZE, Pfn, Vaddr

__all__ = ["MmuGather", "flush_tlb_mm", "flush_tlb_page", "flush_tlb_range", "wait_for_interrupts"]


def flush_tlb_page(mm: Mm, address: Vaddr) -> None:
    """Let no CPU remember the translation of the page at *address*; return when none does."""
    start = Vaddr(address & ~PAGE_MASK)
    flush_tlb_range(mm, start, Vaddr(start + PAGE_SIZE))


def flush_tlb_range(mm: Mm, start: Vaddr, end: Vaddr) -> None:
    """Let no CPU remember translations of [start, end); return when none does."""
    if mm.nr_lockless_walks:
        wait_for_interrupts(mm)
    forget_translations(mm, start, end)


def flush_tlb_mm(mm: Mm) -> None:
    """Let no CPU remember any translation of *mm*; return when none does."""
    flush_tlb_range(mm, Vaddr(0), Vaddr(1 << 64))


def wait_for_interrupts(mm: Mm) -> None:
    """Wait for the CPUs that take no interrupts, where that is how a flush reaches them.

    Who clears a pte and flushes in one step, as under the pte lock, calls it before.
    """
    if mm.nr_lockless_walks and mm.machine.arch.fast_gup is FastGup.IRQS_OFF:
        _wait_for_walks(mm)


class MmuGather:
    """What one caller has taken out of the page table of *mm* and not freed yet (mmu_gather)."""

    __slots__ = ("_end", "_leaves", "_page_arrays", "_pages", "_start", "mm")

    def __init__(self, mm: Mm) -> None:
        self.mm = mm
        self._pages: list[Pfn] = []
        self._page_arrays: list[NDArray[np.int64]] = []
        self._leaves: list[Leaf] = []
        self._start = self._end = Vaddr(0)

    def __enter__(self) -> "MmuGather":
        self.mm.tlb_flush_pending += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        mm = self.mm
        if mm.tlb_flush_pending > 1:
            # Another caller may have taken ptes that we came for, and not have flushed yet.
            atomic_step("tlb: flush")
            flush_tlb_mm(mm)
        elif self._end:
            self.flush_tlbonly()
        if self._pages or self._page_arrays or self._leaves:
            self._free()
        mm.tlb_flush_pending -= 1

    def cleared(self, start: Vaddr, end: Vaddr) -> None:
        """Note that ptes in [start, end) went."""
        if self._end:
            start, end = min(self._start, start), max(self._end, end)
        self._start, self._end = start, end

    def remove_page(self, page: Pfn) -> None:
        """Take over the reference of a pte that went."""
        self._pages.append(page)

    def remove_pages(self, pages: NDArray[np.int64]) -> None:
        """Take over the references of many: int64, shape (nr_pages,)."""
        self._page_arrays.append(pages)

    def pte_free(self, leaf: Leaf, start: Vaddr, end: Vaddr) -> None:
        """Take over a leaf, of the addresses [start, end), that is in the page table no more."""
        self._leaves.append(leaf)
        self.cleared(start, end)

    def flush_tlbonly(self) -> None:
        """Flush what is pending, and free nothing yet (tlb_flush_mmu_tlbonly)."""
        if self._end:
            atomic_step("tlb: flush")
            flush_tlb_range(self.mm, self._start, self._end)
            self._end = Vaddr(0)

    def _free(self) -> None:
        mem_map = self.mm.machine.mem_map
        for page in self._pages:
            mem_map.put_page(page)
        for pages in self._page_arrays:
            mem_map.put_pages(pages)
        if self._leaves:
            # A flush need not interrupt who walks without locks: an architecture may broadcast it.
            _wait_for_walks(self.mm)
            for leaf in self._leaves:
                forget_leaf(leaf)


def _wait_for_walks(mm: Mm) -> None:
    wait_for("walks without locks", lambda: not mm.nr_lockless_walks)
