"""hemem: thresholds by kind, lists, lazy cooling with its quirks."""

from tests.kit.policy import PolicyWorld
from xipfs.policy.hemem import Policy


def promoted(world, pages, **facts):
    return world.epoch(pages, **facts).promote.tolist()


def test_four_reads_make_a_page_hot():
    world = PolicyWorld(Policy())
    assert promoted(world, [1] * 3 + [2] * 4) == [2]
    assert promoted(world, [1]) == [1]


def test_reads_and_writes_do_not_add_up():
    world = PolicyWorld(Policy())
    assert promoted(world, [1] * 3) == []
    assert promoted(world, [1] * 3, written=[1]) == []
    assert promoted(world, [1], written=[1]) == [1]


def test_room_is_made_by_the_longest_cold():
    world = PolicyWorld(Policy(), nr_ram_frames=2)
    promoted(world, [1] * 4 + [2] * 4)
    for _ in range(3):
        world.epoch([9] * 20)  # the clock ticks
    assert 9 in world.resident
    assert len(world.resident & {1, 2}) == 1


def test_hot_pages_are_never_evicted():
    world = PolicyWorld(Policy(), nr_ram_frames=2)
    for _ in range(6):
        world.epoch([1] * 8 + [2] * 8 + [3] * 100)
    assert world.resident == {1, 2}


def test_the_longest_waiting_goes_first():
    world = PolicyWorld(Policy(migrate_rate_pages=1, kswapd_interval_ms=1000, scale=1))
    assert promoted(world, [7] * 4) == [7]
    assert promoted(world, [5] * 4) == [5]
    assert promoted(world, [1] * 4 + [9] * 4) == [1]
    assert promoted(world, [3] * 4) == [9]
    assert promoted(world, []) == [3]


def test_a_page_that_slept_is_judged_by_what_it_was_and_thrown_out_again():
    world = PolicyWorld(Policy())
    world.epoch([1] * 3)
    world.epoch([5] * 50)  # the clock ticks
    assert promoted(world, [1]) == []  # 4 reads, hot; then 4 >> 1
    assert promoted(world, [1]) == []
    assert promoted(world, [1]) == [1]


def test_only_the_counter_of_the_sampled_kind_is_halved():
    world = PolicyWorld(Policy())
    world.epoch([1] * 3)
    world.epoch([5] * 50)
    world.epoch([1], written=[1])  # its clock is now that of all, and nobody halved the reads
    assert promoted(world, [1]) == [1]


def test_a_sweep_looks_at_some_pages_a_round():
    policy = Policy(cooling_pages=1, kswapd_interval_ms=1000, scale=1)
    world = PolicyWorld(policy)
    world.epoch([1] * 4 + [2] * 4 + [3] * 4)
    for expected in (2, 1, 0):
        world.epoch([7] * 50 if expected == 2 else [])
        hot = policy._stats.pages[policy._stats["hot"]].tolist()
        assert len(set(hot) & {1, 2, 3}) == expected


def test_nr_requests_of_a_round():
    settings = {"kswapd_interval_ms": 1000, "scale": 1}
    world = PolicyWorld(Policy(hot_ring_reqs=2, **settings))
    assert promoted(world, [1, 2, 3, 4] * 4) == [1, 2]


def test_what_cannot_be_seen_makes_no_room():
    world = PolicyWorld(Policy(), nr_ram_frames=2)
    world.epoch([1] * 4 + [2] * 4)
    for _ in range(6):
        world.epoch([9] * 20, blind=[1, 2])
    assert world.resident == {1, 2}


def test_a_page_that_came_back_soon_counts_for_many():
    world = PolicyWorld(Policy())
    assert promoted(world, [1, 2], latency_ns=[200_000_000, 300_000_000]) == [1]


def test_cold_pages_are_forgotten():
    policy = Policy()
    world = PolicyWorld(policy, nr_ram_frames=1)
    world.epoch(range(100))
    for _ in range(3):
        world.epoch([5] * 50)
    assert len(policy._stats) == 1
