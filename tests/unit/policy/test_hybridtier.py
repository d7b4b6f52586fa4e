"""hybridtier: frequency, momentum, the scan for room, and when it lets go."""

import numpy as np

from tests.kit.policy import PolicyWorld, make_batch, make_tiers
from xipfs.policy.hybridtier import Policy

NEVER = 10**9


def make_policy(**settings):
    """A policy whose windows are long, and that does not give up, unless told otherwise."""
    return Policy(**{"momentum_window": NEVER, "nr_warmup_batches": NEVER, "scale": 1, **settings})


def test_momentum_in_the_short_run():
    world = PolicyWorld(make_policy())
    assert world.epoch([1] * 2 + [2] * 3).promote.tolist() == [2]
    assert world.epoch([1]).promote.tolist() == [1]


def test_frequency_in_the_long_run():
    world = PolicyWorld(make_policy(momentum_window=1))
    for _ in range(2):
        assert not len(world.epoch([1] * 2).promote)
    assert world.epoch([1] * 2).promote.tolist() == [1]


def test_counters_end_at_fifteen():
    policy = make_policy()
    PolicyWorld(policy).epoch([1] * 100)
    assert policy._stats["freq"].tolist() == policy._stats["momentum"].tolist() == [15]


def test_each_counter_has_its_window():
    policy = make_policy(momentum_window=10, freq_window_per_frame=2)
    world = PolicyWorld(policy, nr_ram_frames=10)
    world.epoch([1] * 8)
    world.epoch([2] * 4)
    assert policy._stats["momentum"].tolist() == [4, 2]
    assert policy._stats["freq"].tolist() == [8, 4]
    world.epoch([2] * 8)
    assert policy._stats["freq"].tolist() == [4, 6]


def test_without_a_free_frame_nobody_is_promoted():
    world = PolicyWorld(make_policy(), nr_ram_frames=2)
    world.epoch([1] * 9 + [2] * 9)
    for _ in range(3):
        assert not len(world.epoch([1, 2, *[3] * 9]).promote)


def test_the_scan_takes_those_low_in_both():
    policy = make_policy(momentum_window=2)
    world = PolicyWorld(policy, nr_ram_frames=4)
    world.resident = {1, 2, 3, 4}
    plan = world.epoch([1] * 3 + [2] * 6 + [3] * 3 + [4] * 6)
    assert plan.demote.tolist() == [1]  # F / 20 are to be free, at least one
    assert not len(world.epoch([]).demote)


def test_second_chances():
    """Often used but not of late: such a page waits, and stays if it is used meanwhile."""
    policy = make_policy(momentum_window=2, second_chance_s=3, freq_window_per_frame=NEVER)
    world = PolicyWorld(policy, nr_ram_frames=2)
    world.epoch([1] * 9 + [2] * 9)
    world.epoch([])
    assert policy._queue.tolist() == [1, 2]
    for used in ([2], []):
        assert not len(world.epoch(used).demote)
    assert world.epoch([]).demote.tolist() == [1]


def test_the_scan_goes_on_where_it_stopped():
    policy = make_policy(demote_divisor=4)
    resident = range(8)
    policy.decide(make_batch([]), make_tiers(resident=resident))
    gone = [
        policy.decide(make_batch([]), make_tiers(epoch=i, resident=resident)).demote.tolist()
        for i in range(3)
    ]
    assert gone == [[2, 3], [4, 5], [6, 7]]


def test_the_threshold_is_lowered_while_hot_pages_are_few():
    policy = make_policy(nr_warmup_batches=0, batch_samples=1, nr_plateau_batches=5)
    world = PolicyWorld(policy, nr_ram_frames=100)
    seen = []
    for _ in range(4):
        world.epoch([1] * 5)
        seen.append((policy.threshold, policy.monitoring))
    assert seen == [(4, False), (3, False), (3, True), (3, True)]


def test_two_rounds_that_find_too_little_end_in_monitoring():
    policy = make_policy()
    world = PolicyWorld(policy, nr_ram_frames=4)
    world.epoch([1, 2, 3, 4] * 9)
    world.epoch([])
    assert not policy.monitoring
    world.epoch([])
    assert policy.monitoring
    assert not len(world.epoch([7] * 50).promote)


def test_monitoring_ends_when_the_share_of_ram_falls():
    policy = make_policy(settle_s=2, check_s=1)
    policy._start_monitoring(0)
    tiers = [make_tiers(epoch=i, nr_accesses=(90, 10)) for i in range(20)]
    for made in tiers:
        policy.decide(make_batch([]), made)
    assert policy.monitoring
    policy.threshold = 3
    for i in range(5):
        made = make_tiers(epoch=20 + i, nr_accesses=(80 - 10 * i, 20 + 10 * i))
        policy.decide(make_batch([]), made)
    assert not policy.monitoring
    assert policy.threshold == 5


def test_what_cannot_be_seen_stays():
    world = PolicyWorld(make_policy(momentum_window=1), nr_ram_frames=4)
    world.resident = {1, 2, 3, 4}
    for _ in range(4):
        world.epoch([9], blind=[1, 2, 3, 4])
    assert world.resident == {1, 2, 3, 4}


def test_pages_without_a_count_are_forgotten():
    policy = make_policy(momentum_window=1, freq_window_per_frame=1)
    world = PolicyWorld(policy, nr_ram_frames=4)
    world.epoch(range(100))
    for _ in range(3):
        world.epoch([7] * 8)
    assert len(policy._stats) <= 5
    assert policy._stats.pages.dtype == np.int64
