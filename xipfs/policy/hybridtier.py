"""HybridTier: promotes by long-term frequency or by short-term momentum; demotes only on low both.

Every page has two counters up to 15: freq, halved after W samples, and momentum, halved far more
often. A page with freq >= T or momentum >= MOMENTUM is promoted, into a free frame or not at all.
When fewer than F/80 frames are free, a scan goes round the pages of RAM until F/20 are: freq < T
and no momentum is demoted; freq >= T and no momentum goes to a second-chance queue, and is demoted
if SECOND_CHANCE_S later, when room is needed again, its freq is the same; all others stay.

When promotions become few, T is lowered while the hot pages fill less than 80 % of RAM; else, or if
two rounds of the scan find too little to demote, the policy sets itself to monitoring: it neither
counts nor moves, and looks at RAM's share of accesses now and then, until it falls.

Differs from the artifact: counts are exact, two bytes for each page with any, where it has counting
Bloom filters that overcount one page in a thousand; its second one has a hundredth of the size.
A batch of samples is what the epoch brings, and a round of the scan may be no longer than that: so
one that found too little counts only if no page waits in the queue either. The pause between
demotions is the plan's budget; a limit of ten resets is left out. A page of RAM that is
`Tiers.blind` stays as it is.
Under `cache=sampled` a page counts by `Batch.rates`, that is by how soon it came back.
Source: Song et al., "HybridTier: an Adaptive and Lightweight CXL-Memory Tiering System", ASPLOS
2025; kevins981/hybridtier-asplos25-artifact, tiering_runtime/hybridtier.cpp @52c1daa.
Uncertain: W is 160 samples a frame in the code, 16 by its comment. Times are not scaled, but on a
small machine promotions become few in seconds; a change of use that falls into the two minutes of
settling is then never noticed, as only what comes later is compared (`settle_s`).
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import Batch, PageIds, Plan, Tier, Tiers, no_pages
from xipfs.policy.cooling import Cooling
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats
from xipfs.policy.scale import scale_of, scaled
from xipfs.policy.target import plan_moves

__all__ = [
    "ALLOC_DIVISOR",
    "BATCH_SAMPLES",
    "CHECK_S",
    "DEMOTE_DIVISOR",
    "FREQ",
    "FREQ_MIN",
    "FREQ_WINDOW_PER_FRAME",
    "HOT_FILL_PERCENT",
    "MOMENTUM",
    "MOMENTUM_WINDOW",
    "NR_PLATEAU_BATCHES",
    "NR_QUEUED_MAX",
    "NR_WARMUP_BATCHES",
    "PLATEAU_PROMOTIONS",
    "REFERENCE_FRAMES",
    "SCALE",
    "SECOND_CHANCE_S",
    "SETTLE_S",
    "SLOPE",
    "Policy",
]

FREQ = 5
"""T: samples in the long run that make a page hot, at first. Source: hybridtier.cpp, T."""

FREQ_MIN = 3
"""T is not lowered further. Source: hybridtier.cpp."""

MOMENTUM = 3
"""Samples in the short run that make a page hot. Source: hybridtier.cpp."""

FREQ_WINDOW_PER_FRAME = 160
"""W, samples after which freq is halved, for each frame of RAM; its comment says 16.

Source: hybridtier.cpp, W.
"""

MOMENTUM_WINDOW = 1_100_000
"""Samples after which momentum is halved, times `scale`. Source: hybridtier.cpp."""

BATCH_SAMPLES = 100_000
"""Samples of a batch, times `scale`. Source: hybridtier.cpp, batch of samples."""

DEMOTE_DIVISOR = 20
"""A demotion goes on until this part of RAM is free. Source: hybridtier.cpp, DEMOTE = F/20."""

ALLOC_DIVISOR = 80
"""A demotion begins when no more than this part of RAM is free.

