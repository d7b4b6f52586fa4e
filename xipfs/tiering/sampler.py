"""CacheSampler: which ranges to drop from the kernel's page cache, so that we see them used.

Above a FUSE mount the kernel caches what it has read, and answers from there: after its first
reading a page is *blind* to us. Dropping a range makes its next access a request again. A range
that is dropped and read again is hot; one that is not costs nothing more, since it is no longer
cached. So only ranges believed cached are ever chosen, a budget of them each epoch:

    at most half of the budget   ranges with pages in RAM: are they still used?
    the rest                     all others

Of both those longest not looked at come first.

State is kept by chunk of 16 pages (64 KiB), for chunks that were read: under 8 bytes a page.
"""

from itertools import islice
from typing import NamedTuple

import numpy as np

from xipfs.policy.contract import PageIds, page_id_parts
from xipfs.policy.pageset import page_set

__all__ = ["CacheSampler", "DropRange"]

_CHUNK_SHIFT = 4
_NR_CHUNK_PAGES = 1 << _CHUNK_SHIFT

_BUDGET_DIVISOR = 8
"""Every chunk that is cached is looked at once in about so many epochs."""


class DropRange(NamedTuple):
    """Pages [pgoff, pgoff + nr_pages) of file *mapping_id*, to be dropped."""

    mapping_id: int
    pgoff: int
    nr_pages: int


class CacheSampler:
    """Keeps what the kernel is believed to cache, chunk by chunk.

    budget_pages_min, budget_pages_max: the budget of one epoch lies between.
    """

    __slots__ = ("_budget_pages_max", "_budget_pages_min", "_cached")

    def __init__(self, *, budget_pages_min: int = 4096, budget_pages_max: int = 16384) -> None:
        self._budget_pages_min = budget_pages_min
        self._budget_pages_max = budget_pages_max
        # An ordered set: the chunk longest not looked at first.
        self._cached: dict[int, None] = {}

    @property
    def nr_cached_pages(self) -> int:
        """Pages believed to be in the kernel's cache, an upper bound."""
        return len(self._cached) << _CHUNK_SHIFT

    def observe(self, pages: PageIds) -> None:
        """Take note that *pages* were read, and so are in the kernel's cache now."""
        for chunk in page_set(pages >> _CHUNK_SHIFT).tolist():
            self._cached.pop(chunk, None)
            self._cached[chunk] = None

    def blind(self, pages: PageIds) -> PageIds:
        """Return those of *pages* whose accesses the kernel would answer itself, in their order."""
        chunks, inverse = np.unique(pages >> _CHUNK_SHIFT, return_inverse=True)
        cached = np.fromiter((c in self._cached for c in chunks.tolist()), np.bool_, len(chunks))
        return pages[cached[inverse]]

    def choose(self, resident: PageIds) -> list[DropRange]:
        """Return what to drop now, neighbours joined; it counts as dropped from here on."""
        budget_pages = self.nr_cached_pages // _BUDGET_DIVISOR
        budget_pages = min(max(budget_pages, self._budget_pages_min), self._budget_pages_max)
        nr_chunks = budget_pages >> _CHUNK_SHIFT
        in_ram = set(page_set(resident >> _CHUNK_SHIFT).tolist())
        chosen = list(islice((c for c in self._cached if c in in_ram), nr_chunks // 2))
        others = (c for c in self._cached if c not in in_ram)
        chosen += islice(others, nr_chunks - len(chosen))
        for chunk in chosen:
            del self._cached[chunk]
        return _join(np.array(sorted(chosen), np.int64))


def _join(chunks: PageIds) -> list[DropRange]:
    """Join neighbouring chunks (sorted) of one file."""
    if not len(chunks):
        return []
    mapping_ids, pgoffs = page_id_parts(chunks << _CHUNK_SHIFT)
    breaks = np.flatnonzero((np.diff(chunks) != 1) | (np.diff(mapping_ids) != 0)) + 1
    starts = [0, *breaks.tolist()]
    return [
        DropRange(int(mapping_ids[start]), int(pgoffs[start]), (end - start) * _NR_CHUNK_PAGES)
        for start, end in zip(starts, [*starts[1:], len(chunks)], strict=True)
    ]
