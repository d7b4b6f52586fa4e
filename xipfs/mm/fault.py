"""Faults: what a CPU raises when a page table does not let it go on.

    handle_mm_fault
      no pte             do_fault: ->fault maps a pfn itself (NOPAGE), or hands over a page, which
                         is mapped (read, shared write) or copied (private write)
      write, pte not rw  do_wp_page
                           shared   ask pfn_mkwrite or page_mkwrite, then make the pte writable
                           private  an anonymous page of our own: make the pte writable; any other:
                                    copy it. A page without struct page is copied through the
                                    user's view of it, since there is nothing else to copy from.
      else               mark the pte accessed, and dirty

Source: mm/memory.c, Linux 2.6.28 and 6.1. Differs from Linux: no page locks, swap or huge pages.
"""

import logging

from xipfs.errors import DeviceError, XipfsError, bug_on
from xipfs.mm.filemap_xip import XIP_FILE_VM_OPS, allocates_on_fault
from xipfs.mm.lock import atomic_step
from xipfs.mm.mem_map import PAGE_ANON_EXCLUSIVE
from xipfs.mm.mixedmap import insert_range, maybe_mkwrite, vm_normal_page
from xipfs.mm.pgtable import (
    PMD_SHIFT,
    PTE_NONE,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_RW,
    Leaf,
    mk_pte,
    pte_index,
    pte_pfn,
)
from xipfs.mm.tlb import flush_tlb_page, wait_for_interrupts
from xipfs.mm.vm_fault import (
    FAULT_FLAG_MKWRITE,
    FAULT_FLAG_UNSHARE,
    FAULT_FLAG_WRITE,
    VM_FAULT_ERROR,
    FaultResult,
    VmFault,
)
from xipfs.mm.vma import VM_MAYSHARE, VM_SHARED, VM_WRITE, Vma
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Pfn, Vaddr

__all__ = ["finish_fault", "handle_mm_fault", "handle_mm_fault_range"]

_log = logging.getLogger(__name__)

_DONE = FaultResult.DONE
_FAILED_OR_NOPAGE = VM_FAULT_ERROR | FaultResult.NOPAGE


def handle_mm_fault(vma: Vma, address: Vaddr, flags: int = 0) -> FaultResult:
    """Resolve a fault at *address* of *vma*, whose permissions the caller has checked.

    flags: FAULT_FLAG_WRITE or FAULT_FLAG_UNSHARE. Errors are VM_FAULT_OOM and VM_FAULT_SIGBUS;
    anything else means "try the access again". Source: mm/memory.c handle_pte_fault.
    """
    bug_on(not vma.vm_start <= address < vma.vm_end, "fault outside of the vma", vma=vma)
    mm = vma.vm_mm
    mm.machine.vmstat.pgfault += 1
    leaf = mm.page_table.leaves.get(address >> PMD_SHIFT)
    index = pte_index(address)
    pte = leaf.words[index] if leaf is not None else PTE_NONE
    vmf = VmFault(vma, address, vma.pgoff(address), flags, pte)
    if leaf is None or pte == PTE_NONE:
        return _do_fault(vmf)
    if flags & (FAULT_FLAG_WRITE | FAULT_FLAG_UNSHARE) and not pte & PTE_RW:
        return _do_wp_page(vmf)
    if flags & FAULT_FLAG_WRITE:
        leaf.dirty_bytes[index] = 1
    leaf.accessed_bytes[index] = 1
    return _DONE


def handle_mm_fault_range(vma: Vma, address: Vaddr, nr_pages: int) -> FaultResult:
    """Resolve read faults on all pages of a range within one leaf that have no pte yet.

    The same as `handle_mm_fault` on each of them, but asks the filesystem once. What it cannot
    answer at once goes the slow way, one by one: an error, the end of the file, and where a fault
    may fill holes.
    """
    mapping = vma.vm_file
    pgoff = vma.pgoff(address)
    if (
        mapping is not None
        and vma.vm_ops is XIP_FILE_VM_OPS
        and pgoff + nr_pages <= mapping.nr_pages
        and not allocates_on_fault(vma)
    ):
        try:
            pfns = mapping.a_ops.get_xip_pfns(mapping, pgoff, nr_pages)
        except XipfsError:
            pass  # the pages before the bad one can be mapped
        else:
            nr_inserted = insert_range(vma, address, pfns)
            if nr_inserted < 0:
                return FaultResult.OOM
            vma.vm_mm.machine.vmstat.pgfault += nr_inserted
            return FaultResult.NOPAGE
    return _handle_mm_faults(vma, address, nr_pages)


