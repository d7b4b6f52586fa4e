"""Vma and Mm: the mapped ranges of one simulated address space (vm_area_struct, mm_struct).

The mount has one mm and one vma for each inode that was read, spanning the whole file. Small vmas
lie side by side, so that files of a page share a leaf of the page table; vmas of 512 pages or more
begin at a leaf. Processes of scenes have an mm each; system calls on it are in `mm.mmap` and its
neighbours.

Invariants:
    I1  Vmas of an mm do not overlap; each of a file is in its mapping's i_mmap exactly once.
    I2  rss_file and rss_anon count the ptes whose page is normal (has a usable struct page).
    I3  A pte lies in a vma, so that its file finds it by offset; leaves count theirs.

Source: mm/mmap.c. Differs from Linux: freed ranges are reused by size class, not by first fit;
neighbours are never merged (Linux does not merge VM_SPECIAL areas either, and these all are).
"""

from collections import defaultdict

import numpy as np
from sortedcontainers import SortedDict

from xipfs.errors import OutOfFramesError, bug_on
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.lock import RwLock
from xipfs.mm.machine import Machine
from xipfs.mm.pgtable import (
    PMD_SHIFT,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_RW,
    PTRS_PER_PTE,
    PageTable,
)
from xipfs.mm.vm_fault import VmOperations
from xipfs.units import PAGE_SHIFT, Pgoff, Vaddr

__all__ = [
    "VM_ACCESS_FLAGS",
    "VM_ACCOUNT",
    "VM_DONTCOPY",
    "VM_DONTDUMP",
    "VM_DONTEXPAND",
    "VM_EXEC",
    "VM_INSERTPAGE",
    "VM_IO",
    "VM_LOCKED",
    "VM_MAYEXEC",
    "VM_MAYREAD",
    "VM_MAYSHARE",
    "VM_MAYWRITE",
    "VM_MERGEABLE",
    "VM_MIXEDMAP",
    "VM_PFNMAP",
    "VM_RAND_READ",
    "VM_READ",
    "VM_SEQ_READ",
    "VM_SHARED",
    "VM_SPECIAL",
    "VM_WIPEONFORK",
    "VM_WRITE",
    "VM_XIP_FILE",
    "Mm",
    "Vma",
    "is_cow_mapping",
    "vm_get_page_prot",
    "vma_wants_writenotify",
]

VM_READ = 0x1
VM_WRITE = 0x2
VM_EXEC = 0x4
VM_SHARED = 0x8
VM_MAYREAD = 0x10
VM_MAYWRITE = 0x20
VM_MAYEXEC = 0x40
VM_MAYSHARE = 0x80
VM_PFNMAP = 0x400
VM_LOCKED = 0x2000
VM_IO = 0x4000
VM_SEQ_READ = 0x8000
VM_RAND_READ = 0x10000
VM_DONTCOPY = 0x20000
VM_DONTEXPAND = 0x40000
VM_ACCOUNT = 0x100000
VM_WIPEONFORK = 0x2000000
VM_DONTDUMP = 0x4000000
VM_MIXEDMAP = 0x10000000
VM_MERGEABLE = 0x80000000
VM_INSERTPAGE = 1 << 36
"""vm_insert_page was called (2.6.28: 0x2000000, a bit that VM_WIPEONFORK took later)."""

VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC
VM_SPECIAL = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP

VM_XIP_FILE = VM_READ | VM_MAYREAD | VM_MAYSHARE | VM_MIXEDMAP
"""MAP_SHARED of a read-only descriptor (no MAYWRITE), so that reading a hole never allocates."""

_TASK_SIZE = 1 << 56
"""User addresses of x86 with five levels of page tables."""
_MMAP_BASE = 1 << PMD_SHIFT


