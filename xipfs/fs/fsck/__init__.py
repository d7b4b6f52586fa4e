"""fsck: checks every invariant of an image, and repairs those that do not hold.

    report = fsck("nvram.img")                                  changes nothing
    for finding in report.findings:
        print(finding)                  I24: inode 17: nlink is 2, 1 were counted
    report = repair("nvram.img", unsafe=True, now_ns=...)       docs/FSCK.md: -y
    for done in report.repairs:
        print(done)                     I24: inode 17: 1 links

Each invariant has a number (`Invariant`, docs/FSCK.md), a function `check_<what>` and, where it can
be repaired, a function `repair_<what>`. Checks read, and know nothing of repairs.

    report       Invariant, Finding, Repair, FsckReport
    check        the order of all checks
    volume       superblocks, layout, journal, state        I1 to I7, I30
    inodes       the inode file and every record in it      I8 to I10, I13, I15, I16, I25, I29, I31
    extents      extents and their trees                    I11, I12
    directories  pages of directories, names, links         I17 to I24
    pages        who holds which page, bitmaps, counts      I14, I26 to I28

    repair       the order of all repairs: check, repair the first stage, check again
    repairer     what a repair works with; overlay: the image with all repairs, in memory
    repair_volume       I1, I2, I6, I7, I16
    repair_inode_file   I8                  repair_extents       I11 to I14
    repair_records      I9                  repair_directories   I17 to I24
    repair_inodes       I10, I15, I30, I31  repair_pages         I26 to I28
    repair_lists        I25, I29
    writeout     the overlay's pages into the image, by the journal
"""

import os
from collections.abc import Callable

from xipfs.fs.fsck.check import FsckProgress, ImageCheck
from xipfs.fs.fsck.repair import repair
from xipfs.fs.fsck.report import NR_FINDINGS_MAX, Finding, FsckReport, Invariant, Repair
from xipfs.phys.nvram import NvramDevice

__all__ = [
    "NR_FINDINGS_MAX",
    "Finding",
    "FsckProgress",
    "FsckReport",
    "Invariant",
    "Repair",
    "fsck",
    "repair",
]


def fsck(
    path: str | os.PathLike[str], progress: Callable[[FsckProgress], None] | None = None
) -> FsckReport:
    """Check the image at *path*, holding the lock of a reader meanwhile.

    Raises: DeviceError, ImageBusyError; FormatError for what is no image at all.
    """
    nvram = NvramDevice.open(path)
    try:
        check = ImageCheck(nvram, progress or (lambda _: None))
        check.run()
        return check.report()
    finally:
        nvram.close()
