"""Accesses: of the mount, which reads files for its clients, and of programs in scenes.

    access_page     read one file page through its pte, faulting it in if need be
    access_range    the same for consecutive pages, in one numpy expression a leaf
    user_load       what a program reads at an address, or the signal that ends it
    user_store      the same for writing
    copy_from_user  what the kernel copies from there for write(2) and the like
    copy_to_user    the same for read(2)

Bytes reach anybody only through the pte: the first two return the frames that the ptes name, and
the others take the bytes from there.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import DeviceError, bug_on
from xipfs.mm.fault import handle_mm_fault, handle_mm_fault_range
from xipfs.mm.lock import remember_translation, remembered_translation
from xipfs.mm.pgtable import (
    PMD_SHIFT,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_RW,
    PTRS_PER_PTE,
    Leaf,
    pte_index,
    pte_pfn,
)
from xipfs.mm.vm_fault import FAULT_FLAG_WRITE, VM_FAULT_ERROR, FaultResult
from xipfs.mm.vma import VM_EXEC, VM_READ, VM_WRITE, Mm, Vma
from xipfs.units import NVRAM_PFN_START, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Pfn, Pgoff, Vaddr

__all__ = [
    "Signal",
    "access_page",
    "access_range",
    "copy_from_user",
    "copy_to_user",
    "user_load",
    "user_store",
]

_HEAT_MAX = 255


class Signal(NamedTuple):
    """What a program gets instead of its access; code is si_code."""

    name: str
    code: int


SEGV_MAPERR = Signal("SIGSEGV", 1)
SEGV_ACCERR = Signal("SIGSEGV", 2)
BUS_ADRERR = Signal("SIGBUS", 2)
OOM_KILL = Signal("SIGKILL", 0)


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
    while leaf is None or not leaf.words[index] & PTE_PRESENT:
        _check(vma, handle_mm_fault(vma, Vaddr(address)))
        leaf = mm.page_table.leaves.get(address >> PMD_SHIFT)
    return _access_pte(mm, leaf, index)


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


def user_load(mm: Mm, address: Vaddr, size_bytes: int) -> bytes | Signal:
    """Return the bytes that a program of *mm* reads at *address*, or the signal it gets."""
    parts: list[bytes] = []
    end = address + size_bytes
    while address < end:
        offset = address & PAGE_MASK
        count = min(end - address, PAGE_SIZE - offset)
        pfn = _translate(mm, address, write=False)
        if isinstance(pfn, Signal):
            return pfn
        try:
            parts.append(mm.machine.physmem.load((pfn << PAGE_SHIFT) + offset, count))
        except DeviceError:
            return BUS_ADRERR
        address = Vaddr(address + count)
    return b"".join(parts)


def user_store(mm: Mm, address: Vaddr, data: bytes) -> Signal | None:
    """Let a program of *mm* write *data* at *address*. Returns: the signal it gets, if any."""
    done = 0
    while done < len(data):
        at = Vaddr(address + done)
        offset = at & PAGE_MASK
        part = data[done : done + PAGE_SIZE - offset]
        pfn = _translate(mm, at, write=True)
        if isinstance(pfn, Signal):
            return pfn
        try:
            mm.machine.physmem.store((pfn << PAGE_SHIFT) + offset, part)
        except DeviceError:
            return BUS_ADRERR
        done += len(part)
    return None


def copy_from_user(mm: Mm, address: Vaddr, size_bytes: int) -> bytes | None:
    """Return bytes of one page of a program that the kernel copies, None for -EFAULT."""
    pte = _pte_for_kernel(mm, address, PTE_PRESENT | PTE_PROTNONE)
    if pte is None:
        data = user_load(mm, address, size_bytes)
        return None if isinstance(data, Signal) else data
    return mm.machine.physmem.load((pte_pfn(pte) << PAGE_SHIFT) + (address & PAGE_MASK), size_bytes)


def copy_to_user(mm: Mm, address: Vaddr, data: bytes) -> bool:
    """Copy *data* into one page of a program, as the kernel does. Returns: False for -EFAULT."""
    pte = _pte_for_kernel(mm, address, PTE_RW)
    if pte is None:
        return user_store(mm, address, data) is None
    mm.machine.physmem.store((pte_pfn(pte) << PAGE_SHIFT) + (address & PAGE_MASK), data)
    return True


def _pte_for_kernel(mm: Mm, address: Vaddr, any_of: int) -> int | None:
    """Return the pte by which a kernel without use for the MMU reaches user memory, if it can."""
    leaf = mm.page_table.leaves.get(address >> PMD_SHIFT)
    if mm.machine.arch.user_copy_by_mmu or leaf is None:
        return None
    pte = leaf.words[pte_index(address)]
    return pte if pte & any_of else None


def _translate(mm: Mm, address: Vaddr, *, write: bool) -> Pfn | Signal:
    """Translate as a CPU does, by its TLB or the page table, and take the faults that it raises.

    Source: arch/x86/mm/fault.c do_user_addr_fault.
    """
    needed = PTE_PRESENT | PTE_RW if write else PTE_PRESENT
    index = pte_index(address)
    while True:
        pfn = remembered_translation(mm, address, write=write)
        if pfn is not None:
            return pfn
        leaf = mm.page_table.leaves.get(address >> PMD_SHIFT)
        if leaf is not None and leaf.words[index] & needed == needed:
            if write:
                leaf.dirty_bytes[index] = 1
            dirty = bool(leaf.dirty_bytes[index])
            remember_translation(mm, address, leaf.words[index], dirty=dirty)
            return _access_pte(mm, leaf, index)
        with mm.mmap_lock.read():
            vma = mm.find_vma(address)
            if vma is None:
                return SEGV_MAPERR
            if not vma.vm_flags & (VM_WRITE if write else VM_READ | VM_EXEC):
                return SEGV_ACCERR
            result = handle_mm_fault(vma, address, FAULT_FLAG_WRITE if write else 0)
        if result & FaultResult.OOM:
            return OOM_KILL
        if result & VM_FAULT_ERROR:
            return BUS_ADRERR


def _access_pte(mm: Mm, leaf: Leaf, index: int) -> Pfn:
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


def _touch(leaf: Leaf, window: slice) -> None:
    leaf.accessed[window] = 1
    heat = leaf.heat[window]
    heat += heat < _HEAT_MAX


def _check(vma: Vma, result: FaultResult) -> None:
    if result & VM_FAULT_ERROR:
        ident = vma.vm_file.id if vma.vm_file is not None else -1
        raise DeviceError(f"file {ident}: a page cannot be mapped: VM_FAULT_{result.name}")
