"""NOMAD: promotes some faults after a hint fault, off the faulting path; clean pages keep a shadow.

A page that had a hint fault waits in a list. Every later fault looks at the pages in the list:
one that was used since is marked accessed, and once it is active is queued for promotion. As a
fault itself leaves the accessed bit set, three later faults promote a page, and one fault of its
own was enough. A worker copies the pages of the queue while programs go on using them; a page that
is written meanwhile is left for another pass, NR_PASSES_MAX at most.

The shadow is the page's copy in NVRAM, which stays after promotion. Here every clean page has one
at no cost, and its demotion moves no byte; that is `Tiers.dirty` and the daemon's work, not a
decision. What is demoted is TPP's choice: RAM's inactive tail, until 2 % of the frames are free.

Differs from the module: its worker starts at once, so within an epoch the queue has no limit but
the plan's; what found no room or no budget waits in it, NR_QUEUED_MAX pages at most. A pass is an
epoch. Pages mapped more than once and pages of files are refused there, not here. Its look-back
distance of 20 drops only pages whose accessed bit is clear, and (a TODO there) nothing clears it:
it is left out. A page whose use could not be seen (`Tiers.blind`) is not reclaimed.
Under `cache=sampled` the sampler's drops are the scan (see policy.hintfault).
Source: Xiang et al., "Nomad: Non-Exclusive Memory Tiering via Transactional Page Migration", OSDI
2024; lingfenghsiang/Nomad, src/nomad_module/async_promote_main.c and nomad.patch @0fafe0e.
Uncertain: in which order shadows are reclaimed; NVRAM never needs them back, so none ever is.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import AccessKind, Batch, PageIds, Plan, Tiers, no_pages
from xipfs.policy.hintfault import HintFaults
from xipfs.policy.lrulists import ACTIVE, REFERENCED, LruLists
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats
from xipfs.policy.scale import scale_of, scaled
from xipfs.policy.target import nr_to_demote, plan_moves

__all__ = [
    "DEMOTE_SCALE_FACTOR",
    "NR_PASSES_MAX",
    "NR_QUEUED_MAX",
    "REFERENCE_FRAMES",
    "SCALE",
    "SCAN_PAGES",
    "SCAN_PERIOD_MS",
    "Policy",
]

NR_QUEUED_MAX = 512
"""Pages that wait for promotion, times `scale`; those that find the queue full are forgotten.

Source: async_promote_main.c, PROMOTE_QUEUE_LEN.
"""

NR_PASSES_MAX = 10
"""Times that the copy of a page is tried which is written while it is copied.

Source: nomad.patch, nomad_transit_pages(): at most 10 passes.
"""

DEMOTE_SCALE_FACTOR = 200
"""WMARK_DEMOTE, in ten thousandths of RAM's frames: 2 %. Source: nomad.patch, as tpp.patch."""

SCAN_PAGES = 65536
"""Pages armed by one scan, times `scale`: 256 MB.

Source: Linux 5.13, kernel/sched/fair.c, sysctl_numa_balancing_scan_size.
"""

SCAN_PERIOD_MS = 1000
"""Time from one scan to the next.

Source: Linux 5.13, kernel/sched/fair.c, sysctl_numa_balancing_scan_period_min.
"""

SCALE = None
"""Factor for SCAN_PAGES and NR_QUEUED_MAX; by default RAM's frames by REFERENCE_FRAMES.

Source: ours.
"""

REFERENCE_FRAMES = 1 << 16
"""RAM for which nothing is scaled: 256 MiB, what one scan covers.

Source: ours, so that a scan played under `cache=none` is about as fast as the sampler's drops.
"""

Rows = NDArray[np.int64]


