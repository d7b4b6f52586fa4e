"""A fixed set of pages: those of a profile, or those that were read first.

    static                                      the first pages read, until the RAM tier is full
    static:profile=hot.txt                      these, and nothing else

What AXFS did when an image was built: a run of the system was recorded, and the pages that it had
read were kept where they can be executed, for good. So this is what a policy has to beat that looks
at the program while it runs. `xipfs trace profile` makes a profile of a recording. Of one that is
larger than the RAM tier the first pages count. A page is promoted once it is read: one that is
never read would only take a frame.

Source: J. Hulbert, "Introducing the Advanced XIP File System", Ottawa Linux Symposium 2008.
Uncertain: AXFS has no tiers to choose from; the profile chose what was stored uncompressed in NOR
flash, to be executed in place, and what was compressed. Its profile also counted, which is of no
use here. It is the idea that is compared.
"""

from pathlib import Path

import numpy as np

from xipfs.policy.contract import Batch, PageIds, Plan, Tiers, no_pages
from xipfs.policy.pageset import is_in, page_set
from xipfs.policy.profile import read_profile
from xipfs.policy.target import plan_towards

__all__ = ["PROFILE", "Policy"]

PROFILE = ""
"""The file with the pages to keep in RAM; none: the first pages that are read.

Source: AXFS, whose mkfs took such a file.
"""


class Policy:
    """Pages in the order in which they were chosen."""

    def __init__(self, *, profile: str = PROFILE) -> None:
        """Read the profile, if there is one. Raises: PolicyError."""
        self._has_profile = bool(profile)
        self._chosen = read_profile(Path(profile)) if profile else no_pages()
        self._was_read = np.zeros(len(self._chosen), np.bool_)

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Promote the chosen ones of the pages that were ever read."""
        nr_frames = tiers.nr_ram_frames
        if not self._has_profile and len(self._chosen) < nr_frames:
            self._choose(batch.page, nr_frames)
        self._was_read |= is_in(self._chosen, page_set(batch.page))
        return plan_towards(self._chosen[:nr_frames][self._was_read[:nr_frames]], tiers)

    def _choose(self, read: PageIds, nr_frames: int) -> None:
        """Take the pages that were read, in that order, until there are nr_frames."""
        pages, first = np.unique(read, return_index=True)
        new = pages[np.argsort(first)]
        new = new[~is_in(new, np.sort(self._chosen))]
        self._chosen = np.concatenate([self._chosen, new])[:nr_frames]
        self._was_read = np.ones(len(self._chosen), np.bool_)