class Vma:
    """[vm_start, vm_end) of *vm_mm* maps *vm_file* from page vm_pgoff on.

    vm_file: the pages of the file, None for anonymous memory. vm_page_prot: permissions of the
    ptes that a fault makes. anon_vma: does it have private copies, or had it some? vm_pat: does
    remap_pfn_range hold a memory type for all of it (VM_PAT)?
    """

    __slots__ = (
        "anon_vma",
        "vm_end",
        "vm_file",
        "vm_flags",
        "vm_mm",
        "vm_ops",
        "vm_page_prot",
        "vm_pat",
        "vm_pgoff",
        "vm_start",
    )

    def __init__(
        self,
        mm: "Mm",
        vm_start: Vaddr,
        vm_end: Vaddr,
        vm_flags: int,
        vm_file: AddressSpace | None,
        vm_pgoff: Pgoff,
        vm_ops: VmOperations,
    ) -> None:
        self.vm_mm = mm
        self.vm_start = vm_start
        self.vm_end = vm_end
        self.vm_flags = vm_flags
        self.vm_file = vm_file
        self.vm_pgoff = vm_pgoff
        self.vm_ops = vm_ops
        self.vm_page_prot = vm_get_page_prot(vm_flags)
        self.anon_vma = False
        self.vm_pat = False

    @property
    def nr_pages(self) -> int:
        """Pages of the area."""
        return (self.vm_end - self.vm_start) >> PAGE_SHIFT

    def address(self, pgoff: Pgoff) -> Vaddr:
        """Return where file page *pgoff* is mapped; it may lie outside of the vma."""
        return Vaddr(self.vm_start + ((pgoff - self.vm_pgoff) << PAGE_SHIFT))

    def pgoff(self, address: Vaddr) -> Pgoff:
        """Return the file page that *address* maps (linear_page_index)."""
        return Pgoff(self.vm_pgoff + ((address - self.vm_start) >> PAGE_SHIFT))

    def copy(self, mm: "Mm", vm_start: Vaddr, vm_end: Vaddr, vm_pgoff: Pgoff) -> "Vma":
        """Return an area like this one at another place: a piece, a moved or a forked one."""
        vma = Vma(mm, vm_start, vm_end, self.vm_flags, self.vm_file, vm_pgoff, self.vm_ops)
        vma.vm_page_prot = self.vm_page_prot
        vma.anon_vma = self.anon_vma
        vma.vm_pat = self.vm_pat
        return vma

    def set_page_prot(self) -> None:
        """Derive vm_page_prot from the flags (vma_set_page_prot)."""
        flags = self.vm_flags
        if vma_wants_writenotify(self):
            flags &= ~VM_SHARED
        self.vm_page_prot = vm_get_page_prot(flags)

    def __repr__(self) -> str:
        file = "anonymous" if self.vm_file is None else f"file {self.vm_file.id}"
        return (
            f"Vma({self.vm_start:#x}-{self.vm_end:#x} {file} "
            f"pgoff {self.vm_pgoff} flags {self.vm_flags:#x})"
        )


def is_cow_mapping(vm_flags: int) -> bool:
    """Do writes go to private copies? MAYWRITE decides, not WRITE. Source: include/linux/mm.h."""
    return vm_flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE


def vm_get_page_prot(vm_flags: int) -> int:
    """Return the pte permissions of an area: writable only if shared, since copies come first.

    Source: mm/mmap.c protection_map.
    """
    if not vm_flags & VM_ACCESS_FLAGS:
        return PTE_PROTNONE
    if vm_flags & VM_WRITE and vm_flags & VM_SHARED:
        return PTE_PRESENT | PTE_RW
    return PTE_PRESENT


def vma_wants_writenotify(vma: Vma) -> bool:
    """Are first writes to shared pages to be seen? Then ptes begin read-only.

    Source: mm/mmap.c vma_wants_writenotify, 6.1. Differs from Linux: no backing device accounts
    for dirty pages, as with noop_backing_dev_info.
    """
    return bool(
        vma.vm_flags & VM_WRITE
        and vma.vm_flags & VM_SHARED
        and (vma.vm_ops.page_mkwrite or vma.vm_ops.pfn_mkwrite)
    )


