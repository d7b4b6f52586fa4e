"""nimble: two lists, and pages that change places."""

from tests.kit.policy import EPOCH_NS, PolicyWorld
from xipfs.policy.nimble import Policy


def make_world(nr_ram_frames=4, budget_pages=1024, **settings):
    return PolicyWorld(Policy(**settings), nr_ram_frames=nr_ram_frames, budget_pages=budget_pages)


def test_two_periods_behind_each_other_make_a_page_active():
    world = make_world()
    assert not len(world.epoch([1, 2] * 9).promote)
    assert world.epoch([1]).promote.tolist() == [1]
    assert not len(world.epoch([2]).promote)
    assert world.epoch([2]).promote.tolist() == [2]


def test_active_pages_change_places_with_inactive_ones():
    world = make_world(nr_ram_frames=2)
    for _ in range(2):
        world.epoch([1, 2])
    world.epoch([8])
    plan = world.epoch([8])
    assert plan.exchange.tolist() == [[1, 8]]
    assert not len(plan.demote)
    assert world.resident == {2, 8}


def test_or_one_goes_before_the_other_comes():
    world = make_world(nr_ram_frames=2, exchange=False)
    for _ in range(2):
        world.epoch([1, 2])
    world.epoch([8])
    plan = world.epoch([8])
    assert (plan.promote.tolist(), plan.demote.tolist()) == ([8], [1])


def test_free_frames_are_filled_first():
    world = make_world(nr_ram_frames=3)
    for _ in range(2):
        world.epoch([1, 2])
    for _ in range(2):
        plan = world.epoch([1, 7, 8, 2])
    assert len(plan.promote) == 1


def test_half_of_each_list_is_looked_at():
    world = make_world(nr_ram_frames=4)
    for _ in range(2):
        world.epoch([1, 2, 3, 4])
    stats = world.policy._stats
    for nr_active in (2, 1, 0):
        world.epoch([])
        assert int((stats["flags"] & 1).sum()) == nr_active


def test_with_much_room_inactive_pages_come_as_well():
    world = make_world(nr_ram_frames=100, budget_pages=10)
    assert world.epoch([1, 2, 3]).promote.tolist() == [1, 2, 3]


def test_what_cannot_be_seen_stays():
    world = make_world(nr_ram_frames=2)
    for _ in range(2):
        world.epoch([1, 2])
    for _ in range(6):
        world.epoch([8, 9], blind=[1, 2])
    assert world.resident == {1, 2}


def test_a_page_that_came_back_late_was_not_used_in_the_period_before():
    world = make_world()
    soon, late = EPOCH_NS // 10, 3 * EPOCH_NS
    world.epoch([1, 2], latency_ns=[soon, soon])
    assert world.epoch([1, 2], latency_ns=[soon, late]).promote.tolist() == [1]
