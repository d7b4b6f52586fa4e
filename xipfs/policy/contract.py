"""What a policy gets, what it gives back.

    plan = policy.decide(batch, tiers)

Pages are int64 ids, the same for ever: the file's number in the upper half, the page's offset in
the file in the lower. A policy need not know that, but may use that neighbours in a file are
neighbours in number.

A pair of facts about the tiers is indexed by `Tier`: `tiers.latency_ns[Tier.NVRAM]`.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CHUNK_SHIFT",
    "PGOFF_BITS",
    "AccessKind",
    "Batch",
    "PageIds",
    "Plan",
    "Policy",
    "Tier",
    "Tiers",
    "no_pages",
    "no_pairs",
    "page_id",
    "page_id_parts",
]

PageIds: TypeAlias = NDArray[np.int64]
"""dtype int64, shape (nr_pages,)."""

PGOFF_BITS = 32

CHUNK_SHIFT = 4
"""Chunks of 16 pages, 64 KiB, are what the sampler has the kernel drop from its cache."""


class Tier(IntEnum):
    """Memory of one cost class."""

    RAM = 0
    NVRAM = 1


class AccessKind(IntEnum):
    """How a page was reached."""

    READ = 0
    WRITE = 1


def page_id(mapping_id: int, pgoff: int) -> int:
    """Return the id of page *pgoff* of a file.

    >>> page_id(1, 3) == (1 << 32) + 3
    True
    """
    return mapping_id << PGOFF_BITS | pgoff


def page_id_parts(pages: PageIds) -> tuple[PageIds, PageIds]:
    """Return the files' numbers and the offsets of *pages*, each of the same shape."""
    return pages >> PGOFF_BITS, pages & ((1 << PGOFF_BITS) - 1)


def no_pages() -> PageIds:
    """Return an empty array of page ids."""
    return np.empty(0, np.int64)


def no_pairs() -> PageIds:
    """Return an empty array of pairs of page ids."""
    return np.empty((0, 2), np.int64)


@dataclass(frozen=True, slots=True)
class Batch:
    """The accesses of one epoch in their order; all arrays have shape (nr_accesses,).

    page: int64 page ids. kind: uint8, AccessKind. tier: uint8, Tier, where the page was then.
    latency_ns: int64, how long it took from when the sampler had the page dropped from the kernel's
        cache, so that its next access is seen; -1 where it did not.
    """

    page: PageIds
    kind: NDArray[np.uint8]
    tier: NDArray[np.uint8]
    latency_ns: NDArray[np.int64]

    def counts(self) -> tuple[PageIds, NDArray[np.int64]]:
        """Return the distinct pages, sorted, and how often each was accessed."""
        pages, counts = np.unique(self.page, return_counts=True)
        return pages, counts.astype(np.int64)

    def rates(self, epoch_ns: int) -> tuple[PageIds, NDArray[np.float64]]:
        """Return the distinct pages, sorted, and how often each is likely to have been used.

        What was counted, but for a page that the sampler had dropped: of its uses only the first
        was seen, and how soon that came says how many there were: epoch_ns / latency_ns.
        """
        pages, counts = self.counts()
        rates = counts.astype(np.float64)
        timed = self.latency_ns >= 0
        latency_ns = np.maximum(self.latency_ns[timed], 1)
        np.maximum.at(rates, np.searchsorted(pages, self.page[timed]), epoch_ns / latency_ns)
        return pages, rates


@dataclass(frozen=True, slots=True)
class Tiers:
    """Facts about the tiers when the policy is asked.

    epoch: number of this epoch, from 0. epoch_ns: how long one is, on the clock of
        Batch.latency_ns.
    nr_ram_frames, nr_free_frames: of the RAM tier, without those that are pinned.
    watermarks: min, low, high and promo: how many of the frames had better be free, by the kernel's
        rules (`mm.watermark`). Nobody enforces them.
    budget_pages: most pages that this plan may move, promotions and demotions together.
    resident: page ids in RAM, sorted; pinned ones, which no plan can move, are left out.
    blind: those of them, sorted, that the kernel's page cache held for all of the epoch: that
        nothing was seen of such a page says nothing about it.
    blind_chunks: chunks of 1 << CHUNK_SHIFT pages, in RAM or not, that it held in the same way, as
        sorted `page >> CHUNK_SHIFT`. Of pages in RAM `blind` knows better.
    dirty: those of them, sorted, that NVRAM has no valid copy of: demoting one moves its bytes.
    nr_accesses: page accesses of the epoch, by tier.
    latency_ns: what one access took on average, by tier, under the load of the epoch.
    occupancy: how many accesses were under way at a time, by tier.
    promote_ns, write_back_ns: what copying a page into RAM costs, and back. A clean page is
        demoted for nothing.
    is_sampled: whether the kernel's page cache answers what it can and does not tell, so that of a
        page's uses only the first is seen after it was dropped, or before it was ever cached.
    """

    epoch: int
    epoch_ns: int
    nr_ram_frames: int
    nr_free_frames: int
    watermarks: tuple[int, int, int, int]
    budget_pages: int
    resident: PageIds
    blind: PageIds
    blind_chunks: NDArray[np.int64]
    dirty: PageIds
    nr_accesses: tuple[int, int]
    latency_ns: tuple[float, float]
    occupancy: tuple[float, float]
    promote_ns: float
    write_back_ns: float
    is_sampled: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What to move: exchanges first, then demotions, then promotions, each in their order.

    exchange: int64, shape (nr_pairs, 2): a page that leaves RAM, and one that takes its frame.
        A pair counts two pages of the budget, and fails as a whole.

    An entry is refused, and counted, if its page does not exist, is not in the tier that it is to
    leave, comes twice, or if there is no room or no budget left for it.
    """

    promote: PageIds = field(default_factory=no_pages)
    demote: PageIds = field(default_factory=no_pages)
    exchange: PageIds = field(default_factory=no_pairs)


class Policy(Protocol):
    """Any object with this method. It may keep what it likes between calls."""

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Return what to move after the epoch whose accesses are *batch*."""
        ...
