"""AccessLog: the accesses of an epoch in their order, a ring of page ranges.

Recording is on the way of every read, so it stores three words and nothing more; the expansion to
single pages waits for the epoch. When the ring is full the oldest ranges go, and are counted.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import AccessKind, PageIds

__all__ = ["NR_RANGES_MAX", "AccessLog"]

NR_RANGES_MAX = 1 << 16
"""Ranges kept: more reads than one second of a busy mount has; 1.1 MiB."""

NR_EPOCH_PAGES_MAX = 1 << 20
"""Pages that one epoch hands to a policy; of more, the newest."""


class AccessLog:
    """A ring of (first page id, number of pages, kind)."""

    __slots__ = (
        "_kinds",
        "_next",
        "_nr_pages",
        "_pages",
        "kind",
        "nr_dropped_ranges",
        "nr_pages",
        "page",
    )

    def __init__(self) -> None:
        self.page: NDArray[np.int64] = np.zeros(NR_RANGES_MAX, np.int64)
        self.nr_pages: NDArray[np.int64] = np.zeros(NR_RANGES_MAX, np.int64)
        self.kind: NDArray[np.uint8] = np.zeros(NR_RANGES_MAX, np.uint8)
        self._pages = self.page.data
        self._nr_pages = self.nr_pages.data
        self._kinds = self.kind.data
        self._next = 0
        self.nr_dropped_ranges = 0

    def record(self, page: int, nr_pages: int, kind: AccessKind = AccessKind.READ) -> None:
        """Append the access to nr_pages pages from page id *page* on."""
        i = self._next & NR_RANGES_MAX - 1
        self._pages[i] = page
        self._nr_pages[i] = nr_pages
        self._kinds[i] = kind
        self._next += 1

    def take(self) -> tuple[PageIds, NDArray[np.uint8]]:
        """Return the pages accessed and how, one by one in order, and empty the log.

        Returns: int64 page ids and uint8 kinds, both of shape (nr_accesses,), copies.
        """
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
        return np.repeat(self.page[order], lengths) + offsets, np.repeat(self.kind[order], lengths)
