"""All who read images, as functions of a path: what a damaged image may do to them is an error.

    read("fsck", path)      raises nothing but what is a bug; returns the error's line, if any

These are the commands behind their command line, and a mount without FUSE around it. A reader may
raise an XipfsError, of one line that a terminal can be given, and nothing else; it may load no more
than a bounded number of times, and no more than a bounded number of bytes.
"""

import contextlib
import io
import logging
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from xipfs.cli.cat import cat
from xipfs.cli.dump import dump
from xipfs.cli.fsck import fsck
from xipfs.cli.info import info
from xipfs.cli.ls import ls
from xipfs.errors import XipfsError
from xipfs.fs.attributes import removexattr, setxattr
from xipfs.fs.copyout import copy_out
from xipfs.fs.extentwriter import end_of_extents, insert_extent, remove_extents
from xipfs.fs.namespace import Owner, link, mkdir, mknod, rename, rmdir, unlink
from xipfs.fs.superblock import SuperBlock
from xipfs.fuse.mount import Mount
from xipfs.fuse.operations import Operations
from xipfs.fuse.options import CacheMode, MountOptions
from xipfs.ondisk.inode import INO_ROOT
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SIZE, Fh, Ino

__all__ = ["READERS", "Bugs", "bounded", "read"]

NR_LOADS_MAX = 20_000
"""Far more than any reader needs for an image of some 60 pages."""

LOAD_SIZE_BYTES_MAX = 1 << 20
OUTPUT_SIZE_BYTES_MAX = 8 << 20
NR_INODES_MAX = 200
OPTIONS = MountOptions(ram_bytes=8 * PAGE_SIZE, cache=CacheMode.NONE)


class TooMuchError(Exception):
    """A reader reads or writes without end."""


class EnoughError(Exception):
    """A reader has written as much as is worth waiting for: a file of holes may be large."""


class Output(io.RawIOBase):
    """Takes what is written, and forgets it."""

    def __init__(self) -> None:
        self.size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        size_bytes = len(memoryview(data))
        self.size_bytes += size_bytes
        if self.size_bytes > OUTPUT_SIZE_BYTES_MAX:
            raise EnoughError
        return size_bytes


_loads = [0]


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Let readers load so much and no more, while the block runs."""
    load = NvramDevice.load

    def counted_load(self: NvramDevice, offset: int, size_bytes: int) -> bytes:
        _loads[0] += 1
        if _loads[0] > NR_LOADS_MAX:
            raise TooMuchError("a reader does not come to an end")
        if size_bytes > LOAD_SIZE_BYTES_MAX:
            raise TooMuchError(f"a reader takes {size_bytes} bytes at once")
        return load(self, offset, size_bytes)

    with mock.patch.object(NvramDevice, "load", counted_load):
        yield


def read(reader: str, path: Path) -> str | None:
    """Let one of `READERS` read the image at *path*, inside `bounded`."""
    _loads[0] = 0
    output = io.TextIOWrapper(Output(), "utf-8", "surrogateescape")
    try:
        with contextlib.redirect_stdout(output), Bugs() as bugs:
            READERS[reader](path)
            output.flush()
    except EnoughError:
        return None
    except XipfsError as exc:
        line = str(exc)
    else:
        line = None
    finally:
        output.detach()
    assert line is None or line.isprintable(), f"no line for a terminal: {line!r}"
    assert not bugs.found, bugs.found[0]
    return line


class Bugs(logging.Handler):
    """Collects what is logged with a traceback while the block runs: bugs, not damage."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None:
            self.found.append(self.format(record))

    def __enter__(self) -> "Bugs":
        logging.getLogger("xipfs").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("xipfs").removeHandler(self)


def _ls(path: Path) -> None:
    ls(str(path), long=True, recursive=True, as_json=False)


def _ls_json(path: Path) -> None:
    ls(str(path), long=False, recursive=True, as_json=True)


def _cat(path: Path) -> None:
    for name in ("hosts", "link", "tree", "long/hard"):
        with contextlib.suppress(XipfsError):
            cat([f"{path}:{name}"])


def _dump(path: Path) -> None:
    dump(f"{path}", ino=None, as_json=False)
    for ino in (0, 1, 16, 17):
        with contextlib.suppress(XipfsError):
            dump(f"{path}", ino=ino, as_json=ino % 2 == 0)


