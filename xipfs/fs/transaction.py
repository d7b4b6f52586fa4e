"""Transaction: changes of metadata that happen together or not at all.

    with sb.transaction(now_ns) as tx:
        [(block, _)] = tx.allocate(1, near)
        tx.new_page(block, page)                   a whole page that nobody reaches yet
        inode = tx.inode(ino)
        tx.put_inode(inode._replace(nlink=2))
        tx.store(offset, data)                     bytes of the image
    # committed: in the image, in sb.state and in the inodes in memory

An exception drops everything, and the image and memory are as before. Nothing is stored before the
block ends, but by the caller: bytes of files into pages that he got from `allocate`. They become
reachable by this transaction, so he flushes them, and its first fence makes them durable.

    pending                     becomes, at the commit
    new_page                    stores into place, before the journal's records (step 1)
    store                       DATA records, of the bytes that differ
    put_inode, state            DATA records of the whole, where something changed
    allocate, free              DATA records of bitmaps and descriptors; new bitmaps like new pages
    free                        pages that can be had again, after step 4

One transaction is open at a time. It must fit into the journal's ring. Whatever may go on for long
(removing the extents of a file) stops when `nearly_full` and goes on in another; everything else
changes some pages of directories and extents, a dozen at most.
"""

from types import TracebackType
from typing import TYPE_CHECKING, Any

from xipfs.errors import FormatError, NoSpaceError, bug_on
from xipfs.fs.allocator import BlockRun
from xipfs.fs.extent import ExtentMap
from xipfs.fs.extentwriter import end_of_extents, insert_extent
from xipfs.fs.inodetable import BLANK_INODE, GENERATION_FIRST
from xipfs.ondisk.inode import (
    INO_INODE_FILE,
    INO_MAX,
    INODE,
    INODES_PER_PAGE,
    DiskInode,
    InodeFlags,
)
from xipfs.ondisk.journal import differing_ranges, journal_record_size_bytes, merged_ranges
from xipfs.ondisk.superblock import STATE_BLOCK, STATE_INODE_OFFSET
from xipfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Block, Ino, Pgoff

if TYPE_CHECKING:
    from xipfs.fs.superblock import SuperBlock

__all__ = ["Transaction"]

_NO_INO = Ino(0)
_STATE_OFFSET = STATE_BLOCK << PAGE_SHIFT
_NLINK_MAX = (1 << 32) - 1
_NR_ENTRIES_MAX = (1 << 63) - 1
_NR_INODE_FILE_PAGES_MAX = 256
"""The inode file grows by a quarter, but by no more, so that it stays in few pieces."""
_LOGGED_WHOLE_BYTES = 256
"""Stores of no more are logged as they are: finding what differs would cost more."""
_RUN_LOG_BYTES = 128
"""What one run of pages that are taken or freed adds to the log, about: bits and a descriptor."""


