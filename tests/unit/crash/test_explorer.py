"""The explorer on a store of one number, small enough to know all its crash states.

Its image: two copies of a number, each with its complement, in lines of their own, and a word that
says which one counts. So it can be done right, and wrong in the usual ways.
"""

import pytest

from xipfs.crash.explorer import Explorer, Outcome, Recording
from xipfs.crash.operations import parse_operations
from xipfs.crash.recorder import MarkKind, Recorder
from xipfs.crash.snapshot import Node
from xipfs.errors import FormatError
from xipfs.phys.nvram import NvramDevice

SELECTOR, COPIES = 128, (0, 64)
NR_VALUES = 3


def record(value):
    return value.to_bytes(8, "little") + (~value & (1 << 64) - 1).to_bytes(8, "little")


def tree(value):
    return {"/": Node(1, 0, 0, 0, 0, value, 0, 0, 0, (), b"", ())}


def put_right(nvram, number, value):
    offset = COPIES[number % 2]
    nvram.store_bytes(offset, record(value))
    nvram.flush(offset, 16)
    nvram.fence()
    nvram.store8(SELECTOR, (number % 2).to_bytes(8, "little"))
    nvram.flush(SELECTOR, 8)
    nvram.fence()


def put_without_flush(nvram, number, value):
    offset = COPIES[number % 2]
    nvram.store_bytes(offset, record(value))
    nvram.fence()
    nvram.store8(SELECTOR, (number % 2).to_bytes(8, "little"))
    nvram.flush(SELECTOR, 8)
    nvram.fence()


def put_without_fence(nvram, number, value):
    offset = COPIES[number % 2]
    nvram.store_bytes(offset, record(value))
    nvram.flush(offset, 16)
    nvram.store8(SELECTOR, (number % 2).to_bytes(8, "little"))
    nvram.flush(SELECTOR, 8)
    nvram.fence()


def put_in_place(nvram, number, value):
    nvram.store_bytes(COPIES[0], record(value))
    nvram.flush(COPIES[0], 16)
    nvram.fence()


def put_unacknowledged(nvram, number, value):
    """All as it should be, but the last fence comes with the next operation."""
    offset = COPIES[number % 2]
    nvram.fence()
    nvram.store_bytes(offset, record(value))
    nvram.flush(offset, 16)
    nvram.fence()
    nvram.store8(SELECTOR, (number % 2).to_bytes(8, "little"))
    nvram.flush(SELECTOR, 8)


class NumberJudge:
    def __init__(self):
        self.nr_examined = 0

    def recover(self, nvram):
        selector = int.from_bytes(nvram.load(SELECTOR, 8), "little")
        found = nvram.load(COPIES[selector], 16)
        value = int.from_bytes(found[:8], "little")
        if found != record(value):
            raise FormatError("torn")
        return value

    def unread_pages(self, mounted):
        return ()

    def examine(self, mounted):
        self.nr_examined += 1
        return Outcome(tree(mounted), ())

    def abandon(self, mounted):
        pass


def explored(put, **options):
    image = bytearray(4096)
    image[: len(record(0))] = record(0)
    nvram = NvramDevice.scratch(4096)
    nvram.store_bytes(0, image)
    recorder = Recorder(nvram)
    values = [0x1111 * (number + 1) for number in range(NR_VALUES)]
    for number, value in enumerate(values):
        recorder.mark(MarkKind.BEGIN, number)
        put(nvram, number + 1, value)
        recorder.mark(MarkKind.END, number)
    nvram.observer = None
    nvram.close()
    operations = parse_operations("; ".join(f"truncate / {value}" for value in values))
    recording = Recording(
        operations, recorder.events, [tree(0), *map(tree, values)], [1] * NR_VALUES
    )
    explorer = Explorer(NumberJudge(), bytes(image), **options)
    failures = explorer.explore(recording)
    return explorer, recording, failures


def test_what_is_right_has_no_failure():
    explorer, _, failures = explored(put_right)
    assert failures == []
    tally = explorer.tally
    assert (tally.nr_workloads, tally.nr_operations) == (1, NR_VALUES)
    # Two fences and an end each; the copy: two words, torn in each way, and the selector: one.
    assert tally.nr_cuts == 3 * NR_VALUES
    assert tally.nr_states + tally.nr_pruned == (4 + 2 + 1) * NR_VALUES
    # Where nothing of the selector survives is a state of the cut before, and the end is no new
    # one; all operations but the first begin where the one before ended.
    assert tally.nr_states == 4 + 1 + (3 + 1) * (NR_VALUES - 1)
    assert tally.nr_examined == tally.nr_states
    explorer.close()


@pytest.mark.parametrize(
    ("put", "problem"),
    [
        (put_without_flush, "recovery: torn"),
        (put_without_fence, "recovery: torn"),
        (put_in_place, "recovery: torn"),
        (put_unacknowledged, "/: size_bytes is 0, should be 4369"),
    ],
)
def test_what_is_wrong_fails_and_is_replayed(put, problem):
    explorer, recording, failures = explored(put)
    assert problem in failures[0].problems
    for failure in failures:
        again = explorer.replay(recording, failure.crashes)
        assert (again.where, again.outcome.problems) == (failure.where, failure.problems)
    explorer.close()


def test_states_of_operations_that_are_known_are_not_judged_again():
    explorer, recording, _ = explored(put_right)
    before = explorer.tally.nr_cuts
    explorer.explore(recording, nr_known=NR_VALUES - 1)
    assert explorer.tally.nr_cuts - before == 3
    assert explorer.tally.nr_states == len(explorer.keys)
    explorer.close()


def test_a_bound_on_the_states_of_a_cut():
    explorer, _, _ = explored(put_right, nr_states_max=2)
    assert explorer.tally.nr_sampled_cuts == NR_VALUES
    assert explorer.tally.nr_states + explorer.tally.nr_pruned == (2 + 2 + 1) * NR_VALUES
    explorer.close()
