"""Plays recipes that nobody wrote to all readers, in processes that may hang, crash and swell.

    tools/fuzz --inputs 1000000 --jobs 2            what nobody thought of
    tools/fuzz --replay "tiny | state.flags=0"      one recipe, to all readers or --reader

An input is one recipe given to one reader. Of each process the parent sees in shared memory what it
is at; one that is at it for too long is killed, and what killed it is told. Memory is bounded by
RLIMIT_DATA and RLIMIT_AS, so that a reader which takes too much fails.

Guided by coverage: of every fourth input the lines of xipfs that it runs are noted (sys.settrace);
one that reaches a new line is kept, and the next are made from those. The other three run at full
speed.
"""

import argparse
import collections
import gc
import json
import mmap
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import xipfs
from tests.kit.readers import READERS, bounded, read
from tests.kit.recipe import bake, invent

__all__ = ["CORPUS", "Finding", "Outcome", "fuzz", "replay"]

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus.txt"
"""Recipes, one a line, that between them reach what recipes were found to reach."""

INPUT_TIMEOUT_S = 20.0
"""Far more than the slowest reader takes, on a machine that is loaded."""

MEMORY_BYTES_MAX = 256 << 20
ADDRESS_BYTES_MAX = 4 << 30
"""The image is mapped as well, and a machine of the mount has its tiers."""

TRACE_EVERY = 4
_SLOT_BYTES = 4096
_WEIGHTS = {"mount": 1, "cp": 3, "rename": 3}
_WEIGHT = 10
_ROOM = str(Path(xipfs.__file__).parent)


@dataclass(frozen=True, slots=True)
class Finding:
    """A bug: what the reader did with the recipe, at `where` in the code."""

    reader: str
    recipe: str
    where: str
    text: str

    def __str__(self) -> str:
        again = f"tools/fuzz --reader {self.reader!r} --replay {self.recipe!r}"
        return f"{self.where}\n{self.text}\n    {again}"


@dataclass(slots=True)
class Outcome:
    """What came of it. nr_refused: inputs that ended in an error's line, as they should."""

    nr_inputs: collections.Counter[str] = field(default_factory=collections.Counter)
    nr_refused: int = 0
    nr_lines: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)


class Lines:
    """The lines of xipfs that were run while the block ran, in all blocks."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int]] = set()

    def __enter__(self) -> "Lines":
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, _event: str, _arg: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_ROOM) else None

    def _line(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line":
            self.seen.add((frame.f_code, frame.f_lineno))
        return self._line


def play(reader: str, recipe: str, path: Path, fd: int) -> tuple[bool, Finding | None]:
    """Give one recipe to one reader; return whether it was refused, and a bug if that is one."""
    bake(recipe).write(fd)
    try:
        return read(reader, path) is not None, None
    except Exception as exc:
        sys.settrace(None)
        frames = [
            frame
            for frame in traceback.extract_tb(exc.__traceback__)
            if frame.filename.startswith(_ROOM) and not frame.filename.endswith("/errors.py")
        ]
        last = frames[-1] if frames else traceback.extract_tb(exc.__traceback__)[-1]
        file = os.path.relpath(last.filename, Path(_ROOM).parent)
        where = f"{file}:{last.name}: {type(exc).__name__}"
        text = "".join(traceback.format_exception(exc)[-8:])
        return False, Finding(reader, recipe, where, text)


def replay(recipes: Iterable[str], readers: Iterable[str] = READERS) -> Outcome:
    """Give each of *recipes* to each of *readers*, here, without limits of memory and time."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory(dir=_memory()) as place, bounded():
        path = Path(place) / "nvram.img"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        for recipe in recipes:
            for reader in readers:
                _note(outcome, reader, *play(reader, recipe, path, fd))
        os.close(fd)
    return outcome


def _note(outcome: Outcome, reader: str, refused: bool, finding: Finding | None) -> None:
    outcome.nr_inputs[reader] += 1
    outcome.nr_refused += refused
    if finding is not None:
        outcome.findings.setdefault(finding.where, finding)


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


# Processes


