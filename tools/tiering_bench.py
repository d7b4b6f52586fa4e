"""Live tiering, measured: what the daemon sees of a program's reads, and what that and moves cost.

Each command of this file is one of `tools/bench`.
"""

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from measure import (
    READ_FILE_SIZE_BYTES,
    SEED,
    Comparison,
    compare,
    random_reads,
    report,
    sequential_reads,
    workspace,
    xipfs_mount,
)
from numpy.typing import NDArray
from reader import HOT_RATIO, NR_BLOCK, WORKLOADS
from rich.console import Console
from rich.table import Table

from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import walk_tree
from xipfs.fuse.client import ask
from xipfs.units import PAGE_SIZE

__all__ = ["record", "sampling", "tiering"]

_TOOLS = Path(__file__).resolve().parent
_NR_PAGES = READ_FILE_SIZE_BYTES // PAGE_SIZE
_NR_HOT_PAGES = int(_NR_PAGES * HOT_RATIO)
_DRIFT_WINDOW_S = 3.0
_NR_SNAPSHOTS = 16


class HotSet(NamedTuple):
    """What one run has shown; ratios, means over the second half of the run.

    precision, recall: of the pages in RAM against as many that the program read most.
    captured: accesses to pages that were in RAM.
    time: accesses a second against those of the same program on a mount with cache=full and no
    policy, before and after. reads: accesses a second.
    """

    cache: str
    workload: str
    how: str
    policy: str
    precision: float
    recall: float
    captured: float
    time: float
    reads: float


