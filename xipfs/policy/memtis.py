"""MEMTIS: a histogram of page heat says how hot a page must be for all hot pages to fill RAM.

Counts of samples fall into 16 bins, one for each power of two. Every ADAPTATION_PERIOD samples
the bins are added up from the hottest until RAM, less a reserve W_promo, is full: there lies T_hot.
It may only rise between two coolings; a cooling, every COOLING_PERIOD samples, halves all counts,
and then T_hot may fall by one. Hot pages (bin >= T_hot) are promoted while the reserve is free;
pages of RAM below T_warm are demoted when the reserve is not, or to make room for the hot ones
that wait. T_warm is a bin lower than T_hot while the hot pages leave a quarter of RAM empty, so
that warm pages stay where they are; it is T_hot as soon as too few pages could be demoted.

Differs from MEMTIS: periods are counted, but acted on at the end of an epoch: as many coolings as
were due (see policy.cooling), and one adaptation; and one round of demotion, with T_warm raised in
it if need be, where the kernel has one each 500 ms and raises it for the next. There are no lists:
the hottest bins are promoted and the coldest demoted first, where the kernel takes them as listed.
Huge pages do not exist here, nor their split; the count of a base page goes up by 512 a sample, as
there. A new page starts hot there, at 2^(T_hot + 1), since it is born in RAM; a page of a file was
there before it was first read, and starts at nothing (`start_hot=yes` for theirs). The tests for
read-only files and anonymous pages are dropped. A page of RAM that is `Tiers.blind` is not demoted.
Under `cache=sampled` a page counts by `Batch.rates`, that is by how soon it came back.
Source: Lee et al., "MEMTIS: Efficient Memory Tiering with Dynamic Page Classification and Page
Size Determination", SOSP 2023; cosmoss-jigu/memtis, linux/mm/htmm_core.c and htmm_migrater.c
@032e051, linux/include/linux/htmm.h.
Uncertain: what a sample stands for. There it is one of 199 loads, here an access that was seen.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import Batch, Plan, Tiers
from xipfs.policy.cooling import Cooling
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats
from xipfs.policy.scale import scale_of, scaled
from xipfs.policy.target import plan_moves

__all__ = [
    "ADAPTATION_PERIOD",
    "BASE_PAGE_WEIGHT",
    "COOLING_PERIOD",
    "REFERENCE_FRAMES",
    "SCALE",
    "START_HOT",
    "THRES_HOT",
    "WARM_PERCENT",
    "W_DEMOTE_PERCENT",
    "W_PROMO_PERCENT",
    "Policy",
]

COOLING_PERIOD = 2_000_000
"""Samples after which all counts are halved, times `scale`. Source: htmm.h, htmm_cooling_period."""

ADAPTATION_PERIOD = 100_000
"""Samples after which T_hot is looked for anew, times `scale`.

Source: htmm.h, htmm_adaptation_period.
"""

THRES_HOT = 1
"""The bin that T_hot starts at, and never falls below. Source: htmm.h, htmm_thres_hot."""

BASE_PAGE_WEIGHT = 512
"""What a sample adds to the count of a base page. Source: htmm_core.c, HPAGE_PMD_NR."""

W_DEMOTE_PERCENT = 2
"""With no hot page waiting, so much of RAM is kept free, within limits times `scale`.

Source: htmm_migrater.c, get_memcg_demotion_watermark(): 12800 to 256000 pages.
"""

W_PROMO_PERCENT = 3
"""So much of RAM is never filled by promotion, within limits times `scale`.

Source: htmm_migrater.c, get_memcg_promotion_watermark(): 25600 to 384000 pages; where it is outside
of them, the limit of the other watermark is taken (kept as it is).
"""

WARM_PERCENT = 75
"""T_warm is below T_hot while hot pages fill less than this of RAM. Source: htmm_core.c."""

START_HOT = False
"""Whether a page that was never seen starts just above T_hot; in htmm_core.c it does.

Source: ours.
"""

SCALE = None
"""Factor for samples and limits of watermarks; by default RAM's frames by REFERENCE_FRAMES.

Source: ours.
"""

REFERENCE_FRAMES = 1 << 20
"""RAM for which nothing is scaled: 4 GiB.

