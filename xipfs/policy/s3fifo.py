"""S3-FIFO: a small FIFO where most pages come and go, and a large one for those used again there.

    new page --> [ small ] --used--> [ main ] --used since--> main again
                    |                   |
                not used             not used
                    v                   v
                 [ ghost ]            nothing       a page in the ghost goes to main at once

Most pages of a cache are used once; small sees that soon. No page moves when it is used, it only
counts, up to 3.

Source: J. Yang, Y. Zhang, Z. Qiu, Y. Yue and K. V. Rashmi, "FIFO Queues are All You Need for Cache
Eviction", SOSP 2023, algorithm 1; and the authors' own code, libCacheSim's S3FIFO.c.
Uncertain: where the two differ, it is the code's way here. Until the cache is full for the first
time, pages go to main once small is full (in the paper, to small); a page is looked up in the ghost
before room is made for it (in the paper, after); main may become larger than its share while small
is searched, and gives way at the next eviction. A cache of less than ten pages is too small for
the code: small has one page here.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable

from xipfs.policy.cache import CachePolicy, check_share

__all__ = ["GHOST_SHARE", "MOVE_TO_MAIN", "SMALL_SHARE", "Policy"]

SMALL_SHARE = 0.1
"""Share of the frames that is the small queue's. Source: Yang et al., section 4.1; S3FIFO.c."""

GHOST_SHARE = 0.9
"""Numbers that the ghost holds, as a share of the frames.

Source: Yang et al., section 4.1: as many as main has pages; S3FIFO.c, ghost-size-ratio.
"""

MOVE_TO_MAIN = 2
"""Uses in small, after the first, that a page needs to go to main.

Source: algorithm 1, `t.freq > 1`; S3FIFO.c, move-to-main-threshold.
"""

_COUNT_MAX = 3
"""Two bits. Source: algorithm 1."""


class Policy(CachePolicy):
    """Two queues of pages with a count for each, and one of numbers."""

    def __init__(
        self,
        *,
        small_share: float = SMALL_SHARE,
        ghost_share: float = GHOST_SHARE,
        move_to_main: int = MOVE_TO_MAIN,
    ) -> None:
        super().__init__()
        self._small_share = check_share("small_share", small_share)
        self._ghost_share = check_share("ghost_share", ghost_share)
        self._move_to_main = move_to_main
        self._nr_small = self._nr_ghost = 0
        self._has_evicted = False
        # Of each the next to leave is the first.
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._ghost: OrderedDict[int, None] = OrderedDict()
        self._count: dict[int, int] = {}  # of the pages in small and main

    def access(self, page: int) -> None:
        """Count it; a new page is let in to small, one that the ghost knows to main."""
        count = self._count.get(page)
        if count is not None:
            if count < _COUNT_MAX:
                self._count[page] = count + 1
            return
        known = page in self._ghost
        if known:
            del self._ghost[page]
        if len(self._count) >= self.capacity:
            self.evict()
        self._count[page] = 0
        if known or (not self._has_evicted and len(self._small) >= self._nr_small):
            self._main.append(page)
        else:
            self._small.append(page)

    def evict(self) -> None:
        """Let a page of small go, or of main if that has more than its share."""
        self._has_evicted = True
        if len(self._main) > self.capacity - self._nr_small or not self._evict_from_small():
            self._evict_from_main()

    def pages(self) -> Iterable[int]:
        """Return the cached pages: main, then small, of each the youngest first."""
        return [*reversed(self._main), *reversed(self._small)]

    def resize(self, capacity: int) -> None:
        """Cache at most *capacity* pages from now on, with the same shares."""
        self._nr_small = min(max(int(capacity * self._small_share), 1), capacity)
        self._nr_ghost = int(capacity * self._ghost_share)
        super().resize(capacity)
        while len(self._ghost) > self._nr_ghost:
            self._ghost.popitem(last=False)

    def _evict_from_small(self) -> bool:
        """Move used pages to main until there is one to let go; return whether there was one."""
        small, count = self._small, self._count
        while small:
            page = small.popleft()
            if count[page] < self._move_to_main:
                del count[page]
                self._ghost[page] = None
                if len(self._ghost) > self._nr_ghost:
                    self._ghost.popitem(last=False)
                return True
            count[page] = 0
            self._main.append(page)
        return False

    def _evict_from_main(self) -> None:
        """Let the first page go that was not used; the others come again, counted down."""
        main, count = self._main, self._count
        page = main.popleft()
        while count[page]:
            count[page] -= 1
            main.append(page)
            page = main.popleft()
        del count[page]
