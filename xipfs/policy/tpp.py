"""TPP: a page that faults while already active is promoted at once; demotion runs ahead of need.

Promotion: a hint fault on a page in NVRAM that is not on the active list only marks it accessed;
on an active one it promotes. Two faults make a page active, so a third one promotes it: that is
the hysteresis. Demotion: whenever fewer than WMARK_DEMOTE frames are free, the tail of RAM's
inactive list goes to NVRAM until they are; so room is there before it is asked for.

Differs from the patch: an epoch has all its faults first and then reclaims, where kswapd runs
beside them; a promotion may take what the watermark keeps free, and the next reclaim restores it.
WMARK_DEMOTE's lower bound, twice WMARK_HIGH, matters below 300 MiB only and would be much of a
small tier: it is left out. No huge pages, no test of VM_MIXEDMAP or of read-only file mappings, for
which mainline arms no hint fault. Files begin in NVRAM: nothing is allocated in RAM first. A page
whose use could not be seen (`Tiers.blind`) is not reclaimed.
Under `cache=sampled` the sampler's drops are the scan (see policy.hintfault).
Source: Maruf et al., "TPP: Transparent Page Placement for CXL-Enabled Tiered-Memory", ASPLOS 2023;
lingfenghsiang/Nomad, src/implementation_patches/tpp.patch @0fafe0e.
Uncertain: that promotion ignores the allocation watermark; the paper speaks of the second fault,
its patch calls mark_page_accessed(), which activates at the second and so promotes at the third.
"""

import numpy as np

from xipfs.policy.contract import Batch, Plan, Tiers
from xipfs.policy.hintfault import HintFaults
from xipfs.policy.lrulists import LruLists
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats
from xipfs.policy.scale import scale_of, scaled
from xipfs.policy.target import nr_to_demote, plan_moves

__all__ = [
    "DEMOTE_SCALE_FACTOR",
    "REFERENCE_FRAMES",
    "SCALE",
    "SCAN_PAGES",
    "SCAN_PERIOD_MS",
    "Policy",
]

DEMOTE_SCALE_FACTOR = 200
"""WMARK_DEMOTE, in ten thousandths of RAM's frames: 2 %.

Source: tpp.patch, demote_scale_factor; clamp(managed * factor / 10000, 2 * WMARK_HIGH, managed).
"""

SCAN_PAGES = 65536
"""Pages armed by one scan, times `scale`: 256 MB.

Source: Linux 6.3, kernel/sched/fair.c, sysctl_numa_balancing_scan_size.
"""

SCAN_PERIOD_MS = 1000
"""Time from one scan to the next.

Source: Linux 6.3, kernel/sched/fair.c, sysctl_numa_balancing_scan_period_min; it never grows here.
"""

SCALE = None
"""Factor for SCAN_PAGES; by default RAM's frames by REFERENCE_FRAMES. Source: ours."""

REFERENCE_FRAMES = 1 << 16
"""RAM for which nothing is scaled: 256 MiB, what one scan covers.

Source: ours, so that a scan played under `cache=none` is about as fast as the sampler's drops.
"""


class Policy:
    """Hint faults and two lists; reclaim to a watermark of its own."""

    def __init__(
        self,
        *,
        demote_scale_factor: int = DEMOTE_SCALE_FACTOR,
        scan_pages: int = SCAN_PAGES,
        scan_period_ms: int = SCAN_PERIOD_MS,
        scale: float | None = SCALE,
    ) -> None:
        self._demote_scale_factor = demote_scale_factor
        self._scan_pages = scan_pages
        self._scan_period_ms = scan_period_ms
        self._scale = scale
        self._stats = PageStats(flags=np.uint8, turn=np.int64, scan_ns=np.int64)
        self._lists = LruLists(self._stats)
        self._faults = HintFaults(self._stats)

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Promote active pages that faulted; demote to the watermark."""
        stats, lists = self._stats, self._lists
        stats.rows(page_set(np.concatenate([batch.page, tiers.resident])))
        lists.set_young(stats.find(page_set(batch.page)))
        faulted, _ = self._faults.take(batch, tiers)
        active = lists.is_active(faulted)
        lists.mark_page_accessed(faulted[~active])
        candidates = faulted[active]
        wmark_demote = -(-tiers.nr_ram_frames * self._demote_scale_factor // 10000)
        nr_wanted = nr_to_demote(len(candidates), tiers, nr_keep_free=wmark_demote)
        seen = tiers.resident[~is_in(tiers.resident, tiers.blind)]
        victims = lists.shrink(stats.find(seen), nr_wanted)
        lists.move_to_head(candidates)
        self._faults.scan(
            tiers,
            scan_pages=scaled(
                self._scan_pages, scale_of(self._scale, tiers.nr_ram_frames, REFERENCE_FRAMES)
            ),
            period_ns=self._scan_period_ms * 1_000_000,
        )
        return plan_moves(stats.pages[candidates], stats.pages[victims], tiers)
