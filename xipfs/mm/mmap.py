"""Areas come, split and go: mmap, munmap, and what becomes of a whole mm.

Source: mm/mmap.c and mm/util.c, 6.1; for the order in which an area goes, tlb_free_vmas of
include/asm-generic/tlb.h, 6.18. Differs from Linux: areas go one by one.
"""

import contextlib
import errno
from typing import Protocol

from xipfs.errors import OutOfFramesError
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.gup import mm_populate
from xipfs.mm.lock import atomic_step
from xipfs.mm.rmap import free_pgtables, unmap_page_range
from xipfs.mm.tlb import MmuGather
from xipfs.mm.vm_fault import VmOperations
from xipfs.mm.vma import (
    VM_ACCOUNT,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_SHARED,
    VM_SPECIAL,
    VM_WRITE,
    Mm,
    Vma,
)
from xipfs.units import PAGE_MASK, PAGE_SHIFT, Pgoff, Vaddr

__all__ = [
    "File",
    "clip_vma",
    "do_mmap",
    "do_munmap",
    "exit_mmap",
    "munmap",
    "split_vma",
    "unmap_range",
]


class File(Protocol):
    """An open file, as far as mmap needs one."""

    @property
    def f_mapping(self) -> AddressSpace:
        """Its pages."""

    @property
    def may_write(self) -> bool:
        """Was it opened for writing (FMODE_WRITE)?"""

    def mmap(self, vma: Vma) -> int:
        """Set vm_ops and flags of *vma*, which is in no mm yet. Returns: 0 or -errno."""


def do_mmap(
    mm: Mm,
    file: File | None,
    *,
    nr_pages: int,
    prot: int,
    shared: bool,
    pgoff: Pgoff = Pgoff(0),
    address: Vaddr | None = None,
    populate: bool = False,
    lock: bool = False,
) -> int:
    """Map nr_pages pages of *file* from *pgoff* on.

    prot: VM_READ, VM_WRITE, VM_EXEC. address: MAP_FIXED, what is there goes; else where there is
    room. populate, lock: MAP_POPULATE, MAP_LOCKED. file: None reserves addresses, nothing more.

    Returns: the address, or -EINVAL for no pages or a crooked address, -EACCES for a shared
             writable area of a file opened read-only, -ENOMEM, or what the file's mmap answers.
    """
    if nr_pages <= 0 or (address is not None and address & PAGE_MASK):
        return -errno.EINVAL
    vm_flags = prot | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | mm.def_flags
    if lock:
        vm_flags |= VM_LOCKED
    if shared:
        vm_flags |= VM_SHARED | VM_MAYSHARE
        if file is not None and not file.may_write:
            if prot & VM_WRITE:
                return -errno.EACCES
            vm_flags &= ~(VM_MAYWRITE | VM_SHARED)
    elif prot & VM_WRITE:
        vm_flags |= VM_ACCOUNT
    with mm.mmap_lock.write():
        error = _mmap_region(mm, file, nr_pages, pgoff, vm_flags, address)
    if error > 0 and (populate or vm_flags & VM_LOCKED):
        mm_populate(mm, Vaddr(error), nr_pages)
    return error


def _mmap_region(
    mm: Mm, file: File | None, nr_pages: int, pgoff: Pgoff, vm_flags: int, address: Vaddr | None
) -> int:
    if address is None:
        try:
            address = mm.get_unmapped_area(nr_pages)
        except OutOfFramesError:
            return -errno.ENOMEM
    else:
        unmap_range(mm, address, Vaddr(address + (nr_pages << PAGE_SHIFT)))
    end = Vaddr(address + (nr_pages << PAGE_SHIFT))
    mapping = file.f_mapping if file is not None else None
    vma = Vma(mm, address, end, vm_flags, mapping, pgoff, VmOperations())
    if file is not None:
        error = file.mmap(vma)
        if error:
            return error
    if vma.vm_flags & VM_SPECIAL:
        vma.vm_flags &= ~VM_LOCKED
    mm.insert_vma(vma)
    vma.set_page_prot()
    return address


def do_munmap(mm: Mm, start: Vaddr, nr_pages: int) -> int:
    """Take away all that is mapped in nr_pages pages from *start* on, splitting areas at the edges.

    Returns: 0, or -EINVAL for a crooked address or no pages.
    """
    if start & PAGE_MASK or nr_pages <= 0:
        return -errno.EINVAL
    with mm.mmap_lock.write():
        unmap_range(mm, start, Vaddr(start + (nr_pages << PAGE_SHIFT)))
    return 0


def unmap_range(mm: Mm, start: Vaddr, end: Vaddr) -> None:
    """Do what `do_munmap` does, for who holds mmap_lock."""
    for vma in mm.vmas_between(start, end):
        munmap(clip_vma(vma, start, end))


def munmap(vma: Vma) -> None:
    """Take *vma* away: its ptes, itself, what was known of their use, and leaves without use."""
    with MmuGather(vma.vm_mm) as tlb:
        atomic_step("munmap: zap")
        unmap_page_range(tlb, vma, vma.vm_start, vma.vm_end)
        if vma.vm_flags & (VM_PFNMAP | VM_MIXEDMAP):
            # Who unmaps by offset and finds no area believes that nobody reaches the page, and no
            # reference would tell otherwise.
            tlb.flush_tlbonly()
        atomic_step("munmap: unlink")
        vma.vm_mm.remove_vma(vma)
        free_pgtables(tlb, vma)
    vma.vm_ops.close(vma)


def exit_mmap(mm: Mm) -> None:
    """Take all of *mm* away: its process has ended."""
    for vma in list(mm.vmas.values()):
        munmap(vma)


def clip_vma(vma: Vma, start: Vaddr, end: Vaddr) -> Vma:
    """Return the part of *vma* in [start, end), which it splits off where there is more."""
    if vma.vm_start < start:
        vma = split_vma(vma, start)
    if end < vma.vm_end:
        split_vma(vma, end)
    return vma


def split_vma(vma: Vma, address: Vaddr) -> Vma:
    """Split *vma* in two at *address*. Returns: the upper one. Source: __split_vma."""
    upper = vma.copy(vma.vm_mm, address, vma.vm_end, vma.pgoff(address))
    file = vma.vm_file
    with contextlib.nullcontext() if file is None else file.i_mmap_rwsem.write():
        vma.vm_end = address
        vma.vm_mm.insert_vma(upper)
    upper.vm_ops.open(upper)
    return upper
