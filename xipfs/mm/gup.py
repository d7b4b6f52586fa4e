"""get_user_pages: the struct pages behind user addresses, with references for who asked.

    __get_user_pages       the slow walk: by vma, faulting in what is missing
    get_user_pages_fast    the walk of ptes without locks first, then the slow one for the rest
    mm_populate            the slow walk that keeps no page: mlock, MAP_POPULATE, MADV_POPULATE_*

A page without struct page cannot be got. What a user of the function sees instead:

    2.6.28   -EFAULT
    6.1      -EEXIST if pages were asked for; populating skips it
    fast     the walk stops at the special bit, having no vma to ask; without the bit in ptes there
             is no fast walk at all

But a write to a private area copies first, and the copy can be got.

Source: mm/gup.c, 6.1; mm/memory.c __get_user_pages, 2.6.28; arch/x86/mm/gup.c, 2.6.32.
Differs from Linux: pages are pfns; a Python list takes them.
"""

import errno

from xipfs.mm.arch import FastGup
from xipfs.mm.fault import handle_mm_fault
from xipfs.mm.lock import atomic_step
from xipfs.mm.mem_map import PAGE_ANON, PAGE_ANON_EXCLUSIVE
from xipfs.mm.mixedmap import vm_normal_page
from xipfs.mm.pgtable import (
    PMD_SHIFT,
    PTE_NONE,
    PTE_PRESENT,
    PTE_RW,
    PTE_SPECIAL,
    Leaf,
    pte_index,
    pte_pfn,
)
from xipfs.mm.vm_fault import (
    FAULT_FLAG_UNSHARE,
    FAULT_FLAG_WRITE,
    VM_FAULT_ERROR,
    FaultResult,
)
from xipfs.mm.vma import (
    VM_ACCESS_FLAGS,
    VM_IO,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Mm,
    Vma,
    is_cow_mapping,
)
from xipfs.units import PAGE_SHIFT, Pfn, Vaddr

__all__ = [
    "FOLL_DUMP",
    "FOLL_FAST_ONLY",
    "FOLL_FORCE",
    "FOLL_LONGTERM",
    "FOLL_PIN",
    "FOLL_TOUCH",
    "FOLL_WRITE",
    "check_vma_flags",
    "get_user_pages",
    "get_user_pages_fast",
    "mm_populate",
    "populate_vma_page_range",
    "put_user_page",
]

FOLL_WRITE = 0x01
FOLL_TOUCH = 0x02
FOLL_DUMP = 0x08
FOLL_FORCE = 0x10
FOLL_FAST_ONLY = 0x80000
FOLL_LONGTERM = 0x10000
"""The pin stays for long; before 6.3 such a walk does not mark ptes as used."""
FOLL_PIN = 0x40000
"""The page's bytes will be touched by others than the CPU: pins instead of references (5.6)."""


def get_user_pages(mm: Mm, start: Vaddr, nr_pages: int, flags: int, pages: list[Pfn] | None) -> int:
    """Get the pages from *start* on, faulting them in, and append them to *pages*.

    pages: None to fault them in only. Each page appended has a reference, or a pin (FOLL_PIN), to
           be given back by `put_user_page`.
    Returns: how many pages; the error of the first when there is none: -EFAULT, -ENOMEM, -EEXIST.
    """
    with mm.mmap_lock.read():
        touch = 0 if flags & FOLL_LONGTERM and not mm.machine.arch.is_6_18 else FOLL_TOUCH
        return _get_user_pages(mm, start, nr_pages, flags | touch, pages)


def get_user_pages_fast(mm: Mm, start: Vaddr, nr_pages: int, flags: int, pages: list[Pfn]) -> int:
    """Get pages of the current mm, without locks as far as the ptes allow, never by force.

    flags: FOLL_WRITE, FOLL_PIN, FOLL_FAST_ONLY: do not go the slow way for the rest.
    Returns: as `get_user_pages`; an error of the slow way is told only if the fast one got nothing.
    """
    nr_fast = 0
    if mm.machine.arch.fast_gup is not None:
        mm.nr_lockless_walks += 1  # local_irq_disable
        try:
            nr_fast = _gup_fast(mm, start, nr_pages, flags, pages)
        finally:
            mm.nr_lockless_walks -= 1
    if nr_fast == nr_pages or flags & FOLL_FAST_ONLY:
        return nr_fast
    rest = Vaddr(start + (nr_fast << PAGE_SHIFT))
    nr_slow = get_user_pages(mm, rest, nr_pages - nr_fast, flags, pages)
    if nr_slow < 0:
        return nr_fast or nr_slow
    return nr_fast + nr_slow


