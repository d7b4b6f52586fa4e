"""Random operations on two directories side by side; the first difference, made short.

    with Side(Path("/dev/shm")) as ours, Side(Path("mnt")) as theirs:
        ops = generate(seed, 500)
        found = compare(ops, ours, theirs)                 None, or where they differ
        ops = shrink(ops, lambda ops: compare(ops, ours, theirs) is not None)

An operation is a tuple of plain values, `(worker, kind, argument, ...)`, so that a list of them can
be pasted into a test. Names come from a few, descriptors and maps are numbered slots, so that
operations meet each other; what cannot be done fails, and must fail with the same errno on both
sides. Neither side knows of the other: each plays the whole list in processes of its own, the
workers, one operation at a time, and tells what each gave: bytes (as they are, or their hash),
attributes, names, an errno. In the end it lists the whole tree.

    side                 worker 0            worker 1
      |--- some ops -------->|
      |<-- their results ----|
      |--- some ops ---------------------------->|     sees what worker 0 did, through other
      |<-- their results ------------------------|     descriptors and maps

Each sequence uses some of the kinds only (a "swarm"), so that rare ones come in long runs, too.

Not compared, as filesystems may differ: sizes and offsets of directories, st_blocks, atime, inode
numbers, the mtime of a fifo (FUSE is not told of writes to one). Of an mtime that is now it is only
known that it was not set. posix_fallocate(3) is left out: where there is no fallocate(2) the C
library plays it by reads and writes.
"""

import contextlib
import errno
import hashlib
import mmap
import os
import pickle
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.kit.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

__all__ = ["KINDS", "Difference", "Op", "Side", "compare", "generate", "shrink"]

Op = tuple[Any, ...]

NR_WORKERS = 3
NR_SLOTS = 4
SIZE_BYTES_MAX = 300_000
_NOW_S = 1_500_000_000
"""A later time was not set by an operation."""

_PAGE = mmap.PAGESIZE


class Difference(NamedTuple):
    """index: of the operation; len(ops) for the tree in the end."""

    index: int
    op: Op | None
    ours: object
    theirs: object

    def __str__(self) -> str:
        what = f"operation {self.index}: {self.op}" if self.op else "the tree in the end"
        return f"{what}\n  {self.ours}\n  {self.theirs}"


# What a worker does


