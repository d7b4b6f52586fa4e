"""What passes between a fault and the filesystem: VmFault down, FaultResult up, VmOperations.

Source: include/linux/mm.h and mm_types.h, Linux 2.6.28 and 6.1.
"""

from collections.abc import Callable
from enum import IntFlag
from typing import TYPE_CHECKING, Final

from xipfs.units import Pfn, Pgoff, Vaddr

if TYPE_CHECKING:
    from xipfs.mm.vma import Vma

__all__ = [
    "FAULT_FLAG_MKWRITE",
    "FAULT_FLAG_UNSHARE",
    "FAULT_FLAG_WRITE",
    "VM_FAULT_ERROR",
    "FaultResult",
    "MkwriteHook",
    "VmFault",
    "VmOperations",
]

FAULT_FLAG_WRITE: Final = 0x01
FAULT_FLAG_MKWRITE: Final = 0x02
FAULT_FLAG_UNSHARE: Final = 0x400
"""Give the process its own copy of a shared anonymous page, to read (6.1)."""


class FaultResult(IntFlag):
    """VM_FAULT_*. DONE, no bit set, is a fault resolved by a pte of the core's."""

    DONE = 0x0
    OOM = 0x1
    SIGBUS = 0x2
    WRITE = 0x8
    NOPAGE = 0x100
    LOCKED = 0x200
    DONE_COW = 0x1000


VM_FAULT_ERROR = FaultResult.OOM | FaultResult.SIGBUS


class VmFault:
    """One fault (struct vm_fault).

    flags: FAULT_FLAG_*. orig_pte: what the page table had. page: what ->fault found, a frame with
    a reference for us. cow_page: an empty frame where a private write goes.
    """

    __slots__ = ("address", "cow_page", "flags", "orig_pte", "page", "pgoff", "vma")

    def __init__(
        self, vma: "Vma", address: Vaddr, pgoff: Pgoff, flags: int, orig_pte: int = 0
    ) -> None:
        self.vma = vma
        self.address = address
        self.pgoff = pgoff
        self.flags = flags
        self.orig_pte = orig_pte
        self.page: Pfn | None = None
        self.cow_page: Pfn | None = None


MkwriteHook = Callable[[VmFault], FaultResult]


class VmOperations:
    """What a mapped file does for its vmas (struct vm_operations_struct).

    page_mkwrite, pfn_mkwrite: asked before a shared page becomes writable, None where the file does
    not want to know. find_normal_page: the page of a special pte (6.18), None for none.
    """

    page_mkwrite: MkwriteHook | None = None
    pfn_mkwrite: MkwriteHook | None = None
    find_normal_page: "Callable[[Vma, Vaddr], Pfn | None] | None" = None

    def fault(self, vmf: VmFault) -> FaultResult:
        """Map the page, or put it into vmf.page. The default: nothing can be mapped."""
        return FaultResult.SIGBUS

    def open(self, vma: "Vma") -> None:
        """Another vma maps the file: by fork, a split, or mremap; not by mmap itself."""

    def close(self, vma: "Vma") -> None:
        """A vma is gone."""
