"""remap_pfn_range: pages without struct page into an area all at once, in order (VM_PFNMAP).

A VM_PFNMAP area refcounts nothing, not even pfns that have a struct page. In a private one a pte
whose pfn is at its linear place, vm_pgoff + offset, is special, and any other a private copy; hence
such an area must be mapped whole, and vm_pgoff then holds the first pfn. So offset-based unmapping
does not find it by its file page any more: what the kernel does, too.

On x86 the area's memory type is reserved (PAT). fork has to read it from the first pte, and fails
once that one maps a private copy.

Source: mm/memory.c remap_pfn_range, 2.6.28 and 6.1; arch/x86/mm/pat/memtype.c, 6.1.
"""

import errno

from xipfs.errors import bug_on
from xipfs.mm.mixedmap import vm_normal_page
from xipfs.mm.pgtable import PTE_NONE, PTE_SPECIAL, mk_pte, pte_index
from xipfs.mm.vma import VM_DONTDUMP, VM_DONTEXPAND, VM_IO, VM_PFNMAP, Vma, is_cow_mapping
from xipfs.units import PAGE_SHIFT, Pfn, Pgoff, Vaddr

__all__ = ["remap_pfn_range", "track_pfn_copy"]


def remap_pfn_range(vma: Vma, address: Vaddr, pfn: Pfn, nr_pages: int) -> int:
    """Map nr_pages frames from *pfn* on at *address*.

    Returns: 0; -EINVAL for a part of a private area; -ENOMEM.
    Bug:     no pages, or a pte is there.
    """
    bug_on(nr_pages <= 0, "remap_pfn_range of no pages", vma=vma)
    is_whole = address == vma.vm_start and nr_pages == vma.nr_pages
    if is_cow_mapping(vma.vm_flags):
        if not is_whole:
            return -errno.EINVAL
        vma.vm_pgoff = Pgoff(pfn)
    machine = vma.vm_mm.machine
    vma.vm_pat = vma.vm_pat or (machine.arch.pat and is_whole)
    vma.vm_flags |= VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP
    prot = vma.vm_page_prot | (PTE_SPECIAL if machine.arch.pte_special else 0)
    for page in range(nr_pages):
        at = Vaddr(address + (page << PAGE_SHIFT))
        leaf = vma.vm_mm.page_table.pte_alloc(at)
        if leaf is None:
            return -errno.ENOMEM
        index = pte_index(at)
        bug_on(leaf.words[index] != PTE_NONE, "remap_pfn_range over a pte", vma=vma, address=at)
        leaf.set_pte(index, mk_pte(Pfn(pfn + page), prot))
    machine.vmstat.xip_insert_pfn += nr_pages
    return 0


def track_pfn_copy(vma: Vma) -> int:
    """Reserve the memory type for a forked copy of *vma*. Returns: 0, or -EINVAL: see the head."""
    if not vma.vm_pat:
        return 0
    pte = vma.vm_mm.page_table.find_pte(vma.vm_start)
    if pte == PTE_NONE or vm_normal_page(vma, vma.vm_start, pte) is not None:
        return -errno.EINVAL
    return 0
