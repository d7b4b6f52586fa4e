"""Mixmap: a device of 16 pages whose fault handler inserts each page by a letter of its plan.

    R  vmf_insert_mixed(raw pfn)        P  vmf_insert_mixed(pfn with struct page)
    W  vmf_insert_mixed_mkwrite(raw)    I  vm_insert_page
    F  vmf_insert_pfn(raw pfn)          V  hands vmf->page to the core
    G  remap_pfn_range of one page      Z  vmf_insert_mixed(zero page)

Raw pages have no struct page and hold 'A', 'B', ...; the others, one reference of the device each,
hold 'a', 'b', .... The kernel has such a device in the test module that printed the goldens.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import BugError, InvalidArgumentError, OutOfFramesError
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.machine import Machine
from xipfs.mm.mixedmap import (
    vm_insert_page,
    vmf_insert_mixed,
    vmf_insert_mixed_mkwrite,
    vmf_insert_pfn,
)
from xipfs.mm.remap import remap_pfn_range
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.mm.vm_fault import FaultResult, VmFault, VmOperations
from xipfs.mm.vma import VM_MIXEDMAP, VM_PFNMAP, Mm, Vma
from xipfs.units import (
    NVRAM_PFN_START,
    PAGE_SHIFT,
    PAGE_SIZE,
    Kaddr,
    Pfn,
    Pgoff,
    Vaddr,
)

__all__ = ["NR_PAGES", "Counts", "Hooks", "Mixmap", "NoFile", "VmMode", "parse_plan", "raw_pfn"]

NR_PAGES = 16
_LETTERS = "RWPIVZFG"
_RAW_LETTERS = "RFWG"


class VmMode(Enum):
    """What mmap does: set VM_MIXEDMAP, set VM_PFNMAP, remap_pfn_range, or what cramfs does."""

    MIXED = "mixed"
    PFN = "pfn"
    REMAP = "remap"
    CRAMFS = "cramfs"


class Hooks(Enum):
    """page_mkwrite and pfn_mkwrite: both there, both absent, or both answering SIGBUS."""

    FULL = "full"
    NONE = "none"
    FAIL = "fail"


@dataclass(slots=True)
class Counts:
    """Calls of the device's vm_ops."""

    faults: int = 0
    page_mkwrite: int = 0
    pfn_mkwrite: int = 0
    opens: int = 0
    closes: int = 0


def parse_plan(text: str) -> str:
    """Return *text*, letters of a plan, repeated over all pages. Raises: InvalidArgumentError.

    >>> parse_plan("RRP")
    'RRPRRPRRPRRPRRPR'
    """
    if not text or set(text) - set(_LETTERS):
        raise InvalidArgumentError(f"no plan: {text!r}: use letters of {_LETTERS}")
    return (text * NR_PAGES)[:NR_PAGES]


def raw_pfn(i: int) -> Pfn:
    """Return the pfn of raw page *i*."""
    return Pfn(NVRAM_PFN_START + i)