def _cp(path: Path) -> None:
    """What a copy makes stays below its target, whatever the image says."""
    below = path.with_name(f"{path.name}.below")
    warnings: list[str] = []
    sb = SuperBlock.open(path)
    below.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_SIZE_BYTES_MAX, limits[1]))
    try:
        before = sorted(os.listdir(path.parent))
        copy_out(sb, sb.iget(INO_ROOT), os.fsencode(below / "copy"), warn=warnings.append)
        assert sorted(os.listdir(path.parent)) == before
        assert os.listdir(below) in ([], ["copy"])
        assert all(line.isprintable() for line in warnings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        sb.close()
        shutil.rmtree(below)


def _mount(path: Path) -> None:
    mount = Mount.open(path, OPTIONS)
    try:
        _ask_for_everything(mount)
    finally:
        mount.close()


def _ask_for_everything(mount: Mount) -> None:
    """Ask as the kernel does; an error is an answer, too. In the end the books of mm must agree."""
    operations = mount.operations
    _answer(operations.statfs)
    waiting, seen = [INO_ROOT], set()
    while waiting and len(seen) < NR_INODES_MAX:
        ino = waiting.pop()
        if ino in seen:
            continue
        seen.add(ino)
        inode = _answer(operations.getattr, ino)
        if inode is None:
            continue
        for name in _answer(operations.listxattr, ino) or ():
            _answer(operations.getxattr, ino, name)
        for name in (b"user.xipfs.tiers", b"user.xipfs.extents", b"user.none"):
            _answer(operations.getxattr, ino, name)
        if stat.S_ISLNK(inode.disk.mode):
            _answer(operations.readlink, ino)
        elif inode.is_dir:
            waiting += _list(operations, ino)
        else:
            _read(mount, ino)
    mount.run_epoch()
    mount.mm.check_invariants()
    mount.machine.mem_map.check_invariants()
    for ino in seen:
        inode = mount.sb.find_inode(ino)
        if inode is not None:
            operations.forget(ino, inode.nr_lookups)
    mount.run_epoch()
    mount.mm.check_invariants()
    mount.machine.mem_map.check_invariants()


def _answer(ask: Callable, *arguments: object) -> object:
    try:
        return ask(*arguments)
    except XipfsError as exc:
        line = str(exc)
    assert line.isprintable(), f"no line for a terminal: {line!r}"
    return None


def _list(operations: Operations, ino: Ino) -> list[Ino]:
    names: list[bytes] = []

    def emit(name: bytes, _inode: object, _position: int) -> bool:
        assert name in (b".", b"..") or not {0, ord("/")} & set(name)
        names.append(name)
        return len(names) < NR_INODES_MAX

    fh = _answer(operations.opendir, ino)
    if fh is None:
        return []
    _answer(operations.readdir, fh, 0, emit)
    operations.release(fh)
    _answer(operations.lookup, ino, b"no such name")
    found = [_answer(operations.lookup, ino, name) for name in names if name[:1] != b"."]
    return [inode.ino for inode in found if inode is not None]


def _read(mount: Mount, ino: Ino) -> None:
    fh = _answer(mount.operations.open, ino, os.O_RDONLY)
    if fh is None:
        return
    for offset in (0, 3 * PAGE_SIZE, 1 << 43):
        for size_bytes in (1, 5 * PAGE_SIZE):
            runs = _answer(mount.operations.read, Fh(fh), offset, size_bytes)
            if runs:
                mount.read_bytes(runs)
    mount.run_epoch()
    mount.operations.release(fh)


def _replay(path: Path) -> None:
    """Mount as a writer, and unmount: the journal is replayed, its first and last words written."""
    SuperBlock.open(path, writable=True, clock=lambda: 1).close()


def _write(path: Path) -> None:
    """Take pages and inodes, give all of a file's away: whatever the image says is free or held."""
    sb = SuperBlock.open(path, writable=True, clock=lambda: 1)
    try:
        for ino in (Ino(16), Ino(17), Ino(18), Ino(19)):
            _answer(_grow_and_cut, sb, ino)
        _answer(_make_and_free, sb)
    finally:
        sb.close()


def _grow_and_cut(sb: SuperBlock, ino: Ino) -> None:
    with sb.transaction(1) as tx:
        end = end_of_extents(tx, tx.inode(ino))
        if not stat.S_ISREG(tx.inode(ino).mode):
            return
        for block, nr_pages in tx.allocate(2):
            insert_extent(tx, tx.inode(ino), end, block, nr_pages)
            end += nr_pages
    with sb.transaction(1) as tx:
        remove_extents(tx, tx.inode(ino), 1)
    with sb.transaction(1) as tx:
        remove_extents(tx, tx.inode(ino), 0)


def _make_and_free(sb: SuperBlock) -> None:
    with sb.transaction(1) as tx:
        ino = tx.new_inode(mode=stat.S_IFREG | 0o600, nlink=1).ino
    with sb.transaction(1) as tx:
        tx.add_orphan(ino)
    with sb.transaction(1) as tx:
        tx.free_inode(ino)


def _rename(path: Path) -> None:
    """Make, move and remove names in the root and in the directories below it; attributes, too."""
    sb = SuperBlock.open(path, writable=True, clock=lambda: 1)
    try:
        root = sb.iget(INO_ROOT)
        found = [_answer(sb.lookup, root, name) for name in (b"etc", b"hosts", b"tree", b"link")]
        inodes = [inode for inode in found if inode is not None]
        directories = [root, *(inode for inode in inodes if inode.is_dir)]
        for directory in directories:
            for number in range(3):
                name = b"new%d" % number
                _answer(mkdir, sb, directory, name, 0o755, Owner(1, 1), 1)
                _answer(mknod, sb, directory, name + b"f", stat.S_IFREG | 0o600, Owner(1, 1), 1)
            _answer(rename, sb, directory, b"new0", directories[-1], b"moved", 0, 1)
            _answer(rename, sb, directory, b"hosts", directories[-1], b"new1f", 0, 1)
        _answer(rename, sb, root, b"etc", directories[-1], b"below itself", 0, 1)
        for inode in inodes:
            _answer(setxattr, sb, inode, b"user.new", b"1" * 5000, 0, 1)
            _answer(removexattr, sb, inode, b"user.comment", 1)
            _answer(link, sb, inode, root, b"linked", 1)
        for directory in directories:
            for name in (b"new1f", b"moved", b"new2", b"hosts", b"tree", b"link", b"linked"):
                _answer(unlink, sb, directory, name, 1)
                _answer(rmdir, sb, directory, name, 1)
    finally:
        sb.close()


READERS: dict[str, Callable[[Path], object]] = {
    "info": lambda path: info(path, as_json=False),
    "ls": _ls,
    "ls --json": _ls_json,
    "cat": _cat,
    "fsck": lambda path: fsck(path, as_json=False),
    "dump": _dump,
    "cp": _cp,
    "mount": _mount,
    "replay": _replay,
    "write": _write,
    "rename": _rename,
}
