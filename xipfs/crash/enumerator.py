"""Enumerator: the states that a crash can leave at one moment, all of them or a seeded sample.

    cut = Cut(medium)
    for choice in cut.choices(nr_states_max=64, seed=1):
        cut.changes(choice)                  [(byte offset, 64 bytes), ..] on top of what is durable
        format_choice(choice)                "1*3.0.2": for the line that replays it

A choice says for each line in flight, in the order of their numbers, which candidate it has:

    0                    what is durable
    1 .. n               the value after so many of its n stores
    n + 1 ..             tears: words of two values that follow each other

Where there are too many choices, the sample has, in turn: all lines old and all new; each point in
the order of the stores, which is what a killed program leaves; one line new or torn, all others
old; one line old or torn, all others new; and then lines at random.
"""

import itertools
import random
import re
from collections.abc import Iterator
from math import prod
from typing import TypeAlias

from xipfs.crash.persistence import WORD_SIZE_BYTES, LineNumber, Persistence, tear
from xipfs.errors import InvalidArgumentError
from xipfs.phys.nvram import CACHE_LINE_SIZE_BYTES

__all__ = ["Choice", "Cut", "format_choice", "parse_choice"]

Choice: TypeAlias = tuple[int, ...]

_NR_LINE_WORDS = CACHE_LINE_SIZE_BYTES // WORD_SIZE_BYTES
_NR_WORDS_ALL_TEARS = 3
"""A line of which so many words change is torn in every way; of more, in _NR_TEARS ways."""
_NR_TEARS = 4

_CHOICE_PART = re.compile(r"(\d{1,6})(?:\*(\d{1,6}))?", re.ASCII)


