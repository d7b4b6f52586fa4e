"""The order of all checks: `ImageCheck` runs them, and keeps what each has found out.

A check believes what the checks before it have found to be sound, and nothing else.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from xipfs.fs.fsck.directories import (
    Links,
    check_connected,
    check_nlink,
    check_parents,
    scan_directories,
)
from xipfs.fs.fsck.inodes import (
    InodeTable,
    check_inode_file,
    check_lists,
    check_nr_inodes,
    scan_inodes,
)
from xipfs.fs.fsck.overlay import ReadableImage
from xipfs.fs.fsck.pages import PageClaims, UsedPages, check_groups, check_one_owner
from xipfs.fs.fsck.report import (
    NR_FINDINGS_MAX,
    Findings,
    FsckReport,
    StopCheckingError,
)
from xipfs.fs.fsck.volume import (
    check_features,
    check_journal,
    check_layout,
    check_replica,
    check_reserved,
    check_size,
    check_state,
    check_superblock,
)
from xipfs.ondisk.superblock import SUPERBLOCK, DiskState, DiskSuperblock, StateFlags

__all__ = ["FsckProgress", "ImageCheck"]


class FsckProgress(NamedTuple):
    """How far fsck is: *done* of *total* of what it looks at now."""

    what: str
    done: int
    total: int


class ImageCheck:
    """One run over one image: what each step leaves to those behind it.

    disk, state, inode_file, table, claims, used, links: None for what could not be found out;
    inode_file: extents of the inode file as (pgoff, block, nr_pages).
    """

    __slots__ = (
        "_nvram",
        "_progress",
        "claims",
        "disk",
        "findings",
        "inode_file",
        "links",
        "state",
        "table",
        "used",
    )

    def __init__(
        self,
        nvram: ReadableImage,
        progress: Callable[[FsckProgress], None],
        nr_findings_max: int | None = NR_FINDINGS_MAX,
    ) -> None:
        self._nvram = nvram
        self._progress = progress
        self.findings = Findings(nr_findings_max)
        self.disk: DiskSuperblock | None = None
        self.state: DiskState | None = None
        self.inode_file: list[tuple[int, int, int]] | None = None
        self.table: InodeTable | None = None
        self.claims: PageClaims | None = None
        self.used: UsedPages | None = None
        self.links: Links | None = None

    def run(self) -> None:
        """Check all that can be checked. Raises: FormatError, DeviceError."""
        try:
            self._run()
        except StopCheckingError as exc:
            self.findings.unchecked.append(str(exc))

    def _run(self) -> None:
        nvram, findings = self._nvram, self.findings
        disk, state = self._check_volume()
        claims = self.claims = PageClaims(disk)
        runs = self.inode_file = check_inode_file(nvram, disk, state, claims, findings)
        if runs is None:
            findings.unchecked.append("inodes, names, pages: the inode file cannot be read")
        else:
            table = self.table = scan_inodes(
                nvram, disk, state, runs, claims, findings, self._say("inodes")
            )
            if state is not None:
                check_lists(state, table, findings)
                # A record that cannot be read may be in use or not: then the count says nothing.
                if not table.nr_damaged:
                    check_nr_inodes(state, table, findings)
            self.used = check_one_owner(claims, disk, findings)
            if self.used is None:
                findings.unchecked.append("names, bitmaps: there are more extents than pages")
            else:
                self._check_names(disk, table, claims)
        check_groups(nvram, disk, state, self.used, findings, self._say("groups"))

    def report(self) -> FsckReport:
        """Return what was found so far."""
        return FsckReport(
            findings=tuple(self.findings.found),
            unchecked=tuple(self.findings.unchecked),
            nr_pages=self.disk.nr_pages if self.disk else 0,
            nr_used_pages=self.used.nr_used_pages if self.used else 0,
            nr_inodes=len(self.table.rows) if self.table else 0,
            nr_dirs=int(np.count_nonzero(self.table.is_dir)) if self.table else 0,
        )

    def _check_volume(self) -> tuple[DiskSuperblock, DiskState | None]:
        """I1 to I7: return superblock and state, by which the rest can be looked at."""
        nvram, findings = self._nvram, self.findings
        found = check_superblock(nvram, findings)
        if found is None:
            raise StopCheckingError("the rest: no superblock says where it is")
        disk, page = found
        self.disk = disk
        if not check_features(disk, findings):
            raise StopCheckingError("the rest: a newer xipfs must do it")
        if not check_size(nvram, disk, findings) or not check_layout(disk, findings):
            raise StopCheckingError("the rest: it is not there, or not where it should be")
        check_replica(nvram, disk, page, findings)
        check_reserved(np.frombuffer(page, SUPERBLOCK.dtype), "the superblock", findings)
        state = self.state = check_state(nvram, disk, findings)
        clean = state is not None and bool(state.flags & StateFlags.CLEAN)
        if not check_journal(nvram, disk, findings, clean=clean):
            raise StopCheckingError("the rest: a replay is going to change it")
        return disk, state

    def _check_names(self, disk: DiskSuperblock, table: InodeTable, claims: PageClaims) -> None:
        """I17 to I24."""
        links = self.links = scan_directories(
            self._nvram, disk, table, claims.all(), self.findings, self._say("directories")
        )
        check_parents(table, links, self.findings)
        check_connected(table, links, self.findings)
        check_nlink(table, links, self.findings)

    def _say(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(FsckProgress(what, done, total))
