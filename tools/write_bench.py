"""Writes, names and whole programs: xipfs beside its peers on one disk.

All sides are mounted all the while, and each measurement is taken on one after the other, in an
empty directory of it:

    rates       this process makes system calls: writes, appends, creates, removes
    programs    tar, diff, rm, rsync, git, sqlite, pip at work: seconds, less is better

The data behind is on the disk of TMPDIR: of xipfs and fuse2fs in an image, of the others in files.
An fsync of the passthrough example reaches no disk, since it does not have that call; ours leaves
all to the host's page cache, as the default promises, and goes to the disk with `sync=full`.

Each command of this file is one of `tools/bench`.
"""

import contextlib
import math
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from measure import SEED, Comparison, compare_all, report, xipfs_mount
from peers import PEERS, PeerMissingError

from xipfs.fs.mkfs import mkfs
from xipfs.units import PAGE_SIZE

__all__ = ["sync", "write"]

_IMAGE_SIZE_BYTES = 2 << 30
_LARGE_BYTES = 1 << 20


class Workload(NamedTuple):
    """Something to measure. unit: of what `measure` returns; of "s", less is better.

    measure: (empty directory, nr: how many operations, files or transactions) -> figure
    """

    name: str
    unit: str
    nr: int
    measure: Callable[[Path, int], float]