Source: hybridtier.cpp, ALLOC = F/80.
"""

SECOND_CHANCE_S = 60
"""Seconds that the second-chance queue waits. Source: hybridtier.cpp."""

NR_QUEUED_MAX = 10_000
"""Pages in the second-chance queue, times `scale`. Source: hybridtier.cpp."""

NR_WARMUP_BATCHES = 500
"""Batches before promotions can be few. Source: hybridtier.cpp."""

NR_PLATEAU_BATCHES = 20
"""Batches over which promotions are counted. Source: hybridtier.cpp."""

PLATEAU_PROMOTIONS = 25_000
"""So many promotions in that time, times `scale`, are few. Source: hybridtier.cpp."""

HOT_FILL_PERCENT = 80
"""With few promotions, T is lowered while hot pages fill less than this of RAM.

Source: hybridtier.cpp.
"""

SETTLE_S = 120
"""Seconds at the beginning of monitoring without a check. Source: hybridtier.cpp."""

CHECK_S = 10
"""Seconds from one check of RAM's share to the next. Source: hybridtier.cpp."""

SLOPE = -0.01
"""Monitoring ends if the last five shares fall faster than this a check. Source: hybridtier.cpp."""

SCALE = None
"""Factor for samples, promotions and the queue; by default RAM's frames by REFERENCE_FRAMES.

Source: ours.
"""

REFERENCE_FRAMES = 1 << 20
"""RAM for which nothing is scaled: 4 GiB. Source: ours, as policy.memtis has it."""

_COUNT_MAX = 15
_COUNTERS = ("freq", "momentum")
_NR_SHARES = 5
_NR_ROUNDS_MAX = 2

Rows = NDArray[np.int64]