class Transaction:
    """Changes of *sb*, pending until `commit`. Made by `SuperBlock.transaction`.

    state: the pending state record. now_ns: what the time is, for all of it.
    use_reserve: may the last pages be allocated? For operations that free some.
    """

    __slots__ = (
        "_committed",
        "_freed",
        "_inodes",
        "_new_pages",
        "_orphan_before",
        "_pages",
        "_ranges",
        "_taken",
        "_unchanged",
        "now_ns",
        "sb",
        "state",
        "use_reserve",
    )

    def __init__(self, sb: "SuperBlock", now_ns: int, *, use_reserve: bool = False) -> None:
        self.sb = sb
        self.now_ns = now_ns
        self.use_reserve = use_reserve
        self.state = sb.state
        self._pages: dict[int, tuple[bytes, bytearray]] = {}  # block: as it was, as it will be
        self._ranges: dict[int, list[tuple[int, int]]] = {}  # block: bytes stored to
        self._new_pages: dict[int, bytes | bytearray] = {}
        self._inodes: dict[Ino, DiskInode] = {}
        self._unchanged: dict[Ino, DiskInode] = {}  # as in the image
        self._orphan_before: dict[Ino, Ino | None] = {}
        self._taken: list[BlockRun] = []
        self._freed: list[BlockRun] = []
        self._committed = False

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.sb.end_transaction(self)
            if not self._committed and not self.sb.is_aborted:
                self.sb.allocator.give_back(self._taken)

    # Bytes

    @property
    def size_bytes(self) -> int:
        """Of the image: a transaction can be read from like the device itself."""
        return self.sb.nvram.size_bytes

    @property
    def metadata_runs(self) -> tuple[tuple[int, int], ...]:
        """Pages of the image that no file may have."""
        return self.sb.nvram.metadata_runs

    def load(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the image as they will be after what `store` and `new_page` have changed.

        Inodes, groups and the state are not in them: they wait decoded.
        Raises: DeviceError.
        """
        parts: list[bytes | bytearray] = []
        end = offset + size_bytes
        while offset < end:
            block, start = offset >> PAGE_SHIFT, offset & PAGE_MASK
            stop = min(PAGE_SIZE, start + end - offset)
            page = self._new_pages.get(block)
            if page is None and block in self._pages:
                page = self._pages[block][1]
            if page is not None:
                parts.append(page[start:stop])
            else:
                parts.append(self.sb.nvram.load(offset, stop - start))
            offset += stop - start
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def store(self, offset: int, data: bytes) -> None:
        """Change bytes of the image, in pages that are in use. Raises: DeviceError."""
        while data:
            block, start = offset >> PAGE_SHIFT, offset & PAGE_MASK
            part = data[: PAGE_SIZE - start]
            end = start + len(part)
            new = self._new_pages.get(block)
            if new is not None:
                page = self._new_pages[block] = bytearray(new)
                page[start:end] = part
            else:
                found = self._pages.get(block)
                if found is None:
                    old = self.sb.nvram.load(block << PAGE_SHIFT, PAGE_SIZE)
                    found = self._pages[block] = (old, bytearray(old))
                found[1][start:end] = part
                self._ranges.setdefault(block, []).append((start, end))
            offset += len(part)
            data = data[len(part) :]

    def new_page(self, block: Block, data: bytes) -> None:
        """Say what will be in a page that this transaction has allocated, perhaps once more."""
        bug_on(len(data) != PAGE_SIZE, "new_page: not a page", block=block, size_bytes=len(data))
        self._new_pages[block] = data

    # Pages

    def allocate(self, nr_pages: int, near: Block = Block(0)) -> list[BlockRun]:
        """Return free pages for the caller, in few runs, the first one best at *near*.

        The host's disk has room for them. Raises: NoSpaceError, FormatError, DeviceError.
        """
        sb = self.sb
        runs = sb.allocator.take(nr_pages, near, use_reserve=self.use_reserve)
        self._taken += runs
        for block, nr_run_pages in runs:
            sb.nvram.reserve(block << PAGE_SHIFT, nr_run_pages << PAGE_SHIFT)
        return runs

    def free(self, block: Block, nr_pages: int) -> None:
        """Give pages back that nothing names any more; they can be had again after the commit."""
        self._freed.append((block, nr_pages))
        for pending in (self._new_pages, self._pages, self._ranges):
            for other in [found for found in pending if block <= found < block + nr_pages]:
                del pending[other]

    # Inodes

    def inode(self, ino: Ino) -> DiskInode:
        """Return inode *ino*, in use, with what is pending. Raises: FormatError, DeviceError."""
        inode = self._inodes.get(ino)
        if inode is not None:
            return inode
        if ino == INO_INODE_FILE:
            return self.sb.inode_file_inode
        found = self.sb.find_inode(ino)
        if found is None:
            disk = self._unchanged[ino] = self.sb.load_inode(ino)
            return disk
        if not found.times_dirty:
            self._unchanged[ino] = found.disk
        return found.disk

    def put_inode(self, inode: DiskInode) -> None:
        """Change the inode of that number. Raises: FormatError if its counts were wrong before."""
        if not (
            0 <= inode.nr_pages <= self.sb.disk.nr_pages
            and 0 <= inode.nlink <= _NLINK_MAX
            and 0 <= inode.nr_entries <= _NR_ENTRIES_MAX
        ):
            raise FormatError(
                f"inode {inode.ino}: {inode.nr_pages} pages, {inode.nlink} links and "
                f"{inode.nr_entries} entries after this change: it was wrong before: run xipfs fsck"
            )
        self._inodes[inode.ino] = inode

    def new_inode(self, **fields: Any) -> DiskInode:  # noqa: ANN401
        """Return a new inode with these *fields*; its times are now.

        It takes a number from the free list or, growing the inode file, a higher one than all.
        Raises: NoSpaceError, FormatError, DeviceError.
        """
        state = self.state
        ino = state.free_ino_head
        if ino:
            free = self._inodes.get(ino) or self.sb.load_inode_record(ino)
            if free.mode or not 0 <= free.next_ino < state.ino_end:
                raise FormatError(f"inode {ino}: in the free list, but no free inode")
            generation = (free.generation + 1) & 0xFFFFFFFF
            self.state = state._replace(free_ino_head=free.next_ino, nr_inodes=state.nr_inodes + 1)
        else:
            ino, generation = state.ino_end, GENERATION_FIRST
            if ino > INO_MAX:
                raise NoSpaceError(f"{self.sb.nvram.path}: more than {INO_MAX} inodes")
            if ino // INODES_PER_PAGE >= self.inode(INO_INODE_FILE).size_bytes >> PAGE_SHIFT:
                self._grow_inode_file()
            elif INO_INODE_FILE not in self._inodes and any(
                self.load(self.sb.inode_offset(ino, self.sb.inode_file), INODE.size_bytes)
            ):
                raise FormatError(f"inode {ino}: used, but not below ino_end: run xipfs fsck")
            # The state anew: growing may have changed it.
            self.state = self.state._replace(
                ino_end=Ino(ino + 1), nr_inodes=self.state.nr_inodes + 1
            )
        now_ns = self.now_ns
        times = {"atime_ns": now_ns, "mtime_ns": now_ns, "ctime_ns": now_ns, "btime_ns": now_ns}
        inode = BLANK_INODE._replace(ino=ino, generation=generation, **(times | fields))
        self._inodes[ino] = inode
        return inode

    def free_inode(self, ino: Ino) -> None:
        """Put an inode that has no pages any more into the free list; it leaves the orphan list.

        Raises: FormatError where pages are left that were not found; DeviceError.
        """
        inode = self.inode(ino)
        if inode.flags & InodeFlags.ORPHAN:
            inode = self.remove_orphan(ino)
        if inode.nr_pages:
            raise FormatError(
                f"inode {ino}: counts {inode.nr_pages} pages when all are gone: run xipfs fsck"
            )
        state = self.state
        self._inodes[ino] = BLANK_INODE._replace(
            ino=ino, generation=inode.generation, next_ino=state.free_ino_head
        )
        self.state = state._replace(free_ino_head=ino, nr_inodes=state.nr_inodes - 1)

    def add_orphan(self, ino: Ino) -> DiskInode:
        """Put an inode into the orphan list, at its head. Raises: FormatError if it says it is."""
        inode = self.inode(ino)
        if inode.flags & InodeFlags.ORPHAN:
            raise FormatError(f"inode {ino}: an orphan already: run xipfs fsck")
        head = self.state.orphan_ino_head
        if head:
            self._orphan_before[head] = ino
        self._orphan_before[ino] = _NO_INO
        self.state = self.state._replace(orphan_ino_head=ino)
        inode = inode._replace(flags=inode.flags | InodeFlags.ORPHAN, next_ino=head)
        self._inodes[ino] = inode
        return inode

    def remove_orphan(self, ino: Ino) -> DiskInode:
        """Take an inode out of the orphan list. Raises: FormatError if it is not there."""
        inode = self.inode(ino)
        before = self._orphan_before.get(ino, self.sb.orphan_before.get(ino))
        if before is None:
            raise FormatError(f"inode {ino}: an orphan, but in no list: run xipfs fsck")
        if before:
            self._inodes[before] = self.inode(before)._replace(next_ino=inode.next_ino)
        else:
            self.state = self.state._replace(orphan_ino_head=inode.next_ino)
        if inode.next_ino:
            self._orphan_before[inode.next_ino] = before
        self._orphan_before[ino] = None
        inode = inode._replace(flags=inode.flags & ~int(InodeFlags.ORPHAN), next_ino=_NO_INO)
        self._inodes[ino] = inode
        return inode

    # The end

    @property
    def nearly_full(self) -> bool:
        """Has it taken half of what the journal holds? Then it is time to go on in another."""
        nr_runs = len(self._taken) + len(self._freed)
        log_bytes = nr_runs * _RUN_LOG_BYTES
        log_bytes += (len(self._inodes) + 2) * journal_record_size_bytes(INODE.size_bytes)
        for ranges in self._ranges.values():
            log_bytes += min(
                sum(journal_record_size_bytes(end - start) for start, end in ranges),
                journal_record_size_bytes(PAGE_SIZE),
            )
        return log_bytes > self.sb.journal.size_bytes_max // 2

    def commit(self) -> None:
        """Make it all durable, then known to everybody. The block of `with` ends with it.

        Raises: NoSpaceError when the journal or the host's disk are too small, FormatError,
                DeviceError: nothing has happened then, unless sb.is_aborted.
        """
        sb = self.sb
        bug_on(self._committed, "committed twice")
        change = sb.allocator.prepare(self._taken, self._freed)
        if change.nr_freed_pages:
            self.state = self.state._replace(
                nr_free_pages=self.state.nr_free_pages + change.nr_freed_pages
            )
        state = self.state
        if not (0 <= state.nr_free_pages < sb.disk.nr_pages and 1 <= state.nr_inodes <= INO_MAX):
            raise FormatError(
                f"page 1: {state.nr_free_pages} free pages and {state.nr_inodes} inodes after this "
                f"change: the counts were wrong before: run xipfs fsck"
            )
        records = [*self._encoded_records(), *self._records(), *change.records]
        if records:
            new_pages = [*self._new_pages.items(), *change.new_pages]
            for block, _ in new_pages:
                sb.nvram.reserve(block << PAGE_SHIFT, PAGE_SIZE)
            for block, page in new_pages:
                sb.nvram.store_bytes(block << PAGE_SHIFT, page)
                sb.nvram.flush(block << PAGE_SHIFT, PAGE_SIZE)
            sb.journal.commit(records)
        self._committed = True
        sb.allocator.publish(change, self._freed)
        sb.publish(
            self.state,
            self._inodes,
            self._orphan_before,
            self._pages.keys() | self._new_pages.keys(),
        )

    def _encoded_records(self) -> list[tuple[int, bytes]]:
        """Return inodes and the state, sealed, as (offset, bytes); those in new pages go there."""
        sb = self.sb
        records: list[tuple[int, bytes]] = []
        inode_file = sb.inode_file
        pending = self._inodes.get(INO_INODE_FILE)
        if pending is not None:
            inode_file = ExtentMap(self, sb.seed, pending)
        for ino, inode in self._inodes.items():
            if self._unchanged.get(ino) == inode:
                continue
            if ino == INO_INODE_FILE:
                offset = _STATE_OFFSET + STATE_INODE_OFFSET
            else:
                offset = sb.inode_offset(ino, inode_file)
            if offset >> PAGE_SHIFT in self._new_pages:
                self.store(offset, inode.encode(sb.seed))
            else:
                records.append((offset, inode.encode(sb.seed)))
        if self.state != sb.state:
            self.state = self.state._replace(written_ns=self.now_ns)
            records.append((_STATE_OFFSET, self.state.encode(sb.seed)))
        return records

    def _records(self) -> list[tuple[int, bytes]]:
        """Return what `store` has changed as (offset, bytes), the bytes that differ."""
        records = []
        for block, ranges in self._ranges.items():
            old, new = self._pages[block]
            offset = block << PAGE_SHIFT
            for start, end in merged_ranges(ranges):
                if end - start > _LOGGED_WHOLE_BYTES:
                    records += [
                        (offset + start + first, bytes(new[start + first : start + stop]))
                        for first, stop in differing_ranges(old[start:end], new[start:end])
                    ]
                elif old[start:end] != new[start:end]:
                    records.append((offset + start, bytes(new[start:end])))
        return records

    def _grow_inode_file(self) -> None:
        """Add pages of inodes that were never used."""
        inode = self.inode(INO_INODE_FILE)
        pgoff = Pgoff(inode.size_bytes >> PAGE_SHIFT)
        extents = inode.extents
        if end_of_extents(self, inode) > pgoff:
            raise FormatError("the inode file: has pages behind its end: run xipfs fsck")
        near = Block(0)
        if len(extents):
            near = Block(int(extents["block"][-1]) + int(extents["nr_pages"][-1]))
        try:
            runs = self.allocate(min(max(pgoff // 4, 8), _NR_INODE_FILE_PAGES_MAX), near)
        except NoSpaceError:
            runs = self.allocate(1, near)
        for block, nr_pages in runs:
            for other in range(block, block + nr_pages):
                self.new_page(Block(other), bytes(PAGE_SIZE))
            inode = insert_extent(self, inode, pgoff, block, nr_pages)
            pgoff = Pgoff(pgoff + nr_pages)
        self.put_inode(inode._replace(size_bytes=pgoff << PAGE_SHIFT))
