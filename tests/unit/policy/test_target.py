"""plan_towards: RAM becomes the target, as fast as the budget allows; nothing leaves in vain."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.policy import check_plan, make_tiers
from xipfs.policy.target import nr_to_demote, plan_moves, plan_towards

sets = st.sets(st.integers(0, 30), max_size=12)


def plan(target, **tiers):
    made = make_tiers(**tiers)
    found = plan_towards(np.array(target, np.int64), made)
    check_plan(found, made)
    return found.promote.tolist(), found.demote.tolist()


def test_free_frames_first():
    assert plan([7, 8], nr_ram_frames=4, resident=[1, 2]) == ([7, 8], [])


def test_nothing_leaves_without_need():
    assert plan([], nr_ram_frames=4, resident=[1, 2]) == ([], [])


def test_the_most_wanted_come_first():
    assert plan([9, 3, 5], nr_ram_frames=2, resident=[1, 2], budget_pages=2) == ([9], [1])


def test_blind_pages_stay_longest():
    found = plan([9], nr_ram_frames=3, resident=[1, 2, 3], blind=[1, 2])
    assert found == ([9], [3])


@given(target=sets, resident=sets, nr_more=st.integers(0, 5), budget=st.integers(1, 9))
def test_it_gets_there(target, resident, nr_more, budget):
    nr_frames = max(len(target), len(resident)) + nr_more
    for _ in range(40):
        promote, demote = plan(
            sorted(target), nr_ram_frames=nr_frames, resident=resident, budget_pages=max(budget, 2)
        )
        assert not set(demote) & target
        if not promote:
            break
        resident = (resident - set(demote)) | set(promote)
    assert target <= resident


@given(
    nr_promote=st.integers(0, 12),
    resident=sets,
    nr_more=st.integers(0, 5),
    budget=st.integers(1, 20),
    nr_keep_free=st.integers(0, 6),
)
def test_what_has_to_go_is_enough_and_no_more(nr_promote, resident, nr_more, budget, nr_keep_free):
    tiers = make_tiers(
        nr_ram_frames=len(resident) + nr_more, resident=resident, budget_pages=budget
    )
    nr_demote = nr_to_demote(nr_promote, tiers, nr_keep_free=nr_keep_free)
    made = plan_moves(np.arange(100, 100 + nr_promote), tiers.resident[:nr_demote], tiers)
    check_plan(made, tiers)
    nr_moved = len(made.promote) + len(made.demote)
    nr_free = nr_more - len(made.promote) + len(made.demote)
    if nr_moved < budget - 1 and nr_demote <= len(resident):
        assert len(made.promote) == nr_promote
        assert nr_free >= nr_keep_free
    if nr_demote:
        assert nr_free <= max(nr_keep_free, 0)


@given(
    promote=sets,
    resident=sets,
    nr_demote=st.integers(0, 12),
    free=st.integers(0, 5),
    budget=st.integers(1, 20),
)
def test_moves_fit(promote, resident, nr_demote, free, budget):
    tiers = make_tiers(nr_ram_frames=len(resident) + free, resident=resident, budget_pages=budget)
    wanted = np.array(sorted(promote - resident), np.int64)
    check_plan(plan_moves(wanted, tiers.resident[:nr_demote], tiers), tiers)
