"""What /proc and mincore tell of mappings: pagemap, kpagecount, smaps.

VM_PFNMAP areas are passed over by all of them (6.1), private copies in them included. A special pte
is present in pagemap, with its pfn, and counts nowhere in smaps, but for Rss in 2.6.28.

Source: fs/proc/task_mmu.c, fs/proc/page.c, mm/mincore.c, mm/pagewalk.c, 2.6.28 and 6.1.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.mm.machine import Machine
from xipfs.mm.mem_map import PAGE_ANON, PG_DIRTY
from xipfs.mm.mixedmap import vm_normal_page, vm_normal_pages
from xipfs.mm.pgtable import PMD_SHIFT, PTE_NONE, pte_pfn
from xipfs.mm.rmap import leaf_windows
from xipfs.mm.vma import (
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_EXEC,
    VM_IO,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_WIPEONFORK,
    VM_WRITE,
    Mm,
    Vma,
)
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, PFN_NONE, Pfn, Pgoff, Vaddr

__all__ = [
    "PagemapEntry",
    "PagemapRun",
    "Smaps",
    "kpagecount",
    "mincore",
    "pagemap_entry",
    "pagemap_runs",
    "smaps",
    "vm_flag_names",
]

_MNEMONICS = {
    VM_READ: "rd",
    VM_WRITE: "wr",
    VM_EXEC: "ex",
    VM_SHARED: "sh",
    VM_MAYREAD: "mr",
    VM_MAYWRITE: "mw",
    VM_MAYEXEC: "me",
    VM_MAYSHARE: "ms",
    VM_PFNMAP: "pf",
    VM_LOCKED: "lo",
    VM_IO: "io",
    VM_SEQ_READ: "sr",
    VM_RAND_READ: "rr",
    VM_DONTCOPY: "dc",
    VM_DONTEXPAND: "de",
    VM_ACCOUNT: "ac",
    VM_WIPEONFORK: "wf",
    VM_DONTDUMP: "dd",
    VM_MIXEDMAP: "mm",
    VM_MERGEABLE: "mg",
}


class PagemapEntry(NamedTuple):
    """One entry of /proc/PID/pagemap: bits 63, 61, 56, and the pfn, 0 if not present."""

    present: bool
    file: bool
    exclusive: bool
    pfn: Pfn


_PSS_SHIFT = 12


class PagemapRun(NamedTuple):
    """Pages of a file that follow each other and have all of this in common.

    pgoff: of the first page. present: is there a pte? tier: ram, nvram or hole; None where nothing
    is mapped. pfn: of the first page, the others follow it; all of a hole have the same; None where
    tier is. kpagecount: ptes that map a page, 0 without struct page. refcount: references, None
    without struct page. heat: accesses of late.
    """

    pgoff: Pgoff
    nr_pages: int
    present: bool
    tier: str | None
    pfn: Pfn | None
    kpagecount: int
    refcount: int | None
    heat: int


@dataclass(slots=True)
class Smaps:
    """One area of /proc/PID/smaps, in bytes; pss_fixed is shifted, as Linux sums it up."""

    vma: Vma = field(repr=False)
    size_bytes: int = 0
    rss_bytes: int = 0
    pss_fixed: int = 0
    shared_clean_bytes: int = 0
    shared_dirty_bytes: int = 0
    private_clean_bytes: int = 0
    private_dirty_bytes: int = 0
    referenced_bytes: int = 0
    anonymous_bytes: int = 0
    locked_bytes: int = 0

    @property
    def pss_bytes(self) -> int:
        """Its proportional share. Each page's was rounded down before it was added."""
        return self.pss_fixed >> _PSS_SHIFT

    @property
    def perm(self) -> str:
        """The permissions as /proc/PID/maps writes them."""
        flags = self.vma.vm_flags
        return "".join(
            (
                "r" if flags & VM_READ else "-",
                "w" if flags & VM_WRITE else "-",
                "x" if flags & VM_EXEC else "-",
                "s" if flags & VM_MAYSHARE else "p",
            )
        )


def vm_flag_names(vm_flags: int) -> list[str]:
    """Return the mnemonics of VmFlags, in the order of the bits. Source: show_smap_vma_flags."""
    return [name for bit, name in _MNEMONICS.items() if vm_flags & bit]


def pagemap_entry(mm: Mm, address: Vaddr) -> PagemapEntry:
    """Return what pagemap tells of the page at *address*."""
    absent = PagemapEntry(present=False, file=False, exclusive=False, pfn=Pfn(0))
    vma = mm.find_vma(address)
    if vma is None or _is_skipped(vma):
        return absent
    pte = mm.page_table.find_pte(address)
    if pte == PTE_NONE:
        return absent
    page = vm_normal_page(vma, address, pte)
    mem_map = mm.machine.mem_map
    return PagemapEntry(
        present=True,
        file=page is not None and not mem_map.page_anon(page),
        exclusive=page is not None and mem_map.page_mapcount(page) == 1,
        pfn=pte_pfn(pte),
    )


def kpagecount(mm: Mm, pfn: Pfn) -> int:
    """Return how often the page of *pfn* is mapped: 0 without struct page, however often it is."""
    mem_map = mm.machine.mem_map
    return mem_map.page_mapcount(pfn) if pfn < mem_map.nr_frames else 0


def mincore(mm: Mm, address: Vaddr) -> bool:
    """Tell whether the page at *address* is mapped, or is in RAM."""
    vma = mm.find_vma(address)
    if vma is None:
        return False
    if not _is_skipped(vma) and mm.page_table.find_pte(address) != PTE_NONE:
        return True
    return vma.vm_file is not None and vma.pgoff(address) in vma.vm_file.i_pages


