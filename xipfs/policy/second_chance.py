"""Promotes a page when it is read again in a later epoch; demotes by CLOCK (second chance).

One reading proves nothing: a scan reads every page once, and pages that are only scanned must not
push out those that are used. So a page waits in a history after its first epoch, and is promoted
by an access in another epoch while it is still remembered.

Room is made by CLOCK: the hand goes round the pages in RAM; one that was referenced since the hand
last passed loses its mark and stays (its second chance), one that was not is demoted. A page whose
accesses cannot be seen (`Tiers.blind`) counts as referenced. Nothing is demoted without need, and
a hand that finds only referenced pages stops after one round: then promotion waits.

Source: F. J. Corbato, "A Paging Experiment with the Multics System", 1968, for CLOCK; the history
is the A1out queue of 2Q (Johnson and Shasha, VLDB 1994) with the frames it needs left out.
Uncertain: HISTORY_RATIO is ours, chosen so that a hot set is recognised beside a scan of an image
16 times as large as the RAM tier.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import Batch, PageIds, Plan, Tiers, no_pages
from xipfs.policy.pageset import is_in, page_set

__all__ = ["HISTORY_RATIO", "Policy"]

HISTORY_RATIO = 16
"""Pages remembered after one epoch with accesses, as a multiple of the RAM tier's frames."""

_NR_HISTORY_PAGES_MIN = 4096


class Policy:
    """CLOCK behind a history of pages seen once."""

    def __init__(self, *, history_ratio: int = HISTORY_RATIO) -> None:
        self._history_ratio = history_ratio
        # Pages seen, not resident: sorted ids, and the epoch each was last seen in.
        self._history = no_pages()
        self._history_epoch = no_pages()
        # Pages in RAM in the order of the clock, their marks, and the next one to look at.
        self._ring = no_pages()
        self._referenced: NDArray[np.bool_] = np.empty(0, np.bool_)
        self._hand = 0

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Promote pages seen in an earlier epoch too, as far as CLOCK finds room."""
        seen = page_set(batch.page)
        self._follow_residents(tiers.resident)
        self._referenced |= is_in(self._ring, seen) | is_in(self._ring, tiers.blind)
        absent = seen[~is_in(seen, tiers.resident)]
        candidates = absent[is_in(absent, self._history)]
        self._remember(absent, tiers)
        free = min(tiers.nr_free_frames, tiers.budget_pages)
        nr_wanted = len(candidates) - free
        victims = no_pages()
        if nr_wanted > 0:
            victims = self._take_victims(min(nr_wanted, (tiers.budget_pages - free) // 2))
        return Plan(promote=candidates[: free + len(victims)], demote=victims)

    def _follow_residents(self, resident: PageIds) -> None:
        """Make the ring hold just the pages that are in RAM; new ones come behind the hand."""
        stays = is_in(self._ring, resident)
        hand = int(np.count_nonzero(stays[: self._hand]))
        ring, referenced = self._ring[stays], self._referenced[stays]
        new = resident[~is_in(resident, np.sort(ring))]
        self._ring = np.concatenate([ring[:hand], new, ring[hand:]])
        marks = np.ones(len(new), np.bool_)
        self._referenced = np.concatenate([referenced[:hand], marks, referenced[hand:]])
        self._hand = hand + len(new)

    def _take_victims(self, nr_wanted: int) -> PageIds:
        """Move the hand, at most once round, until it has passed nr_wanted unreferenced pages."""
        order = np.roll(np.arange(len(self._ring)), -self._hand)
        idle = np.flatnonzero(~self._referenced[order])[:nr_wanted]
        nr_passed = int(idle[-1]) + 1 if nr_wanted and len(idle) == nr_wanted else len(order)
        self._referenced[order[:nr_passed]] = False
        if len(order):
            self._hand = (self._hand + nr_passed) % len(order)
        return self._ring[order[idle]]

    def _remember(self, absent: PageIds, tiers: Tiers) -> None:
        places = np.searchsorted(self._history, absent)
        known = is_in(absent, self._history)
        self._history_epoch[places[known]] = tiers.epoch
        self._history = np.insert(self._history, places[~known], absent[~known])
        self._history_epoch = np.insert(self._history_epoch, places[~known], tiers.epoch)
        limit = max(self._history_ratio * tiers.nr_ram_frames, _NR_HISTORY_PAGES_MIN)
        if len(self._history) > limit:
            newest = np.sort(np.argsort(self._history_epoch, kind="stable")[-limit:])
            self._history = self._history[newest]
            self._history_epoch = self._history_epoch[newest]
