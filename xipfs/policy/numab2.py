"""NUMA balancing mode 2: promotes a page that faults soon after it was scanned, under a rate limit.

A hint fault promotes if RAM has plenty of free frames, more than 1/FREE_ENOUGH_DIVISOR of them; or
else if its latency is below a threshold and fewer than RATE_LIMIT pages were promoted this second.
The threshold adapts once in ADJUST_PERIOD_MS: down a step if there were more than 1.1 times the
candidates that the rate limit allows, up a step below 0.9, at most to twice REF_THRESHOLD_MS; and
it starts anew whenever frames were plenty. Room is made by kswapd: RAM's inactive tail goes until
WMARK_PROMO is free, by a look at each page's accessed bit.

Differs from Linux: an epoch has its faults first, then reclaims for them, where a fault that
finds no room fails and wakes kswapd; so a page comes in an epoch and not a fault later. Plenty is
max(1 GiB, node/16) there, the sixteenth here: they are the same at 16 GiB. The scan's period stays
at its minimum. No huge pages, no test of VM_MIXEDMAP or of read-only file mappings, for which
mainline arms no hint fault. A page whose use could not be seen (`Tiers.blind`) is not reclaimed.
Under `cache=sampled` the sampler's drops are the scan, and its latencies are taken as they are.
Source: Linux 6.3, kernel/sched/fair.c, should_numa_migrate_memory() and
numa_promotion_adjust_threshold(); Documentation/admin-guide/sysctl/kernel.rst.
Uncertain: a default rate limit of 64 GB/s limits nothing; the document asks for less than a tenth
of what the slow memory can be written with.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import Batch, Plan, Tiers
from xipfs.policy.hintfault import HintFaults
from xipfs.policy.lrulists import LruLists
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats
from xipfs.policy.scale import scale_of, scaled
from xipfs.policy.target import nr_to_demote, plan_moves

__all__ = [
    "ADJUST_PERIOD_MS",
    "FREE_ENOUGH_DIVISOR",
    "NR_ADJUST_STEPS",
    "RATE_LIMIT_PAGES",
    "REFERENCE_FRAMES",
    "REF_THRESHOLD_MS",
    "SCALE",
    "SCAN_PAGES",
    "SCAN_PERIOD_MS",
    "WMARK_PROMO_FACTOR",
    "Policy",
]

REF_THRESHOLD_MS = 1000
"""Latency below which a page is hot, at first; at most twice that.

Source: Linux 6.3, kernel/sched/fair.c, sysctl_numa_balancing_hot_threshold, MSEC_PER_SEC.
"""

RATE_LIMIT_PAGES = 16_777_216
"""Most pages promoted a second, times `scale`: 65536 MB.

Source: Linux 6.3, kernel/sched/core.c, sysctl_numa_balancing_promote_rate_limit.
"""

ADJUST_PERIOD_MS = 60_000
"""Time between two changes of the threshold.

Source: Linux 6.3, kernel/sched/fair.c, sysctl_numa_balancing_scan_period_max.
"""

NR_ADJUST_STEPS = 16
"""A step of the threshold is 2/16 of REF_THRESHOLD_MS.

Source: Linux 6.3, kernel/sched/fair.c, NUMA_MIGRATION_ADJUST_STEPS.
"""

FREE_ENOUGH_DIVISOR = 16
"""With more than this part of the frames free, every fault promotes.

Source: Linux 6.3, kernel/sched/fair.c, pgdat_free_space_enough().
"""

WMARK_PROMO_FACTOR = 70
"""WMARK_PROMO, to which kswapd reclaims, in ten thousandths of the frames.

Source: Linux 6.3, mm/page_alloc.c, __setup_per_zone_wmarks(), for a node of 1 GiB: sqrt(16 * size
in KB) is 0.39 % of it, and three gaps of watermark_scale_factor are 0.3 %.
"""

SCAN_PAGES = 65536
"""Pages armed by one scan, times `scale`: 256 MB.

Source: Linux 6.3, kernel/sched/fair.c, sysctl_numa_balancing_scan_size.
"""

SCAN_PERIOD_MS = 1000
"""Time from one scan to the next.

Source: Linux 6.3, kernel/sched/fair.c, sysctl_numa_balancing_scan_period_min.
"""

SCALE = None
"""Factor for SCAN_PAGES and RATE_LIMIT_PAGES; by default RAM's frames by REFERENCE_FRAMES.

Source: ours.
"""

REFERENCE_FRAMES = 1 << 16
"""RAM for which nothing is scaled: 256 MiB, what one scan covers.

