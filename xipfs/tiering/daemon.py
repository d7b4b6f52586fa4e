"""TieringDaemon: one epoch is sample -> policy -> migrate. Synchronous; the mount calls it.

    sample        under the lock: the accesses since the last epoch, and facts about the tiers
    decide        without it: the policy's plan, which may take as long as it likes
    accept        under the lock: what of the plan is possible; refused entries are counted
    migrate_some  under the lock: carry a slice of it out; again until it returns False
    drop_ranges   what the kernel shall forget now, so that we see it used

Pages that a user has pinned are not there for the policy, neither they nor their frames.

A policy can do no harm: what it raises is logged and counted, what it asks for and cannot have is
refused and counted, and the mount goes on, also while it thinks.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.mm.migrate import DemoteReason
from xipfs.mm.vma import Mm
from xipfs.phys.cost import TierFacts
from xipfs.policy.contract import (
    AccessKind,
    Batch,
    PageIds,
    Plan,
    Policy,
    Tier,
    Tiers,
    no_pages,
)
from xipfs.policy.pageset import is_in, page_set
from xipfs.tiering.access_log import AccessLog
from xipfs.tiering.budget import Budget
from xipfs.tiering.filemap_events import NOTHING_TOLD, Told
from xipfs.tiering.mover import Mover, dirty_pages, resident_pages
from xipfs.tiering.sampler import CacheSampler, DropRange

__all__ = [
    "Answer",
    "Epoch",
    "PolicyStatistics",
    "TieringDaemon",
    "decide",
]

_log = logging.getLogger(__name__)

_SLICE_PAGES = 256
"""Pages moved under one hold of the mount's lock: about a millisecond."""

_NR_COOLING_EPOCHS = 8
"""Heat is halved once in so many epochs."""


_NO_FACTS = TierFacts((0, 0), (0.0, 0.0), (0.0, 0.0), 0.0, 0.0)


class Epoch(NamedTuple):
    """What a policy is asked, and which one."""

    policy: Policy
    batch: Batch
    tiers: Tiers


class Answer(NamedTuple):
    """What it said. error: what it raised, or what is wrong with what it gave."""

    epoch: Epoch
    plan: Plan
    error: BaseException | None = None


