"""LruLists: the kernel's two lists, by hand."""

import numpy as np
import pytest

from tests.kit.policy import make_batch, make_tiers
from xipfs.policy.lrulists import ACTIVE, REFERENCED, YOUNG, LruLists, nr_idle_epochs
from xipfs.policy.pageset import page_set
from xipfs.policy.pagestats import PageStats


@pytest.fixture
def stats():
    made = PageStats(flags=np.uint8, turn=np.int64)
    made.rows(np.arange(8))
    return made


@pytest.fixture
def lists(stats):
    made = LruLists(stats)
    made.move_to_head(np.arange(8))
    return made


def test_two_marks_make_a_page_active(stats, lists):
    row = np.array([3])
    seen = []
    for _ in range(4):
        lists.mark_page_accessed(row)
        seen.append(int(stats["flags"][3]))
    assert seen == [REFERENCED, ACTIVE, ACTIVE | REFERENCED, ACTIVE | REFERENCED]


def test_the_tail_goes_unless_it_is_young(stats, lists):
    lists.set_young(np.array([0, 2]))
    assert lists.shrink(np.arange(8), 2).tolist() == [1, 3]
    assert stats["flags"][:3].tolist() == [REFERENCED, 0, REFERENCED]
    assert lists.by_turn(np.arange(8)).tolist()[-2:] == [0, 2]


def test_young_and_referenced_becomes_active(stats, lists):
    for _ in range(2):
        lists.set_young(np.array([0]))
        lists.age_inactive(np.array([0]))
    assert stats["flags"][0] == ACTIVE


def test_nothing_wanted_nothing_looked_at(stats, lists):
    lists.set_young(np.arange(8))
    assert len(lists.shrink(np.arange(8), 0)) == 0
    assert (stats["flags"] == YOUNG).all()


def test_if_all_are_young_none_goes(stats, lists):
    lists.set_young(np.arange(8))
    assert len(lists.shrink(np.arange(8), 3)) == 0
    assert lists.shrink(np.arange(8), 3).tolist() == [0, 1, 2]


def test_the_longer_active_list_gives_up_its_tail(stats, lists):
    stats["flags"][:6] = ACTIVE | YOUNG
    lists.balance(np.arange(8))
    assert stats["flags"].tolist() == [0, 0] + [ACTIVE | YOUNG] * 4 + [0, 0]
    assert lists.by_turn(np.flatnonzero(stats["flags"] == 0)).tolist() == [6, 7, 0, 1]


def test_what_was_just_deactivated_does_not_go_in_the_same_breath(stats, lists):
    stats["flags"][:] = ACTIVE
    assert len(lists.shrink(np.arange(8), 2)) == 0
    assert lists.shrink(np.arange(8), 2).tolist() == [0, 1]


def test_idle_epochs():
    stats = PageStats(epoch=np.int64)
    batch = make_batch([1, 2, 3], latency_ns=[-1, 2_500_000_000, 10])
    pages = page_set(batch.page)
    rows = stats.rows(pages)
    stats["epoch"][rows] = 4
    found = nr_idle_epochs(batch, pages, stats, make_tiers(epoch=7))
    assert found.tolist() == [2, 2, 0]
