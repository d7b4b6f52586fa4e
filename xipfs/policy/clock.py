"""CLOCK: goes round the pages, and evicts the first that was not used since it last came by.

    hand -> [ a 1 | b 0 | c 1 | d 0 ] -> and round again

The hand takes the bit of a page that was used, and passes it; it stops at one without: b leaves
here, and the new page takes its place behind the hand. LRU nearly, for one bit a page.

Source: F. J. Corbato, "A Paging Experiment with the Multics System", 1968.
Uncertain: whether the access that brings a page in sets its bit. In hardware it does, since the
instruction is run again; in FIFO-Reinsertion, which is how libCacheSim has CLOCK, it does not, and
so it is here: a page that is used once leaves after one round.
"""

from collections import deque
from collections.abc import Iterable

from xipfs.policy.cache import CachePolicy

__all__ = ["Policy"]


class Policy(CachePolicy):
    """A ring with a hand, and a bit for each page."""

    def __init__(self) -> None:
        super().__init__()
        self._ring: deque[int] = deque()  # from the hand on; passing a page puts it at the end
        self._used: dict[int, bool] = {}

    def access(self, page: int) -> None:
        """Set the page's bit; a new one has none."""
        used = self._used
        if page in used:
            used[page] = True
            return
        if len(used) >= self.capacity:
            self.evict()
        used[page] = False
        self._ring.append(page)

    def evict(self) -> None:
        """Move the hand on until it finds a page without a bit."""
        ring, used = self._ring, self._used
        page = ring.popleft()
        while used[page]:
            used[page] = False
            ring.append(page)
            page = ring.popleft()
        del used[page]

    def pages(self) -> Iterable[int]:
        """Return the cached pages, the one that the hand comes to last first."""
        return reversed(self._ring)
