"""memtis: bins, thresholds that rise, cooling, watermarks, the warm band."""

from tests.kit.policy import PolicyWorld
from xipfs.policy.memtis import Policy

ONCE, TWICE = 9, 10
"""Bins of pages sampled once (512) and twice (1024)."""


def make_world(nr_ram_frames=100, **settings):
    policy = Policy(**{"cooling_period": 10**9, "adaptation_period": 1, "scale": 1e-4, **settings})
    return policy, PolicyWorld(policy, nr_ram_frames=nr_ram_frames)


def test_bins():
    policy, world = make_world()
    world.epoch([1, 2, 2, *[3] * 4, *[4] * 100])
    assert policy._bins().tolist() == [9, 10, 11, 15]


def test_the_hottest_that_fit_are_hot():
    policy, world = make_world()
    world.epoch([*range(200), *range(50)])
    assert policy.t_hot == TWICE
    assert world.resident == set(range(50))


def test_all_are_hot_while_there_is_room():
    policy, world = make_world()
    world.epoch(range(50))
    assert policy.t_hot == 1
    assert len(world.resident) == 50


def test_a_reserve_is_never_filled_by_promotion():
    _, world = make_world()
    for _ in range(4):
        world.epoch(range(97))
    assert len(world.resident) == 97


def test_the_threshold_only_rises_between_coolings():
    policy, world = make_world(cooling_period=10_000, scale=1)
    world.nr_ram_frames = 20_000
    world.epoch([*range(9000), *range(900)])
    high = policy.t_hot
    assert high == TWICE
    world.epoch([1] * 50)
    assert policy.t_hot == high
    world.epoch([1] * 60)  # 10,010 samples: all counts are halved
    assert policy.t_hot == high - 1


def test_cooling_halves():
    policy, world = make_world(cooling_period=10_000, scale=1e-3)  # every 10 samples
    world.epoch([1] * 8)
    world.epoch([2] * 2)
    assert policy._stats["count"].tolist() == [2048, 512]
    world.epoch([2] * 20)
    assert policy._stats["count"].tolist() == [512, (512 // 2 + 20 * 512 * 3 // 4) // 2]


def test_no_adaptation_before_its_time():
    policy, world = make_world(adaptation_period=500, scale=1)
    world.nr_ram_frames = 100_000
    world.epoch(range(200))
    assert policy._nr_since_adaptation == 200


def test_warm_pages_stay_while_hot_ones_leave_room():
    policy, world = make_world()
    world.epoch([*range(200), *range(50)])
    assert policy.t_warm == policy.t_hot - 1
    policy, world = make_world()
    world.epoch([*range(200), *range(90)])
    assert policy.t_warm == policy.t_hot


def test_cold_pages_make_room_for_hot_ones():
    policy, world = make_world()
    world.epoch(range(90))
    assert len(world.resident) == 90
    for _ in range(3):
        world.epoch([*range(200, 250)] * 4)
    assert world.resident >= set(range(200, 250))
    assert policy.t_hot > ONCE


def test_what_cannot_be_seen_stays():
    _, world = make_world()
    world.epoch(range(90))
    for _ in range(3):
        world.epoch([*range(200, 250)] * 4, blind=range(90))
    assert world.resident >= set(range(90))


def test_watermarks_have_limits_and_one_has_those_of_the_other():
    policy = Policy()
    assert policy._watermarks(2_000_000, 1.0) == (40_000, 60_000)
    assert policy._watermarks(100_000, 1.0) == (12_800, 12_800)
    assert policy._watermarks(50_000_000, 1.0) == (256_000, 256_000)
    assert policy._watermarks(16_384, 1 / 64) == (327, 491)


def test_a_new_page_may_start_hot():
    policy, world = make_world(start_hot=True)
    world.epoch([*range(200), *range(50)])
    assert policy._stats["count"][60] == 512 + 4
    world.epoch([999])
    assert policy._stats["count"][-1] == 512 + (1 << (TWICE + 1))


def test_cold_pages_are_forgotten():
    policy, world = make_world(nr_ram_frames=4, cooling_period=1000, scale=1)
    world.epoch(range(100))
    for _ in range(11):
        world.epoch([1] * 1000)
    assert len(policy._stats) <= 5
