"""Campaigns: many workloads, on all cores, and what came of them.

    plan = Plan(seqs=(1, 2), nr_fuzzed=100)
    report = run_campaign(plan, progress)
    report.tally, report.failures, report.states_per_cpu_s

A piece of work is the rest of seq-n behind one first element, or some fuzzed workloads: what its
workloads have in common is seen by one process, which remembers. States that two processes have
judged count once.
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs._version import __version__
from xipfs.crash.explorer import Explorer, Tally
from xipfs.crash.judge import FilesystemJudge
from xipfs.crash.player import play
from xipfs.crash.spec import Spec
from xipfs.crash.workloads import ELEMENTS, Workload, base_entries, fuzz, seq, with_moves
from xipfs.errors import InvalidArgumentError
from xipfs.fs.mkfs import mkfs
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.superblock import decode_superblock
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = [
    "IMAGE_SIZE_BYTES",
    "CampaignProgress",
    "CampaignReport",
    "FoundFailure",
    "Piece",
    "Plan",
    "Replayed",
    "base_image",
    "new_explorer",
    "read_report",
    "replay_spec",
    "run_campaign",
    "workloads_of",
]

IMAGE_SIZE_BYTES = 1 << 19

_BASE_NS = 1_000_000_000
_FORMER = b"formerly"
_NR_FORMER = PAGE_SIZE // len(_FORMER)
_NR_FUZZED_PER_PIECE = 8
_FORMAT = 1
"""Of saved reports."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to look at.

    seqs: lengths n of which all of seq-n is played. share: of these workloads, chosen by *seed*.
    nr_fuzzed: random workloads of nr_operations each. moves_pages: with pages moving between the
    tiers, by the seed, between the operations. nr_states_max: of one cut. nr_jobs: processes.
    """

    seqs: tuple[int, ...] = (1,)
    share: float = 1.0
    nr_fuzzed: int = 0
    nr_operations: int = 20
    moves_pages: bool = False
    nr_states_max: int = 64
    seed: int = 0
    nr_jobs: int = 1


class Piece(NamedTuple):
    """Some workloads of a plan. kind: "seq" or "fuzz"; first: of the first elements, or seeds."""

    kind: str
    length: int
    first: int


class CampaignProgress(NamedTuple):
    """How far a campaign is: pieces done of all, states judged, failures found."""

    done: int
    total: int
    nr_states: int
    nr_failures: int


class FoundFailure(NamedTuple):
    """A state that is not sound. spec: replays it; where: in which operation."""

    spec: str
    where: str
    problems: tuple[str, ...]


@dataclass(slots=True)
class CampaignReport:
    """What came of a plan. cpu_s: of all processes together; elapsed_s: on the wall."""

    plan: Plan
    tally: Tally = field(default_factory=Tally)
    failures: list[FoundFailure] = field(default_factory=list)
    cpu_s: float = 0.0
    elapsed_s: float = 0.0

    @property
    def states_per_cpu_s(self) -> float:
        """New states recovered and judged by one core in a second."""
        return self.tally.nr_states / self.cpu_s if self.cpu_s else 0.0

    def facts(self) -> dict[str, Any]:
        """Return all of it for `json`."""
        return {
            "format": _FORMAT,
            "xipfs": __version__,
            "plan": asdict(self.plan),
            "tally": asdict(self.tally),
            "cpu_s": round(self.cpu_s, 2),
            "elapsed_s": round(self.elapsed_s, 2),
            "states_per_cpu_s": round(self.states_per_cpu_s),
            "failures": [found._asdict() for found in self.failures],
        }


def base_image() -> bytes:
    """Return the image that every workload starts from; always the same bytes.

    Its free pages are as if files had been there: who shows them to anybody is found out.
    """
    with tempfile.TemporaryDirectory(prefix="xipfs-crash-") as directory:
        path = Path(directory) / "image"
        mkfs(path, base_entries(), now_ns=_BASE_NS, size_bytes=IMAGE_SIZE_BYTES, reproducible=True)
        image = bytearray(path.read_bytes())
    disk = decode_superblock(image[:PAGE_SIZE], "page 0")
    bitmap = image[disk.bitmap_block << PAGE_SHIFT :][: disk.nr_pages // 8]
    for block in range(disk.nr_pages):
        if not bitmap[block // 8] >> block % 8 & 1:
            image[block << PAGE_SHIFT : (block + 1) << PAGE_SHIFT] = _FORMER * _NR_FORMER
    return bytes(image)


def workloads_of(plan: Plan, piece: Piece) -> Iterator[Workload]:
    """Yield the workloads of one piece of *plan*."""
    if piece.kind == "fuzz":
        for number in range(piece.first, min(piece.first + _NR_FUZZED_PER_PIECE, plan.nr_fuzzed)):
            seed = plan.seed * 1_000_003 + number
            yield fuzz(seed, nr_operations=plan.nr_operations, moves_pages=plan.moves_pages)
        return
    rng = np.random.default_rng([plan.seed, piece.length, piece.first])
    for workload in seq(piece.length, first=piece.first):
        if rng.random() < plan.share:
            move_seed = int(rng.integers(1000))
            yield with_moves(workload, move_seed) if plan.moves_pages else workload


def run_campaign(
    plan: Plan, progress: Callable[[CampaignProgress], None] | None = None
) -> CampaignReport:
    """Play and judge all workloads of *plan*. Raises: InvalidArgumentError if it has none."""
    pieces = [Piece("seq", length, i) for length in plan.seqs for i in range(len(ELEMENTS))]
    pieces += [Piece("fuzz", 0, i) for i in range(0, plan.nr_fuzzed, _NR_FUZZED_PER_PIECE)]
    if not pieces:
        raise InvalidArgumentError("nothing to do: neither seq nor fuzz")
    report = CampaignReport(plan)
    keys: list[NDArray[np.uint64]] = []
    started_s = time.monotonic()

    def add(result: _Result) -> None:
        report.tally += result.tally
        report.failures += result.failures
        report.cpu_s += result.cpu_s
        keys.append(result.keys)
        if progress is not None:
            nr_states, nr_failures = report.tally.nr_states, len(report.failures)
            progress(CampaignProgress(len(keys), len(pieces), nr_states, nr_failures))

    if plan.nr_jobs == 1:
        for piece in pieces:
            add(_work(plan, piece))
    else:
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(plan.nr_jobs, mp_context=context) as pool:
            for future in as_completed([pool.submit(_work, plan, piece) for piece in pieces]):
                add(future.result())
    nr_distinct = len(np.unique(np.concatenate(keys)))
    report.tally.nr_pruned += report.tally.nr_states - nr_distinct
    report.tally.nr_states = nr_distinct
    report.elapsed_s = time.monotonic() - started_s
    report.failures.sort()
    return report


def read_report(text: str) -> dict[str, Any]:
    """Read what `CampaignReport.facts` wrote as JSON. Raises: InvalidArgumentError."""
    try:
        facts = json.loads(text)
    except ValueError as exc:
        raise InvalidArgumentError(f"no report: {exc}") from None
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
        raise InvalidArgumentError("no report of `xipfs crash run --json`, or of another version")
    return facts


class Replayed(NamedTuple):
    """One state, made again. image: as the crash left it. lines: changed, of those in flight."""

    where: str
    problems: tuple[str, ...]
    image: bytes
    lines: int


def replay_spec(spec: Spec) -> Replayed:
    """Play a workload again and judge one state of it.

    Raises: InvalidArgumentError when it has no such state.
    """
    image = base_image()
    explorer = new_explorer(image)
    try:
        found = explorer.replay(play(image, spec.operations), spec.crashes)
        return Replayed(found.where, found.outcome.problems, found.image, found.nr_lines)
    finally:
        explorer.close()


def new_explorer(image: bytes, *, nr_states_max: int = 64, seed: int = 0) -> Explorer[SuperBlock]:
    """Return what judges states of workloads that start from *image*."""
    disk = decode_superblock(image[:PAGE_SIZE], "page 0")
    return Explorer(FilesystemJudge(disk), image, nr_states_max=nr_states_max, seed=seed)


class _Result(NamedTuple):
    tally: Tally
    failures: list[FoundFailure]
    keys: NDArray[np.uint64]
    cpu_s: float


def _work(plan: Plan, piece: Piece) -> _Result:
    started_s = time.process_time()
    image = base_image()
    explorer = new_explorer(image, nr_states_max=plan.nr_states_max, seed=plan.seed)
    failures = []
    for workload in workloads_of(plan, piece):
        recording = play(image, workload.operations)
        for found in explorer.explore(recording, workload.nr_known):
            spec = Spec(workload.operations, found.crashes)
            failures.append(FoundFailure(str(spec), found.where, found.problems))
    explorer.close()
    keys = np.fromiter(explorer.keys, np.uint64, len(explorer.keys))
    return _Result(explorer.tally, failures, keys, time.process_time() - started_s)
