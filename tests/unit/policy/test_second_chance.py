"""second_chance: what waits, what is promoted, what has to go."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.policy import EPOCH_NS, PolicyWorld
from xipfs.policy import second_chance
from xipfs.policy.second_chance import Policy


def make_world(nr_ram_frames=8, **options) -> PolicyWorld:
    return PolicyWorld(Policy(), nr_ram_frames=nr_ram_frames, **options)


def test_one_reading_proves_nothing():
    world = make_world()
    assert not len(world.epoch([1, 2, 3]).promote)


def test_many_readings_in_one_epoch_are_one():
    world = make_world()
    assert not len(world.epoch([1] * 100).promote)


def test_a_page_that_is_read_again_in_a_later_epoch_is_promoted():
    world = make_world()
    world.epoch([1, 2, 3])
    world.epoch([])
    assert world.epoch([3, 1, 9]).promote.tolist() == [1, 3]


def test_nothing_is_demoted_while_there_is_room():
    world = make_world(nr_ram_frames=4)
    world.epoch([1, 2])
    world.epoch([1, 2])
    for _ in range(20):
        assert not len(world.epoch([50]).demote)
    assert world.resident == {1, 2, 50}


def test_room_is_made_by_those_that_were_not_used():
    world = make_world(nr_ram_frames=4)
    for _ in range(2):
        world.epoch([1, 2, 3, 4])
    assert world.resident == {1, 2, 3, 4}
    # The new ones come in when the marks of 2 and 4 are gone: after one round of the hand.
    for _ in range(3):
        world.epoch([1, 3, 8, 9])
    assert world.resident == {1, 3, 8, 9}


def test_who_was_promoted_has_a_second_chance():
    """A page that has just come in is marked, so that the hand passes it once."""
    world = make_world(nr_ram_frames=2)
    for _ in range(2):
        world.epoch([1, 2])
    world.epoch([8])
    plan = world.epoch([8])
    assert not len(plan.demote)
    assert not len(plan.promote)
    assert world.epoch([8]).promote.tolist() == [8]


def test_a_hand_that_finds_only_referenced_pages_stops_after_one_round():
    world = make_world(nr_ram_frames=4)
    hot = [1, 2, 3, 4]
    for _ in range(2):
        world.epoch(hot)
    for _ in range(10):
        plan = world.epoch([*hot, 8, 9])
        assert not len(plan.demote)
    assert world.resident == set(hot)


def test_a_scan_does_not_push_out_what_is_used():
    world = make_world(nr_ram_frames=64)
    hot = list(range(48))
    scan = iter(range(1000, 100_000))
    for _ in range(50):
        world.epoch([*hot, *(next(scan) for _ in range(200))])
    assert world.resident == set(hot)


def test_a_scan_that_comes_round_again_takes_only_what_is_not_used():
    world = make_world(nr_ram_frames=64)
    hot = list(range(48))
    image = list(range(1000, 1800))
    for i in range(50):
        start = i * 160 % len(image)
        world.epoch([*hot, *image[start : start + 160]])
        if i > 2:
            assert world.resident.issuperset(hot)


def test_a_page_that_cannot_be_seen_counts_as_used():
    world = make_world(nr_ram_frames=4)
    for _ in range(2):
        world.epoch([1, 2, 3, 4])
    for _ in range(10):
        world.epoch([8, 9], blind=[1, 2, 3])
    assert world.resident >= {1, 2, 3}
    assert len(world.resident & {8, 9}) == 1
    for _ in range(10):
        world.epoch([8, 9])
    assert world.resident >= {8, 9}


def test_what_went_by_itself_leaves_the_clock():
    world = make_world(nr_ram_frames=4)
    for _ in range(2):
        world.epoch([1, 2, 3, 4])
    world.resident -= {1, 2}  # their file was truncated, say
    for _ in range(4):
        world.epoch([3, 8, 9])
    assert world.resident == {3, 4, 8, 9}


def test_the_budget_holds_for_both_directions_together():
    world = make_world(nr_ram_frames=16, budget_pages=6)
    for epoch in range(60):
        world.epoch(range(100 * (epoch // 15), 100 * (epoch // 15) + 16))
    assert world.resident == set(range(300, 316))


def test_a_scan_that_comes_round_often_does_not_keep_out_what_is_used_more():
    """Every page of the image is used, and CLOCK with one mark could not tell them apart."""
    world = make_world(nr_ram_frames=64)
    hot = list(range(48))
    image = list(range(1000, 1800))
    for i in range(60):
        scan = [image[j % len(image)] for j in range(i * 600, i * 600 + 600)]
        world.epoch([*hot * 4, *scan])
    assert world.resident.issuperset(hot)


def test_of_many_that_wait_the_most_used_go_first():
    world = make_world(nr_ram_frames=2)
    world.epoch([1, 2, 3, 4])
    assert world.epoch([1, 2, 2, 3, 4, 4]).promote.tolist() == [2, 4]


def test_pages_that_come_back_late_make_nobody_leave_and_get_half_of_what_is_free():
    world = make_world(nr_ram_frames=8)
    late = EPOCH_NS * 2
    world.epoch(range(20))
    assert world.epoch(range(20), latency_ns=[late] * 20).promote.tolist() == [0, 1, 2, 3]
    assert world.epoch(range(4, 20), latency_ns=[late] * 16).promote.tolist() == [4, 5]
    for _ in range(10):
        world.epoch(range(20), latency_ns=[late] * 20)
    assert len(world.resident) == 7
    for _ in range(3):
        world.epoch([18, 19], latency_ns=[EPOCH_NS // 4] * 2)
    assert world.resident >= {18, 19}


def test_a_page_read_soon_after_it_was_dropped_goes_first_and_earns_more():
    world = make_world(nr_ram_frames=1)
    world.epoch([1, 2, 3])
    second = EPOCH_NS
    assert world.epoch([1, 2, 3], latency_ns=[second, second // 9, second // 5]).promote == [2]
    for _ in range(3):
        world.epoch([2, 3, 3], latency_ns=[second // 9, -1, -1])
    assert world.resident == {2}


def test_a_budget_of_one_page_cannot_swap():
    """A swap moves two pages; all that one page allows is to fill free frames."""
    world = make_world(nr_ram_frames=2, budget_pages=1)
    for _ in range(5):
        world.epoch([1, 2, 3])
    assert world.resident == {1, 2}
    for _ in range(5):
        world.epoch([8, 9])
    assert world.resident == {1, 2}


def test_no_ram_at_all():
    world = make_world(nr_ram_frames=0)
    for _ in range(4):
        plan = world.epoch([1, 2, 3])
        assert not len(plan.promote)
        assert not len(plan.demote)


def test_the_history_is_bounded_and_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr(second_chance, "_NR_HISTORY_PAGES_MIN", 10)
    policy = Policy(history_ratio=2)
    world = PolicyWorld(policy, nr_ram_frames=8)  # 16 pages are remembered
    world.epoch(range(100, 110))
    world.epoch(range(200, 210))
    assert len(policy._history) == 16
    plan = world.epoch([*range(100, 110), *range(200, 210)])
    assert plan.promote.tolist() == [104, 105, 106, 107, 108, 109, 200, 201]


@given(
    nr_ram_frames=st.integers(0, 12),
    budget_pages=st.integers(1, 20),
    epochs=st.lists(
        st.tuples(
            st.lists(st.integers(0, 40), max_size=40),
            st.sets(st.integers(0, 40), max_size=8),
            st.sets(st.integers(0, 40), max_size=3),
        ),
        max_size=15,
    ),
)
def test_every_plan_can_be_carried_out(nr_ram_frames, budget_pages, epochs):
    policy = Policy(history_ratio=1)
    world = PolicyWorld(policy, nr_ram_frames=nr_ram_frames, budget_pages=budget_pages)
    seen: set[int] = set()
    for pages, blind, gone in epochs:
        plan = world.epoch(pages, blind=blind)  # checks the plan
        assert set(plan.promote.tolist()) <= set(pages) & seen
        seen |= set(pages)
        world.resident -= gone
        assert (np.diff(policy._history) > 0).all(), "the history is sorted, none twice"
        assert len(policy._ring) == len(policy._chances)
        assert 0 <= policy._hand <= len(policy._ring)
