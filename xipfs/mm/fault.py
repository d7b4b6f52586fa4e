"""Faults, and the accesses that take them.

    access_page     read one page through its pte, faulting it in if need be
    access_range    the same for consecutive pages, in one numpy expression a leaf
    handle_mm_fault what the CPU would raise

Bytes reach a client only through the pte: both functions return the frames that the ptes name.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import DeviceError, XipfsError, bug_on
from xipfs.mm.filemap_xip import (
    VM_FAULT_ERROR,
    FaultResult,
    allocates_on_fault,
    xip_file_fault,
)
from xipfs.mm.mixedmap import insert_range
from xipfs.mm.pgtable import PMD_SHIFT, PTE_PRESENT, PTRS_PER_PTE, Leaf, pte_index
from xipfs.mm.vma import Vma
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, Pfn, Pgoff, Vaddr

__all__ = ["access_page", "access_range", "handle_mm_fault", "handle_mm_fault_range"]

_HEAT_MAX = 255


def access_page(vma: Vma, pgoff: Pgoff) -> Pfn:
    """Return the frame that file page *pgoff* is mapped to, marked accessed; fault if need be.

    Raises: DeviceError where a program would be killed by its fault. Bug: *pgoff* is not mapped.
    """
    mm = vma.vm_mm
    address = vma.vm_start + ((pgoff - vma.vm_pgoff) << PAGE_SHIFT)
    if not vma.vm_start <= address < vma.vm_end:
        bug_on(True, "access outside", vma=vma, pgoff=pgoff)
    leaf = mm.page_table.leaves.get(address >> PMD_SHIFT)
    index = address >> PAGE_SHIFT & PTRS_PER_PTE - 1
    if leaf is None or not leaf.words[index] & PTE_PRESENT:
        _check(vma, handle_mm_fault(vma, Vaddr(address)))
        leaf = mm.page_table.leaves[address >> PMD_SHIFT]
    leaf.accessed_bytes[index] = 1
    heat = leaf.heat_bytes[index]
    if heat < _HEAT_MAX:
        leaf.heat_bytes[index] = heat + 1
    pfn = leaf.words[index] >> PAGE_SHIFT
    vmstat = mm.machine.vmstat
    vmstat.xip_access += 1
    if pfn < NVRAM_PFN_START:
        vmstat.xip_access_ram += 1
    return Pfn(pfn)


def access_range(vma: Vma, pgoff: Pgoff, nr_pages: int) -> NDArray[np.int64]:
    """Return the frames of [pgoff, pgoff + nr_pages), marked accessed; fault where need be.

    Returns: int64, shape (nr_pages,), owned by the caller.
    Raises: DeviceError where a program would be killed by its fault; what comes before that page
            is mapped then. Bug: the range leaves the vma.
    """
    bug_on(
        pgoff < vma.vm_pgoff or vma.address(Pgoff(pgoff + nr_pages)) > vma.vm_end,
        "access outside",
        vma=vma,
        pgoff=pgoff,
        nr_pages=nr_pages,
    )
    leaves = vma.vm_mm.page_table.leaves
    vmstat = vma.vm_mm.machine.vmstat
    pfns = np.empty(nr_pages, np.int64)
    done = 0
    while done < nr_pages:
        address = vma.address(Pgoff(pgoff + done))
        index = pte_index(address)
        count = min(nr_pages - done, PTRS_PER_PTE - index)
        window = slice(index, index + count)
        leaf = leaves.get(address >> PMD_SHIFT)
        if leaf is None or not (leaf.ptes[window] & PTE_PRESENT).all():
            _check(vma, handle_mm_fault_range(vma, address, count))
            leaf = leaves[address >> PMD_SHIFT]
        _touch(leaf, window)
        found = pfns[done : done + count]
        found[:] = leaf.ptes[window] >> PAGE_SHIFT
        vmstat.xip_access += count
        vmstat.xip_access_ram += int(np.count_nonzero(found < NVRAM_PFN_START))
        done += count
    return pfns


def handle_mm_fault(vma: Vma, address: Vaddr) -> FaultResult:
    """Resolve a read fault at *address* of *vma*. Source: mm/memory.c, Linux 2.6.28."""
    bug_on(not vma.vm_start <= address < vma.vm_end, "fault outside of the vma", vma=vma)
    vma.vm_mm.machine.vmstat.pgfault += 1
    return xip_file_fault(vma, vma.pgoff(address), address)


def handle_mm_fault_range(vma: Vma, address: Vaddr, nr_pages: int) -> FaultResult:
    """Resolve read faults on all pages of a range within one leaf that have no pte yet.

    The same as `handle_mm_fault` on each of them, but asks the filesystem once. What it cannot
    answer at once goes the slow way, one by one: an error, the end of the file, and where a fault
    may fill holes.
    """
    mapping = vma.vm_file
    pgoff = vma.pgoff(address)
    if pgoff + nr_pages <= mapping.nr_pages and not allocates_on_fault(vma):
        try:
            pfns = mapping.a_ops.get_xip_pfns(mapping, pgoff, nr_pages)
        except XipfsError:
            pass  # the pages before the bad one can be mapped
        else:
            vma.vm_mm.machine.vmstat.pgfault += insert_range(vma, address, pfns)
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


def _touch(leaf: Leaf, window: slice) -> None:
    leaf.accessed[window] = 1
    heat = leaf.heat[window]
    heat += heat < _HEAT_MAX


def _check(vma: Vma, result: FaultResult) -> None:
    if result & VM_FAULT_ERROR:
        raise DeviceError(f"file {vma.vm_file.id}: a page cannot be mapped: VM_FAULT_{result.name}")
