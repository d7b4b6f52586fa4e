"""Every integer that could be mistaken for another has a type and a unit here.

    name      counts                                    example
    Ino       inodes of one image                       1 is the root directory
    Pgoff     pages within a file                       byte 8192 is in page 2
    Block     pages within the image                    block 0 holds the superblock
    Pfn       page frames of the physical address space NVRAM starts at NVRAM_PFN_START
    Paddr     bytes of the physical address space       pfn << PAGE_SHIFT
    Kaddr     bytes, where the kernel reaches a frame   the 1:1 map: equal to Paddr
    Vaddr     bytes of a simulated mm                   inside a vma

Differs from Linux: the kernel map is the identity (as on s390), so `virt_to_pfn` is one shift for
both kinds of memory. NVRAM begins at one fixed, high pfn, never at the end of RAM, since the RAM
tier can change its size while pfns stand in ptes, dumps and traces.
"""

from typing import NewType

__all__ = [
    "NVRAM_PFN_START",
    "PAGE_MASK",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "PFN_NONE",
    "STRUCT_PAGE_SIZE_BYTES",
    "Block",
    "Fh",
    "Ino",
    "Kaddr",
    "Paddr",
    "Pfn",
    "Pgoff",
    "Vaddr",
    "bytes_to_pages",
    "format_size",
    "parse_size",
    "pfn_to_kaddr",
    "virt_to_pfn",
]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1
"""Byte offset within a page: `offset & PAGE_MASK` (the kernel's PAGE_MASK is the complement)."""

NVRAM_PFN_START = 1 << 36
PFN_NONE = -1
"""The only "no pfn" in integer arrays."""

STRUCT_PAGE_SIZE_BYTES = 64
"""sizeof(struct page) on 64-bit Linux in most configurations (Documentation/mm/vmemmap_dedup)."""

Ino = NewType("Ino", int)
Pgoff = NewType("Pgoff", int)
Block = NewType("Block", int)
Pfn = NewType("Pfn", int)
Paddr = NewType("Paddr", int)
Kaddr = NewType("Kaddr", int)
Vaddr = NewType("Vaddr", int)
Fh = NewType("Fh", int)

_SUFFIXES = "KMGTP"


def bytes_to_pages(size_bytes: int) -> int:
    """Return how many pages hold *size_bytes*, the last one perhaps in part.

    >>> bytes_to_pages(0), bytes_to_pages(1), bytes_to_pages(4096), bytes_to_pages(4097)
    (0, 1, 1, 2)
    """
    return (size_bytes + PAGE_MASK) >> PAGE_SHIFT


def pfn_to_kaddr(pfn: Pfn) -> Kaddr:
    """Return where the kernel reaches the first byte of frame *pfn*."""
    return Kaddr(pfn << PAGE_SHIFT)


def virt_to_pfn(kaddr: Kaddr) -> Pfn:
    """Return the frame that *kaddr* lies in.

    >>> virt_to_pfn(pfn_to_kaddr(Pfn(7)))
    7
    """
    return Pfn(kaddr >> PAGE_SHIFT)


def parse_size(text: str) -> int:
    """Read a size in bytes with an optional binary suffix K, M, G, T or P.

    Raises: ValueError, whose text can be shown as it is.

    >>> parse_size("64M"), parse_size("4096"), parse_size("1.5k")
    (67108864, 4096, 1536)
    """
    digits = text.strip().upper().removesuffix("IB").removesuffix("B")
    shift = 0
    if digits and digits[-1] in _SUFFIXES:
        shift = 10 * (_SUFFIXES.index(digits[-1]) + 1)
        digits = digits[:-1]
    try:
        size_bytes = float(digits) * (1 << shift) if "." in digits else int(digits) << shift
        whole = size_bytes == int(size_bytes)
    except (ValueError, OverflowError):
        raise ValueError(f"not a size: {text!r} (use a number with K, M, G, T or P)") from None
    if size_bytes < 0 or not whole:
        raise ValueError(f"not a whole, positive number of bytes: {text!r}")
    return int(size_bytes)


def format_size(size_bytes: int) -> str:
    """Write a size for people, in the unit that leaves one to four digits.

    >>> format_size(0), format_size(65536), format_size(3 << 29)
    ('0 B', '64 KiB', '1.5 GiB')
    """
    amount = float(size_bytes)
    for suffix in ("B", *(f"{s}iB" for s in _SUFFIXES)):
        if amount < 1024 or suffix == "PiB":
            break
        amount /= 1024
    return f"{amount:.4g} {suffix}"