def _handle_mm_faults(vma: Vma, address: Vaddr, nr_pages: int) -> FaultResult:
    """Fault page by page, up to the first that fails."""
    for page in range(nr_pages):
        page_address = Vaddr(address + (page << PAGE_SHIFT))
        if not vma.vm_mm.page_table.find_pte(page_address) & PTE_PRESENT:
            result = handle_mm_fault(vma, page_address)
            if result & VM_FAULT_ERROR:
                return result
    return FaultResult.NOPAGE


def _do_fault(vmf: VmFault) -> FaultResult:
    """No pte: let the file map its page, or hand it over. Source: mm/memory.c do_fault."""
    vma = vmf.vma
    if not vmf.flags & FAULT_FLAG_WRITE:
        return _do_read_fault(vmf)
    if not vma.vm_flags & VM_SHARED:
        return _do_cow_fault(vmf)
    return _do_shared_fault(vmf)


def _do_read_fault(vmf: VmFault) -> FaultResult:
    result = vmf.vma.vm_ops.fault(vmf)
    if result & _FAILED_OR_NOPAGE:
        return result
    return finish_fault(vmf, _fault_page(vmf))


def _do_cow_fault(vmf: VmFault) -> FaultResult:
    """A private write: what ->fault hands over is copied at once, unless it did so itself."""
    vma = vmf.vma
    machine = vma.vm_mm.machine
    vma.anon_vma = True
    vmf.cow_page = machine.mem_map.alloc_page()
    if vmf.cow_page is None:
        return FaultResult.OOM
    result = vma.vm_ops.fault(vmf)
    if result & _FAILED_OR_NOPAGE:
        machine.mem_map.put_page(vmf.cow_page)
        return result
    if result & FaultResult.DONE_COW:
        return result
    page = _fault_page(vmf)
    machine.physmem.frame(vmf.cow_page)[:] = machine.physmem.frame(page)
    machine.mem_map.put_page(page)
    return finish_fault(vmf, vmf.cow_page)


def _do_shared_fault(vmf: VmFault) -> FaultResult:
    vma = vmf.vma
    mem_map = vma.vm_mm.machine.mem_map
    result = vma.vm_ops.fault(vmf)
    if result & _FAILED_OR_NOPAGE:
        return result
    page = _fault_page(vmf)
    if vma.vm_ops.page_mkwrite is not None:
        result = _do_page_mkwrite(vmf)
        if result & _FAILED_OR_NOPAGE:
            mem_map.put_page(page)
            return result
    result = finish_fault(vmf, page)
    if not result & _FAILED_OR_NOPAGE:
        mem_map.set_page_dirty(page)  # fault_dirty_shared_page
    return result


def _fault_page(vmf: VmFault) -> Pfn:
    bug_on(vmf.page is None, "->fault neither mapped a page nor returned one", vma=vmf.vma)
    assert vmf.page is not None
    return vmf.page


def finish_fault(vmf: VmFault, page: Pfn) -> FaultResult:
    """Map *page*, whose reference goes to the pte, unless another fault was first.

    For a ->fault that fills vmf.cow_page itself, too, and answers VM_FAULT_DONE_COW then.
    Returns: VM_FAULT_DONE, NOPAGE if another fault was first, OOM.
    Source: mm/memory.c finish_fault and do_set_pte, 6.1.
    """
    vma = vmf.vma
    mm = vma.vm_mm
    mem_map = mm.machine.mem_map
    atomic_step("finish_fault: map")
    leaf = mm.page_table.pte_alloc(vmf.address)
    index = pte_index(vmf.address)
    if leaf is None or leaf.words[index] != PTE_NONE:
        mem_map.put_page(page)
        return FaultResult.OOM if leaf is None else FaultResult.NOPAGE
    write = bool(vmf.flags & FAULT_FLAG_WRITE)
    prot = maybe_mkwrite(vma.vm_page_prot, vma) if write else vma.vm_page_prot
    if page == vmf.cow_page:
        mem_map.page_add_new_anon_rmap(page)
        mm.rss_anon += 1
    else:
        mem_map.page_add_file_rmap(page)
        mm.rss_file += 1
    leaf.set_pte(index, mk_pte(page, prot), dirty=write)
    leaf.accessed_bytes[index] = 1
    return _DONE


