"""VM_MIXEDMAP: pages with and without struct page, side by side in one vma.

    vm_insert_mixed     by pfn: with a struct page it is counted, without it is only mapped
    vm_insert_page      by struct page: referenced, mapped, counted in rss
    vm_insert_pfn       by pfn that has no struct page, or in a VM_PFNMAP area
    vmf_insert_*        the same three for fault handlers, answering VM_FAULT_* (since 4.20)
    vm_normal_page      the way back from a pte: its struct page's pfn, or None ("special")
    insert_range        both insertions over a range of ptes, in one numpy expression

Nothing here overwrites a pte with another page: what finds one answers -EBUSY and changes nothing.
So whoever moves a page takes its ptes away first (`mm.rmap`).

Source: mm/memory.c, Linux 2.6.28, 6.1 and 6.18; which of them is the machine's `Arch`.
"""

import errno
import logging

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import bug_on
from xipfs.mm.mem_map import PAGE_ANON, PAGE_TYPED
from xipfs.mm.pgtable import (
    PMD_SHIFT,
    PTE_NONE,
    PTE_RW,
    PTE_SPECIAL,
    mk_pte,
    pte_index,
    pte_pfn,
    pte_special,
)
from xipfs.mm.vm_fault import FaultResult
from xipfs.mm.vma import (
    VM_INSERTPAGE,
    VM_IO,
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_WRITE,
    Vma,
    is_cow_mapping,
)
from xipfs.units import PAGE_SHIFT, PFN_NONE, Pfn, Vaddr

__all__ = [
    "insert_range",
    "maybe_mkwrite",
    "vm_insert_mixed",
    "vm_insert_page",
    "vm_insert_pfn",
    "vm_normal_page",
    "vm_normal_pages",
    "vmf_insert_mixed",
    "vmf_insert_mixed_mkwrite",
    "vmf_insert_page_mkwrite",
    "vmf_insert_pfn",
]

_log = logging.getLogger(__name__)


def vm_insert_mixed(vma: Vma, address: Vaddr, pfn: Pfn) -> int:
    """Map *pfn* at *address* in a VM_MIXEDMAP area.

    Without a pte special bit: a frame with a struct page gains a reference, an rmap entry and
    counts in rss; one without gains nothing. With the bit: always a special pte, never counted.

    Returns: 0; -EFAULT outside of the vma; -ENOMEM without page table; -EBUSY, changing nothing,
             when any pte is there.
    Bug:     vma lacks VM_MIXEDMAP.
    Source:  mm/memory.c vm_insert_mixed, Linux 2.6.28.
    """
    bug_on(not vma.vm_flags & VM_MIXEDMAP, "vm_insert_mixed needs VM_MIXEDMAP", vma=vma)
    if not vma.vm_start <= address < vma.vm_end:
        return -errno.EFAULT
    return _insert_mixed(vma, address, pfn, mkwrite=False)


def vmf_insert_mixed(vma: Vma, address: Vaddr, pfn: Pfn) -> FaultResult:
    """Do what `vm_insert_mixed` does, for a fault handler. A pte that is there counts as success.

    Returns: VM_FAULT_NOPAGE, OOM, or SIGBUS outside of the vma and (6.18) without VM_MIXEDMAP.
    Bug:     vma lacks VM_MIXEDMAP and pfn is not the zero page's (6.1).
    Source:  mm/memory.c vmf_insert_mixed, 6.1 and 6.18.
    """
    return _vmf_insert_mixed(vma, address, pfn, mkwrite=False)


def vmf_insert_mixed_mkwrite(vma: Vma, address: Vaddr, pfn: Pfn) -> FaultResult:
    """Do what `vmf_insert_mixed` does, and make the pte dirty, and writable if the vma is.

    A pte of the same pfn is upgraded; one of another stays, with a warning, and NOPAGE is returned.
    A page that is to be counted enters, in 6.1, as `vmf_insert_mixed` has it, for reading.
    Source: mm/memory.c vmf_insert_mixed_mkwrite, 6.1 and 6.18.
    """
    return _vmf_insert_mixed(vma, address, pfn, mkwrite=True)


