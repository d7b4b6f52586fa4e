"""numab2: plenty of free frames, the threshold, the rate limit, and how they adapt."""

from tests.kit.policy import EPOCH_NS, PolicyWorld
from xipfs.policy.numab2 import Policy

MS = 1_000_000


def fault(world, pages, latency_ms, **facts):
    return world.epoch(pages, latency_ns=[latency_ms * MS] * len(pages), **facts)


def scarce(**settings):
    """A policy to which frames are never plenty."""
    return Policy(free_enough_divisor=1, **settings)


def test_with_plenty_of_frames_every_fault_promotes():
    world = PolicyWorld(Policy(), nr_ram_frames=32)
    assert len(fault(world, range(40), 60_000).promote) == 30
    assert not len(fault(world, range(50, 60), 60_000).promote)


def test_else_only_those_below_the_threshold():
    world = PolicyWorld(scarce())
    plan = world.epoch([1, 2, 3], latency_ns=[1001 * MS, 999 * MS, 1000 * MS])
    assert plan.promote.tolist() == [2]


def test_the_rate_limit_is_per_second():
    world = PolicyWorld(scarce(rate_limit_pages=2, scale=1))
    assert fault(world, [5, 6, 7], 10).promote.tolist() == [5, 6]
    assert fault(world, [7], 10).promote.tolist() == [7]


def test_many_candidates_lower_the_threshold():
    policy = scarce(rate_limit_pages=2, adjust_period_ms=2000, scale=1)
    world = PolicyWorld(policy)
    fault(world, range(10, 13), 10)
    assert policy.threshold_ms == 1000
    fault(world, range(20, 23), 10)
    assert policy.threshold_ms == 875
    for epoch in range(40):
        fault(world, range(100 * epoch, 100 * epoch + 9), 10)
    assert policy.threshold_ms == 125


def test_few_candidates_raise_it_to_twice_the_reference():
    policy = scarce(adjust_period_ms=1000)
    world = PolicyWorld(policy)
    world.epoch([])
    assert policy.threshold_ms == 1125
    for _ in range(20):
        world.epoch([])
    assert policy.threshold_ms == 2000


def test_about_as_many_as_allowed_change_nothing():
    policy = scarce(adjust_period_ms=1000, rate_limit_pages=10, scale=1)
    fault(PolicyWorld(policy), range(10), 10)
    assert policy.threshold_ms == 1000


def test_plenty_of_frames_begin_anew():
    policy = Policy(adjust_period_ms=1000)
    world = PolicyWorld(policy)
    for _ in range(5):
        world.epoch([])
    assert policy.threshold_ms > 1000
    fault(world, [1], 10)
    assert policy.threshold_ms == 1125  # 1000, and a step for having few candidates


def test_kswapd_makes_room_for_a_quick_page_with_one_that_is_unused():
    world = PolicyWorld(scarce(wmark_promo_factor=0), nr_ram_frames=3)
    fault(world, [1, 2, 3], 10)
    assert not len(fault(world, [9], 10).promote)  # all were used since kswapd's last look
    world.epoch([1, 3])
    assert fault(world, [9], 10).demote.tolist() == [2]
    assert world.resident == {1, 3, 9}


def test_without_a_sampler_the_scan_is_played():
    world = PolicyWorld(Policy(free_enough_divisor=1))
    world.epoch([1, 2])
    assert world.epoch([2, 5, 5, 5, 1]).promote.tolist() == [2]  # 1 after a whole second
    assert EPOCH_NS == 1000 * MS
