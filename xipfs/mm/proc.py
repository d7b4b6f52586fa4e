"""What /proc and mincore tell of mappings: pagemap, kpagecount, smaps.

VM_PFNMAP areas are passed over by all of them (6.1), private copies in them included. A special pte
is present in pagemap, with its pfn, and counts nowhere in smaps, but for Rss in 2.6.28.

Source: fs/proc/task_mmu.c, fs/proc/page.c, mm/mincore.c, mm/pagewalk.c, 2.6.28 and 6.1.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from xipfs.mm.mem_map import PG_DIRTY
from xipfs.mm.mixedmap import vm_normal_page
from xipfs.mm.pgtable import PMD_SHIFT, PTE_NONE, Leaf, pte_index, pte_pfn
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
from xipfs.units import PAGE_SIZE, Pfn, Vaddr

__all__ = [
    "PagemapEntry",
    "Smaps",
    "kpagecount",
    "mincore",
    "pagemap_entry",
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


@dataclass(slots=True)
class Smaps:
    """One area of /proc/PID/smaps, in bytes; pss_bytes may be a fraction."""

    vma: Vma = field(repr=False)
    size_bytes: int = 0
    rss_bytes: int = 0
    pss_bytes: float = 0.0
    shared_clean_bytes: int = 0
    shared_dirty_bytes: int = 0
    private_clean_bytes: int = 0
    private_dirty_bytes: int = 0
    referenced_bytes: int = 0
    anonymous_bytes: int = 0
    locked_bytes: int = 0

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
    """Sum up the ptes of *vma* as smaps does."""
    found = Smaps(vma, size_bytes=vma.vm_end - vma.vm_start)
    if _is_skipped(vma):
        return found
    leaves = vma.vm_mm.page_table.leaves
    for address in range(vma.vm_start, vma.vm_end, PAGE_SIZE):
        leaf = leaves.get(address >> PMD_SHIFT)
        if leaf is not None and leaf.words[pte_index(Vaddr(address))] != PTE_NONE:
            _add_pte(found, vma, Vaddr(address), leaf)
    return found


def _add_pte(found: Smaps, vma: Vma, address: Vaddr, leaf: Leaf) -> None:
    """Source: smaps_pte_entry and smaps_account, 6.1; smaps_pte_range, 2.6.28."""
    machine = vma.vm_mm.machine
    mem_map = machine.mem_map
    index = pte_index(address)
    page = vm_normal_page(vma, address, leaf.words[index])
    if page is not None or machine.arch.is_2008:
        found.rss_bytes += PAGE_SIZE
    if page is None:
        return
    mapcount = mem_map.page_mapcount(page)
    dirty = bool(leaf.dirty_bytes[index] or mem_map.page_flags(page) & PG_DIRTY)
    found.pss_bytes += PAGE_SIZE / max(mapcount, 1)
    if mem_map.page_anon(page):
        found.anonymous_bytes += PAGE_SIZE
    if leaf.accessed_bytes[index]:
        found.referenced_bytes += PAGE_SIZE
    if vma.vm_flags & VM_LOCKED:
        found.locked_bytes += PAGE_SIZE
    match mapcount >= 2, dirty:
        case True, True:
            found.shared_dirty_bytes += PAGE_SIZE
        case True, False:
            found.shared_clean_bytes += PAGE_SIZE
        case False, True:
            found.private_dirty_bytes += PAGE_SIZE
        case _:
            found.private_clean_bytes += PAGE_SIZE


def _is_skipped(vma: Vma) -> bool:
    """Source: walk_page_test, 6.1; walk_page_range of 2.6.28 knows no such rule."""
    return bool(vma.vm_flags & VM_PFNMAP) and not vma.vm_mm.machine.arch.is_2008