def vm_insert_page(vma: Vma, address: Vaddr, pfn: Pfn) -> int:
    """Map the page of frame *pfn* at *address*: referenced, mapped, counted in rss, not special.

    Returns: 0; -EFAULT outside of the vma; -EINVAL for a page without references, an anonymous or
             a typed one, or (6.18) the zero page where it may not be; -ENOMEM; -EBUSY.
    Bug:     there is no struct page; since 3.7 also: vma is VM_PFNMAP, or lacks VM_MIXEDMAP and
             mmap_lock is not held for writing to set it.
    Source:  mm/memory.c vm_insert_page, Linux 2.6.28 and 6.18, in its order of checks.
    """
    machine = vma.vm_mm.machine
    bug_on(not 0 <= pfn < machine.mem_map.nr_frames, "vm_insert_page without struct page", pfn=pfn)
    if not vma.vm_start <= address < vma.vm_end:
        return -errno.EFAULT
    if machine.mem_map.page_count(pfn) == 0:
        return -errno.EINVAL
    if machine.arch.is_2008:
        vma.vm_flags |= VM_INSERTPAGE
    elif not vma.vm_flags & VM_MIXEDMAP:
        bug_on(not vma.vm_mm.mmap_lock.is_write_locked, "vm_insert_page in a fault", vma=vma)
        bug_on(bool(vma.vm_flags & VM_PFNMAP), "vm_insert_page into VM_PFNMAP", vma=vma)
        vma.vm_flags |= VM_MIXEDMAP
    return _insert_page(vma, address, pfn, mkwrite=False)


def vmf_insert_page_mkwrite(vma: Vma, address: Vaddr, pfn: Pfn, *, write: bool) -> FaultResult:
    """Map the page of *pfn* as `vm_insert_page` does, writable at once if *write*.

    Returns: VM_FAULT_NOPAGE, OOM, or SIGBUS, also where another page is mapped already.
    Source:  mm/memory.c vmf_insert_page_mkwrite, 6.18; does not ask for VM_MIXEDMAP.
    """
    if not vma.vm_start <= address < vma.vm_end:
        return FaultResult.SIGBUS
    return _vmf_result(_insert_page(vma, address, pfn, mkwrite=write))


def vm_insert_pfn(vma: Vma, address: Vaddr, pfn: Pfn) -> int:
    """Map a bare pfn: nothing is counted, ever.

    Returns: 0; -EFAULT outside of the vma; -ENOMEM; -EBUSY.
    Bug:     neither VM_PFNMAP nor VM_MIXEDMAP, or both; a private VM_PFNMAP area; a pfn with a
             struct page in a VM_MIXEDMAP area, on every architecture.
    Source:  mm/memory.c vm_insert_pfn, Linux 2.6.28.
    """
    _check_insert_pfn(vma, pfn)
    if not vma.vm_start <= address < vma.vm_end:
        return -errno.EFAULT
    return _insert_pfn(vma, address, pfn, mkwrite=False)


def vmf_insert_pfn(vma: Vma, address: Vaddr, pfn: Pfn) -> FaultResult:
    """Do what `vm_insert_pfn` does, for a fault handler: NOPAGE, OOM, or SIGBUS out of range.

    Source: mm/memory.c vmf_insert_pfn_prot, 6.1.
    """
    _check_insert_pfn(vma, pfn)
    if not vma.vm_start <= address < vma.vm_end:
        return FaultResult.SIGBUS
    return _vmf_result(_insert_pfn(vma, address, pfn, mkwrite=False))


