"""The contract of policies (`xipfs.policy.contract`), for every policy that there is.

A policy is found by being there: a new module in xipfs/policy/ is tested by that alone.
"""

import copy
import functools
import gc
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.policy import PolicyWorld, check_plan, make_batch, make_tiers
from xipfs.policy.contract import no_pages, page_id
from xipfs.policy.pagestats import PageStats
from xipfs.policy.registry import (
    load_policy,
    policy_names,
    policy_parameters,
    policy_summary,
)

every_policy = pytest.mark.parametrize("name", policy_names())

pages = st.one_of(
    st.integers(0, 60),
    st.builds(page_id, st.integers(1, 3), st.sampled_from([0, 1, 2, 15, 16, 511, 512, 1 << 31])),
)
epochs = st.lists(st.tuples(st.lists(pages, max_size=60), st.sets(pages, max_size=10)), max_size=12)


def frozen(*arrays):
    """Make the arrays read-only: who writes to one of them is found out."""
    for array in arrays:
        array.flags.writeable = False


@functools.cache
def policy_class(name):
    return type(load_policy(name))


def new_policy(name):
    """Return a new one, without looking for installed packages at every example."""
    return policy_class(name)()


def listed(plan):
    return plan.promote.tolist(), plan.demote.tolist(), plan.exchange.tolist()


@every_policy
@given(epochs=epochs, nr_ram_frames=st.integers(0, 20), budget_pages=st.integers(1, 30))
def test_plans_are_legal_and_the_same_again(name, epochs, nr_ram_frames, budget_pages):
    """Within budget and room, nothing twice; and the same accesses give the same plans."""
    runs = []
    for _ in range(2):
        world = PolicyWorld(
            new_policy(name), nr_ram_frames=nr_ram_frames, budget_pages=budget_pages
        )
        plans = [world.epoch(read, blind=blind) for read, blind in epochs]
        runs.append([listed(plan) for plan in plans])
    assert runs[0] == runs[1]


@every_policy
@given(epochs=epochs)
def test_what_it_is_given_stays_as_it_is(name, epochs):
    policy = new_policy(name)
    resident: set[int] = set()
    for number, (read, blind) in enumerate(epochs):
        batch = make_batch(read, resident)
        tiers = make_tiers(
            epoch=number, nr_ram_frames=20, resident=resident, blind=resident & blind
        )
        frozen(batch.page, batch.kind, batch.tier, batch.latency_ns, tiers.resident, tiers.blind)
        plan = policy.decide(batch, tiers)
        resident -= {*plan.demote.tolist(), *plan.exchange[:, 0].tolist()}
        resident |= {*plan.promote.tolist(), *plan.exchange[:, 1].tolist()}


@every_policy
@given(epochs=epochs)
def test_what_it_gave_may_be_changed(name, epochs):
    """A plan is the caller's: to write to it does not change what the policy knows."""
    kept = PolicyWorld(new_policy(name), nr_ram_frames=6)
    spoilt = PolicyWorld(new_policy(name), nr_ram_frames=6)
    for read, blind in epochs:
        expected = kept.epoch(read, blind=blind)
        plan = spoilt.epoch(read, blind=blind)
        assert listed(plan) == listed(expected)
        for part in (plan.promote, plan.demote, plan.exchange):
            part[...] = -1


@every_policy
def test_no_pages(name):
    """Nothing was read, there is nothing to read, there is no RAM: nothing is moved."""
    policy = new_policy(name)
    for epoch, nr_ram_frames in enumerate([8, 0, 8]):
        tiers = make_tiers(epoch=epoch, nr_ram_frames=nr_ram_frames)
        plan = policy.decide(make_batch([]), tiers)
        check_plan(plan, tiers)
        assert len(plan.promote) == len(plan.demote) == 0


@every_policy
def test_each_object_is_for_itself(name):
    """Two mounts in one process do not share what their policies remember."""
    first, second = new_policy(name), new_policy(name)
    for epoch in range(3):
        first.decide(make_batch(range(10)), make_tiers(epoch=epoch))
    fresh = copy.deepcopy(new_policy(name)).decide(make_batch(range(10)), make_tiers())
    plan = second.decide(make_batch(range(10)), make_tiers())
    assert plan.promote.tolist() == fresh.promote.tolist()


@every_policy
def test_a_large_epoch(name):
    """A million accesses in one epoch, most of them to other files."""
    policy = new_policy(name)
    page = np.arange(1 << 20, dtype=np.int64) * 4097
    for epoch in range(2):
        tiers = make_tiers(epoch=epoch, nr_ram_frames=1000)
        check_plan(policy.decide(make_batch(page), tiers), tiers)


@every_policy
def test_memory_is_of_touched_pages(name):
    """What is known of pages has a row each, of 32 bytes at most."""
    policy = new_policy(name)
    world = PolicyWorld(policy, nr_ram_frames=50)
    for first in (0, 1 << 40):
        world.epoch(range(first, first + 500))
    for stats in vars(policy).values():
        if isinstance(stats, PageStats):
            assert stats.size_bytes <= 32 * 1000


def kept_bytes(name: str, nr_pages: int) -> int:
    """Return what a policy holds on to after some epochs that read so many pages, all of them."""
    tracemalloc.start()
    try:
        policy = new_policy(name)
        world = PolicyWorld(policy, nr_ram_frames=64)
        for _ in range(4):
            world.epoch(range(0, 3 * nr_pages, 3))
        del world
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        del policy
        gc.collect()
        return held - tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@every_policy
def test_a_page_that_was_touched_costs_32_bytes_at_most(name):
    """By Python's own books, whatever a policy keeps and how; pages between the touched cost none.

    What is kept for each frame of RAM is the same in both, and does not count.
    """
    kept_bytes(name, 10)  # what is made once, is made
    nr_pages = 2000
    few, many = kept_bytes(name, nr_pages), kept_bytes(name, 2 * nr_pages)
    assert many - few <= 32 * nr_pages


@every_policy
def test_every_constant_has_its_source(name):
    """A parameter's default stands in the module, with what it means and where it is from."""
    module = sys.modules[type(load_policy(name)).__module__]
    for parameter in policy_parameters(name):
        constant = getattr(module, parameter.name.upper())
        assert constant == parameter.default
        assert "Source: " in parameter.help, parameter.name


@every_policy
def test_it_says_what_it_does_and_what_is_uncertain(name):
    assert 20 < len(policy_summary(name)) <= 100
    module = sys.modules[type(load_policy(name)).__module__]
    if name != "none":
        assert "Source: " in module.__doc__
        assert "Uncertain: " in module.__doc__


def test_there_are_policies():
    assert {"none", "second_chance"} <= set(policy_names())
    assert len(no_pages()) == 0
