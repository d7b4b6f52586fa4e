"""LRU: keeps the pages that were used last.

    most recently used  [ d | b | a | c ]  least recently used: leaves first

A scan longer than the RAM tier empties it of everything else; that is what the others here are for.

Source: R. L. Mattson, J. Gecsei, D. R. Slutz and I. L. Traiger, "Evaluation Techniques for Storage
Hierarchies", IBM Systems Journal 9(2), 1970.
Uncertain: nothing of the policy. Recency is that of the accesses that are seen (`policy.cache`).
"""

from collections import OrderedDict
from collections.abc import Iterable

from xipfs.policy.cache import CachePolicy

__all__ = ["Policy"]


class Policy(CachePolicy):
    """A queue in the order of last use."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: OrderedDict[int, None] = OrderedDict()  # the next to leave first

    def access(self, page: int) -> None:
        """Put the page at the end of the queue."""
        queue = self._queue
        if page in queue:
            queue.move_to_end(page)
            return
        if len(queue) >= self.capacity:
            self.evict()
        queue[page] = None

    def evict(self) -> None:
        """Let the page go that was not used for longest."""
        self._queue.popitem(last=False)

    def pages(self) -> Iterable[int]:
        """Return the cached pages, the last used first."""
        return reversed(self._queue)
