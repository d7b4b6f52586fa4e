"""tpp: three hint faults, reclaim ahead of need."""

from tests.kit.policy import EPOCH_NS, PolicyWorld
from xipfs.policy.tpp import Policy

SOON = EPOCH_NS // 100


def fault(world, pages, **facts):
    return world.epoch(pages, latency_ns=[SOON] * len(pages), **facts)


def fill(world, pages):
    for _ in range(3):
        fault(world, pages)


def test_the_third_fault_promotes():
    world = PolicyWorld(Policy())
    assert not len(fault(world, [1, 2]).promote)
    assert not len(fault(world, [1]).promote)
    assert fault(world, [2, 1]).promote.tolist() == [1]
    assert fault(world, [2]).promote.tolist() == [2]


def test_uses_that_are_no_hint_faults_do_not_count():
    world = PolicyWorld(Policy())
    fault(world, [1])
    for _ in range(5):
        assert not len(world.epoch([1] * 20, latency_ns=[-1] * 20).promote)


def test_without_a_sampler_the_scan_is_played():
    world = PolicyWorld(Policy())
    promoted = [world.epoch([1]).promote.tolist() for _ in range(4)]
    assert promoted == [[], [], [], [1]]


def test_frames_are_freed_before_anybody_asks():
    world = PolicyWorld(Policy(), nr_ram_frames=100)
    fill(world, list(range(100)))
    assert len(world.resident) == 100
    for _ in range(4):
        world.epoch([])
    assert len(world.resident) == 98
    assert not len(world.epoch([]).demote)


def test_the_unused_go_and_the_used_stay():
    world = PolicyWorld(Policy(demote_scale_factor=2500), nr_ram_frames=8)
    fill(world, list(range(8)))
    for _ in range(6):
        world.epoch([2, 3, 4, 5, 6, 7])
    assert world.resident == {2, 3, 4, 5, 6, 7}


def test_what_cannot_be_seen_stays():
    world = PolicyWorld(Policy(demote_scale_factor=5000), nr_ram_frames=8)
    fill(world, list(range(8)))
    for _ in range(8):
        world.epoch([], blind=range(6))
    assert world.resident == set(range(6))


def test_promotion_may_take_what_the_watermark_keeps_free():
    world = PolicyWorld(Policy(demote_scale_factor=5000), nr_ram_frames=8)
    fill(world, list(range(8)))
    assert len(world.resident) == 8
