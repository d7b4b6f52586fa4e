"""TieringDaemon: one epoch is sample -> policy -> migrate. Synchronous; the mount calls it.

    begin_epoch   the accesses since the last one and facts about the tiers go to the policy; its
                  plan is checked, refused entries are counted
    migrate_some  carry a slice of the plan out; again until it returns False
    drop_ranges   what the kernel shall forget now, so that we see it used

A policy can do no harm: what it raises is logged and counted, what it asks for and cannot have is
refused and counted, and the mount goes on.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xipfs.mm.address_space import AddressSpace
from xipfs.mm.machine import Machine
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.vma import Mm
from xipfs.policy.contract import (
    PGOFF_BITS,
    Batch,
    PageIds,
    Plan,
    Policy,
    Tier,
    Tiers,
    no_pages,
    page_id_parts,
)
from xipfs.policy.pageset import is_in, page_set
from xipfs.tiering.access_log import AccessLog
from xipfs.tiering.sampler import CacheSampler, DropRange

__all__ = ["TieringDaemon", "TieringStatistics", "resident_pages"]

_log = logging.getLogger(__name__)

_SLICE_PAGES = 256
"""Pages moved under one hold of the mount's lock: under a millisecond."""

_NR_COOLING_EPOCHS = 8
"""Heat is halved once in so many epochs."""


@dataclass(slots=True)
class TieringStatistics:
    """Counts since the mount. plan_refused: entries of plans that could not be as asked."""

    epochs: int = 0
    policy_errors: int = 0
    plan_refused: int = 0
    ranges_dropped: int = 0


