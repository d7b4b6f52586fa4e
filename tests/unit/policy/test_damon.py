"""damon: regions follow use, schemes have quotas."""

import itertools

import numpy as np
import pytest

from tests.kit.policy import PolicyWorld
from xipfs.policy.damon import Policy

IMAGE = range(4000)
HOT = range(1000, 1500)


def run(policy, nr_epochs=40, *, nr_ram_frames=1000, hot=HOT):
    world = PolicyWorld(policy, nr_ram_frames=nr_ram_frames)
    world.epoch(IMAGE)
    for _ in range(nr_epochs):
        world.epoch([*hot] * 8)
    return world


def test_a_hot_area_comes_and_the_rest_stays_out():
    world = run(Policy())
    assert len(world.resident & set(HOT)) > 450
    assert world.resident <= set(HOT) | {min(IMAGE)} | world.resident & set(IMAGE)
    assert len(world.resident - set(HOT)) <= 1  # one page, in the epoch that read all


def test_an_area_that_cools_makes_room():
    policy = Policy()
    world = run(policy, nr_ram_frames=520)
    later = range(3000, 3500)
    for _ in range(80):
        world.epoch([*later] * 8)
    assert len(world.resident & set(later)) > 250


def test_regions_are_few_and_cover_all():
    policy = Policy(max_nr_regions=40)
    world = PolicyWorld(policy, nr_ram_frames=100)
    rng = np.random.default_rng(1)
    for _ in range(30):
        world.epoch(rng.integers(0, 4000, 500))
        first = policy._regions.first
        assert (np.diff(first) > 0).all()
        assert 1 <= policy.nr_regions <= 80
        assert np.diff(policy._starts(policy._regions)).min() >= 1
    assert policy._starts(policy._regions)[-1] == len(policy._touched)


def test_files_far_apart_are_one_range():
    policy = Policy()
    world = PolicyWorld(policy, nr_ram_frames=1000)
    far = [(file << 32) + page for file in (1, 70) for page in range(200)]
    for _ in range(30):
        world.epoch(far * 8)
    assert world.resident == set(far)


def test_only_pages_that_were_used_are_promoted():
    world = PolicyWorld(Policy(), nr_ram_frames=1000)
    world.epoch(range(100))
    for _ in range(30):
        plan = world.epoch([*range(0, 100, 2)] * 8)
        assert all(page % 2 == 0 for page in plan.promote.tolist()) or world.nr_epochs == 2


def test_a_quota_doubles_while_the_goal_is_far():
    world = PolicyWorld(Policy(quota_pages=20, scale=1), nr_ram_frames=10_000)
    promoted = [len(world.epoch([*range(500)] * 8).promote) for _ in range(8)]
    assert promoted[0] <= 1
    assert all(more <= 2 * less + 1 for less, more in itertools.pairwise(promoted))
    assert promoted[-2:] == [20, 20]


def test_a_quota_shrinks_beyond_the_goal():
    policy = Policy()
    world = PolicyWorld(policy, nr_ram_frames=1000)
    for _ in range(5):
        world.epoch([])
        world.epoch([1])
    assert policy._demote_quota == 0.5
    assert not len(world.epoch([]).demote)


def test_what_cannot_be_seen_stays():
    world = run(Policy(), nr_ram_frames=520)
    held = set(world.resident)
    for _ in range(40):
        world.epoch([*range(3000, 3500)] * 8, blind=held)
    assert world.resident >= held


def test_chance_has_a_seed():
    one, two, other = (run(Policy(seed=seed), 8) for seed in (3, 3, 4))
    assert one.resident == two.resident
    assert one.policy._regions.first.tolist() == two.policy._regions.first.tolist()
    assert one.policy._regions.first.tolist() != other.policy._regions.first.tolist()


@pytest.mark.parametrize("name", ["nr_accesses", "before", "age"])
def test_merging_weighs_by_size(name):
    policy = Policy(min_nr_regions=1)
    policy._touched.rows(np.arange(4))
    regions = policy._regions._replace(
        first=np.array([0, 3]),
        nr_accesses=np.array([4.0, 8.0]),
        before=np.array([4.0, 8.0]),
        age=np.array([4.0, 8.0]),
    )
    assert policy._merge_alike(regions, 3).first.tolist() == [0, 3]
    assert getattr(policy._merge_alike(regions, 4), name).tolist() == [5.0]
