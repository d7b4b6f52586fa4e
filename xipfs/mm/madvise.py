"""madvise: what each advice does to areas of memory files.

Source: mm/madvise.c, 6.1.
"""

import contextlib
import errno
from collections.abc import Callable
from enum import IntEnum

from xipfs.mm.gup import FOLL_WRITE, check_vma_flags, populate_vma_page_range
from xipfs.mm.mmap import clip_vma
from xipfs.mm.rmap import zap_page_range
from xipfs.mm.vma import (
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_IO,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
    Mm,
    Vma,
)
from xipfs.units import PAGE_MASK, PAGE_SHIFT, Vaddr

__all__ = ["Advice", "do_madvise"]


class Advice(IntEnum):
    """MADV_* (include/uapi/asm-generic/mman-common.h)."""

    NORMAL = 0
    RANDOM = 1
    SEQUENTIAL = 2
    WILLNEED = 3
    DONTNEED = 4
    FREE = 8
    REMOVE = 9
    DONTFORK = 10
    DOFORK = 11
    MERGEABLE = 12
    UNMERGEABLE = 13
    DONTDUMP = 16
    DODUMP = 17
    WIPEONFORK = 18
    KEEPONFORK = 19
    COLD = 20
    PAGEOUT = 21
    POPULATE_READ = 22
    POPULATE_WRITE = 23
    COLLAPSE = 25


def do_madvise(mm: Mm, start: Vaddr, nr_pages: int, advice: Advice) -> int:
    """Give *advice* on nr_pages pages from *start* on.

    Returns: 0; -EINVAL for advice that the build or the area does not take; -EACCES, -EFAULT as the
             advice has it; -ENOMEM where nothing is mapped, with the rest done.
    """
    if start & PAGE_MASK or not _is_valid(mm, advice):
        return -errno.EINVAL
    end = Vaddr(start + (nr_pages << PAGE_SHIFT))
    populate = advice in (Advice.POPULATE_READ, Advice.POPULATE_WRITE)
    # Populating takes the lock by itself, to fault.
    with contextlib.nullcontext() if populate else mm.mmap_lock.write():
        unmapped = 0
        at = start
        for vma in mm.vmas_between(start, end):
            if vma.vm_start > at:
                unmapped = -errno.ENOMEM
            first, at = max(start, vma.vm_start), min(end, vma.vm_end)
            error = _advise(vma, first, at, advice)
            if error:
                return error
        return unmapped if at == end else -errno.ENOMEM


def _is_valid(mm: Mm, advice: Advice) -> bool:
    """Is the advice built in? Source: madvise_behavior_valid, without huge pages."""
    if advice in (Advice.MERGEABLE, Advice.UNMERGEABLE):
        return "KSM" in mm.machine.arch.configs
    return advice is not Advice.COLLAPSE


def _advise(vma: Vma, start: Vaddr, end: Vaddr, advice: Advice) -> int:
    """Source: madvise_vma_behavior."""
    action = _ACTIONS.get(advice)
    if action is not None:
        return action(vma, start, end)
    flags = _new_flags(vma, advice)
    if flags < 0:
        return flags
    if flags != vma.vm_flags:
        clip_vma(vma, start, end).vm_flags = flags
    return 0


def _new_flags(vma: Vma, advice: Advice) -> int:
    """Return the flags that *advice* gives *vma*, or -EINVAL."""
    flags = vma.vm_flags
    refused = {
        Advice.DOFORK: bool(flags & VM_IO),
        Advice.DODUMP: bool(flags & VM_SPECIAL),
        Advice.WIPEONFORK: vma.vm_file is not None or bool(flags & VM_SHARED),
    }
    if refused.get(advice, False):
        return -errno.EINVAL
    if advice in (Advice.MERGEABLE, Advice.UNMERGEABLE) and flags & VM_SPECIAL:
        return flags  # ksm_madvise passes over it
    clear, add = _FLAG_CHANGES[advice]
    return flags & ~clear | add


_FLAG_CHANGES = {
    Advice.NORMAL: (VM_RAND_READ | VM_SEQ_READ, 0),
    Advice.RANDOM: (VM_SEQ_READ, VM_RAND_READ),
    Advice.SEQUENTIAL: (VM_RAND_READ, VM_SEQ_READ),
    Advice.DONTFORK: (0, VM_DONTCOPY),
    Advice.DOFORK: (VM_DONTCOPY, 0),
    Advice.WIPEONFORK: (0, VM_WIPEONFORK),
    Advice.KEEPONFORK: (VM_WIPEONFORK, 0),
    Advice.DONTDUMP: (0, VM_DONTDUMP),
    Advice.DODUMP: (VM_DONTDUMP, 0),
    Advice.MERGEABLE: (0, VM_MERGEABLE),
    Advice.UNMERGEABLE: (VM_MERGEABLE, 0),
}


def _willneed(vma: Vma, start: Vaddr, end: Vaddr) -> int:
    return 0  # nothing to read ahead: the file is memory


def _dontneed(vma: Vma, start: Vaddr, end: Vaddr) -> int:
    if vma.vm_flags & (VM_PFNMAP | VM_LOCKED):
        return -errno.EINVAL
    zap_page_range(vma, start, end)
    return 0


def _free(vma: Vma, start: Vaddr, end: Vaddr) -> int:
    return -errno.EINVAL  # for anonymous areas only


def _remove(vma: Vma, start: Vaddr, end: Vaddr) -> int:
    if vma.vm_flags & VM_LOCKED or vma.vm_file is None:
        return -errno.EINVAL
    # 6.1.192 and 6.18 ask whether it could become writable (vma_is_shared_maywrite).
    needed = VM_SHARED | (VM_WRITE if vma.vm_mm.machine.arch.is_2008 else VM_MAYWRITE)
    if vma.vm_flags & needed != needed:
        return -errno.EACCES
    # The files here have no fallocate, and what is no file never has (vfs_fallocate).
    return -errno.ENODEV if vma.vm_file.is_device else -errno.EOPNOTSUPP


def _cold(vma: Vma, start: Vaddr, end: Vaddr) -> int:
    """Nothing to age or reclaim: tier frames are on no LRU list."""
    return -errno.EINVAL if vma.vm_flags & (VM_LOCKED | VM_PFNMAP) else 0


def _populate_read(vma: Vma, start: Vaddr, end: Vaddr) -> int:
    return _populate(vma, start, end, 0)


def _populate_write(vma: Vma, start: Vaddr, end: Vaddr) -> int:
    return _populate(vma, start, end, FOLL_WRITE)


def _populate(vma: Vma, start: Vaddr, end: Vaddr, flags: int) -> int:
    """Source: madvise_populate and faultin_vma_page_range."""
    if check_vma_flags(vma, flags):
        return -errno.EINVAL
    while start < end:
        done = populate_vma_page_range(vma, start, end, flags=flags)
        if done < 0:
            return done
        start = Vaddr(start + (done << PAGE_SHIFT))  # the page that failed tells why
    return 0


_ACTIONS: dict[Advice, Callable[[Vma, Vaddr, Vaddr], int]] = {
    Advice.WILLNEED: _willneed,
    Advice.DONTNEED: _dontneed,
    Advice.FREE: _free,
    Advice.REMOVE: _remove,
    Advice.COLD: _cold,
    Advice.PAGEOUT: _cold,
    Advice.POPULATE_READ: _populate_read,
    Advice.POPULATE_WRITE: _populate_write,
}
