"""DAMON: regions instead of pages, split and merged to fit; schemes with self-tuning quotas.

The pages are cut into 10 to 1000 regions. In each, some pages are looked at, by chance; the share
that was found used is taken for the whole region. Neighbours that are alike become one region,
regions are cut in two or three, and so the cuts move to where use changes. A region's age is for
how long its use has been about the same.

    promote   regions used in 5 % of the samples or more, the hottest first, until 99.7 % is used
    demote    regions not used at all, the coldest first, until 0.5 % of RAM is free

Both have a quota, which grows while the goal is missed and shrinks behind it; of the chosen regions
only pages move that were used (promote) or were not (demote), DAMOS's filter `young`.

Differs from DAMON: an epoch is one aggregation, with as many samples as in the kernel, each of a
page picked anew; how often the epoch saw it used is how likely it was in use then. Regions divide
the pages that were ever touched, in the order of their numbers, so that gaps between files count
for nothing; each costs 8 bytes. The tuning of intervals is left out.
Under `cache=sampled` what could not be seen is taken to be used as its region was last; a page of
RAM that is `Tiers.blind` is not demoted.
Source: Park et al., "Profiling Dynamic Data Access Patterns with Controlled Overhead and Quality",
Middleware Industry 2019, and "DAOS: Data Access-aware Operating System", HPDC 2022; Linux 6.16,
mm/damon/core.c and ops-common.c; damonitor/damo, scripts/mem_tier.sh @df6d55f.
Uncertain: how well it does where hot pages are scattered: a region that holds some is neither hot
nor cold, and few of them are split off. The weights of use and age, which mem_tier.sh does not set,
are lru_sort's; the feedback loop of quotas, damon_feed_loop_next_input(), is as recalled.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import CHUNK_SHIFT, Batch, PageIds, Plan, Tiers, no_pages
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats
from xipfs.policy.scale import scale_of, scaled
from xipfs.policy.target import plan_moves

__all__ = [
    "AGE_WEIGHT",
    "FREE_GOAL_PERCENT",
    "FREQ_WEIGHT",
    "HOT_PERCENT",
    "MAX_NR_REGIONS",
    "MIN_NR_REGIONS",
    "NR_SAMPLES",
    "QUOTA_PAGES",
    "REFERENCE_FRAMES",
    "SCALE",
    "SEED",
    "USED_GOAL_PERCENT",
    "Policy",
]

MIN_NR_REGIONS = 10
"""Regions that the pages are divided into at first. Source: mm/damon, min_nr_regions."""

MAX_NR_REGIONS = 1000
"""Most regions; above half of that none is split. Source: mm/damon, max_nr_regions."""

NR_SAMPLES = 20
"""Samples in one aggregation. Source: mm/damon, 100 ms aggregation by 5 ms sampling interval."""

HOT_PERCENT = 5
"""A region found used in so many of the samples is promoted.

Source: mem_tier.sh, --damos_access_rate 5% max.
"""

USED_GOAL_PERCENT = 99.7
"""Promotion wants so much of RAM used. Source: mem_tier.sh, node_mem_used_bp 99.7%."""

FREE_GOAL_PERCENT = 0.5
"""Demotion wants so much of RAM free. Source: mem_tier.sh, node_mem_free_bp 0.5%."""

QUOTA_PAGES = 51_200
"""Most pages that a scheme moves in a second, times `scale`: 200 MB.

Source: mem_tier.sh, --damos_quota_space 200MB, interval 1 s.
"""

FREQ_WEIGHT = 1
"""Weight of use in a region's heat. Source: mm/damon/lru_sort.c, weight_nr_accesses."""

AGE_WEIGHT = 1
"""Weight of age in a region's heat. Source: mm/damon/lru_sort.c, weight_age."""

SEED = 0
"""Where chance begins. Source: ours; DAMON draws from the kernel's."""

SCALE = None
"""Factor for QUOTA_PAGES; by default RAM's frames by REFERENCE_FRAMES. Source: ours."""

REFERENCE_FRAMES = 1 << 18
"""RAM for which QUOTA_PAGES is not scaled: 1 GiB.

Source: ours: a fifth of it could move in a second.
"""

_QUOTA_MIN_PAGES = 0.5
_AGE_LOG_MAX = 32


class _Regions(NamedTuple):
    """Regions in order; arrays of shape (nr_regions,).

    first: the lowest page id of each; the last one is open. nr_accesses, before: of NR_SAMPLES, as
    found last and in the aggregation before it. age: in aggregations.
    """

    first: PageIds
    nr_accesses: NDArray[np.float64]
    before: NDArray[np.float64]
    age: NDArray[np.float64]


