"""AccessLog: the accesses in their order, a ring of page ranges, each within one tier.

    record   on the way of every read: stores four words, and nothing more
    take     once an epoch: what came since the last time, page by page, for the policy
    follow   for anybody else who reads along: the ranges since a position

When the ring is full the oldest ranges go; who had not read them is told how many there were.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import AccessKind, PageIds, Tier

__all__ = ["NR_RANGES_MAX", "AccessLog", "AccessRanges", "Accesses", "access_origin"]

NR_RANGES_MAX = 1 << 16
"""Ranges kept: more reads than one second of a busy mount has; 2 MiB."""

NR_EPOCH_PAGES_MAX = 1 << 20
"""Pages that one epoch hands to a policy; of more, the newest."""

_KIND_SHIFT = 1
_CLIENT_SHIFT = 8
_KIND_MASK = (1 << _CLIENT_SHIFT - _KIND_SHIFT) - 1


class Accesses(NamedTuple):
    """Single pages in the order of their access; all arrays have shape (nr_accesses,).

    page: int64 page ids. kind: uint8, AccessKind. tier: uint8, Tier, where the page was then.
    time_ns: int64, on the log's clock.
    """

    page: PageIds
    kind: NDArray[np.uint8]
    tier: NDArray[np.uint8]
    time_ns: NDArray[np.int64]


class AccessRanges(NamedTuple):
    """Ranges of pages in the order of their access; all arrays have shape (nr_ranges,).

    page: int64, the id of the first page. nr_pages: int64. kind, tier: uint8, as in Accesses.
    client: int32, the process that opened the file, 0 if nobody knows. time_ns: int64.
    next_position: from where to follow on. nr_lost: ranges that were overwritten before.
    """

    page: PageIds
    nr_pages: NDArray[np.int64]
    kind: NDArray[np.uint8]
    tier: NDArray[np.uint8]
    client: NDArray[np.int32]
    time_ns: NDArray[np.int64]
    next_position: int
    nr_lost: int


def access_origin(client: int, kind: AccessKind) -> int:
    """Return what `record` wants to know besides the pages: who reached them, and how.

    The tier is its lowest bit: `origin | Tier.NVRAM`.
    """
    return client << _CLIENT_SHIFT | kind << _KIND_SHIFT


class AccessLog:
    """A ring of (first page id, number of pages, origin, time). clock: nanoseconds, never back.

    nr_dropped_ranges: ranges that no policy saw, since there were too many in an epoch.
    """

    __slots__ = (
        "_columns",
        "_nr_pages",
        "_origins",
        "_pages",
        "_taken",
        "_times_ns",
        "clock",
        "nr_dropped_ranges",
        "position",
    )

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.clock = clock
        # Rows of one array: page, number of pages, origin, time. Stores go through memoryviews,
        # which are quicker for single numbers.
        self._columns: NDArray[np.int64] = np.zeros((4, NR_RANGES_MAX), np.int64)
        self._pages, self._nr_pages, self._origins, self._times_ns = (
            column.data for column in self._columns
        )
        self.position = 0
        self._taken = 0
        self.nr_dropped_ranges = 0

    def record(self, page: int, nr_pages: int, origin: int = Tier.NVRAM) -> None:
        """Append the access to nr_pages pages from page id *page* on; see `access_origin`."""
        i = self.position & NR_RANGES_MAX - 1
        self._pages[i] = page
        self._nr_pages[i] = nr_pages
        self._origins[i] = origin
        self._times_ns[i] = self.clock()
        self.position += 1

    def follow(self, position: int) -> AccessRanges:
        """Return the ranges recorded since *position*; copies. Start with `log.position`."""
        first = max(position, self.position - NR_RANGES_MAX)
        places = np.arange(first, self.position) & (NR_RANGES_MAX - 1)
        page, nr_pages, origin, time_ns = self._columns[:, places]
        return AccessRanges(
            page=page,
            nr_pages=nr_pages,
            kind=(origin >> _KIND_SHIFT & _KIND_MASK).astype(np.uint8),
            tier=(origin & 1).astype(np.uint8),
            client=(origin >> _CLIENT_SHIFT).astype(np.int32),
            time_ns=time_ns,
            next_position=self.position,
            nr_lost=first - position,
        )

    def take(self) -> Accesses:
        """Return what was accessed since the last time, page by page; copies."""
        ranges = self.follow(self._taken)
        self._taken = ranges.next_position
        within = np.cumsum(ranges.nr_pages[::-1])[::-1] <= NR_EPOCH_PAGES_MAX
        self.nr_dropped_ranges += ranges.nr_lost + int(np.count_nonzero(~within))
        lengths = ranges.nr_pages[within]
        starts = np.cumsum(lengths) - lengths
        offsets = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
        return Accesses(
            page=np.repeat(ranges.page[within], lengths) + offsets,
            kind=np.repeat(ranges.kind[within], lengths),
            tier=np.repeat(ranges.tier[within], lengths),
            time_ns=np.repeat(ranges.time_ns[within], lengths),
        )