def _do_wp_page(vmf: VmFault) -> FaultResult:
    """A write, or an unsharing, that finds a read-only pte. Source: mm/memory.c do_wp_page."""
    vma = vmf.vma
    machine = vma.vm_mm.machine
    page = vm_normal_page(vma, vmf.address, vmf.orig_pte)
    if _is_shared_write(vma):
        return _wp_pfn_shared(vmf) if page is None else _wp_page_shared(vmf, page)
    if page is not None and machine.mem_map.page_anon(page) and _can_reuse_anon(vma, page):
        machine.mem_map.set_page_flags(page, PAGE_ANON_EXCLUSIVE)
        return _DONE if vmf.flags & FAULT_FLAG_UNSHARE else _wp_page_reuse(vmf)
    return _wp_page_copy(vmf, page)


def _is_shared_write(vma: Vma) -> bool:
    if vma.vm_mm.machine.arch.is_2008:
        return vma.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE | VM_SHARED
    return bool(vma.vm_flags & (VM_SHARED | VM_MAYSHARE))


def _can_reuse_anon(vma: Vma, page: Pfn) -> bool:
    """Is nobody else interested in this anonymous page?

    2.6.28 counts ptes (reuse_swap_page); since 5.19 the page is marked as exclusive, or nobody else
    holds a reference.
    """
    machine = vma.vm_mm.machine
    if machine.arch.is_2008:
        return machine.mem_map.page_mapcount(page) == 1
    if machine.mem_map.page_flags(page) & PAGE_ANON_EXCLUSIVE:
        return True
    return machine.mem_map.page_count(page) == 1


def _wp_pfn_shared(vmf: VmFault) -> FaultResult:
    """A shared page without struct page: ask pfn_mkwrite (since 4.1), then write in place."""
    vma = vmf.vma
    hook = vma.vm_ops.pfn_mkwrite
    if hook is None or vma.vm_mm.machine.arch.is_2008:
        return _wp_page_reuse(vmf)
    vmf.flags |= FAULT_FLAG_MKWRITE
    result = hook(vmf)
    if result & _FAILED_OR_NOPAGE:
        return result
    return _finish_mkwrite_fault(vmf)


def _wp_page_shared(vmf: VmFault, page: Pfn) -> FaultResult:
    vma = vmf.vma
    mem_map = vma.vm_mm.machine.mem_map
    mem_map.get_page(page)
    vmf.page = page
    result = _DONE
    if vma.vm_ops.page_mkwrite is None:
        _wp_page_reuse(vmf)
    else:
        result = _do_page_mkwrite(vmf)
        if not result & _FAILED_OR_NOPAGE:
            result = _finish_mkwrite_fault(vmf)
    if not result & _FAILED_OR_NOPAGE:
        mem_map.set_page_dirty(page)
    mem_map.put_page(page)
    return result


def _do_page_mkwrite(vmf: VmFault) -> FaultResult:
    hook = vmf.vma.vm_ops.page_mkwrite
    assert hook is not None, "page_mkwrite is absent"
    flags = vmf.flags
    vmf.flags = FAULT_FLAG_WRITE | FAULT_FLAG_MKWRITE
    result = hook(vmf)
    vmf.flags = flags
    return result


def _finish_mkwrite_fault(vmf: VmFault) -> FaultResult:
    """Make the pte writable if it still is what it was before the hook ran."""
    atomic_step("finish_mkwrite_fault")
    if not _pte_same(vmf):
        return FaultResult.NOPAGE
    return _wp_page_reuse(vmf)


def _wp_page_reuse(vmf: VmFault) -> FaultResult:
    leaf, index = _leaf(vmf)
    leaf.words[index] = maybe_mkwrite(leaf.words[index], vmf.vma)
    leaf.dirty_bytes[index] = leaf.accessed_bytes[index] = 1
    return FaultResult.WRITE if vmf.vma.vm_mm.machine.arch.is_2008 else _DONE


