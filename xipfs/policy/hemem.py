"""HeMem: counts samples by kind; hot pages wait in a queue and take the frames of cold ones.

A sampled page adds one to its counter of that kind: read in RAM, read in NVRAM, write. With
HOT_READ reads or HOT_WRITE writes it is hot and goes to the tail of its tier's hot list, else to
that of the cold list. Hot pages in NVRAM are promoted, the longest waiting first: into a free
frame, or into that of the page that is longest on RAM's cold list. If RAM has no cold page,
migration stops: hot pages are never evicted.

Once a counter exceeds COOLING a clock ticks, and every counter is halved for each tick, lazily, at
the page's next sample of that kind; and a sweep goes over the hot lists and moves to the cold list
what has become cold. Two quirks are kept: a sample is judged before its counter is halved, so a
page that slept is judged by what it once was (and thrown out again before it is promoted); and
only the counter of the sampled kind is halved, though the page's clock is set for all.

Differs from HeMem: an epoch counts as one step, of at most COOLING + 1 samples of a kind for each
page, and the clock ticks once in it at most. What HeMem does each round is done for all rounds of
the epoch together; requests that its rings could not take in that time are not made, and come with
the page's next sample. A round that stops for want of a cold page goes on to the sweep (the fork
leaves it out, and a RAM full of idle hot pages never cools). Files begin in NVRAM: there is no new
page to be placed. Pages are of 4 KiB, not of 2 MiB. The next cold page that is `Tiers.blind` is
passed over, as nobody knows whether it is used.
Under `cache=sampled` a page counts by `Batch.rates`, that is by how soon it came back.
Source: Raybuck et al., "HeMem: Scalable Tiered Memory Management for Big Data Applications and
Real NVM", SOSP 2021; cuhk-mass/hemem, src/pebs.c and pebs.h @03c3a06, a fork.
Uncertain: the paper's own values, recalled as 8 reads, 4 writes, cooling at 18.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import AccessKind, Batch, PageIds, Plan, Tier, Tiers
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats
from xipfs.policy.scale import scale_of, scaled
from xipfs.policy.target import nr_to_demote, plan_moves

__all__ = [
    "COLD_RING_REQS",
    "COOLING",
    "COOLING_PAGES",
    "HOT_READ",
    "HOT_RING_REQS",
    "HOT_WRITE",
    "KSWAPD_INTERVAL_MS",
    "MIGRATE_RATE_PAGES",
    "REFERENCE_FRAMES",
    "SCALE",
    "Policy",
]

HOT_READ = 4
"""Sampled reads, of both tiers together, that make a page hot.

Source: pebs.h, HOT_READ_THRESHOLD.
"""

HOT_WRITE = 4
"""Sampled writes that make a page hot. Source: pebs.h, HOT_WRITE_THRESHOLD."""

COOLING = 10
"""A counter above this makes the clock tick. Source: pebs.h, PEBS_COOLING_THRESHOLD."""

COOLING_PAGES = 8192
"""Pages of each hot list that a round's sweep looks at, times `scale`.

Source: pebs.h, COOLING_PAGES.
"""

HOT_RING_REQS = 1 << 20
"""Pages that a round can make hot, times `scale`. Source: pebs.h, HOT_RING_REQS_THRESHOLD."""

COLD_RING_REQS = 128
"""Pages that a round can make cold, times `scale`. Source: pebs.h, COLD_RING_REQS_THRESHOLD."""

MIGRATE_RATE_PAGES = 5120
"""Pages that a round can promote, times `scale`: 10 GiB of 2 MiB.

Source: pebs.h, PEBS_KSWAPD_MIGRATE_RATE.
"""

KSWAPD_INTERVAL_MS = 10
"""Time of a round. Source: pebs.h, PEBS_KSWAPD_INTERVAL."""

SCALE = None
"""Factor for what a round can do; by default RAM's frames by REFERENCE_FRAMES. Source: ours."""

REFERENCE_FRAMES = 98_304
"""RAM for which nothing is scaled: 192 GiB in pages of 2 MiB.

Source: ours, of the paper's machine as recalled.
"""

