"""Seeded bugs are found by what looks for all bugs: crash states of a share of seq-1 and seq-2.

All mutants meet the same workloads in the same order, until one shows that something is wrong: a
state that is not sound, or a filesystem that cannot even be played on.
"""

import itertools
import random
from collections.abc import Iterator

import pytest

from tests.crash.mutants import MUTANTS
from xipfs.crash.campaign import base_image, new_explorer
from xipfs.crash.operations import format_operations
from xipfs.crash.player import play
from xipfs.crash.workloads import Workload, seq, with_moves
from xipfs.errors import BugError, XipfsError

NR_STATES_MAX = 8
NR_SEQ2 = 100

SHARE = {
    *("allocator_before_extent", "dirty_images_look_clean", "every_record_by_itself"),
    *("group_in_place", "header_before_targets", "header_not_flushed", "inode_before_name"),
    *("new_pages_not_fenced", "new_pages_not_flushed", "orphans_not_finished"),
}
"""Found by the first few workloads: those that every run looks at."""


def hunt() -> Iterator[Workload]:
    """Yield seq-1 as it is and with moving pages, and some of seq-2 with moving pages."""
    rng = random.Random(5)
    ones, twos = list(seq(1)), list(seq(2))
    rng.shuffle(ones)
    yield from itertools.chain.from_iterable((one, with_moves(one, 1)) for one in ones)
    yield from (with_moves(one, seed) for seed in (2, 7) for one in ones)
    yield from (with_moves(two, 2) for two in rng.sample(twos, NR_SEQ2))


def first_complaint() -> str | None:
    image = base_image()
    explorer = new_explorer(image, nr_states_max=NR_STATES_MAX)
    try:
        for number, workload in enumerate(hunt()):
            what = f"workload {number}, {format_operations(workload.operations)}"
            try:
                recording = play(image, workload.operations)
            except (XipfsError, BugError) as exc:
                return f"{what}: {exc}"
            if failures := explorer.explore(recording, workload.nr_known):
                return f"{what}, {failures[0].where}: {failures[0].problems[0]}"
    finally:
        explorer.close()
    return None


def test_there_are_at_least_25():
    assert len(MUTANTS) >= 25


@pytest.mark.parametrize(
    "name",
    [pytest.param(m, marks=() if m in SHARE else pytest.mark.long) for m in sorted(MUTANTS)],
)
def test_a_seeded_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name](monkeypatch)
    complaint = first_complaint()
    assert complaint is not None, "it lives"
    print(f"{name}: {complaint}")
