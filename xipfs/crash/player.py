"""The player: performs operations on an image through the filesystem's own code, and records.

    recording = play(image, operations)

It is a mount without FUSE: a superblock open for writing, a machine with a small RAM tier, and the
mover that a mount's policies use. As behind FUSE, inodes stay in memory; what loses its last name
is an orphan, and goes at once unless somebody has said `hold`.

The clock stands still during an operation and is a second later in the next.
"""

import math
import stat
from collections.abc import Sequence

import numpy as np

from xipfs.crash.explorer import Recording
from xipfs.crash.operations import MOVES, Operation, written_bytes
from xipfs.crash.recorder import MarkKind, Recorder
from xipfs.crash.snapshot import Tree, take_snapshot
from xipfs.errors import InvalidArgumentError, IsDirError, XipfsError
from xipfs.fs.attributes import notify_change, removexattr, setxattr
from xipfs.fs.file import sync_all, sync_file, truncate_file, write_file
from xipfs.fs.inode import Inode
from xipfs.fs.namespace import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Owner,
    link,
    mkdir,
    mknod,
    rename,
    rmdir,
    symlink,
    unlink,
)
from xipfs.fs.orphans import release_orphan
from xipfs.fs.superblock import SuperBlock
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.filemap_xip import xip_file_read
from xipfs.mm.machine import Machine
from xipfs.mm.migrate import DemoteReason
from xipfs.mm.truncate import truncate_setsize
from xipfs.ondisk.inode import INO_ROOT
from xipfs.phys.nvram import NvramDevice
from xipfs.policy.contract import PGOFF_BITS
from xipfs.tiering.mover import Mover, resident_pages
from xipfs.units import Ino

__all__ = ["Clock", "Player", "play"]

_NR_TIER_FRAMES = 16
"""Fewer than the tree has pages: some stay outside."""

_START_NS = 2_000_000_000
_STEP_NS = 1_000_000_000

_OWNER = Owner(0, 0)
_RENAME_FLAGS = {"": 0, "noreplace": RENAME_NOREPLACE, "exchange": RENAME_EXCHANGE}


class Clock:
    """A clock that somebody sets."""

    __slots__ = ("now_ns",)

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        """Return the time in ns since 1970."""
        return self.now_ns