class Cut:
    """What a crash now can leave: *medium* as it is; later events are not seen.

    lines: numbers of the lines in flight, sorted. nr_choices: how many choices there are.
    """

    __slots__ = ("_candidates", "_newest", "_order", "lines", "nr_choices")

    def __init__(self, medium: Persistence) -> None:
        self.lines: list[LineNumber] = sorted(medium.in_flight)
        self._candidates = [_candidates(medium, number) for number in self.lines]
        self._newest = tuple(len(medium.in_flight[number].values) for number in self.lines)
        self._order = medium.order.copy()
        self.nr_choices = prod(len(candidates) for candidates in self._candidates)

    def choices(self, *, nr_states_max: int, seed: int) -> Iterator[Choice]:
        """Yield all choices if they are at most *nr_states_max*, else so many; none twice."""
        if self.nr_choices <= nr_states_max:
            yield from self._all()
            return
        seen: set[Choice] = set()
        share = max(nr_states_max // 5, 2)
        for source in (
            iter([(0,) * len(self.lines), self._newest]),
            _spread(self._prefixes(), share),
            _spread(self._odd_ones((0,) * len(self.lines)), share),
            _spread(self._odd_ones(self._newest), share),
            self._random(random.Random(f"{seed} {len(self.lines)} {self.nr_choices}")),
        ):
            for choice in source:
                if len(seen) >= nr_states_max:
                    return
                if choice not in seen:
                    seen.add(choice)
                    yield choice

    def changes(self, choice: Choice) -> list[tuple[int, bytes]]:
        """Return which lines of the durable image *choice* replaces: (byte offset, 64 bytes).

        Raises: InvalidArgumentError for a choice of another cut.
        """
        if len(choice) != len(self.lines):
            raise InvalidArgumentError(
                f"the choice is for {len(choice)} lines, {len(self.lines)} are in flight: "
                f"was it made by another version?"
            )
        changes = []
        for number, index, candidates in zip(self.lines, choice, self._candidates, strict=True):
            if index >= len(candidates):
                raise InvalidArgumentError(f"line {number} has no value {index}")
            if index:
                changes.append((number * CACHE_LINE_SIZE_BYTES, candidates[index]))
        return changes

    def _all(self) -> Iterator[Choice]:
        """Count through all choices, the first line fastest."""
        choice = [0] * len(self.lines)
        while True:
            yield tuple(choice)
            for i, candidates in enumerate(self._candidates):
                choice[i] += 1
                if choice[i] < len(candidates):
                    break
                choice[i] = 0
            else:
                return

    def _prefixes(self) -> list[Choice]:
        """Return what is there after each of the stores."""
        place = {number: i for i, number in enumerate(self.lines)}
        choice = [0] * len(self.lines)
        prefixes = []
        for number, index in self._order:
            choice[place[number]] = index + 1
            prefixes.append(tuple(choice))
        return prefixes

    def _odd_ones(self, base: Choice) -> list[Choice]:
        """Return the choices that differ from *base* in one line."""
        return [
            (*base[:i], other, *base[i + 1 :])
            for i, candidates in enumerate(self._candidates)
            for other in range(len(candidates))
            if other != base[i]
        ]

    def _random(self, rng: random.Random) -> Iterator[Choice]:
        while True:
            new_share = rng.choice((0.1, 0.5, 0.9))
            yield tuple(
                rng.randrange(len(candidates))
                if rng.random() < 0.1
                else newest * (rng.random() < new_share)
                for newest, candidates in zip(self._newest, self._candidates, strict=True)
            )


def format_choice(choice: Choice) -> str:
    """Write a choice: numbers joined by dots, `number*count` for several in a row; "-" if empty."""
    parts = []
    start = 0
    for end in range(1, len(choice) + 1):
        if end == len(choice) or choice[end] != choice[start]:
            count = end - start
            parts.append(f"{choice[start]}*{count}" if count > 1 else str(choice[start]))
            start = end
    return ".".join(parts) or "-"


def parse_choice(text: str) -> Choice:
    """Read what `format_choice` wrote. Raises: InvalidArgumentError."""
    choice: list[int] = []
    for part in text.split(".") if text != "-" else []:
        match = _CHOICE_PART.fullmatch(part)
        if not match:
            raise InvalidArgumentError(f"{text}: no choice: numbers with dots between, like 1*3.0")
        choice += [int(match[1])] * int(match[2] or 1)
    return tuple(choice)


def _candidates(medium: Persistence, number: LineNumber) -> list[bytes]:
    """Return what a line may be after a crash: durable, each value, tears; none twice."""
    values = [medium.durable_line(number), *medium.in_flight[number].values]
    candidates = dict.fromkeys(values)
    if len(candidates) != len(values):
        # It went back to what it was: the numbers of its values must stay those of its stores.
        return values
    rng = random.Random(number)
    for old, new in itertools.pairwise(values):
        for mask in _tear_masks(old, new, rng):
            candidates.setdefault(tear(old, new, mask))
    return list(candidates)


def _tear_masks(old: bytes, new: bytes, rng: random.Random) -> list[int]:
    words = [
        1 << i
        for i in range(_NR_LINE_WORDS)
        if old[i * WORD_SIZE_BYTES : (i + 1) * WORD_SIZE_BYTES]
        != new[i * WORD_SIZE_BYTES : (i + 1) * WORD_SIZE_BYTES]
    ]
    if len(words) <= _NR_WORDS_ALL_TEARS:
        return [
            sum(word for j, word in enumerate(words) if subset >> j & 1)
            for subset in range(1, (1 << len(words)) - 1)
        ]
    half = len(words) // 2
    masks = [sum(words[:half]), sum(words[half:])]
    while len(masks) < _NR_TEARS:
        masks.append(sum(rng.sample(words, rng.randrange(1, len(words)))))
    return masks


def _spread(choices: list[Choice], nr_max: int) -> list[Choice]:
    """Return at most *nr_max* of *choices*, evenly spread."""
    if len(choices) <= nr_max:
        return choices
    return [choices[i * len(choices) // nr_max] for i in range(nr_max)]
