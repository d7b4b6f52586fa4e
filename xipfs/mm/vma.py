"""Vma and Mm: the mapped ranges of one simulated address space (vm_area_struct, mm_struct).

The mount has one mm and one vma for each inode that was read, spanning the whole file. Small vmas
lie side by side, so that files of a page share a leaf of the page table; vmas of 512 pages or more
begin at a leaf.

Invariants:
    I1  Vmas of an mm do not overlap; each is in its mapping's i_mmap exactly once.
    I2  rss_file counts the present ptes whose page is normal (has a usable struct page).
    I3  A present pte lies in a vma, so that its file finds it by offset; leaves count theirs.

Source: mm/mmap.c. Differs from Linux: freed ranges are reused by size class, not by first fit.
"""

from collections import defaultdict

import numpy as np
from sortedcontainers import SortedDict

from xipfs.errors import OutOfFramesError, bug_on
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.machine import Machine
from xipfs.mm.pgtable import PMD_SHIFT, PTE_SPECIAL, PTRS_PER_PTE, PageTable
from xipfs.units import PAGE_SHIFT, Pgoff, Vaddr

__all__ = [
    "VM_MAYREAD",
    "VM_MAYSHARE",
    "VM_MAYWRITE",
    "VM_MIXEDMAP",
    "VM_PFNMAP",
    "VM_READ",
    "VM_SHARED",
    "VM_WRITE",
    "VM_XIP_FILE",
    "Mm",
    "Vma",
]

VM_READ = 0x1
VM_WRITE = 0x2
VM_SHARED = 0x8
VM_MAYREAD = 0x10
VM_MAYWRITE = 0x20
VM_MAYSHARE = 0x80
VM_PFNMAP = 0x400
VM_MIXEDMAP = 0x10000000

VM_XIP_FILE = VM_READ | VM_MAYREAD | VM_MAYSHARE | VM_MIXEDMAP
"""MAP_SHARED of a read-only descriptor (no MAYWRITE), so that reading a hole never allocates."""

_TASK_SIZE = 1 << 56
"""User addresses of x86 with five levels of page tables."""
_MMAP_BASE = 1 << PMD_SHIFT


class Vma:
    """[vm_start, vm_end) of *vm_mm* maps *vm_file* from page vm_pgoff on."""

    __slots__ = ("vm_end", "vm_file", "vm_flags", "vm_mm", "vm_pgoff", "vm_start")

    def __init__(
        self,
        mm: "Mm",
        vm_start: Vaddr,
        vm_end: Vaddr,
        vm_flags: int,
        vm_file: AddressSpace,
        vm_pgoff: Pgoff,
    ) -> None:
        self.vm_mm = mm
        self.vm_start = vm_start
        self.vm_end = vm_end
        self.vm_flags = vm_flags
        self.vm_file = vm_file
        self.vm_pgoff = vm_pgoff

    def address(self, pgoff: Pgoff) -> Vaddr:
        """Return where file page *pgoff* is mapped; it may lie outside of the vma."""
        return Vaddr(self.vm_start + ((pgoff - self.vm_pgoff) << PAGE_SHIFT))

    def pgoff(self, address: Vaddr) -> Pgoff:
        """Return the file page that *address* maps (linear_page_index)."""
        return Pgoff(self.vm_pgoff + ((address - self.vm_start) >> PAGE_SHIFT))

    def __repr__(self) -> str:
        return (
            f"Vma({self.vm_start:#x}-{self.vm_end:#x} file {self.vm_file.id} "
            f"pgoff {self.vm_pgoff} flags {self.vm_flags:#x})"
        )


