"""colloid: the search for the right share, and what makes it up."""

import pytest

from tests.kit.policy import PolicyWorld
from xipfs.policy.colloid import Policy

RAM_FASTER, RAM_SLOWER, EQUAL = (80.0, 300.0), (400.0, 300.0), (300.0, 310.0)


def test_the_search_halves_a_bracket():
    policy = Policy()
    assert policy.search(0.0, towards_ram=True) == 0.5
    assert policy.search(0.5, towards_ram=True) == 0.25
    assert policy.search(0.75, towards_ram=False) == pytest.approx(0.125)
    assert (policy.p_lo, policy.p_hi) == (0.5, 0.75)


def test_an_empty_bracket_is_opened():
    policy = Policy()
    policy.p_lo, policy.p_hi = 0.2, 0.4
    policy.search(0.5, towards_ram=True)
    assert (policy.p_lo, policy.p_hi) == (0.5, 1.0)
    policy.p_lo = 0.7
    policy.search(0.6, towards_ram=False)
    assert (policy.p_lo, policy.p_hi) == (0.0, 0.6)


def test_a_narrow_bracket_is_opened_where_it_was_not_set():
    policy = Policy()
    policy.p_hi = 0.505
    policy.search(0.5, towards_ram=True)
    assert (policy.p_lo, policy.p_hi) == (0.5, 1.0)


def test_half_of_the_accesses_first():
    """p is 0 and may be 1, so half of the accesses come: the hottest that are no more than half."""
    world = PolicyWorld(Policy())
    plan = world.epoch([1] * 6 + [2] * 4 + [3] * 2 + [4])
    assert plan.promote.tolist() == [1]


def test_a_page_that_is_too_hot_is_passed_over():
    world = PolicyWorld(Policy())
    assert world.epoch([1] * 8 + [2] * 3 + [3]).promote.tolist() == [2, 3]


def test_equal_latencies_move_nothing():
    world = PolicyWorld(Policy())
    for _ in range(4):
        plan = world.epoch([1, 2, 3, 4] * 4, tier_latency_ns=EQUAL)
        assert not len(plan.promote)


def test_where_ram_is_slower_the_hot_pages_leave_it():
    world = PolicyWorld(Policy())
    for _ in range(3):
        world.epoch([1, 2, 3, 4] * 4)
    held = len(world.resident)
    assert held > 1
    plan = world.epoch([1, 2, 3, 4] * 4, tier_latency_ns=RAM_SLOWER)
    assert not len(plan.promote)
    assert len(plan.demote) >= 1


def test_latency_under_load_is_occupancy_by_rate():
    """RAM says 80 ns, but five accesses are always under way in it, and 0.1 in NVRAM."""
    world = PolicyWorld(Policy())
    for _ in range(3):
        world.epoch([1, 2, 3, 4] * 4)
    plan = world.epoch([1, 2, 3, 4] * 4, occupancy=(5.0, 0.1))
    assert len(plan.demote) >= 1
    assert not len(plan.promote)


def test_no_latency_known_ram_counts_as_faster():
    world = PolicyWorld(Policy())
    assert len(world.epoch([1, 2, 3], tier_latency_ns=(0.0, 0.0)).promote) == 1


def test_only_a_colder_page_makes_room():
    world = PolicyWorld(Policy(scale=1), nr_ram_frames=1)
    world.epoch([1] * 2 + [2] * 2)
    assert len(world.resident) == 1
    first = set(world.resident)
    for _ in range(4):
        world.epoch([1, 2] * 4)
    assert world.resident == first
    for _ in range(4):
        world.epoch([9] * 40 + [8] * 50)
    assert world.resident <= {8, 9}


def test_what_cannot_be_seen_makes_no_room():
    world = PolicyWorld(Policy(), nr_ram_frames=1)
    world.epoch([1] * 2 + [2] * 2)
    first = set(world.resident)
    for _ in range(4):
        world.epoch([9] * 40 + [8] * 50, blind=[1, 2])
    assert world.resident == first


def test_counts_are_halved_and_forgotten():
    policy = Policy(cooling_period=10, scale=1)
    world = PolicyWorld(policy, nr_ram_frames=0)
    world.epoch([1] * 8)
    world.epoch([2] * 2)
    assert policy._stats["heat"].tolist() == [4, 1]
    for _ in range(4):
        world.epoch([3] * 10)
    assert policy._stats.pages.tolist() == [1, 3]