def vm_normal_page(vma: Vma, address: Vaddr, pte: int) -> Pfn | None:
    """Return the frame of *pte* if it has a struct page to be used ("normal"), else None.

    special bit      the bit decides, pfn_valid is never asked; a special pte in an ordinary vma is
                     a bug (2008), or reported, unless it maps the zero page
    no special bit   VM_MIXEDMAP: pfn_valid decides. VM_PFNMAP: a pte at its linear place is
                     special, others are private copies if there can be some. Else: normal.

    Source: mm/memory.c vm_normal_page, Linux 2.6.28, 6.1, 6.18. Differs from Linux: pfn_to_page is
    the identity here, a struct page being a row of mem_map.
    """
    machine = vma.vm_mm.machine
    arch = machine.arch
    pfn = pte_pfn(pte)
    flags = vma.vm_flags
    if arch.pte_special:
        if pte_special(pte):
            return _special_page(vma, address, pfn)
    elif flags & VM_MIXEDMAP:
        if not machine.pfn_valid(pfn) or (arch.is_6_18 and pfn == machine.zero_pfn):
            return None
        return pfn
    elif flags & VM_PFNMAP and (int(pfn) == vma.pgoff(address) or not is_cow_mapping(flags)):
        return None
    if pfn == machine.zero_pfn and not arch.is_2008 and not arch.pte_special:
        return None
    if pfn >= machine.mem_map.nr_frames:  # highest_memmap_pfn
        bug_on(arch.is_2008, "a normal pte without struct page", vma=vma, pfn=pfn)
        _bad_pte(vma, address, pte)
        return None
    return pfn


