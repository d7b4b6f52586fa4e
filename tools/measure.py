"""Measuring: two sides in turn in one run, mounts to measure on, and a table of results."""

import contextlib
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from xipfs.units import PAGE_SIZE

__all__ = [
    "READ_FILE_SIZE_BYTES",
    "SEED",
    "Comparison",
    "bare",
    "compare",
    "compare_all",
    "random_reads",
    "report",
    "sequential_reads",
    "workspace",
    "xipfs_mount",
]

READ_FILE_SIZE_BYTES = 128 << 20
SEED = 1

_TOOLS = Path(__file__).resolve().parent


class Comparison(NamedTuple):
    """One line of results. ours and peer: medians in `unit`; ratio: ours is so much better."""

    name: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float


def compare(
    name: str,
    unit: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    peer_name: str,
    *,
    rounds: int,
    more_is_better: bool = True,
) -> Comparison:
    """Measure both in turn, *rounds* times, after one round that does not count."""
    [result] = compare_all(
        name, unit, ours, {peer_name: peer}, rounds=rounds, more_is_better=more_is_better
    )
    return result


def compare_all(
    name: str,
    unit: str,
    ours: Callable[[], float],
    peers: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    more_is_better: bool = True,
) -> list[Comparison]:
    """Measure ours and all *peers* in turn, forth and back, *rounds* times, after one for nothing.

    Returns: one comparison with each peer, of figures from the same rounds.
    """
    sides = [ours, *peers.values()]
    figures: list[list[float]] = [[] for _ in sides]
    for i in range(rounds + 1):
        numbers = range(len(sides))
        for number in numbers if i % 2 else reversed(numbers):
            figure = sides[number]()
            if i:
                figures[number].append(figure)
    results = []
    for peer_name, theirs in zip(peers, figures[1:], strict=True):
        pairs = zip(figures[0], theirs, strict=True)
        ratios = [a / b if more_is_better else b / a for a, b in pairs]
        medians = statistics.median(figures[0]), statistics.median(theirs)
        results.append(Comparison(name, unit, *medians, peer_name, statistics.median(ratios)))
    return results


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder on tmpfs where there is one, so that no disk is measured."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="xipfs-bench-", dir=parent) as work:
        yield Path(work)


@contextlib.contextmanager
def xipfs_mount(image: Path, mountpoint: Path, options: str) -> Iterator[Path]:
    """Mount *image* for the block: read-only, so that others can too, unless *options* say rw."""
    mountpoint.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "xipfs", "mount", image, mountpoint, "-o", f"ro,{options}"],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield mountpoint
    finally:
        subprocess.run([sys.executable, "-m", "xipfs", "umount", mountpoint], check=True)


@contextlib.contextmanager
def bare(file: Path, mountpoint: Path, cache: str) -> Iterator[Path]:
    """Serve *file* by the bare server for the block."""
    mountpoint.mkdir(exist_ok=True)
    server = subprocess.Popen([sys.executable, _TOOLS / "bare_server.py", file, mountpoint, cache])
    while not os.path.ismount(mountpoint):
        if server.poll() is not None:
            raise typer.Exit(1)
        time.sleep(0.01)
    try:
        yield mountpoint
    finally:
        subprocess.run(["fusermount3", "-u", mountpoint], check=True)
        server.wait()


def report(results: list[Comparison], as_json: bool) -> None:
    """Print a table, or JSON."""
    if as_json:
        print(json.dumps([result._asdict() for result in results], indent=1))
        return
    table = Table("measurement", "xipfs", "peer", "", "ratio")
    for result in results:
        table.add_row(
            result.name,
            f"{result.ours:,.4g} {result.unit}",
            f"{result.peer:,.4g} {result.unit}",
            result.peer_name,
            f"{result.ratio:.2f}",
        )
    Console().print(table)


def random_reads(path: Path, nr_reads: int = 4000) -> float:
    """Return reads a second of distinct 4 KiB pages that nobody has cached."""
    _drop_cache(path)
    pages = random.Random(SEED).sample(range(READ_FILE_SIZE_BYTES // PAGE_SIZE), nr_reads)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    start = time.perf_counter()
    for page in pages:
        os.pread(fd, PAGE_SIZE, page * PAGE_SIZE)
    elapsed_s = time.perf_counter() - start
    os.close(fd)
    return nr_reads / elapsed_s


def sequential_reads(path: Path) -> float:
    """Return MB/s of reading the whole file by 1 MiB, nothing of it cached."""
    _drop_cache(path)
    buffer = mmap.mmap(-1, 1 << 20)  # page-aligned: the kernel cuts other requests in two
    fd = os.open(path, os.O_RDONLY)
    start = time.perf_counter()
    while os.readv(fd, [buffer]):
        pass
    elapsed_s = time.perf_counter() - start
    os.close(fd)
    return READ_FILE_SIZE_BYTES / elapsed_s / 1e6


def _drop_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