def smaps(vma: Vma) -> Smaps:
    """Sum up the ptes of *vma* as smaps does.

    Source: smaps_pte_entry and smaps_account, 6.1; smaps_pte_range, 2.6.28.
    """
    found = Smaps(vma, size_bytes=vma.vm_end - vma.vm_start)
    if not _is_skipped(vma):
        for number, window in leaf_windows(vma, vma.vm_start, vma.vm_end):
            _add_ptes(found, vma, number, window)
    return found


def _add_ptes(found: Smaps, vma: Vma, number: int, window: slice) -> None:
    machine = vma.vm_mm.machine
    mem_map = machine.mem_map
    leaf = vma.vm_mm.page_table.leaves[number]
    present = np.flatnonzero(leaf.ptes[window]) + window.start
    ptes = leaf.ptes[present]
    normal = vm_normal_pages(vma, present + vma.pgoff(Vaddr(number << PMD_SHIFT)), ptes)
    pages = (ptes[normal] >> PAGE_SHIFT).astype(np.int64)
    counted = present[normal]
    mapcounts, flags = mem_map.mapcount[pages], mem_map.flags[pages]
    is_dirty = (leaf.dirty[counted] != 0) | (flags & PG_DIRTY != 0)
    is_shared = mapcounts >= 2
    found.rss_bytes += len(present if machine.arch.is_2008 else pages) << PAGE_SHIFT
    found.pss_fixed += int(((PAGE_SIZE << _PSS_SHIFT) // np.maximum(mapcounts, 1)).sum())
    found.shared_clean_bytes += _nr_bytes(is_shared & ~is_dirty)
    found.shared_dirty_bytes += _nr_bytes(is_shared & is_dirty)
    found.private_clean_bytes += _nr_bytes(~is_shared & ~is_dirty)
    found.private_dirty_bytes += _nr_bytes(~is_shared & is_dirty)
    found.referenced_bytes += _nr_bytes(leaf.accessed[counted] != 0)
    found.anonymous_bytes += _nr_bytes(flags & PAGE_ANON != 0)
    if vma.vm_flags & VM_LOCKED:
        found.locked_bytes += len(pages) << PAGE_SHIFT


def _nr_bytes(pages: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(pages)) << PAGE_SHIFT


def pagemap_runs(vma: Vma, start: Vaddr, end: Vaddr, nr_runs_max: int) -> list[PagemapRun]:
    """Return the pages of [start, end), page-aligned, within *vma*, as runs of pages alike.

    nr_runs_max: the first so many runs, at least one, are told.
    Differs from Linux: a page that is in RAM and has no pte yet is told of, too.
    """
    machine = vma.vm_mm.machine
    mem_map = machine.mem_map
    nr_pages = (end - start) >> PAGE_SHIFT
    first = vma.pgoff(start)
    present = np.zeros(nr_pages, np.bool_)
    pfns = np.zeros(nr_pages, np.int64)
    heat = np.zeros(nr_pages, np.uint8)
    for number, window in () if _is_skipped(vma) else leaf_windows(vma, start, end):
        leaf = vma.vm_mm.page_table.leaves[number]
        at = (((number << PMD_SHIFT) - start) >> PAGE_SHIFT) + window.start
        pages = slice(at, at + window.stop - window.start)
        ptes = leaf.ptes[window]
        present[pages] = ptes != PTE_NONE
        pfns[pages] = ptes >> PAGE_SHIFT
        heat[pages] = leaf.heat[window]
    pfns[~present] = PFN_NONE
    if vma.vm_file is not None and vma.vm_file.i_pages:
        for page in np.flatnonzero(~present).tolist():
            pfns[page] = vma.vm_file.i_pages.get(first + page, PFN_NONE)
    # Whether a page has a struct page, where its bytes are, and how many hold it.
    has_page = (pfns >= 0) & (pfns < mem_map.nr_frames)
    is_hole = pfns == machine.sparse_pfn
    mapcounts, refcounts = np.zeros((2, nr_pages), np.int64)
    mapcounts[has_page] = mem_map.mapcount[pfns[has_page]]
    refcounts[has_page] = mem_map.refcount[pfns[has_page]]
    steps = (pfns != PFN_NONE) & ~is_hole
    alike = np.diff(pfns) == steps[:-1]
    for facts in (present, has_page, heat, mapcounts, refcounts):
        alike &= facts[1:] == facts[:-1]
    starts = np.flatnonzero(np.concatenate(([True], ~alike)))
    lengths = np.diff(starts, append=nr_pages)
    return [
        PagemapRun(
            Pgoff(first + int(i)),
            int(length),
            bool(present[i]),
            _tier(machine, Pfn(int(pfns[i]))),
            Pfn(int(pfns[i])) if pfns[i] != PFN_NONE else None,
            int(mapcounts[i]),
            int(refcounts[i]) if has_page[i] else None,
            int(heat[i]),
        )
        for i, length in zip(starts[:nr_runs_max], lengths[:nr_runs_max], strict=True)
    ]


def _tier(machine: Machine, pfn: Pfn) -> str | None:
    if pfn == PFN_NONE:
        return None
    if pfn == machine.sparse_pfn:
        return "hole"
    return "nvram" if machine.is_nvram(pfn) else "ram"


def _is_skipped(vma: Vma) -> bool:
    """Source: walk_page_test, 6.1; walk_page_range of 2.6.28 knows no such rule."""
    return bool(vma.vm_flags & VM_PFNMAP) and not vma.vm_mm.machine.arch.is_2008
