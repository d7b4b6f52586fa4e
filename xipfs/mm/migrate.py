"""Moving pages between the tiers: how, not which (that is a policy) nor when (the daemon).

All directions unmap by offset, then copy, then switch, and let the next access fault:

    promote   allocate frames -> zap the ptes -> copy NVRAM into them -> i_pages[pgoff] = frame
    demote    zap the ptes -> nobody else holds the frame? -> write dirty ones back, one fence ->
              del i_pages[pgoff] -> free it
    exchange  demote as far as `del`, then promote another page into the same frame

NVRAM keeps its copy while a clean one is in RAM (a shadow), so demoting moves no byte. A frame
leaves only when the reference of i_pages is the last one, which is looked at after the unmapping:
whoever reached the frame by a pte before is seen in its refcount.

Invariants:
    I1  A page is in one frame or none; that frame's struct page names it (mapping, index).
    I2  With the ptes gone, a frame of i_pages has refcount 1 unless somebody pins it.
    I3  No frame leaves before the fence that makes its page durable.

Pages are given in batches, since the first of a batch costs as much as several more.

Source: mm/migrate.c (migrate_page moves a page only if its references are those expected) and
fs/dax.c dax_layout_busy_page_range ("unmap before checking"); the exchange is Nimble's (Yan et al.,
ASPLOS '19). Differs from Linux: no migration entries; a fault between the steps waits for the
mapping's invalidate_seq.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from operator import ge

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import XipfsError, bug_on
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.lock import atomic_step
from xipfs.mm.machine import Machine
from xipfs.mm.mem_map import PG_DIRTY
from xipfs.mm.page_writeback import write_back_frames
from xipfs.mm.rmap import unmap_mapping_pages
from xipfs.units import PFN_NONE, Pfn

__all__ = [
    "DemoteReason",
    "MigrateStatistics",
    "demote_pages",
    "exchange_pages",
    "promote_pages",
]

_NR_COPY_PAGES_MAX = 64
"""Pages copied by one system call; bounds how long one step takes."""


class DemoteReason(Enum):
    """Why pages go back to NVRAM: the counter that they are added to."""

    KSWAPD = "pgdemote_kswapd"
    DIRECT = "pgdemote_direct"
    PROACTIVE = "pgdemote_proactive"


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
    Holes, pages past the end, and pages that cannot be read are counted as failed.
    """
    pages = pgoffs.tolist()
    bug_on(any(map(ge, pages, pages[1:])), "pages to promote: not sorted", pgoffs=pgoffs)
    nr_migrated = 0
    with mapping.i_rwsem.write(), mapping.invalidate():
        i_pages = mapping.i_pages
        absent = [pgoff for pgoff in pages if pgoff not in i_pages]
        coming, homes = _find_homes(mapping, absent)
        while coming and (frames := machine.mem_map.alloc_pages(len(coming))):
            nr = len(frames)
            nr_migrated += _fill_frames(machine, mapping, coming[:nr], homes[:nr], frames)
            coming, homes = coming[nr:], homes[nr:]
    nr_failed = len(absent) - nr_migrated
    _count(machine, nr_promoted=nr_migrated, nr_failed=nr_failed)
    return MigrateStatistics(nr_migrated, len(pages) - len(absent), nr_failed)


def demote_pages(
    machine: Machine, mapping: AddressSpace, pgoffs: Iterable[int], reason: DemoteReason
) -> MigrateStatistics:
    """Give the RAM frames of file pages back; pages that somebody holds stay.

    pgoffs: none twice.
    """
    pages = list(pgoffs)
    with mapping.i_rwsem.write(), mapping.invalidate():
        resident = sorted(filter(mapping.i_pages.__contains__, pages))
        frames = _isolate_pages(machine, mapping, resident)
        for frame in frames.values():
            machine.mem_map.put_page(frame)
    nr_migrated = len(frames)
    nr_failed = len(resident) - nr_migrated
    _count(machine, nr_demoted=nr_migrated, nr_failed=nr_failed, reason=reason)
    return MigrateStatistics(nr_migrated, len(pages) - len(resident), nr_failed)


