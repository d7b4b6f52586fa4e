"""Brings repaired pages into the image, so that a crash in the middle leaves one to repair again.

    1  state: CLEAN off, then ERROR on          a mount refuses from here on
    2  fresh pages, to where nothing was        nobody finds them yet
    3  all others, page by page, as transactions of the journal
    4  state: ERROR off, then CLEAN on

No page is ever half old and half new, as step 3 is redone from the journal. Pages may be old or new
independently of each other: that is what repairs are made for, since what they replace (a
directory, a tree of extents) they build from fresh pages and hang in by the inode alone.
Only where the whole ring is smaller than what changes in one page, that page is stored in place.

The journal must have a sealed header (`fs.fsck.repair_volume`).
"""

from collections.abc import Iterable, Mapping

from xipfs.errors import FormatError
from xipfs.fs.journal import Journal
from xipfs.ondisk.journal import JOURNAL_HEADER, decode_journal_header, differing_ranges
from xipfs.ondisk.record import Buffer
from xipfs.ondisk.superblock import (
    STATE,
    STATE_BLOCK,
    DiskState,
    DiskSuperblock,
    StateFlags,
    decode_state,
)
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["store_durably", "write_out"]

_TRANSACTION_BYTES_MAX = 1 << 20
_STATE_OFFSET = STATE_BLOCK << PAGE_SHIFT


def write_out(
    nvram: NvramDevice, disk: DiskSuperblock, pages: Mapping[int, Buffer], fresh: set[int]
) -> None:
    """Make the image have *pages*, by block. fresh: those that nobody held before.

    Raises: DeviceError, NoSpaceError; FormatError when the journal has no sealed header.
    """
    _abandon_ring(nvram, disk)
    journal = Journal(nvram, disk)
    for block in pages:
        nvram.reserve(block << PAGE_SHIFT, PAGE_SIZE)
    old_page = nvram.load(_STATE_OFFSET, PAGE_SIZE)
    page = bytes(pages.get(STATE_BLOCK, old_page))
    old, final = _state_of(old_page, disk), _state_of(page, disk)
    if old is not None:  # a torn state forbids to use the image as it is
        unclean = old.flags & ~int(StateFlags.CLEAN)
        for flags in (unclean, unclean | StateFlags.ERROR):
            _commit_flags(journal, disk, old, flags)
    for block in sorted(fresh & pages.keys()):
        nvram.store_bytes(block << PAGE_SHIFT, bytes(pages[block]))
        nvram.flush(block << PAGE_SHIFT, PAGE_SIZE)
    nvram.fence()
    superblocks = {0, disk.nr_pages - 1}
    for block in superblocks & pages.keys():  # never both in one transaction
        _commit_pages(journal, nvram, {block: pages[block]})
    others = sorted(pages.keys() - fresh - superblocks - {STATE_BLOCK})
    _commit_pages(journal, nvram, {block: pages[block] for block in others})
    if final is None:  # left as it is
        _commit_pages(journal, nvram, {STATE_BLOCK: page})
        return
    unfinished = final._replace(flags=int(StateFlags.ERROR)).encode(disk.seed)
    _commit_pages(journal, nvram, {STATE_BLOCK: unfinished + page[STATE.size_bytes :]})
    for flags in (final.flags & ~int(StateFlags.CLEAN), final.flags):
        _commit_flags(journal, disk, final, flags)


def store_durably(nvram: NvramDevice, offset: int, data: bytes) -> None:
    """Store, flush and fence. Raises: DeviceError, NoSpaceError."""
    nvram.reserve(offset, len(data))
    nvram.store_bytes(offset, data)
    nvram.flush(offset, len(data))
    nvram.fence()


def _abandon_ring(nvram: NvramDevice, disk: DiskSuperblock) -> None:
    """Let no transaction count that still stands in the ring: all have been replayed.

    Of a clean image one may wait that says so, or that it is in use. The image was checked as it
    is, so that shall not happen any more.
    """
    offset = disk.journal_block << PAGE_SHIFT
    page = nvram.load(offset, PAGE_SIZE)
    newest = decode_journal_header(page, disk.seed)
    is_first = page.startswith(newest.encode(disk.seed))
    ring_size_bytes = (disk.nr_journal_pages - 1) << PAGE_SHIFT
    header = newest._replace(sequence=newest.sequence + ring_size_bytes)
    place = offset + (JOURNAL_HEADER.size_bytes if is_first else 0)
    store_durably(nvram, place, header.encode(disk.seed))


def _commit_flags(journal: Journal, disk: DiskSuperblock, state: DiskState, flags: int) -> None:
    journal.commit([(_STATE_OFFSET, state._replace(flags=flags).encode(disk.seed))])


def _commit_pages(journal: Journal, nvram: NvramDevice, pages: Mapping[int, Buffer]) -> None:
    """Commit what changes in *pages*, in as few transactions as fit, each page in one."""
    batch: list[tuple[int, bytes]] = []
    batch_bytes = 0
    limit = min(journal.size_bytes_max, _TRANSACTION_BYTES_MAX)
    for block, page in pages.items():
        records = list(_differences(nvram, block, page))
        size_bytes = Journal.size_bytes(records)
        if batch and batch_bytes + size_bytes > limit:
            journal.commit(batch)
            batch, batch_bytes = [], 0
        if size_bytes > journal.size_bytes_max:
            store_durably(nvram, block << PAGE_SHIFT, bytes(page))
        else:
            batch += records
            batch_bytes += size_bytes
    if batch:
        journal.commit(batch)


def _differences(nvram: NvramDevice, block: int, page: Buffer) -> Iterable[tuple[int, bytes]]:
    offset = block << PAGE_SHIFT
    for start, end in differing_ranges(nvram.load(offset, PAGE_SIZE), page):
        yield offset + start, bytes(page[start:end])


def _state_of(page: Buffer, disk: DiskSuperblock) -> DiskState | None:
    try:
        return decode_state(memoryview(page)[: STATE.size_bytes], disk.seed)
    except FormatError:
        return None
