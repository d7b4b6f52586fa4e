"""The explorer: one recorded workload, cut at every moment, each state judged.

    recording = player.play(workload, ..)            what reached the device, and the trees between
    explorer = Explorer(judge, image)
    failures = explorer.explore(recording)           at each cut, some states
    explorer.tally                                   what was looked at

There is a cut before each fence, where most is in flight, and one behind the end of each operation,
where its promises begin to hold. A crash at any other moment leaves one of the states of the next
cut, with fewer stores: nothing is durable before its fence.

A state is recovered if no state of the same bytes was. If recovery then makes bytes that were
examined before, but for pages that nobody reads, the examination would see the same: only the
oracle, whose answer depends on the moment, looks again. docs/CRASH.md says which pages these are.
"""

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from xipfs.crash.enumerator import Choice, Cut
from xipfs.crash.operations import Operation
from xipfs.crash.oracle import Expected, History, complaints
from xipfs.crash.persistence import LineNumber, Persistence
from xipfs.crash.recorder import Event, Fence, Mark, MarkKind
from xipfs.crash.scratch import ScratchImage
from xipfs.crash.snapshot import Tree
from xipfs.errors import BugError, InvalidArgumentError, XipfsError
from xipfs.phys.nvram import CACHE_LINE_SIZE_BYTES, NvramDevice

__all__ = [
    "Crashes",
    "Explorer",
    "Failure",
    "Judge",
    "Moment",
    "Outcome",
    "Recording",
    "Replay",
    "Tally",
]

T = TypeVar("T")

Crashes: TypeAlias = tuple[tuple[int, Choice], ...]
"""(number of the event before which power was lost, what survived): of the workload, and perhaps of
the recovery after that, too."""

_RECOVERY_SHARE = 0.0625
"""Of so many moments the recovery of one state is cut, too."""
_NR_RECOVERY_STATES = 6
"""Most states of one cut of a recovery."""

_NR_FAILURES_MAX = 3
"""Of one workload: the first tells, the hundredth does not."""


class Recording(NamedTuple):
    """A workload that was played.

    events: what reached the device, with marks. trees: the tree before the first operation, and
    after each. inos: which inode each operation was on, 0 for none. complaints: what was wrong
    without any crash. failed: numbers of the operations that could not be done.
    """

    operations: tuple[Operation, ...]
    events: list[Event]
    trees: list[Tree]
    inos: list[int]
    complaints: tuple[str, ...] = ()
    failed: frozenset[int] = frozenset()


class Moment(NamedTuple):
    """A place to cut. number: of the event before which power is lost.

    nr_begun: operations that were called before. allowed: what a crash may leave. where: in words.
    """

    number: int
    nr_begun: int
    medium: Persistence
    allowed: list[Expected]
    where: str


class Outcome(NamedTuple):
    """What came of a state. tree: None if there is none. problems: none for a sound one."""

    tree: Tree | None
    problems: tuple[str, ...]


class Judge(Protocol[T]):
    """What knows the filesystem under test: recovery, and whether the result is sound."""

    def recover(self, nvram: NvramDevice) -> T:
        """Mount what a crash has left. Raises: XipfsError, BugError when that fails."""
        ...

    def unread_pages(self, mounted: T) -> Collection[int]:
        """Return the pages whose bytes nobody can see who examines this filesystem."""
        ...

    def examine(self, mounted: T) -> Outcome:
        """Check all that can be checked, and use it. It is of no use afterwards."""
        ...

    def abandon(self, mounted: T) -> None:
        """Forget a filesystem that will not be looked at."""
        ...


class Failure(NamedTuple):
    """A state that is not sound. crashes: how it came about; where: in which operation."""

    crashes: Crashes
    where: str
    problems: tuple[str, ...]


class Replay(NamedTuple):
    """A state that was made again. image: before recovery. nr_lines: changed by the crash."""

    where: str
    outcome: Outcome
    image: bytes
    nr_lines: int


