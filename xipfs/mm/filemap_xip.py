"""xip_file_fault: a fault of a file whose pages are memory, with struct pages or without.

The contract (mm/filemap_xip.c of 2.6.28, with the "EBUSY is fine" of 3.14):

    situation                                              result
    pgoff at or past the end of the file                   VM_FAULT_SIGBUS
    get_xip_mem finds the page                             vm_insert_mixed, VM_FAULT_NOPAGE
    get_xip_mem fails with anything but "no data"          VM_FAULT_OOM
    a hole; vma may be written and is shared; fs writable  get_xip_mem(create), or SIGBUS; the
                                                           sparse page goes from all vmas; insert
    a hole otherwise                                       the sparse page, VM_FAULT_NOPAGE
    vm_insert_* finds a pte already there (-EBUSY)         VM_FAULT_NOPAGE: another fault won

Differs from Linux: faults of one mm are serialised by the mount's lock, so the sparse page needs
no mutex and sequence count (xip_sparse_mutex, xip_sparse_seq).
"""

import errno
import logging
from enum import IntFlag

from xipfs.errors import NoDataError, XipfsError, bug_on
from xipfs.mm.mixedmap import vm_insert_mixed, vm_insert_page
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.mm.vma import VM_MAYSHARE, VM_MAYWRITE, VM_SHARED, VM_WRITE, Vma
from xipfs.units import PFN_NONE, Pgoff, Vaddr, virt_to_pfn

__all__ = ["VM_FAULT_ERROR", "FaultResult", "allocates_on_fault", "xip_file_fault"]

_log = logging.getLogger(__name__)


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
        if not allocates_on_fault(vma):
            return _fault_result(_insert_sparse(vma, address))
        try:
            kaddr, pfn = mapping.a_ops.get_xip_mem(mapping, pgoff, create=True)
        except XipfsError:
            return FaultResult.SIGBUS
        # __xip_unmap: who read zeros here shall see the new page. In a hole no other pte can be.
        unmap_mapping_range(mapping, pgoff, 1)
    except XipfsError as exc:
        # The kernel's answer hides the reason, so it is told here.
        _log.error("%s", exc)
        return FaultResult.OOM
    if pfn == PFN_NONE:
        # In RAM: what we got is its kernel address.
        pfn = virt_to_pfn(kaddr)
        if vma.vm_mm.machine.arch.pte_special:
            return _fault_result(vm_insert_page(vma, address, pfn))
    return _fault_result(vm_insert_mixed(vma, address, pfn))


def allocates_on_fault(vma: Vma) -> bool:
    """May a fault in *vma* fill a hole? The fault's own kind, read or write, plays no part."""
    flags = vma.vm_flags
    return bool(
        flags & (VM_WRITE | VM_MAYWRITE)
        and flags & (VM_SHARED | VM_MAYSHARE)
        and not vma.vm_file.read_only
    )


def _insert_sparse(vma: Vma, address: Vaddr) -> int:
    machine = vma.vm_mm.machine
    error = vm_insert_page(vma, address, machine.sparse_pfn)
    if not error:
        machine.vmstat.xip_insert_sparse += 1
    return error


def _fault_result(error: int) -> FaultResult:
    bug_on(error not in (0, -errno.EBUSY), "xip_file_fault: insertion failed", error=error)
    return FaultResult.NOPAGE
