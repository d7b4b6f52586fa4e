"""Budget: how many pages a plan may move, by epoch and by second."""

from xipfs.units import PAGE_SIZE

__all__ = ["Budget"]

_NS_PER_S = 1_000_000_000


class Budget:
    """At most *epoch_pages* a plan, and *rate_bytes_per_s* in the long run (None: no such limit).

    What is not used is saved up, for a second: a token bucket, as numa_promotion_rate_limit is in
    effect (kernel/sched/fair.c, Linux 6.18, which counts by the second).
    """

    def __init__(self, epoch_pages: int, rate_bytes_per_s: int | None, now_ns: int) -> None:
        self._epoch_pages = epoch_pages
        self._rate_pages_per_s = None if rate_bytes_per_s is None else rate_bytes_per_s / PAGE_SIZE
        self._saved_pages = 0.0
        self._looked_ns = now_ns

    def pages(self, now_ns: int) -> int:
        """Return how many pages may move now."""
        if self._rate_pages_per_s is None:
            return self._epoch_pages
        earned = self._rate_pages_per_s * (now_ns - self._looked_ns) / _NS_PER_S
        self._looked_ns = now_ns
        most = max(self._rate_pages_per_s, 2.0)  # a swap must be possible at any rate
        self._saved_pages = min(self._saved_pages + earned, most)
        return min(self._epoch_pages, int(self._saved_pages))

    def spend(self, nr_pages: int) -> None:
        """Note that so many pages are moved."""
        self._saved_pages -= nr_pages