@dataclass(slots=True)
class Tally:
    """What was looked at.

    nr_states: states of new bytes, recovered and judged; nr_examined of them by all checks, for
    the others these bytes had been checked before. nr_pruned: states of bytes seen before, not
    counted. nr_sampled_cuts: moments of which not all states were made.
    """

    nr_workloads: int = 0
    nr_operations: int = 0
    nr_cuts: int = 0
    nr_sampled_cuts: int = 0
    nr_states: int = 0
    nr_examined: int = 0
    nr_pruned: int = 0

    def __iadd__(self, other: "Tally") -> "Tally":
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


class Explorer(Generic[T]):
    """Judges states of workloads that start from *image*, and remembers what it has seen.

    nr_states_max: of one cut. seed: of the samples. tally: of all workloads so far. keys: state ->
    what recovery made of it, both as `ScratchImage.key`.
    """

    def __init__(
        self, judge: Judge[T], image: bytes, *, nr_states_max: int = 64, seed: int = 0
    ) -> None:
        self.tally = Tally()
        self.keys: dict[int, int] = {}
        self._judge = judge
        self._image = image
        self._nr_states_max = nr_states_max
        self._seed = seed
        self._scratch = ScratchImage(image)
        self._outcomes: dict[int, Outcome] = {}

    def explore(self, recording: Recording, nr_known: int = 0) -> list[Failure]:
        """Judge the states of all cuts behind operation *nr_known*.

        Returns: the first of those that are not sound.
        """
        tally = self.tally
        tally.nr_workloads += 1
        tally.nr_operations += len(recording.operations) - nr_known
        failures: list[Failure] = []
        if recording.complaints:
            failures.append(Failure((), "without a crash", recording.complaints))
        for moment in self._moments(recording):
            if moment.nr_begun <= nr_known and (nr_known or tally.nr_workloads > 1):
                continue  # also the mount, which is the same for all workloads
            cut = Cut(moment.medium)
            tally.nr_cuts += 1
            tally.nr_sampled_cuts += cut.nr_choices > self._nr_states_max
            choices = list(cut.choices(nr_states_max=self._nr_states_max, seed=self._seed))
            for choice in choices:
                self._make(cut.changes(choice))
                self._note(failures, ((moment.number, choice),), moment, "")
            rng = random.Random(f"{self._seed} {moment.number} {len(choices)}")
            if rng.random() < _RECOVERY_SHARE:
                self._explore_recovery(failures, cut, rng.choice(choices), moment)
            if len(failures) >= _NR_FAILURES_MAX:
                break
        return failures[:_NR_FAILURES_MAX]

    def replay(self, recording: Recording, crashes: Crashes) -> Replay:
        """Judge one state of a workload. Raises: InvalidArgumentError when there is none such."""
        if not crashes:
            outcome = Outcome(None, recording.complaints)
            return Replay("without a crash", outcome, self._image, 0)
        (number, choice), *later = crashes
        for moment in self._moments(recording):
            if moment.number == number:
                changes = Cut(moment.medium).changes(choice)
                if later:
                    [(number, choice)] = later
                    found = dict(self._recovery_cuts(changes))
                    if number not in found:
                        break
                    done, cut = found[number]
                    changes = [*changes, *done, *cut.changes(choice)]
                self._make(changes)
                image = self._scratch.nvram.load(0, len(self._image))
                return Replay(moment.where, self._outcome(moment.allowed), image, len(changes))
        raise InvalidArgumentError(f"there is no cut at {number}: was it made by another version?")

    def _make(self, changes: list[tuple[int, bytes]]) -> None:
        """Put a state on the scratch image."""
        self._scratch.reset()
        self._scratch.put(changes)

    def _note(self, failures: list[Failure], crashes: Crashes, moment: Moment, where: str) -> None:
        """Judge the state that was made, and note it if it is not sound."""
        problems = self._outcome(moment.allowed).problems
        if problems:
            failures.append(Failure(crashes, f"{where}{moment.where}", problems))

    def _explore_recovery(
        self, failures: list[Failure], cut: Cut, choice: Choice, moment: Moment
    ) -> None:
        """Judge what a crash in the recovery of one state leaves (P8)."""
        changes = cut.changes(choice)
        for number, (done, inner) in self._recovery_cuts(changes):
            self.tally.nr_cuts += 1
            self.tally.nr_sampled_cuts += inner.nr_choices > _NR_RECOVERY_STATES
            for second in inner.choices(nr_states_max=_NR_RECOVERY_STATES, seed=self._seed):
                self._make([*changes, *done, *inner.changes(second)])
                crashes = ((moment.number, choice), (number, second))
                self._note(failures, crashes, moment, "in the recovery from a crash ")

    def _recovery_cuts(
        self, changes: list[tuple[int, bytes]]
    ) -> list[tuple[int, tuple[list[tuple[int, bytes]], Cut]]]:
        """Return the cuts of the recovery of a state.

        As (number of the fence, (lines that recovery had made durable, cut)).
        """
        self._make(changes)
        medium = Persistence(self._scratch.nvram.load(0, len(self._image)))
        with self._scratch.recording() as events:
            try:
                self._judge.abandon(self._judge.recover(self._scratch.nvram))
            except (XipfsError, BugError):
                return []  # the state itself was judged before
        durable: dict[LineNumber, bytes] = {}
        cuts = []
        for number, event in enumerate(events):
            if isinstance(event, Fence):
                done = [(line * CACHE_LINE_SIZE_BYTES, data) for line, data in durable.items()]
                cuts.append((number, (done, Cut(medium))))
            for line in medium.apply(event):
                durable[line] = medium.durable_line(line)
        return cuts

    def close(self) -> None:
        """Give the memory back."""
        self._scratch.close()

    def _moments(self, recording: Recording) -> Iterator[Moment]:
        """Yield all cuts of *recording*, with the scratch image holding what is durable there."""
        medium = Persistence(self._image)
        history = History(recording.trees[0])
        changed: set[LineNumber] = set()
        ever_changed: set[LineNumber] = set()
        operation: Operation | None = None
        nr_begun, nr_ended, ino = 0, 0, 0
        try:
            for number, event in enumerate(recording.events):
                ends = isinstance(event, Mark) and event.kind is MarkKind.END
                if ends and operation is not None:
                    nr_ended += 1
                    has_failed = nr_ended - 1 in recording.failed
                    history.end(operation, recording.trees[nr_ended], ino, has_failed=has_failed)
                    operation = None
                elif isinstance(event, Mark):
                    operation = recording.operations[event.number]
                    ino = recording.inos[event.number]
                    nr_begun += 1
                if ends or isinstance(event, Fence):
                    self._scratch.rebase(medium.durable, changed)
                    changed.clear()
                    if operation is None:
                        allowed = history.allowed()
                        done = recording.operations[nr_ended - 1] if nr_ended else None
                        where = f"after {done}" if done else "in the mount"
                    else:
                        allowed = history.allowed(operation, recording.trees[nr_begun], ino)
                        where = f"in {operation}"
                    yield Moment(number, nr_begun, medium, allowed, where)
                lines = medium.apply(event)
                changed.update(lines)
                ever_changed.update(lines)
        finally:
            self._scratch.rebase(bytearray(self._image), ever_changed)

    def _outcome(self, allowed: list[Expected]) -> Outcome:
        """Judge the state on the scratch image, as far as its like was not judged before."""
        tally, judge, scratch = self.tally, self._judge, self._scratch
        key = scratch.key()
        recovered_key = self.keys.get(key)
        if recovered_key is not None:
            tally.nr_pruned += 1
            return _with_oracle(self._outcomes[recovered_key], allowed)
        tally.nr_states += 1
        try:
            mounted = judge.recover(scratch.nvram)
        except (XipfsError, BugError) as exc:
            self.keys[key] = key
            self._outcomes[key] = Outcome(None, (f"recovery: {exc}",))
            return self._outcomes[key]
        recovered_key = self.keys[key] = scratch.key(but=judge.unread_pages(mounted))
        outcome = self._outcomes.get(recovered_key)
        if outcome is None:
            tally.nr_examined += 1
            outcome = self._outcomes[recovered_key] = judge.examine(mounted)
        else:
            judge.abandon(mounted)
        return _with_oracle(outcome, allowed)


def _with_oracle(outcome: Outcome, allowed: list[Expected]) -> Outcome:
    if outcome.tree is None:
        return outcome
    return outcome._replace(problems=(*outcome.problems, *complaints(outcome.tree, allowed)))