class Mm:
    """One address space of *machine*: its vmas by start address, its page table, its rss."""

    __slots__ = ("_free_ranges", "_next_address", "machine", "page_table", "rss_file", "vmas")

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.page_table = PageTable()
        self.vmas: SortedDict[Vaddr, Vma] = SortedDict()
        self.rss_file = 0
        self._next_address = _MMAP_BASE
        self._free_ranges: defaultdict[int, list[int]] = defaultdict(list)

    def mmap(
        self, mapping: AddressSpace, *, nr_pages: int, pgoff: Pgoff, vm_flags: int = VM_XIP_FILE
    ) -> Vma:
        """Map nr_pages pages (at least one) of *mapping* from *pgoff* on, where there is room.

        Raises: OutOfFramesError (ENOMEM) when no address range is left.
        """
        bug_on(nr_pages <= 0, "mmap of no pages", nr_pages=nr_pages)
        start = self._get_unmapped_area(nr_pages)
        end = Vaddr(start + (nr_pages << PAGE_SHIFT))
        vma = Vma(self, start, end, vm_flags, mapping, pgoff)
        self.vmas[start] = vma
        mapping.i_mmap.append(vma)
        return vma

    def remove_vma(self, vma: Vma) -> None:
        """Forget *vma*, whose ptes are gone (`rmap.munmap`); its range may be used again."""
        vma.vm_file.i_mmap.remove(vma)
        del self.vmas[vma.vm_start]
        nr_pages = (vma.vm_end - vma.vm_start) >> PAGE_SHIFT
        self._free_ranges[_nr_reserved_pages(nr_pages)].append(vma.vm_start)

    def find_vma(self, address: Vaddr) -> Vma | None:
        """Return the vma that *address* lies in."""
        i = self.vmas.bisect_right(address) - 1
        if i < 0:
            return None
        vma: Vma = self.vmas.peekitem(i)[1]
        return vma if address < vma.vm_end else None

    def check_invariants(self) -> None:
        """Raise BugError where I1, I2 or I3 is broken. Slow: for tests."""
        end = Vaddr(0)
        for start, vma in self.vmas.items():
            bug_on(start != vma.vm_start or start < end, "I1: vmas overlap", vma=vma)
            bug_on(vma.vm_file.i_mmap.count(vma) != 1, "I1: not in i_mmap once", vma=vma)
            end = vma.vm_end
        nr_normal = 0
        for number, leaf in self.page_table.leaves.items():
            present = np.flatnonzero(leaf.ptes)
            bug_on(len(present) != leaf.nr_present, "I3: nr_present is wrong", leaf=number)
            for address in ((number << PMD_SHIFT) + (present << PAGE_SHIFT)).tolist():
                bug_on(self.find_vma(address) is None, "I3: a pte in no vma", address=address)
            ptes = leaf.ptes[present]
            has_page = ptes >> PAGE_SHIFT < self.machine.mem_map.nr_frames
            nr_normal += int(np.count_nonzero(has_page & (ptes & PTE_SPECIAL == 0)))
        bug_on(nr_normal != self.rss_file, "I2: rss is wrong", rss=self.rss_file, ptes=nr_normal)

    def _get_unmapped_area(self, nr_pages: int) -> Vaddr:
        nr_reserved = _nr_reserved_pages(nr_pages)
        if self._free_ranges[nr_reserved]:
            return Vaddr(self._free_ranges[nr_reserved].pop())
        # A power of two below a leaf's size, at a multiple of itself: no small vma straddles two
        # leaves, and ranges of one size are interchangeable.
        align = min(nr_reserved, PTRS_PER_PTE) << PAGE_SHIFT
        start = -(-self._next_address // align) * align
        end = start + (nr_reserved << PAGE_SHIFT)
        if end > _TASK_SIZE:
            raise OutOfFramesError(f"no address range for {nr_pages} pages")
        self._next_address = end
        return Vaddr(start)


def _nr_reserved_pages(nr_pages: int) -> int:
    """The size class: a power of two up to a leaf, whole leaves above.

    >>> [_nr_reserved_pages(n) for n in (1, 3, 511, 512, 513)]
    [1, 4, 512, 512, 1024]
    """
    if nr_pages <= PTRS_PER_PTE:
        return 1 << (nr_pages - 1).bit_length()
    return -(-nr_pages // PTRS_PER_PTE) * PTRS_PER_PTE
