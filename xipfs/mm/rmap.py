"""Taking ptes away, by offset. The centre of a mixed map:

A frame with a struct page could be found from the page; a frame without has nothing to start from.
So every unmapping begins at the file: `mapping.i_mmap` lists the vmas, and file page pgoff is
mapped at vm_start + ((pgoff - vm_pgoff) << PAGE_SHIFT) or not at all. That is the rmap of memory
without struct pages, and it reaches both kinds alike.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.mm.address_space import AddressSpace
from xipfs.mm.lock import forget_translations
from xipfs.mm.mem_map import PAGE_ANON, PG_DIRTY
from xipfs.mm.mixedmap import vm_normal_page, vm_normal_pages
from xipfs.mm.pgtable import PMD_SHIFT, PTE_NONE, PTE_RW, PTRS_PER_PTE, Leaf, pte_index, pte_pfn
from xipfs.mm.tlb import MmuGather
from xipfs.mm.vma import Vma
from xipfs.units import PAGE_SHIFT, Pfn, Pgoff, Vaddr

__all__ = [
    "free_pgtables",
    "leaf_windows",
    "page_mkclean",
    "unmap_frame",
    "unmap_mapping_pages",
    "unmap_mapping_range",
    "unmap_page_range",
    "zap_page_range",
]

_NR_ZAP_TOGETHER = 16
"""From so many scattered ptes on, arrays pay."""


def unmap_mapping_range(
    mapping: AddressSpace, pgoff: Pgoff, nr_pages: int, *, even_cows: bool
) -> int:
    """Take away the ptes of [pgoff, pgoff + nr_pages), in all vmas that map the file.

    Afterwards no CPU reaches what they led to, not by an old translation either.

    Special ptes always go. Without even_cows private copies stay, and in 2.6.28 all pages whose
    struct page names another file, or none, as the sparse page.

    Returns: how many ptes went.
    Source: mm/memory.c unmap_mapping_range, Linux 2.6.28 and 6.1. Differs from Linux: counts pages.
    """
    nr_zapped = 0
    mapping.i_mmap_rwsem.down_read()
    try:
        for vma in mapping.i_mmap:
            start = max(vma.address(pgoff), vma.vm_start)
            end = min(vma.address(Pgoff(pgoff + nr_pages)), vma.vm_end)
            if start < end:
                nr_zapped += zap_page_range(vma, Vaddr(start), Vaddr(end), even_cows=even_cows)
    finally:
        mapping.i_mmap_rwsem.up_read()
    return nr_zapped


def unmap_mapping_pages(mapping: AddressSpace, pgoffs: list[int]) -> int:
    """Take away the ptes of pages anywhere in the file, but no private copies.

    pgoffs: sorted, none twice.
    Returns: how many ptes went. The same as `unmap_mapping_range` on each, in less time.
    """
    nr_pages = len(pgoffs)
    if not nr_pages:
        return 0
    if pgoffs[-1] - pgoffs[0] == nr_pages - 1:
        return unmap_mapping_range(mapping, Pgoff(pgoffs[0]), nr_pages, even_cows=False)
    nr_zapped = 0
    with mapping.i_mmap_rwsem.read():
        for vma in mapping.i_mmap:
            with MmuGather(vma.vm_mm) as tlb:
                nr_zapped += _zap_scattered(tlb, vma, pgoffs)
    return nr_zapped


def page_mkclean(mapping: AddressSpace, pgoff: Pgoff, pfn: Pfn) -> bool:
    """Let the next store through any pte of the RAM frame *pfn*, file page *pgoff*, fault.

    Returns: whether a pte was dirty. Source: mm/rmap.c page_mkclean.
    """
    dirty = False
    for vma in mapping.i_mmap:
        address = vma.address(pgoff)
        leaf = vma.vm_mm.page_table.leaves.get(address >> PMD_SHIFT)
        if leaf is None or not vma.vm_start <= address < vma.vm_end:
            continue
        index = pte_index(address)
        pte = leaf.words[index]
        if pte != PTE_NONE and pte_pfn(pte) == pfn:
            dirty |= bool(leaf.dirty_bytes[index])
            leaf.words[index] = pte & ~PTE_RW
            leaf.dirty_bytes[index] = 0
            # CPUs forget that they may write. A walk without locks that got the page to write to
            # it says itself that it is dirty (put_user_page), and need not be waited for.
            forget_translations(vma.vm_mm, address, Vaddr(address + (1 << PAGE_SHIFT)))
    return dirty


def unmap_frame(mapping: AddressSpace, pgoff: Pgoff, pfn: Pfn) -> int:
    """Take away the ptes of file page *pgoff* that map the frame *pfn*, a normal page.

    Returns: how many ptes went. Source: the walk of mm/filemap_xip.c __xip_unmap, Linux 2.6.28.
    """
    nr_zapped = 0
    with mapping.i_mmap_rwsem.read():
        for vma in mapping.i_mmap:
            address = vma.address(pgoff)
            if vma.vm_start <= address < vma.vm_end:
                pte = vma.vm_mm.page_table.find_pte(address)
                if pte != PTE_NONE and pte_pfn(pte) == pfn:
                    end = Vaddr(address + (1 << PAGE_SHIFT))
                    nr_zapped += zap_page_range(vma, address, end)
    return nr_zapped


def zap_page_range(vma: Vma, start: Vaddr, end: Vaddr, *, even_cows: bool = True) -> int:
    """Clear the ptes of [start, end), page-aligned, within *vma*, and let CPUs forget them.

    Returns: how many ptes went. Source: mm/memory.c zap_page_range_single.
    """
    with MmuGather(vma.vm_mm) as tlb:
        return unmap_page_range(tlb, vma, start, end, even_cows=even_cows)


def unmap_page_range(
    tlb: MmuGather, vma: Vma, start: Vaddr, end: Vaddr, *, even_cows: bool = True
) -> int:
    """Clear the ptes of [start, end); what they led to goes when *tlb* is done.

    A normal page loses its rmap entry, its reference and its place in rss, and learns that it is
    dirty; a special one nothing.

    even_cows: False spares what `unmap_mapping_range` spares.
    Returns: how many ptes went. Source: mm/memory.c zap_pte_range, Linux 2.6.28 and 6.1.
    """
    mm = vma.vm_mm
    nr_zapped = 0
    for number, window in leaf_windows(vma, start, end):
        leaf = mm.page_table.leaves[number]
        if window.stop - window.start == 1:  # one page moves: no array needed
            nr_zapped += _zap_pte(tlb, vma, leaf, number, window.start, even_cows)
        else:
            nr_zapped += _zap_ptes(tlb, vma, leaf, number, window, even_cows)
    if nr_zapped:
        tlb.cleared(start, end)
    mm.machine.vmstat.xip_zap += nr_zapped
    return nr_zapped


def free_pgtables(tlb: MmuGather, vma: Vma) -> None:
    """Forget what was known of the use of *vma*, which is gone; free leaves that no area shares.

    Only now, since who unmaps by offset holds nothing but i_mmap_rwsem, and finds leaves by areas.
    Source: mm/memory.c free_pgtables.
    """
    mm = vma.vm_mm
    for number, window in leaf_windows(vma, vma.vm_start, vma.vm_end):
        leaf = mm.page_table.leaves[number]
        leaf.accessed[window] = 0
        leaf.heat[window] = 0
        start, end = Vaddr(number << PMD_SHIFT), Vaddr((number + 1) << PMD_SHIFT)
        if not mm.is_mapped(start, end):
            del mm.page_table.leaves[number]
            tlb.pte_free(leaf, start, end)


def leaf_windows(vma: Vma, start: Vaddr, end: Vaddr) -> list[tuple[int, slice]]:
    """Return (leaf number, ptes of it) for the leaves there are under [start, end), in no order."""
    leaves = vma.vm_mm.page_table.leaves
    first, last = start >> PMD_SHIFT, (end - 1) >> PMD_SHIFT
    if last - first < len(leaves):
        numbers = [number for number in range(first, last + 1) if number in leaves]
    else:  # a huge vma, sparsely touched
        numbers = [number for number in leaves if first <= number <= last]
    return [
        (
            number,
            slice(
                pte_index(start) if number == first else 0,
                pte_index(Vaddr(end - 1)) + 1 if number == last else PTRS_PER_PTE,
            ),
        )
        for number in numbers
    ]


def _zap_pte(tlb: MmuGather, vma: Vma, leaf: Leaf, number: int, index: int, even_cows: bool) -> int:
    pte = leaf.words[index]
    if pte == PTE_NONE:
        return 0
    mm = vma.vm_mm
    mem_map = mm.machine.mem_map
    address = Vaddr((number << PMD_SHIFT) + (index << PAGE_SHIFT))
    page = vm_normal_page(vma, address, pte)
    if page is not None and not even_cows and not _should_zap_page(vma, page):
        return 0
    _, dirty = leaf.clear_pte(index)
    if page is None:
        return 1
    if mem_map.page_anon(page):
        mm.rss_anon -= 1
    else:
        mm.rss_file -= 1
        if dirty:
            mem_map.set_page_dirty(page)
    mem_map.page_remove_rmap(page)
    tlb.remove_page(page)
    return 1


def _should_zap_page(vma: Vma, page: Pfn) -> bool:
    """May a normal page go without even_cows? Source: mm/memory.c should_zap_page, 6.1."""
    machine = vma.vm_mm.machine
    if machine.arch.is_2008:
        return vma.vm_file is not None and int(machine.mem_map.mapping[page]) == vma.vm_file.id
    return not machine.mem_map.page_anon(page)


def _should_zap_pages(vma: Vma, pages: NDArray[np.int64]) -> NDArray[np.bool_]:
    machine = vma.vm_mm.machine
    zap = machine.mem_map.flags[pages] & PAGE_ANON == 0
    if machine.arch.is_2008:
        zap &= vma.vm_file is not None and machine.mem_map.mapping[pages] == vma.vm_file.id
    return np.asarray(zap)


def _zap_ptes(
    tlb: MmuGather, vma: Vma, leaf: Leaf, number: int, window: slice, even_cows: bool
) -> int:
    """Zap many ptes of one leaf: `_zap_pte` on each, in a few numpy expressions."""
    mm = vma.vm_mm
    machine = mm.machine
    mem_map = machine.mem_map
    present = np.flatnonzero(leaf.ptes[window]) + window.start
    if not len(present):
        return 0
    ptes = leaf.ptes[present]
    pgoffs = present + vma.pgoff(Vaddr(number << PMD_SHIFT))
    normal = vm_normal_pages(vma, pgoffs, ptes)
    if normal.any():
        pages = (ptes[normal] >> PAGE_SHIFT).astype(np.int64)
        if not even_cows:
            zap = _should_zap_pages(vma, pages)
            keep = ~normal
            keep[normal] = zap
            present, ptes, normal, pages = present[keep], ptes[keep], normal[keep], pages[zap]
        anon = mem_map.flags[pages] & PAGE_ANON != 0
        nr_anon = int(np.count_nonzero(anon))
        mm.rss_anon -= nr_anon
        mm.rss_file -= len(pages) - nr_anon
        dirty = (leaf.dirty[present[normal]] != 0) & ~anon
        mem_map.flags[pages[dirty]] |= PG_DIRTY
        leaf.ptes[present] = PTE_NONE
        mem_map.remove_rmaps(pages)
        tlb.remove_pages(pages)
    else:
        leaf.ptes[present] = PTE_NONE
    leaf.dirty[present] = 0
    leaf.nr_present -= len(present)
    return len(present)


def _zap_scattered(tlb: MmuGather, vma: Vma, pgoffs: list[int]) -> int:
    """Zap ptes of many leaves without even_cows: found one by one, judged together."""
    mm = vma.vm_mm
    machine = mm.machine
    leaves = mm.page_table.leaves
    first, last = vma.vm_pgoff, vma.pgoff(vma.vm_end)
    shift = (vma.vm_start >> PAGE_SHIFT) - first
    found: list[tuple[Leaf, int, int]] = []  # leaf, its number, index
    for pgoff in pgoffs:
        if first <= pgoff < last:
            number, index = divmod(pgoff + shift, PTRS_PER_PTE)
            leaf = leaves.get(number)
            if leaf is not None and leaf.words[index] != PTE_NONE:
                found.append((leaf, number, index))
    if found:
        tlb.cleared(vma.address(Pgoff(pgoffs[0])), vma.address(Pgoff(pgoffs[-1] + 1)))
    if len(found) < _NR_ZAP_TOGETHER:
        nr_zapped = sum(_zap_pte(tlb, vma, *entry, even_cows=False) for entry in found)
        machine.vmstat.xip_zap += nr_zapped
        return nr_zapped
    ptes = np.array([leaf.words[index] for leaf, _, index in found], np.uint64)
    file_pages = np.array([number * PTRS_PER_PTE + index - shift for _, number, index in found])
    normal = vm_normal_pages(vma, file_pages, ptes)
    pages = (ptes[normal] >> PAGE_SHIFT).astype(np.int64)
    if len(pages):
        zap = _should_zap_pages(vma, pages)
        if not zap.all():
            keep = ~normal
            keep[normal] = zap
            found = [entry for entry, goes in zip(found, keep.tolist(), strict=True) if goes]
            normal, pages = normal[keep], pages[zap]
        dirty = np.array([leaf.dirty_bytes[index] for leaf, _, index in found], np.bool_)
        machine.mem_map.flags[pages[dirty[normal]]] |= PG_DIRTY
        mm.rss_file -= len(pages)
    for leaf, _, index in found:
        leaf.clear_pte(index)
    machine.mem_map.remove_rmaps(pages)
    tlb.remove_pages(pages)
    machine.vmstat.xip_zap += len(found)
    return len(found)
