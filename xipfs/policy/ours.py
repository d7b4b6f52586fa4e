"""Moves a page when that is expected to save more time than it costs. No thresholds to tune.

What is known of a page is how often it was used, n, in how long a time of being watched, t. Under
`cache=sampled` these are far apart: a page that the kernel caches is not watched at all, and one
that was dropped is watched until its next use. From both comes the rate

    rate = (n + prior * m) / (t + m)        m: PRIOR_EPOCHS; prior: of all pages together

which is the mean of a Poisson rate with a Gamma prior: little evidence, little said. That a page is
read for the first time is none there: it tells neither how often nor in how long.

The evidence is kept twice, forgotten within MEMORY_SHORT and within MEMORY_LONG epochs in which the
page was watched. Each epoch both foretell the accesses; the one that has done so better of late
gives the rates.

A page in RAM saves rate * (latency of NVRAM - latency of RAM) an epoch, for as long as it stays. So
a page is promoted into a free frame, or swapped for the page with the least rate, if

    (its rate - that of the page that leaves) * saving * horizon  >  cost of the moves

with the latencies and costs of the mount's cost model, under its load. A dirty page that leaves
costs its write-back, a clean one nothing. The horizon is how long pages have stayed of late: frames
by promotions an epoch. The more pages go to and fro, the less is expected of the next.

If RAM is no faster than NVRAM under its load, nothing is promoted.

Source: ours. Weighing cost against benefit with two memories is ARMS's idea (arXiv 2508.04417);
Gamma-Poisson rates are textbook Bayes. Uncertain: the constants, which only simulations of drift,
phases, scans and Zipf have settled; under `cache=sampled`, that uses come at random times.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import CHUNK_SHIFT, Batch, PageIds, Plan, Tier, Tiers
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats

__all__ = ["HORIZON_MAX", "MEMORY_LONG", "MEMORY_SHORT", "PRIOR_EPOCHS", "Policy"]

MEMORY_SHORT = 2.0
"""Epochs after which evidence counts 1/e, in the memory that follows changes. Source: ours."""

MEMORY_LONG = 16.0
"""The same in the memory that sees through noise. Source: ours."""

PRIOR_EPOCHS = 0.1
"""Time of being watched after which a page's own evidence counts half. Source: ours."""

HORIZON_MAX = 64.0
"""Epochs that a page is at most expected to stay: nobody sees further. Source: ours."""

_FORGOTTEN_USES = 0.02
"""A page that is not in RAM and of whose uses no more is remembered is forgotten."""

_SCORE_DECAY = 0.7
"""Of the long memory's lead in foretelling, what is left an epoch later."""


