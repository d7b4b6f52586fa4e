"""Page tables: pte words, and leaves of 512 of them that are allocated when touched.

    bit  0  present   the word maps a frame
    bit  9  special   no struct page is to be used for it (architectures with the bit only)
    bits 12-51  pfn

Write permission comes with the first writer. Accessed, dirty and heat are byte arrays beside the
leaf, never bits of the word: a second thread that marks an access must not bring back a pte that
migration has just cleared.

Differs from Linux: one level of leaves in a dict stands for the upper levels.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.units import PAGE_SHIFT, Pfn, Vaddr

__all__ = [
    "PMD_SHIFT",
    "PTE_NONE",
    "PTE_PRESENT",
    "PTE_SPECIAL",
    "PTRS_PER_PTE",
    "Leaf",
    "PageTable",
    "mk_pte",
    "pte_index",
    "pte_pfn",
    "pte_present",
    "pte_special",
]

PTRS_PER_PTE = 512
PMD_SHIFT = PAGE_SHIFT + 9

PTE_NONE = 0
PTE_PRESENT = 1 << 0
PTE_SPECIAL = 1 << 9


def mk_pte(pfn: Pfn, flags: int) -> int:
    """Return a present pte word for *pfn*."""
    return pfn << PAGE_SHIFT | PTE_PRESENT | flags


def pte_present(pte: int) -> bool:
    """Does the word map a frame?"""
    return bool(pte & PTE_PRESENT)


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
    heat: uint8, shape (512,), accesses, saturating; cooled by the tiering daemon.
    *_bytes: the same memory one byte at a time.
    nr_present: ptes that are present.
    """

    __slots__ = (
        "accessed",
        "accessed_bytes",
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
        self.heat: NDArray[np.uint8] = np.zeros(PTRS_PER_PTE, np.uint8)
        self.heat_bytes = self.heat.data
        self.nr_present = 0


class PageTable:
    """The leaves of one mm: `leaves[address >> PMD_SHIFT]`."""

    __slots__ = ("leaves",)

    def __init__(self) -> None:
        self.leaves: dict[int, Leaf] = {}

    def pte_alloc(self, address: Vaddr) -> Leaf:
        """Return the leaf for *address*, making it if it is not there."""
        leaf = self.leaves.get(address >> PMD_SHIFT)
        if leaf is None:
            leaf = self.leaves[address >> PMD_SHIFT] = Leaf()
        return leaf

    def find_pte(self, address: Vaddr) -> int:
        """Return the pte word for *address*, PTE_NONE where there is no leaf."""
        leaf = self.leaves.get(address >> PMD_SHIFT)
        return leaf.words[pte_index(address)] if leaf is not None else PTE_NONE
