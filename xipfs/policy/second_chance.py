"""Promotes a page when it is read again in a later epoch; demotes by CLOCK (second chance).

One reading proves nothing: a scan reads every page once, and pages that are only scanned must not
push out those that are used. So a page waits in a history after its first epoch, and is promoted
by an access in another epoch while it is still remembered.

Room is made by CLOCK: the hand goes round the pages in RAM and takes a chance from each; one that
has none left is demoted. A page is promoted with one chance (its second) and earns more by being
used, at most CHANCES_MAX: one for each access; or, where the sampler had dropped the page, by how
soon it came back, since one access then stands for many or for few. So of two pages that are both
used, the one used more often stays. The hand takes nothing from a page whose accesses could not be
seen (`Tiers.blind`). Nothing is demoted without need, and the hand goes round at most once an
epoch: if all have chances left, promotion waits, the most used first. A page that came back late
makes nobody leave, and gets at most half of the frames that are free.

Source: F. J. Corbato, "A Paging Experiment with the Multics System", 1968, for CLOCK; counted
chances are GCLOCK (A. J. Smith, "Sequentiality and Prefetching in Database Systems", 1978); the
history is the A1out queue of 2Q (Johnson and Shasha, VLDB 1994) with the frames it needs left out.
Uncertain: the constants are ours. HISTORY_RATIO is chosen so that a hot set is recognised beside a
scan of an image 16 times as large as the RAM tier, CHANCES_MAX so that a page that has gone cold
leaves after a few epochs.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import Batch, PageIds, Plan, Tiers, no_pages
from xipfs.policy.pageset import is_in

__all__ = ["CHANCES_MAX", "HISTORY_RATIO", "QUICK_USES", "Policy"]

CHANCES_MAX = 4
"""Rounds of the hand that a page survives after it was last used."""

QUICK_USES = 4
"""A page used so often in an epoch, by its latency, is used enough: more earns nothing more."""

_NR_USES_PER_CHANCE = 2
"""Uses in an epoch, by its latency, that earn a page a chance; the hand takes one an epoch."""

HISTORY_RATIO = 16
"""Pages remembered after one epoch with accesses, as a multiple of the RAM tier's frames.

Source: ours, so that a hot set is recognised beside a scan of an image 16 times as large.
"""

_NR_HISTORY_PAGES_MIN = 4096


class Policy:
    """CLOCK behind a history of pages seen once."""

    def __init__(self, *, history_ratio: int = HISTORY_RATIO) -> None:
        self._history_ratio = history_ratio
        # Pages seen, not resident: sorted ids, and the epoch each was last seen in.
        self._history = no_pages()
        self._history_epoch = no_pages()
        # Pages in RAM in the order of the clock, their chances, and the next one to look at.
        self._ring = no_pages()
        self._chances = no_pages()
        self._hand = 0

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Promote pages seen in an earlier epoch too, as far as CLOCK finds room."""
        seen, counts = batch.counts()
        self._follow_residents(tiers.resident)
        uses = _estimate_uses(batch, seen, tiers.epoch_ns)
        timed = uses >= 0
        used = is_in(self._ring, seen)
        earned = np.where(timed, np.minimum(uses, QUICK_USES) // _NR_USES_PER_CHANCE, counts)
        self._chances[used] += earned[np.searchsorted(seen, self._ring[used])]
        np.minimum(self._chances, CHANCES_MAX, out=self._chances)
        absent = ~is_in(seen, tiers.resident)
        waiting = absent & is_in(seen, self._history)
        late = timed & (uses < _NR_USES_PER_CHANCE)
        by_use = np.argsort(-np.where(timed, uses, counts), kind="stable")
        eager = seen[by_use][(waiting & ~late)[by_use]]
        patient = seen[waiting & late]
        self._remember(seen[absent], tiers)
        free = min(tiers.nr_free_frames, tiers.budget_pages)
        nr_wanted = len(eager) - free
        if nr_wanted <= 0:
            return Plan(promote=np.concatenate([eager, patient[: -nr_wanted // 2]]))
        nr_swaps = min(nr_wanted, (tiers.budget_pages - free) // 2)
        victims = self._take_victims(nr_swaps, tiers.blind)
        return Plan(promote=eager[: free + len(victims)], demote=victims)

    def _follow_residents(self, resident: PageIds) -> None:
        """Make the ring hold just the pages that are in RAM; new ones come behind the hand."""
        stays = is_in(self._ring, resident)
        hand = int(np.count_nonzero(stays[: self._hand]))
        ring, chances = self._ring[stays], self._chances[stays]
        new = resident[~is_in(resident, np.sort(ring))]
        self._ring = np.concatenate([ring[:hand], new, ring[hand:]])
        second = np.ones(len(new), np.int64)
        self._chances = np.concatenate([chances[:hand], second, chances[hand:]])
        self._hand = hand + len(new)

    def _take_victims(self, nr_wanted: int, blind: PageIds) -> PageIds:
        """Move the hand, at most once round, until it has passed nr_wanted pages to demote."""
        order = np.roll(np.arange(len(self._ring)), -self._hand)
        order = order[~is_in(self._ring[order], blind)]
        spent = np.flatnonzero(self._chances[order] == 0)[:nr_wanted]
        nr_passed = int(spent[-1]) + 1 if nr_wanted and len(spent) == nr_wanted else len(order)
        passed = order[:nr_passed]
        self._chances[passed] = np.maximum(self._chances[passed] - 1, 0)
        if nr_passed:
            self._hand = int(passed[-1] + 1) % len(self._ring)
        return self._ring[order[spent]]

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


def _estimate_uses(batch: Batch, seen: PageIds, epoch_ns: int) -> NDArray[np.int64]:
    """Return how often each page of *seen* (sorted) is used in an epoch, by its latency; else -1.

    An access that came a fraction of an epoch after its page was dropped stands for as many as
    would have come in the epoch, had all been seen.
    """
    uses = np.full(len(seen), -1, np.int64)
    timed = batch.latency_ns >= 0
    places = np.searchsorted(seen, batch.page[timed])
    np.maximum.at(uses, places, epoch_ns // (batch.latency_ns[timed] + 1))
    return uses