class Slot:
    """What a worker is at, in memory that its parent sees: (inputs begun, reader, recipe)."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _SLOT_BYTES)

    def put(self, nr_begun: int, reader: str, recipe: str) -> None:
        text = json.dumps([nr_begun, reader, recipe]).encode()[: _SLOT_BYTES - 1]
        self._map[: len(text) + 1] = text + b"\0"

    def get(self) -> tuple[int, str, str]:
        text = self._map[:].split(b"\0", 1)[0]
        try:
            nr_begun, reader, recipe = json.loads(text)
        except ValueError:  # it is being written
            return -1, "", ""
        return nr_begun, reader, recipe


def _work(
    slot: Slot,
    report: int,
    nr_inputs: int,
    end_s: float,
    seed: int,
    corpus: list[str],
    names: list[str],
) -> None:
    """Be a worker: play, and write one JSON object to *report*."""
    gc.freeze()  # what was imported need not be looked at again
    rng = random.Random(seed)
    outcome, lines = Outcome(), Lines()
    pool = list(corpus)
    weights = [_WEIGHTS.get(name, _WEIGHT) for name in names]
    in_use = int(Path("/proc/self/statm").read_text().split()[5]) * mmap.PAGESIZE
    for which, limit in (
        (resource.RLIMIT_DATA, in_use + MEMORY_BYTES_MAX),
        (resource.RLIMIT_AS, ADDRESS_BYTES_MAX),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (limit, limit))
    with tempfile.TemporaryDirectory(dir=_memory()) as place, bounded():
        path = Path(place) / "nvram.img"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        for recipe in corpus:  # what is known already is not news
            with lines:
                play("ls", recipe, path, fd)
        for number in range(nr_inputs):
            if time.monotonic() > end_s:
                break
            recipe = invent(rng, pool)
            reader = rng.choices(names, weights)[0]
            slot.put(number + 1, reader, recipe)
            if number % TRACE_EVERY:
                result = play(reader, recipe, path, fd)
            else:
                nr_known = len(lines.seen)
                with lines:
                    result = play(reader, recipe, path, fd)
                if len(lines.seen) > nr_known:
                    pool.append(recipe)
                    outcome.kept.append(recipe)
            _note(outcome, reader, *result)
    findings = [[f.reader, f.recipe, f.where, f.text] for f in outcome.findings.values()]
    answer = [outcome.nr_inputs, outcome.nr_refused, len(lines.seen), findings, outcome.kept]
    with os.fdopen(report, "w") as file:
        json.dump(answer, file)


class Worker:
    """A process that plays. seed: another one, other recipes."""

    def __init__(
        self, nr_inputs: int, end_s: float, seed: int, corpus: list[str], names: list[str]
    ) -> None:
        self.nr_left = nr_inputs
        self.seed = seed
        self.slot = Slot()
        self._begun = (0, time.monotonic())
        self._report, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._report)
                _work(self.slot, write, nr_inputs, end_s, seed, corpus, names)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(write)

    def hangs(self) -> bool:
        """Is it at the same input for too long?"""
        nr_begun, now_s = self.slot.get()[0], time.monotonic()
        if nr_begun != self._begun[0]:
            self._begun = (nr_begun, now_s)
        return now_s - self._begun[1] > INPUT_TIMEOUT_S

    def ended(self) -> int | None:
        """Its wait status, None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return status if pid else None

    def outcome(self) -> Outcome:
        with os.fdopen(self._report) as file:
            nr_inputs, nr_refused, nr_lines, findings, kept = json.load(file)
        by_place = {where: Finding(*rest[:2], where, rest[2]) for *rest, where in _placed(findings)}
        return Outcome(collections.Counter(nr_inputs), nr_refused, nr_lines, by_place, kept)


def _placed(findings: list[list[str]]) -> list[tuple[str, str, str, str]]:
    return [(reader, recipe, text, where) for reader, recipe, where, text in findings]


