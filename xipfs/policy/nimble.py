"""Nimble: the kernel's lists as the profile; NVRAM's active pages against RAM's inactive ones.

Each period half of every list is looked at, from the tail: an inactive page that was used in this
period and in the one before becomes active, an active one inactive. Then the active pages of
NVRAM go to RAM. For as many as there is no free frame for, pages from the tail of RAM's inactive
list are exchanged with them, two copies at once without a free page between. While there is more
room in RAM than may be moved in one go, inactive pages of NVRAM are promoted as well.

What made Nimble fast, copying by several threads, many pages at a time and huge ones whole, is a
matter of cost and not of choice: the plan has pairs in `exchange`, and their price is the model's.

Differs from Nimble: a period is an epoch, and `mm_manage`'s nr_pages is the budget. Of NVRAM's
lists only pages that were used are looked at: the others could not become active. Its code
exchanges huge pages only, and demotes and promotes those of 4 KiB; here these are all that there
is, and are exchanged (`exchange=no` for theirs). VM_EXEC is not known, so executable pages do not
stay longer. A page of RAM that is `Tiers.blind` is not looked at.
Under `cache=sampled` a page that came back after an epoch or later was not used in the one before.
Source: Yan et al., "Nimble Page Management for Tiered Memory Systems", ASPLOS 2019;
ysarch-lab/nimble_page_management_asplos_2019, mm/memory_manage.c @05e5371.
Uncertain: how often the paper's runs called mm_manage; there is nothing here that `scale` would be
for.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import Batch, PageIds, Plan, Tiers
from xipfs.policy.lrulists import LruLists, nr_idle_epochs
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.pagestats import PageStats
from xipfs.policy.target import plan_moves

__all__ = ["EXCHANGE", "SCAN_DIVISOR", "Policy"]

SCAN_DIVISOR = 2
"""Of each list, this part is looked at in a period.

Source: memory_manage.c, shrink_lists_node_memcg(): lruvec_size_memcg_node(...) / 2.
"""

EXCHANGE = True
"""Whether pages change places, MPOL_MF_EXCHANGE, or one goes before the other comes.

Source: memory_manage.c, do_mm_manage(); the paper's section on exchange.
"""


class Policy:
    """Active against inactive, in pairs."""

    def __init__(self, *, scan_divisor: int = SCAN_DIVISOR, exchange: bool = EXCHANGE) -> None:
        self._scan_divisor = scan_divisor
        self._exchange = exchange
        self._stats = PageStats(flags=np.uint8, turn=np.int64, epoch=np.int64)
        self._lists = LruLists(self._stats)

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Look at half of the lists; exchange what is active below for what is inactive above."""
        stats, lists = self._stats, self._lists
        stats.rows(page_set(np.concatenate([batch.page, tiers.resident])))
        pages = page_set(batch.page)
        rows, nr_idle = stats.find(pages), nr_idle_epochs(batch, pages, stats, tiers)
        stats["epoch"][rows] = tiers.epoch
        below = ~is_in(pages, tiers.resident)
        stats["flags"][rows[below & (nr_idle > 0)]] = 0
        lists.set_young(rows)
        self._look_below(rows[below])
        seen = stats.find(tiers.resident[~is_in(tiers.resident, tiers.blind)])
        self._look_above(seen)
        hot = lists.by_turn(rows[below][lists.is_active(rows[below])])
        nr_free = max(tiers.nr_free_frames, 0)
        if nr_free > tiers.budget_pages:
            cold = np.flatnonzero(~is_in(stats.pages, tiers.resident))
            cold = lists.by_turn(cold[~is_in(cold, np.sort(hot))])
            hot = np.concatenate([hot, cold])[: tiers.budget_pages]
        inactive = lists.by_turn(seen[~lists.is_active(seen)])
        return self._plan(stats.pages[hot], stats.pages[inactive], tiers)

    def _look_below(self, rows: NDArray[np.int64]) -> None:
        """Age pages of NVRAM, all of them used."""
        active = self._lists.is_active(rows)
        self._lists.age_inactive(rows[~active])

    def _look_above(self, rows: NDArray[np.int64]) -> None:
        """Age the tails of RAM's lists."""
        active = self._lists.is_active(rows)
        for among, age in (
            (rows[~active], self._lists.age_inactive),
            (rows[active], self._lists.deactivate),
        ):
            age(self._lists.by_turn(among)[: -(-len(among) // self._scan_divisor)])

    def _plan(self, hot: PageIds, inactive: PageIds, tiers: Tiers) -> Plan:
        nr_free = min(max(tiers.nr_free_frames, 0), tiers.budget_pages)
        nr_pairs = max(len(hot) - nr_free, 0)
        nr_pairs = min(nr_pairs, len(inactive), (tiers.budget_pages - nr_free) // 2)
        if not self._exchange:
            return plan_moves(hot[: nr_free + nr_pairs], inactive[:nr_pairs], tiers)
        pairs = np.column_stack([inactive[:nr_pairs], hot[:nr_pairs]])
        return Plan(promote=hot[nr_pairs : nr_pairs + nr_free], exchange=pairs)