class Worker:
    """Plays operations below the directory *root*, with descriptors and maps of its own."""

    def __init__(self) -> None:
        self.root = b"/"
        self.fds: dict[int, int] = {}
        self.maps: dict[int, tuple[mmap.mmap, int]] = {}

    def play(self, op: Op) -> object:
        try:
            return getattr(self, op[1])(*op[2:])
        except OSError as exc:
            return errno.errorcode.get(exc.errno or 0, exc.errno)

    def _path(self, name: str) -> bytes:
        return os.path.join(self.root, name.encode())

    def _fd(self, slot: int) -> int:
        if slot not in self.fds:
            raise OSError(errno.EBADF, "no such slot")
        return self.fds[slot]

    def enter(self, root: str) -> object:
        """Close and unmap everything; play below *root* from now on."""
        for slot in list(self.fds):
            self.close(slot)
        for number in list(self.maps):
            self.unmap(number)
        self.root = os.fsencode(root)
        return None

    # Descriptors

    def open(self, slot: int, name: str, flags: int, mode: int) -> object:
        fd = os.open(self._path(name), flags, mode)
        self.close(slot) if slot in self.fds else None
        self.fds[slot] = fd
        return _attributes(os.fstat(fd))

    def close(self, slot: int) -> object:
        os.close(self._fd(slot))
        del self.fds[slot]
        return None

    def read(self, slot: int, size: int) -> object:
        return _digest(os.read(self._fd(slot), size))

    def pread(self, slot: int, offset: int, size: int) -> object:
        return _digest(os.pread(self._fd(slot), size, offset))

    def write(self, slot: int, seed: int, size: int) -> object:
        return os.write(self._fd(slot), _bytes(seed, size))

    def pwrite(self, slot: int, offset: int, seed: int, size: int) -> object:
        return os.pwrite(self._fd(slot), _bytes(seed, size), offset)

    def lseek(self, slot: int, offset: int, whence: int) -> object:
        if stat.S_ISDIR(os.fstat(self._fd(slot)).st_mode):
            return None
        return os.lseek(self._fd(slot), offset, whence)

    def ftruncate(self, slot: int, size: int) -> object:
        return os.ftruncate(self._fd(slot), size)

    def fstat(self, slot: int) -> object:
        return _attributes(os.fstat(self._fd(slot)))

    def fchmod(self, slot: int, mode: int) -> object:
        return os.fchmod(self._fd(slot), mode)

    def fsync(self, slot: int) -> object:
        return os.fsync(self._fd(slot))

    def fdatasync(self, slot: int) -> object:
        return os.fdatasync(self._fd(slot))

    def copy_range(self, slot: int, to: int, offset: int, size: int, target: int) -> object:
        return os.copy_file_range(self._fd(slot), self._fd(to), size, offset, target)

    def flistxattr(self, slot: int) -> object:
        return sorted(os.listxattr(self._fd(slot)))

    # Maps

    def map(self, number: int, slot: int, pages: int, private: bool) -> object:
        fd = self._fd(slot)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        size = min(pages * _PAGE, os.fstat(fd).st_size)
        if not size:
            return None
        flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        mapped = mmap.mmap(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
        self.unmap(number)
        # A descriptor of its own says how far the file reaches: behind that is a SIGBUS.
        self.maps[number] = mapped, os.dup(fd)
        return size

    def _mapped(self, number: int, offset: int, size: int) -> tuple[mmap.mmap | None, slice]:
        if number not in self.maps:
            return None, slice(0)
        mapped, fd = self.maps[number]
        end = min(len(mapped), os.fstat(fd).st_size)
        return mapped, slice(min(offset, end), min(offset + size, end))

    def map_read(self, number: int, offset: int, size: int) -> object:
        mapped, place = self._mapped(number, offset, size)
        return None if mapped is None else _digest(mapped[place])

    def map_write(self, number: int, offset: int, seed: int, size: int) -> object:
        mapped, place = self._mapped(number, offset, size)
        if mapped is not None:
            mapped[place] = _bytes(seed, place.stop - place.start)
        return place.stop

    def msync(self, number: int) -> object:
        if number in self.maps:
            self.maps[number][0].flush()
        return None

    def unmap(self, number: int) -> object:
        if number in self.maps:
            mapped, fd = self.maps.pop(number)
            mapped.close()
            os.close(fd)
        return None

    # Names

    def rename(self, old: str, new: str, flags: int) -> object:
        return renameat2(
            Path(os.fsdecode(self._path(old))), Path(os.fsdecode(self._path(new))), flags
        )

    def link(self, old: str, new: str) -> object:
        return os.link(self._path(old), self._path(new), follow_symlinks=False)

    def unlink(self, name: str) -> object:
        return os.unlink(self._path(name))

    def symlink(self, target: str, name: str) -> object:
        return os.symlink(target, self._path(name))

    def readlink(self, name: str) -> object:
        return os.readlink(self._path(name))

    def mkdir(self, name: str, mode: int) -> object:
        return os.mkdir(self._path(name), mode)

    def rmdir(self, name: str) -> object:
        return os.rmdir(self._path(name))

    def mknod(self, name: str, mode: int) -> object:
        return os.mknod(self._path(name), mode)

    def listdir(self, name: str) -> object:
        return sorted(os.listdir(self._path(name)))

    # By name

    def stat(self, name: str) -> object:
        return _attributes(os.stat(self._path(name)))

    def lstat(self, name: str) -> object:
        return _attributes(os.lstat(self._path(name)))

    def truncate(self, name: str, size: int) -> object:
        return os.truncate(self._path(name), size)

    def chmod(self, name: str, mode: int) -> object:
        return os.chmod(self._path(name), mode)

    def chown(self, name: str, uid: int, gid: int) -> object:
        return os.chown(self._path(name), uid, gid, follow_symlinks=False)

    def utime(self, name: str, mtime_ns: int) -> object:
        return os.utime(self._path(name), ns=(0, mtime_ns), follow_symlinks=False)

    def setxattr(self, name: str, key: str, seed: int, size: int, flags: int) -> object:
        return os.setxattr(self._path(name), key, _bytes(seed, size), flags)

    def getxattr(self, name: str, key: str) -> object:
        return _digest(os.getxattr(self._path(name), key))

    def removexattr(self, name: str, key: str) -> object:
        return os.removexattr(self._path(name), key)

    def listxattr(self, name: str) -> object:
        return sorted(os.listxattr(self._path(name)))

    def tree(self) -> object:
        """Return everything that there is: name -> attributes, xattrs, and the contents."""
        found: dict[bytes, object] = {}
        for folder, directories, files in os.walk(self.root):
            for name in directories + files:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                contents: object = None
                if stat.S_ISREG(status.st_mode):
                    contents = _digest(Path(os.fsdecode(path)).read_bytes())
                elif stat.S_ISLNK(status.st_mode):
                    contents = os.readlink(path)
                xattrs = [
                    (key, _digest(os.getxattr(path, key, follow_symlinks=False)))
                    for key in sorted(os.listxattr(path, follow_symlinks=False))
                ]
                found[os.path.relpath(path, self.root)] = (_attributes(status), xattrs, contents)
        return sorted(found.items())


def _bytes(seed: int, size: int) -> bytes:
    return (b"%07x." % (seed & 0xFFFFFFF)) * (size // 8) + b"~" * (size % 8)


def _digest(data: bytes) -> object:
    return data if len(data) <= 16 else (len(data), hashlib.sha256(data).hexdigest()[:16])


def _attributes(status: os.stat_result) -> object:
    is_directory = stat.S_ISDIR(status.st_mode)
    mtime: object = "now" if status.st_mtime_ns > _NOW_S * 10**9 else status.st_mtime_ns
    if stat.S_ISFIFO(status.st_mode):
        mtime = None
    return (
        oct(status.st_mode),
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        None if is_directory else status.st_size,
        mtime,
    )


# What is played


def _name(rng: random.Random) -> str:
    """A name at most three deep, of directories and files alike: few, so that they meet."""
    depth = rng.choice((1, 1, 1, 2, 2, 3))
    parts = [rng.choice(("d0", "d1")) for _ in range(depth - 1)]
    return "/".join([*parts, rng.choice(("d0", "d1", "d2", "f0", "f1", "f2", "f3", "f4", "s0"))])


def _offset(rng: random.Random) -> int:
    """Anywhere, and often near the edge of a page."""
    if rng.random() < 0.5:
        return max(0, rng.randrange(SIZE_BYTES_MAX // _PAGE) * _PAGE + rng.randrange(-2, 3))
    return rng.randrange(int(SIZE_BYTES_MAX * rng.random()) + 1)


def _size(rng: random.Random) -> int:
    return rng.choice((0, 1, 7, 100, _PAGE, rng.randrange(9000), rng.randrange(70_000)))


def _slot(rng: random.Random) -> int:
    return rng.randrange(NR_SLOTS)


def _seed(rng: random.Random) -> int:
    return rng.randrange(1 << 28)


def _mode(rng: random.Random) -> int:
    return rng.choice((0o600, 0o644, 0o755, 0o4755, 0o2755, 0o2644, 0o1777))


def _flags(rng: random.Random) -> int:
    flags = rng.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR))
    flags |= os.O_NONBLOCK  # a fifo would wait for the other end
    for flag, chance in (
        (os.O_CREAT, 0.6),
        (os.O_EXCL, 0.1),
        (os.O_TRUNC, 0.15),
        (os.O_APPEND, 0.15),
        (os.O_NOFOLLOW, 0.05),
        (os.O_DIRECTORY, 0.03),
        (os.O_SYNC, 0.05),
    ):
        if rng.random() < chance:
            flags |= flag
    if flags & os.O_DIRECTORY:
        flags &= ~os.O_CREAT  # a question of kernel versions, not of filesystems
    return flags


def _xattr(rng: random.Random) -> str:
    return rng.choice(("user.a", "user.b", "trusted.c", "user." + "n" * 200))


def _xattr_flags(rng: random.Random) -> int:
    return rng.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))


