"""HintFaults: NUMA balancing's view. A page is armed by a scan; its next access is a hint fault.

    take    the hint faults of an epoch, in their order, with their latencies
    scan    arm the next pages of the slow tier; a round through all that were ever touched
    arm     or arm pages of the caller's choice

    latency_ns = time of the fault - time of the scan: the hotter a page, the sooner

Under `cache=sampled` the kernel's cache is the pte that is armed: dropping a page from it arms it,
and Batch.latency_ns is the latency. So the sampler scans, and `scan` changes nothing.

Where every access is seen instead (`cache=none`), the scan is played here. As in Linux a page that
was never touched has no pte to arm, and one that is armed is passed over and costs nothing of the
scan's size. The accesses of an epoch are taken as spread evenly over it.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import Batch, Tiers
from xipfs.policy.pageset import is_in
from xipfs.policy.pagestats import PageStats

__all__ = ["HintFaults"]


class HintFaults:
    """Arms pages of *stats*, by its column scan_ns (int64): when it was armed, 0 if it is not.

    sampled: whether Batch.latency_ns tells; so it is once it ever did.
    """

    def __init__(self, stats: PageStats) -> None:
        self._stats = stats
        self.sampled = False
        self._credit_pages = 0.0
        self._cursor = -1

    def take(self, batch: Batch, tiers: Tiers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of pages in NVRAM that had a hint fault, in order, and the latencies.

        Every page of *batch* has a row. No row comes twice: after its fault a page is not armed.
        """
        timed = batch.latency_ns >= 0
        self.sampled = self.sampled or bool(timed.any())
        among = np.flatnonzero(timed) if self.sampled else np.arange(len(batch.page))
        pages, first = np.unique(batch.page[among], return_index=True)
        absent = ~is_in(pages, tiers.resident)
        rows, when = self._stats.find(pages), among[first]
        if self.sampled:
            faulted, latency_ns = absent, batch.latency_ns[when]
        else:
            scan_ns = self._stats["scan_ns"][rows]
            self._stats["scan_ns"][rows] = 0
            elapsed_ns = (when + 1) * tiers.epoch_ns // max(len(batch.page), 1)
            faulted, latency_ns = absent & (scan_ns > 0), _start_ns(tiers) + elapsed_ns - scan_ns
        in_order = np.argsort(when[faulted])
        return rows[faulted][in_order], latency_ns[faulted][in_order]

    def scan(self, tiers: Tiers, *, scan_pages: int, period_ns: int) -> None:
        """Arm the next pages in NVRAM, *scan_pages* every *period_ns*, round and round."""
        if self.sampled:
            return
        self._credit_pages += scan_pages * tiers.epoch_ns / period_ns
        nr_pages = int(self._credit_pages)
        self._credit_pages -= nr_pages
        pages, scan_ns = self._stats.pages, self._stats["scan_ns"]
        idle = np.flatnonzero((scan_ns == 0) & ~is_in(pages, tiers.resident))
        start = int(np.searchsorted(pages[idle], self._cursor, side="right"))
        chosen = np.concatenate([idle[start:], idle[:start]])[:nr_pages]
        self.arm(chosen, tiers)
        if len(chosen):
            self._cursor = int(pages[chosen[-1]])

    def arm(self, rows: NDArray[np.int64], tiers: Tiers) -> None:
        """Arm *rows*, pages in NVRAM, at the end of this epoch; what is armed stays as it is."""
        scan_ns = self._stats["scan_ns"]
        scan_ns[rows[scan_ns[rows] == 0]] = _start_ns(tiers) + tiers.epoch_ns


def _start_ns(tiers: Tiers) -> int:
    return tiers.epoch * tiers.epoch_ns