class Policy:
    """A list of faults to look back at, a queue of promotions, and TPP's reclaim."""

    def __init__(
        self,
        *,
        nr_queued_max: int = NR_QUEUED_MAX,
        nr_passes_max: int = NR_PASSES_MAX,
        demote_scale_factor: int = DEMOTE_SCALE_FACTOR,
        scan_pages: int = SCAN_PAGES,
        scan_period_ms: int = SCAN_PERIOD_MS,
        scale: float | None = SCALE,
    ) -> None:
        self._nr_queued_max = nr_queued_max
        self._nr_passes_max = nr_passes_max
        self._demote_scale_factor = demote_scale_factor
        self._scan_pages = scan_pages
        self._scan_period_ms = scan_period_ms
        self._scale = scale
        self._stats = PageStats(flags=np.uint8, turn=np.int64, scan_ns=np.int64, passes=np.uint8)
        self._lists = LruLists(self._stats)
        self._faults = HintFaults(self._stats)
        # Pages, in the order of their faults and of their coming into the queue.
        self._listed = no_pages()
        self._queue = no_pages()

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Queue what later faults found active; promote the queue; demote to the watermark."""
        stats, lists = self._stats, self._lists
        scale = scale_of(self._scale, tiers.nr_ram_frames, REFERENCE_FRAMES)
        stats.rows(page_set(np.concatenate([batch.page, tiers.resident])))
        lists.set_young(stats.find(page_set(batch.page)))
        faulted, _ = self._faults.take(batch, tiers)
        promoted = stats.pages[self._look_back(stats.pages[faulted], tiers.resident)]
        waiting = self._queue[~is_in(self._queue, tiers.resident)]
        queue = np.concatenate([waiting, promoted[~is_in(promoted, np.sort(waiting))]])
        candidates, aborted = self._copy(
            queue, page_set(batch.page[batch.kind == AccessKind.WRITE])
        )
        wmark_demote = -(-tiers.nr_ram_frames * self._demote_scale_factor // 10000)
        nr_wanted = nr_to_demote(len(candidates), tiers, nr_keep_free=wmark_demote)
        seen = tiers.resident[~is_in(tiers.resident, tiers.blind)]
        victims = lists.shrink(stats.find(seen), nr_wanted)
        lists.move_to_head(stats.find(candidates))
        self._faults.scan(
            tiers,
            scan_pages=scaled(self._scan_pages, scale),
            period_ns=self._scan_period_ms * 1_000_000,
        )
        plan = plan_moves(candidates, stats.pages[victims], tiers)
        left = np.concatenate([aborted, candidates[len(plan.promote) :]])
        self._queue = left[: scaled(self._nr_queued_max, scale)]
        stats["passes"][stats.find(page_set(left[len(self._queue) :]))] = 0
        return plan

    def _look_back(self, faulted: PageIds, resident: PageIds) -> Rows:
        """Let every fault look at the pages listed before it; return the rows that are queued."""
        listed = self._listed[~is_in(self._listed, resident)]
        new = ~is_in(faulted, np.sort(listed))
        nr_later = np.concatenate(
            [np.full(len(listed), len(faulted)), np.arange(len(faulted))[::-1][new]]
        )
        listed = np.concatenate([listed, faulted[new]])
        rows = self._stats.find(listed)
        flags = self._stats["flags"]
        # Later faults that a page still needs: to be referenced, to be active, to be queued.
        nr_needed = np.select(
            [(flags[rows] & ACTIVE) != 0, (flags[rows] & REFERENCED) != 0], [1, 2], 3
        )
        queued = nr_later >= nr_needed
        for nr_marks in (1, 2):
            self._lists.mark_page_accessed(rows[np.minimum(nr_later, nr_needed - 1) >= nr_marks])
        self._listed = listed[~queued]
        return rows[queued]

    def _copy(self, queue: PageIds, written: PageIds) -> tuple[PageIds, PageIds]:
        """Return which pages of the queue were copied, and which have to be tried again."""
        dirtied = is_in(queue, written)
        rows = self._stats.find(queue)
        passes = self._stats["passes"]
        passes[rows[dirtied]] += 1
        again = dirtied & (passes[rows] < self._nr_passes_max)
        passes[rows[~again]] = 0
        return queue[~dirtied], queue[again]
