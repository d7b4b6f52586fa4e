"""Truncation: what lies past the new end leaves all page tables before it is freed.

Source: mm/truncate.c truncate_pagecache; mm/memory.c vmtruncate, 2.6.28.
"""

from xipfs.mm.address_space import AddressSpace
from xipfs.mm.filemap_xip import xip_truncate_page
from xipfs.mm.lock import atomic_step
from xipfs.mm.machine import Machine
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.units import Pgoff, bytes_to_pages

__all__ = ["truncate_setsize"]


def truncate_setsize(machine: Machine, mapping: AddressSpace, size_bytes: int) -> None:
    """Set the size of *mapping*; pages past it leave all page tables, private copies included.

    Afterwards the filesystem may free their blocks: no pte leads there, and faults end in SIGBUS.
    RAM frames past the end go without being written back; one that is pinned lives on, as nobody's
    page, until its pin is gone.

    Raises: XipfsError when the last page cannot be zeroed beyond the new end; nothing is done then.
    """
    with mapping.i_rwsem.write():
        if size_bytes < mapping.i_size_bytes:
            xip_truncate_page(machine, mapping, size_bytes)
        end = mapping.nr_pages
        with mapping.invalidate():
            mapping.i_size_bytes = size_bytes
            start = bytes_to_pages(size_bytes)
            atomic_step("truncate: unmap")
            if start < end:
                unmap_mapping_range(mapping, Pgoff(start), end - start, even_cows=True)
            atomic_step("truncate: free")
            for pgoff in [pgoff for pgoff in mapping.i_pages if pgoff >= start]:
                pfn = mapping.i_pages.pop(pgoff)
                machine.mem_map.mapping[pfn] = -1
                machine.mem_map.put_page(pfn)
                machine.vmstat.xip_truncate += 1
