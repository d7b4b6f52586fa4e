"""CacheSampler: which ranges to drop from the kernel's page cache, so that we see them used.

Above a FUSE mount the kernel caches what it has read, and answers from there: after its first
reading a page is *blind* to us. Dropping a range makes its next access a request again. A range
that is dropped and read again is hot; one that is not costs nothing more, since it is no longer
cached. So only ranges believed cached are ever chosen, a budget of them each epoch:

    a quarter of the budget   pages in RAM, one by one: are they still used?
    the rest                  chunks of 16 pages (64 KiB), those longest not looked at first

What comes back costs programs a request each, for which they wait. So many may come on average, and
each takes one from a credit; no more is dropped than the credit would pay for.

Where the kernel tells a part of what it answers itself (`filemap_events`), what is read often is
told soon, and is left alone: dropped is what was not told of late, and what programs have mapped.

How soon a page is read again after it was dropped tells how hot it is: the hint-fault latency of
Linux's NUMA balancing, by other means.

State is kept for chunks that were read, under 16 bytes a page, and for pages in RAM.
"""

from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import CHUNK_SHIFT, PageIds, no_pages, page_id_parts
from xipfs.policy.pageset import is_in, page_set
from xipfs.tiering.filemap_events import Told

__all__ = ["COST_RATIO", "RETURN_NS", "CacheSampler", "DropRange", "drop_ranges"]

_NR_CHUNK_PAGES = 1 << CHUNK_SHIFT

RETURN_NS = 120_000
"""What a program waits for a page that was dropped. Source: measured, 50 us when quiet to 350."""

COST_RATIO = 0.05
"""The part of their time that programs may wait for what was dropped."""

_NR_CREDIT_EPOCHS = 8
"""What was not spent in so many epochs may be, at once: at the start too."""

_BUDGET_DIVISOR = 6
"""Every chunk that is cached is looked at once in about so many epochs."""

_NR_TOLD_EPOCHS = 8
"""So long after the kernel has told of a chunk again, it is not dropped."""

_RESIDENTS_DIVISOR = 4
"""Of the budget, this part is for pages in RAM."""


class DropRange(NamedTuple):
    """Pages [pgoff, pgoff + nr_pages) of file *mapping_id*, to be dropped."""

    mapping_id: int
    pgoff: int
    nr_pages: int


