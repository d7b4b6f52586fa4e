"""Repairs of what stands once: the superblocks, the journal, the state.

Superblocks and journal are put right in the image itself, before all others: the one says where
things are, the other carries the rest of the repairs. A crash tears at most the copy that is being
written, while the other is sound.
"""

import numpy as np

from xipfs.errors import FormatError
from xipfs.fs.fsck.repairer import Repairer
from xipfs.fs.fsck.report import Findings, Invariant, Repair
from xipfs.fs.fsck.volume import (
    check_features,
    check_journal,
    check_layout,
    check_replica,
    check_size,
    check_state,
    check_superblock,
    reserved_bytes,
)
from xipfs.fs.fsck.writeout import store_durably
from xipfs.fs.journal import Journal
from xipfs.ondisk.inode import INO_FIRST, INO_MAX, INODE
from xipfs.ondisk.journal import (
    JOURNAL_HEADER,
    NR_JOURNAL_HEADERS,
    DiskJournalHeader,
    decode_journal_header,
)
from xipfs.ondisk.superblock import (
    STATE_BLOCK,
    STATE_INODE_OFFSET,
    Compat,
    DiskState,
    DiskSuperblock,
    StateFlags,
)
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Ino

__all__ = [
    "repair_acl_feature",
    "repair_journal",
    "repair_reserved_of_volume",
    "repair_state",
    "repair_superblocks",
]

_CHUNK_BYTES = 1 << 20


def repair_superblocks(nvram: NvramDevice) -> tuple[DiskSuperblock | None, list[Repair]]:
    """I1, I2: copy the sound superblock over the other one.

    Returns the superblock, None if the image cannot be repaired: both are damaged, it is newer, cut
    short or laid out impossibly. Raises: FormatError for what is no image; DeviceError.
    """
    findings = Findings(None)
    done: list[Repair] = []
    found = check_superblock(nvram, findings)
    if found is None:
        return None, done
    disk, page = found
    if not (
        check_features(disk, findings)
        and check_size(nvram, disk, findings)
        and check_layout(disk, findings)
    ):
        return None, done
    check_replica(nvram, disk, page, findings)
    replica_block = disk.nr_pages - 1
    for finding in findings.found:
        if finding.invariant is Invariant.SUPERBLOCK:
            store_durably(nvram, 0, page)
            done.append(Repair(finding.invariant, f"page 0: copied from page {replica_block}"))
        elif finding.invariant is Invariant.REPLICA:
            store_durably(nvram, replica_block << PAGE_SHIFT, page)
            done.append(Repair(finding.invariant, f"page {replica_block}: copied from page 0"))
    return disk, done


def repair_journal(
    nvram: NvramDevice, disk: DiskSuperblock, *, unsafe: bool
) -> tuple[bool, list[Repair]]:
    """I6, and I30 of the journal: replay it, and have it start with a sealed header.

    unsafe: also give up transactions that a journal without a header may hold. Returns whether the
    image is now what it is, and nothing waits. Raises: DeviceError, NoSpaceError.
    """
    state = check_state(nvram, disk, Findings(None))
    clean = state is not None and bool(state.flags & StateFlags.CLEAN)
    findings = Findings(None)
    check_journal(nvram, disk, findings, clean=clean)
    if clean and not findings.found:
        return True, []
    done: list[Repair] = []
    if any(finding.invariant is Invariant.RESERVED for finding in findings.found):
        _clear_reserved(nvram, disk)
        done.append(Repair(Invariant.RESERVED, "the journal: reserved bytes made zero"))
    try:
        nr_transactions = Journal(nvram, disk).replay()
    except FormatError:
        if not clean and not unsafe:
            return False, done
        _begin_anew(nvram, disk)
        text = "the journal: emptied" + ("" if clean else ", what may have waited in it is lost")
        return True, [*done, Repair(Invariant.JOURNAL, text)]
    is_broken = any(finding.invariant is Invariant.JOURNAL for finding in findings.found)
    if is_broken or nr_transactions:
        text = f"the journal: {nr_transactions} transactions replayed"
        done.append(Repair(Invariant.JOURNAL, text))
    return True, done


