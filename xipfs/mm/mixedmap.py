"""VM_MIXEDMAP: pages with and without struct page, side by side in one vma.

    vm_insert_mixed     by pfn: with a struct page it is counted, without it is only mapped
    vm_insert_page      by struct page: referenced, mapped, counted in rss
    vm_normal_page      the way back from a pte: its struct page's pfn, or None ("special")
    insert_range        both insertions over a range of ptes, in one numpy expression

Nothing here overwrites a pte: what finds one answers -EBUSY and changes nothing. So whoever moves
a page takes its ptes away first (`mm.rmap`).

Source: mm/memory.c, Linux 2.6.28. Differs from Linux: leaves cannot run out, so no -ENOMEM.
"""

import errno

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import bug_on
from xipfs.mm.pgtable import (
    PMD_SHIFT,
    PTE_NONE,
    PTE_PRESENT,
    PTE_SPECIAL,
    Leaf,
    mk_pte,
    pte_index,
    pte_pfn,
    pte_special,
)
from xipfs.mm.vma import VM_MIXEDMAP, Vma
from xipfs.units import PAGE_SHIFT, PFN_NONE, Pfn, Vaddr

__all__ = ["insert_range", "vm_insert_mixed", "vm_insert_page", "vm_normal_page"]


def vm_insert_mixed(vma: Vma, address: Vaddr, pfn: Pfn) -> int:
    """Map *pfn* at *address* in a VM_MIXEDMAP area.

    Without a pte special bit: a frame with a struct page gains a reference, an rmap entry and
    counts in rss; one without gains nothing. With the bit: always a special pte, never counted.

    Returns: 0; -EFAULT outside of the vma; -EBUSY, changing nothing, when any pte is there.
    Bug:     vma lacks VM_MIXEDMAP.
    Source:  mm/memory.c vm_insert_mixed, Linux 2.6.28.
    """
    bug_on(not vma.vm_flags & VM_MIXEDMAP, "vm_insert_mixed needs VM_MIXEDMAP", vma=vma)
    machine = vma.vm_mm.machine
    if not machine.arch.pte_special and machine.mem_map.pfn_valid(pfn):
        return vm_insert_page(vma, address, pfn)
    return _insert_pfn(vma, address, pfn)


def vm_insert_page(vma: Vma, address: Vaddr, pfn: Pfn) -> int:
    """Map the page of frame *pfn* at *address*: referenced, mapped, counted in rss, not special.

    Returns: 0; -EFAULT outside of the vma; -EINVAL for a page without references; -EBUSY.
    Bug:     there is no struct page.
    Source:  mm/memory.c vm_insert_page, Linux 2.6.28, in its order of checks.
    """
    if not vma.vm_start <= address < vma.vm_end:
        return -errno.EFAULT
    mm = vma.vm_mm
    mem_map = mm.machine.mem_map
    bug_on(not 0 <= pfn < mem_map.nr_frames, "vm_insert_page without struct page", pfn=pfn)
    if mem_map.page_count(pfn) == 0:
        return -errno.EINVAL
    leaf = mm.page_table.pte_alloc(address)
    index = pte_index(address)
    if leaf.words[index] != PTE_NONE:
        return -errno.EBUSY
    mem_map.page_add_file_rmap(pfn)
    mm.rss_file += 1
    _set_pte(leaf, index, mk_pte(pfn, 0))
    mm.machine.vmstat.xip_insert_page += 1
    return 0


def _insert_pfn(vma: Vma, address: Vaddr, pfn: Pfn) -> int:
    """Map a bare pfn: nothing is counted, ever. Source: mm/memory.c insert_pfn, Linux 2.6.28."""
    if not vma.vm_start <= address < vma.vm_end:
        return -errno.EFAULT
    mm = vma.vm_mm
    leaf = mm.page_table.pte_alloc(address)
    index = pte_index(address)
    if leaf.words[index] != PTE_NONE:
        return -errno.EBUSY
    _set_pte(leaf, index, mk_pte(pfn, PTE_SPECIAL if mm.machine.arch.pte_special else 0))
    mm.machine.vmstat.xip_insert_pfn += 1
    return 0


def vm_normal_page(vma: Vma, pte: int) -> Pfn | None:
    """Return the frame of *pte* if it has a struct page to be used ("normal"), else None.

    With a special bit pfn_valid is never asked: the bit alone decides.
    Source: mm/memory.c vm_normal_page, Linux 2.6.28, for VM_MIXEDMAP areas. Differs from Linux:
    pfn_to_page is the identity here, a struct page being a row of mem_map.
    """
    bug_on(not vma.vm_flags & VM_MIXEDMAP, "only mixed maps are modelled", vma=vma)
    machine = vma.vm_mm.machine
    pfn = pte_pfn(pte)
    if machine.arch.pte_special:
        if pte_special(pte):
            return None
        bug_on(pfn >= machine.mem_map.nr_frames, "a normal pte without struct page", pfn=pfn)
        return pfn
    return pfn if machine.mem_map.pfn_valid(pfn) else None


def insert_range(vma: Vma, address: Vaddr, pfns: NDArray[np.int64]) -> int:
    """Map *pfns* from *address* on, within one leaf, wherever no pte is: as a fault on each would.

    pfns: int64, shape (nr_pages,), what get_xip_pfns gave. RAM frames are mapped as
          vm_insert_page does it, NVRAM frames as vm_insert_mixed, PFN_NONE, for a hole, as the
          sparse page.
    Returns: the number of ptes inserted; ptes already there stay.
    Bug:     the range leaves the vma or the leaf.
    """
    bug_on(not vma.vm_flags & VM_MIXEDMAP, "insert_range needs VM_MIXEDMAP", vma=vma)
    last = address + ((len(pfns) - 1) << PAGE_SHIFT)
    bug_on(
        not vma.vm_start <= address <= last < vma.vm_end
        or address >> PMD_SHIFT != last >> PMD_SHIFT,
        "a range outside of its vma or leaf",
        vma=vma,
        address=address,
        nr_pages=len(pfns),
    )
    mm = vma.vm_mm
    machine = mm.machine
    leaf = mm.page_table.pte_alloc(address)
    index = pte_index(address)
    ptes = leaf.ptes[index : index + len(pfns)]
    none = ptes == PTE_NONE
    pages = np.where(pfns == PFN_NONE, machine.sparse_pfn, pfns)[none]
    normal = pages < machine.mem_map.nr_frames  # pfn_valid: NVRAM pfns are all far above RAM
    special = PTE_SPECIAL if machine.arch.pte_special else 0
    flags = np.where(normal, 0, special) | PTE_PRESENT
    ptes[none] = (pages << PAGE_SHIFT | flags).astype(np.uint64)
    nr_inserted = len(pages)
    nr_normal = int(np.count_nonzero(normal))
    if nr_normal:
        # add.at, since the sparse page may be among them many times.
        np.add.at(machine.mem_map.refcount, pages[normal], 1)
        np.add.at(machine.mem_map.mapcount, pages[normal], 1)
        mm.rss_file += nr_normal
        machine.vmstat.xip_insert_sparse += int(np.count_nonzero(pages == machine.sparse_pfn))
    leaf.nr_present += nr_inserted
    machine.vmstat.xip_insert_page += nr_normal
    machine.vmstat.xip_insert_pfn += nr_inserted - nr_normal
    return nr_inserted


def _set_pte(leaf: Leaf, index: int, pte: int) -> None:
    leaf.words[index] = pte
    leaf.nr_present += 1
