"""SuperBlock: an open image, and the inodes of it that are in memory.

sb = SuperBlock.open("image.img")      O(1): two pages are read, whatever the image's size
inode = sb.iget(INO_ROOT)              from memory, else from its place in the inode file
sb.lookup(inode, b"etc")
sb.close()

sb = SuperBlock.open("image.img", writable=True, clock=time.time_ns)
with sb.transaction(sb.clock()) as tx:
    ...
sb.close()

A writer replays the journal of one that died, if the image does not say CLEAN. His first
transaction takes CLEAN away, `close` puts it back; orphans are finished before anything else.
All records in memory (`state`, `Inode.disk`) are as in the image: transactions change both, at
their end.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Set

from xipfs.errors import (
    DeviceError,
    FormatError,
    NotDirError,
    ReadOnlyFsError,
    XipfsError,
    bug_on,
)
from xipfs.fs.allocator import Allocator
from xipfs.fs.dentry import DirReader
from xipfs.fs.extent import ExtentMap, may_hold
from xipfs.fs.inode import Inode
from xipfs.fs.journal import Journal
from xipfs.fs.layout import layout_problems, metadata_runs
from xipfs.fs.orphans import finish_orphans
from xipfs.fs.transaction import Transaction
from xipfs.fs.xip import XipOperations
from xipfs.ondisk.inode import (
    INO_FIRST,
    INO_INODE_FILE,
    INO_MAX,
    INODE,
    INODES_PER_PAGE,
    DiskInode,
    decode_inode,
)
from xipfs.ondisk.superblock import (
    RO_COMPAT_KNOWN,
    STATE,
    STATE_BLOCK,
    STATE_INODE_OFFSET,
    DiskState,
    DiskSuperblock,
    StateFlags,
    decode_state,
    decode_superblock,
)
from xipfs.ondisk.xattr import NR_XATTR_PAGES_MAX, decode_xattrs
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Block, Ino, Pgoff, bytes_to_pages

__all__ = ["SuperBlock", "damage_line", "read_superblock"]

_REMEDIES = ("xipfs fsck", "newer xipfs", "copy the image again", "mount it", "no xipfs image")
"""What an error says that knows better than to run fsck."""

_MOUNT_COUNT_MASK = (1 << 64) - 1

_log = logging.getLogger(__name__)


class SuperBlock:
    """One image. disk: what mkfs decided; state: what changes; seed: of all checksums.

    clock: the time in ns since 1970, of a writer. journal, allocator: of a writer. orphan_before:
    of inodes on the orphan list, who stands before each; 0 for the first.
    """

    __slots__ = (
        "_a_ops",
        "_inodes",
        "_open_transaction",
        "allocator",
        "clock",
        "dir_reader",
        "disk",
        "inode_file",
        "inode_file_inode",
        "journal",
        "nvram",
        "orphan_before",
        "seed",
        "state",
        "writable",
    )

    def __init__(self, nvram: NvramDevice, disk: DiskSuperblock, state: DiskState) -> None:
        self.nvram = nvram
        self.disk = disk
        self.state = state
        self.seed = disk.seed
        self.writable = False
        self.dir_reader = DirReader(nvram, self.seed, disk.hash_key)
        self._inodes: dict[Ino, Inode] = {}
        self._a_ops = XipOperations(self.iget, self._begin_now)
        record = nvram.load((STATE_BLOCK << PAGE_SHIFT) + STATE_INODE_OFFSET, INODE.size_bytes)
        self.inode_file_inode = decode_inode(record, self.seed, INO_INODE_FILE)
        self.inode_file = ExtentMap(nvram, self.seed, self.inode_file_inode)
        self.orphan_before: dict[Ino, Ino] = {}
        self._open_transaction: Transaction | None = None
        self.journal: Journal
        self.allocator: Allocator
        self.clock: Callable[[], int]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        clock: Callable[[], int] | None = None,
    ) -> "SuperBlock":
        """Open the image at *path* for reading, or as its only user for writing.

        clock: tells the time; needed for writing.
        Raises: DeviceError, ImageBusyError; FormatError when it is no image, is damaged, newer,
                or shorter than it says; when its journal must be replayed first, by a writer; for
                writing ReadOnlyFsError when that is not allowed, and NoSpaceError.
        """
        nvram = NvramDevice.open(path, writable=writable)
        try:
            return cls.mount(nvram, writable=writable, clock=clock)
        except FormatError as exc:
            nvram.close()
            raise FormatError(damage_line(path, exc)) from exc
        except BaseException:
            nvram.close()
            raise

    @classmethod
    def mount(
        cls,
        nvram: NvramDevice,
        *,
        writable: bool = False,
        clock: Callable[[], int] | None = None,
    ) -> "SuperBlock":
        """Mount the image on a device that is open. Raises: as `open`; the device stays open."""
        if writable:
            return cls._open_to_write(nvram, clock)
        disk = read_superblock(nvram)
        state = _load_state(nvram, disk)
        if not state.flags & StateFlags.CLEAN:
            raise FormatError(
                f"{nvram.path}: not cleanly unmounted, its journal must be replayed: "
                f"mount it once with -o rw"
            )
        return cls(nvram, disk, state)

    @classmethod
    def _open_to_write(cls, nvram: NvramDevice, clock: Callable[[], int] | None) -> "SuperBlock":
        if clock is None:
            bug_on(True, "a writer without a clock")
            raise AssertionError
        disk, journal = _replay(nvram)
        state = _load_state(nvram, disk)
        if state.flags & StateFlags.ERROR:
            raise FormatError(f"{nvram.path}: found damaged earlier: run xipfs fsck {nvram.path}")
        _check_state(state, disk)
        sb = cls(nvram, disk, state)
        sb.clock = clock
        sb.writable = True
        sb.journal = journal
        sb.allocator = Allocator(nvram, disk, state.nr_free_pages)
        now_ns = clock()
        with sb.transaction(now_ns) as tx:
            tx.state = tx.state._replace(
                flags=state.flags & ~int(StateFlags.CLEAN),
                mounted_ns=now_ns,
                mount_count=(state.mount_count + 1) & _MOUNT_COUNT_MASK,
            )
        replica_offset = (disk.nr_pages - 1) << PAGE_SHIFT
        if nvram.load(replica_offset, PAGE_SIZE) != nvram.load(0, PAGE_SIZE):
            # A crash came when a feature had been turned on in the replica only.
            with sb.transaction(now_ns) as tx:
                tx.store(replica_offset, nvram.load(0, PAGE_SIZE))
        finish_orphans(sb, now_ns)
        return sb

    # Transactions

    def transaction(self, now_ns: int, *, use_reserve: bool = False) -> Transaction:
        """Begin a transaction, which ends with the `with` block it is used for.

        use_reserve: it may have the last free pages, since it is about to free some.
        Raises: ReadOnlyFsError; DeviceError after one failed half-way. Bug: another one is open.
        """
        if not self.writable:
            raise ReadOnlyFsError(f"{self.nvram.path}: mounted read-only")
        self.journal.check_usable()
        bug_on(self._open_transaction is not None, "a transaction in a transaction")
        transaction = Transaction(self, now_ns, use_reserve=use_reserve)
        self._open_transaction = transaction
        return transaction

    def _begin_now(self) -> Transaction:
        return self.transaction(self.clock() if self.writable else 0)

    def end_transaction(self, transaction: Transaction) -> None:
        """Let another begin; for `Transaction` alone."""
        bug_on(self._open_transaction is not transaction, "another transaction is open")
        self._open_transaction = None

    def publish(
        self,
        state: DiskState,
        inodes: Mapping[Ino, DiskInode],
        orphan_before: Mapping[Ino, Ino | None],
        blocks: Set[int],
    ) -> None:
        """Take over what a transaction has made of the image; for `Transaction` alone.

        orphan_before: changes, None for inodes that left the list. blocks: pages with new bytes.
        """
        self.state = state
        for ino, disk in inodes.items():
            if ino == INO_INODE_FILE:
                self.inode_file_inode = disk
                self.inode_file.renew(disk, blocks)
                continue
            inode = self._inodes.get(ino)
            if inode is None:
                continue
            if disk.mode:
                inode.renew(disk, blocks)
            else:
                del self._inodes[ino]
        for ino, before in orphan_before.items():
            if before is None:
                self.orphan_before.pop(ino, None)
            else:
                self.orphan_before[ino] = before
        for block in blocks:
            self.dir_reader.forget_page(Block(block))

    @property
    def is_aborted(self) -> bool:
        """Did a transaction fail half-way? Then only another mount can go on writing."""
        return self.journal.aborted

    # Inodes

    def iget(self, ino: Ino) -> Inode:
        """Return inode *ino*, from memory or from the image. Raises: FormatError, DeviceError."""
        inode = self._inodes.get(ino)
        if inode is None:
            inode = Inode(
                self.load_inode(ino),
                self.nvram,
                self.seed,
                self._a_ops,
                read_only=not self.writable,
            )
            self._inodes[ino] = inode
        return inode

    def inodes(self) -> list[Inode]:
        """Return those in memory."""
        return list(self._inodes.values())

    def find_inode(self, ino: Ino) -> Inode | None:
        """Return inode *ino* if it is in memory."""
        return self._inodes.get(ino)

    def load_inode(self, ino: Ino) -> DiskInode:
        """Read the record of inode *ino*, in use. Raises: FormatError, DeviceError."""
        inode = self.load_inode_record(ino)
        if inode.mode == 0:
            raise FormatError(f"inode {ino}: named, but free")
        return inode

    def load_inode_record(self, ino: Ino) -> DiskInode:
        """Read the record of inode *ino*, in use or free. Raises: FormatError, DeviceError."""
        offset = self.inode_offset(ino, self.inode_file)
        return decode_inode(self.nvram.load(offset, INODE.size_bytes), self.seed, ino)

    @staticmethod
    def inode_offset(ino: Ino, inode_file: ExtentMap) -> int:
        """Return the byte of the image where the record of *ino* is. Raises: FormatError, .."""
        page, index = divmod(ino, INODES_PER_PAGE)
        block = inode_file.find_block(Pgoff(page)) if ino > 0 else None
        if block is None:
            raise FormatError(f"inode {ino}: the inode file has no such page")
        return (block << PAGE_SHIFT) + index * INODE.size_bytes

    def lookup(self, directory: Inode, name: bytes) -> Inode:
        """Return what *name* in *directory* stands for.

        Raises: NotDirError, NoEntryError, NameTooLongError; FormatError, DeviceError.
        """
        if not directory.is_dir:
            raise NotDirError(f"inode {directory.ino}: not a directory")
        return self.iget(self.dir_reader.lookup(directory.disk, directory.extents, name))

    def read_xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return all extended attributes of *inode*, sorted by name. Raises: FormatError, .."""
        disk = inode.disk
        if not disk.nr_xattr_pages:
            return {}
        if disk.nr_xattr_pages > NR_XATTR_PAGES_MAX or not may_hold(
            self.nvram, disk.xattr_block, disk.nr_xattr_pages
        ):
            raise FormatError(
                f"inode {disk.ino}: {disk.nr_xattr_pages} pages of attributes at page "
                f"{disk.xattr_block}: outside of the image, or in its metadata"
            )
        run = self.nvram.load(disk.xattr_block << PAGE_SHIFT, disk.nr_xattr_pages << PAGE_SHIFT)
        return decode_xattrs(run, self.seed, disk.ino, disk.generation)

    def read_all(self, inode: Inode, limit_bytes: int) -> bytes:
        """Return the bytes of a small file or a symbolic link, past any mm. Raises: FormatError."""
        if inode.inline is not None:
            return inode.inline
        size_bytes = inode.disk.size_bytes
        if size_bytes > limit_bytes:
            raise FormatError(f"inode {inode.ino}: {size_bytes} bytes, at most {limit_bytes}")
        pages = []
        for pgoff in range(bytes_to_pages(size_bytes)):
            block = inode.extents.find_block(Pgoff(pgoff))
            pages.append(
                bytes(PAGE_SIZE)
                if block is None
                else self.nvram.load(block << PAGE_SHIFT, PAGE_SIZE)
            )
        return b"".join(pages)[:size_bytes]

    def touch(self, inode: Inode, now_ns: int) -> None:
        """Let *inode* have been written to now. The image is told later: see `write_times`.

        A write that only goes over bytes that are there would else take a transaction.
        """
        inode.disk = inode.disk._replace(mtime_ns=now_ns, ctime_ns=now_ns)
        inode.times_dirty = True

    def write_times(self, inodes: Iterable[Inode]) -> None:
        """Make the times of *inodes* durable. Raises: NoSpaceError, FormatError, DeviceError."""
        waiting = [inode for inode in inodes if inode.times_dirty]
        while waiting:
            with self.transaction(self.clock()) as tx:
                while waiting and not tx.nearly_full:
                    tx.put_inode(waiting.pop().disk)

    def drop_unused(self, inode: Inode) -> bool:
        """Take *inode* out of memory if nobody looked it up and none of its pages are in RAM."""
        if inode.nr_lookups or inode.mapping.i_pages or inode.mapping.i_mmap:
            return False
        if inode.times_dirty:
            try:
                self.write_times([inode])
            except XipfsError as exc:  # who forgets an inode cannot be told
                _log.error("inode %d: its times were lost: %s", inode.ino, exc)
        return self._inodes.pop(inode.ino, None) is not None

    @property
    def nr_inodes_in_memory(self) -> int:
        """Inodes in the table."""
        return len(self._inodes)

    def close(self) -> None:
        """Close the image, of a writer with the word that it is clean.

        Raises: BufferError while somebody holds a view of it; of a writer DeviceError,
                NoSpaceError: then another mount replays the journal, as after a crash.
        """
        try:
            self.unmount()
        finally:
            self.nvram.close()

    def unmount(self) -> None:
        """End what `mount` began: the device stays open. Raises: DeviceError, NoSpaceError."""
        try:
            if self.writable and not self.is_aborted:
                self.write_times(self._inodes.values())
                with self.transaction(self.clock()) as tx:
                    tx.state = tx.state._replace(flags=tx.state.flags | StateFlags.CLEAN)
        finally:
            self.writable = False
            self._inodes.clear()


