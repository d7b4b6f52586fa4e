"""2Q: a page is let in on trial, and belongs to the cache if it comes again after it was put out.

    A1in   FIFO of the pages on trial; to be used while here counts for nothing
    A1out  FIFO of the numbers of pages that left A1in: no frames
    Am     LRU of the pages that were accessed while they were in A1out

A page that is used a few times within a short while, and never again, passes through A1in only;
so does a scan.

Source: T. Johnson and D. Shasha, "2Q: A Low Overhead High Performance Buffer Management Replacement
Algorithm", VLDB 1994, the full version.
Uncertain: the paper gives the sizes as what worked well, and nothing about caches so small that a
quarter is no page: here A1in then always gives way first. Nor does it say anything about a cache
that changes its size: here each queue takes its new size, and what is too much leaves by the rule.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable

from xipfs.policy.cache import CachePolicy, check_share

__all__ = ["KIN", "KOUT", "Policy"]

KIN = 0.25
"""Share of the frames that A1in may keep when room is needed.

Source: Johnson and Shasha, section 3: "Kin should be 25% of the page slots".
"""

KOUT = 0.5
"""Numbers that A1out holds, as a share of the frames.

Source: Johnson and Shasha, section 3: "Kout should hold identifiers for as many pages as would fit
on 50% of the buffer".
"""


class Policy(CachePolicy):
    """Two queues of pages, and one of numbers."""

    def __init__(self, *, kin: float = KIN, kout: float = KOUT) -> None:
        super().__init__()
        self._kin_share = check_share("kin", kin)
        self._kout_share = check_share("kout", kout)
        self._kin = self._kout = 0
        # Of each the next to leave is the first.
        self._a1in: deque[int] = deque()
        self._a1out: OrderedDict[int, None] = OrderedDict()
        self._am: OrderedDict[int, None] = OrderedDict()
        self._on_trial: set[int] = set()  # what is in A1in

    def access(self, page: int) -> None:
        """Let a new page in on trial, and one that is in A1out for good."""
        if page in self._am:
            self._am.move_to_end(page)
            return
        if page in self._on_trial:
            return
        known = page in self._a1out
        if known:
            del self._a1out[page]
        if len(self._a1in) + len(self._am) >= self.capacity:
            self.evict()
        if known:
            self._am[page] = None
        else:
            self._a1in.append(page)
            self._on_trial.add(page)

    def evict(self) -> None:
        """Let the oldest of A1in go if that has more than its share, else the last of Am."""
        if len(self._a1in) <= self._kin and self._am:
            self._am.popitem(last=False)
            return
        page = self._a1in.popleft()
        self._on_trial.remove(page)
        self._a1out[page] = None
        if len(self._a1out) > self._kout:
            self._a1out.popitem(last=False)

    def pages(self) -> Iterable[int]:
        """Return the cached pages: Am, the last used first, then A1in, the youngest first."""
        return [*reversed(self._am), *reversed(self._a1in)]

    def resize(self, capacity: int) -> None:
        """Cache at most *capacity* pages from now on, with the same shares."""
        self._kin = int(capacity * self._kin_share)
        self._kout = int(capacity * self._kout_share)
        super().resize(capacity)
        while len(self._a1out) > self._kout:
            self._a1out.popitem(last=False)
