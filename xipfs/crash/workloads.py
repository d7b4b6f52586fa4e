"""Workloads: all of seq-1 and seq-2, and a fuzzer that makes longer ones.

    for workload in seq(2): ...            every ordered pair of ELEMENTS
    fuzz(seed, nr_operations=20)           any operations on a few names

As in ACE (CrashMonkey, OSDI '18; for persistent memory Chipmunk, EuroSys '23), seq-n is every row
of n elements on a small tree, so that each meets what each other left behind. An element is one
operation with its arguments, or a few that make sense only together: a file is held open, loses
its name, and is closed. Elements that an earlier one has made impossible are played too: an
operation that fails must change nothing.
"""

import itertools
import random
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from xipfs.crash.operations import MOVES, Operation, parse_operations
from xipfs.fs.source import Entry

__all__ = ["ELEMENTS", "Workload", "base_entries", "fuzz", "seq", "with_moves"]

_LONG = "n" * 240
"""A name so long that a directory's page takes 15 like it, which `/D` has."""

_NR_LONG_NAMES = 15

_ELEMENTS = f"""
create /new 644
create /A/new 4755
create /D/{_LONG}x 600
mkdir /E 755
mkdir /A/C/E 1777
mknod /fifo 10644 0
mknod /A/null 20666 259
mknod /B/socket 140700 0
symlink /symbolic A/foo
symlink /A/symbolic {"t" * 200}
link /foo /A/link
link /A/foo /link
link /A/bar /D/{_LONG}y
unlink /foo
unlink /A/foo
unlink /A/bar
unlink /B/pieces
unlink /A/pointer
unlink /D/{_LONG}03
hold /foo; unlink /foo; write /foo 0 5000; drop /foo
hold /B/pieces; unlink /B/pieces; truncate /B/pieces 0; drop /B/pieces
rmdir /A/C
rmdir /A
rename /foo /moved
rename /foo /A/moved
rename /foo /A/foo
rename /A/foo /foo
rename /A/foo /B/foo
rename /A/C /B/C
rename /A/C /empty
rename /A /F
rename /A /A/C/F
rename /B/pieces /D/{_LONG}z
rename /D/{_LONG}07 /D/{_LONG}w
rename /foo /A/bar exchange
rename /foo /A exchange
rename /A/C /B exchange
rename /foo /A/moved noreplace
rename /foo /A/foo noreplace
write /foo 50 100
write /foo 50 100; fsync /foo
write /foo 4000 200
write /foo 4096 4096
write /foo 9000 50
write /foo 8900 5000; fsync /foo
write /foo 20480 100
write /A/bar 0 5000
write /A/bar 100 40000; fsync /A/bar
write /hole 0 4096
write /hole 4000 1000
write /B/pieces 5000 8192
append /foo 10
append /A/foo 9000
append /A/bar 4096; fsync /A/bar
truncate /foo 0
truncate /foo 4096
truncate /foo 8999
truncate /foo 9010
truncate /foo 100; append /foo 5000
truncate /A/bar 40000
truncate /B/pieces 20500
chmod /foo 400
chmod /A 700
chown /A/foo 1000 1000
utimens /foo 1 2
utimens /A 3 4
setxattr /foo user.new 10
setxattr /A/foo user.a 20
setxattr /A/foo user.large 6000
setxattr /A user.new 30
removexattr /A/foo user.a
fsync /foo
"""

ELEMENTS: tuple[tuple[Operation, ...], ...] = tuple(
    parse_operations(line) for line in _ELEMENTS.split("\n") if line
)

_ROWS_OF_MOVES = ((), ("promote",), ("promote",), ("promote",), ("demote",))

_TIME_NS = 1_000_000_000


class Workload(NamedTuple):
    """Operations to be played on the tree of `base_entries`.

    nr_known: so many of the first operations are the whole of another workload, whose crash states
    are checked there.
    """

    operations: tuple[Operation, ...]
    nr_known: int = 0


def base_entries() -> Iterator[Entry]:
    """Yield the tree that every workload starts from; an image of it is always the same."""
    directory, file = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644

    def data(path: bytes, size_bytes: int, *pieces: tuple[int, int]) -> Entry:
        letter = path[-1:]
        contents = [(pgoff, letter * piece_bytes) for pgoff, piece_bytes in pieces]
        return Entry(path, file, 0, 0, _TIME_NS, size_bytes=size_bytes, pieces=contents)

    for path in (b"", b"A", b"A/C", b"B", b"D", b"empty"):
        yield Entry(path, directory, 0, 0, _TIME_NS)
    yield data(b"foo", 9000, (0, 9000))
    yield data(b"hole", 12388, (1, 8292))
    yield data(b"A/foo", 5000, (0, 5000))._replace(xattrs={b"user.a": b"attribute"})
    yield data(b"A/bar", 0)
    yield Entry(b"A/pointer", stat.S_IFLNK | 0o777, 0, 0, _TIME_NS, target=b"foo")
    yield Entry(b"B/foo", file, 0, 0, _TIME_NS, hard_link=b"A/foo")
    # Six pieces with holes between: one more than fit into the inode.
    yield data(b"B/pieces", 45056, *((pgoff, 4096) for pgoff in range(0, 12, 2)))
    first = f"D/{_LONG}00".encode()
    yield data(first, 100, (0, 100))
    for number in range(1, _NR_LONG_NAMES):
        path = f"D/{_LONG}{number:02}".encode()
        yield Entry(path, file, 0, 0, _TIME_NS, hard_link=first)


