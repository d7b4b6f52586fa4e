"""A policy that keeps in RAM what `Batch.rates` says is used most; after 8 epochs that counts half.

The plainest use of what the sampler tells: `tools/bench sampling --policy tools/rates.py` shows how
good that is, apart from what other policies make of it.
"""

import numpy as np

from xipfs.policy.contract import Batch, Plan, Tiers
from xipfs.policy.pagestats import PageStats
from xipfs.policy.target import plan_towards

__all__ = ["Policy"]

_KEPT = 0.5 ** (1 / 8)


class Policy:
    """Rates, summed up; a page that was not seen keeps what it had, but for the decay."""

    def __init__(self) -> None:
        self._stats = PageStats(uses=np.float32)

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Move towards the pages of the highest sums."""
        stats = self._stats
        stats["uses"] *= _KEPT
        pages, rates = batch.rates(tiers.epoch_ns)
        rows = stats.rows(pages)
        stats["uses"][rows] += rates
        stats.keep(stats["uses"] > 0.01)
        best = np.argsort(-stats["uses"], kind="stable")[: tiers.nr_ram_frames]
        return plan_towards(stats.pages[best], tiers)
