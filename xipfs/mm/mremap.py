"""mremap: an area moves, grows or shrinks; its ptes move as they are, special bit and all.

Source: mm/mremap.c, 6.1.
"""

import errno

from xipfs.errors import OutOfFramesError
from xipfs.mm.mmap import unmap_range
from xipfs.mm.pgtable import PMD_SHIFT, pte_index
from xipfs.mm.tlb import flush_tlb_range, wait_for_interrupts
from xipfs.mm.vma import (
    VM_DONTEXPAND,
    VM_LOCKED,
    VM_MAYSHARE,
    VM_PFNMAP,
    VM_SHARED,
    Mm,
    Vma,
)
from xipfs.units import PAGE_MASK, PAGE_SHIFT, Vaddr

__all__ = ["MREMAP_DONTUNMAP", "MREMAP_FIXED", "MREMAP_MAYMOVE", "do_mremap", "expand_to_file"]

MREMAP_MAYMOVE = 1
MREMAP_FIXED = 2
MREMAP_DONTUNMAP = 4


def do_mremap(
    mm: Mm,
    address: Vaddr,
    nr_old_pages: int,
    nr_new_pages: int,
    flags: int,
    new_address: Vaddr | None = None,
) -> int:
    """Give the nr_old_pages pages at *address* the size nr_new_pages, elsewhere if need be.

    No old pages of a shared area: map it a second time.
    Returns: the address; -EINVAL for crooked values, or a private area to be mapped twice, or a
             VM_PFNMAP area with MREMAP_DONTUNMAP; -EFAULT where nothing is mapped, the range leaves
             its area, or a VM_PFNMAP area would grow; -ENOMEM without room.
    """
    if address & PAGE_MASK or nr_new_pages <= 0:
        return -errno.EINVAL
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) and not flags & MREMAP_MAYMOVE:
        return -errno.EINVAL
    if flags & MREMAP_DONTUNMAP and nr_old_pages != nr_new_pages:
        return -errno.EINVAL
    with mm.mmap_lock.write():
        return _mremap(mm, address, nr_old_pages, nr_new_pages, flags, new_address)


def expand_to_file(vma: Vma) -> Vma:
    """Let an area that ended where its file did do so again, after the file has grown.

    It gets room for as much again, where there is some, so that a file that is appended to needs
    this rarely; faults in there, behind the file's end, are SIGBUS.
    Returns: the area, or the one it was moved to. Its ptes are as before.
    Raises: OutOfFramesError (ENOMEM) when no address range is left.
    """
    mapping = vma.vm_file
    assert mapping is not None, "a file's area"
    mm = vma.vm_mm
    nr_pages = mapping.nr_pages - vma.vm_pgoff
    if nr_pages <= vma.nr_pages:
        return vma
    address = -errno.ENOMEM
    for nr_new_pages, flags in ((2 * nr_pages, 0), (nr_pages, 0), (2 * nr_pages, MREMAP_MAYMOVE)):
        if address < 0:
            address = do_mremap(mm, vma.vm_start, vma.nr_pages, nr_new_pages, flags)
    expanded = mm.find_vma(Vaddr(address)) if address > 0 else None
    if expanded is None:
        raise OutOfFramesError(f"no address range for {nr_pages} pages of file {mapping.id}")
    return expanded


