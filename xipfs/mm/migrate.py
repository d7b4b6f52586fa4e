"""Moving pages between the tiers: how, not which (that is a policy) nor when (the daemon).

Both directions unmap by offset, then copy, then switch, and let the next access fault:

    promote   allocate a frame -> zap the ptes -> copy NVRAM into it -> i_pages[pgoff] = frame
    demote    zap the ptes -> nobody else holds the frame? -> write it back if dirty ->
              del i_pages[pgoff] -> free it

NVRAM keeps its copy while a clean one is in RAM (a shadow), so demoting moves no byte. A frame
leaves only when the reference of i_pages is the last one, which is looked at after the unmapping:
whoever reached the frame by a pte before is seen in its refcount.

Invariants:
    I1  A page is in one frame or none; that frame's struct page names it (mapping, index).
    I2  With the ptes gone, a frame of i_pages has refcount 1 unless somebody pins it.

A frame that was written to goes back with its bytes: NVRAM gets them first.

Source: mm/migrate.c (migrate_page moves a page only if its references are those expected) and
fs/dax.c dax_layout_busy_page_range ("unmap before checking"). Differs from Linux: no migration
entries; a fault between the steps waits for the mapping's invalidate_seq.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import XipfsError, bug_on
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.lock import atomic_step
from xipfs.mm.machine import Machine
from xipfs.mm.mem_map import PG_DIRTY
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.units import PFN_NONE, Pfn, Pgoff

__all__ = ["DemoteReason", "MigrateStatistics", "demote_pages", "promote_pages"]

_log = logging.getLogger(__name__)

_NR_COPY_PAGES_MAX = 64
"""Pages copied by one system call; bounds how long one step takes."""


class DemoteReason(Enum):
    """Why pages go back to NVRAM: the counter that they are added to."""

    KSWAPD = "pgdemote_kswapd"
    DIRECT = "pgdemote_direct"


@dataclass(frozen=True, slots=True)
class MigrateStatistics:
    """What became of a request, in pages.

    nr_resident: were where they should go. nr_failed: holes, no free frame, unreadable, busy.
    """

    nr_migrated: int = 0
    nr_resident: int = 0
    nr_failed: int = 0

    def __add__(self, other: "MigrateStatistics") -> "MigrateStatistics":
        return MigrateStatistics(
            self.nr_migrated + other.nr_migrated,
            self.nr_resident + other.nr_resident,
            self.nr_failed + other.nr_failed,
        )


def promote_pages(
    machine: Machine, mapping: AddressSpace, pgoffs: NDArray[np.int64]
) -> MigrateStatistics:
    """Copy file pages into RAM frames, as far as there are free ones.

    pgoffs: int64, shape (nr_pages,), sorted, none twice.
    Holes, pages past the end, and pages that cannot be read, or would be copied together with such
    a one, are counted as failed.
    """
    bug_on(bool((np.diff(pgoffs) <= 0).any()), "pages to promote: not sorted", pgoffs=pgoffs)
    moved: list[int] = []
    frames: list[Pfn] = []
    with mapping.i_rwsem.write(), mapping.invalidate():
        absent = [pgoff for pgoff in pgoffs.tolist() if pgoff not in mapping.i_pages]
        for file_run in _file_runs(absent):
            for start, nr_pages, pfn in _nvram_runs(mapping, file_run):
                run_frames = _copy_run(machine, mapping, start, nr_pages, pfn)
                moved += range(start, start + len(run_frames))
                frames += run_frames
        atomic_step("promote: switch")
        machine.mem_map.mapping[frames] = mapping.id
        machine.mem_map.index[frames] = moved
        # The references of alloc_page become those of i_pages.
        mapping.i_pages.update(zip(moved, frames, strict=True))
    nr_resident = len(pgoffs) - len(absent)
    nr_migrated = len(moved)
    nr_failed = len(absent) - nr_migrated
    vmstat = machine.vmstat
    vmstat.pgpromote_success += nr_migrated
    vmstat.pgmigrate_success += nr_migrated
    vmstat.pgmigrate_fail += nr_failed
    return MigrateStatistics(nr_migrated, nr_resident, nr_failed)


def demote_pages(
    machine: Machine, mapping: AddressSpace, pgoffs: Iterable[int], reason: DemoteReason
) -> MigrateStatistics:
    """Give the RAM frames of file pages back; pages that somebody holds stay.

    pgoffs: none twice.
    """
    pages = list(pgoffs)
    nr_migrated = nr_clean = 0
    with mapping.i_rwsem.write(), mapping.invalidate():
        i_pages = mapping.i_pages
        resident = {pgoff: pfn for pgoff in pages if (pfn := i_pages.get(pgoff)) is not None}
        for start, nr_pages in _file_runs(list(resident)):
            unmap_mapping_range(mapping, start, nr_pages, even_cows=False)
        atomic_step("demote: busy?")
        for pgoff, pfn in resident.items():
            # A look after the unmapping: who reached the frame by a pte holds a reference.
            if machine.mem_map.page_count(pfn) == 1:
                dirty = bool(machine.mem_map.page_flags(pfn) & PG_DIRTY)
                if _release_frame(machine, mapping, Pgoff(pgoff), pfn, write_back=dirty):
                    nr_migrated += 1
                    nr_clean += not dirty
    nr_failed = len(resident) - nr_migrated
    vmstat = machine.vmstat
    setattr(vmstat, reason.value, getattr(vmstat, reason.value) + nr_migrated)
    vmstat.xip_shadow_hit += nr_clean
    vmstat.pgmigrate_success += nr_migrated
    vmstat.pgmigrate_fail += nr_failed
    return MigrateStatistics(nr_migrated, len(pages) - len(resident), nr_failed)


def _release_frame(
    machine: Machine, mapping: AddressSpace, pgoff: Pgoff, pfn: Pfn, *, write_back: bool
) -> bool:
    """Let NVRAM have page *pgoff* again. Returns: False if its bytes cannot be written there."""
    del mapping.i_pages[pgoff]
    if write_back:
        try:
            _, home = mapping.a_ops.get_xip_mem(mapping, pgoff, create=False)
            machine.physmem.copy_from_frame(pfn, home)
        except XipfsError as exc:
            # Its text, since the exception holds on to views of memory.
            _log.error("page %d of file %d stays in RAM: %s", pgoff, mapping.id, str(exc))
            mapping.i_pages[pgoff] = pfn
            return False
    machine.mem_map.put_page(pfn)
    return True


def _copy_run(
    machine: Machine, mapping: AddressSpace, pgoff: Pgoff, nr_pages: int, pfn: Pfn
) -> list[Pfn]:
    """Unmap and copy pages that are consecutive in the file and in NVRAM; return their frames.

    Fewer frames than pages when there are no more; none when the pages cannot be read.
    """
    mem_map = machine.mem_map
    frames: list[Pfn] = []
    while len(frames) < nr_pages and (frame := mem_map.alloc_page()) is not None:
        frames.append(frame)
    if not frames:
        return []
    unmap_mapping_range(mapping, pgoff, len(frames), even_cows=False)
    atomic_step("promote: copy")
    try:
        machine.physmem.copy_to_frames(pfn, frames)
    except XipfsError:
        for frame in frames:
            mem_map.put_page(frame)
        return []
    return frames


def _file_runs(pgoffs: list[int]) -> Iterator[tuple[Pgoff, int]]:
    """Cut page offsets into (first, number) of consecutive ones, at most a copy long."""
    start = 0
    for i in range(1, len(pgoffs) + 1):
        if i == len(pgoffs) or pgoffs[i] != pgoffs[i - 1] + 1 or i - start == _NR_COPY_PAGES_MAX:
            yield Pgoff(pgoffs[start]), i - start
            start = i


def _nvram_runs(mapping: AddressSpace, run: tuple[Pgoff, int]) -> Iterator[tuple[Pgoff, int, Pfn]]:
    """Cut a run of file pages into (pgoff, number, first pfn) of consecutive frames; drop holes."""
    pgoff, nr_pages = run
    nr_pages = min(nr_pages, mapping.nr_pages - pgoff)
    if nr_pages <= 0:
        return
    if nr_pages == 1:  # scattered pages are common, and need no array
        with contextlib.suppress(XipfsError):
            yield pgoff, 1, mapping.a_ops.get_xip_mem(mapping, pgoff, create=False)[1]
        return
    try:
        pfns = mapping.a_ops.get_xip_pfns(mapping, pgoff, nr_pages)
    except XipfsError:
        return
    breaks = np.flatnonzero(np.diff(pfns) != 1) + 1
    starts = [0, *breaks.tolist()]
    for start, end in zip(starts, [*starts[1:], nr_pages], strict=True):
        if pfns[start] != PFN_NONE:
            yield Pgoff(pgoff + start), end - start, Pfn(int(pfns[start]))