def fuzz(
    nr_inputs: int,
    *,
    nr_jobs: int = 1,
    seed: int = 0,
    seconds: float = 1e9,
    corpus: list[str],
    readers: Iterable[str] = READERS,
) -> Outcome:
    """Play so many inputs to *readers*, in so many processes, for so long at most."""
    names = list(readers)
    end_s = time.monotonic() + seconds
    total = Outcome()
    workers = [
        Worker(nr_inputs // nr_jobs, end_s, seed * 1000 + i, corpus, names) for i in range(nr_jobs)
    ]
    while workers:
        time.sleep(0.05)
        for worker in list(workers):
            status = worker.ended()
            if status is None and worker.hangs():
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
                status = int(signal.SIGKILL)
            if status is None:
                continue
            workers.remove(worker)
            if status == 0:
                _add(total, worker.outcome())
                continue
            if not os.WIFSIGNALED(status):
                raise RuntimeError("a worker of the fuzzer failed by itself, see above")
            # What it had counted is lost with it; another one goes on behind the bad input.
            nr_begun, reader, recipe = worker.slot.get()
            end = (
                "hangs"
                if status == signal.SIGKILL
                else f"dies of {signal.Signals(os.WTERMSIG(status)).name}"
            )
            total.findings.setdefault(
                f"{reader} {end}", Finding(reader, recipe, f"{reader} {end}", "")
            )
            total.nr_inputs[reader] += max(nr_begun, 0)
            nr_left = worker.nr_left - nr_begun
            if nr_left > 0:
                workers.append(Worker(nr_left, end_s, worker.seed + 500, corpus, names))
    return total


def _add(total: Outcome, part: Outcome) -> None:
    total.nr_inputs += part.nr_inputs
    total.nr_refused += part.nr_refused
    total.nr_lines = max(total.nr_lines, part.nr_lines)
    total.findings = part.findings | total.findings
    total.kept += part.kept


def distill(recipes: Iterable[str]) -> list[str]:
    """Return those of *recipes* that reach all lines which any of them reaches, the short first."""
    lines = Lines()
    needed = []
    with tempfile.TemporaryDirectory(dir=_memory()) as place, bounded():
        path = Path(place) / "nvram.img"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        for recipe in sorted(set(recipes), key=lambda text: (len(text), text)):
            nr_known = len(lines.seen)
            for reader in READERS.keys() - {"mount"}:  # which takes long, and reaches little more
                with lines:
                    play(reader, recipe, path, fd)
            if len(lines.seen) > nr_known:
                needed.append(recipe)
        os.close(fd)
    return needed


def read_corpus(path: Path = CORPUS) -> list[str]:
    """Return the recipes of a file, one a line; `#` begins a comment."""
    lines = path.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def main() -> int:
    """Be tools/fuzz; return 1 if there was a finding."""
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--inputs", type=int, default=1_000_000, help="how many (default 1,000,000)"
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="how long at most")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes (default: cores)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs")
    parser.add_argument("--keep", type=Path, help="write what reached new lines there, distilled")
    parser.add_argument("--replay", metavar="RECIPE", help="play this one")
    parser.add_argument("--reader", choices=list(READERS), help="to this reader only")
    options = parser.parse_args()
    start_s = time.monotonic()
    corpus = read_corpus()
    readers = [options.reader] if options.reader else list(READERS)
    if options.replay is not None:
        outcome = replay([options.replay], readers)
    else:
        outcome = fuzz(
            options.inputs,
            nr_jobs=options.jobs,
            seed=options.seed,
            seconds=options.seconds,
            corpus=corpus,
            readers=readers,
        )
    seconds = time.monotonic() - start_s
    for finding in outcome.findings.values():
        print(f"\n{finding}")
    nr_inputs = outcome.nr_inputs.total()
    cpu_s = sum(os.times()[:4])
    readers = ", ".join(f"{name} {count:,}" for name, count in sorted(outcome.nr_inputs.items()))
    print(
        f"{nr_inputs:,} inputs in {seconds:.0f} s, {cpu_s:.0f} s of CPU "
        f"({nr_inputs / cpu_s:.0f} a second): {readers}; "
        f"{outcome.nr_refused:,} refused, {outcome.nr_lines:,} lines of xipfs reached, "
        f"{len(outcome.kept)} recipes kept, {len(outcome.findings)} bugs",
        flush=True,
    )
    if options.keep:
        options.keep.write_text("".join(f"{r}\n" for r in distill(corpus + outcome.kept)))
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
