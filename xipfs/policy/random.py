"""Promotes pages that were read, at random, and makes room for them at random.

What any policy that looks at the accesses has to beat; it costs two random choices an epoch.

Source: L. A. Belady, "A Study of Replacement Algorithms for a Virtual-Storage Computer", IBM
Systems Journal 5(2), 1966: RAND, the simplest of those compared there.
Uncertain: nothing, but RAND is asked at every fault, and lets in what faulted; this one is asked
once an epoch, and chooses among the pages of the epoch.
"""

import numpy as np

from xipfs.errors import PolicyError
from xipfs.policy.contract import Batch, Plan, Tiers
from xipfs.policy.pageset import is_in, page_set

__all__ = ["SEED", "Policy"]

SEED = 1
"""Where the random numbers start; the same seed chooses the same. Source: ours, any will do."""


class Policy:
    """Two random choices an epoch."""

    def __init__(self, *, seed: int = SEED) -> None:
        if seed < 0:
            raise PolicyError(f"seed is {seed}: give 0 or more")
        self._random = np.random.default_rng(seed)

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Promote as many of the pages of this epoch as budget and frames allow."""
        seen = page_set(batch.page)
        absent = seen[~is_in(seen, tiers.resident)]
        nr_free = min(len(absent), tiers.nr_free_frames, tiers.budget_pages)
        nr_room = min(len(tiers.resident), (tiers.budget_pages - nr_free) // 2)
        nr_swaps = min(len(absent) - nr_free, nr_room)
        promote = self._random.permutation(len(absent))[: nr_free + nr_swaps]
        demote = self._random.permutation(len(tiers.resident))[:nr_swaps]
        return Plan(promote=absent[promote], demote=tiers.resident[demote])
