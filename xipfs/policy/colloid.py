"""Colloid: moves hot pages to the tier with the lower latency under load, until both are equal.

RAM is not always the faster one: under enough load it is slower than an idle NVRAM. Latencies
come from Little's law, L = occupancy / rate, smoothed. p is the share of accesses that RAM has.
While L_ram < L_nvram, p is a lower bound of where it should be, else an upper one; the next p is
half-way between the bounds, dp away, and the difference is made up by the hottest pages whose
shares of all accesses add up to at most dp, and whose bytes are no more than the traffic that they
relieve. A bound is opened again when the bracket is empty or has become narrower than EPSILON. If
the latencies differ by less than DELTA, nothing moves.

Differs from Colloid, which sits on HeMem, TPP or MEMTIS: pages are ranked by counts of their own,
halved every COOLING_PERIOD accesses as in MEMTIS; a promotion takes the frame of the coldest page
in RAM, if that is colder. Counters are of accesses to pages, all of them, and not of cache lines
in one of 18 CHAs: so what may move in an epoch is dp times its accesses, in pages. RAM without
accesses counts as unloaded, with the latency that the tiers state; where no latency is known RAM
counts as the faster, always. A page of RAM that is `Tiers.blind` makes no room.
Under `cache=sampled` a page counts by `Batch.rates`, that is by how soon it came back.
Source: Vuppalapati and Agarwal, "Tiered Memory Management: Access Latency is the Key!", SOSP 2024;
webglider/memtis, colloid-mon/colloid-mon.c @6863a81; host-architecture/colloid, tpp/ @d02a6b1.
Uncertain: the smoothing: 1/16 in this commit, 1/32 when spinning, 1/2 in an older one. Where RAM is
the faster one whatever is moved, dp never comes to nothing, and pages of nearly equal heat change
places all the time.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import Batch, Plan, Tier, Tiers
from xipfs.policy.cooling import Cooling
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats
from xipfs.policy.scale import scale_of, scaled
from xipfs.policy.target import plan_moves

__all__ = [
    "ALPHA",
    "COOLING_PERIOD",
    "DELTA",
    "EPSILON",
    "REFERENCE_FRAMES",
    "SAMPLE_MS",
    "SCALE",
    "Policy",
]

SAMPLE_MS = 10
"""Time between two samples of the counters. Source: colloid-mon.c, SAMPLE_INTERVAL_MS."""

ALPHA = 1 / 16
"""Weight of a new sample in the moving averages. Source: colloid-mon.c, EWMA_EXP."""

DELTA = 0.05
"""Latencies are equal if they differ by no more than this part of RAM's. Source: colloid-mon.c."""

EPSILON = 0.01
"""A bracket narrower than this is opened again. Source: colloid-mon.c."""

COOLING_PERIOD = 2_000_000
"""Accesses after which all counts are halved, times `scale`.

Source: cosmoss-jigu/memtis, linux/include/linux/htmm.h, htmm_cooling_period.
"""

SCALE = None
"""Factor for COOLING_PERIOD; by default RAM's frames by REFERENCE_FRAMES. Source: ours."""

REFERENCE_FRAMES = 1 << 20
"""RAM for which nothing is scaled: 4 GiB. Source: ours, as policy.memtis has it."""

_HEAT_MIN = 0.25