_KINDS = ("fast_reads", "slow_reads", "writes")

Rows = NDArray[np.int64]


class Policy:
    """Thresholds, lazy halving, and a hot and a cold list for each tier."""

    def __init__(
        self,
        *,
        hot_read: int = HOT_READ,
        hot_write: int = HOT_WRITE,
        cooling: int = COOLING,
        cooling_pages: int = COOLING_PAGES,
        hot_ring_reqs: int = HOT_RING_REQS,
        cold_ring_reqs: int = COLD_RING_REQS,
        migrate_rate_pages: int = MIGRATE_RATE_PAGES,
        kswapd_interval_ms: int = KSWAPD_INTERVAL_MS,
        scale: float | None = SCALE,
    ) -> None:
        self._hot_read = hot_read
        self._hot_write = hot_write
        self._cooling = cooling
        self._cooling_pages = cooling_pages
        self._hot_ring_reqs = hot_ring_reqs
        self._cold_ring_reqs = cold_ring_reqs
        self._migrate_rate_pages = migrate_rate_pages
        self._kswapd_interval_ns = kswapd_interval_ms * 1_000_000
        self._scale = scale
        # turn: the place on the page's list. Without a hot page's flag it is on the cold list.
        self._stats = PageStats(
            fast_reads=np.uint16,
            slow_reads=np.uint16,
            writes=np.uint16,
            clock=np.uint32,
            hot=np.bool_,
            turn=np.int64,
        )
        self._next_turn = 1
        self._clock = 0
        # By tier: the sweep goes on behind the first turn, up to the second.
        self._sweep = [(0, 0), (0, 0)]

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Count, list, promote hot pages for cold ones, sweep."""
        stats = self._stats
        known = stats.find(page_set(np.concatenate([batch.page, tiers.resident])))
        pages = page_set(np.concatenate([batch.page, tiers.resident]))
        rows = stats.rows(pages)
        new = rows[known < 0]
        stats["clock"][new] = self._clock
        self._enqueue(new)
        limit = self._per_epoch(tiers)
        self._count(batch, tiers, limit)
        fast = is_in(stats.pages, tiers.resident)
        promote, victims = self._migrate(tiers, fast, limit(self._migrate_rate_pages))
        plan = plan_moves(stats.pages[promote], stats.pages[victims], tiers)
        self._enqueue(stats.find(plan.promote))
        self._enqueue(victims)
        for tier, there in ((Tier.RAM, fast), (Tier.NVRAM, ~fast)):
            self._sweep_hot(tier, there, limit(self._cooling_pages))
        self._forget(tiers.resident)
        return plan

    def _per_epoch(self, tiers: Tiers) -> "_Limit":
        nr_rounds = max(tiers.epoch_ns // self._kswapd_interval_ns, 1)
        return _Limit(scale_of(self._scale, tiers.nr_ram_frames, REFERENCE_FRAMES), nr_rounds)

    def _count(self, batch: Batch, tiers: Tiers, limit: "_Limit") -> None:
        """Add the samples of the epoch, judge, then halve, in HeMem's order."""
        stats = self._stats
        sampled = []
        for kind, among in zip(_KINDS, _by_kind(batch), strict=True):
            part = Batch(
                batch.page[among], batch.kind[among], batch.tier[among], batch.latency_ns[among]
            )
            pages, rates = part.rates(tiers.epoch_ns)
            rows = stats.find(pages)
            added = np.minimum(rates, self._cooling + 1).astype(np.uint16)
            stats[kind][rows] += added
            sampled.append(rows)
        first_seen = page_set(batch.page)
        rows = stats.find(first_seen)
        hot = self._is_hot(rows, 0)
        was_hot = stats["hot"][rows]
        made_hot = rows[hot & ~was_hot][: limit(self._hot_ring_reqs)]
        made_cold = rows[~hot & was_hot][: limit(self._cold_ring_reqs)]
        stats["hot"][made_hot] = True
        stats["hot"][made_cold] = False
        self._enqueue(made_hot)
        self._enqueue(made_cold)
        exceeded = False
        for kind, kind_rows in zip(_KINDS, sampled, strict=True):
            nr_ticks = np.minimum(self._clock - stats["clock"][kind_rows], 15)
            stats[kind][kind_rows] >>= nr_ticks.astype(np.uint16)
            exceeded = exceeded or bool((stats[kind][kind_rows] > self._cooling).any())
        stats["clock"][rows] = self._clock
        if exceeded:
            self._clock += 1
            # A sweep that is under way goes on to what is on the lists now.
            self._sweep = [(behind, self._next_turn) for behind, _ in self._sweep]

    def _is_hot(self, rows: Rows, nr_ticks: NDArray[np.uint32] | int) -> NDArray[np.bool_]:
        """Return whether *rows* are above a threshold, after nr_ticks halvings."""
        fast, slow, writes = (
            self._stats[kind][rows].astype(np.uint32) >> np.minimum(nr_ticks, 31).astype(np.uint32)
            for kind in _KINDS
        )
        hot: NDArray[np.bool_] = (fast + slow >= self._hot_read) | (writes >= self._hot_write)
        return hot

    def _migrate(self, tiers: Tiers, fast: NDArray[np.bool_], nr_max: int) -> tuple[Rows, Rows]:
        """Return the rows that come, from the head of NVRAM's hot list, and those that go."""
        hot = self._stats["hot"]
        waiting = self._by_turn(np.flatnonzero(hot & ~fast))
        still = self._is_hot(waiting, 0)
        cooled = waiting[~still]
        hot[cooled] = False
        self._enqueue(cooled)
        waiting = waiting[still][:nr_max]
        cold = self._by_turn(np.flatnonzero(fast & ~hot & ~is_in(self._stats.pages, tiers.blind)))
        return waiting, cold[: nr_to_demote(len(waiting), tiers)]

    def _sweep_hot(self, tier: Tier, there: NDArray[np.bool_], nr_max: int) -> None:
        """Look at the next hot pages of a tier, if it has to cool; the cold ones change lists."""
        stats = self._stats
        behind, end = self._sweep[tier]
        turn = stats["turn"]
        rows = self._by_turn(np.flatnonzero(stats["hot"] & there & (turn > behind) & (turn < end)))
        looked_at = rows[:nr_max]
        nr_ticks = np.uint32(self._clock) - stats["clock"][looked_at]
        cooled = looked_at[~self._is_hot(looked_at, nr_ticks)]
        more = len(rows) > nr_max
        self._sweep[tier] = (int(turn[looked_at[-1]]), end) if more else (0, 0)
        stats["hot"][cooled] = False
        self._enqueue(cooled)

    def _forget(self, resident: PageIds) -> None:
        """Forget cold pages of NVRAM that have no sample left."""
        stats = self._stats
        nr_ticks = np.minimum(np.uint32(self._clock) - stats["clock"], 31)
        counts = (stats["fast_reads"] | stats["slow_reads"] | stats["writes"]).astype(np.uint32)
        stats.keep((counts >> nr_ticks > 0) | stats["hot"] | is_in(stats.pages, resident))

    def _by_turn(self, rows: Rows) -> Rows:
        return rows[np.argsort(self._stats["turn"][rows], kind="stable")]

    def _enqueue(self, rows: Rows) -> None:
        """Put *rows* at the end of their lists, in their order."""
        self._stats["turn"][rows] = np.arange(self._next_turn, self._next_turn + len(rows))
        self._next_turn += len(rows)


class _Limit:
    """What all rounds of an epoch can do, of what one can do at full size."""

    def __init__(self, scale: float, nr_rounds: int) -> None:
        self._scale = scale
        self._nr_rounds = nr_rounds

    def __call__(self, per_round: int) -> int:
        return scaled(per_round * self._nr_rounds, self._scale)


def _by_kind(batch: Batch) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which accesses are of each of _KINDS."""
    writes = batch.kind == AccessKind.WRITE
    fast = batch.tier == Tier.RAM
    return ~writes & fast, ~writes & ~fast, writes
