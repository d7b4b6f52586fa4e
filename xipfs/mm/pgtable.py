"""Page tables: pte words, and leaves of 512 of them that are allocated when touched.

    bit  0  present   a CPU may read through the word
    bit  1  rw        and write
    bit  8  protnone  not present, but only because the area is PROT_NONE; the frame is still mapped
    bit  9  special   no struct page is to be used for it (architectures with the bit only)
    bits 12-51  pfn

Accessed, dirty and heat are byte arrays beside the leaf, never bits of the word: a second thread
that marks an access must not bring back a pte that migration has just cleared.

Source: the bits are those of arch/x86/include/asm/pgtable_types.h.
Differs from Linux: one level of leaves in a dict stands for the upper levels.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.units import PAGE_SHIFT, Pfn, Vaddr

__all__ = [
    "PMD_SHIFT",
    "PTE_NONE",
    "PTE_PRESENT",
    "PTE_PROTNONE",
    "PTE_PROT_MASK",
    "PTE_RW",
    "PTE_SPECIAL",
    "PTRS_PER_PTE",
    "Leaf",
    "PageTable",
    "mk_pte",
    "pte_index",
    "pte_modify",
    "pte_pfn",
    "pte_present",
    "pte_special",
    "pte_write",
]

PTRS_PER_PTE = 512
PMD_SHIFT = PAGE_SHIFT + 9

PTE_NONE = 0
PTE_PRESENT = 1 << 0
PTE_RW = 1 << 1
PTE_PROTNONE = 1 << 8
PTE_SPECIAL = 1 << 9

PTE_PROT_MASK = PTE_PRESENT | PTE_RW | PTE_PROTNONE
"""What mprotect may change: the complement of _PAGE_CHG_MASK, in which the special bit must be."""


def mk_pte(pfn: Pfn, prot: int) -> int:
    """Return a pte word for *pfn* with the bits *prot*, of vm_page_prot and perhaps special."""
    return pfn << PAGE_SHIFT | prot


def pte_modify(pte: int, prot: int) -> int:
    """Return *pte* with the permissions *prot*; pfn and special stay."""
    return pte & ~PTE_PROT_MASK | prot


def pte_present(pte: int) -> bool:
    """Does the word map a frame, perhaps under PROT_NONE?"""
    return bool(pte & (PTE_PRESENT | PTE_PROTNONE))


def pte_write(pte: int) -> bool:
    """May a CPU write through the word?"""
    return bool(pte & PTE_RW)


def pte_special(pte: int) -> bool:
    """Is the special bit set?"""
    return bool(pte & PTE_SPECIAL)


def pte_pfn(pte: int) -> Pfn:
    """Return the frame that a present pte maps."""
    return Pfn(pte >> PAGE_SHIFT)


def pte_index(address: Vaddr) -> int:
    """Return the place of *address* in its leaf."""
    return address >> PAGE_SHIFT & PTRS_PER_PTE - 1


class Leaf:
    """512 ptes and what is known of their use.

    ptes: uint64, shape (512,). words: the same memory, to read and write one word at a time.
    accessed: uint8, shape (512,), 1 since an access (the young bit).
    dirty: uint8, shape (512,), 1 since a write; 0 where no pte is.
    heat: uint8, shape (512,), accesses, saturating; cooled by the tiering daemon.
    *_bytes: the same memory one byte at a time.
    nr_present: ptes that map a frame.
    """

    __slots__ = (
        "accessed",
        "accessed_bytes",
        "dirty",
        "dirty_bytes",
        "heat",
        "heat_bytes",
        "nr_present",
        "ptes",
        "words",
    )

    def __init__(self) -> None:
        self.ptes: NDArray[np.uint64] = np.zeros(PTRS_PER_PTE, np.uint64)
        self.words = self.ptes.data
        self.accessed: NDArray[np.uint8] = np.zeros(PTRS_PER_PTE, np.uint8)
        self.accessed_bytes = self.accessed.data
        self.dirty: NDArray[np.uint8] = np.zeros(PTRS_PER_PTE, np.uint8)
        self.dirty_bytes = self.dirty.data
        self.heat: NDArray[np.uint8] = np.zeros(PTRS_PER_PTE, np.uint8)
        self.heat_bytes = self.heat.data
        self.nr_present = 0

    def set_pte(self, index: int, pte: int, *, dirty: bool = False) -> None:
        """Put *pte* where there is none."""
        self.words[index] = pte
        self.dirty_bytes[index] = dirty
        self.nr_present += 1

    def clear_pte(self, index: int) -> tuple[int, bool]:
        """Take the pte at *index* away (ptep_get_and_clear). Returns: (pte, was it dirty)."""
        pte, dirty = self.words[index], bool(self.dirty_bytes[index])
        self.words[index] = PTE_NONE
        self.dirty_bytes[index] = 0
        self.nr_present -= 1
        return pte, dirty


class PageTable:
    """The leaves of one mm: `leaves[address >> PMD_SHIFT]`.

    nr_leaves_max: page table pages that can be had; None for any number.
    """

    __slots__ = ("leaves", "nr_leaves_max")

    def __init__(self) -> None:
        self.leaves: dict[int, Leaf] = {}
        self.nr_leaves_max: int | None = None

    def pte_alloc(self, address: Vaddr) -> Leaf | None:
        """Return the leaf for *address*, making it if need be; None when there is no memory."""
        leaf = self.leaves.get(address >> PMD_SHIFT)
        if leaf is None:
            if self.nr_leaves_max is not None and len(self.leaves) >= self.nr_leaves_max:
                return None
            leaf = self.leaves[address >> PMD_SHIFT] = Leaf()
        return leaf

    def find_pte(self, address: Vaddr) -> int:
        """Return the pte word for *address*, PTE_NONE where there is no leaf."""
        leaf = self.leaves.get(address >> PMD_SHIFT)
        return leaf.words[pte_index(address)] if leaf is not None else PTE_NONE
