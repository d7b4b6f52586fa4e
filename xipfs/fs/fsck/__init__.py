"""fsck: checks every invariant of an image, and changes nothing.

    report = fsck("nvram.img")
    for finding in report.findings:
        print(finding)                  I24: inode 17: nlink is 2, 1 were counted

Each invariant has a number (`Invariant`, docs/FSCK.md) and a function `check_<what>`; here is only
their order. A check believes what the checks before it have found to be sound, and nothing else.

    report       Invariant, Finding, FsckReport
    volume       superblocks, layout, journal, state        I1 to I7, I30
    inodes       the inode file and every record in it      I8 to I10, I13, I15, I16, I25, I29, I31
    extents      extents and their trees                    I11, I12
    directories  pages of directories, names, links         I17 to I24
    pages        who holds which page, bitmaps, counts      I14, I26 to I28
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from xipfs.fs.fsck.directories import (
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
from xipfs.fs.fsck.pages import PageClaims, UsedPages, check_groups, check_one_owner
from xipfs.fs.fsck.report import (
    NR_FINDINGS_MAX,
    Finding,
    Findings,
    FsckReport,
    Invariant,
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
from xipfs.phys.nvram import NvramDevice

__all__ = [
    "NR_FINDINGS_MAX",
    "Finding",
    "FsckProgress",
    "FsckReport",
    "Invariant",
    "fsck",
]


class FsckProgress(NamedTuple):
    """How far fsck is: *done* of *total* of what it looks at now."""

    what: str
    done: int
    total: int


def fsck(
    path: str | os.PathLike[str], progress: Callable[[FsckProgress], None] | None = None
) -> FsckReport:
    """Check the image at *path*, holding the lock of a reader meanwhile.

    Raises: DeviceError, ImageBusyError; FormatError for what is no image at all.
    """
    nvram = NvramDevice.open(path)
    try:
        check = _Check(nvram, progress or (lambda _: None))
        try:
            check.run()
        except StopCheckingError as exc:
            check.findings.unchecked.append(str(exc))
        return check.report()
    finally:
        nvram.close()


class _Check:
    """One run over one image: what each step leaves to those behind it."""

    __slots__ = ("_disk", "_nvram", "_progress", "_table", "_used", "findings")

    def __init__(self, nvram: NvramDevice, progress: Callable[[FsckProgress], None]) -> None:
        self._nvram = nvram
        self._progress = progress
        self.findings = Findings()
        self._disk: DiskSuperblock | None = None
        self._table: InodeTable | None = None
        self._used: UsedPages | None = None

    def run(self) -> None:
        """Check all that can be checked. Raises: StopCheckingError, FormatError, DeviceError."""
        nvram, findings = self._nvram, self.findings
        disk, state = self._check_volume()
        claims = PageClaims(disk)
        runs = check_inode_file(nvram, disk, state, claims, findings)
        if runs is None:
            findings.unchecked.append("inodes, names, pages: the inode file cannot be read")
        else:
            table = self._table = scan_inodes(
                nvram, disk, state, runs, claims, findings, self._say("inodes")
            )
            if state is not None:
                check_lists(state, table, findings)
                # A record that cannot be read may be in use or not: then the count says nothing.
                if not table.nr_damaged:
                    check_nr_inodes(state, table, findings)
            self._used = check_one_owner(claims, disk, findings)
            if self._used is None:
                findings.unchecked.append("names, bitmaps: there are more extents than pages")
            else:
                self._check_names(disk, table, claims)
        check_groups(nvram, disk, state, self._used, findings, self._say("groups"))

    def report(self) -> FsckReport:
        """Return what was found so far."""
        return FsckReport(
            findings=tuple(self.findings.found),
            unchecked=tuple(self.findings.unchecked),
            nr_pages=self._disk.nr_pages if self._disk else 0,
            nr_used_pages=self._used.nr_used_pages if self._used else 0,
            nr_inodes=len(self._table.rows) if self._table else 0,
            nr_dirs=int(np.count_nonzero(self._table.is_dir)) if self._table else 0,
        )

    def _check_volume(self) -> tuple[DiskSuperblock, DiskState | None]:
        """I1 to I7: return superblock and state, by which the rest can be looked at."""
        nvram, findings = self._nvram, self.findings
        found = check_superblock(nvram, findings)
        if found is None:
            raise StopCheckingError("the rest: no superblock says where it is")
        disk, page = found
        self._disk = disk
        if not check_features(disk, findings):
            raise StopCheckingError("the rest: a newer xipfs must do it")
        if not check_size(nvram, disk, findings) or not check_layout(disk, findings):
            raise StopCheckingError("the rest: it is not there, or not where it should be")
        check_replica(nvram, disk, page, findings)
        check_reserved(np.frombuffer(page, SUPERBLOCK.dtype), "the superblock", findings)
        state = check_state(nvram, disk, findings)
        clean = state is not None and bool(state.flags & StateFlags.CLEAN)
        if not check_journal(nvram, disk, findings, clean=clean):
            raise StopCheckingError("the rest: a replay is going to change it")
        return disk, state

    def _check_names(self, disk: DiskSuperblock, table: InodeTable, claims: PageClaims) -> None:
        """I17 to I24."""
        links = scan_directories(
            self._nvram, disk, table, claims.all(), self.findings, self._say("directories")
        )
        check_parents(table, links, self.findings)
        check_connected(table, links, self.findings)
        check_nlink(table, links, self.findings)

    def _say(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(FsckProgress(what, done, total))