def read_superblock(nvram: NvramDevice) -> DiskSuperblock:
    """Read page 0 and compare it with the file; of a bad one, say whether the replica is sound.

    Tells *nvram* which pages no file may have.

    Raises: FormatError, DeviceError.
    """
    try:
        disk = decode_superblock(nvram.load(0, PAGE_SIZE), "page 0")
    except FormatError as exc:
        if _find_replica(nvram) is None:
            raise
        replica_block = (nvram.size_bytes >> PAGE_SHIFT) - 1
        raise FormatError(f"{exc}; the replica in page {replica_block} is sound") from exc
    if disk.nr_pages << PAGE_SHIFT > nvram.size_bytes:
        raise FormatError(
            f"cut short: {nvram.size_bytes} bytes of {disk.nr_pages << PAGE_SHIFT}: "
            f"copy the image again"
        )
    if problems := layout_problems(disk):
        raise FormatError(f"page 0: {problems[0]}: run xipfs fsck")
    nvram.metadata_runs = metadata_runs(disk)
    return disk


def _find_replica(nvram: NvramDevice) -> DiskSuperblock | None:
    """Return the superblock in the last page, None if that is none."""
    block = (nvram.size_bytes >> PAGE_SHIFT) - 1
    try:
        disk = decode_superblock(nvram.load(block << PAGE_SHIFT, PAGE_SIZE), f"page {block}")
    except (FormatError, DeviceError):
        return None
    return disk


