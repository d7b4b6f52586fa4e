import itertools

import pytest

from xipfs.crash.enumerator import Cut, format_choice, parse_choice
from xipfs.crash.persistence import Persistence
from xipfs.crash.recorder import Store
from xipfs.errors import InvalidArgumentError

OLD = bytes(64)


def word(value):
    return value.to_bytes(8, "little")


def cut_of(*stores, nr_lines=256):
    medium = Persistence(OLD * nr_lines)
    for store in stores:
        medium.apply(store)
    return Cut(medium)


def all_states(cut, nr_states_max=10**6):
    return [tuple(cut.changes(c)) for c in cut.choices(nr_states_max=nr_states_max, seed=1)]


def test_nothing_in_flight_is_one_state():
    assert all_states(cut_of()) == [()]


def test_words_of_different_lines_survive_in_any_subset():
    stores = [Store(line * 64, word(7)) for line in range(3)]
    states = all_states(cut_of(*stores))
    new = [(line * 64, word(7) + OLD[8:]) for line in range(3)]
    subsets = itertools.chain.from_iterable(itertools.combinations(new, n) for n in range(4))
    assert sorted(states) == sorted(subsets)


def test_a_line_has_any_of_its_values():
    states = all_states(cut_of(Store(0, word(1)), Store(0, word(2))))
    assert states == [(), ((0, word(1) + OLD[8:]),), ((0, word(2) + OLD[8:]),)]


def test_a_store_of_three_words_is_torn_in_every_way():
    states = all_states(cut_of(Store(0, word(1) * 3)))
    expected = [
        word(a) + word(b) + word(c) + OLD[24:]
        for a, b, c in itertools.product((0, 1), repeat=3)
        if a or b or c
    ]
    assert sorted(state[0][1] for state in states if state) == sorted(expected)


def test_stores_to_one_line_keep_their_order():
    """Two stores of a word each: never the second without the first."""
    states = all_states(cut_of(Store(0, word(1)), Store(8, word(1))))
    assert [state[0][1] for state in states if state] == [
        word(1) + OLD[8:],
        word(1) * 2 + OLD[16:],
    ]


def test_a_line_that_went_back_to_what_it_was_keeps_its_numbers():
    cut = cut_of(Store(0, word(1)), Store(0, word(0)), Store(0, word(3)))
    assert [cut.changes((i,))[0][1][0] for i in (1, 2, 3)] == [1, 0, 3]


@pytest.mark.parametrize("nr_states_max", [10, 64, 200])
def test_a_sample_is_bounded_has_no_state_twice_and_is_the_same_each_time(nr_states_max):
    stores = [Store(line * 64, b"new" * 20) for line in range(0, 80, 2)]
    cut = cut_of(*stores)
    choices = list(cut.choices(nr_states_max=nr_states_max, seed=5))
    assert len(choices) == len(set(choices)) == nr_states_max
    assert choices == list(cut_of(*stores).choices(nr_states_max=nr_states_max, seed=5))
    assert choices != list(cut.choices(nr_states_max=nr_states_max, seed=6))


def test_a_sample_has_what_a_killed_program_leaves():
    """In the order of the stores, which here is not that of the lines."""
    order = [9, 3, 7, 1, 8, 2, 6, 0]
    cut = cut_of(*(Store(line * 64, b"new" * 20) for line in order))
    choices = set(cut.choices(nr_states_max=60, seed=1))
    for done in range(len(order) + 1):
        assert tuple(int(line in order[:done]) for line in sorted(order)) in choices


@pytest.mark.parametrize("choice", [(), (0,), (1, 1, 1, 0, 2), (0, 10, 10)])
def test_choices_are_written_and_read(choice):
    assert parse_choice(format_choice(choice)) == choice


def test_how_choices_are_written():
    assert format_choice((1, 1, 1, 0, 2)) == "1*3.0.2"
    assert format_choice(()) == "-"


@pytest.mark.parametrize("text", ["", "x", "1*", "1**2", "-1", "1*9999999999", "1..2"])
def test_what_is_no_choice(text):
    with pytest.raises(InvalidArgumentError, match="no choice"):
        parse_choice(text)


def test_a_choice_of_another_cut_is_refused():
    cut = cut_of(Store(0, word(1)))
    with pytest.raises(InvalidArgumentError, match="2 lines, 1 are in flight"):
        cut.changes((0, 0))
    with pytest.raises(InvalidArgumentError, match="no value 5"):
        cut.changes((5,))
