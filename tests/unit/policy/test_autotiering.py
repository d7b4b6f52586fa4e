"""autotiering: levels from bitmaps, and who gives way to whom."""

import numpy as np

from tests.kit.policy import EPOCH_NS, PolicyWorld
from xipfs.policy.autotiering import Policy

SOON = EPOCH_NS // 100


def fault(world, pages, **facts):
    return world.epoch(pages, latency_ns=[SOON] * len(pages), **facts)


def make_world(nr_ram_frames=4, **settings):
    policy = Policy(wmark_high_factor=0, **settings)
    return policy, PolicyWorld(policy, nr_ram_frames=nr_ram_frames)


def level(policy, page):
    row = int(policy._stats.find(np.array([page]))[0])
    return int(policy._stats["bitmap"][row]).bit_count()


def test_a_fault_is_enough_where_a_frame_is_free():
    _, world = make_world()
    assert fault(world, [1, 2]).promote.tolist() == [1, 2]


def test_a_level_is_of_the_last_eight_scans():
    policy, world = make_world()
    fault(world, [1, 2])
    assert level(policy, 1) == 8
    for expected in (7, 6, 5):
        fault(world, [2])
        assert (level(policy, 1), level(policy, 2)) == (expected, 8)


def test_only_a_lower_level_gives_way():
    _, world = make_world(nr_ram_frames=2)
    fault(world, [1, 2])
    plan = fault(world, [1, 2, 9])
    assert not plan.exchange.size
    world.epoch([1], latency_ns=[-1])
    plan = fault(world, [9])
    assert plan.exchange.tolist() == [[2, 9]]
    assert world.resident == {1, 9}


def test_the_lowest_level_gives_way():
    _, world = make_world(nr_ram_frames=3)
    fault(world, [1, 2, 3])
    world.epoch([1, 2], latency_ns=[-1, -1])
    world.epoch([1, 3], latency_ns=[-1, -1])
    world.epoch([1, 2], latency_ns=[-1, -1])
    assert fault(world, [8]).exchange.tolist() == [[3, 8]]


def test_within_a_level_the_unused_found_last_goes_first():
    _, world = make_world(nr_ram_frames=3)
    fault(world, [1, 2, 3])
    world.epoch([1], latency_ns=[-1])
    assert fault(world, [8]).exchange.tolist() == [[3, 8]]


def test_free_frames_only():
    _, world = make_world(nr_ram_frames=1, mode=1)
    fault(world, [1])
    for _ in range(8):
        plan = fault(world, [2])
        assert not len(plan.promote)
        assert not plan.exchange.size


def test_demotion_instead_of_exchange():
    _, world = make_world(nr_ram_frames=1, mode=2)
    fault(world, [1])
    world.epoch([])
    plan = fault(world, [2])
    assert (plan.promote.tolist(), plan.demote.tolist()) == ([2], [1])
    assert not plan.exchange.size


def test_the_high_watermark_stays_free():
    world = PolicyWorld(Policy(), nr_ram_frames=200)
    fault(world, range(300))
    assert len(world.resident) == 198


def test_without_a_sampler_the_scan_is_played():
    policy, world = make_world()
    assert not len(world.epoch([1, 2]).promote)
    assert world.epoch([2]).promote.tolist() == [2]
    assert level(policy, 1) == 7


def test_what_cannot_be_seen_keeps_its_level():
    policy, world = make_world(nr_ram_frames=2)
    fault(world, [1, 2])
    for _ in range(4):
        world.epoch([], blind=[1])
    assert (level(policy, 1), level(policy, 2)) == (8, 4)
    assert fault(world, [9], blind=[1, 2]).exchange.size == 0


def test_a_page_that_came_back_late_was_unused_meanwhile():
    policy, world = make_world(nr_ram_frames=0)
    world.epoch([1], latency_ns=[5 * EPOCH_NS // 2])
    assert level(policy, 1) == 6  # two scans without, and one with
