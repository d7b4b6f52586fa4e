"""fork: a second mm with the same areas, and as much of the page table as faults would not bring.

    area                     2.6.28                        6.1
    has private copies       ptes are copied               copied
    VM_PFNMAP                copied                        copied
    vm_insert_page was used  copied                        (such an area is VM_MIXEDMAP)
    VM_MIXEDMAP              left to faults                copied
    any other                left to faults                left to faults

Of a pte: a private writable one becomes read-only in both, the child's of a shared area clean, the
child's old. A normal page gains a reference, an rmap entry and a place in the child's rss; a
special one nothing.

Source: kernel/fork.c dup_mmap; mm/memory.c copy_page_range, 2.6.28 and 6.1.
"""

import errno

import numpy as np

from xipfs.errors import bug_on
from xipfs.mm.lock import atomic_step
from xipfs.mm.mem_map import PAGE_ANON, PAGE_ANON_EXCLUSIVE
from xipfs.mm.mixedmap import maybe_mkwrite, vm_normal_page
from xipfs.mm.mmap import exit_mmap
from xipfs.mm.pgtable import PMD_SHIFT, PTE_NONE, PTE_RW, Leaf, mk_pte, pte_index
from xipfs.mm.remap import track_pfn_copy
from xipfs.mm.tlb import flush_tlb_mm
from xipfs.mm.vma import (
    VM_DONTCOPY,
    VM_INSERTPAGE,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_SHARED,
    VM_WIPEONFORK,
    Mm,
    Vma,
    is_cow_mapping,
)
from xipfs.units import PAGE_SHIFT, Pfn, Vaddr

__all__ = ["dup_mm"]


def dup_mm(parent: Mm) -> Mm | int:
    """Return a copy of *parent* for a forked process, or -ENOMEM, with nothing changed in vain."""
    child = Mm(parent.machine)
    child.page_table.nr_leaves_max = parent.page_table.nr_leaves_max
    error = 0
    with parent.mmap_lock.write():
        for vma in list(parent.vmas.values()):
            if vma.vm_flags & VM_DONTCOPY:
                continue
            copy = vma.copy(child, vma.vm_start, vma.vm_end, vma.vm_pgoff)
            child.adopt_vma(copy)
            if not vma.vm_flags & VM_WIPEONFORK and _vma_needs_copy(vma):
                error = _copy_page_range(copy, vma)
            copy.vm_ops.open(copy)
            if error:
                break
        # The parent's threads must not write through what was writable.
        atomic_step("dup_mmap: flush")
        flush_tlb_mm(parent)
        if error:
            exit_mmap(child)
            return -errno.ENOMEM
    return child


def _vma_needs_copy(vma: Vma) -> bool:
    """Would faults not bring these ptes back as they are?"""
    if vma.anon_vma or vma.vm_flags & (VM_PFNMAP | VM_INSERTPAGE):
        return True
    return bool(vma.vm_flags & VM_MIXEDMAP) and not vma.vm_mm.machine.arch.is_2008


def _copy_page_range(copy: Vma, vma: Vma) -> int:
    error = track_pfn_copy(vma)
    if error:
        return error
    leaves = vma.vm_mm.page_table.leaves
    for number in range(vma.vm_start >> PMD_SHIFT, ((vma.vm_end - 1) >> PMD_SHIFT) + 1):
        source = leaves.get(number)
        if source is None:
            continue
        base = number << PMD_SHIFT
        for index in np.flatnonzero(source.ptes).tolist():
            address = Vaddr(base + (index << PAGE_SHIFT))
            if vma.vm_start <= address < vma.vm_end:
                target = copy.vm_mm.page_table.pte_alloc(address)
                error = -errno.ENOMEM
                if target is not None:
                    error = _copy_present_pte(copy, vma, address, source, target)
                if error:
                    return error
    return 0


def _copy_present_pte(copy: Vma, vma: Vma, address: Vaddr, source: Leaf, target: Leaf) -> int:
    """Source: mm/memory.c copy_present_pte, 6.1."""
    child = copy.vm_mm
    mem_map = child.machine.mem_map
    index = pte_index(address)
    pte = source.words[index]
    bug_on(target.words[index] != PTE_NONE, "forking over a pte", vma=copy, address=address)
    dirty = bool(source.dirty_bytes[index])
    page = vm_normal_page(vma, address, pte)
    if page is not None and mem_map.page_anon(page):
        if _is_pinned(vma, page):
            # Whoever pinned it shall go on sharing it with the parent: the child gets a copy now.
            return _copy_present_page(copy, address, page, target)
        mem_map.clear_page_flags(page, PAGE_ANON_EXCLUSIVE)
        child.rss_anon += 1
    elif page is not None:
        child.rss_file += 1
    if page is not None:
        mem_map.get_page(page)
        mem_map.page_add_file_rmap(page)
    if is_cow_mapping(vma.vm_flags):
        pte &= ~PTE_RW
        source.words[index] = pte
    target.set_pte(index, pte, dirty=dirty and not vma.vm_flags & VM_SHARED)
    return 0


def _is_pinned(vma: Vma, page: Pfn) -> bool:
    mem_map = vma.vm_mm.machine.mem_map
    own = PAGE_ANON | PAGE_ANON_EXCLUSIVE
    return (
        not vma.vm_mm.machine.arch.is_2008
        and mem_map.page_flags(page) & own == own
        and mem_map.page_maybe_dma_pinned(page)
    )


def _copy_present_page(copy: Vma, address: Vaddr, page: Pfn, target: Leaf) -> int:
    child = copy.vm_mm
    machine = child.machine
    new = machine.mem_map.alloc_page()
    if new is None:
        return -errno.ENOMEM
    machine.physmem.frame(new)[:] = machine.physmem.frame(page)
    machine.mem_map.page_add_new_anon_rmap(new)
    child.rss_anon += 1
    prot = maybe_mkwrite(copy.vm_page_prot, copy)
    target.set_pte(pte_index(address), mk_pte(new, prot), dirty=True)
    return 0