class Policy:
    """Balances latencies by a search for the right share of accesses."""

    def __init__(
        self,
        *,
        sample_ms: int = SAMPLE_MS,
        alpha: float = ALPHA,
        delta: float = DELTA,
        epsilon: float = EPSILON,
        cooling_period: int = COOLING_PERIOD,
        scale: float | None = SCALE,
    ) -> None:
        self._sample_ns = sample_ms * 1_000_000
        self._alpha = alpha
        self._delta = delta
        self._epsilon = epsilon
        self._cooling_period = cooling_period
        self._scale = scale
        self.p_lo = 0.0
        self.p_hi = 1.0
        # Moving averages by tier: accesses an epoch, and accesses under way.
        self._rate = np.zeros(2)
        self._occupancy = np.zeros(2)
        self._cooling = Cooling()
        self._stats = PageStats(heat=np.float32)

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Measure, search, move what makes up the difference."""
        self._count(batch, tiers)
        weight = 1 - (1 - self._alpha) ** (tiers.epoch_ns / self._sample_ns)
        self._rate += weight * (np.array(tiers.nr_accesses) - self._rate)
        self._occupancy += weight * (np.array(tiers.occupancy) - self._occupancy)
        ram_ns, nvram_ns = self._latency_ns(Tier.RAM, tiers), self._latency_ns(Tier.NVRAM, tiers)
        unknown = ram_ns == nvram_ns == 0
        if not unknown and abs(ram_ns - nvram_ns) <= self._delta * ram_ns:
            return Plan()
        nr_accesses = float(self._rate.sum())
        if not nr_accesses:
            return Plan()
        towards_ram = unknown or ram_ns < nvram_ns
        dp = self.search(float(self._rate[Tier.RAM]) / nr_accesses, towards_ram=towards_ram)
        return self._move(dp, round(dp * nr_accesses), tiers, towards_ram=towards_ram)

    def search(self, p: float, *, towards_ram: bool) -> float:
        """Note that p is too little (or too much); return how far the next p is from it."""
        if towards_ram:
            self.p_lo = p
            if self.p_hi <= self.p_lo or self.p_hi - self.p_lo < self._epsilon:
                self.p_hi = 1.0
        else:
            self.p_hi = p
            if self.p_lo >= self.p_hi or self.p_hi - self.p_lo < self._epsilon:
                self.p_lo = 0.0
        return abs((self.p_lo + self.p_hi) / 2 - p)

    def _latency_ns(self, tier: Tier, tiers: Tiers) -> float:
        rate, occupancy = float(self._rate[tier]), float(self._occupancy[tier])
        return occupancy * tiers.epoch_ns / rate if rate and occupancy else tiers.latency_ns[tier]

    def _count(self, batch: Batch, tiers: Tiers) -> None:
        stats = self._stats
        pages, rates = batch.rates(tiers.epoch_ns)
        stats.rows(page_set(np.concatenate([pages, tiers.resident])))
        scale = scale_of(self._scale, tiers.nr_ram_frames, REFERENCE_FRAMES)
        period = scaled(self._cooling_period, scale)
        before, weight, after = self._cooling.take(len(batch.page), period)
        stats["heat"] *= np.float32(0.5**before)
        stats["heat"][stats.find(pages)] += (rates * weight).astype(np.float32)
        stats["heat"] *= np.float32(0.5**after)
        stats.keep((stats["heat"] >= _HEAT_MIN) | is_in(stats.pages, tiers.resident))

    def _move(self, dp: float, nr_pages_max: int, tiers: Tiers, *, towards_ram: bool) -> Plan:
        """Take the hottest pages whose shares add up to at most dp."""
        pages, heat = self._stats.pages, self._stats["heat"]
        fast = is_in(pages, tiers.resident)
        rows = np.flatnonzero((fast ^ towards_ram) & (heat > 0))
        chosen = rows[_hottest_within(heat[rows], dp * float(heat.sum()))][:nr_pages_max]
        if not towards_ram:
            return plan_moves(pages[:0], pages[chosen], tiers)
        nr_free = min(max(tiers.nr_free_frames, 0), tiers.budget_pages)
        seen = np.flatnonzero(fast & ~is_in(pages, tiers.blind))
        coldest = seen[np.argsort(heat[seen], kind="stable")]
        nr_swaps = min(
            max(len(chosen) - nr_free, 0), len(coldest), (tiers.budget_pages - nr_free) // 2
        )
        hotter = heat[chosen[nr_free : nr_free + nr_swaps]] > heat[coldest[:nr_swaps]]
        nr_swaps = int(np.count_nonzero(np.logical_and.accumulate(hotter)))
        return plan_moves(pages[chosen[: nr_free + nr_swaps]], pages[coldest[:nr_swaps]], tiers)


def _hottest_within(heat: NDArray[np.float32], heat_max: float) -> NDArray[np.int64]:
    """Return the places of the hottest that together have no more than heat_max, hottest first.

    What is too hot for it alone is passed over.
    """
    order = np.argsort(-heat, kind="stable")
    order = order[heat[order] <= heat_max]
    return order[np.cumsum(heat[order], dtype=np.float64) <= heat_max]