_ARGUMENTS: dict[str, tuple[int, tuple[Callable[[random.Random], object], ...]]] = {
    # kind -> weight, arguments
    "open": (12, (_slot, _name, _flags, _mode)),
    "close": (4, (_slot,)),
    "read": (5, (_slot, _size)),
    "pread": (6, (_slot, _offset, _size)),
    "write": (8, (_slot, _seed, _size)),
    "pwrite": (10, (_slot, _offset, _seed, _size)),
    "lseek": (2, (_slot, _offset, lambda rng: rng.choice((os.SEEK_SET, os.SEEK_END)))),
    "ftruncate": (5, (_slot, _offset)),
    "fstat": (4, (_slot,)),
    "fchmod": (1, (_slot, _mode)),
    "fsync": (1, (_slot,)),
    "fdatasync": (1, (_slot,)),
    "copy_range": (2, (_slot, _slot, _offset, _size, _offset)),
    "flistxattr": (1, (_slot,)),
    "map": (6, (_slot, _slot, lambda rng: rng.randrange(1, 70), lambda rng: rng.random() < 0.2)),
    "map_read": (6, (_slot, _offset, _size)),
    "map_write": (8, (_slot, _offset, _seed, _size)),
    "msync": (2, (_slot,)),
    "unmap": (2, (_slot,)),
    "rename": (
        8,
        (_name, _name, lambda rng: rng.choice((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE))),
    ),
    "link": (4, (_name, _name)),
    "unlink": (5, (_name,)),
    "symlink": (3, (_name, _name)),
    "readlink": (1, (_name,)),
    "mkdir": (6, (_name, lambda rng: rng.choice((0o700, 0o755, 0o2755, 0o1777)))),
    "rmdir": (2, (_name,)),
    "mknod": (
        1,
        (_name, lambda rng: rng.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG)) | 0o640),
    ),
    "listdir": (2, (lambda rng: rng.choice(("", "d0", "d1", "d0/d1", _name(rng))),)),
    "stat": (4, (_name,)),
    "lstat": (3, (_name,)),
    "truncate": (3, (_name, _offset)),
    "chmod": (2, (_name, _mode)),
    "chown": (1, (_name, lambda rng: rng.choice((-1, 0, 7)), lambda rng: rng.choice((-1, 0, 8)))),
    "utime": (2, (_name, lambda rng: rng.randrange(_NOW_S) * 10**9 + rng.randrange(10**9))),
    "setxattr": (3, (_name, _xattr, _seed, lambda rng: rng.randrange(900), _xattr_flags)),
    "getxattr": (2, (_name, _xattr)),
    "removexattr": (1, (_name, _xattr)),
    "listxattr": (1, (_name,)),
}  # fmt: skip

