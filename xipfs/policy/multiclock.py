"""MULTI-CLOCK: CLOCK with a third list, of the pages that were used again while already active.

    inactive -> inactive, referenced -> active -> active, referenced -> promote

A use in a scan's period takes a page one step to the right; a period without one takes the
reference away. Whatever is on NVRAM's promote list goes to RAM at once: a page that was used in
four periods, two and two behind each other. RAM has the same lists. When it needs room its clock
goes from the tail of the inactive list and demotes what is not referenced; the active list gives
its unreferenced tail to the inactive when that is the shorter; promote counts as active there.

Differs from MULTI-CLOCK: a scan is an epoch (its kpromoted wakes about once a second, which is the
mount's default). Pages of NVRAM are looked at when they are used, and find out then whether periods
went by without; nothing takes an active page of NVRAM back to inactive, since NVRAM is never short.
A page of RAM that is `Tiers.blind` is not looked at.
Under `cache=sampled` a page that came back after an epoch or later was unused in the one before.
Source: Maruf, Ghosh, Bhimani, Campello, Rudoff and Rangaswami, "MULTI-CLOCK: Dynamic Tiering for
Hybrid Memory Systems", HPCA 2022.
Uncertain: period and lists are as recalled: the code was not to be had. There is nothing here that
`scale` would be for.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import Batch, Plan, Tiers
from xipfs.policy.lrulists import nr_idle_epochs
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats
from xipfs.policy.target import nr_to_demote, plan_moves

__all__ = ["WMARK_HIGH_FACTOR", "Policy"]

WMARK_HIGH_FACTOR = 60
"""Frames that reclaim keeps free, in ten thousandths of RAM.

Source: Linux 5.3, mm/page_alloc.c, __setup_per_zone_wmarks(), for a node of 1 GiB: sqrt(16 * size
in KB) is 0.39 % of it, and two gaps of watermark_scale_factor are 0.2 %.
"""

_INACTIVE, _ACTIVE, _PROMOTE = 0, 2, 4

_UNREFERENCED = np.array([0, 0, 2, 2, 2], np.uint8)
"""The state after a period without use; one step right of each is with a reference."""

Rows = NDArray[np.int64]


class Policy:
    """Five states, a step for each period with a use."""

    def __init__(self, *, wmark_high_factor: int = WMARK_HIGH_FACTOR) -> None:
        self._wmark_high_factor = wmark_high_factor
        self._stats = PageStats(state=np.uint8, turn=np.int64, epoch=np.int64)
        self._next_turn = 1

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Take the pages a step on; promote the promote list, for the tail of RAM's inactive."""
        stats = self._stats
        stats.rows(page_set(np.concatenate([batch.page, tiers.resident])))
        state = stats["state"]
        pages = page_set(batch.page)
        rows = stats.find(pages)
        idle = rows[nr_idle_epochs(batch, pages, stats, tiers) > 0]
        unused = ~is_in(tiers.resident, tiers.blind) & ~is_in(tiers.resident, pages)
        idle = page_set(np.concatenate([idle, stats.find(tiers.resident[unused])]))
        state[idle] = _UNREFERENCED[state[idle]]
        stats["epoch"][rows] = tiers.epoch
        before = state[rows]
        state[rows] = np.minimum(before + 1, _PROMOTE)
        self._move_to_head(rows[(before + 1) % 2 == 0])
        listed = rows[~is_in(pages, tiers.resident) & (state[rows] == _PROMOTE)]
        listed = self._by_turn(listed)
        wmark_high = -(-tiers.nr_ram_frames * self._wmark_high_factor // 10000)
        nr_wanted = nr_to_demote(len(listed), tiers, nr_keep_free=wmark_high)
        seen = stats.find(tiers.resident[~is_in(tiers.resident, tiers.blind)])
        victims = self._shrink(seen, nr_wanted)
        plan = plan_moves(stats.pages[listed], stats.pages[victims], tiers)
        state[listed[: len(plan.promote)]] = _ACTIVE
        self._move_to_head(listed[: len(plan.promote)])
        return plan

    def _shrink(self, rows: Rows, nr_wanted: int) -> Rows:
        """Return at most nr_wanted unreferenced inactive rows, from the tail; then balance."""
        if not nr_wanted:
            return rows[:0]
        state = self._stats["state"]
        victims = self._by_turn(rows[state[rows] == _INACTIVE])[:nr_wanted]
        stay = rows[~is_in(rows, np.sort(victims))]
        active = self._by_turn(stay[state[stay] >= _ACTIVE])
        nr_excess = max(2 * len(active) - len(stay) + 1, 0) // 2
        tail = active[:nr_excess]
        spent = state[tail] == _ACTIVE
        state[tail] = np.where(spent, _INACTIVE, _ACTIVE)
        self._move_to_head(tail)
        return victims

    def _by_turn(self, rows: Rows) -> Rows:
        return rows[np.argsort(self._stats["turn"][rows], kind="stable")]

    def _move_to_head(self, rows: Rows) -> None:
        self._stats["turn"][rows] = np.arange(self._next_turn, self._next_turn + len(rows))
        self._next_turn += len(rows)