Source: ours: the smallest power of two that is above all lower limits of the watermarks.
"""

_NR_BINS = 16
_MIN_WATERMARK = (12_800, 256_000)
_MAX_WATERMARK = (25_600, 384_000)
_COUNT_MAX = (1 << 31) - 1


class Policy:
    """Threshold by histogram, cooling by samples, a warm band."""

    def __init__(
        self,
        *,
        cooling_period: int = COOLING_PERIOD,
        adaptation_period: int = ADAPTATION_PERIOD,
        thres_hot: int = THRES_HOT,
        base_page_weight: int = BASE_PAGE_WEIGHT,
        w_demote_percent: int = W_DEMOTE_PERCENT,
        w_promo_percent: int = W_PROMO_PERCENT,
        warm_percent: int = WARM_PERCENT,
        start_hot: bool = START_HOT,
        scale: float | None = SCALE,
    ) -> None:
        self._cooling_period = cooling_period
        self._adaptation_period = adaptation_period
        self._thres_hot = thres_hot
        self._base_page_weight = base_page_weight
        self._w_demote_percent = w_demote_percent
        self._w_promo_percent = w_promo_percent
        self._warm_percent = warm_percent
        self._start_hot = start_hot
        self._scale = scale
        self.t_hot = thres_hot
        self.t_warm = thres_hot
        self._cooling = Cooling()
        self._nr_since_adaptation = 0
        self._stats = PageStats(count=np.uint32)

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Count, cool, find the threshold; promote above it, demote below."""
        stats = self._stats
        scale = scale_of(self._scale, tiers.nr_ram_frames, REFERENCE_FRAMES)
        if not tiers.nr_ram_frames:
            return Plan()
        w_demote, w_promo = self._watermarks(tiers.nr_ram_frames, scale)
        cooled = self._count(batch, tiers, scaled(self._cooling_period, scale))
        self._nr_since_adaptation += len(batch.page)
        adaptation_period = scaled(self._adaptation_period, scale)
        if cooled or self._nr_since_adaptation >= adaptation_period:
            self._nr_since_adaptation %= adaptation_period
            self._adapt(tiers.nr_ram_frames - w_promo, cooled=cooled)
        plan = self._migrate(tiers, w_demote, w_promo)
        stats.keep((stats["count"] > 0) | is_in(stats.pages, tiers.resident))
        return plan

    def _watermarks(self, nr_frames: int, scale: float) -> tuple[int, int]:
        """Return W_demote and W_promo."""
        w_demote = int(np.clip(nr_frames * self._w_demote_percent // 100, *_limits(scale)))
        w_promo = nr_frames * self._w_promo_percent // 100
        low, high = (limit * scale for limit in _MAX_WATERMARK)
        if not low <= w_promo <= high:
            w_promo = int(_limits(scale)[w_promo > high])
        return w_demote, w_promo

    def _count(self, batch: Batch, tiers: Tiers, cooling_period: int) -> bool:
        """Add the samples of the epoch to the counts; return whether these were halved."""
        stats = self._stats
        pages, rates = batch.rates(tiers.epoch_ns)
        everyone = page_set(np.concatenate([pages, tiers.resident]))
        new = everyone[stats.find(everyone) < 0]
        stats.rows(everyone)
        if self._start_hot:
            stats["count"][stats.find(new)] = 1 << min(self.t_hot + 1, 30)
        rows = stats.find(pages)
        before, weight, after = self._cooling.take(len(batch.page), cooling_period)
        stats["count"] >>= np.uint32(before)
        counts = stats["count"][rows] + rates * weight * self._base_page_weight
        stats["count"][rows] = np.minimum(counts, _COUNT_MAX).astype(np.uint32)
        stats["count"] >>= np.uint32(after)
        return bool(after)

    def _bins(self) -> NDArray[np.int64]:
        """Return the bin of each row: floor(log2(count + 1)), at most 15."""
        _, exponents = np.frexp(self._stats["count"].astype(np.float64) + 1)
        bins: NDArray[np.int64] = np.minimum(exponents - 1, _NR_BINS - 1).astype(np.int64)
        return bins

    def _adapt(self, nr_room: int, *, cooled: bool) -> None:
        """Move T_hot to where the hot pages just fit, if it may; and T_warm with it."""
        sizes = np.bincount(self._bins(), minlength=_NR_BINS)
        nr_hotter = np.cumsum(sizes[::-1])[::-1]
        too_many = np.flatnonzero(nr_hotter > nr_room)
        threshold = max(int(too_many[-1]) + 1 if len(too_many) else 0, self._thres_hot)
        if threshold > self.t_hot:
            self.t_hot = threshold
        elif cooled and threshold < self.t_hot:
            self.t_hot = max(self.t_hot - 1, 1)
        nr_hot = int(nr_hotter[self.t_hot]) if self.t_hot < _NR_BINS else 0
        sparse = nr_hot * 100 < nr_room * self._warm_percent
        self.t_warm = self.t_hot - 1 if sparse else self.t_hot

    def _migrate(self, tiers: Tiers, w_demote: int, w_promo: int) -> Plan:
        pages, bins = self._stats.pages, self._bins()
        fast = is_in(pages, tiers.resident)
        waiting = np.flatnonzero(~fast & (bins >= self.t_hot))
        waiting = waiting[np.argsort(-bins[waiting], kind="stable")]
        nr_used = tiers.nr_ram_frames - tiers.nr_free_frames
        nr_wanted = nr_used + len(waiting) + w_promo - tiers.nr_ram_frames
        if not len(waiting) and nr_used + w_demote <= tiers.nr_ram_frames:
            nr_wanted = 0
        nr_wanted = min(max(nr_wanted, 0), self._nr_affordable(tiers, len(waiting), w_promo))
        movable = np.flatnonzero(fast & ~is_in(pages, tiers.blind))
        movable = movable[np.argsort(bins[movable], kind="stable")]
        victims = movable[bins[movable] < self.t_warm][:nr_wanted]
        if len(victims) < min(nr_wanted, len(waiting)):
            self.t_warm = self.t_hot
            victims = movable[bins[movable] < self.t_warm][:nr_wanted]
        nr_room = max(tiers.nr_free_frames + len(victims) - w_promo, 0)
        return plan_moves(pages[waiting[:nr_room]], pages[victims], tiers)

    def _nr_affordable(self, tiers: Tiers, nr_waiting: int, w_promo: int) -> int:
        """Return how many demotions the budget has room for, beside those they make room for."""
        nr_filled = min(nr_waiting, max(tiers.nr_free_frames - w_promo, 0), tiers.budget_pages)
        nr_left = tiers.budget_pages - nr_filled
        return nr_left if nr_filled == nr_waiting else nr_left // 2


def _limits(scale: float) -> tuple[float, float]:
    """Return the limits of W_demote."""
    low, high = _MIN_WATERMARK
    return low * scale, high * scale