def put_user_page(mm: Mm, page: Pfn, flags: int, *, dirty: bool = False) -> None:
    """Give back what `get_user_pages` with *flags* gave; *dirty* if bytes were written to it."""
    mem_map = mm.machine.mem_map
    if dirty:
        mem_map.set_page_dirty(page)
    if flags & FOLL_PIN and not mm.machine.arch.is_2008:
        mem_map.unpin_page(page)
    else:
        mem_map.put_page(page)


def mm_populate(mm: Mm, start: Vaddr, nr_pages: int, *, ignore_errors: bool = True) -> int:
    """Fault in what is mapped in a range, private writable areas for writing.

    Returns: 0, or the first error unless they are ignored. Source: mm/gup.c __mm_populate, 6.1;
    make_pages_present, 2.6.28, which ends at the first page without struct page.
    """
    end = Vaddr(start + (nr_pages << PAGE_SHIFT))
    for vma in mm.vmas_between(start, end):
        if vma.vm_flags & (VM_IO | VM_PFNMAP):
            continue
        at, to = max(start, vma.vm_start), min(end, vma.vm_end)
        while at < to:
            done = populate_vma_page_range(vma, at, to)
            if done < 0 and not ignore_errors:
                return done
            if done <= 0:
                break
            at = Vaddr(at + (done << PAGE_SHIFT))  # the page after the last good one says why
    return 0


def populate_vma_page_range(vma: Vma, start: Vaddr, end: Vaddr, *, flags: int | None = None) -> int:
    """Fault in [start, end) of *vma*; *flags* FOLL_WRITE or 0, by default as the area is used."""
    if flags is None:
        flags = FOLL_WRITE if vma.vm_flags & (VM_WRITE | VM_SHARED) == VM_WRITE else 0
        if vma.vm_flags & VM_ACCESS_FLAGS:
            flags |= FOLL_FORCE
    nr_pages = (end - start) >> PAGE_SHIFT
    return get_user_pages(vma.vm_mm, start, nr_pages, flags, None)


def check_vma_flags(vma: Vma, flags: int) -> int:
    """May pages of *vma* be got with *flags* at all? Returns: 0 or -EFAULT."""
    vm_flags = vma.vm_flags
    if vm_flags & (VM_IO | VM_PFNMAP):
        return -errno.EFAULT
    force = flags & FOLL_FORCE
    if flags & FOLL_WRITE:
        allowed = vm_flags & VM_WRITE or (
            force
            and (
                bool(vm_flags & VM_MAYWRITE)
                if vma.vm_mm.machine.arch.is_2008
                else is_cow_mapping(vm_flags)
            )
        )
    else:
        allowed = vm_flags & VM_READ or (force and vm_flags & VM_MAYREAD)
    return 0 if allowed else -errno.EFAULT


def _get_user_pages(
    mm: Mm, start: Vaddr, nr_pages: int, flags: int, pages: list[Pfn] | None
) -> int:
    vma: Vma | None = None
    for i in range(nr_pages):
        address = Vaddr(start + (i << PAGE_SHIFT))
        if vma is None or address >= vma.vm_end:  # a fault may make a vma VM_PFNMAP: too late
            vma = mm.find_vma(address)
            error = -errno.EFAULT if vma is None else check_vma_flags(vma, flags)
            if error or vma is None:
                return i or error
        page = _get_user_page(vma, address, flags)
        if page == -errno.EEXIST and pages is None:
            continue
        if page < 0:
            return i or page
        if pages is None:
            put_user_page(mm, Pfn(page), flags)
        else:
            pages.append(Pfn(page))
    return nr_pages


def _get_user_page(vma: Vma, address: Vaddr, flags: int) -> int:
    """Follow, fault, follow again. Returns: the page, with a reference, or -errno."""
    while True:
        page = _follow_page_pte(vma, address, flags)
        if page is not None and page != -errno.EMLINK:
            return page
        fault_flags = FAULT_FLAG_WRITE if flags & FOLL_WRITE else 0
        if page == -errno.EMLINK:
            fault_flags = FAULT_FLAG_UNSHARE
        result = handle_mm_fault(vma, address, fault_flags)
        if result & VM_FAULT_ERROR:
            return -errno.ENOMEM if result & FaultResult.OOM else -errno.EFAULT
        if result & FaultResult.WRITE and not vma.vm_flags & VM_WRITE:
            # 2.6.28: copied by force, but the pte stays read-only: reading it is enough now.
            flags &= ~FOLL_WRITE