Source: ours, so that a scan played under `cache=none` is about as fast as the sampler's drops.
"""

_MS = 1_000_000


class Policy:
    """Hot page selection by the latency of hint faults."""

    def __init__(
        self,
        *,
        ref_threshold_ms: int = REF_THRESHOLD_MS,
        rate_limit_pages: int = RATE_LIMIT_PAGES,
        adjust_period_ms: int = ADJUST_PERIOD_MS,
        nr_adjust_steps: int = NR_ADJUST_STEPS,
        free_enough_divisor: int = FREE_ENOUGH_DIVISOR,
        wmark_promo_factor: int = WMARK_PROMO_FACTOR,
        scan_pages: int = SCAN_PAGES,
        scan_period_ms: int = SCAN_PERIOD_MS,
        scale: float | None = SCALE,
    ) -> None:
        self._ref_threshold_ns = ref_threshold_ms * _MS
        self._rate_limit_pages = rate_limit_pages
        self._adjust_period_ns = adjust_period_ms * _MS
        self._step_ns = self._ref_threshold_ns * 2 // nr_adjust_steps
        self._free_enough_divisor = free_enough_divisor
        self._wmark_promo_factor = wmark_promo_factor
        self._scan_pages = scan_pages
        self._scan_period_ns = scan_period_ms * _MS
        self._scale = scale
        self._threshold_ns = self._ref_threshold_ns
        self._nr_candidates = 0
        self._since_adjust_ns = 0
        self._stats = PageStats(flags=np.uint8, turn=np.int64, scan_ns=np.int64)
        self._lists = LruLists(self._stats)
        self._faults = HintFaults(self._stats)

    @property
    def threshold_ms(self) -> float:
        """Latency below which a page is hot now."""
        return self._threshold_ns / _MS

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Promote what faulted soon; demote to the watermark."""
        stats, lists = self._stats, self._lists
        scale = scale_of(self._scale, tiers.nr_ram_frames, REFERENCE_FRAMES)
        stats.rows(page_set(np.concatenate([batch.page, tiers.resident])))
        lists.set_young(stats.find(page_set(batch.page)))
        faulted, latency_ns = self._faults.take(batch, tiers)
        rate_limit = scaled(self._rate_limit_pages, scale) * tiers.epoch_ns / 1e9
        candidates = faulted[self._choose(latency_ns, tiers, rate_limit)]
        self._adjust_threshold(tiers.epoch_ns, rate_limit)
        wmark_promo = -(-tiers.nr_ram_frames * self._wmark_promo_factor // 10000)
        nr_wanted = nr_to_demote(len(candidates), tiers, nr_keep_free=wmark_promo)
        seen = tiers.resident[~is_in(tiers.resident, tiers.blind)]
        victims = lists.shrink(stats.find(seen), nr_wanted)
        lists.move_to_head(candidates)
        self._faults.scan(
            tiers, scan_pages=scaled(self._scan_pages, scale), period_ns=self._scan_period_ns
        )
        return plan_moves(stats.pages[candidates], stats.pages[victims], tiers)

    def _choose(
        self, latency_ns: NDArray[np.int64], tiers: Tiers, rate_limit: float
    ) -> NDArray[np.bool_]:
        """Return which faults promote: the first ones while frames are plenty, then the quick."""
        nr_plenty = tiers.nr_free_frames - tiers.nr_ram_frames // self._free_enough_divisor
        plenty = np.arange(len(latency_ns)) < nr_plenty
        if plenty.any():
            self._threshold_ns = self._ref_threshold_ns
        quick = ~plenty & (latency_ns < self._threshold_ns)
        self._nr_candidates += int(np.count_nonzero(quick))
        chosen: NDArray[np.bool_] = plenty | (quick & (np.cumsum(quick) <= max(rate_limit, 1)))
        return chosen

    def _adjust_threshold(self, epoch_ns: int, rate_limit: float) -> None:
        self._since_adjust_ns += epoch_ns
        if self._since_adjust_ns < self._adjust_period_ns:
            return
        allowed = rate_limit * self._since_adjust_ns / epoch_ns
        step_ns = self._step_ns
        if self._nr_candidates > 1.1 * allowed:
            self._threshold_ns = max(self._threshold_ns - step_ns, step_ns)
        elif self._nr_candidates < 0.9 * allowed:
            self._threshold_ns = min(self._threshold_ns + step_ns, 2 * self._ref_threshold_ns)
        self._nr_candidates = 0
        self._since_adjust_ns = 0