def _mremap(
    mm: Mm,
    address: Vaddr,
    nr_old_pages: int,
    nr_new_pages: int,
    flags: int,
    new_address: Vaddr | None,
) -> int:
    if mm.find_vma(address) is None and not mm.machine.arch.is_2008:
        return -errno.EFAULT  # before anything is unmapped
    if flags & MREMAP_FIXED:
        if new_address is None or new_address & PAGE_MASK:
            return -errno.EINVAL
        unmap_range(mm, new_address, Vaddr(new_address + (nr_new_pages << PAGE_SHIFT)))
    if nr_old_pages > nr_new_pages:
        cut = Vaddr(address + (nr_new_pages << PAGE_SHIFT))
        unmap_range(mm, cut, Vaddr(address + (nr_old_pages << PAGE_SHIFT)))
        nr_old_pages = nr_new_pages
        if not flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
            return address if mm.find_vma(address) is not None else -errno.EFAULT
    vma = mm.find_vma(address)
    error = (
        -errno.EFAULT
        if vma is None
        else _vma_to_resize(vma, address, nr_old_pages, nr_new_pages, flags)
    )
    if error or vma is None:
        return error
    if not flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        if nr_new_pages == nr_old_pages:
            return address
        old_end = Vaddr(address + (nr_old_pages << PAGE_SHIFT))
        new_end = Vaddr(address + (nr_new_pages << PAGE_SHIFT))
        if nr_old_pages and old_end == vma.vm_end and not mm.is_mapped(old_end, new_end):
            vma.vm_end = new_end
            return address
        if not flags & MREMAP_MAYMOVE:
            return -errno.ENOMEM
    if new_address is None:
        try:
            new_address = mm.get_unmapped_area(nr_new_pages)
        except OutOfFramesError:
            return -errno.ENOMEM
    _move_vma(vma, address, nr_old_pages, nr_new_pages, flags, new_address)
    return new_address


def _vma_to_resize(
    vma: Vma, address: Vaddr, nr_old_pages: int, nr_new_pages: int, flags: int
) -> int:
    """Source: mm/mremap.c vma_to_resize, 6.1, in its order of checks."""
    if not nr_old_pages and not vma.vm_flags & (VM_SHARED | VM_MAYSHARE):
        return -errno.EINVAL
    if flags & MREMAP_DONTUNMAP and vma.vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -errno.EINVAL
    if address + (nr_old_pages << PAGE_SHIFT) > vma.vm_end:
        return -errno.EFAULT
    if nr_new_pages != nr_old_pages and vma.vm_flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -errno.EFAULT
    return 0


def _move_vma(
    vma: Vma,
    address: Vaddr,
    nr_old_pages: int,
    nr_new_pages: int,
    flags: int,
    new_address: Vaddr,
) -> None:
    """Source: mm/mremap.c move_vma and mm/mmap.c copy_vma, 6.1."""
    mm = vma.vm_mm
    new_end = Vaddr(new_address + (nr_new_pages << PAGE_SHIFT))
    new = vma.copy(mm, new_address, new_end, vma.pgoff(address))
    mm.insert_vma(new)
    new.vm_ops.open(new)
    old_end = Vaddr(address + (nr_old_pages << PAGE_SHIFT))
    _move_page_tables(vma, address, old_end, new_address)
    if flags & MREMAP_DONTUNMAP:
        vma.vm_flags &= ~VM_LOCKED
        if address == vma.vm_start and old_end == vma.vm_end:
            vma.anon_vma = False
    elif nr_old_pages:
        unmap_range(mm, address, old_end)


def _move_page_tables(vma: Vma, start: Vaddr, end: Vaddr, new_start: Vaddr) -> None:
    """Move the ptes of [start, end), none of which is at *new_start*. Source: move_ptes.

    CPUs forget the old place before anybody can find the ptes at the new one, and free the pages.
    """
    page_table = vma.vm_mm.page_table
    wait_for_interrupts(vma.vm_mm)
    for address in range(start, end, 1 << PAGE_SHIFT):
        source = page_table.leaves.get(address >> PMD_SHIFT)
        index = pte_index(Vaddr(address))
        if source is None or not source.words[index]:
            continue
        to = Vaddr(new_start + address - start)
        target = page_table.pte_alloc(to)
        assert target is not None, "the page table of a moved area"
        new_index = pte_index(to)
        pte, dirty = source.clear_pte(index)
        target.set_pte(new_index, pte, dirty=dirty)
        target.accessed_bytes[new_index] = source.accessed_bytes[index]
        target.heat_bytes[new_index] = source.heat_bytes[index]
        source.accessed_bytes[index] = source.heat_bytes[index] = 0
    flush_tlb_range(vma.vm_mm, start, end)
