"""Taking ptes away, by offset. The centre of a mixed map:

A frame with a struct page could be found from the page; a frame without has nothing to start from.
So every unmapping begins at the file: `mapping.i_mmap` lists the vmas, and file page pgoff is
mapped at vm_start + ((pgoff - vm_pgoff) << PAGE_SHIFT) or not at all. That is the rmap of memory
without struct pages, and it reaches both kinds alike.
"""

import numpy as np

from xipfs.mm.address_space import AddressSpace
from xipfs.mm.mixedmap import vm_normal_page
from xipfs.mm.pgtable import PMD_SHIFT, PTE_NONE, PTRS_PER_PTE, Leaf, pte_index
from xipfs.mm.vma import Vma
from xipfs.units import Pgoff, Vaddr

__all__ = ["munmap", "unmap_mapping_range", "zap_page_range"]


def unmap_mapping_range(mapping: AddressSpace, pgoff: Pgoff, nr_pages: int) -> int:
    """Take away every pte of [pgoff, pgoff + nr_pages), in all vmas that map the file.

    Returns: how many ptes were there.
    Source: mm/memory.c unmap_mapping_range, Linux 2.6.28. Differs from Linux: counts in pages;
            there are no private copies yet, so nothing like even_cows.
    """
    nr_zapped = 0
    for vma in mapping.i_mmap:
        start = max(vma.address(pgoff), vma.vm_start)
        end = min(vma.address(Pgoff(pgoff + nr_pages)), vma.vm_end)
        if start < end:
            nr_zapped += zap_page_range(vma, Vaddr(start), Vaddr(end))
    return nr_zapped


def munmap(vma: Vma) -> None:
    """Take *vma* away: its ptes, what was known of their use, and leaves that tell nothing more.

    Source: mm/mmap.c do_munmap, Linux 2.6.28. Differs from Linux: whole vmas only.
    """
    zap_page_range(vma, vma.vm_start, vma.vm_end)
    leaves = vma.vm_mm.page_table.leaves
    for number, window in _windows(vma, vma.vm_start, vma.vm_end):
        leaf = leaves[number]
        leaf.accessed[window] = 0
        leaf.heat[window] = 0
        # A neighbour's page that just moved has no pte, but its heat.
        if leaf.nr_present == 0 and not leaf.accessed.any() and not leaf.heat.any():
            del leaves[number]
    vma.vm_mm.remove_vma(vma)


def zap_page_range(vma: Vma, start: Vaddr, end: Vaddr) -> int:
    """Clear the ptes of [start, end), page-aligned, within *vma*.

    A normal page loses its rmap entry, its reference and its place in rss; a special one nothing.
    Returns: how many ptes were there. Source: mm/memory.c zap_pte_range, Linux 2.6.28.
    """
    mm = vma.vm_mm
    nr_zapped = 0
    for number, window in _windows(vma, start, end):
        nr_zapped += _zap_leaf(vma, mm.page_table.leaves[number], window)
    mm.machine.vmstat.xip_zap += nr_zapped
    return nr_zapped


def _windows(vma: Vma, start: Vaddr, end: Vaddr) -> list[tuple[int, slice]]:
    """Return (leaf number, ptes of it) for the leaves that exist under [start, end)."""
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


def _zap_leaf(vma: Vma, leaf: Leaf, window: slice) -> int:
    mm = vma.vm_mm
    mem_map = mm.machine.mem_map
    if window.stop - window.start == 1:  # one page moves: no array needed
        present = [window.start] if leaf.words[window.start] != PTE_NONE else []
    else:
        present = (np.flatnonzero(leaf.ptes[window]) + window.start).tolist()
    for index in present:
        pte = leaf.words[index]
        # The pte goes before the reference: nobody may reach a frame that could be freed.
        leaf.words[index] = PTE_NONE
        pfn = vm_normal_page(vma, pte)
        if pfn is not None:
            mm.rss_file -= 1
            mem_map.page_remove_rmap(pfn)
    leaf.nr_present -= len(present)
    return len(present)
