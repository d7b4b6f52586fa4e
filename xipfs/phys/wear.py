"""Wear: how often each block of the NVRAM was written.

Counters exist only for leaves of 512 blocks that were written to, so that the image's size costs
nothing; and nothing is counted for reads.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Wear", "WearFacts"]

_LEAF_SHIFT = 9
_NR_LEAF_BLOCKS = 1 << _LEAF_SHIFT
_NR_SINGLE_BLOCKS = 4


class WearFacts(NamedTuple):
    """max_cycles, mean_cycles: over the nr_blocks that were written at all."""

    nr_blocks: int
    max_cycles: int
    mean_cycles: float


class Wear:
    """Counts writes in blocks of *block_size_bytes*: any write into a block is one cycle of it."""

    __slots__ = ("_leaves", "block_size_bytes")

    def __init__(self, block_size_bytes: int) -> None:
        self.block_size_bytes = block_size_bytes
        self._leaves: dict[int, NDArray[np.uint32]] = {}

    def record(self, offset: int, size_bytes: int) -> None:
        """Count a write of [offset, offset + size_bytes)."""
        block = offset // self.block_size_bytes
        end = -(-(offset + size_bytes) // self.block_size_bytes)
        while block < end:
            number = block >> _LEAF_SHIFT
            leaf = self._leaves.get(number)
            if leaf is None:
                leaf = self._leaves[number] = np.zeros(_NR_LEAF_BLOCKS, np.uint32)
            stop = min(end, (number + 1) << _LEAF_SHIFT)
            first = block - (number << _LEAF_SHIFT)
            if stop - block <= _NR_SINGLE_BLOCKS:
                words = leaf.data  # one by one this is four times as fast as indexing the array
                for i in range(first, first + stop - block):
                    words[i] += 1
            else:
                leaf[first : first + stop - block] += np.uint32(1)
            block = stop

    def facts(self) -> WearFacts:
        """Return how worn the region is."""
        counts = [leaf[leaf > 0] for leaf in self._leaves.values()]
        nr_blocks = sum(len(worn) for worn in counts)
        if not nr_blocks:
            return WearFacts(0, 0, 0.0)
        nr_cycles = sum(int(worn.sum()) for worn in counts)
        return WearFacts(nr_blocks, max(int(worn.max()) for worn in counts), nr_cycles / nr_blocks)