KINDS = tuple(_ARGUMENTS)

_ALWAYS = {"open", "fstat", "stat", "pread", "pwrite", "mkdir", "map", "map_write"}
_MAPS = {"map", "map_read", "map_write", "msync", "unmap"}


def generate(seed: int, nr_ops: int, *, nr_workers: int = NR_WORKERS) -> list[Op]:
    """Make operations by a seed."""
    rng = random.Random(seed)
    share = rng.choice((0.3, 0.6, 1.0))
    kinds = [kind for kind in KINDS if kind in _ALWAYS or rng.random() < share]
    # When a write through a map changes the mtime is nobody's promise.
    without = {"utime"} if rng.random() < 0.5 else _MAPS
    kinds = [kind for kind in kinds if kind not in without]
    weights = [_ARGUMENTS[kind][0] for kind in kinds]
    ops: list[Op] = []
    worker = 0
    while len(ops) < nr_ops:
        if rng.random() < 0.15:
            worker = rng.randrange(nr_workers)
        (kind,) = rng.choices(kinds, weights)
        ops.append((worker, kind, *(argument(rng) for argument in _ARGUMENTS[kind][1])))
    return ops


# Playing


class Side:
    """The workers of one filesystem; they play in new directories below *parent*. Use in a `with`.

    kept: the directory of the last sequence, which stays until the next one.
    """

    def __init__(self, parent: Path, *, nr_workers: int = NR_WORKERS) -> None:
        self.parent = parent
        self.kept: Path | None = None
        command = [sys.executable, "-m", __name__]
        self.workers = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            for _ in range(nr_workers)
        ]

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            assert worker.stdin is not None
            assert worker.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
            worker.stdout.close()
            worker.wait()

    def begin(self) -> None:
        """Have all play in a new directory from now on, with nothing open."""
        self.enter("/")
        if self.kept is not None:
            shutil.rmtree(self.kept)
        self.kept = Path(tempfile.mkdtemp(dir=self.parent, prefix="twin-"))
        self.kept.chmod(0o755)
        self.enter(os.fspath(self.kept))

    def enter(self, root: str) -> None:
        """Have the workers close and unmap everything, and play in *root* from now on."""
        for worker in range(len(self.workers)):
            self.ask(worker, [(worker, "enter", root)])

    def play(self, ops: Sequence[Op]) -> Iterator[object]:
        """Yield what each operation gave."""
        start = 0
        while start < len(ops):
            worker = ops[start][0]
            end = start + 1
            while end < len(ops) and ops[end][0] == worker:
                end += 1
            yield from self.ask(worker, ops[start:end])
            start = end

    def ask(self, worker: int, ops: Sequence[Op]) -> list[object]:
        process = self.workers[worker]
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(list(ops), process.stdin)
            process.stdin.flush()
            results: list[object] = pickle.load(process.stdout)
        except (BrokenPipeError, EOFError):
            return [f"the worker died: {process.wait()}"] * len(ops)
        return results