class Player:
    """Works on *sb*, which is mounted for writing and goes by *clock*."""

    def __init__(self, sb: SuperBlock, clock: Clock) -> None:
        self.sb = sb
        self.machine = Machine(sb.nvram, nr_tier_frames=_NR_TIER_FRAMES)
        self.mover = Mover(self.machine, self._find_mapping, self._mapping_emptied)
        self._clock = clock
        self._held: dict[str, Inode] = {}

    def perform(self, number: int, operation: Operation) -> None:
        """Do operation *number* of a workload. Raises: XipfsError, when nothing has changed."""
        self._clock.now_ns += _STEP_NS
        if operation.name in ("write", "append", "truncate", "fsync"):
            self._do_with_contents(number, operation)
        elif operation.name in MOVES:
            self._move(operation)
        elif operation.name in ("create", "mkdir", "mknod", "symlink", "link"):
            self._make(operation)
        elif operation.name in ("unlink", "rmdir", "rename"):
            self._unname(operation)
        elif operation.name == "hold":
            inode = self._find(operation.path())
            self._held[operation.path()] = inode
            inode.nr_lookups += 1
        elif operation.name == "drop":
            inode = self._find(operation.path())
            del self._held[operation.path()]
            inode.nr_lookups -= 1
            self._release(inode)
        else:
            self._change(operation)

    def find_ino(self, operation: Operation) -> int:
        """Return the inode that an operation on a path would be on; 0 for none."""
        if operation.name in MOVES:
            return 0
        try:
            return self._find(operation.path()).ino
        except XipfsError:
            return 0

    def snapshot(self) -> Tree:
        """Return the tree as programs see it now. Raises: XipfsError."""
        return take_snapshot(self.sb, self._read)

    def close(self) -> None:
        """Unmount; the device stays open. Raises: XipfsError."""
        sync_all(self.sb, self.machine)
        self.machine.close()
        self.sb.unmount()

    # Operations

    def _do_with_contents(self, number: int, operation: Operation) -> None:
        sb, machine, now_ns = self.sb, self.machine, self._clock.now_ns
        inode = self._find(operation.path())
        if inode.is_dir:
            raise IsDirError(f"{operation.path()}: a directory")
        if not inode.is_regular:  # which the kernel would not ask us
            raise InvalidArgumentError(f"{operation.path()}: no regular file")
        if operation.name == "fsync":
            sync_file(sb, machine, inode)
        elif operation.name == "truncate":
            truncate_file(sb, machine, inode, operation.number(1), now_ns)
        else:
            is_write = operation.name == "write"
            pos = operation.number(1) if is_write else inode.disk.size_bytes
            data = written_bytes(number, operation.number(2 if is_write else 1))
            write_file(sb, machine, inode, pos, data, now_ns)

    def _make(self, operation: Operation) -> None:
        sb, now_ns = self.sb, self._clock.now_ns
        path = operation.path(operation.name == "link")
        directory, name = self._find_parent(path)
        if operation.name == "create":
            mode = stat.S_IFREG | operation.number(1)
            mknod(sb, directory, name, mode, _OWNER, now_ns)
        elif operation.name == "mknod":
            rdev = operation.number(2)
            mknod(sb, directory, name, operation.number(1), _OWNER, now_ns, rdev=rdev)
        elif operation.name == "mkdir":
            mkdir(sb, directory, name, operation.number(1), _OWNER, now_ns)
        elif operation.name == "symlink":
            symlink(sb, directory, name, operation.path(1).encode(), _OWNER, now_ns)
        else:
            link(sb, self._find(operation.path()), directory, name, now_ns)

    def _unname(self, operation: Operation) -> None:
        sb, now_ns = self.sb, self._clock.now_ns
        directory, name = self._find_parent(operation.path())
        if operation.name == "rename":
            new_directory, new_name = self._find_parent(operation.path(1))
            flags = _RENAME_FLAGS[operation.path(2)]
            orphan = rename(sb, directory, name, new_directory, new_name, flags, now_ns)
        elif operation.name == "rmdir":
            orphan = rmdir(sb, directory, name, now_ns)
        else:
            orphan = unlink(sb, directory, name, now_ns)
        if orphan is not None:
            self._release(orphan)

    def _change(self, operation: Operation) -> None:
        sb, now_ns = self.sb, self._clock.now_ns
        inode = self._find(operation.path())
        if operation.name == "chmod":
            notify_change(sb, inode, now_ns, mode=operation.number(1))
        elif operation.name == "chown":
            notify_change(sb, inode, now_ns, uid=operation.number(1), gid=operation.number(2))
        elif operation.name == "utimens":
            atime_ns, mtime_ns = operation.number(1), operation.number(2)
            notify_change(sb, inode, now_ns, atime_ns=atime_ns, mtime_ns=mtime_ns)
        elif operation.name == "setxattr":
            value = written_bytes(0, operation.number(2))
            setxattr(sb, inode, operation.path(1).encode(), value, 0, now_ns)
        else:
            removexattr(sb, inode, operation.path(1).encode(), now_ns)

    def _move(self, operation: Operation) -> None:
        """Promote some pages of files that are there, or demote some that are in RAM."""
        rng = np.random.default_rng(operation.number(0))
        if operation.name == "promote":
            pages = np.array(
                [
                    inode.ino << PGOFF_BITS | pgoff
                    for inode in self.sb.inodes()
                    if inode.is_regular
                    for pgoff in range(inode.mapping.nr_pages)
                ],
                np.int64,
            )
        else:
            pages = resident_pages(self.machine)
        rng.shuffle(pages)
        pages = pages[: math.ceil(len(pages) * rng.choice((0.25, 0.5, 1.0)))]
        if operation.name == "promote":
            self.mover.promote(np.sort(pages[: self.machine.mem_map.nr_free]))
        else:
            self.mover.demote(np.sort(pages), DemoteReason.PROACTIVE)

    # Inodes

    def _find(self, path: str) -> Inode:
        """Return what *path* is, or was when it was held. Raises: XipfsError."""
        held = self._held.get(path)
        if held is not None:
            return held
        inode = self.sb.iget(INO_ROOT)
        for name in path.encode().split(b"/"):
            if name:
                inode = self.sb.lookup(inode, name)
        return inode

    def _find_parent(self, path: str) -> tuple[Inode, bytes]:
        parent, _, name = path.rpartition("/")
        return self._find(parent), name.encode()

    def _release(self, inode: Inode) -> None:
        """Do what the last FORGET of an inode does, if nobody holds it."""
        if inode.nr_lookups or inode.disk.nlink:
            return
        truncate_setsize(self.machine, inode.mapping, 0)
        release_orphan(self.sb, inode.ino, self._clock.now_ns)

    def _find_mapping(self, ino: int) -> AddressSpace | None:
        inode = self.sb.find_inode(Ino(ino))
        return inode.mapping if inode is not None and inode.is_regular else None

    def _mapping_emptied(self, mapping: AddressSpace) -> None:
        inode = self.sb.find_inode(Ino(mapping.id))
        if inode is not None:
            self._release(inode)

    def _read(self, inode: Inode) -> bytes:
        mapping = inode.mapping
        return xip_file_read(self.machine, mapping, 0, mapping.i_size_bytes)


def play(image: bytes, operations: Sequence[Operation]) -> Recording:
    """Play *operations* on *image*; those that fail must change nothing.

    Raises: XipfsError, BugError for a filesystem that cannot even be mounted, read and unmounted.
    """
    nvram = NvramDevice.scratch(len(image))
    nvram.store_bytes(0, image)
    recorder = Recorder(nvram)
    inos: list[int] = []
    complaints: list[str] = []
    failed: set[int] = set()
    try:
        clock = Clock(_START_NS)
        player = Player(SuperBlock.mount(nvram, writable=True, clock=clock), clock)
        trees = [player.snapshot()]
        for number, operation in enumerate(operations):
            inos.append(player.find_ino(operation))
            recorder.mark(MarkKind.BEGIN, number)
            error: Exception | None = None
            try:
                player.perform(number, operation)
            except XipfsError as exc:
                error = exc
                failed.add(number)
            recorder.mark(MarkKind.END, number)
            trees.append(player.snapshot())
            if trees[-1] != trees[-2]:
                if error is not None:
                    complaints.append(f"{operation}: failed ({error}), and changed the tree")
                elif operation.name in MOVES:
                    complaints.append(f"{operation}: moved pages, and changed the tree")
        player.close()
    finally:
        nvram.observer = None
        nvram.close()
    return Recording(
        tuple(operations), recorder.events, trees, inos, tuple(complaints), frozenset(failed)
    )
