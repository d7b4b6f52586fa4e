"""msync: a shared area is written back by its file, if that can.

Source: mm/msync.c, 6.1.
"""

import errno

from xipfs.mm.vma import VM_SHARED, Mm
from xipfs.units import PAGE_SHIFT, Vaddr

__all__ = ["do_msync"]


def do_msync(mm: Mm, start: Vaddr, nr_pages: int) -> int:
    """Do MS_SYNC on nr_pages pages from *start* on.

    Returns: 0; -EINVAL where a file has no fsync; what its fsync says; -ENOMEM where nothing is
             mapped, with the rest done.
    """
    end = Vaddr(start + (nr_pages << PAGE_SHIFT))
    at, unmapped = start, 0
    for vma in mm.vmas_between(start, end):
        if vma.vm_start > at:
            unmapped = -errno.ENOMEM
        at = vma.vm_end
        if vma.vm_file is not None and vma.vm_flags & VM_SHARED:
            error = -errno.EINVAL if vma.vm_file.fsync is None else vma.vm_file.fsync()
            if error:
                return error
    return unmapped if at >= end else -errno.ENOMEM