class Policy:
    """State is 24 bytes a page: its id, n and t in both memories."""

    def __init__(
        self,
        *,
        memory_short: float = MEMORY_SHORT,
        memory_long: float = MEMORY_LONG,
        prior_epochs: float = PRIOR_EPOCHS,
        horizon_max: float = HORIZON_MAX,
    ) -> None:
        self._memories = (memory_short, memory_long)
        self._prior_epochs = prior_epochs
        dtype = np.float32
        self._stats = PageStats(uses_0=dtype, time_0=dtype, uses_1=dtype, time_1=dtype)
        self._long_leads = 0.0
        self._horizon_max = horizon_max
        # Promotions an epoch, by frames.
        self._turnover = 1 / memory_long

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Learn from the epoch, then make all moves that pay."""
        uses, time = self._observe(batch, tiers)
        self._learn(uses, time)
        memory = int(self._long_leads >= 0)
        saving_ns = tiers.latency_ns[Tier.NVRAM] - tiers.latency_ns[Tier.RAM]
        horizon = min(1 / self._turnover, self._horizon_max)
        gain_ns = self._rates(memory) * saving_ns * horizon
        plan = self._moves(gain_ns, tiers) if saving_ns > 0 else Plan()
        kept = np.exp(-1 / self._memories[1])
        turnover = len(plan.promote) / max(tiers.nr_ram_frames, 1)
        self._turnover = kept * self._turnover + (1 - kept) * turnover
        self._forget(tiers.resident)
        return plan

    def _observe(self, batch: Batch, tiers: Tiers) -> tuple[NDArray[np.float64], ...]:
        """Return for each row how often its page was used, and how long it was watched, in epochs.

        Adds rows for pages that are new, or came to RAM by others.
        """
        seen, counts = batch.counts()
        timed = batch.latency_ns >= 0
        watched = np.ones(len(seen))
        places = np.searchsorted(seen, batch.page[timed])
        watched[places] = batch.latency_ns[timed] / tiers.epoch_ns
        self._stats.rows(page_set(np.concatenate([seen, tiers.resident])))
        pages = self._stats.pages
        is_resident = is_in(pages, tiers.resident)
        is_blind = np.where(
            is_resident,
            is_in(pages, tiers.blind),
            is_in(pages >> CHUNK_SHIFT, tiers.blind_chunks),
        )
        uses = np.zeros(len(pages))
        time = np.where(is_blind, 0.0, 1.0)
        rows = np.searchsorted(pages, seen)
        if tiers.is_sampled:
            # That a page is read for the first time tells neither how often nor in how long.
            counts = np.zeros_like(counts)
            counts[places] = 1
            watched = np.where(counts > 0, watched, 0.0)
        uses[rows], time[rows] = counts, watched
        return uses, time

    def _learn(self, uses: NDArray[np.float64], time: NDArray[np.float64]) -> None:
        """See which memory foretold the epoch better; add it to both, where pages were watched."""
        scores = []
        for memory, length in enumerate(self._memories):
            rates = self._rates(memory)
            expected = np.maximum(rates * time, 1e-9)
            # The logarithm of the Poisson probability, but for what is the same for both.
            scores.append(float(np.sum(uses * np.log(expected) - expected)))
            # A page that was not watched is not forgotten either: of it there is nothing newer.
            kept = np.where(time > 0, np.exp(-1 / length), 1.0)
            self._stats[f"uses_{memory}"] = self._stats[f"uses_{memory}"] * kept + uses
            self._stats[f"time_{memory}"] = self._stats[f"time_{memory}"] * kept + time
        self._long_leads = _SCORE_DECAY * self._long_leads + scores[1] - scores[0]

    def _rates(self, memory: int) -> NDArray[np.float64]:
        """Return the estimated uses of each page, an epoch."""
        uses = self._stats[f"uses_{memory}"].astype(np.float64)
        time = self._stats[f"time_{memory}"].astype(np.float64)
        prior = uses.sum() / max(time.sum(), 1.0)
        rates: NDArray[np.float64] = (uses + prior * self._prior_epochs) / (
            time + self._prior_epochs
        )
        return rates

    def _moves(self, gain_ns: NDArray[np.float64], tiers: Tiers) -> Plan:
        """Fill free frames with the pages of most gain, then swap for those of least."""
        pages = self._stats.pages
        is_resident = is_in(pages, tiers.resident)
        absent, resident = np.flatnonzero(~is_resident), np.flatnonzero(is_resident)
        coming = absent[np.argsort(-gain_ns[absent], kind="stable")]
        worth_it = gain_ns[coming] > tiers.promote_ns
        nr_free = min(tiers.nr_free_frames, tiers.budget_pages, int(np.count_nonzero(worth_it)))
        promote, coming = coming[:nr_free], coming[nr_free:]
        write_back_ns = np.where(is_in(pages[resident], tiers.dirty), tiers.write_back_ns, 0.0)
        price_ns = gain_ns[resident] + write_back_ns
        order = np.argsort(price_ns, kind="stable")
        nr_pairs = min(len(coming), len(resident), (tiers.budget_pages - nr_free) // 2)
        if nr_free < tiers.nr_free_frames:
            nr_pairs = 0  # nothing more is worth a frame that is free
        coming, leaving = coming[:nr_pairs], order[:nr_pairs]
        # Both are sorted, so what pays comes first.
        pays = gain_ns[coming] - price_ns[leaving] > tiers.promote_ns
        nr_pairs = int(np.count_nonzero(pays))
        return Plan(
            promote=pages[np.concatenate([promote, coming[:nr_pairs]])],
            demote=pages[resident[leaving[:nr_pairs]]],
        )

    def _forget(self, resident: PageIds) -> None:
        remembered = self._stats["uses_1"] >= _FORGOTTEN_USES
        self._stats.keep(remembered | is_in(self._stats.pages, resident))
