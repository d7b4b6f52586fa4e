"""LFU: keeps the pages that were used most often; old uses count for less and less.

    used 9 times  [ a ]
    used 2 times  [ d | c ]
    used once     [ g | f | e ]  of the least used, the one not used for longest leaves first: e

In-cache LFU: a page that leaves loses its count, and one that is let in starts with one use. Every
access takes the same time, however many pages there are: each count has a list of its pages. Every
so many accesses all counts are halved, so that a page that was hot once does not stay for ever.

Source: K. Shah, A. Mitra and D. Matani, "An O(1) algorithm for implementing the LFU cache eviction
scheme", 2010, for the lists; J. T. Robinson and M. V. Devarakonda, "Data Cache Management Using
Frequency-Based Replacement", SIGMETRICS 1990, for the halving, a count C becoming C/2 rounded up.
Uncertain: when to halve. Robinson and Devarakonda do it as the average count grows; here it is done
as TinyLFU does it, after a number of accesses. Which of two pages with the same count leaves is
open in all of these; after a halving, the one that had the smaller count before.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable

from xipfs.errors import PolicyError
from xipfs.policy.cache import CachePolicy

__all__ = ["HALVE_EVERY", "Policy"]

HALVE_EVERY = 10
"""Accesses, for each frame of the RAM tier, after which all counts are halved; 0: never.

Source: TinyLFU's reset (Einziger, Friedman and Manes, ACM Transactions on Storage 13(4), 2017),
with the sample size of Caffeine's FrequencySketch: ten times the size of the cache.
"""


class Policy(CachePolicy):
    """Lists of pages by count, each in the order of last use."""

    def __init__(self, *, halve_every: int = HALVE_EVERY) -> None:
        super().__init__()
        if halve_every < 0:
            raise PolicyError(f"halve_every is {halve_every}: give a number of accesses, or 0")
        self._halve_every = halve_every
        self._nr_before_halving = 0
        self._count: dict[int, int] = {}
        # Count -> its pages, the next to leave first; there is no empty one.
        self._lists: defaultdict[int, OrderedDict[int, None]] = defaultdict(OrderedDict)
        self._least = 1  # at most the least count that there is

    def access(self, page: int) -> None:
        """Count it; make room for a new page, which has been used once then."""
        counts, lists = self._count, self._lists
        count = counts.get(page)
        if count is None:
            if len(counts) >= self.capacity:
                self.evict()
            counts[page] = self._least = 1
            lists[1][page] = None
        else:
            counts[page] = count + 1
            pages = lists[count]
            if len(pages) > 1:
                del pages[page]
                lists[count + 1][page] = None
            else:  # the list goes up with its only page, unless there is one
                del lists[count]
                if lists.setdefault(count + 1, pages) is not pages:
                    lists[count + 1][page] = None
                if self._least == count:
                    self._least = count + 1
        self._nr_before_halving -= 1
        if not self._nr_before_halving:
            self._halve()

    def evict(self) -> None:
        """Let the page go that was used least often, and of those the one used longest ago."""
        if self._least not in self._lists:
            self._least = min(self._lists)
        pages = self._lists[self._least]
        page, _ = pages.popitem(last=False)
        del self._count[page]
        if not pages:
            del self._lists[self._least]

    def pages(self) -> Iterable[int]:
        """Return the cached pages, the most often used first."""
        for count in sorted(self._lists, reverse=True):
            yield from reversed(self._lists[count])

    def resize(self, capacity: int) -> None:
        """Cache at most *capacity* pages from now on; the next halving is a full time away."""
        self._nr_before_halving = self._halve_every * capacity
        super().resize(capacity)

    def _halve(self) -> None:
        """Halve all counts, rounding up; where two lists become one, the lower comes first."""
        counts = sorted(self._lists)
        lists = [self._lists.pop(count) for count in counts]
        for count, pages in zip(counts, lists, strict=True):
            half = (count + 1) // 2
            self._lists[half].update(pages)
            self._count.update(dict.fromkeys(pages, half))
        self._least = 1
        self._nr_before_halving = self._halve_every * self.capacity
