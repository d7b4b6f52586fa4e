"""HotArea: pages of the image set apart for what a profile says is hot.

    superblock, state | hot area | contents in the order of the source | metadata

mkfs takes its contents from a stream, and so sets the area apart before it has seen any of them: a
page for each page of the profile, those of a file together. What the profile names and no file has
is free space in the end.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from xipfs.ondisk.record import Buffer
from xipfs.units import PAGE_MASK, PAGE_SHIFT, Block

__all__ = ["HotArea"]


class HotArea:
    """The area from *first_block* on. hot: file -> its hot pages, int64, sorted, none twice."""

    def __init__(self, first_block: Block, hot: Mapping[int, NDArray[np.int64]]) -> None:
        self._hot = hot
        self._blocks: dict[int, int] = {}
        block = int(first_block)
        for ino in sorted(hot):
            self._blocks[ino] = block
            block += len(hot[ino])
        self._first_block = int(first_block)
        self.end = Block(block)
        self._used = np.zeros(block - self._first_block, np.bool_)

    def split(
        self, ino: int, pgoff: int, data: Buffer
    ) -> Iterator[tuple[int, Buffer, Block | None]]:
        """Cut a piece of a file's contents where it gets hot or cold.

        Yields: (pgoff, bytes, where in the area they belong or None).
        """
        hot = self._hot.get(ino)
        view = memoryview(data)
        nr_pages = (len(view) + PAGE_MASK) >> PAGE_SHIFT
        if hot is None:
            yield pgoff, data, None
            return
        first, last = np.searchsorted(hot, [pgoff, pgoff + nr_pages])
        is_hot = np.zeros(nr_pages, np.bool_)
        is_hot[hot[first:last] - pgoff] = True
        starts = [0, *(np.flatnonzero(is_hot[1:] != is_hot[:-1]) + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], nr_pages], strict=True):
            part = view[start << PAGE_SHIFT : end << PAGE_SHIFT]
            if not is_hot[start]:
                yield pgoff + start, part, None
                continue
            place = self._blocks[ino] + int(np.searchsorted(hot, pgoff + start))
            self._used[place - self._first_block : place - self._first_block + end - start] = True
            yield pgoff + start, part, Block(place)

    def free_runs(self) -> list[tuple[Block, int]]:
        """Return (block, nr_pages) of what nothing was put in."""
        edges = np.flatnonzero(np.diff(~self._used, prepend=False, append=False))
        return [
            (Block(self._first_block + start), end - start)
            for start, end in edges.reshape(-1, 2).tolist()
        ]
