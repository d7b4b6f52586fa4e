"""AutoTiering: a page that faults takes the frame of one that was used in fewer of the last scans.

Every page has a bitmap of 8 bits, one for each of its last scans: whether it was used since the
one before. How many are set is its level, 0 to 8; a new page has all. A hint fault in NVRAM
promotes into a free frame (CPM). If there is none, OPM takes the page of the lowest level in RAM,
if that is lower than the level of the page that faulted, and exchanges the two, or demotes the one
first. Within a level those go first that the last scan found unused, the latest found first; those
found used come last.

Differs from the patch: an epoch's faults of the highest level go first, where they come in time
order there. Frames are free down to the high watermark. Background demotion and the list of
deferred exchanges are left out, as are the paths between nodes of one tier. Its demotion of page
cache before all else, and of pages mapped once only, would be of every page here, and is dropped.
A page in RAM that is `Tiers.blind` keeps its bitmap, and is no victim.
Under `cache=sampled` the sampler's drops are the scan; a page that came back after more than an
epoch was unused in as many scans.
Source: Kim et al., "Exploring the Design Space of Page Management for Multi-Tiered Memory Systems",
ATC 2021; Sys-KU/AutoTiering, linux-5.3.0-autotiering/mm/page_balancing.c and mm/migrate.c,
try_demote_from_busy_node(), @0de77c8.
Uncertain: the bitmap's scan is NUMA balancing's, so how long a bit lasts depends on the image.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import Batch, Plan, Tiers, no_pages
from xipfs.policy.hintfault import HintFaults
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats
from xipfs.policy.scale import scale_of, scaled
from xipfs.policy.target import plan_moves

__all__ = [
    "MODE",
    "REFERENCE_FRAMES",
    "SCALE",
    "SCAN_PAGES",
    "SCAN_PERIOD_MS",
    "WMARK_HIGH_FACTOR",
    "Policy",
]

MODE = 6
"""1: into free frames only (CPM); 2: also by demoting (OPM); 6: also by exchanging (OPM).

Source: AutoTiering, README.md, kernel.numa_balancing_extended.
"""

SCAN_PAGES = 524_288
"""Pages looked at by one scan, times `scale`: 2048 MB.

Source: AutoTiering, README.md, kernel.numa_balancing_scan_size_mb as in the evaluation.
"""

SCAN_PERIOD_MS = 1000
"""Time from one scan to the next.

Source: AutoTiering, README.md, kernel.numa_balancing_scan_period_max_ms as in the evaluation.
"""

WMARK_HIGH_FACTOR = 60
"""Frames that promotion leaves free, in ten thousandths of RAM.

Source: Linux 5.3, mm/page_alloc.c, __setup_per_zone_wmarks(), for a node of 1 GiB: sqrt(16 * size
in KB) is 0.39 % of it, and two gaps of watermark_scale_factor are 0.2 %.
"""

SCALE = None
"""Factor for SCAN_PAGES; by default RAM's frames by REFERENCE_FRAMES. Source: ours."""

REFERENCE_FRAMES = 1 << 16
"""RAM for which SCAN_PAGES is not scaled: 256 MiB, an eighth of what one scan covers.

Source: ours, as policy.tpp has it.
"""

_OPM = 2
_EXCHANGE = 4
_NR_BITS = 8

Rows = NDArray[np.int64]