def compare(ops: Sequence[Op], *sides: Side) -> Difference | None:
    """Play *ops* in two new directories; return the first difference, None if there is none."""
    ours, theirs = sides
    for side in sides:
        side.begin()
    for index, (op, mine, other) in enumerate(
        zip(ops, ours.play(ops), theirs.play(ops), strict=True)
    ):
        if mine != other:
            return Difference(index, op, mine, other)
    trees = [side.ask(0, [(0, "tree")])[0] for side in sides]
    if trees[0] != trees[1]:
        return _tree_difference(len(ops), *trees)
    return None


def _tree_difference(index: int, ours: Any, theirs: Any) -> Difference:
    if isinstance(ours, list) and isinstance(theirs, list):
        mine = [entry for entry in ours if entry not in theirs]
        other = [entry for entry in theirs if entry not in ours]
        return Difference(index, None, mine[:5], other[:5])
    return Difference(index, None, ours, theirs)


def shrink(
    ops: list[Op], fails: Callable[[list[Op]], bool], *, nr_tries_max: int = 400
) -> list[Op]:
    """Leave out operations, many at a time and then fewer, as long as what is left *fails*."""
    nr_tries = 0
    size = len(ops) // 2
    while size and nr_tries < nr_tries_max:
        start = 0
        while start < len(ops) and nr_tries < nr_tries_max:
            shorter = ops[:start] + ops[start + size :]
            nr_tries += 1
            if shorter and fails(shorter):
                ops = shorter
            else:
                start += size
        size //= 2
    return ops


def _serve() -> None:
    """Be a worker: a list of operations in, a list of results out."""
    os.umask(0o022)
    worker = Worker()
    while True:
        try:
            ops = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump([worker.play(op) for op in ops], sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
