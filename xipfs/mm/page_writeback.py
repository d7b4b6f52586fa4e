"""Write-back: the bytes of dirty frames become NVRAM's, and durable; the pages stay in RAM.

    dirty --(no pte may write unseen, PG_dirty off, PG_writeback on)--> under write-back
          --(copy, flush; one fence for all; PG_writeback off)--------> clean, a shadow again

A page is dirty if PG_dirty is set, or a pte of it is dirty. Both are cleared before the copy, so a
store that comes later makes the page dirty anew, whatever of it the copy has got. What cannot be
written is dirty again, and stays in RAM.

Source: mm/page-writeback.c clear_page_dirty_for_io, mm/rmap.c page_mkclean; fs/dax.c
dax_writeback_one, 6.1. Differs from Linux: a page whose write-back failed stays dirty.
"""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from xipfs.errors import NoDataError, XipfsError
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.lock import atomic_step, wait_for
from xipfs.mm.machine import Machine
from xipfs.mm.mem_map import PG_DIRTY, PG_WRITEBACK
from xipfs.mm.rmap import page_mkclean
from xipfs.mm.vma import VM_MAYWRITE, VM_WRITE
from xipfs.units import PFN_NONE, Pfn, Pgoff

__all__ = ["WritebackStatistics", "find_dirty_pages", "write_back_frames", "writeback_pages"]

_log = logging.getLogger(__name__)


class WritebackStatistics(NamedTuple):
    """What became of a request, in pages.

    nr_clean: were so, or are not in RAM. nr_failed: are dirty still.
    """

    nr_written: int
    nr_clean: int
    nr_failed: int


def find_dirty_pages(machine: Machine, mapping: AddressSpace) -> list[int]:
    """Return which pages of *mapping* may hold in RAM what NVRAM has not; no dirty one is missed.

    All that are in RAM, if somebody may write through ptes: those know then, and not the flags.
    """
    if any(vma.vm_flags & (VM_WRITE | VM_MAYWRITE) for vma in mapping.i_mmap):
        return list(mapping.i_pages)
    if not mapping.i_pages:
        return []
    # One look at all flags, a byte a frame, is less than one at each of the file's pages.
    mem_map = machine.mem_map
    frames = np.flatnonzero(mem_map.flags & (PG_DIRTY | PG_WRITEBACK))
    pgoffs: list[int] = mem_map.index[frames[mem_map.mapping[frames] == mapping.id]].tolist()
    return pgoffs


def writeback_pages(
    machine: Machine, mapping: AddressSpace, pgoffs: Iterable[int]
) -> WritebackStatistics:
    """Bring what NVRAM does not have of these pages there, durably, and let them stay in RAM.

    pgoffs: none twice. Every store from before the call is durable then, but for failed pages.
    """
    mem_map = machine.mem_map
    pages = sorted(pgoffs)
    # For reading: stores go on meanwhile, but no page moves and none is freed.
    with mapping.i_rwsem.read():
        frames = {pgoff: pfn for pgoff in pages if (pfn := mapping.i_pages.get(pgoff)) is not None}
        wait_for(
            "PG_writeback",
            lambda: not any(mem_map.page_flags(pfn) & PG_WRITEBACK for pfn in frames.values()),
        )
        dirty = [
            (pgoff, pfn)
            for pgoff, pfn in frames.items()
            if _clear_page_dirty_for_io(machine, mapping, Pgoff(pgoff), pfn)
        ]
        written = write_back_frames(machine, mapping, dirty)
    return WritebackStatistics(len(written), len(pages) - len(dirty), len(dirty) - len(written))


def write_back_frames(
    machine: Machine, mapping: AddressSpace, pages: Iterable[tuple[int, Pfn]]
) -> set[int]:
    """Copy RAM frames to where NVRAM keeps their pages: all are copied and flushed, then one fence.

    pages: (pgoff, frame). The caller has cleared PG_dirty, has seen to it that a store from now on
           sets it, and that nothing of the file moves.
    Returns: the pgoffs that are durable now; the others' frames are dirty again.
    """
    mem_map = machine.mem_map
    vmstat = machine.vmstat
    pages = list(pages)
    if not pages:
        return set()
    for _, frame in pages:
        mem_map.set_page_flags(frame, PG_WRITEBACK)
    written: set[int] = set()
    for pgoff, frame in pages:
        atomic_step("write back: copy")
        try:
            machine.physmem.copy_from_frame(frame, _find_home(mapping, pgoff))
            written.add(pgoff)
        except XipfsError as exc:
            # Its text, since the exception holds on to views of memory.
            _log.error("page %d of file %d stays in RAM: %s", pgoff, mapping.id, str(exc))
            mem_map.set_page_dirty(frame)
    atomic_step("write back: fence")
    machine.physmem.nvram.fence()
    for _, frame in pages:
        mem_map.clear_page_flags(frame, PG_WRITEBACK)
    vmstat.xip_writeback += len(written)
    vmstat.xip_writeback_fail += len(pages) - len(written)
    return written


def _clear_page_dirty_for_io(
    machine: Machine, mapping: AddressSpace, pgoff: Pgoff, pfn: Pfn
) -> bool:
    """Return whether the page was dirty; it is not any more. Source: clear_page_dirty_for_io.

    One step with the setting of PG_writeback, for which Linux holds the page lock: another caller
    finds the page dirty, or under write-back.
    """
    mem_map = machine.mem_map
    if page_mkclean(mapping, pgoff, pfn):
        mem_map.set_page_dirty(pfn)
    is_dirty = bool(mem_map.page_flags(pfn) & PG_DIRTY)
    mem_map.clear_page_flags(pfn, PG_DIRTY)
    return is_dirty


def _find_home(mapping: AddressSpace, pgoff: int) -> Pfn:
    pfn = mapping.a_ops.get_nvram_pfns(mapping, [pgoff])[0]
    if pfn == PFN_NONE:
        raise NoDataError(f"no page of NVRAM keeps page {pgoff} of file {mapping.id}")
    return Pfn(pfn)