def sampling(
    caches: Annotated[list[str], typer.Option("--cache")] = ["none", "sampled", "full"],  # noqa: B006
    workloads: Annotated[list[str], typer.Option("--workload")] = list(WORKLOADS),  # noqa: B006
    hows: Annotated[list[str], typer.Option("--how", help="read or mmap.")] = ["read", "mmap"],  # noqa: B006
    policies: Annotated[list[str], typer.Option("--policy")] = ["second_chance"],  # noqa: B006
    seconds: Annotated[int, typer.Option(help="Length of each run.")] = 40,
    options: Annotated[str, typer.Option(help="More options of the mount.")] = "",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What is in RAM against what a program did read most, and what its reads cost.

    The RAM tier has room for just the hot set, 5 % of 128 MiB. The same program runs before and
    after on a mount that only caches: the mean of both is what its speed is compared with.
    """
    results = []
    with workspace() as work:
        image = _make_image(work, "image")
        for policy in policies:
            for workload in workloads:
                for how in hows:
                    for cache in caches:
                        if cache == "none" and how == "mmap" and "read" in hows:
                            continue  # maps go through the page cache and are not seen
                        mounted = f"cache={cache},policy={policy},{options}"
                        figures = _run(work, image, mounted, workload, how, seconds)
                        results.append(HotSet(cache, workload, how, policy, *figures))
                        if not as_json:
                            print(*results[-1], file=sys.stderr)
    if as_json:
        print(json.dumps([result._asdict() for result in results], indent=1))
        return
    table = Table(*HotSet._fields)
    for result in results:
        table.add_row(*(x if isinstance(x, str) else f"{x:,.2f}" for x in result))
    Console().print(table)


def _run(
    work: Path, image: Path, options: str, workload: str, how: str, seconds: int
) -> tuple[float, ...]:
    ram = f"ram={_NR_HOT_PAGES * PAGE_SIZE}"
    with (
        xipfs_mount(image, work / "ours", f"{ram},{options}") as ours,
        xipfs_mount(image, work / "full", "cache=full,policy=none") as full,
    ):
        log = work / "log.npz"
        half_s = seconds / 2
        before = _late_rate(_read(full, workload, how, half_s, log))
        snapshots = []
        program = _start(ours, workload, how, seconds, log)
        while program.poll() is None:
            # Seldom: the daemon needs a tenth of a second for an answer.
            time.sleep(seconds / _NR_SNAPSHOTS)
            snapshots.append((time.monotonic(), _in_ram(ours)))
        if program.wait():
            raise typer.Exit(1)
        with np.load(log) as loaded:
            found = dict(loaded)
        rate = _late_rate(found)
        after = _late_rate(_read(full, workload, how, half_s, log))
    figures = _against_truth(found["page"], found["time_s"], snapshots, workload)
    return (*figures, 2 * rate / (before + after), rate)


def _start(
    mnt: Path, workload: str, how: str, seconds: float, log: Path
) -> "subprocess.Popen[bytes]":
    reader = _TOOLS / "reader.py"
    words: list[str | Path] = [
        sys.executable,
        reader,
        mnt / "image",
        workload,
        how,
        str(seconds),
        log,
    ]
    return subprocess.Popen(words)


def _read(mnt: Path, workload: str, how: str, seconds: float, log: Path) -> dict[str, NDArray[Any]]:
    if _start(mnt, workload, how, seconds, log).wait():
        raise typer.Exit(1)
    with np.load(log) as found:
        return dict(found)


def _late_rate(log: Mapping[str, NDArray[Any]]) -> float:
    """Return the accesses a second in the second half of a run."""
    times_s = log["time_s"]
    blocks = np.arange(len(times_s))
    half_s = (times_s[0] + times_s[-1]) / 2
    nr_blocks = blocks[-1] - np.interp(half_s, times_s, blocks)
    return float(nr_blocks * NR_BLOCK / (times_s[-1] - half_s))


def _against_truth(
    pages: NDArray[np.int32],
    times_s: NDArray[np.float64],
    snapshots: list[tuple[float, NDArray[np.bool_]]],
    workload: str,
) -> tuple[float, ...]:
    """Return precision, recall, and accesses in RAM, of the snapshots of the second half."""
    found = []
    counts = np.bincount(pages, minlength=_NR_PAGES)
    half_s = float(times_s[0] + times_s[-1]) / 2
    starts = np.arange(len(times_s)) * NR_BLOCK

    def accesses(from_s: float, to_s: float) -> NDArray[np.int32]:
        first, end = np.interp([from_s, to_s], times_s, starts).astype(np.int64)
        return pages[first:end]

    for (now_s, in_ram), (next_s, _) in itertools.pairwise(snapshots):
        if now_s < half_s or next_s > times_s[-1]:
            continue
        if workload == "drift":
            counts = np.bincount(accesses(now_s - _DRIFT_WINDOW_S, now_s), minlength=_NR_PAGES)
        hot = np.argsort(-counts, kind="stable")[:_NR_HOT_PAGES]
        nr_right = int(np.count_nonzero(in_ram[hot]))
        nr_in_ram = int(np.count_nonzero(in_ram))
        captured = float(np.mean(in_ram[accesses(now_s, next_s)]))
        found.append((nr_right / max(nr_in_ram, 1), nr_right / len(hot), captured))
    return tuple(np.mean(found, axis=0).tolist())


def _in_ram(mnt: Path) -> NDArray[np.bool_]:
    """Return for each page of the image's file whether it is in RAM."""
    in_ram = np.zeros(_NR_PAGES, np.bool_)
    answer = ask(mnt, "tier_map", ino=os.stat(mnt / "image").st_ino)
    for pgoff, nr_pages, tier, *_ in answer["runs"]:
        in_ram[pgoff : pgoff + nr_pages] = tier == "ram"
    return in_ram


def tiering(
    rounds: Annotated[int, typer.Option(help="Counted rounds of each measurement.")] = 7,
    rate: Annotated[int, typer.Option(help="Migrations a second.")] = 10_000,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Reads while pages migrate that nobody reads, against reads without."""
    with workspace() as work:
        image = _make_image(work, "image", "idle")
        ino = 0
        with xipfs_mount(image, work / "ours", "") as mnt:
            ino = os.stat(mnt / "idle").st_ino
        churn = f"policy={_TOOLS / 'churn.py'}:file={ino}:nr_pages={rate // 10},epoch=100"
        results = []
        for cache in ("none", "full"):
            with (
                xipfs_mount(image, work / "ours", f"cache={cache},{churn}") as ours,
                xipfs_mount(image, work / "peer", f"cache={cache},policy=none,epoch=100") as peer,
                (ours / "idle").open("rb"),
            ):
                results += _compare_reads(
                    f"cache={cache}", ours, peer, "no migrations", rounds, ours
                )
        report(results, as_json)


def record(
    rounds: Annotated[int, typer.Option(help="Counted rounds of each measurement.")] = 7,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Reads that `xipfs trace record` records, against reads that nobody records."""
    with workspace() as work:
        image = _make_image(work, "image")
        results = []
        for cache in ("none", "full"):
            with (
                xipfs_mount(image, work / "ours", f"cache={cache},policy=none") as ours,
                xipfs_mount(image, work / "peer", f"cache={cache},policy=none") as peer,
                _recorded(ours, work / "trace.parquet"),
            ):
                results += _compare_reads(f"cache={cache}", ours, peer, "not recorded", rounds)
        report(results, as_json)


def _compare_reads(
    name: str, ours: Path, peer: Path, peer_name: str, rounds: int, moving: Path | None = None
) -> list[Comparison]:
    results = []
    for what, unit, measure in (
        ("4 KiB random", "reads/s", partial(random_reads, nr_reads=16000)),
        ("1 MiB sequential", "MB/s", sequential_reads),
    ):
        start_s, nr_before = time.monotonic(), _nr_moved(ours)
        result = compare(
            f"{what}, {name}",
            unit,
            partial(measure, ours / "image"),
            partial(measure, peer / "image"),
            peer_name,
            rounds=rounds,
        )
        if moving is not None:
            rate = (_nr_moved(ours) - nr_before) / (time.monotonic() - start_s)
            result = result._replace(name=f"{result.name}, {rate:,.0f} migrations/s")
        results.append(result)
    return results


def _nr_moved(mnt: Path) -> int:
    vmstat = ask(mnt, "stat")["vmstat"]
    return int(vmstat["pgpromote_success"] + vmstat["pgdemote"])


@contextlib.contextmanager
def _recorded(mnt: Path, output: Path) -> Iterator[None]:
    recorder = subprocess.Popen(
        [sys.executable, "-m", "xipfs", "trace", "record", mnt, "-o", output],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert recorder.stderr is not None
    recorder.stderr.readline()  # it says that it records
    try:
        yield
    finally:
        recorder.terminate()
        recorder.wait()


def _make_image(work: Path, *names: str) -> Path:
    """Return an image with files of READ_FILE_SIZE_BYTES random bytes."""
    source = work / "source"
    source.mkdir()
    for i, name in enumerate(names):
        (source / name).write_bytes(random.Random(SEED + i).randbytes(READ_FILE_SIZE_BYTES))
    image = work / "a.img"
    mkfs(image, walk_tree(source), now_ns=0)
    return image
