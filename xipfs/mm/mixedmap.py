"""VM_MIXEDMAP: pages with and without struct page, side by side in one vma.

    xip_file_fault      where is the page? -> vm_insert_mixed, or the sparse page for a hole
    vm_insert_mixed     by pfn: with a struct page it is counted, without it is only mapped
    vm_insert_page      by struct page: referenced, mapped, counted in rss
    vm_normal_page      the way back from a pte: its struct page's pfn, or None ("special")
    insert_range        vm_insert_mixed over a range of ptes, in one numpy expression

The fault contract (mm/filemap_xip.c xip_file_fault, 2.6.28, with the second size check and the
"EBUSY is fine" of 3.14):

    situation                                              result
    pgoff at or past the end of the file                   VM_FAULT_SIGBUS
    get_xip_mem finds the page                             vm_insert_mixed, VM_FAULT_NOPAGE
    get_xip_mem fails with anything but "no data"          VM_FAULT_OOM
    a hole; vma may be written and is shared; fs writable  get_xip_mem(create), or SIGBUS
    a hole otherwise                                       the sparse page, VM_FAULT_NOPAGE
    vm_insert_* finds a pte already there (-EBUSY)         VM_FAULT_NOPAGE: another fault won
    vm_insert_* has no memory (-ENOMEM)                    VM_FAULT_OOM

Differs from Linux: faults of one mm are serialised by the mount's lock, so the sparse page needs
no mutex and sequence count (xip_sparse_mutex, xip_sparse_seq); leaves cannot run out.
"""

import errno
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import NoDataError, XipfsError, bug_on
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
from xipfs.mm.vma import (
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_SHARED,
    VM_WRITE,
    Vma,
)
from xipfs.units import PAGE_SHIFT, PFN_NONE, Pfn, Pgoff, Vaddr, virt_to_pfn

__all__ = [
    "FaultResult",
    "insert_range",
    "vm_insert_mixed",
    "vm_insert_page",
    "vm_normal_page",
    "xip_file_fault",
]


class FaultResult(IntFlag):
    """VM_FAULT_* (include/linux/mm.h, 2.6.28)."""

    OOM = 0x1
    SIGBUS = 0x2
    NOPAGE = 0x100


VM_FAULT_ERROR = FaultResult.OOM | FaultResult.SIGBUS


def xip_file_fault(vma: Vma, pgoff: Pgoff, address: Vaddr) -> FaultResult:
    """Map file page *pgoff* at *address*, by the contract in the head of this module."""
    mapping = vma.vm_file
    if pgoff >= mapping.nr_pages:
        return FaultResult.SIGBUS
    try:
        kaddr, pfn = mapping.a_ops.get_xip_mem(mapping, pgoff, create=False)
    except NoDataError:
        if not _allocates_on_fault(vma):
            return _fault_result(_insert_sparse(vma, address))
        try:
            kaddr, pfn = mapping.a_ops.get_xip_mem(mapping, pgoff, create=True)
        except XipfsError:
            return FaultResult.SIGBUS
    except XipfsError:
        return FaultResult.OOM
    if pfn == PFN_NONE:
        # In RAM: what we got is its kernel address.
        pfn = virt_to_pfn(kaddr)
        if vma.vm_mm.machine.arch.pte_special:
            return _fault_result(vm_insert_page(vma, address, pfn))
    return _fault_result(vm_insert_mixed(vma, address, pfn))


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
    Source:  mm/memory.c vm_insert_page, Linux 2.6.28, in its order of checks.
    """
    if not vma.vm_start <= address < vma.vm_end:
        return -errno.EFAULT
    mm = vma.vm_mm
    mem_map = mm.machine.mem_map
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


def _insert_sparse(vma: Vma, address: Vaddr) -> int:
    machine = vma.vm_mm.machine
    error = vm_insert_page(vma, address, machine.sparse_pfn)
    if not error:
        machine.vmstat.xip_insert_sparse += 1
    return error


def vm_normal_page(vma: Vma, pte: int) -> Pfn | None:
    """Return the frame of *pte* if it has a struct page to be used ("normal"), else None.

    Source: mm/memory.c vm_normal_page, Linux 2.6.28, for VM_MIXEDMAP areas. Differs from Linux:
    pfn_to_page is the identity here, a struct page being a row of mem_map.
    """
    bug_on(not vma.vm_flags & VM_MIXEDMAP, "only mixed maps are modelled", vma=vma)
    machine = vma.vm_mm.machine
    pfn = pte_pfn(pte)
    if machine.arch.pte_special:
        if pte_special(pte):
            return None
        bug_on(not machine.mem_map.pfn_valid(pfn), "a normal pte without struct page", pfn=pfn)
        return pfn
    return pfn if machine.mem_map.pfn_valid(pfn) else None


def insert_range(vma: Vma, address: Vaddr, pfns: NDArray[np.int64]) -> int:
    """Map *pfns* from *address* on, within one leaf, wherever no pte is: as vm_insert_mixed would.

    pfns: int64, shape (nr_pages,); PFN_NONE, for a hole, maps the sparse page.
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


def _allocates_on_fault(vma: Vma) -> bool:
    """May a hole be filled by this fault? The fault's own kind, read or write, plays no part."""
    flags = vma.vm_flags
    return bool(
        flags & (VM_WRITE | VM_MAYWRITE)
        and flags & (VM_SHARED | VM_MAYSHARE)
        and not vma.vm_file.read_only
    )


def _fault_result(error: int) -> FaultResult:
    if error == -errno.ENOMEM:
        return FaultResult.OOM
    bug_on(error not in (0, -errno.EBUSY), "xip_file_fault: insertion failed", error=error)
    return FaultResult.NOPAGE
