"""AccessLog: the accesses of an epoch in their order, a ring of page ranges.

Recording is on the way of every read, so it stores four words and nothing more; the expansion to
single pages waits for the epoch. When the ring is full the oldest ranges go, and are counted.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import AccessKind, PageIds

__all__ = ["NR_RANGES_MAX", "AccessLog", "Accesses"]

NR_RANGES_MAX = 1 << 16
"""Ranges kept: more reads than one second of a busy mount has; 1.6 MiB."""

NR_EPOCH_PAGES_MAX = 1 << 20
"""Pages that one epoch hands to a policy; of more, the newest."""


class Accesses(NamedTuple):
    """Single pages in the order of their access; all arrays have shape (nr_accesses,).

    page: int64 page ids. kind: uint8, AccessKind. time_ns: int64, on the log's clock.
    """

    page: PageIds
    kind: NDArray[np.uint8]
    time_ns: NDArray[np.int64]


class AccessLog:
    """A ring of (first page id, number of pages, kind, time). clock: nanoseconds, never back."""

    __slots__ = (
        "_kinds",
        "_next",
        "_nr_pages",
        "_pages",
        "_times_ns",
        "clock",
        "kind",
        "nr_dropped_ranges",
        "nr_pages",
        "page",
        "time_ns",
    )

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.clock = clock
        self.page: NDArray[np.int64] = np.zeros(NR_RANGES_MAX, np.int64)
        self.nr_pages: NDArray[np.int64] = np.zeros(NR_RANGES_MAX, np.int64)
        self.kind: NDArray[np.uint8] = np.zeros(NR_RANGES_MAX, np.uint8)
        self.time_ns: NDArray[np.int64] = np.zeros(NR_RANGES_MAX, np.int64)
        self._pages = self.page.data
        self._nr_pages = self.nr_pages.data
        self._kinds = self.kind.data
        self._times_ns = self.time_ns.data
        self._next = 0
        self.nr_dropped_ranges = 0

    def record(self, page: int, nr_pages: int, kind: AccessKind = AccessKind.READ) -> None:
        """Append the access to nr_pages pages from page id *page* on."""
        i = self._next & NR_RANGES_MAX - 1
        self._pages[i] = page
        self._nr_pages[i] = nr_pages
        self._kinds[i] = kind
        self._times_ns[i] = self.clock()
        self._next += 1

    def take(self) -> Accesses:
        """Return what was accessed, page by page, copies; and empty the log."""
        count = min(self._next, NR_RANGES_MAX)
        order = (np.arange(self._next - count, self._next)) & (NR_RANGES_MAX - 1)
        self.nr_dropped_ranges += self._next - count
        self._next = 0
        lengths = self.nr_pages[order]
        within = np.cumsum(lengths[::-1])[::-1] <= NR_EPOCH_PAGES_MAX
        self.nr_dropped_ranges += int(count - np.count_nonzero(within))
        order, lengths = order[within], lengths[within]
        starts = np.cumsum(lengths) - lengths
        offsets = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
        return Accesses(
            page=np.repeat(self.page[order], lengths) + offsets,
            kind=np.repeat(self.kind[order], lengths),
            time_ns=np.repeat(self.time_ns[order], lengths),
        )
