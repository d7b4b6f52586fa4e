"""ours: moves what pays, and learns what uses can be foretold from."""

import numpy as np
import pytest

from tests.kit.policy import EPOCH_NS, PolicyWorld, check_plan, make_batch, make_tiers
from xipfs.policy.ours import Policy

MS = EPOCH_NS // 1000


def make_world(nr_ram_frames=4, **options) -> PolicyWorld:
    return PolicyWorld(Policy(), nr_ram_frames=nr_ram_frames, **options)


def decide(policy, pages, **facts):
    tiers = make_tiers(**facts)
    plan = policy.decide(make_batch(pages, facts.get("resident", ())), tiers)
    check_plan(plan, tiers)
    return plan.promote.tolist(), plan.demote.tolist()


def test_free_frames_go_to_the_most_used():
    promote, _ = decide(Policy(), [9] * 20 + [5] * 30 + [7] * 10, nr_ram_frames=2)
    assert promote == [5, 9]


def test_a_page_that_is_hardly_used_is_not_worth_a_copy():
    """20 ns a use for 16 epochs pay for 2 us of copying if there are more than six an epoch."""
    facts = {"latency_ns": (80.0, 100.0)}
    assert decide(Policy(), [1], **facts) == ([], [])
    assert decide(Policy(), [1] * 50, **facts) == ([1], [])


def test_a_swap_must_pay():
    policy = Policy()
    facts = {"nr_ram_frames": 1, "resident": [1], "latency_ns": (80.0, 180.0)}
    assert decide(policy, [1] * 10 + [2] * 11, **facts) == ([], [])
    assert decide(policy, [1] * 10 + [2] * 90, epoch=1, **facts) == ([2], [1])


def test_a_dirty_page_leaves_for_more_only():
    facts = {"nr_ram_frames": 1, "resident": [1]}
    uses = [1] * 4 + [2] * 5
    assert decide(Policy(), uses, **facts) == ([2], [1])
    assert decide(Policy(), uses, dirty=[1], **facts) == ([], [])


def test_nothing_comes_to_ram_that_is_no_faster():
    assert decide(Policy(), [1] * 100, latency_ns=(400.0, 300.0)) == ([], [])


def test_a_scan_takes_nothing_away():
    world = make_world(nr_ram_frames=4)
    hot = [1, 2, 3, 4]
    for epoch in range(10):
        start = 100 + 50 * (epoch % 4)
        world.epoch(hot * 10 + list(range(start, start + 50)))
    assert world.resident == set(hot)


def test_another_working_set_takes_over():
    world = make_world(nr_ram_frames=4)
    for _ in range(10):
        world.epoch([1, 2, 3, 4] * 10)
    for _ in range(6):
        world.epoch([5, 6, 7, 8] * 10)
    assert world.resident == {5, 6, 7, 8}


def test_what_was_dropped_and_came_back_soon_is_hot():
    """One access each, but one page was waited for a thousandth of an epoch, one for all of it."""
    policy = Policy()
    tiers = make_tiers(nr_ram_frames=1)
    batch = make_batch([1, 2], latency_ns=[EPOCH_NS, MS])
    assert policy.decide(batch, tiers).promote.tolist() == [2]


def test_a_first_reading_proves_nothing_where_others_are_hidden():
    """Page 1 was scanned, and nobody looked since; page 2 came back within a tenth of an epoch.

    The first reading counted as a use in an epoch, and outweighed what came after it.
    """
    policy = Policy()
    facts = {"nr_ram_frames": 1, "is_sampled": True}
    decide(policy, [2] + [1] * 20, resident=[1], **facts)
    tiers = make_tiers(epoch=1, resident=[1], blind=[1], **facts)
    plan = policy.decide(make_batch([2], latency_ns=[100 * MS]), tiers)
    assert (plan.promote.tolist(), plan.demote.tolist()) == ([2], [1])


def test_what_is_not_watched_is_not_forgotten():
    """A look once in forty epochs is worth as much at the end of them as at the start."""
    policy = Policy()
    facts = {"nr_ram_frames": 0, "is_sampled": True}
    policy.decide(make_batch([1], latency_ns=[10 * MS]), make_tiers(**facts))
    known = policy._rates(1).tolist()
    for epoch in range(1, 40):
        decide(policy, [], epoch=epoch, blind_chunks=[0], **facts)
    assert policy._rates(1).tolist() == known


def test_a_page_that_came_back_after_epochs_was_waited_for_in_all_of_them():
    policy = Policy()
    tiers = make_tiers(nr_ram_frames=0, is_sampled=True)
    batch = make_batch([1, 2], latency_ns=[EPOCH_NS, 5 * EPOCH_NS])
    policy.decide(batch, tiers)
    once, seldom = policy._rates(1).tolist()
    assert once > 3 * seldom


def test_who_cannot_be_seen_is_not_forgotten_at_once():
    """A resident page that the kernel caches keeps its place against one that is used less."""
    policy = Policy()
    decide(policy, [1] * 40, nr_ram_frames=1, resident=[1])
    for epoch in range(1, 6):
        found = decide(policy, [2] * 5, epoch=epoch, nr_ram_frames=1, resident=[1], blind=[1])
        assert found == ([], [])
    policy = Policy()
    decide(policy, [1] * 40, nr_ram_frames=1, resident=[1])
    moved = [
        decide(policy, [2] * 5, epoch=epoch, nr_ram_frames=1, resident=[1])[0]
        for epoch in range(1, 8)
    ]
    assert [2] in moved, "it was watched, and not used"


def test_cold_pages_are_forgotten():
    policy = Policy()
    for epoch in range(200):
        decide(policy, range(epoch * 100, epoch * 100 + 100), epoch=epoch, nr_ram_frames=0)
    assert len(policy._stats) < 100 * 16 * 5
    assert policy._stats.size_bytes == 24 * len(policy._stats)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_of_a_zipf_distribution_the_head_is_in_ram(share):
    rng = np.random.default_rng(3)
    nr_pages = 400
    world = make_world(nr_ram_frames=int(share * nr_pages))
    weights = 1 / np.arange(1, nr_pages + 1)
    weights /= weights.sum()
    pages = rng.permutation(nr_pages)
    for _ in range(30):
        uses = rng.choice(pages, 4000, p=weights)
        world.epoch(uses.tolist())
    in_ram = np.isin(uses, list(world.resident)).mean()
    best = weights[: world.nr_ram_frames].sum()
    assert in_ram > 0.93 * best
