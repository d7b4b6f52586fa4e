"""A policy that moves so many pages of a file each epoch, whether anybody reads them or not."""

import numpy as np

from xipfs.policy.contract import PGOFF_BITS, Batch, Plan, Tiers

__all__ = ["Policy"]


class Policy:
    """file: its number. stride: how far apart the pages are, which are all different."""

    def __init__(self, *, file: int = 2, nr_pages: int = 1000, stride: int = 3) -> None:
        self._first = file << PGOFF_BITS
        self._nr_pages = nr_pages
        self._stride = stride

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Demote what is in RAM, and promote as much of what lies behind it."""
        demote = tiers.resident[: self._nr_pages // 2]
        nr_more = self._nr_pages - len(demote)
        start = tiers.epoch % 2 * nr_more
        promote = self._first + self._stride * np.arange(start, start + nr_more)
        return Plan(promote=promote, demote=demote)