class Policy:
    """Two counters a page, a scan for room, and a state in which it does nothing."""

    def __init__(
        self,
        *,
        freq: int = FREQ,
        freq_min: int = FREQ_MIN,
        momentum: int = MOMENTUM,
        freq_window_per_frame: int = FREQ_WINDOW_PER_FRAME,
        momentum_window: int = MOMENTUM_WINDOW,
        batch_samples: int = BATCH_SAMPLES,
        demote_divisor: int = DEMOTE_DIVISOR,
        alloc_divisor: int = ALLOC_DIVISOR,
        second_chance_s: int = SECOND_CHANCE_S,
        nr_queued_max: int = NR_QUEUED_MAX,
        nr_warmup_batches: int = NR_WARMUP_BATCHES,
        nr_plateau_batches: int = NR_PLATEAU_BATCHES,
        plateau_promotions: int = PLATEAU_PROMOTIONS,
        hot_fill_percent: int = HOT_FILL_PERCENT,
        settle_s: int = SETTLE_S,
        check_s: int = CHECK_S,
        slope: float = SLOPE,
        scale: float | None = SCALE,
    ) -> None:
        self._freq_max, self._freq_min = freq, freq_min
        self._momentum = momentum
        self._freq_window_per_frame = freq_window_per_frame
        self._momentum_window = momentum_window
        self._batch_samples = batch_samples
        self._demote_divisor = demote_divisor
        self._alloc_divisor = alloc_divisor
        self._second_chance_ns = second_chance_s * 1_000_000_000
        self._nr_queued_max = nr_queued_max
        self._nr_warmup_batches = nr_warmup_batches
        self._nr_plateau_batches = nr_plateau_batches
        self._plateau_promotions = plateau_promotions
        self._hot_fill_percent = hot_fill_percent
        self._settle_ns = settle_s * 1_000_000_000
        self._check_ns = check_s * 1_000_000_000
        self._slope = slope
        self._scale = scale
        self.threshold = freq
        self.monitoring = False
        self._stats = PageStats(freq=np.uint8, momentum=np.uint8)
        self._cooling = (Cooling(), Cooling())
        # The second-chance queue: pages, freq when they came, and when the first of them did.
        self._queue = no_pages()
        self._queued_freq = np.empty(0, np.uint8)
        self._queued_ns = 0
        # The scan for room: where it is, how far it has come and what it found in this round.
        self._cursor = -1
        self._nr_poor_rounds = 0
        self._nr_batches = 0.0
        self._nr_window_batches = 0.0
        self._nr_window_promotions = 0
        # Monitoring: the next check, accesses by tier since the last, shares of RAM.
        self._next_check_ns = 0
        self._nr_accesses = np.zeros(2, np.int64)
        self._shares: list[float] = []

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Count; promote what is hot; make room by a scan; or only monitor."""
        if not tiers.nr_ram_frames:
            return Plan()
        if self.monitoring:
            self._monitor(tiers)
            return Plan()
        stats = self._stats
        scale = scale_of(self._scale, tiers.nr_ram_frames, REFERENCE_FRAMES)
        pages, rates = batch.rates(tiers.epoch_ns)
        everyone = page_set(np.concatenate([pages, tiers.resident]))
        stats.rows(everyone)
        rows = stats.find(pages)
        halvings = self._count(rows, rates, len(batch.page), tiers.nr_ram_frames, scale)
        freq, momentum = stats["freq"][rows], stats["momentum"][rows]
        hot = (freq >= self.threshold) | (momentum >= self._momentum)
        promote = pages[hot & ~is_in(pages, tiers.resident)]
        demote = self._make_room(tiers, scale)
        plan = plan_moves(promote, demote, tiers)
        for counter, after in zip(_COUNTERS, halvings, strict=True):
            stats[counter] >>= np.uint8(after)
        self._watch_plateau(len(batch.page), len(plan.promote), tiers, scale)
        seldom = (stats["freq"] == 0) & (stats["momentum"] == 0)
        stats.keep(~seldom | is_in(stats.pages, tiers.resident))
        return plan

    def _count(
        self, rows: Rows, rates: NDArray[np.float64], nr_samples: int, nr_frames: int, scale: float
    ) -> list[int]:
        """Add the samples to both counters; return for each whether it is to be halved after."""
        windows = (self._freq_window_per_frame * nr_frames, scaled(self._momentum_window, scale))
        halvings = []
        for counter, cooling, window in zip(_COUNTERS, self._cooling, windows, strict=True):
            before, weight, after = cooling.take(nr_samples, window)
            counts = self._stats[counter]
            counts >>= np.uint8(min(before, 7))
            sums = counts[rows] + rates * weight
            counts[rows] = np.minimum(sums, _COUNT_MAX).astype(np.uint8)
            halvings.append(after)
        return halvings

    def _make_room(self, tiers: Tiers, scale: float) -> PageIds:
        """Return what to demote, if fewer than ALLOC frames are free."""
        nr_frames = tiers.nr_ram_frames
        nr_free = max(tiers.nr_free_frames, 0)
        if nr_free > nr_frames // self._alloc_divisor:
            return no_pages()
        nr_wanted = max(nr_frames // self._demote_divisor, 1) - nr_free
        nr_wanted = max(min(nr_wanted, tiers.budget_pages // 2), 0)
        if not nr_wanted:
            return no_pages()
        now_ns = (tiers.epoch + 1) * tiers.epoch_ns
        unchanged = self._second_chances(tiers, now_ns)[:nr_wanted]
        movable = ~is_in(tiers.resident, tiers.blind) & ~is_in(tiers.resident, np.sort(unchanged))
        around = tiers.resident[movable]
        start = int(np.searchsorted(around, self._cursor, side="right"))
        around = np.concatenate([around[start:], around[:start]])
        rows = self._stats.find(around)
        calm = self._stats["momentum"][rows] == 0
        seldom = self._stats["freq"][rows] < self.threshold
        found = np.flatnonzero(calm & seldom)[: nr_wanted - len(unchanged)]
        enough = len(unchanged) + len(found) == nr_wanted
        nr_passed = (int(found[-1]) + 1 if len(found) else 0) if enough else len(around)
        if nr_passed:
            self._cursor = int(around[nr_passed - 1])
        passed = np.zeros(len(around), np.bool_)
        passed[:nr_passed] = True
        self._queue_up(around[passed & calm & ~seldom], now_ns, scale)
        self._nr_poor_rounds = 0 if enough or len(self._queue) else self._nr_poor_rounds + 1
        if self._nr_poor_rounds >= _NR_ROUNDS_MAX:
            self._start_monitoring(now_ns)
        return np.concatenate([unchanged, around[found]])

    def _second_chances(self, tiers: Tiers, now_ns: int) -> PageIds:
        """Empty the queue if it has waited; return those of it that were not used since."""
        if now_ns - self._queued_ns < self._second_chance_ns or not len(self._queue):
            return no_pages()
        rows = self._stats.find(self._queue)
        same = (rows >= 0) & (self._stats["freq"][rows] == self._queued_freq)
        same &= is_in(self._queue, tiers.resident) & ~is_in(self._queue, tiers.blind)
        unchanged: PageIds = self._queue[same]
        self._queue, self._queued_freq = no_pages(), np.empty(0, np.uint8)
        return unchanged

    def _queue_up(self, pages: PageIds, now_ns: int, scale: float) -> None:
        pages = pages[~is_in(pages, np.sort(self._queue))]
        pages = pages[: scaled(self._nr_queued_max, scale) - len(self._queue)]
        if len(pages) and not len(self._queue):
            self._queued_ns = now_ns
        freq = self._stats["freq"][self._stats.find(pages)]
        self._queue = np.concatenate([self._queue, pages])
        self._queued_freq = np.concatenate([self._queued_freq, freq])

    def _watch_plateau(self, nr_samples: int, nr_promoted: int, tiers: Tiers, scale: float) -> None:
        """Lower the threshold, or begin to monitor, when promotions have become few."""
        nr_batches = nr_samples / scaled(self._batch_samples, scale)
        self._nr_batches += nr_batches
        self._nr_window_batches += nr_batches
        self._nr_window_promotions += nr_promoted
        if self._nr_window_batches < self._nr_plateau_batches:
            return
        few = self._nr_window_promotions <= scaled(self._plateau_promotions, scale)
        self._nr_window_batches = 0.0
        self._nr_window_promotions = 0
        if not few or self._nr_batches < self._nr_warmup_batches:
            return
        nr_hot = int(np.count_nonzero(self._stats["freq"] >= self.threshold))
        sparse = nr_hot * 100 < tiers.nr_ram_frames * self._hot_fill_percent
        if sparse and self.threshold > self._freq_min:
            self.threshold -= 1
        else:
            self._start_monitoring((tiers.epoch + 1) * tiers.epoch_ns)

    def _start_monitoring(self, now_ns: int) -> None:
        self.monitoring = True
        self._next_check_ns = now_ns + self._settle_ns + self._check_ns
        self._nr_accesses[:] = 0
        self._shares = []

    def _monitor(self, tiers: Tiers) -> None:
        """Look at RAM's share of accesses; if it falls, age all and begin anew."""
        now_ns = (tiers.epoch + 1) * tiers.epoch_ns
        if now_ns <= self._next_check_ns - self._check_ns:
            return
        self._nr_accesses += np.array(tiers.nr_accesses)
        if now_ns < self._next_check_ns:
            return
        self._next_check_ns += self._check_ns
        share = float(self._nr_accesses[Tier.RAM] / max(int(self._nr_accesses.sum()), 1))
        self._nr_accesses[:] = 0
        self._shares = [*self._shares, share][-_NR_SHARES:]
        if len(self._shares) < _NR_SHARES:
            return
        slope = float(np.polyfit(np.arange(_NR_SHARES), self._shares, 1)[0])
        if slope < self._slope:
            self.monitoring = False
            self.threshold = self._freq_max
            self._nr_poor_rounds = 0
            self._nr_batches = self._nr_window_batches = 0.0
            self._nr_window_promotions = 0
            self._stats["freq"] >>= np.uint8(1)
            self._stats["momentum"] >>= np.uint8(1)
