"""Cooling: counts that are halved after every so many samples, not after so much time.

    before, weight, after = cooling.take(len(batch.page), period)
    counts >>= before
    counts += weight * sampled          now they are what they are just before the last halving
    counts >>= after

An epoch may be many periods long. Its samples then come in all of them, and those of each period
are halved by the periods behind it; as if they were spread evenly, k periods leave of each sample
2/k * (1 - 2^-k) until the last halving, and half of that in the end.
"""

__all__ = ["Cooling"]


class Cooling:
    """Samples since all counts were halved."""

    def __init__(self) -> None:
        self.nr_samples = 0

    def take(self, nr_samples: int, period: int) -> tuple[int, float, int]:
        """Return how often to halve before, what a sample counts, and whether to halve after.

        >>> Cooling().take(9, 10), Cooling().take(10, 10), Cooling().take(20, 10)
        ((0, 1.0, 0), (0, 1.0, 1), (1, 0.75, 1))
        """
        nr_coolings, self.nr_samples = divmod(self.nr_samples + nr_samples, period)
        if not nr_coolings:
            return 0, 1.0, 0
        nr_coolings = min(nr_coolings, 1 << 20)
        weight = 2 * (1 - 0.5 ** min(nr_coolings, 60)) / nr_coolings
        return min(nr_coolings - 1, 31), weight, 1