class Policy:
    """Access by region, two schemes, two quotas."""

    def __init__(
        self,
        *,
        min_nr_regions: int = MIN_NR_REGIONS,
        max_nr_regions: int = MAX_NR_REGIONS,
        nr_samples: int = NR_SAMPLES,
        hot_percent: float = HOT_PERCENT,
        used_goal_percent: float = USED_GOAL_PERCENT,
        free_goal_percent: float = FREE_GOAL_PERCENT,
        quota_pages: int = QUOTA_PAGES,
        freq_weight: int = FREQ_WEIGHT,
        age_weight: int = AGE_WEIGHT,
        seed: int = SEED,
        scale: float | None = SCALE,
    ) -> None:
        self._min_nr_regions = min_nr_regions
        self._max_nr_regions = max_nr_regions
        self._nr_samples = nr_samples
        self._hot_percent = hot_percent
        self._used_goal = used_goal_percent / 100
        self._free_goal = free_goal_percent / 100
        self._quota_pages = quota_pages
        self._weights = (freq_weight, age_weight)
        self._scale = scale
        self._random = np.random.default_rng(seed)
        self._touched = PageStats()
        self._regions = _Regions(no_pages(), np.empty(0), np.empty(0), np.empty(0))
        self._nr_regions_before = 0
        self._promote_quota = self._demote_quota = _QUOTA_MIN_PAGES

    @property
    def nr_regions(self) -> int:
        """Regions at present."""
        return len(self._regions.first)

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Sample, merge, let the schemes choose, split."""
        self._touched.rows(page_set(np.concatenate([batch.page, tiers.resident])))
        if not tiers.nr_ram_frames or not len(self._touched):
            return Plan()
        if not self.nr_regions:
            self._start()
        self._regions = self._aggregate(batch, tiers)
        self._regions = self._merge(self._regions)
        plan = self._apply(page_set(batch.page), tiers)
        self._regions = self._split(self._regions)
        return plan

    def _start(self) -> None:
        pages = self._touched.pages
        nr_regions = min(self._min_nr_regions, len(pages))
        first = pages[np.arange(nr_regions) * len(pages) // nr_regions]
        first[0] = 0
        zeros = np.zeros(nr_regions)
        self._regions = _Regions(first, zeros, zeros, zeros)

    def _starts(self, regions: _Regions) -> NDArray[np.int64]:
        """Return the rank of each region's first page among those touched; and their number."""
        starts = np.searchsorted(self._touched.pages, regions.first)
        return np.append(starts, len(self._touched))

    def _aggregate(self, batch: Batch, tiers: Tiers) -> _Regions:
        """Look at NR_SAMPLES pages of each region; its age goes on if little has changed."""
        regions = self._regions
        starts = self._starts(regions)
        shape = (self.nr_regions, self._nr_samples)
        ranks = starts[:-1, np.newaxis] + np.floor(
            self._random.random(shape) * np.diff(starts)[:, np.newaxis]
        ).astype(np.int64)
        picked = self._touched.pages[ranks.ravel()]
        pages, rates = batch.rates(tiers.epoch_ns)
        seen = is_in(picked, pages)
        blind = is_in(picked, tiers.blind) | is_in(picked >> CHUNK_SHIFT, tiers.blind_chunks)
        chance = np.where(
            blind, np.repeat(regions.nr_accesses / self._nr_samples, self._nr_samples), 0.0
        )
        unused = (1 - 1 / self._nr_samples) ** rates
        chance[seen] = 1 - unused[np.searchsorted(pages, picked[seen])]
        used = self._random.random(len(picked)) < chance
        nr_accesses = used.reshape(shape).sum(axis=1).astype(np.float64)
        same = np.abs(nr_accesses - regions.nr_accesses) <= nr_accesses.max() / 10
        age = np.where(same, regions.age + 1, 0.0)
        return _Regions(regions.first, nr_accesses, regions.nr_accesses, age)

    def _merge(self, regions: _Regions) -> _Regions:
        """Join neighbours that are alike; if there are too many regions, also those less alike."""
        threshold = float(regions.nr_accesses.max()) / 10
        regions = self._merge_alike(regions, threshold)
        while len(regions.first) > self._max_nr_regions and threshold < self._nr_samples:
            threshold = max(2 * threshold, 1.0)
            regions = self._merge_alike(regions, threshold)
        return regions

    def _merge_alike(self, regions: _Regions, threshold: float) -> _Regions:
        sizes = np.diff(self._starts(regions)).tolist()
        size_max = max(len(self._touched) // self._min_nr_regions, 1)
        rows = list(zip(*(column.tolist() for column in regions), sizes, strict=True))
        merged = [rows[0]]
        for first, nr, before, age, size in rows[1:]:
            last_first, last_nr, last_before, last_age, last_size = merged[-1]
            if abs(nr - last_nr) > threshold or size + last_size > size_max:
                merged.append((first, nr, before, age, size))
                continue
            both = size + last_size
            mean_nr, mean_before, mean_age = (
                (mine * size + its * last_size) / both
                for mine, its in ((nr, last_nr), (before, last_before), (age, last_age))
            )
            merged[-1] = (last_first, mean_nr, mean_before, mean_age, both)
        first_pages, *columns, _ = zip(*merged, strict=True)
        return _Regions(np.array(first_pages, np.int64), *(np.array(c) for c in columns))

    def _split(self, regions: _Regions) -> _Regions:
        """Cut each region at a page by chance; twice if they are few, and as many as before."""
        nr_before, self._nr_regions_before = self._nr_regions_before, len(regions.first)
        if len(regions.first) > self._max_nr_regions // 2:
            return regions
        few = len(regions.first) == nr_before and len(regions.first) < self._max_nr_regions // 3
        for _ in range(2 if few else 1):
            starts = self._starts(regions)
            sizes = np.diff(starts)
            tenths = self._random.integers(1, 10, len(sizes))
            cuts = starts[:-1] + np.maximum(sizes * tenths // 10, 1)
            cut = sizes > 1
            which = np.repeat(np.arange(len(sizes)), 1 + cut)
            first = regions.first[which]
            first[1:][which[1:] == which[:-1]] = self._touched.pages[cuts[cut]]
            regions = _Regions(first, *(column[which] for column in regions[1:]))
        return regions

    def _apply(self, used: PageIds, tiers: Tiers) -> Plan:
        regions = self._regions
        nr_used = tiers.nr_ram_frames - max(tiers.nr_free_frames, 0)
        self._promote_quota = self._tune(
            self._promote_quota, nr_used / tiers.nr_ram_frames / self._used_goal, tiers
        )
        self._demote_quota = self._tune(
            self._demote_quota, (1 - nr_used / tiers.nr_ram_frames) / self._free_goal, tiers
        )
        heat = self._heat(tiers.epoch_ns)
        hot = regions.nr_accesses * 100 >= self._hot_percent * self._nr_samples
        young = used[~is_in(used, tiers.resident)]
        promote = self._pages_of(young, hot, -heat)[: int(self._promote_quota)]
        old = tiers.resident[~is_in(tiers.resident, tiers.blind) & ~is_in(tiers.resident, used)]
        demote = self._pages_of(old, regions.nr_accesses == 0, heat)[: int(self._demote_quota)]
        return plan_moves(promote, demote[: tiers.budget_pages // 2], tiers)

    def _heat(self, epoch_ns: int) -> NDArray[np.float64]:
        """Return 0..100 for each region: how much it is used, and for how long it has been so."""
        nr_accesses = self._regions.nr_accesses
        freq = 100 * nr_accesses / max(float(nr_accesses.max()), 1.0)
        age_log = np.minimum(np.log2(np.maximum(self._regions.age * epoch_ns / 1e9, 0.5)) + 1, 32)
        age_log = np.where(nr_accesses > 0, age_log, -age_log)
        age = (age_log + _AGE_LOG_MAX) * 100 / (2 * _AGE_LOG_MAX)
        freq_weight, age_weight = self._weights
        heat: NDArray[np.float64] = (freq * freq_weight + age * age_weight) / sum(self._weights)
        return heat

    def _pages_of(
        self, pages: PageIds, regions: NDArray[np.bool_], rank: NDArray[np.float64]
    ) -> PageIds:
        """Return those of *pages* that lie in one of *regions*, by the regions' rank."""
        where = np.searchsorted(self._regions.first, pages, side="right") - 1
        inside = regions[where]
        return pages[inside][np.argsort(rank[where[inside]], kind="stable")]

    def _tune(self, quota: float, score: float, tiers: Tiers) -> float:
        """Return the quota for the next epoch: more while the goal is missed, less beyond it."""
        scale = scale_of(self._scale, tiers.nr_ram_frames, REFERENCE_FRAMES)
        quota_max = max(scaled(self._quota_pages, scale) * tiers.epoch_ns / 1e9, 1.0)
        return min(max(quota * max(2 - score, 0.0), _QUOTA_MIN_PAGES), quota_max)
