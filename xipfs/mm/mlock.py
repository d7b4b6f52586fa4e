"""mlock: VM_SPECIAL areas are never locked, but faulted in all the same.

So a private writable area of a memory file, whose populating writes, has all its pages copied to
RAM. Source: mm/mlock.c, 6.1 and 2.6.28.
"""

import errno

from xipfs.mm.gup import mm_populate
from xipfs.mm.mmap import clip_vma
from xipfs.mm.vma import VM_LOCKED, VM_SPECIAL, Mm
from xipfs.units import PAGE_SHIFT, Vaddr

__all__ = ["do_mlock", "do_mlockall_future", "do_munlock"]


def do_mlock(mm: Mm, start: Vaddr, nr_pages: int) -> int:
    """Lock nr_pages pages from *start* on, and fault them in.

    Returns: 0; -ENOMEM where nothing is mapped or a page cannot be faulted in; -EAGAIN without
             memory.
    """
    error = _apply_vma_lock_flags(mm, start, nr_pages, VM_LOCKED)
    if error:
        return error
    error = mm_populate(mm, start, nr_pages, ignore_errors=False)
    # What POSIX wants (__mlock_posix_error_return).
    return {-errno.EFAULT: -errno.ENOMEM, -errno.ENOMEM: -errno.EAGAIN}.get(error, error)


def do_munlock(mm: Mm, start: Vaddr, nr_pages: int) -> int:
    """Unlock pages. Returns: 0, or -ENOMEM where nothing is mapped."""
    return _apply_vma_lock_flags(mm, start, nr_pages, 0)


def do_mlockall_future(mm: Mm) -> int:
    """Lock, and fault in, all that will be mapped (MCL_FUTURE). Returns: 0."""
    mm.def_flags |= VM_LOCKED
    return 0


def _apply_vma_lock_flags(mm: Mm, start: Vaddr, nr_pages: int, lock: int) -> int:
    end = Vaddr(start + (nr_pages << PAGE_SHIFT))
    with mm.mmap_lock.write():
        at = start
        for vma in mm.vmas_between(start, end):
            if vma.vm_start > at:
                return -errno.ENOMEM
            at = min(end, vma.vm_end)
            if not vma.vm_flags & VM_SPECIAL and vma.vm_flags & VM_LOCKED != lock:
                part = clip_vma(vma, max(start, vma.vm_start), at)
                part.vm_flags = part.vm_flags & ~VM_LOCKED | lock
    return 0 if at == end else -errno.ENOMEM