def seq(length: int, *, first: int | None = None) -> Iterator[Workload]:
    """Yield every row of *length* elements, in the order of ELEMENTS.

    first: only those that begin with this one of them.
    """
    firsts = ELEMENTS if first is None else ELEMENTS[first : first + 1]
    for elements in itertools.product(firsts, *(ELEMENTS,) * (length - 1)):
        *known, last = elements
        operations = tuple(itertools.chain(*known))
        yield Workload((*operations, *last), nr_known=len(operations))


def with_moves(workload: Workload, seed: int) -> Workload:
    """Return *workload* with pages moving between the tiers before some of its operations.

    The operations that are known move the same pages in all workloads of one seed.
    """
    known = _moving(workload.operations[: workload.nr_known], seed)
    rest = _moving(workload.operations[workload.nr_known :], seed + len(known))
    return Workload((*known, *rest), nr_known=len(known))


def _moving(operations: tuple[Operation, ...], seed: int) -> tuple[Operation, ...]:
    rng = random.Random(f"{seed} {operations}")
    moving: list[Operation] = []
    for operation in operations:
        moving += [Operation(name, (rng.randrange(1000),)) for name in rng.choice(_ROWS_OF_MOVES)]
        moving.append(operation)
    return tuple(moving)


def fuzz(seed: int, *, nr_operations: int, moves_pages: bool = False) -> Workload:
    """Return a random workload; the same for the same arguments, wherever it is made.

    moves_pages: with promotions and demotions between.
    """
    rng = random.Random(seed)
    texts: list[str] = []
    held: list[str] = []
    names = [f"/{entry.path.decode()}" for entry in base_entries() if entry.path]
    while len(texts) < nr_operations:
        texts.append(_random_operation(rng, held, names))
        if moves_pages:
            texts.append(f"{rng.choice(MOVES)} {rng.randrange(1000)}")
    return Workload(parse_operations("; ".join(texts)))


_DIRECTORIES = ("", "/A", "/A/C", "/B", "/D", "/empty", "/new")
_FILES = ("foo", "bar", "hole", "pieces", "new", "C", "E", _LONG, _LONG + "00", _LONG + "05")
_OFFSETS = (0, 1, 100, 4000, 4096, 8192, 9000, 12288, 40000, 100000)
_SIZES = (0, 1, 8, 100, 4095, 4096, 4097, 9000, 20000, 60000)


def _random_operation(rng: random.Random, held: list[str], names: list[str]) -> str:
    """Return an operation. held, names: files held, and names that may be there; both change."""

    def old() -> str:
        return rng.choice(names)

    def new() -> str:
        path = f"{rng.choice(_DIRECTORIES)}/{rng.choice(_FILES)}"
        names.append(path)
        return path

    mode = rng.choice(("400", "644", "755", "4755", "1777"))
    kind = rng.randrange(26)
    if kind < 6:
        return f"write {old()} {rng.choice(_OFFSETS)} {rng.choice(_SIZES)}"
    if kind < 8:
        return f"append {old()} {rng.choice(_SIZES)}"
    if kind < 10:
        return f"truncate {old()} {rng.choice(_OFFSETS)}"
    if kind == 10:
        held.append(old())
        return f"hold {held[-1]}"
    if kind == 11 and held:
        return f"drop {held.pop(rng.randrange(len(held)))}"
    choices: tuple[Callable[[], str], ...] = (
        lambda: f"create {new()} {mode}",
        lambda: f"create {new()} {mode}",
        lambda: f"mkdir {new()} {mode}",
        lambda: f"mknod {new()} 10{mode:0>4} 0",
        lambda: f"symlink {new()} {'t' * rng.choice((1, 120, 121, 300))}",
        lambda: f"link {old()} {new()}",
        lambda: f"rename {old()} {new()}",
        lambda: f"rename {old()} {old()}",
        lambda: f"rename {old()} {old()} exchange",
        lambda: f"unlink {old()}",
        lambda: f"unlink {old()}",
        lambda: f"rmdir {old()}",
        lambda: f"chmod {old()} {mode}",
        lambda: f"chown {old()} {rng.randrange(3)} {rng.randrange(3)}",
        lambda: f"setxattr {old()} user.{rng.choice('abc')} {rng.choice(_SIZES)}",
        lambda: f"removexattr {old()} user.{rng.choice('abc')}",
        lambda: f"fsync {old()}",
        lambda: f"fsync {old()}",
    )
    return rng.choice(choices)()
