"""multiclock: five states and a step for each period with a use."""

from tests.kit.policy import EPOCH_NS, PolicyWorld
from xipfs.policy.multiclock import Policy


def make_world(nr_ram_frames=4):
    return PolicyWorld(Policy(wmark_high_factor=0), nr_ram_frames=nr_ram_frames)


def play(world, *epochs):
    return [world.epoch(pages).promote.tolist() for pages in epochs]


def test_four_periods():
    assert play(make_world(), [1, 1], [1], [1], [1]) == [[], [], [], [1]]


def test_many_uses_in_a_period_are_one():
    assert play(make_world(), [1] * 50, [1] * 50, [1] * 50) == [[], [], []]


def test_a_period_without_takes_the_reference_away():
    world = make_world()
    assert play(world, [1], [], [1], [], [1], [1]) == [[]] * 6  # active now
    assert play(world, [], [1], [], [1]) == [[]] * 4
    assert play(world, [1]) == [[1]]


def test_a_page_remembers_that_it_was_active():
    world = make_world()
    play(world, [1], [1])
    play(world, *[[]] * 10)
    assert play(world, [1], [1]) == [[], [1]]


def test_the_tail_of_the_inactive_list_makes_room():
    world = make_world(nr_ram_frames=2)
    play(world, *[[1, 2]] * 4)
    assert world.resident == {1, 2}
    for _ in range(10):
        world.epoch([1, 8])
    assert world.resident == {1, 8}


def test_used_pages_are_not_inactive():
    world = make_world(nr_ram_frames=2)
    play(world, *[[1, 2]] * 4)
    for _ in range(10):
        world.epoch([1, 2, 8])
    assert world.resident == {1, 2}


def test_what_cannot_be_seen_stays():
    world = make_world(nr_ram_frames=2)
    play(world, *[[1, 2]] * 4)
    for _ in range(10):
        world.epoch([8, 9], blind=[1, 2])
    assert world.resident == {1, 2}


def test_the_watermark_is_kept_free():
    world = PolicyWorld(Policy(wmark_high_factor=5000), nr_ram_frames=8)
    play(world, *[[*range(8)]] * 4)
    for _ in range(10):
        world.epoch([])
    assert len(world.resident) == 4


def test_latency_tells_of_periods_without():
    world = make_world()
    soon, late = EPOCH_NS // 10, 3 * EPOCH_NS
    for _ in range(3):
        world.epoch([1, 2], latency_ns=[soon, soon])
        world.epoch([])
    assert world.epoch([1, 2], latency_ns=[soon, late]).promote.tolist() == [1]
