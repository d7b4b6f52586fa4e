"""What a policy gets, what it gives back.

    plan = policy.decide(batch, tiers)

Pages are int64 ids, the same for ever: the file's number in the upper half, the page's offset in
the file in the lower. A policy need not know that, but may use that neighbours in a file are
neighbours in number.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PGOFF_BITS",
    "AccessKind",
    "Batch",
    "PageIds",
    "Plan",
    "Policy",
    "Tier",
    "Tiers",
    "no_pages",
    "page_id",
    "page_id_parts",
]

PageIds: TypeAlias = NDArray[np.int64]
"""dtype int64, shape (nr_pages,)."""

PGOFF_BITS = 32


class Tier(IntEnum):
    """Memory of one cost class."""

    RAM = 0
    NVRAM = 1


class AccessKind(IntEnum):
    """How a page was reached."""

    READ = 0


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


@dataclass(frozen=True, slots=True)
class Tiers:
    """Facts about the tiers when the policy is asked.

    epoch: number of this epoch, from 0.
    nr_ram_frames, nr_free_frames: of the RAM tier.
    budget_pages: most pages that this plan may move, promotions and demotions together.
    epoch_ns: length of an epoch, on the clock of Batch.latency_ns.
    resident: page ids in RAM, sorted.
    blind: those of them, sorted, that the kernel's page cache held for all of the epoch: that
        nothing was seen of such a page says nothing about it.
    """

    epoch: int
    nr_ram_frames: int
    nr_free_frames: int
    budget_pages: int
    epoch_ns: int
    resident: PageIds
    blind: PageIds


@dataclass(frozen=True, slots=True)
class Plan:
    """What to move. Demotions are done first, in order, then promotions, until the budget is used.

    A page that is in the wrong tier for its list, twice in it, or does not exist is refused.
    """

    promote: PageIds = field(default_factory=no_pages)
    demote: PageIds = field(default_factory=no_pages)


class Policy(Protocol):
    """Any object with this method. It may keep what it likes between calls."""

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Return what to move after the epoch whose accesses are *batch*."""
        ...