class Mm:
    """One address space of *machine*: its vmas by start address, its page table, its rss.

    tlb_flush_pending: how many are at taking ptes away (`tlb.MmuGather`).
    nr_lockless_walks: CPUs that are in a walk of the page table without locks (fast GUP).
    rss_file, rss_anon: pages (MM_FILEPAGES, MM_ANONPAGES). def_flags: flags of new areas.
    """

    __slots__ = (
        "_areas",
        "_free_ranges",
        "_next_address",
        "def_flags",
        "machine",
        "mmap_lock",
        "nr_lockless_walks",
        "page_table",
        "rss_anon",
        "rss_file",
        "tlb_flush_pending",
        "vmas",
    )

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.page_table = PageTable()
        self.vmas: SortedDict[Vaddr, Vma] = SortedDict()
        self.mmap_lock = RwLock("mmap_lock")
        self.tlb_flush_pending = 0
        self.nr_lockless_walks = 0
        self.rss_file = 0
        self.rss_anon = 0
        self.def_flags = 0
        self._next_address = _MMAP_BASE
        self._areas: dict[int, int] = {}
        self._free_ranges: defaultdict[int, list[int]] = defaultdict(list)

    def mmap(
        self,
        mapping: AddressSpace | None,
        *,
        nr_pages: int,
        pgoff: Pgoff,
        vm_flags: int,
        vm_ops: VmOperations,
        address: Vaddr | None = None,
    ) -> Vma:
        """Add an area of nr_pages pages (at least one), at *address*, or where there is room.

        Raises: OutOfFramesError (ENOMEM) when no address range is left.
        Bug: something is mapped at *address*.
        """
        bug_on(nr_pages <= 0, "mmap of no pages", nr_pages=nr_pages)
        start = self.get_unmapped_area(nr_pages) if address is None else address
        end = Vaddr(start + (nr_pages << PAGE_SHIFT))
        vma = Vma(self, start, end, vm_flags, mapping, pgoff, vm_ops)
        self.insert_vma(vma)
        return vma

    def insert_vma(self, vma: Vma) -> None:
        """Add *vma* to its mm and its file. Bug: something is mapped there."""
        bug_on(self.is_mapped(vma.vm_start, vma.vm_end), "vmas overlap", vma=vma)
        self.vmas[vma.vm_start] = vma
        if vma.vm_file is not None:
            vma.vm_file.i_mmap.append(vma)

    def adopt_vma(self, vma: Vma) -> None:
        """Add a forked area where its parent has it, and keep new areas away from there."""
        self.insert_vma(vma)
        self._next_address = max(self._next_address, vma.vm_end)

    def remove_vma(self, vma: Vma) -> None:
        """Forget *vma*, whose ptes are gone; its range may be used again."""
        if vma.vm_file is not None:
            with vma.vm_file.i_mmap_rwsem.write():
                vma.vm_file.i_mmap.remove(vma)
        del self.vmas[vma.vm_start]
        nr_reserved = self._areas.get(vma.vm_start)
        # A piece of an area leaves its range unused until all of the mm is gone.
        if nr_reserved is not None and _nr_reserved_pages(vma.nr_pages) == nr_reserved:
            del self._areas[vma.vm_start]
            self._free_ranges[nr_reserved].append(vma.vm_start)

    def find_vma(self, address: Vaddr) -> Vma | None:
        """Return the vma that *address* lies in."""
        i = self.vmas.bisect_right(address) - 1
        if i < 0:
            return None
        vma: Vma = self.vmas.peekitem(i)[1]
        return vma if address < vma.vm_end else None

    def vmas_between(self, start: Vaddr, end: Vaddr) -> list[Vma]:
        """Return the vmas that share an address with [start, end), in order."""
        first = self.find_vma(start)
        return ([first] if first is not None and first.vm_start < start else []) + [
            self.vmas[key] for key in self.vmas.irange(start, end, inclusive=(True, False))
        ]

    def is_mapped(self, start: Vaddr, end: Vaddr) -> bool:
        """Is any address of [start, end) in a vma?"""
        i = self.vmas.bisect_left(end) - 1
        return bool(i >= 0 and self.vmas.peekitem(i)[1].vm_end > start)

    def get_unmapped_area(self, nr_pages: int) -> Vaddr:
        """Return where nr_pages pages may be mapped. Raises: OutOfFramesError (ENOMEM)."""
        nr_reserved = _nr_reserved_pages(nr_pages)
        nr_bytes = nr_reserved << PAGE_SHIFT
        while free := self._free_ranges[nr_reserved]:
            start = free.pop()
            if not self.is_mapped(Vaddr(start), Vaddr(start + nr_bytes)):
                self._areas[start] = nr_reserved
                return Vaddr(start)
        # A power of two below a leaf's size, at a multiple of itself: no small vma straddles two
        # leaves, and ranges of one size are interchangeable.
        align = min(nr_reserved, PTRS_PER_PTE) << PAGE_SHIFT
        start = -(-self._next_address // align) * align
        while self.is_mapped(Vaddr(start), Vaddr(start + nr_bytes)):
            # An area that grew in place, or was put at a fixed address.
            _, last = self.vmas.peekitem(self.vmas.bisect_left(start + nr_bytes) - 1)
            start = -(-last.vm_end // align) * align
        if start + nr_bytes > _TASK_SIZE:
            raise OutOfFramesError(f"no address range for {nr_pages} pages")
        self._next_address = start + nr_bytes
        self._areas[start] = nr_reserved
        return Vaddr(start)

    def check_invariants(self) -> None:
        """Raise BugError where I1, I2 or I3 is broken. Slow: for tests."""
        end = Vaddr(0)
        for start, vma in self.vmas.items():
            bug_on(start != vma.vm_start or start < end, "I1: vmas overlap", vma=vma)
            nr_listed = 1 if vma.vm_file is None else vma.vm_file.i_mmap.count(vma)
            bug_on(nr_listed != 1, "I1: not in i_mmap once", vma=vma)
            end = vma.vm_end
        for number, leaf in self.page_table.leaves.items():
            present = np.flatnonzero(leaf.ptes)
            bug_on(len(present) != leaf.nr_present, "I3: nr_present is wrong", leaf=number)
            bug_on(bool(leaf.dirty[leaf.ptes == 0].any()), "I3: dirty without pte", leaf=number)
            for address in ((number << PMD_SHIFT) + (present << PAGE_SHIFT)).tolist():
                bug_on(self.find_vma(address) is None, "I3: a pte in no vma", address=address)


def _nr_reserved_pages(nr_pages: int) -> int:
    """The size class: a power of two up to a leaf, whole leaves above.

    >>> [_nr_reserved_pages(n) for n in (1, 3, 511, 512, 513)]
    [1, 4, 512, 512, 1024]
    """
    if nr_pages <= PTRS_PER_PTE:
        return 1 << (nr_pages - 1).bit_length()
    return -(-nr_pages // PTRS_PER_PTE) * PTRS_PER_PTE
