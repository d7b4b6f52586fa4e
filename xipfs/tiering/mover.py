"""Mover: pages by their ids, whatever file they are of; and pages that a user has pinned.

    moved = mover.promote(pages)        policies and users move pages by the same calls
    mover.pin(pages)                    they stay in RAM, and the policy never hears of them

`mm.migrate` knows how to move pages of one file; this knows which file a page id is of.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from xipfs.mm.address_space import AddressSpace
from xipfs.mm.machine import Machine
from xipfs.mm.mem_map import PG_DIRTY
from xipfs.mm.memory_hotplug import offline_pages, online_pages
from xipfs.mm.migrate import (
    DemoteReason,
    MigrateStatistics,
    demote_pages,
    exchange_pages,
    promote_pages,
)
from xipfs.mm.pgtable import PMD_SHIFT, PTRS_PER_PTE, pte_index
from xipfs.policy.contract import PGOFF_BITS, PageIds, no_pages, page_id_parts
from xipfs.policy.pageset import is_in, page_set
from xipfs.units import PFN_NONE, Pgoff

__all__ = ["Mover", "dirty_pages", "page_heat", "resident_pages"]


class Mover:
    """Moves pages of *machine*. Arguments are page ids, sorted and none twice.

    find_mapping: file number -> its AddressSpace if the file is in memory.
    mapping_emptied: told of each file whose last page left RAM.
    pinned: page ids that stay in RAM, sorted; all of them are there.
    """

    def __init__(
        self,
        machine: Machine,
        find_mapping: Callable[[int], AddressSpace | None],
        mapping_emptied: Callable[[AddressSpace], object],
    ) -> None:
        self.machine = machine
        self._find_mapping = find_mapping
        self._mapping_emptied = mapping_emptied
        self.pinned = no_pages()

    def promote(self, pages: PageIds) -> MigrateStatistics:
        """Promote pages, as far as there are free frames."""
        moved = MigrateStatistics()
        for mapping, pgoffs in self._by_mapping(pages):
            moved += promote_pages(self.machine, mapping, pgoffs)
        return moved

    def demote(self, pages: PageIds, reason: DemoteReason) -> MigrateStatistics:
        """Demote pages; pinned ones stay, and count as failed."""
        is_pinned = is_in(pages, self.pinned)
        moved = MigrateStatistics(nr_failed=int(np.count_nonzero(is_pinned)))
        for mapping, pgoffs in self._by_mapping(pages[~is_pinned]):
            moved += demote_pages(self.machine, mapping, pgoffs.tolist(), reason)
            if not mapping.i_pages:
                self._mapping_emptied(mapping)
        return moved

    def exchange(self, pairs: PageIds) -> MigrateStatistics:
        """Let the first page of each pair leave RAM, and the second take its frame.

        pairs: int64, shape (nr_pairs, 2), no page twice. A pair whose first page is pinned fails.
        """
        is_pinned = is_in(pairs[:, 0], self.pinned)
        moved = MigrateStatistics(nr_failed=2 * int(np.count_nonzero(is_pinned)))
        files, pgoffs = page_id_parts(pairs[~is_pinned])
        for out_id, into_id in np.unique(files, axis=0).tolist():
            out, into = self._find_mapping(out_id), self._find_mapping(into_id)
            if out is not None and into is not None:
                of_both = pgoffs[(files == (out_id, into_id)).all(axis=1)]
                moved += exchange_pages(
                    self.machine,
                    (out, of_both[:, 0]),
                    (into, of_both[:, 1]),
                    DemoteReason.KSWAPD,
                )
                if not out.i_pages:
                    self._mapping_emptied(out)
        return moved

    def resize(self, nr_tier_frames: int, nr_frames_max: int) -> int:
        """Bring the tier nearer to a size, by nr_frames_max frames at most; the coldest pages go.

        Returns: by how many frames it has changed.
        """
        nr_more = min(nr_tier_frames - self.machine.nr_tier_frames, nr_frames_max)
        if nr_more >= 0:
            return online_pages(self.machine, nr_more)
        nr_less = min(-nr_more, nr_frames_max)
        self.make_room(nr_less, spared=no_pages())
        return offline_pages(self.machine, nr_less)

    def make_room(self, nr_frames: int, spared: PageIds) -> None:
        """Demote the coldest pages until nr_frames frames are free, but none of *spared*."""
        nr_missing = nr_frames - self.machine.mem_map.nr_free
        if nr_missing > 0:
            pages = resident_pages(self.machine)
            pages = pages[~is_in(pages, self.pinned) & ~is_in(pages, spared)]
            coldest = np.argsort(self.heat(pages), kind="stable")[:nr_missing]
            self.demote(np.sort(pages[coldest]), DemoteReason.PROACTIVE)

    def pin(self, pages: PageIds) -> None:
        """Let those of *pages* that are in RAM stay there."""
        pages = pages[is_in(pages, resident_pages(self.machine))]
        self.pinned = page_set(np.concatenate([self.pinned, pages]))

    def unpin(self, pages: PageIds) -> None:
        """Let the policy have pages again."""
        self.pinned = self.pinned[~is_in(self.pinned, pages)]

    def exists(self, pages: PageIds) -> NDArray[np.bool_]:
        """Return which of *pages*, in any order, lie in a file that is in memory."""
        mapping_ids, pgoffs = page_id_parts(pages)
        nr_pages = {}
        for mapping_id in page_set(mapping_ids).tolist():
            mapping = self._find_mapping(mapping_id)
            nr_pages[mapping_id] = mapping.nr_pages if mapping is not None else 0
        limits = np.fromiter((nr_pages[m] for m in mapping_ids.tolist()), np.int64, len(pages))
        return pgoffs < limits

    def is_hole(self, pages: PageIds) -> NDArray[np.bool_]:
        """Return which of *pages* (sorted), which exist, are holes: nothing can move those."""
        holes = np.zeros(len(pages), np.bool_)
        mapping_ids, _ = page_id_parts(pages)
        for mapping, pgoffs in self._by_mapping(pages):
            homes = mapping.a_ops.get_nvram_pfns(mapping, pgoffs.tolist())
            holes[mapping_ids == mapping.id] = np.array(homes, np.int64) == PFN_NONE
        return holes

    def heat(self, pages: PageIds) -> NDArray[np.uint8]:
        """Return how often each of *pages* was read of late."""
        heat = np.zeros(len(pages), np.uint8)
        mapping_ids, _ = page_id_parts(pages)
        for mapping, of_mapping in self._by_mapping(pages):
            first = int(of_mapping[0])
            found = page_heat(mapping, first, int(of_mapping[-1]) - first + 1)
            heat[mapping_ids == mapping.id] = found[of_mapping - first]
        return heat

    def _by_mapping(self, pages: PageIds) -> Iterator[tuple[AddressSpace, PageIds]]:
        """Group pages by file, as offsets; files that went away are left out."""
        mapping_ids, pgoffs = page_id_parts(pages)
        for mapping_id in page_set(mapping_ids).tolist():
            mapping = self._find_mapping(mapping_id)
            if mapping is not None:
                yield mapping, pgoffs[mapping_ids == mapping_id]


def resident_pages(machine: Machine) -> PageIds:
    """Return the ids of all pages in RAM frames, sorted; a copy."""
    mem_map = machine.mem_map
    frames = np.flatnonzero(mem_map.mapping >= 0)
    return np.sort(mem_map.mapping[frames] << PGOFF_BITS | mem_map.index[frames])


def dirty_pages(machine: Machine) -> PageIds:
    """Return the ids of the pages in RAM that NVRAM has no valid copy of, sorted; a copy."""
    mem_map = machine.mem_map
    frames = np.flatnonzero((mem_map.mapping >= 0) & (mem_map.flags & PG_DIRTY != 0))
    return np.sort(mem_map.mapping[frames] << PGOFF_BITS | mem_map.index[frames])


def page_heat(mapping: AddressSpace, pgoff: int, nr_pages: int) -> NDArray[np.uint8]:
    """Return how often pages of a file were read of late; uint8, shape (nr_pages,), a copy."""
    heat = np.zeros(nr_pages, np.uint8)
    if not mapping.i_mmap:
        return heat
    vma = mapping.i_mmap[0]
    leaves = vma.vm_mm.page_table.leaves
    done = 0
    while done < nr_pages:
        address = vma.address(Pgoff(pgoff + done))
        index = pte_index(address)
        count = min(nr_pages - done, PTRS_PER_PTE - index)
        leaf = leaves.get(address >> PMD_SHIFT)
        if leaf is not None:
            heat[done : done + count] = leaf.heat[index : index + count]
        done += count
    return heat