def exchange_pages(
    machine: Machine,
    out: tuple[AddressSpace, NDArray[np.int64]],
    into: tuple[AddressSpace, NDArray[np.int64]],
    reason: DemoteReason,
) -> MigrateStatistics:
    """Promote page i of *into* to the frame of page i of *out*, which goes to NVRAM.

    out, into: (file, pgoffs), int64, shape (nr_pairs,), none twice. No free frame is needed.
    A pair fails, and both its pages stay where they are, if the first is busy or not in RAM, or the
    second is in RAM already or a hole. If the second cannot be read, just the first moves.
    Returns: pages of both directions together; of pairs that failed, both as failed.
    """
    (out_mapping, out_pgoffs), (in_mapping, in_pgoffs) = out, into
    victims = dict(zip(in_pgoffs.tolist(), out_pgoffs.tolist(), strict=True))
    is_paired = len(victims) == len(set(victims.values())) == len(in_pgoffs)
    bug_on(not is_paired, "pages to exchange: one twice", out=out_pgoffs, into=in_pgoffs)
    with _moving_both(out_mapping, in_mapping):
        absent = sorted(pgoff for pgoff in victims if pgoff not in in_mapping.i_pages)
        found = zip(*_find_homes(in_mapping, absent), strict=True)
        pairs = [pair for pair in found if victims[pair[0]] in out_mapping.i_pages]
        # They leave i_pages here, before their frames get other bytes: not all readers walk ptes.
        frames = _isolate_pages(machine, out_mapping, sorted(victims[pgoff] for pgoff, _ in pairs))
        pairs = [pair for pair in pairs if victims[pair[0]] in frames]
        coming, homes = [pgoff for pgoff, _ in pairs], [home for _, home in pairs]
        targets = [frames[victims[pgoff]] for pgoff in coming]
        for frame in targets:
            machine.mem_map.set_page_mapping(frame, -1, 0)
        nr_promoted = _fill_frames(machine, in_mapping, coming, homes, targets)
    nr_demoted = len(pairs)
    nr_failed = 2 * len(victims) - nr_demoted - nr_promoted
    machine.vmstat.xip_exchange += nr_promoted
    _count(
        machine,
        nr_promoted=nr_promoted,
        nr_demoted=nr_demoted,
        nr_failed=nr_failed,
        reason=reason,
    )
    return MigrateStatistics(nr_demoted + nr_promoted, 0, nr_failed)


@contextmanager
def _moving_both(*mappings: AddressSpace) -> Iterator[None]:
    """Hold i_rwsem of two files, or of one, and let pages of them change their place.

    In the order of their numbers, so that two callers never wait for each other.
    Source: fs/inode.c lock_two_nondirectories.
    """
    files = sorted(set(mappings), key=lambda mapping: mapping.id)
    with ExitStack() as stack:
        for mapping in files:
            atomic_step("exchange: lock")
            stack.enter_context(mapping.i_rwsem.write())
        for mapping in files:
            stack.enter_context(mapping.invalidate())
        yield


def _isolate_pages(machine: Machine, mapping: AddressSpace, pgoffs: list[int]) -> dict[int, Pfn]:
    """Take pages in RAM out of i_pages: all that nobody holds, once NVRAM has their bytes.

    pgoffs: sorted. Returns: pgoff -> frame, whose last reference is the caller's now.
    """
    mem_map = machine.mem_map
    i_pages = mapping.i_pages
    unmap_mapping_pages(mapping, pgoffs)
    atomic_step("demote: busy?")
    # A look after the unmapping: who reached the frame by a pte holds a reference.
    idle = {pgoff: pfn for pgoff in pgoffs if mem_map.page_count(pfn := i_pages[pgoff]) == 1}
    dirty = [(pgoff, pfn) for pgoff, pfn in idle.items() if mem_map.page_flags(pfn) & PG_DIRTY]
    nr_written = 0
    if dirty:
        for _, pfn in dirty:
            mem_map.clear_page_flags(pfn, PG_DIRTY)
        written = write_back_frames(machine, mapping, dirty)
        for pgoff, _ in dirty:
            if pgoff not in written:
                del idle[pgoff]
        nr_written = len(written)
    for pgoff in idle:
        del i_pages[pgoff]
    machine.vmstat.xip_shadow_hit += len(idle) - nr_written
    return idle