def vm_normal_pages(
    vma: Vma, pgoffs: NDArray[np.int64], ptes: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Tell for many ptes whether their pages are normal: `vm_normal_page` on each.

    pgoffs: int64, shape (nr_pages,), their file pages. ptes: uint64, same shape, none is PTE_NONE.
    Returns: bool, same shape.
    """
    machine = vma.vm_mm.machine
    pfns = (ptes >> PAGE_SHIFT).astype(np.int64)
    normal = np.ones(len(pfns), np.bool_)
    if machine.arch.pte_special:
        normal &= ptes & PTE_SPECIAL == 0
        return normal
    if vma.vm_flags & VM_MIXEDMAP:
        normal &= machine.pfn_valid.of_array(pfns)
        if not machine.arch.is_6_18:
            return normal
    elif vma.vm_flags & VM_PFNMAP:
        normal &= pfns != pgoffs
        normal &= is_cow_mapping(vma.vm_flags)
    if not machine.arch.is_2008:
        normal &= pfns != machine.zero_pfn
    return normal


def maybe_mkwrite(prot: int, vma: Vma) -> int:
    """Add write permission if the vma has it. Source: include/linux/mm.h."""
    return prot | PTE_RW if vma.vm_flags & VM_WRITE else prot


def insert_range(vma: Vma, address: Vaddr, pfns: NDArray[np.int64]) -> int:
    """Map *pfns* from *address* on, within one leaf, wherever no pte is: as a fault on each would.

    pfns: int64, shape (nr_pages,), what get_xip_pfns gave. RAM frames are mapped as
          vm_insert_page does it, NVRAM frames as vm_insert_mixed, PFN_NONE, for a hole, as the
          sparse page.
    Returns: the number of ptes inserted; ptes already there stay; -ENOMEM without page table.
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
    if leaf is None:
        return -errno.ENOMEM
    index = pte_index(address)
    ptes = leaf.ptes[index : index + len(pfns)]
    none = ptes == PTE_NONE
    pages = np.where(pfns == PFN_NONE, machine.sparse_pfn, pfns)[none]
    normal = pages < machine.mem_map.nr_frames  # pfn_valid: NVRAM pfns are all far above RAM
    special = PTE_SPECIAL if machine.arch.pte_special else 0
    flags = np.where(normal, 0, special) | vma.vm_page_prot
    ptes[none] = (pages << PAGE_SHIFT | flags).astype(np.uint64)
    nr_inserted = len(pages)
    nr_normal = int(np.count_nonzero(normal))
    if nr_normal:
        machine.mem_map.add_file_rmaps(pages[normal])
        mm.rss_file += nr_normal
        nr_sparse = int(np.count_nonzero(pages == machine.sparse_pfn))
        machine.vmstat.xip_insert_sparse += nr_sparse
        if machine.arch.is_2008 and (nr_sparse or machine.arch.pte_special):
            vma.vm_flags |= VM_INSERTPAGE
    leaf.nr_present += nr_inserted
    machine.vmstat.xip_insert_page += nr_normal
    machine.vmstat.xip_insert_pfn += nr_inserted - nr_normal
    return nr_inserted


def _vmf_insert_mixed(vma: Vma, address: Vaddr, pfn: Pfn, *, mkwrite: bool) -> FaultResult:
    if not _vm_mixed_ok(vma, pfn, mkwrite=mkwrite):
        bug_on(not vma.vm_mm.machine.arch.is_6_18, "vmf_insert_mixed needs VM_MIXEDMAP", vma=vma)
        return FaultResult.SIGBUS
    if not vma.vm_start <= address < vma.vm_end:
        return FaultResult.SIGBUS
    return _vmf_result(_insert_mixed(vma, address, pfn, mkwrite=mkwrite))


def _vm_mixed_ok(vma: Vma, pfn: Pfn, *, mkwrite: bool) -> bool:
    machine = vma.vm_mm.machine
    is_zero = pfn == machine.zero_pfn
    if is_zero and machine.arch.is_6_18 and (mkwrite or not _vm_mixed_zeropage_allowed(vma)):
        return False
    return bool(vma.vm_flags & VM_MIXEDMAP) or is_zero


def _vm_mixed_zeropage_allowed(vma: Vma) -> bool:
    """May the zero page be mapped, or could somebody write to it? Source: mm/memory.c, 6.18."""
    if is_cow_mapping(vma.vm_flags) or not vma.vm_flags & (VM_WRITE | VM_MAYWRITE):
        return True
    return vma.vm_ops.pfn_mkwrite is not None and bool(vma.vm_flags & VM_IO)


def _insert_mixed(vma: Vma, address: Vaddr, pfn: Pfn, *, mkwrite: bool) -> int:
    machine = vma.vm_mm.machine
    if not machine.arch.pte_special and machine.pfn_valid(pfn):
        # By page though it came as pfn, so that it may be looked up again by pfn_valid.
        # insert_page knows mkwrite since 6.15 only.
        return _insert_page(vma, address, pfn, mkwrite=mkwrite and machine.arch.is_6_18)
    return _insert_pfn(vma, address, pfn, mkwrite=mkwrite)


def _check_insert_pfn(vma: Vma, pfn: Pfn) -> None:
    flags = vma.vm_flags & (VM_PFNMAP | VM_MIXEDMAP)
    bug_on(flags == 0, "vm_insert_pfn needs VM_PFNMAP or VM_MIXEDMAP", vma=vma)
    bug_on(flags == VM_PFNMAP | VM_MIXEDMAP, "VM_PFNMAP and VM_MIXEDMAP", vma=vma)
    bug_on(flags == VM_PFNMAP and is_cow_mapping(vma.vm_flags), "vm_insert_pfn: private", vma=vma)
    bug_on(
        flags == VM_MIXEDMAP and vma.vm_mm.machine.pfn_valid(pfn),
        "vm_insert_pfn of a pfn with struct page",
        vma=vma,
        pfn=pfn,
    )


def _insert_pfn(vma: Vma, address: Vaddr, pfn: Pfn, *, mkwrite: bool) -> int:
    """Map a bare pfn. Source: mm/memory.c insert_pfn: nothing is counted."""
    mm = vma.vm_mm
    leaf = mm.page_table.pte_alloc(address)
    if leaf is None:
        return -errno.ENOMEM
    index = pte_index(address)
    if leaf.words[index] != PTE_NONE:
        if mkwrite and _is_same_pfn(vma, leaf.words[index], pfn):
            leaf.words[index] = maybe_mkwrite(leaf.words[index], vma)
            leaf.dirty_bytes[index] = leaf.accessed_bytes[index] = 1
        return -errno.EBUSY
    prot = vma.vm_page_prot | (PTE_SPECIAL if mm.machine.arch.pte_special else 0)
    if mkwrite:
        prot = maybe_mkwrite(prot, vma)
    leaf.set_pte(index, mk_pte(pfn, prot), dirty=mkwrite)
    mm.machine.vmstat.xip_insert_pfn += 1
    return 0


def _insert_page(vma: Vma, address: Vaddr, pfn: Pfn, *, mkwrite: bool) -> int:
    """Map a page with its struct page. Source: mm/memory.c insert_page."""
    mm = vma.vm_mm
    machine = mm.machine
    mem_map = machine.mem_map
    is_zero = machine.arch.is_6_18 and pfn == machine.zero_pfn
    if is_zero and not _vm_mixed_zeropage_allowed(vma):
        return -errno.EINVAL
    if mem_map.page_flags(pfn) & (PAGE_ANON | PAGE_TYPED):
        return -errno.EINVAL
    leaf = mm.page_table.pte_alloc(address)
    if leaf is None:
        return -errno.ENOMEM
    index = pte_index(address)
    if leaf.words[index] != PTE_NONE:
        if not mkwrite:
            return -errno.EBUSY
        if not _is_same_pfn(vma, leaf.words[index], pfn):
            return -errno.EFAULT
        leaf.words[index] = maybe_mkwrite(leaf.words[index], vma)
        leaf.accessed_bytes[index] = 1
        return 0
    prot = maybe_mkwrite(vma.vm_page_prot, vma) if mkwrite else vma.vm_page_prot
    if is_zero:  # mapped as what it is: nobody counts the zero page
        prot |= PTE_SPECIAL if machine.arch.pte_special else 0
    else:
        mem_map.get_page(pfn)
        mem_map.page_add_file_rmap(pfn)
        mm.rss_file += 1
    leaf.set_pte(index, mk_pte(pfn, prot), dirty=mkwrite)
    machine.vmstat.xip_insert_page += 1
    return 0


def _is_same_pfn(vma: Vma, pte: int, pfn: Pfn) -> bool:
    """Is it the page to be made writable? Another one was raced in, or is a private copy."""
    found = pte_pfn(pte)
    if found != pfn and found != vma.vm_mm.machine.zero_pfn:
        _log.warning("mkwrite of pfn %#x where %#x is mapped: %r", pfn, found, vma)
    return found == pfn


def _vmf_result(error: int) -> FaultResult:
    if error in (0, -errno.EBUSY):
        return FaultResult.NOPAGE
    return FaultResult.OOM if error == -errno.ENOMEM else FaultResult.SIGBUS


def _special_page(vma: Vma, address: Vaddr, pfn: Pfn) -> Pfn | None:
    machine = vma.vm_mm.machine
    if machine.arch.is_6_18 and vma.vm_ops.find_normal_page is not None:
        return vma.vm_ops.find_normal_page(vma, address)
    if vma.vm_flags & (VM_PFNMAP | VM_MIXEDMAP):
        return None
    bug_on(machine.arch.is_2008, "a special pte in an ordinary vma", vma=vma, pfn=pfn)
    if pfn != machine.zero_pfn:
        _bad_pte(vma, address, mk_pte(pfn, PTE_SPECIAL))
    return None


def _bad_pte(vma: Vma, address: Vaddr, pte: int) -> None:
    """Report a pte that should not be. Source: mm/memory.c print_bad_pte."""
    _log.error("bad page map at %#x: pte %#x in %r", address, pte, vma)