class CacheSampler:
    """Keeps what the kernel is believed to cache, chunk by chunk.

    budget_pages_min, budget_pages_max: the budget of one epoch lies between, but for the credit.
    nr_returns_max: requests for what was dropped that may come in an epoch, on average. Each takes
    one from a credit, and no more pages are dropped than it holds. None: as many as may be.
    """

    __slots__ = (
        "_budget_pages_max",
        "_budget_pages_min",
        "_cached",
        "_credit",
        "_cursor",
        "_dropped_ns",
        "_epoch",
        "_mapped",
        "_nr_returns_max",
        "_single",
        "_single_ns",
    )

    def __init__(
        self,
        *,
        budget_pages_min: int = 4096,
        budget_pages_max: int = 16384,
        nr_returns_max: int | None = None,
    ) -> None:
        self._budget_pages_min = budget_pages_min
        self._budget_pages_max = budget_pages_max
        self._nr_returns_max = nr_returns_max
        self._credit = (nr_returns_max or 0) * _NR_CREDIT_EPOCHS
        # An ordered set: the chunk longest not looked at first.
        # Each with the epoch until which the kernel's telling of it is looking enough; or minus the
        # epoch in which it told for the first time; or 0.
        self._cached: dict[int, int] = {}
        self._epoch = 0
        # Chunks that faults have mapped; None if the kernel tells nothing.
        self._mapped: set[int] | None = None
        # When each chunk was dropped last.
        self._dropped_ns: dict[int, int] = {}
        # Pages of chunks that are cached, themselves dropped and not read since; sorted. And when.
        self._single = no_pages()
        self._single_ns = no_pages()
        # The page in RAM that was looked at last.
        self._cursor = -1

    @property
    def nr_cached_pages(self) -> int:
        """Pages believed to be in the kernel's cache, an upper bound."""
        return len(self._cached) << CHUNK_SHIFT

    @property
    def sees_reads(self) -> bool:
        """Does the kernel tell of reads that it answers itself?"""
        return self._mapped is not None

    def see_reads(self) -> None:
        """From now on the kernel tells: see `tell`."""
        self._mapped = set()

    def tell(self, told: Told) -> None:
        """Take note of what the kernel has told, once an epoch, before `observe`.

        What was read through its cache need not be dropped to be seen. What faults have mapped must
        be, for of its use it tells no more.
        """
        self._epoch += 1
        if self._mapped is None:
            return
        mapped = page_set(np.concatenate([told.faults, told.mapped]) >> CHUNK_SHIFT).tolist()
        self._mapped.update(mapped)
        for chunk in mapped:
            self._cached.setdefault(chunk, 0)
        for chunk in page_set(told.reads >> CHUNK_SHIFT).tolist():
            before = self._cached.get(chunk)
            if before is not None:
                again = before > 0 or (self._epoch + before <= _NR_TOLD_EPOCHS and before)
                self._cached[chunk] = self._epoch + _NR_TOLD_EPOCHS if again else -self._epoch

    def wanted(self, pages: PageIds, told: Told) -> NDArray[np.bool_]:
        """Return which of *pages*, which came to us, a program has really asked for.

        A fault brings neighbours, too, as far as they are not cached: of maps only the pages count
        that the kernel says were touched.
        """
        if self._mapped is None:
            return np.ones(len(pages), np.bool_)
        chunks = page_set(pages >> CHUNK_SHIFT)
        mapped = np.fromiter((c in self._mapped for c in chunks.tolist()), np.bool_, len(chunks))
        touched = page_set(np.concatenate([told.reads, told.faults]))
        return ~mapped[np.searchsorted(chunks, pages >> CHUNK_SHIFT)] | is_in(pages, touched)

    def observe(self, pages: PageIds, times_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Take note that *pages* were read, at *times_ns*, and so are in the kernel's cache now.

        Returns: int64, of the same shape: how long before that each was dropped, -1 if it was not.
        """
        chunks = page_set(pages >> CHUNK_SHIFT)
        dropped_ns = np.full(len(chunks), -1, np.int64)
        for i, chunk in enumerate(chunks.tolist()):
            self._cached[chunk] = self._cached.pop(chunk, 0)
            # Also of a chunk that came back in part: a request tells that its page had not.
            dropped_ns[i] = self._dropped_ns.get(chunk, -1)
        since_ns = dropped_ns[np.searchsorted(chunks, pages >> CHUNK_SHIFT)]
        single = is_in(pages, self._single)
        since_ns[single] = self._single_ns[np.searchsorted(self._single, pages[single])]
        self._keep_single(~is_in(self._single, page_set(pages)))
        # The pages of one request have one time.
        self._earn(len(np.unique(times_ns[since_ns >= 0])))
        return np.where(since_ns < 0, -1, np.maximum(times_ns - since_ns, 0))

    def blind(self, pages: PageIds) -> PageIds:
        """Return those of *pages* whose accesses the kernel would answer itself, in their order."""
        chunks = page_set(pages >> CHUNK_SHIFT)
        unseen = np.fromiter(map(self._is_unseen, chunks.tolist()), np.bool_, len(chunks))
        return pages[
            unseen[np.searchsorted(chunks, pages >> CHUNK_SHIFT)] & ~is_in(pages, self._single)
        ]

    def blind_chunks(self, seen: PageIds) -> NDArray[np.int64]:
        """Return the chunks believed cached, sorted, but for those of the pages *seen*."""
        cached = np.sort(np.fromiter(filter(self._is_unseen, self._cached), np.int64))
        return cached[~is_in(cached, page_set(seen >> CHUNK_SHIFT))]

    def drop(self, pages: PageIds, now_ns: int) -> list[DropRange]:
        """Return what to drop now of *pages* (sorted), as far as they are believed cached."""
        pages = self.blind(pages)
        self._add_single(pages, now_ns)
        return drop_ranges(pages)

    def cache(self, pages: PageIds) -> None:
        """Take note that *pages* (sorted) are put into the kernel's cache: nobody read them."""
        for chunk in page_set(pages >> CHUNK_SHIFT).tolist():
            self._cached.setdefault(chunk, 0)
        self._keep_single(~is_in(self._single, pages))

    def choose(self, resident: PageIds, now_ns: int) -> list[DropRange]:
        """Return what to drop now, neighbours joined; it counts as dropped from here on.

        resident: the pages in RAM, sorted.
        """
        budget_pages = self.nr_cached_pages // _BUDGET_DIVISOR
        budget_pages = min(max(budget_pages, self._budget_pages_min), self._budget_pages_max)
        if self._nr_returns_max is not None:
            # One fault brings back all of a chunk, and more; reads come page by page.
            nr_pages_at_once = _NR_CHUNK_PAGES if self.sees_reads else 1
            budget_pages = min(budget_pages, max(self._credit * nr_pages_at_once, _NR_CHUNK_PAGES))
        singles = self._choose_residents(resident, budget_pages // _RESIDENTS_DIVISOR, now_ns)
        nr_chunks = (budget_pages - len(singles)) >> CHUNK_SHIFT
        chunks = np.fromiter(islice(filter(self._is_unseen, self._cached), nr_chunks), np.int64)
        for chunk in chunks.tolist():
            del self._cached[chunk]
            self._dropped_ns[chunk] = now_ns
        self._keep_single(~is_in(self._single >> CHUNK_SHIFT, np.sort(chunks)))
        first_pages = chunks << CHUNK_SHIFT
        pages = (first_pages[:, np.newaxis] + np.arange(_NR_CHUNK_PAGES)).ravel()
        return drop_ranges(page_set(np.concatenate([singles, pages])))

    def _is_unseen(self, chunk: int) -> bool:
        """Is a chunk cached, and what is done with it unknown?"""
        return self._cached.get(chunk, self._epoch + 1) <= self._epoch

    def _earn(self, nr_returns: int) -> None:
        """Let the credit grow by an epoch, and shrink by what came back in it."""
        if self._nr_returns_max is not None:
            credit = self._credit + self._nr_returns_max - nr_returns
            limit = self._nr_returns_max * _NR_CREDIT_EPOCHS
            self._credit = min(max(credit, -limit), limit)

    def _choose_residents(self, resident: PageIds, nr_wanted: int, now_ns: int) -> PageIds:
        """Return pages in RAM that are blind, going round behind the one looked at last."""
        blind = self.blind(resident)
        start = int(np.searchsorted(blind, self._cursor, side="right"))
        chosen = np.concatenate([blind[start:], blind[:start]])[:nr_wanted]
        if len(chosen):
            self._cursor = int(chosen[-1])
            self._add_single(chosen, now_ns)
        return chosen

    def _add_single(self, pages: PageIds, now_ns: int) -> None:
        single = np.concatenate([self._single, pages])
        times_ns = np.concatenate([self._single_ns, np.full(len(pages), now_ns, np.int64)])
        order = np.argsort(single, kind="stable")
        self._single, self._single_ns = single[order], times_ns[order]

    def _keep_single(self, kept: NDArray[np.bool_]) -> None:
        self._single, self._single_ns = self._single[kept], self._single_ns[kept]


def drop_ranges(pages: PageIds) -> list[DropRange]:
    """Join neighbouring pages (sorted) of one file."""
    if not len(pages):
        return []
    mapping_ids, pgoffs = page_id_parts(pages)
    breaks = np.flatnonzero((np.diff(pages) != 1) | (np.diff(mapping_ids) != 0)) + 1
    starts = [0, *breaks.tolist()]
    return [
        DropRange(int(mapping_ids[start]), int(pgoffs[start]), end - start)
        for start, end in zip(starts, [*starts[1:], len(pages)], strict=True)
    ]