class Policy:
    """Levels by bitmaps; the lowest makes room for what is higher."""

    def __init__(
        self,
        *,
        mode: int = MODE,
        scan_pages: int = SCAN_PAGES,
        scan_period_ms: int = SCAN_PERIOD_MS,
        wmark_high_factor: int = WMARK_HIGH_FACTOR,
        scale: float | None = SCALE,
    ) -> None:
        self._mode = mode
        self._scan_pages = scan_pages
        self._scan_period_ms = scan_period_ms
        self._wmark_high_factor = wmark_high_factor
        self._scale = scale
        self._stats = PageStats(bitmap=np.uint8, used=np.bool_, turn=np.int64, scan_ns=np.int64)
        self._faults = HintFaults(self._stats)
        self._nr_turns = 0
        self._cursor = -1

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Promote the faults into free frames, then for pages of a lower level; then scan."""
        stats = self._stats
        known = page_set(np.concatenate([batch.page, tiers.resident]))
        new = known[stats.find(known) < 0]
        stats.rows(known)
        stats["bitmap"][stats.find(new)] = 0xFF
        stats["used"][stats.find(page_set(batch.page))] = True
        faulted, latency_ns = self._faults.take(batch, tiers)
        if self._faults.sampled:
            nr_idle = np.minimum(latency_ns // tiers.epoch_ns, _NR_BITS)
            bitmaps = stats["bitmap"][faulted].astype(np.int64) << nr_idle
            stats["bitmap"][faulted] = bitmaps & 0xFF
        plan = self._choose(faulted, tiers)
        self._scan(faulted, tiers)
        return plan

    def _levels(self, rows: Rows) -> NDArray[np.uint8]:
        levels: NDArray[np.uint8] = np.bitwise_count(self._stats["bitmap"][rows])
        return levels

    def _choose(self, faulted: Rows, tiers: Tiers) -> Plan:
        pages = self._stats.pages
        wmark_high = -(-tiers.nr_ram_frames * self._wmark_high_factor // 10000)
        nr_free = min(max(tiers.nr_free_frames - wmark_high, 0), tiers.budget_pages)
        faulted = faulted[np.argsort(-self._levels(faulted).astype(np.int64), kind="stable")]
        nr_free = min(nr_free, len(faulted))
        if not self._mode & _OPM:
            return Plan(promote=pages[faulted[:nr_free]])
        seen = self._stats.find(tiers.resident[~is_in(tiers.resident, tiers.blind)])
        coldest = seen[np.lexsort((self._stats["turn"][seen], self._levels(seen)))]
        nr_pairs = min(len(faulted) - nr_free, len(coldest), (tiers.budget_pages - nr_free) // 2)
        into, out = faulted[nr_free : nr_free + nr_pairs], coldest[:nr_pairs]
        higher = self._levels(into) > self._levels(out)
        into, out = into[higher], out[higher]
        if self._mode & _EXCHANGE:
            pairs = np.column_stack([pages[out], pages[into]])
            return Plan(promote=pages[faulted[:nr_free]], demote=no_pages(), exchange=pairs)
        return plan_moves(pages[np.concatenate([faulted[:nr_free], into])], pages[out], tiers)

    def _scan(self, faulted: Rows, tiers: Tiers) -> None:
        """Shift the bitmaps of the next pages: used ones to the tail of their level's list."""
        stats = self._stats
        in_ram = is_in(stats.pages, tiers.resident)
        blind = is_in(stats.pages, tiers.blind)
        if self._faults.sampled:
            looked_at = in_ram & ~blind
            looked_at[faulted] = True
            rows = np.flatnonzero(looked_at)
        else:
            scale = scale_of(self._scale, tiers.nr_ram_frames, REFERENCE_FRAMES)
            nr_pages = scaled(self._scan_pages, scale) * tiers.epoch_ns
            nr_pages = max(nr_pages // (self._scan_period_ms * 1_000_000), 1)
            rows = np.flatnonzero(~blind)
            start = int(np.searchsorted(stats.pages[rows], self._cursor, side="right"))
            rows = np.concatenate([rows[start:], rows[:start]])[:nr_pages]
            if len(rows):
                self._cursor = int(stats.pages[rows[-1]])
            self._faults.arm(rows[~in_ram[rows]], tiers)
        used = stats["used"][rows]
        stats["bitmap"][rows] = (stats["bitmap"][rows] << 1) | used
        turns = np.arange(self._nr_turns + 1, self._nr_turns + 1 + len(rows))
        stats["turn"][rows] = np.where(used, turns, -turns)
        self._nr_turns += len(rows)
        stats["used"][rows] = False
