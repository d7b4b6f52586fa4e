"""LruLists: the kernel's active and inactive list, as two columns.

                      referenced again                    referenced
    inactive ----------------------------> active <------------------- active
       |  ^  referenced: once more round      |
       |  '-----------------------------------'  the tail, when the inactive list is the shorter
       v
    demoted: at the tail, and not referenced

A page's place on its list is its turn: the tail has the lowest. Bits of `flags` are the kernel's
PG_active and PG_referenced, and the accessed bit of the pte, here YOUNG.

Differs from Linux 6.1 (mm/vmscan.c, mm/swap.c): the inactive list is no shorter than the active
one, the kernel's ratio below 1 GiB; there is no workingset, no VM_EXEC, no priority.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import Batch, PageIds, Tiers
from xipfs.policy.pagestats import PageStats

__all__ = ["ACTIVE", "REFERENCED", "YOUNG", "LruLists", "nr_idle_epochs"]

ACTIVE, REFERENCED, YOUNG = 1, 2, 4

Rows = NDArray[np.int64]


class LruLists:
    """The lists of the pages of *stats*, by its columns flags (uint8) and turn (int64)."""

    def __init__(self, stats: PageStats) -> None:
        self._stats = stats
        self._next_turn = 1

    def is_active(self, rows: Rows) -> NDArray[np.bool_]:
        """Return for each of *rows* whether it is on the active list."""
        active: NDArray[np.bool_] = (self._stats["flags"][rows] & ACTIVE) != 0
        return active

    def set_young(self, rows: Rows) -> None:
        """Set the accessed bits, as the MMU does."""
        self._stats["flags"][rows] |= YOUNG

    def move_to_head(self, rows: Rows) -> None:
        """Give *rows* the next turns, in their order."""
        self._stats["turn"][rows] = np.arange(self._next_turn, self._next_turn + len(rows))
        self._next_turn += len(rows)

    def mark_page_accessed(self, rows: Rows) -> None:
        """Inactive, then referenced, then active, then active and referenced."""
        flags = self._stats["flags"]
        activated = rows[(flags[rows] & (ACTIVE | REFERENCED)) == REFERENCED]
        flags[rows] |= REFERENCED
        flags[activated] = (flags[activated] | ACTIVE) & ~np.uint8(REFERENCED)
        self.move_to_head(activated)

    def by_turn(self, rows: Rows) -> Rows:
        """Return *rows* from tail to head."""
        return rows[np.argsort(self._stats["turn"][rows], kind="stable")]

    def shrink(self, rows: Rows, nr_wanted: int) -> Rows:
        """Go from the tail of the inactive list until *nr_wanted* unreferenced rows are found.

        Returns: those rows, their flags cleared. Referenced ones that were passed stay, the second
        time as active ones. Afterwards the active list gives up its tail to the shorter inactive.
        """
        if not nr_wanted:
            return rows[:0]
        flags = self._stats["flags"]
        inactive = self.by_turn(rows[~self.is_active(rows)])
        spent = np.flatnonzero((flags[inactive] & YOUNG) == 0)[:nr_wanted]
        nr_passed = int(spent[-1]) + 1 if len(spent) == nr_wanted else len(inactive)
        passed = inactive[:nr_passed]
        self.age_inactive(passed[(flags[passed] & YOUNG) != 0])
        victims = inactive[spent]
        flags[victims] = 0
        stay = np.ones(len(self._stats), np.bool_)
        stay[victims] = False
        self.balance(rows[stay[rows]])
        return victims

    def age_inactive(self, rows: Rows) -> None:
        """Look at inactive *rows*: young and referenced become active; others round once more."""
        flags = self._stats["flags"]
        young = (flags[rows] & YOUNG) != 0
        again = young & ((flags[rows] & REFERENCED) != 0)
        flags[rows] = np.select([again, young], [ACTIVE, REFERENCED], 0)
        self.move_to_head(rows[young])

    def balance(self, rows: Rows) -> None:
        """Deactivate the tail of the active ones of *rows*, until the inactive are no fewer."""
        active = self.is_active(rows)
        nr_active = int(np.count_nonzero(active))
        nr_excess = max(2 * nr_active - len(rows) + 1, 0) // 2
        self.deactivate(self.by_turn(rows[active])[:nr_excess])

    def deactivate(self, rows: Rows) -> None:
        """Move *rows* to the head of the inactive list, their references forgotten."""
        self._stats["flags"][rows] = 0
        self.move_to_head(rows)


def nr_idle_epochs(
    batch: Batch, pages: PageIds, stats: PageStats, tiers: Tiers
) -> NDArray[np.int64]:
    """Return for each of *pages* (sorted) how many whole epochs it was not used before this use.

    Where the sampler had dropped the page, its latency tells, else stats["epoch"], its last use.
    """
    nr_idle: NDArray[np.int64] = np.maximum(tiers.epoch - stats["epoch"][stats.find(pages)] - 1, 0)
    timed = batch.latency_ns >= 0
    nr_idle[np.searchsorted(pages, batch.page[timed])] = batch.latency_ns[timed] // tiers.epoch_ns
    return nr_idle