def repair_acl_feature(repairer: Repairer) -> None:
    """I16: turn the feature on, in both superblocks."""
    disk = repairer.disk
    page = disk._replace(compat=disk.compat | Compat.ACL).encode()
    repairer.put_page(0, page)
    repairer.put_page(disk.nr_pages - 1, page)
    repairer.did(Invariant.ACL_FEATURE, "the feature ACL is on")


def repair_state(repairer: Repairer) -> None:
    """I7: set the flags right, or make the state anew from the inodes.

    The counts and lists are for those who count (I25, I28, I29).
    """
    state = repairer.check.state
    if state is not None:
        repairer.put_state(state._replace(flags=int(StateFlags.CLEAN)))
        repairer.did(Invariant.STATE, "the state: says clean, and no error")
        return
    table = repairer.table
    highest = max(
        int(table.rows["ino"].max(initial=0)),
        int(table.free["ino"].max(initial=0)),
    )
    try:
        old = repairer.state()
        mounted_ns, mount_count = old.mounted_ns, old.mount_count
    except FormatError:
        mounted_ns, mount_count = 0, 0
    ino_end = min(max(highest + 1, int(INO_FIRST)), int(INO_MAX) + 1)
    repairer.put_state(
        DiskState(
            flags=int(StateFlags.CLEAN),
            nr_free_pages=0,
            nr_inodes=len(table.rows),
            ino_end=Ino(ino_end),
            free_ino_head=Ino(0),
            orphan_ino_head=Ino(0),
            mounted_ns=mounted_ns,
            written_ns=repairer.now_ns,
            mount_count=mount_count,
        )
    )
    repairer.did(Invariant.STATE, f"the state: made anew, inodes end at {ino_end}")


def repair_reserved_of_volume(repairer: Repairer) -> None:
    """I30, for superblocks and state: zero what is reserved."""
    disk = repairer.disk
    page = disk.encode()
    if page != repairer.load_page(0):
        repairer.put_page(0, page)
        repairer.put_page(disk.nr_pages - 1, page)
        repairer.did(Invariant.RESERVED, "the superblocks: reserved bytes made zero")
    page = repairer.load_page(STATE_BLOCK)
    inode = page[STATE_INODE_OFFSET : STATE_INODE_OFFSET + INODE.size_bytes]
    expected = repairer.state().encode(disk.seed).ljust(STATE_INODE_OFFSET, b"\0") + inode
    if page != expected.ljust(PAGE_SIZE, b"\0"):
        repairer.put_page(STATE_BLOCK, expected.ljust(PAGE_SIZE, b"\0"))
        repairer.did(Invariant.RESERVED, "the state: reserved bytes made zero")


def _clear_reserved(nvram: NvramDevice, disk: DiskSuperblock) -> None:
    """Zero the journal's first page behind its headers, and what is reserved in them."""
    offset = disk.journal_block << PAGE_SHIFT
    end = NR_JOURNAL_HEADERS * JOURNAL_HEADER.size_bytes
    store_durably(nvram, offset + end, bytes(PAGE_SIZE - end))
    page = nvram.load(offset, end)
    headers = np.frombuffer(page, JOURNAL_HEADER.dtype)
    found = np.frombuffer(page, np.uint8).reshape(NR_JOURNAL_HEADERS, -1)
    if not found[:, reserved_bytes(JOURNAL_HEADER.dtype)].any():
        return
    try:
        header = decode_journal_header(page, disk.seed)
    except FormatError:
        return
    # The other place first, so that a header that counts is there at every moment.
    newest = int(np.flatnonzero(headers["sequence"] == header.sequence)[0])
    for number in (1 - newest, newest):
        place = offset + number * JOURNAL_HEADER.size_bytes
        store_durably(nvram, place, header.encode(disk.seed))


def _begin_anew(nvram: NvramDevice, disk: DiskSuperblock) -> None:
    """Empty the ring, then write a first header: no record is left that it could start with."""
    offset = disk.journal_block << PAGE_SHIFT
    end = disk.journal_block + disk.nr_journal_pages << PAGE_SHIFT
    for start in range(offset + PAGE_SIZE, end, _CHUNK_BYTES):
        store_durably(nvram, start, bytes(min(_CHUNK_BYTES, end - start)))
    header = DiskJournalHeader(sequence=1, head=0).encode(disk.seed)
    store_durably(nvram, offset, header.ljust(PAGE_SIZE, b"\0"))
