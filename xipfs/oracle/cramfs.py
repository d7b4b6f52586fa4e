"""Cramfs: a file of the kernel's cramfs on memory, each block direct or compressed.

    D  direct: the page lies in memory without struct page as it is
    C  compressed: it must be unpacked into a page of the page cache

mmap maps the direct pages in front at once: all of the area by remap_pfn_range (VM_PFNMAP), or what
there is by vmf_insert_mixed (VM_MIXEDMAP), and lets faults bring the others from the page cache. A
writable area gets the page cache alone, whose pages are copied then.

Source: fs/cramfs/inode.c cramfs_physmem_mmap, 6.1. Differs from Linux: new pages wait in no batch
for the LRU list, which would hold a reference, and a fault maps no neighbours (fault-around).
"""

import errno
import zlib
from typing import ClassVar

from xipfs.errors import InvalidArgumentError
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.machine import Machine
from xipfs.mm.mixedmap import vmf_insert_mixed
from xipfs.mm.remap import remap_pfn_range
from xipfs.mm.vm_fault import VM_FAULT_ERROR, FaultResult, VmFault, VmOperations
from xipfs.mm.vma import VM_MIXEDMAP, VM_WRITE, Vma
from xipfs.oracle.device import NoFile, VmMode, raw_pfn
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Pfn, Vaddr

__all__ = ["NR_BLOCKS", "Cramfs", "parse_blocks"]

NR_BLOCKS = 8
_LETTERS = "DC"


def parse_blocks(text: str) -> str:
    """Return *text*, letters of blocks, repeated over the file. Raises: InvalidArgumentError.

    >>> parse_blocks("DDC")
    'DDCDDCDD'
    """
    if not text or set(text) - set(_LETTERS):
        raise InvalidArgumentError(f"no blocks of cramfs: {text!r}: use letters of {_LETTERS}")
    return (text * NR_BLOCKS)[:NR_BLOCKS]


class Cramfs:
    """A file of NR_BLOCKS pages, 'A', 'B', ..., on *machine*; blocks: a letter for each."""

    may_write = False
    vm: ClassVar[VmMode] = VmMode.CRAMFS

    def __init__(self, machine: Machine, blocks: str) -> None:
        self.machine = machine
        self.f_mapping = AddressSpace(
            1, NoFile(), i_size_bytes=NR_BLOCKS << PAGE_SHIFT, read_only=True
        )
        self._blocks = blocks
        self._ops = _CramfsOperations(self)
        self._compressed: dict[int, bytes] = {}
        for i, letter in enumerate(blocks):
            data = bytes([ord("A") + i]) * PAGE_SIZE
            if letter == "D":
                machine.physmem.store(raw_pfn(i) << PAGE_SHIFT, data)
            else:
                self._compressed[i] = zlib.compress(data)

    def mmap(self, vma: Vma) -> int:
        """Map what can be mapped directly; see `xipfs.mm.mmap.File`."""
        vma.vm_ops = self._ops
        if vma.vm_flags & VM_WRITE:
            return 0
        direct = self._blocks[vma.vm_pgoff :].partition("C")[0]
        nr_pages = min(len(direct), vma.nr_pages)
        first = raw_pfn(vma.vm_pgoff)
        if nr_pages == vma.nr_pages:
            return remap_pfn_range(vma, vma.vm_start, first, nr_pages)
        if nr_pages:
            vma.vm_flags |= VM_MIXEDMAP
        for i in range(nr_pages):
            address = Vaddr(vma.vm_start + (i << PAGE_SHIFT))
            if vmf_insert_mixed(vma, address, Pfn(first + i)) & VM_FAULT_ERROR:
                return -errno.ENOMEM
        return 0

    def read_page(self, pgoff: int) -> Pfn | None:
        """Return the frame of the page cache that holds page *pgoff*, unpacked now if need be.

        Returns: None where no frame is free. Source: cramfs_read_folio.
        """
        mapping, mem_map = self.f_mapping, self.machine.mem_map
        page = mapping.i_pages.get(pgoff)
        if page is not None:
            return page
        page = mem_map.alloc_page()
        if page is None:
            return None
        if pgoff in self._compressed:
            data = zlib.decompress(self._compressed[pgoff])
        else:
            data = self.machine.physmem.load(raw_pfn(pgoff) << PAGE_SHIFT, PAGE_SIZE)
        self.machine.physmem.store(page << PAGE_SHIFT, data)
        mem_map.mapping[page] = mapping.id
        mem_map.index[page] = pgoff
        mapping.i_pages[pgoff] = page
        return page


class _CramfsOperations(VmOperations):
    def __init__(self, file: Cramfs) -> None:
        self._file = file

    def fault(self, vmf: VmFault) -> FaultResult:
        """Hand a page of the page cache over. Source: mm/filemap.c filemap_fault."""
        file = self._file
        if vmf.pgoff >= file.f_mapping.nr_pages:
            return FaultResult.SIGBUS
        vmf.page = file.read_page(vmf.pgoff)
        if vmf.page is None:
            return FaultResult.OOM
        file.machine.mem_map.get_page(vmf.page)
        return FaultResult.DONE