def _wp_page_copy(vmf: VmFault, old: Pfn | None) -> FaultResult:
    """Give a private mapping a copy of its own; *old*, if normal, loses a pte.

    Source: mm/memory.c wp_page_copy, 6.1; the second half of do_wp_page, 2.6.28.
    """
    vma = vmf.vma
    mm = vma.vm_mm
    machine = mm.machine
    mem_map = machine.mem_map
    vma.anon_vma = True
    if old is not None:
        mem_map.get_page(old)
    new = mem_map.alloc_page()
    if new is None:
        if old is not None:
            mem_map.put_page(old)
        return FaultResult.OOM
    atomic_step("wp_page_copy: copy")
    copied = _cow_user_page(vmf, new, old)
    atomic_step("wp_page_copy: install")
    wait_for_interrupts(mm)
    if not copied or not _pte_same(vmf):
        # Another fault, or a migration, was here meanwhile: theirs counts, try again.
        mem_map.put_page(new)
        if old is not None:
            mem_map.put_page(old)
        return _DONE
    leaf, index = _leaf(vmf)
    is_write = not vmf.flags & FAULT_FLAG_UNSHARE
    prot = maybe_mkwrite(vma.vm_page_prot, vma) if is_write else vma.vm_page_prot
    # ptep_clear_flush: no other thread may go on reading the old page.
    leaf.clear_pte(index)
    flush_tlb_page(mm, vmf.address)
    mem_map.page_add_new_anon_rmap(new)
    leaf.set_pte(index, mk_pte(new, prot), dirty=is_write)
    leaf.accessed_bytes[index] = 1
    if old is None:
        mm.rss_anon += 1
    else:
        if not mem_map.page_anon(old):
            mm.rss_file -= 1
            mm.rss_anon += 1
        mem_map.page_remove_rmap(old)
        mem_map.put_page(old)
        atomic_step("wp_page_copy: put_page")
        mem_map.put_page(old)
    return FaultResult.WRITE if machine.arch.is_2008 else _DONE


def _cow_user_page(vmf: VmFault, new: Pfn, old: Pfn | None) -> bool:
    """Fill frame *new*: from *old*, or through the user's view where there is no struct page.

    Returns: False where the page is not what it was any more, so that the fault is to be retried.
    A page that cannot be read is zeros: at once in 2.6.28, after a second look since then.
    Source: mm/memory.c cow_user_page, 2.6.28; __wp_page_copy_user, 6.1.
    """
    machine = vmf.vma.vm_mm.machine
    physmem = machine.physmem
    if old is not None:
        physmem.frame(new)[:] = physmem.frame(old)
        return True
    data = _load_user_page(vmf)
    if data is None and not machine.arch.is_2008:
        atomic_step("wp_page_copy: copy again")
        if not _pte_same(vmf):
            return False
        data = _load_user_page(vmf)
    physmem.frame(new)[:] = bytes(PAGE_SIZE) if data is None else data
    return True


def _load_user_page(vmf: VmFault) -> bytes | None:
    """Return what the process sees at the fault's address, None if it sees nothing just now.

    A kernel that does not use the MMU for it sees also what PROT_NONE hides.
    """
    machine = vmf.vma.vm_mm.machine
    pte = vmf.vma.vm_mm.page_table.find_pte(vmf.address)
    if not pte & (PTE_PRESENT if machine.arch.user_copy_by_mmu else PTE_PRESENT | PTE_PROTNONE):
        return None
    try:
        return machine.physmem.load(pte_pfn(pte) << PAGE_SHIFT, PAGE_SIZE)
    except DeviceError as exc:
        _log.warning("a page cannot be read for its private copy: %s", exc)
        return None


def _pte_same(vmf: VmFault) -> bool:
    return vmf.vma.vm_mm.page_table.find_pte(vmf.address) == vmf.orig_pte


def _leaf(vmf: VmFault) -> tuple[Leaf, int]:
    return vmf.vma.vm_mm.page_table.leaves[vmf.address >> PMD_SHIFT], pte_index(vmf.address)