class Mixmap:
    """The device on *machine*, which has NR_PAGES of NVRAM or more; a file that can be mapped."""

    may_write = True

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.f_mapping = AddressSpace(
            1, NoFile(), i_size_bytes=NR_PAGES << PAGE_SHIFT, read_only=False, is_device=True
        )
        self.pages = [self._alloc_page() for _ in range(NR_PAGES)]
        self.configure(parse_plan("R"), VmMode.MIXED, Hooks.FULL)

    def configure(self, plan: str, vm: VmMode, hooks: Hooks) -> None:
        """Fill all pages anew, and work by *plan* from now on."""
        self.plan = list(plan)
        self.vm = vm
        self.counts = Counts()
        self._ops = _MixmapOperations(self, hooks)
        physmem = self.machine.physmem
        for i, page in enumerate(self.pages):
            physmem.store(raw_pfn(i) << PAGE_SHIFT, bytes([ord("A") + i]) * PAGE_SIZE)
            physmem.store(page << PAGE_SHIFT, bytes([ord("a") + i]) * PAGE_SIZE)

    def mmap(self, vma: Vma) -> int:
        """Prepare *vma*; see `xipfs.mm.mmap.File`."""
        vma.vm_ops = self._ops
        if self.vm is VmMode.MIXED:
            vma.vm_flags |= VM_MIXEDMAP
        elif self.vm is VmMode.PFN:
            vma.vm_flags |= VM_PFNMAP
        else:
            return remap_pfn_range(vma, vma.vm_start, raw_pfn(vma.vm_pgoff), vma.nr_pages)
        return 0

    def insert(self, vma: Vma, address: Vaddr, i: int, letter: str) -> tuple[FaultResult, int]:
        """Insert page *i* by *letter*. Returns: for the fault handler; what the function said."""
        match letter:
            case "R":
                result = vmf_insert_mixed(vma, address, raw_pfn(i))
            case "W":
                result = vmf_insert_mixed_mkwrite(vma, address, raw_pfn(i))
            case "P":
                result = vmf_insert_mixed(vma, address, self.pages[i])
            case "Z":
                result = vmf_insert_mixed(vma, address, self.machine.zero_pfn)
            case "F":
                result = vmf_insert_pfn(vma, address, raw_pfn(i))
            case "G":
                error = remap_pfn_range(vma, address, raw_pfn(i), 1)
                return FaultResult.SIGBUS if error else FaultResult.NOPAGE, error
            case "I":
                error = vm_insert_page(vma, address, self.pages[i])
                inserted = error in (0, -errno.EBUSY)
                return FaultResult.NOPAGE if inserted else FaultResult.SIGBUS, error
            case _:
                result = FaultResult.SIGBUS
        return result, int(result)

    def insert_at(self, mm: Mm, address: Vaddr, i: int, letter: str) -> int:
        """Insert as a driver does, holding mmap_lock. Returns: what the function said; -ENOENT."""
        with mm.mmap_lock.write():
            vma = mm.find_vma(address)
            if vma is None:
                return -errno.ENOENT
            return self.insert(vma, address, i, letter)[1]

    def migrate(self, i: int, letter: str | None, *, even_cows: bool) -> None:
        """Move page *i* to where *letter* takes it from, if given; unmap it in all processes."""
        if letter is not None:
            source, target = self._bytes_pfn(i, self.plan[i]), self._bytes_pfn(i, letter)
            data = self.machine.physmem.load(source << PAGE_SHIFT, PAGE_SIZE)
            self.machine.physmem.store(target << PAGE_SHIFT, data)
            self.plan[i] = letter
        unmap_mapping_range(self.f_mapping, Pgoff(i), 1, even_cows=even_cows)

    def _bytes_pfn(self, i: int, letter: str) -> Pfn:
        return raw_pfn(i) if letter in _RAW_LETTERS else self.pages[i]

    def _alloc_page(self) -> Pfn:
        page = self.machine.mem_map.alloc_page()
        if page is None:
            raise OutOfFramesError("no RAM frames for the device's pages")
        return page


class _MixmapOperations(VmOperations):
    def __init__(self, device: Mixmap, hooks: Hooks) -> None:
        self._device = device
        self._hook_fails = hooks is Hooks.FAIL
        if hooks is not Hooks.NONE:
            self.page_mkwrite = self._page_mkwrite
            self.pfn_mkwrite = self._pfn_mkwrite

    def fault(self, vmf: VmFault) -> FaultResult:
        device = self._device
        device.counts.faults += 1
        if vmf.pgoff >= NR_PAGES:
            return FaultResult.SIGBUS
        letter = device.plan[vmf.pgoff]
        if letter == "V":
            vmf.page = device.pages[vmf.pgoff]
            device.machine.mem_map.get_page(vmf.page)
            return FaultResult.DONE
        return device.insert(vmf.vma, vmf.address, vmf.pgoff, letter)[0]

    def open(self, vma: Vma) -> None:
        self._device.counts.opens += 1

    def close(self, vma: Vma) -> None:
        self._device.counts.closes += 1

    def _page_mkwrite(self, vmf: VmFault) -> FaultResult:
        self._device.counts.page_mkwrite += 1
        return FaultResult.SIGBUS if self._hook_fails else FaultResult.LOCKED

    def _pfn_mkwrite(self, vmf: VmFault) -> FaultResult:
        self._device.counts.pfn_mkwrite += 1
        return FaultResult.SIGBUS if self._hook_fails else FaultResult.DONE


class NoFile:
    """Pages come from the device's own fault handler, never from a filesystem."""

    def get_xip_mem(
        self, mapping: AddressSpace, pgoff: Pgoff, *, create: bool
    ) -> tuple[Kaddr, Pfn]:
        """Do not come here."""
        raise BugError(f"get_xip_mem on a device: {pgoff} {create}")

    def get_xip_pfns(self, mapping: AddressSpace, pgoff: Pgoff, nr_pages: int) -> NDArray[np.int64]:
        """Do not come here."""
        raise BugError(f"get_xip_pfns on a device: {pgoff} {nr_pages}")

    def get_nvram_pfns(self, mapping: AddressSpace, pgoffs: Sequence[int]) -> list[int]:
        """Do not come here."""
        raise BugError(f"get_nvram_pfns on a device: {pgoffs}")