@dataclass(slots=True)
class PolicyStatistics:
    """What one policy did while it decided.

    errors: epochs in which it raised. nr_asked: entries of its plans. nr_refused: of those, by
    reason. nr_promoted, nr_demoted: pages moved for it; nr_failed: pages that could not be.
    """

    epochs: int = 0
    errors: int = 0
    nr_asked: int = 0
    nr_promoted: int = 0
    nr_demoted: int = 0
    nr_failed: int = 0
    nr_refused: Counter[str] = field(default_factory=Counter)
    last_error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return all of it by name, for JSON."""
        # Not dataclasses.asdict(): of a Counter it makes one that counts pairs.
        facts = {f.name: getattr(self, f.name) for f in fields(self)}
        return facts | {"nr_refused": dict(self.nr_refused)}


class TieringDaemon:
    """Has *mover* move pages of *mm* as *policy* decides.

    sampler: None where the kernel caches nothing, or where nothing is done about it.
    tier_facts: is told how long an epoch was, in ns, and tells what accesses cost in it.
    policies: what each policy did, by its name with its parameters; the last is at work.
    """

    def __init__(
        self,
        mm: Mm,
        mover: Mover,
        log: AccessLog,
        policy: Policy,
        *,
        policy_name: str,
        sampler: CacheSampler | None,
        budget: Budget,
        epoch_ns: int,
        tier_facts: Callable[[int], TierFacts] = lambda _: _NO_FACTS,
        files_change: bool = False,
    ) -> None:
        self._mm = mm
        self._mover = mover
        self._log = log
        self._sampler = sampler
        self._budget = budget
        self._epoch_ns = epoch_ns
        self._tier_facts = tier_facts
        self._files_change = files_change
        self._epoch_start_ns = log.clock()
        self.nr_epochs = 0
        self.nr_ranges_dropped = 0
        self.nr_reads_told = 0
        self._promoted: list[PageIds] = []
        self.policies: dict[str, PolicyStatistics] = {}
        self.set_policy(policy_name, policy)

    def set_policy(self, name: str, policy: Policy) -> None:
        """Let *policy* decide from now on; what is left of the other's plan is not done."""
        self.policy_name = name
        self._policy = policy
        self._plan = Plan()
        # At the end of the dict, also if it has been here before.
        self.policies[name] = self.policies.pop(name, PolicyStatistics())

    @property
    def nr_policy_errors(self) -> int:
        """Epochs in which a policy raised something."""
        return sum(statistics.errors for statistics in self.policies.values())

    @property
    def nr_plan_refused(self) -> int:
        """Entries of plans that could not be as asked."""
        return sum(statistics.nr_refused.total() for statistics in self.policies.values())

    @property
    def _statistics(self) -> PolicyStatistics:
        return self.policies[self.policy_name]

    def see_reads(self) -> None:
        """From now on `sample` is told what the kernel's page cache has answered."""
        if self._sampler is not None:
            self._sampler.see_reads()

    def sample(self, told: Told = NOTHING_TOLD) -> Epoch:
        """Take what was accessed since the last time, and look at the tiers.

        told: what the kernel tells of its page cache, after `see_reads`.
        """
        now_ns = self._log.clock()
        facts = self._tier_facts(now_ns - self._epoch_start_ns)
        self._epoch_start_ns = now_ns
        accesses = self._log.take()
        reads = self._movable(told.reads)
        self.nr_reads_told += len(reads)
        pinned = self._mover.pinned
        resident = resident_pages(self._mm.machine)
        resident = resident[~is_in(resident, pinned)]
        dirty = dirty_pages(self._mm.machine)
        blind = blind_chunks = no_pages()
        latency_ns = np.full(len(accesses.page), -1, np.int64)
        if self._sampler is not None:
            self._sampler.tell(told)
            latency_ns = self._sampler.observe(accesses.page, accesses.time_ns)
            hinted = page_set(accesses.page[latency_ns >= 0])
            self._mm.machine.vmstat.numa_hint_faults += len(hinted)
            blind = self._sampler.blind(resident)
            blind = blind[~is_in(blind, page_set(accesses.page))]
            blind_chunks = self._sampler.blind_chunks(accesses.page)
        batch = Batch(accesses.page, accesses.kind, accesses.tier, latency_ns)
        if self._sampler is not None and self._sampler.sees_reads:
            batch = _with_reads(batch, reads, resident)
            batch = _only(self._sampler.wanted(batch.page, told), batch)
        batch = _only(~is_in(batch.page, pinned), batch)
        nr_in_ram = int(np.count_nonzero(accesses.tier == Tier.RAM))
        tiers = Tiers(
            epoch=self.nr_epochs,
            epoch_ns=self._epoch_ns,
            nr_ram_frames=self._mm.machine.nr_tier_frames - len(pinned),
            nr_free_frames=self._mm.machine.mem_map.nr_free,
            watermarks=self._mm.machine.watermarks,
            budget_pages=self._budget.pages(now_ns),
            resident=resident,
            blind=blind,
            blind_chunks=blind_chunks,
            dirty=dirty[~is_in(dirty, pinned)],
            nr_accesses=(nr_in_ram, len(accesses.page) - nr_in_ram),
            latency_ns=facts.latency_ns,
            occupancy=facts.occupancy,
            promote_ns=facts.promote_ns,
            write_back_ns=facts.write_back_ns,
            is_sampled=self._sampler is not None and not self._sampler.sees_reads,
        )
        self.nr_epochs += 1
        self._cool()
        return Epoch(self._policy, batch, tiers)

    def _movable(self, reads: PageIds) -> PageIds:
        """Return those of *reads* that are of files in memory, and no holes."""
        reads = reads[self._mover.exists(reads)]
        pages = page_set(reads)
        return reads[~is_in(reads, pages[self._mover.is_hole(pages)])]

    def accept(self, answer: Answer) -> None:
        """Keep what of a plan is possible for `migrate_some`; the rest is refused, and counted."""
        if answer.epoch.policy is not self._policy:
            return  # another one took over meanwhile
        statistics = self._statistics
        statistics.epochs += 1
        if answer.error is not None:
            statistics.errors += 1
            statistics.last_error = _describe(answer.error)
            if statistics.errors == 1:
                name = self.policy_name
                _log.error("policy %s failed, nothing is moved", name, exc_info=answer.error)
            return
        plan = answer.plan
        nr_asked = len(plan.promote) + len(plan.demote) + plan.exchange.size
        statistics.nr_asked += nr_asked
        nr_into_free = min(len(plan.promote), answer.epoch.tiers.nr_free_frames)
        vmstat = self._mm.machine.vmstat
        vmstat.pgpromote_candidate_nrl += nr_into_free
        vmstat.pgpromote_candidate += len(plan.promote) - nr_into_free + len(plan.exchange)
        refused: Counter[str] = Counter()
        self._plan = self._possible(plan, answer.epoch.tiers, refused)
        nr_moves = len(self._plan.promote) + len(self._plan.demote) + self._plan.exchange.size
        self._budget.spend(nr_moves)
        if refused and not statistics.nr_refused:
            _log.warning(
                "policy %s: %d of %d entries refused: %s",
                self.policy_name,
                refused.total(),
                nr_asked,
                ", ".join(f"{count} {reason}" for reason, count in refused.items()),
            )
        statistics.nr_refused += refused

    def migrate_some(self) -> bool:
        """Carry out one slice of the plan, in its order; return whether more waits."""
        plan = self._plan
        if len(plan.exchange):
            self._exchange(plan.exchange[:_SLICE_PAGES])
            self._plan = Plan(plan.promote, plan.demote, plan.exchange[_SLICE_PAGES:])
        elif len(plan.demote):
            self._demote(plan.demote[:_SLICE_PAGES])
            self._plan = Plan(plan.promote, plan.demote[_SLICE_PAGES:])
        elif len(plan.promote):
            self._promote(plan.promote[:_SLICE_PAGES])
            self._plan = Plan(plan.promote[_SLICE_PAGES:])
        plan = self._plan
        return bool(len(plan.exchange) or len(plan.demote) or len(plan.promote))

    def drop_ranges(self) -> list[DropRange]:
        """Return what the kernel shall drop from its cache, for the next epoch to see it used."""
        if self._sampler is None:
            return []
        ranges = self._sampler.choose(resident_pages(self._mm.machine), self._log.clock())
        self.nr_ranges_dropped += len(ranges)
        self._mm.machine.vmstat.numa_pte_updates += sum(dropped.nr_pages for dropped in ranges)
        return ranges

    def take_promoted(self) -> list[PageIds]:
        """Return what was to be promoted since the last time, a slice each, sorted."""
        promoted, self._promoted = self._promoted, []
        return promoted

    def run_epoch(self) -> list[DropRange]:
        """Do a whole epoch at once: for tests, and where nobody waits for the lock."""
        self.accept(decide(self.sample()))
        while self.migrate_some():
            pass
        self._promoted = []
        return self.drop_ranges()

    def _possible(self, plan: Plan, tiers: Tiers, refused: Counter[str]) -> Plan:
        """Return the entries that can be carried out, sorted; count the others in *refused*."""
        out, into = plan.exchange[:, 0], plan.exchange[:, 1]
        nr_out, nr_into = len(out), len(into)
        leaving = np.concatenate([out, plan.demote])
        coming = np.concatenate([into, plan.promote])
        leaves = _check({"not in RAM": is_in(leaving, tiers.resident)}, leaving, refused)
        comes = _check(
            {
                "in RAM already": ~is_in(coming, resident_pages(self._mm.machine)),
                "no such page": self._mover.exists(coming),
            },
            coming,
            refused,
        )
        if self._files_change:
            # They were there when the policy heard of them: their files were cut or removed since.
            del refused["no such page"]
        exchange = plan.exchange[leaves[:nr_out] & comes[:nr_into]]
        demote, promote = plan.demote[leaves[nr_out:]], plan.promote[comes[nr_into:]]
        budget = tiers.budget_pages
        exchange = _limit(exchange, budget // 2, "over budget", refused)
        budget -= 2 * len(exchange)
        demote = _limit(demote, budget, "over budget", refused)
        promote = _limit(promote, budget - len(demote), "over budget", refused)
        promote = _limit(promote, tiers.nr_free_frames + len(demote), "no free frame", refused)
        return Plan(np.sort(promote), np.sort(demote), exchange)

    def _exchange(self, pairs: PageIds) -> None:
        vmstat = self._mm.machine.vmstat
        nr_before = vmstat.pgpromote_success
        moved = self._mover.exchange(pairs)
        self._promoted.append(np.sort(pairs[:, 1]))
        nr_promoted = vmstat.pgpromote_success - nr_before
        self._statistics.nr_promoted += nr_promoted
        self._statistics.nr_demoted += moved.nr_migrated - nr_promoted
        self._statistics.nr_failed += moved.nr_failed

    def _demote(self, pages: PageIds) -> None:
        moved = self._mover.demote(pages, DemoteReason.KSWAPD)
        self._statistics.nr_demoted += moved.nr_migrated
        self._statistics.nr_failed += moved.nr_failed

    def _promote(self, pages: PageIds) -> None:
        moved = self._mover.promote(pages)
        self._promoted.append(pages)
        self._statistics.nr_promoted += moved.nr_migrated
        self._statistics.nr_failed += moved.nr_failed

    def _cool(self) -> None:
        """Halve all heat now and then, so that it tells of the last few dozen epochs only."""
        if self.nr_epochs % _NR_COOLING_EPOCHS:
            return
        for leaf in self._mm.page_table.leaves.values():
            leaf.heat >>= 1


def _with_reads(batch: Batch, reads: PageIds, resident: PageIds) -> Batch:
    """Return what came to us, and then the reads that the kernel told of."""
    tier = np.where(is_in(reads, resident), Tier.RAM, Tier.NVRAM).astype(np.uint8)
    return Batch(
        np.concatenate([batch.page, reads]),
        np.concatenate([batch.kind, np.full(len(reads), AccessKind.READ, np.uint8)]),
        np.concatenate([batch.tier, tier]),
        np.concatenate([batch.latency_ns, np.full(len(reads), -1, np.int64)]),
    )


def _only(kept: NDArray[np.bool_], batch: Batch) -> Batch:
    return Batch(batch.page[kept], batch.kind[kept], batch.tier[kept], batch.latency_ns[kept])


def decide(epoch: Epoch) -> Answer:
    """Ask the policy. It is the user's code: whatever it does wrong, the mount goes on."""
    try:
        plan = epoch.policy.decide(epoch.batch, epoch.tiers)
        return Answer(
            epoch,
            Plan(_page_ids(plan.promote), _page_ids(plan.demote), _page_pairs(plan.exchange)),
        )
    except (Exception, SystemExit) as exc:
        return Answer(epoch, Plan(), exc)


def _describe(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())}"


def _page_ids(pages: object) -> PageIds:
    array = np.asarray(pages)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"page ids are a flat array of integers, not {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _page_pairs(pairs: object) -> PageIds:
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] != 2 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"exchanges are pairs of integers, not {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _check(
    conditions: dict[str, NDArray[np.bool_]], pages: PageIds, refused: Counter[str]
) -> NDArray[np.bool_]:
    """Return which pages fulfil all conditions and are not there twice; count the others, once."""
    good = np.ones(len(pages), np.bool_)
    first = np.zeros(len(pages), np.bool_)
    first[np.unique(pages, return_index=True)[1]] = True
    for reason, holds in {**conditions, "twice": first}.items():
        nr_bad = int(np.count_nonzero(good & ~holds))
        if nr_bad:
            refused[reason] += nr_bad
        good &= holds
    return good


def _limit(pages: PageIds, nr_max: int, reason: str, refused: Counter[str]) -> PageIds:
    nr_kept = min(len(pages), max(nr_max, 0))
    if nr_kept < len(pages):
        refused[reason] += (len(pages) - nr_kept) * (pages.ndim)
    return pages[:nr_kept]