def write(
    words: Annotated[
        list[str] | None, typer.Argument(help="Only what has one of these in its name.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Counted rounds of each measurement.")] = 5,
    peers: Annotated[list[str], typer.Option("--peer")] = list(PEERS),  # noqa: B006
    share: Annotated[int, typer.Option(help="Only one of so many operations, files..")] = 1,
    options: Annotated[str, typer.Option(help="More options of the mount.")] = "",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Writes, names and programs against passthrough filesystems and another image."""
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xipfs-bench-")))
        ours = stack.enter_context(_xipfs(work / "xipfs", options))
        mounts = {}
        for peer in peers:
            (work / peer).mkdir()
            try:
                mounts[peer] = stack.enter_context(PEERS[peer](work / peer))
            except PeerMissingError as exc:
                print(exc, file=sys.stderr)
        report(_compare(words, ours, mounts, rounds=rounds, share=share), as_json)


def sync(
    words: Annotated[
        list[str] | None, typer.Argument(help="Only what has one of these in its name.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Counted rounds of each measurement.")] = 3,
    share: Annotated[int, typer.Option(help="Only one of so many operations, files..")] = 20,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """The same on mounts with the default, sync=daemon, and with sync=full."""
    with (
        tempfile.TemporaryDirectory(prefix="xipfs-bench-") as folder,
        _xipfs(Path(folder) / "default", "") as ours,
        _xipfs(Path(folder) / "full", "sync=full") as full,
    ):
        results = _compare(words, ours, {"sync=full": full}, rounds=rounds, share=share)
        report(results, as_json)


@contextlib.contextmanager
def _xipfs(folder: Path, options: str) -> Iterator[Path]:
    """Mount a new, empty image for the block."""
    folder.mkdir()
    image = folder / "xipfs.img"
    mkfs(image, None, size_bytes=_IMAGE_SIZE_BYTES, now_ns=0)
    with xipfs_mount(image, folder / "mnt", ",".join(filter(None, ["rw", options]))) as mountpoint:
        yield mountpoint


def _compare(
    words: list[str] | None, ours: Path, peers: Mapping[str, Path], *, rounds: int, share: int
) -> list[Comparison]:
    """Take the chosen measurements, with 1 / *share* of their operations."""
    results = []
    for workload in _WORKLOADS:
        if words and not any(word in workload.name for word in words):
            continue
        nr = max(workload.nr // share, 1)
        results += compare_all(
            workload.name,
            workload.unit,
            partial(_take, workload, nr, ours),
            {name: partial(_take_or_tell, workload, nr, name, peers[name]) for name in peers},
            rounds=rounds,
            more_is_better=workload.unit != "s",
        )
        print(*results[-len(peers) :], sep="\n", file=sys.stderr)
    return results


def _take(workload: Workload, nr: int, mountpoint: Path) -> float:
    place = mountpoint / "place"
    place.mkdir()
    try:
        return workload.measure(place, nr)
    finally:
        shutil.rmtree(place)


def _take_or_tell(workload: Workload, nr: int, peer: str, mountpoint: Path) -> float:
    """Return not-a-number where *peer* cannot do it, and say so."""
    try:
        return _take(workload, nr, mountpoint)
    except (OSError, subprocess.CalledProcessError, sqlite3.Error) as exc:
        print(f"{workload.name}: {peer} fails: {exc}", file=sys.stderr)
        return math.nan


# Rates


def _write_large(place: Path, nr: int, *, fsync: bool = False, over: bool = False) -> float:
    """Return MB/s of writing a file by 1 MiB, new or over itself."""
    buffer = _make_buffer()
    path = place / "file"
    if over:
        _fill(path, nr)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    start = time.perf_counter()
    for _ in range(nr):
        os.writev(fd, [buffer])
        if fsync:
            os.fsync(fd)
    elapsed_s = time.perf_counter() - start
    os.close(fd)
    return nr * _LARGE_BYTES / elapsed_s / 1e6


def _write_small(place: Path, nr: int, *, fsync: bool = False, append: bool = False) -> float:
    """Return writes a second of 4 KiB, at random in a file of 64 MiB or at a new file's end."""
    path = place / "file"
    nr_pages = 64 << 20 >> 12
    pages: Iterator[int] = iter(range(nr))
    if not append:
        _fill(path, nr_pages * PAGE_SIZE // _LARGE_BYTES)
        pages = iter(random.Random(SEED).sample(range(nr_pages), nr))
    data = random.Random(SEED).randbytes(PAGE_SIZE)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    start = time.perf_counter()
    for page in pages:
        os.pwrite(fd, data, page * PAGE_SIZE)
        if fsync:
            os.fsync(fd)
    elapsed_s = time.perf_counter() - start
    os.close(fd)
    return nr / elapsed_s


def _make_buffer() -> mmap.mmap:
    """Return 1 MiB, page-aligned: the kernel cuts requests of others in pieces."""
    buffer = mmap.mmap(-1, _LARGE_BYTES)
    buffer.write(random.Random(SEED).randbytes(_LARGE_BYTES))
    return buffer


def _fill(path: Path, nr: int) -> None:
    """Make a file of *nr* MiB."""
    buffer = _make_buffer()
    with path.open("xb", buffering=0) as file:
        for _ in range(nr):
            file.write(buffer)


def _create(place: Path, nr: int) -> float:
    """Return files a second that are created in one directory, empty."""
    start = time.perf_counter()
    for i in range(nr):
        os.close(os.open(place / f"file-{i}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    return nr / (time.perf_counter() - start)


def _remove(place: Path, nr: int) -> float:
    """Return files a second that are removed from one directory."""
    _create(place, nr)
    start = time.perf_counter()
    for i in range(nr):
        os.unlink(place / f"file-{i}")
    return nr / (time.perf_counter() - start)


# Programs


def _run(*command: str | Path, cwd: Path, **environment: str) -> None:
    """Run a program to its end. Raises: CalledProcessError."""
    subprocess.run(
        command,
        check=True,
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def _tree(nr_files: int) -> Iterator[Path]:
    """A tree of files of 100 bytes to 40 KiB, twenty in each directory, on the disk."""
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory(prefix="xipfs-bench-") as folder:
        tree = Path(folder) / "tree"
        for i in range(nr_files):
            path = tree / f"d{i // 20}" / f"file-{i}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(round(100 * 400 ** rng.random())))
        yield tree


def _untar(place: Path, nr: int) -> float:
    """Return the seconds that a tree takes to be unpacked, compared and removed."""
    with _tree(nr) as tree:
        archive = tree.parent / "tree.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(tree, "tree")
        start = time.perf_counter()
        _run("tar", "-xf", archive, cwd=place)
        _run("diff", "-r", tree, "tree", cwd=place)
        _run("rm", "-r", "tree", cwd=place)
        return time.perf_counter() - start


def _rsync(place: Path, nr: int) -> float:
    with _tree(nr) as tree:
        start = time.perf_counter()
        _run("rsync", "-a", f"{tree}/", "copy", cwd=place)
        return time.perf_counter() - start


def _git(place: Path, nr: int) -> float:
    """Return the seconds of init, of adding and committing a tree, and of gc."""
    with _tree(nr) as tree:
        shutil.copytree(tree, place / "repo")
        names = {f"GIT_{who}_NAME": "n" for who in ("AUTHOR", "COMMITTER")}
        mails = {f"GIT_{who}_EMAIL": "e" for who in ("AUTHOR", "COMMITTER")}
        start = time.perf_counter()
        for words in ("init -q", "add -A", "commit -q -m all", "gc -q", "status"):
            _run("git", *words.split(), cwd=place / "repo", **names, **mails)
        return time.perf_counter() - start


def _sqlite(place: Path, nr: int, *, journal_mode: str) -> float:
    """Return the seconds of *nr* transactions of ten rows, and of reading them all."""
    start = time.perf_counter()
    with contextlib.closing(sqlite3.connect(place / "db", isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={journal_mode}")
        db.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, text TEXT)")
        for i in range(nr):
            db.execute("BEGIN")
            db.executemany(
                "INSERT INTO t (text) VALUES (?)", [(f"{i} {j}" * 9,) for j in range(10)]
            )
            db.execute("COMMIT")
        db.execute("SELECT count(*), sum(length(text)) FROM t").fetchall()
    return time.perf_counter() - start


def _pip(place: Path, nr: int) -> float:
    """Return the seconds of making a venv and installing a wheel of *nr* modules there."""
    with tempfile.TemporaryDirectory(prefix="xipfs-bench-") as folder:
        wheel = Path(folder) / "bench-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for i in range(nr):
                archive.writestr(f"bench/module{i}.py", f"def f():\n    return {i}\n" * 20)
            info = "bench-1.dist-info"
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: bench\nVersion: 1\n")
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
        start = time.perf_counter()
        _run(sys.executable, "-m", "venv", "venv", cwd=place)
        python = place / "venv" / "bin" / "python"
        _run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel, cwd=place)
        _run(python, "-c", "import bench.module0", cwd=place)
        return time.perf_counter() - start


_WORKLOADS = [
    Workload("1 MiB sequential", "MB/s", 64, _write_large),
    Workload("1 MiB sequential, fsync each", "MB/s", 64, partial(_write_large, fsync=True)),
    Workload("1 MiB over itself", "MB/s", 64, partial(_write_large, over=True)),
    Workload("4 KiB random", "writes/s", 4000, _write_small),
    Workload("4 KiB random, fsync each", "writes/s", 1000, partial(_write_small, fsync=True)),
    Workload("4 KiB append", "writes/s", 4000, partial(_write_small, append=True)),
    Workload(
        "4 KiB append, fsync each",
        "writes/s",
        1000,
        partial(_write_small, append=True, fsync=True),
    ),
    Workload("create files", "files/s", 10_000, _create),
    Workload("remove files", "files/s", 10_000, _remove),
    Workload("untar, compare, remove", "s", 2000, _untar),
    Workload("rsync", "s", 1200, _rsync),
    Workload("git: init, add, commit, gc", "s", 1000, _git),
    Workload("sqlite, WAL", "s", 500, partial(_sqlite, journal_mode="wal")),
    Workload("sqlite, rollback", "s", 500, partial(_sqlite, journal_mode="delete")),
    Workload("venv, pip install", "s", 100, _pip),
]
