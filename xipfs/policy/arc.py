"""ARC: an LRU of pages seen once beside one of pages seen again; learns how large each should be.

    B1 [ numbers ] <- T1 [ once ] | T2 [ again ] -> B2 [ numbers ]

What leaves T1 or T2 is remembered in B1 or B2, and an access to a page in one of these says which
of the two should have been larger: p, the size that T1 should have, is moved that way.

Source: N. Megiddo and D. S. Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003,
figure 4. Its words are used here: T1, T2, B1, B2, p, REPLACE.
Uncertain: whether p is a real number; it is here, as in libCacheSim. The paper's cache keeps its
size. Here p and the queues are cut where it shrinks, by REPLACE and from the old ends; and where it
grows nothing is replaced until it is full again.
"""

from collections import OrderedDict
from collections.abc import Iterable

from xipfs.policy.cache import CachePolicy

__all__ = ["Policy"]


class Policy(CachePolicy):
    """Two queues of pages, two of numbers; the least recently used of each is its first."""

    def __init__(self) -> None:
        super().__init__()
        self._t1: OrderedDict[int, None] = OrderedDict()
        self._t2: OrderedDict[int, None] = OrderedDict()
        self._b1: OrderedDict[int, None] = OrderedDict()
        self._b2: OrderedDict[int, None] = OrderedDict()
        self._p = 0.0

    def access(self, page: int) -> None:
        """Do as figure 4 does, cases I to IV."""
        t1, t2, b1, b2 = self._t1, self._t2, self._b1, self._b2
        if page in t2:
            t2.move_to_end(page)
            return
        if page in t1:
            del t1[page]
            t2[page] = None
            return
        full = len(t1) + len(t2) >= self.capacity
        if page in b1:
            self._p = min(self._p + max(len(b2) / len(b1), 1.0), self.capacity)
            del b1[page]
            if full:
                self._replace()
            t2[page] = None
            return
        if page in b2:
            self._p = max(self._p - max(len(b1) / len(b2), 1.0), 0.0)
            del b2[page]
            if full:
                self._replace(in_b2=True)
            t2[page] = None
            return
        if full:
            self.evict()
        t1[page] = None

    def evict(self) -> None:
        """Make room for a page that is nowhere: case IV."""
        t1, b1, b2 = self._t1, self._b1, self._b2
        if len(t1) >= self.capacity:
            t1.popitem(last=False)  # L1 is full of pages: this one is not remembered
            return
        if len(t1) + len(b1) >= self.capacity:
            b1.popitem(last=False)
        elif len(t1) + len(self._t2) + len(b1) + len(b2) >= 2 * self.capacity:
            b2.popitem(last=False)
        self._replace()

    def pages(self) -> Iterable[int]:
        """Return the cached pages: T2, then T1, of each the last used first."""
        return [*reversed(self._t2), *reversed(self._t1)]

    def resize(self, capacity: int) -> None:
        """Cache at most *capacity* pages from now on, and remember as many."""
        self.capacity = capacity
        self._p = min(self._p, capacity)
        while len(self._t1) + len(self._t2) > capacity:
            self._replace()
        while len(self._t1) + len(self._b1) > capacity:
            self._b1.popitem(last=False)
        while len(self._t1) + len(self._t2) + len(self._b1) + len(self._b2) > 2 * capacity:
            self._b2.popitem(last=False)

    def _replace(self, *, in_b2: bool = False) -> None:
        """REPLACE: let the last of T1 go if that is larger than p, else of T2; remember it."""
        nr_t1 = len(self._t1)
        if nr_t1 and (nr_t1 > self._p or (in_b2 and nr_t1 == self._p) or not self._t2):
            self._b1[self._t1.popitem(last=False)[0]] = None
        else:
            self._b2[self._t2.popitem(last=False)[0]] = None
