"""What fsck can find, and what it found."""

from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "NR_FINDINGS_MAX",
    "Finding",
    "Findings",
    "FsckReport",
    "Invariant",
    "Repair",
    "StopCheckingError",
]

NR_FINDINGS_MAX = 1000
"""fsck stops there: who reads so many has a backup to fetch."""

_EXIT_CLEAN, _EXIT_CORRECTED, _EXIT_UNCORRECTED, _EXIT_OPERATIONAL = 0, 1, 4, 8


class Invariant(Enum):
    """What holds in every sound image, by numbers that never change: (number, meaning).

    docs/FSCK.md has the same table, and what to do.
    """

    SUPERBLOCK = (1, "page 0 is a sealed superblock")
    REPLICA = (2, "the last page is a copy of page 0")
    FEATURES = (3, "version and features are known")
    SIZE = (4, "the file has all pages of the image")
    LAYOUT = (5, "journal, descriptors and bitmaps lie inside the image and apart")
    JOURNAL = (6, "a journal header is sealed, and no transaction waits to be replayed")
    STATE = (7, "the state is sealed, clean, without error, its numbers in range")
    INODE_FILE = (8, "the inode file is sound and holds every inode up to ino_end")
    INODE_RECORD = (9, "every inode up to ino_end is sealed and has its number, no other exists")
    INODE_FIELDS = (10, "the fields of an inode are allowed for its type")
    EXTENTS = (11, "extents lie in the image and the file, in order, without overlap")
    EXTENT_NODES = (12, "nodes of an extent tree are sealed, its own, in order, named once")
    NR_PAGES = (13, "an inode's nr_pages counts the pages that it holds")
    ONE_OWNER = (14, "every page has at most one owner")
    XATTRS = (15, "attribute runs are sealed, their inode's own, and in order")
    ACL_FEATURE = (16, "the feature ACL is on if an inode has an ACL")
    DIR_PAGES = (17, "the pages of a directory are sealed, its own, and make one tree")
    DIR_KEYS = (18, "directory keys come from the names, in order, within their index")
    DIR_NAMES = (19, "names are legal, unique, and inside of their page")
    DIR_ENTRIES = (20, "names stand for inodes in use, of the type they say")
    NR_ENTRIES = (21, "a directory's nr_entries counts its names")
    PARENTS = (22, "a directory has one name, in its parent")
    CONNECTED = (23, "every inode in use is reached from the root, or an unlinked orphan")
    NLINK = (24, "an inode's nlink counts its names, and the directories in it")
    LISTS = (25, "free inodes are all on the free list, orphans on the orphan list")
    GROUPS = (26, "group descriptors and bitmaps are sealed")
    BITMAPS = (27, "the bitmaps mark the pages that have an owner, and no others")
    FREE_COUNTS = (28, "free pages are counted right, in each group and in all")
    NR_INODES = (29, "inodes in use are counted right")
    RESERVED = (30, "reserved and unused bytes are zero")
    TAILS = (31, "the last page of a file is zero behind its end")

    def __init__(self, number: int, meaning: str) -> None:
        self.number = number
        self.meaning = meaning

    def __str__(self) -> str:
        return f"I{self.number}"


class Finding(NamedTuple):
    """One place where an invariant does not hold, in a line.

    ino: the inode whose record or pages are to be changed, None if it is not just one's.
    """

    invariant: Invariant
    text: str
    ino: int | None = None

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text}"


class Repair(NamedTuple):
    """What was done about an invariant, in a line."""

    invariant: Invariant
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text}"


class FsckReport(NamedTuple):
    """What fsck found; the counts are what it saw, 0 for what it did not come to.

    unchecked: what was not checked, and why; empty if all was. repairs: what was done, after which
    the findings are those that are left.
    """

    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...]
    nr_pages: int
    nr_used_pages: int
    nr_inodes: int
    nr_dirs: int
    repairs: tuple[Repair, ...] = ()

    @property
    def exit_code(self) -> int:
        """As fsck(8): 0 clean, 1 all corrected, 4 errors left uncorrected, 8 could not judge."""
        if any(finding.invariant is Invariant.FEATURES for finding in self.findings):
            return _EXIT_OPERATIONAL
        if self.findings:
            return _EXIT_UNCORRECTED
        return _EXIT_CORRECTED if self.repairs else _EXIT_CLEAN


class StopCheckingError(Exception):
    """Going on makes no sense, and why; caught in `fsck`, never seen outside."""


class Findings:
    """Collects findings, at most *nr_max*, and what was not checked because of them."""

    __slots__ = ("_nr_max", "found", "unchecked")

    def __init__(self, nr_max: int | None = NR_FINDINGS_MAX) -> None:
        self._nr_max = nr_max
        self.found: list[Finding] = []
        self.unchecked: list[str] = []

    def add(self, invariant: Invariant, text: str, ino: int | None = None) -> None:
        """Note that *invariant* does not hold. Raises: StopCheckingError after too many."""
        self.found.append(Finding(invariant, text, ino))
        if len(self.found) == self._nr_max:
            raise StopCheckingError(f"the rest: there are {self._nr_max} findings already")

    def add_inodes(
        self, invariant: Invariant, wrong: NDArray[np.bool_], inos: NDArray[np.int64], text: str
    ) -> None:
        """Note it once for each of *inos* that is *wrong*: arrays of one shape."""
        for ino in inos[wrong].tolist():
            self.add(invariant, f"inode {ino}: {text}", ino)
