"""get_xip_mem: where a page of a file is, in RAM or in NVRAM. What mm asks of this filesystem.

Source: fs/ext2/xip.c, Linux 2.6.28. Differs from Linux: a page may have moved to RAM, so the
mapping's i_pages is looked at first. A page that is created is durable, zeros and extent, before
anybody maps it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import NoDataError
from xipfs.fs.extentwriter import insert_extent, mark_written
from xipfs.fs.inode import Inode
from xipfs.fs.transaction import Transaction
from xipfs.mm.address_space import AddressSpace
from xipfs.units import (
    NVRAM_PFN_START,
    PAGE_SIZE,
    PFN_NONE,
    Block,
    Ino,
    Kaddr,
    Pfn,
    Pgoff,
    pfn_to_kaddr,
)

__all__ = ["XipOperations", "fill_hole"]

_PFN_NONE = Pfn(PFN_NONE)


class XipOperations:
    """AddressSpaceOperations over the inodes of one image.

    get_inode: Ino -> Inode in memory; the inode of a mapping that is in use is always there.
    begin: begins a transaction, or raises ReadOnlyFsError.
    """

    __slots__ = ("_begin", "_get_inode")

    def __init__(self, get_inode: Callable[[Ino], Inode], begin: Callable[[], Transaction]) -> None:
        self._get_inode = get_inode
        self._begin = begin

    def get_xip_mem(
        self, mapping: AddressSpace, pgoff: Pgoff, *, create: bool
    ) -> tuple[Kaddr, Pfn]:
        """See `mm.address_space.AddressSpaceOperations.get_xip_mem`."""
        frame = mapping.i_pages.get(pgoff)
        if frame is not None:
            return pfn_to_kaddr(frame), _PFN_NONE
        inode = self._get_inode(Ino(mapping.id))
        block = inode.extents.find_block(pgoff)
        if block is None:
            if not create:
                raise NoDataError(f"inode {mapping.id}: no page {pgoff}")
            with self._begin() as tx:
                block = fill_hole(tx, inode, pgoff)
        pfn = Pfn(NVRAM_PFN_START + block)
        return pfn_to_kaddr(pfn), pfn

    def get_xip_pfns(self, mapping: AddressSpace, pgoff: Pgoff, nr_pages: int) -> NDArray[np.int64]:
        """See `mm.address_space.AddressSpaceOperations.get_xip_pfns`."""
        pfns = self._get_inode(Ino(mapping.id)).extents.pfns(pgoff, nr_pages)
        i_pages = mapping.i_pages
        if i_pages:
            if len(i_pages) < nr_pages:
                resident = [p for p in i_pages if pgoff <= p < pgoff + nr_pages]
            else:
                resident = [p for p in range(pgoff, pgoff + nr_pages) if p in i_pages]
            for page in resident:
                pfns[page - pgoff] = i_pages[page]
        return pfns

    def get_nvram_pfns(self, mapping: AddressSpace, pgoffs: Sequence[int]) -> list[int]:
        """See `mm.address_space.AddressSpaceOperations.get_nvram_pfns`."""
        find_block = self._get_inode(Ino(mapping.id)).extents.find_block
        return [
            PFN_NONE if (block := find_block(Pgoff(pgoff))) is None else NVRAM_PFN_START + block
            for pgoff in pgoffs
        ]


def fill_hole(tx: Transaction, inode: Inode, pgoff: Pgoff) -> Block:
    """Put a page of zeros where page *pgoff* of a file is a hole; return it.

    Raises: NoSpaceError, FormatError, DeviceError.
    """
    disk = tx.inode(inode.ino)
    unwritten = inode.extents.find_unwritten(pgoff, 1)
    if unwritten:
        [(_, block, _)] = unwritten
        tx.sb.allocator.check_of_file(block, 1)
        tx.new_page(block, bytes(PAGE_SIZE))
        mark_written(tx, disk, pgoff, 1)
    else:
        [(block, _)] = tx.allocate(1, inode.extents.goal(pgoff))
        tx.new_page(block, bytes(PAGE_SIZE))
        insert_extent(tx, disk, pgoff, block, 1)
    return block