def _fill_frames(
    machine: Machine, mapping: AddressSpace, pgoffs: list[int], homes: list[int], frames: list[Pfn]
) -> int:
    """Unmap pages, copy them from NVRAM *homes* into *frames*, one reference each, and switch.

    Returns: how many pages are in RAM now; frames of those that cannot be read are freed.
    """
    mem_map = machine.mem_map
    unmap_mapping_pages(mapping, pgoffs)
    atomic_step("promote: copy")
    unreadable = _copy_pages(machine, homes, frames)
    atomic_step("promote: switch")
    for i, (pgoff, frame) in enumerate(zip(pgoffs, frames, strict=True)):
        if i in unreadable:
            mem_map.put_page(frame)
        else:
            mem_map.set_page_mapping(frame, mapping.id, pgoff)
            # The caller's reference becomes that of i_pages.
            mapping.i_pages[pgoff] = frame
    return len(frames) - len(unreadable)


def _copy_pages(machine: Machine, homes: list[int], frames: list[Pfn]) -> set[int]:
    """Copy NVRAM frames into RAM frames, as many at a time as lie in a row.

    Returns: the places in the lists of those that cannot be read: a bad page fails alone.
    """
    copy_to_frames = machine.physmem.copy_to_frames
    unreadable: set[int] = set()
    start, end = 0, len(homes)
    while start < end:
        stop = start + 1
        while (
            stop < end and homes[stop] == homes[stop - 1] + 1 and stop - start < _NR_COPY_PAGES_MAX
        ):
            stop += 1
        try:
            copy_to_frames(Pfn(homes[start]), frames[start:stop])
        except XipfsError:
            for i in range(start, stop):
                try:
                    copy_to_frames(Pfn(homes[i]), frames[i : i + 1])
                except XipfsError:
                    unreadable.add(i)
        start = stop
    return unreadable


def _find_homes(mapping: AddressSpace, pgoffs: list[int]) -> tuple[list[int], list[int]]:
    """Return the pages that NVRAM has, and their frames there; drop holes and what cannot be told.

    pgoffs: sorted. Returns: two lists of the same length.
    """
    get_nvram_pfns = mapping.a_ops.get_nvram_pfns
    pages = pgoffs[: bisect_left(pgoffs, mapping.nr_pages)]
    try:
        homes = get_nvram_pfns(mapping, pages)
    except XipfsError:
        homes = []
        for pgoff in pages:
            try:
                homes += get_nvram_pfns(mapping, [pgoff])
            except XipfsError:
                homes.append(PFN_NONE)
    if PFN_NONE in homes:
        pages = [pgoff for pgoff, home in zip(pages, homes, strict=True) if home != PFN_NONE]
        homes = [home for home in homes if home != PFN_NONE]
    return pages, homes


def _count(
    machine: Machine,
    *,
    nr_failed: int,
    nr_promoted: int = 0,
    nr_demoted: int = 0,
    reason: DemoteReason = DemoteReason.KSWAPD,
) -> None:
    vmstat = machine.vmstat
    vmstat.pgpromote_success += nr_promoted
    setattr(vmstat, reason.value, getattr(vmstat, reason.value) + nr_demoted)
    vmstat.pgmigrate_success += nr_promoted + nr_demoted
    vmstat.pgmigrate_fail += nr_failed