class TieringDaemon:
    """Moves pages of *mm*'s machine as *policy* decides.

    find_mapping: file number -> its AddressSpace if the file is in memory.
    mapping_emptied: told of each file whose last page left RAM.
    sampler: None where the kernel caches nothing, or where nothing is done about it.
    """

    def __init__(
        self,
        mm: Mm,
        log: AccessLog,
        policy: Policy,
        *,
        policy_name: str,
        sampler: CacheSampler | None,
        budget_pages: int,
        epoch_ns: int,
        find_mapping: Callable[[int], AddressSpace | None],
        mapping_emptied: Callable[[AddressSpace], object],
    ) -> None:
        self._mm = mm
        self._machine: Machine = mm.machine
        self._log = log
        self._policy = policy
        self.policy_name = policy_name
        self._sampler = sampler
        self._budget_pages = budget_pages
        self._epoch_ns = epoch_ns
        self._find_mapping = find_mapping
        self._mapping_emptied = mapping_emptied
        self._plan = Plan()
        self.statistics = TieringStatistics()

    def begin_epoch(self) -> None:
        """Ask the policy; keep its plan, as far as it is possible, for `migrate_some`."""
        accesses = self._log.take()
        resident = resident_pages(self._machine)
        blind = no_pages()
        latency_ns = np.full(len(accesses.page), -1, np.int64)
        if self._sampler is not None:
            latency_ns = self._sampler.observe(accesses.page, accesses.time_ns)
            blind = self._sampler.blind(resident)
            blind = blind[~is_in(blind, page_set(accesses.page))]
        in_ram = is_in(accesses.page, resident)
        batch = Batch(
            page=accesses.page,
            kind=accesses.kind,
            tier=np.where(in_ram, Tier.RAM, Tier.NVRAM).astype(np.uint8),
            latency_ns=latency_ns,
        )
        tiers = Tiers(
            epoch=self.statistics.epochs,
            nr_ram_frames=self._machine.nr_tier_frames,
            nr_free_frames=self._machine.mem_map.nr_free,
            budget_pages=self._budget_pages,
            epoch_ns=self._epoch_ns,
            resident=resident,
            blind=blind,
        )
        self.statistics.epochs += 1
        self._cool()
        self._plan = self._decide(batch, tiers)

    def migrate_some(self) -> bool:
        """Carry out one slice of the plan, demotions first; return whether more waits."""
        plan = self._plan
        if len(plan.demote):
            for mapping, pgoffs in self._by_mapping(plan.demote[:_SLICE_PAGES]):
                demote_pages(self._machine, mapping, pgoffs.tolist(), DemoteReason.KSWAPD)
                if not mapping.i_pages:
                    self._mapping_emptied(mapping)
            self._plan = Plan(plan.promote, plan.demote[_SLICE_PAGES:])
        elif len(plan.promote):
            for mapping, pgoffs in self._by_mapping(plan.promote[:_SLICE_PAGES]):
                promote_pages(self._machine, mapping, pgoffs)
            self._plan = Plan(plan.promote[_SLICE_PAGES:], plan.demote)
        return bool(len(self._plan.demote) or len(self._plan.promote))

    def drop_ranges(self) -> list[DropRange]:
        """Return what the kernel shall drop from its cache, for the next epoch to see it used."""
        if self._sampler is None:
            return []
        ranges = self._sampler.choose(resident_pages(self._machine), self._log.clock())
        self.statistics.ranges_dropped += len(ranges)
        return ranges

    def run_epoch(self) -> list[DropRange]:
        """Do a whole epoch at once: for tests, and where nobody waits for the lock."""
        self.begin_epoch()
        while self.migrate_some():
            pass
        return self.drop_ranges()

    def _decide(self, batch: Batch, tiers: Tiers) -> Plan:
        try:
            plan = self._policy.decide(batch, tiers)
            demote = _page_ids(plan.demote)
            promote = _page_ids(plan.promote)
        except (Exception, SystemExit):
            # The user's code: whatever it does wrong, the mount goes on.
            self.statistics.policy_errors += 1
            if self.statistics.policy_errors == 1:
                _log.exception("policy %s failed, nothing is moved", self.policy_name)
            return Plan()
        self._machine.vmstat.pgpromote_candidate += len(promote)
        nr_asked = len(demote) + len(promote)
        demote = _once(demote[is_in(demote, tiers.resident)])[: tiers.budget_pages]
        room = min(tiers.nr_free_frames + len(demote), tiers.budget_pages - len(demote))
        promote = promote[~is_in(promote, tiers.resident) & self._exists(promote)]
        promote = np.sort(_once(promote)[:room])
        nr_refused = nr_asked - len(demote) - len(promote)
        if nr_refused and not self.statistics.plan_refused:
            _log.warning(
                "policy %s: %d of %d entries refused: no such page, in that tier already, "
                "twice, or more than there is room for",
                self.policy_name,
                nr_refused,
                nr_asked,
            )
        self.statistics.plan_refused += nr_refused
        return Plan(promote, np.sort(demote))

    def _exists(self, pages: PageIds) -> NDArray[np.bool_]:
        mapping_ids, pgoffs = page_id_parts(pages)
        nr_pages = {}
        for mapping_id in page_set(mapping_ids).tolist():
            mapping = self._find_mapping(mapping_id)
            nr_pages[mapping_id] = mapping.nr_pages if mapping is not None else 0
        limits = np.fromiter((nr_pages[m] for m in mapping_ids.tolist()), np.int64, len(pages))
        return pgoffs < limits

    def _by_mapping(self, pages: PageIds) -> list[tuple[AddressSpace, PageIds]]:
        """Group sorted page ids by file; files that went away since are left out."""
        mapping_ids, pgoffs = page_id_parts(pages)
        groups = []
        for mapping_id in page_set(mapping_ids).tolist():
            mapping = self._find_mapping(mapping_id)
            if mapping is not None:
                groups.append((mapping, pgoffs[mapping_ids == mapping_id]))
        return groups

    def _cool(self) -> None:
        """Halve all heat now and then, so that it tells of the last few dozen epochs only."""
        if self.statistics.epochs % _NR_COOLING_EPOCHS:
            return
        for leaf in self._mm.page_table.leaves.values():
            leaf.heat >>= 1


def resident_pages(machine: Machine) -> PageIds:
    """Return the ids of all pages in RAM frames, sorted; a copy."""
    mem_map = machine.mem_map
    frames = np.flatnonzero(mem_map.mapping >= 0)
    return np.sort(mem_map.mapping[frames] << PGOFF_BITS | mem_map.index[frames])


def _page_ids(pages: object) -> PageIds:
    array = np.asarray(pages)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"page ids are a flat array of integers, not {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _once(pages: PageIds) -> PageIds:
    """Drop repetitions, keeping the order."""
    return pages[np.sort(np.unique(pages, return_index=True)[1])]
