"""CachePolicy: what the classic caches have in common, which decide at every single access.

Such a policy keeps a cache of its own, of as many pages as there are frames, and runs every access
through it in order. Once an epoch the frames are moved towards what it holds. So its decisions are
those of the textbook; only the mount follows late, and by as much as the budget allows.

    class Policy(CachePolicy):
        def access(self, page): ...     a hit, or room is made and the page let in
        def evict(self): ...            one page fewer
        def pages(self): ...            what is cached, the most wanted first

Differs from the textbook under `cache=sampled`: an access that the kernel's page cache answers is
not seen (docs/LIMITS.md), so what a policy calls an access may stand for many.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np

from xipfs.errors import PolicyError
from xipfs.policy.contract import Batch, Plan, Tiers
from xipfs.policy.target import plan_towards

__all__ = ["CachePolicy", "check_share"]


class CachePolicy(ABC):
    """A cache of `capacity` pages: the RAM tier as it should be."""

    def __init__(self) -> None:
        self.capacity = 0

    @abstractmethod
    def access(self, page: int) -> None:
        """Take note of one access; afterwards at most `capacity` (at least 1) pages are cached."""

    @abstractmethod
    def evict(self) -> None:
        """Let one page go. There is one."""

    @abstractmethod
    def pages(self) -> Iterable[int]:
        """Return the cached pages, the most wanted first."""

    def resize(self, capacity: int) -> None:
        """Cache at most *capacity* pages from now on; a policy with parts of it overrides this."""
        self.capacity = capacity
        for _ in range(len(list(self.pages())) - capacity):
            self.evict()

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Run the accesses through the cache, and move the frames towards what it holds."""
        if tiers.nr_ram_frames != self.capacity:
            self.resize(tiers.nr_ram_frames)
        if not self.capacity:
            return Plan()
        for page in batch.page.tolist():
            self.access(page)
        return plan_towards(np.array(list(self.pages()), np.int64), tiers)


def check_share(name: str, share: float) -> float:
    """Return *share*, a parameter that says how much of the RAM tier. Raises: PolicyError."""
    if not 0 <= share <= 1:
        raise PolicyError(f"{name} is {share}: give a share of the RAM tier, 0 to 1")
    return share