def _replay(nvram: NvramDevice) -> tuple[DiskSuperblock, Journal]:
    """Replay the journal of an image that is not clean; return its superblock and its journal.

    A crash in the transaction that turns a feature on may have torn page 0: then the replica says
    where the journal is, and the replay makes page 0 whole.
    Raises: FormatError, DeviceError, NoSpaceError; ReadOnlyFsError.
    """
    try:
        disk = read_superblock(nvram)
    except FormatError:
        replica = _find_replica(nvram)
        if replica is None:
            raise
        disk = replica
    if disk.ro_compat & ~RO_COMPAT_KNOWN:
        raise ReadOnlyFsError(
            f"{nvram.path}: uses features {disk.ro_compat & ~RO_COMPAT_KNOWN:#x} that this "
            f"xipfs cannot write: mount it read-only"
        )
    journal = Journal(nvram, disk)
    if not _is_clean(nvram, disk):
        journal.replay()
    return read_superblock(nvram), journal


def _load_state(nvram: NvramDevice, disk: DiskSuperblock) -> DiskState:
    return decode_state(nvram.load(STATE_BLOCK << PAGE_SHIFT, STATE.size_bytes), disk.seed)


def _check_state(state: DiskState, disk: DiskSuperblock) -> None:
    """Refuse counts and lists that a writer cannot go on from. Raises: FormatError."""
    heads = (state.free_ino_head, state.orphan_ino_head)
    if not INO_FIRST <= state.ino_end <= INO_MAX + 1 or max(heads) >= state.ino_end:
        raise FormatError(
            f"page 1: ino_end {state.ino_end}, lists that start at {heads}: run xipfs fsck"
        )
    if state.nr_free_pages >= disk.nr_pages or not 1 <= state.nr_inodes <= state.ino_end:
        raise FormatError(
            f"page 1: {state.nr_free_pages} free pages of {disk.nr_pages}, {state.nr_inodes} "
            f"inodes below {state.ino_end}: run xipfs fsck"
        )


def _is_clean(nvram: NvramDevice, disk: DiskSuperblock) -> bool:
    """Can the image be used without a look at its journal? A torn state says nothing."""
    try:
        return bool(_load_state(nvram, disk).flags & StateFlags.CLEAN)
    except FormatError:
        return False


def damage_line(path: str | os.PathLike[str], exc: FormatError) -> str:
    """Return in one line which image it is, what is wrong with it, and what to do about that."""
    text = str(exc)
    if not text.startswith(os.fspath(path)):
        text = f"{os.fspath(path)}: {text}"
    is_foreign = "this is no superblock" in text and "replica" not in text
    if is_foreign or any(remedy in text for remedy in _REMEDIES):
        return text
    return f"{text}: run xipfs fsck {os.fspath(path)}"
