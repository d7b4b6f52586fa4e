"""mprotect: other permissions for an area and the ptes in it; what they map stays.

When an area becomes writable, a pte gets its write bit back only where no fault would have anything
to do: shared ones that are dirty, for whose page mkwrite was asked already, and (6.1) private ones
of our own anonymous page.

Source: mm/mprotect.c, 2.6.28 and 6.1.
"""

import errno

import numpy as np

from xipfs.mm.mem_map import PAGE_ANON, PAGE_ANON_EXCLUSIVE
from xipfs.mm.mixedmap import vm_normal_page
from xipfs.mm.mmap import clip_vma
from xipfs.mm.pgtable import PMD_SHIFT, PTE_RW, Leaf, pte_modify
from xipfs.mm.tlb import MmuGather
from xipfs.mm.vma import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_SHARED,
    VM_WRITE,
    Mm,
    Vma,
    vma_wants_writenotify,
)
from xipfs.units import PAGE_MASK, PAGE_SHIFT, Vaddr

__all__ = ["do_mprotect"]


def do_mprotect(mm: Mm, start: Vaddr, nr_pages: int, prot: int) -> int:
    """Give nr_pages pages from *start* on the permissions *prot*: VM_READ, VM_WRITE, VM_EXEC.

    Returns: 0; -EINVAL for a crooked address; -EACCES where the file may not be used so; -ENOMEM
             from the first page on that is not mapped. What comes before an error is done.
    """
    if start & PAGE_MASK:
        return -errno.EINVAL
    end = Vaddr(start + (nr_pages << PAGE_SHIFT))
    with mm.mmap_lock.write():
        at = start
        for vma in mm.vmas_between(start, end):
            if vma.vm_start > at:
                return -errno.ENOMEM
            stop = min(end, vma.vm_end)
            error = _mprotect_fixup(vma, at, stop, prot)
            if error:
                return error
            at = stop
    return 0 if at == end else -errno.ENOMEM


def _mprotect_fixup(vma: Vma, start: Vaddr, end: Vaddr, prot: int) -> int:
    old_flags = vma.vm_flags
    may = old_flags >> 4 & VM_ACCESS_FLAGS  # VM_MAYREAD is VM_READ << 4, and so on
    if prot & ~may:
        return -errno.EACCES
    new_flags = old_flags & ~VM_ACCESS_FLAGS | prot
    if new_flags == old_flags:
        return 0
    if prot & VM_WRITE and not old_flags & VM_SHARED:
        new_flags |= VM_ACCOUNT
    vma = clip_vma(vma, start, end)
    vma.vm_flags = new_flags
    vma.set_page_prot()
    with MmuGather(vma.vm_mm) as tlb:
        _change_protection(vma)
        tlb.cleared(vma.vm_start, vma.vm_end)
    return 0


def _change_protection(vma: Vma) -> None:
    """Source: mm/mprotect.c change_pte_range."""
    try_change_writable = (
        vma_wants_writenotify(vma) if vma.vm_flags & VM_SHARED else bool(vma.vm_flags & VM_WRITE)
    )
    leaves = vma.vm_mm.page_table.leaves
    for number in range(vma.vm_start >> PMD_SHIFT, ((vma.vm_end - 1) >> PMD_SHIFT) + 1):
        leaf = leaves.get(number)
        if leaf is None:
            continue
        for index in np.flatnonzero(leaf.ptes).tolist():
            address = Vaddr((number << PMD_SHIFT) + (index << PAGE_SHIFT))
            if vma.vm_start <= address < vma.vm_end:
                pte = pte_modify(leaf.words[index], vma.vm_page_prot)
                if try_change_writable and _can_change_pte_writable(vma, address, leaf, index, pte):
                    pte |= PTE_RW
                leaf.words[index] = pte


def _can_change_pte_writable(vma: Vma, address: Vaddr, leaf: Leaf, index: int, pte: int) -> bool:
    """Source: mm/mprotect.c can_change_pte_writable, 6.1; dirty_accountable, 2.6.28."""
    if vma.vm_flags & VM_SHARED:
        return bool(leaf.dirty_bytes[index])
    machine = vma.vm_mm.machine
    if machine.arch.is_2008 or (not machine.arch.is_6_18 and not leaf.dirty_bytes[index]):
        return False
    page = vm_normal_page(vma, address, pte)
    own = PAGE_ANON | PAGE_ANON_EXCLUSIVE
    return page is not None and machine.mem_map.page_flags(page) & own == own
