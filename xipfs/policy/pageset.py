"""Sets of pages: sorted arrays in which no page comes twice.

    seen = page_set(batch.page)
    new = seen[~is_in(seen, tiers.resident)]

An epoch may have a million accesses, and is decided while every request waits. These take some
milliseconds then; np.unique, np.isin and np.setdiff1d of numpy 2.4 look integers up in a hash
table, and take a second.
"""

import numpy as np
from numpy.typing import NDArray

from xipfs.policy.contract import PageIds

__all__ = ["is_in", "page_set"]


def page_set(pages: PageIds) -> PageIds:
    """Return the distinct ones of *pages*, sorted; a copy."""
    ordered = np.sort(pages)
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def is_in(pages: PageIds, members: PageIds) -> NDArray[np.bool_]:
    """Return for each of *pages*, in any order, whether the set *members* (sorted) has it."""
    if not len(members):
        return np.zeros(len(pages), np.bool_)
    places = np.searchsorted(members, pages)
    places[places == len(members)] = 0
    found: NDArray[np.bool_] = members[places] == pages
    return found
