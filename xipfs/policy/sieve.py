"""SIEVE: as CLOCK, but a page that the hand passes keeps its place, and new ones go to the head.

    head  [ e 0 | d 1 | c 0 | b 0 | a 0 ]  tail
                        ^ hand, moving towards the head: c leaves; a and b were passed before

So new pages are soon reached by the hand, and old ones that are used stay behind it.

Source: Y. Zhang, J. Yang, Y. Yue, Y. Vigfusson and K. V. Rashmi, "SIEVE is Simpler than LRU: an
Efficient Turn-Key Eviction Algorithm for Web Caches", NSDI 2024, algorithm 1.
Uncertain: the paper has no scan resistance to offer, and says so: a page that comes once is seen by
the hand at most one round later.
"""

from collections import deque
from collections.abc import Iterable

from xipfs.policy.cache import CachePolicy

__all__ = ["Policy"]


class Policy(CachePolicy):
    """A queue with a hand, cut in two where the hand is, and a bit for each page."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead: deque[int] = deque()  # from the hand to the head of the queue
        self._passed: deque[int] = deque()  # from the tail to the hand
        self._visited: dict[int, bool] = {}

    def access(self, page: int) -> None:
        """Set the page's bit; a new one has none, and goes to the head."""
        visited = self._visited
        if page in visited:
            visited[page] = True
            return
        if len(visited) >= self.capacity:
            self.evict()
        visited[page] = False
        self._ahead.append(page)

    def evict(self) -> None:
        """Move the hand on until it finds a page without a bit; from the head to the tail."""
        visited = self._visited
        while True:
            page = self._ahead.popleft()
            stays = visited[page]
            if stays:
                visited[page] = False
                self._passed.append(page)
            if not self._ahead:
                self._ahead, self._passed = self._passed, self._ahead
            if not stays:
                del visited[page]
                return

    def pages(self) -> Iterable[int]:
        """Return the cached pages, the one that the hand comes to last first."""
        return reversed([*self._ahead, *self._passed])