def _follow_page_pte(vma: Vma, address: Vaddr, flags: int) -> int | None:
    """Look at one pte. Returns: its page, with a reference; None to fault; -errno.

    Source: mm/gup.c follow_page_pte, 6.1; mm/memory.c follow_page, 2.6.28.
    """
    machine = vma.vm_mm.machine
    leaf = vma.vm_mm.page_table.leaves.get(address >> PMD_SHIFT)
    index = pte_index(address)
    pte = leaf.words[index] if leaf is not None else PTE_NONE
    if leaf is None or pte == PTE_NONE:
        return None
    page = vm_normal_page(vma, address, pte)
    if flags & FOLL_WRITE and not _can_follow_write_pte(vma, pte, page, flags):
        return None
    if page is None:
        if flags & FOLL_DUMP or machine.arch.is_2008:
            return -errno.EFAULT
        if pte_pfn(pte) != machine.zero_pfn:
            if flags & FOLL_TOUCH:
                leaf.accessed_bytes[index] = 1
                leaf.dirty_bytes[index] |= bool(flags & FOLL_WRITE)
            return -errno.EEXIST
        page = machine.zero_pfn
    if not pte & PTE_RW and _must_unshare(vma, page, flags):
        return -errno.EMLINK
    _grab_page(vma.vm_mm, page, flags)
    if flags & FOLL_WRITE and flags & FOLL_TOUCH and not leaf.dirty_bytes[index]:
        machine.mem_map.set_page_dirty(page)
    return page


def _can_follow_write_pte(vma: Vma, pte: int, page: Pfn | None, flags: int) -> bool:
    """May a write go through this pte, or by force through a read-only one to our own copy?"""
    if pte & PTE_RW:
        return True
    if not flags & FOLL_FORCE or vma.vm_mm.machine.arch.is_2008:
        return False
    vm_flags = vma.vm_flags
    if vm_flags & (VM_MAYSHARE | VM_SHARED | VM_WRITE) or not vm_flags & VM_MAYWRITE:
        return False
    own = PAGE_ANON | PAGE_ANON_EXCLUSIVE
    return page is not None and vma.vm_mm.machine.mem_map.page_flags(page) & own == own


def _must_unshare(vma: Vma, page: Pfn, flags: int) -> bool:
    """Would a pin on this page miss what its process writes later? Source: gup_must_unshare."""
    if flags & (FOLL_WRITE | FOLL_PIN) != FOLL_PIN or vma.vm_mm.machine.arch.is_2008:
        return False
    flags = vma.vm_mm.machine.mem_map.page_flags(page)
    return bool(flags & PAGE_ANON) and not flags & PAGE_ANON_EXCLUSIVE


def _grab_page(mm: Mm, page: Pfn, flags: int) -> None:
    if flags & FOLL_PIN and not mm.machine.arch.is_2008:
        mm.machine.mem_map.pin_page(page)
    else:
        mm.machine.mem_map.get_page(page)


def _gup_fast(mm: Mm, start: Vaddr, nr_pages: int, flags: int, pages: list[Pfn]) -> int:
    """Walk ptes without locks, up to the first that does not let us. Returns: pages got.

    Until it is done, no leaf that it may have found is freed (`tlb.MmuGather`).
    Source: gup_pte_range of arch/x86/mm/gup.c (2008) and arch/powerpc/mm/gup.c; mm/gup.c, 6.18.
    """
    needed = PTE_PRESENT | (PTE_RW if flags & FOLL_WRITE else 0)
    for i in range(nr_pages):
        address = Vaddr(start + (i << PAGE_SHIFT))
        atomic_step("gup_fast: read pmd")
        leaf = mm.page_table.leaves.get(address >> PMD_SHIFT)
        if leaf is None:
            return i
        atomic_step("gup_fast: read pte")
        pte = leaf.words[pte_index(address)]
        if pte & (needed | PTE_SPECIAL) != needed:
            return i
        page = pte_pfn(pte)
        if not _try_grab_page_fast(mm, page, leaf, address, pte, flags):
            return i
        leaf.accessed_bytes[pte_index(address)] = 1
        pages.append(page)
    return nr_pages


def _try_grab_page_fast(
    mm: Mm, page: Pfn, leaf: Leaf, address: Vaddr, pte: int, flags: int
) -> bool:
    mem_map = mm.machine.mem_map
    if mm.machine.arch.fast_gup is FastGup.IRQS_OFF:
        # The page may have lost its pte by now, but not been freed: that waits for our interrupts.
        atomic_step("gup_fast: get page")
        mem_map.get_page(page)
        return True
    atomic_step("gup_fast: get unless zero")
    if not mem_map.get_page_unless_zero(page):
        return False
    atomic_step("gup_fast: recheck pte")
    anon = mem_map.page_flags(page)
    unshare = (
        flags & (FOLL_WRITE | FOLL_PIN) == FOLL_PIN
        and not pte & PTE_RW
        and anon & (PAGE_ANON | PAGE_ANON_EXCLUSIVE) == PAGE_ANON
    )
    is_same = mm.page_table.leaves.get(address >> PMD_SHIFT) is leaf
    if not is_same or leaf.words[pte_index(address)] != pte or unshare:
        mem_map.put_page(page)
        return False
    if flags & FOLL_PIN and not mm.machine.arch.is_2008:
        mem_map.pin_page(page)
        mem_map.put_page(page)
    return True
