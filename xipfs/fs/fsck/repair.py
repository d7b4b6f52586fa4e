"""Repair: from an image with findings to one without, a stage at a time.

    check -> the first stage that something was found for -> its repairs -> check -> ...

A stage's repairs may believe all that the stages before it have put right. They change an
`Overlay`; when a check of that finds nothing more, or nothing more can be done, `write_out` brings
it into the image. So what is written was checked before.

    superblocks, journal        in the image itself     fs.fsck.repair_volume
    STAGES                      in the overlay          fs.fsck.repair_*

What is safe (-p) loses nothing: it is counted again from what is sound. The rest (-y) gives up what
cannot be read.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from xipfs.errors import FormatError, NoSpaceError
from xipfs.fs.fsck.check import FsckProgress, ImageCheck
from xipfs.fs.fsck.overlay import Overlay
from xipfs.fs.fsck.repair_directories import (
    repair_connected,
    repair_directories,
    repair_entries,
    repair_nlink,
    repair_nr_entries,
    repair_parents,
)
from xipfs.fs.fsck.repair_extents import repair_extents, repair_nr_pages, repair_owners
from xipfs.fs.fsck.repair_inode_file import repair_inode_file
from xipfs.fs.fsck.repair_inodes import (
    repair_inode_fields,
    repair_reserved_of_inodes,
    repair_tails,
    repair_xattrs,
)
from xipfs.fs.fsck.repair_lists import repair_lists, repair_nr_inodes
from xipfs.fs.fsck.repair_pages import repair_groups
from xipfs.fs.fsck.repair_records import repair_inode_records
from xipfs.fs.fsck.repair_volume import (
    repair_acl_feature,
    repair_journal,
    repair_reserved_of_volume,
    repair_state,
    repair_superblocks,
)
from xipfs.fs.fsck.repairer import Repairer
from xipfs.fs.fsck.report import Finding, FsckReport, Invariant
from xipfs.fs.fsck.writeout import write_out
from xipfs.ondisk.inode import INO_INODE_FILE
from xipfs.ondisk.superblock import StateFlags
from xipfs.phys.nvram import NvramDevice

__all__ = ["STAGES", "Stage", "repair", "repair_image"]

NR_ROUNDS_MAX = 100
"""Each round ends one stage or makes findings fewer; a hundred mean that they turn in a circle."""


class Stage(NamedTuple):
    """Repairs that are done together. is_safe: -p may; is_mine: which findings call for it."""

    name: str
    is_safe: Callable[[Repairer], bool]
    is_mine: Callable[[Finding], bool]
    repairs: tuple[Callable[[Repairer], None], ...]


def repair(
    path: str | os.PathLike[str],
    *,
    unsafe: bool,
    now_ns: int,
    progress: Callable[[FsckProgress], None] | None = None,
) -> FsckReport:
    """Repair the image at *path*, of which we must be the only user.

    unsafe: not only what loses nothing. now_ns: the time for what is made. The report says what was
    done, and what is left.
    Raises: DeviceError, ImageBusyError, ReadOnlyFsError, NoSpaceError when the host's disk is full;
            FormatError for what is no image at all.
    """
    nvram = NvramDevice.open(path, writable=True)
    try:
        return repair_image(nvram, unsafe=unsafe, now_ns=now_ns, progress=progress)
    finally:
        nvram.close()


def repair_image(
    nvram: NvramDevice,
    *,
    unsafe: bool,
    now_ns: int,
    progress: Callable[[FsckProgress], None] | None = None,
) -> FsckReport:
    """As `repair`, on a device that is open."""
    progress = progress or (lambda _: None)
    disk, done = repair_superblocks(nvram)
    is_ready = False
    if disk is not None:
        is_ready, journal_done = repair_journal(nvram, disk, unsafe=unsafe)
        if journal_done:  # a replay may have changed page 0, and not yet its copy
            disk, superblocks_done = repair_superblocks(nvram)
            journal_done += superblocks_done
        done += journal_done
    overlay = Overlay(nvram)
    repairer = Repairer(overlay, now_ns)
    check = _run_rounds(repairer, progress, unsafe=unsafe, is_ready=is_ready)
    if disk is not None and not is_ready:
        check.findings.unchecked.append("the journal: not repaired, as -p loses nothing")
    if disk is not None and is_ready:
        if check.findings.found:
            _leave_word(repairer)
        if overlay.pages:
            write_out(nvram, disk, overlay.pages, repairer.fresh)
    return check.report()._replace(repairs=(*done, *repairer.done))


def _run_rounds(
    repairer: Repairer, progress: Callable[[FsckProgress], None], *, unsafe: bool, is_ready: bool
) -> ImageCheck:
    """Repair stage by stage; return the last check. is_ready: there is a journal to write by."""
    before: list[Finding] | None = None
    for _ in range(NR_ROUNDS_MAX):
        check = ImageCheck(repairer.image, progress, nr_findings_max=None)
        check.run()
        repairer.start_round(check)
        found = check.findings.found
        stage = next((stage for stage in STAGES if any(map(stage.is_mine, found))), None)
        if not is_ready or stage is None or found == before:
            break
        if not (unsafe or stage.is_safe(repairer)):
            check.findings.unchecked.append(f"{stage.name}: not repaired, as -p loses nothing")
            break
        try:
            for function in stage.repairs:
                function(repairer)
            repairer.end_round()
        except NoSpaceError as exc:
            repairer.drop_round()
            check.findings.unchecked.append(f"{stage.name}: not repaired: {exc}")
            break
        before = found
    return check


def _leave_word(repairer: Repairer) -> None:
    """Set ERROR, so that no mount writes to what is still damaged."""
    try:
        state = repairer.state()
    except FormatError:
        return
    repairer.put_state(state._replace(flags=int(StateFlags.CLEAN | StateFlags.ERROR)))
    repairer.end_round()


def _yes(repairer: Repairer) -> bool:
    return True


def _no(repairer: Repairer) -> bool:
    return False


def _has_state(repairer: Repairer) -> bool:
    return repairer.check.state is not None


def _any_of(*invariants: Invariant) -> Callable[[Finding], bool]:
    return lambda finding: finding.invariant in invariants


def _is_of_inode_file(finding: Finding) -> bool:
    of_extents = finding.invariant in (Invariant.EXTENTS, Invariant.EXTENT_NODES)
    return finding.invariant is Invariant.INODE_FILE or (
        of_extents and finding.ino == INO_INODE_FILE
    )


I = Invariant  # noqa: E741

STAGES = (
    Stage("the inode file", _no, _is_of_inode_file, (repair_inode_file,)),
    Stage("the state", _has_state, _any_of(I.STATE), (repair_state,)),
    Stage("inodes", _no, _any_of(I.INODE_RECORD), (repair_inode_records,)),
    Stage("inodes", _no, _any_of(I.INODE_FIELDS), (repair_inode_fields,)),
    Stage(
        "extents and attributes",
        _no,
        _any_of(I.EXTENTS, I.EXTENT_NODES, I.XATTRS),
        (repair_extents, repair_xattrs),
    ),
    Stage("pages with two owners", _no, _any_of(I.ONE_OWNER), (repair_owners,)),
    Stage(
        "directories",
        _no,
        _any_of(I.DIR_PAGES, I.DIR_KEYS, I.DIR_NAMES),
        (repair_directories,),
    ),
    Stage("names", _no, _any_of(I.DIR_ENTRIES), (repair_entries,)),
    Stage("parents", _no, _any_of(I.PARENTS), (repair_parents,)),
    Stage("what has no name", _no, _any_of(I.CONNECTED), (repair_connected,)),
    Stage(
        "counts of inodes",
        _yes,
        _any_of(I.NR_ENTRIES, I.NLINK, I.NR_PAGES),
        (repair_nr_entries, repair_nlink, repair_nr_pages),
    ),
    Stage("lists", _yes, _any_of(I.LISTS), (repair_lists,)),
    Stage("the count of inodes", _yes, _any_of(I.NR_INODES), (repair_nr_inodes,)),
    Stage("the bitmaps", _yes, _any_of(I.GROUPS, I.BITMAPS, I.FREE_COUNTS), (repair_groups,)),
    Stage("the feature ACL", _yes, _any_of(I.ACL_FEATURE), (repair_acl_feature,)),
    Stage(
        "unused bytes",
        _yes,
        _any_of(I.RESERVED, I.TAILS),
        (repair_tails, repair_reserved_of_inodes, repair_reserved_of_volume, repair_groups),
    ),
)
"""In this order; a stage is done when nothing is found for it."""
