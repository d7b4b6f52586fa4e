"""The access log, against a plain list of pages."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.policy.contract import AccessKind, Tier, page_id
from xipfs.tiering import access_log
from xipfs.tiering.access_log import AccessLog, access_origin

RING, EPOCH_PAGES = 8, 50


@pytest.fixture
def small_log(monkeypatch):
    """Make logs of 8 ranges, of which an epoch takes at most 50 pages."""
    monkeypatch.setattr(access_log, "NR_RANGES_MAX", RING)
    monkeypatch.setattr(access_log, "NR_EPOCH_PAGES_MAX", EPOCH_PAGES)
    return AccessLog


def test_an_empty_log():
    pages, kinds, *_ = AccessLog().take()
    assert len(pages) == len(kinds) == 0
    assert pages.dtype == np.int64
    assert kinds.dtype == np.uint8


def test_ranges_become_pages_in_their_order():
    log = AccessLog()
    log.record(page_id(7, 10), 3)
    log.record(page_id(2, 0), 1)
    log.record(page_id(7, 11), 2)
    pages, kinds, *_ = log.take()
    expected = [page_id(7, 10), page_id(7, 11), page_id(7, 12), page_id(2, 0)]
    assert pages.tolist() == [*expected, page_id(7, 11), page_id(7, 12)]
    assert kinds.tolist() == [AccessKind.READ] * 6
    assert log.nr_dropped_ranges == 0


def test_who_how_and_where():
    log = AccessLog(clock=iter(range(100, 200)).__next__)
    log.record(5, 2, access_origin(4711, AccessKind.WRITE) | Tier.RAM)
    log.record(9, 1, access_origin(1 << 22, AccessKind.READ) | Tier.NVRAM)
    ranges = log.follow(0)
    assert ranges.client.tolist() == [4711, 1 << 22]
    assert ranges.nr_pages.tolist() == [2, 1]
    accesses = log.take()
    assert accesses.kind.tolist() == [AccessKind.WRITE, AccessKind.WRITE, AccessKind.READ]
    assert accesses.tier.tolist() == [Tier.RAM, Tier.RAM, Tier.NVRAM]
    assert accesses.time_ns.tolist() == [100, 100, 101]


def test_following_takes_nothing_away():
    log = AccessLog()
    start = log.position
    log.record(1, 1)
    first = log.follow(start)
    log.record(2, 1)
    assert log.follow(first.next_position).page.tolist() == [2]
    assert log.follow(start).page.tolist() == [1, 2]
    assert log.take().page.tolist() == [1, 2]


def test_who_follows_too_late_is_told(small_log):
    log = small_log()
    for page in range(RING + 3):
        log.record(page, 1)
    ranges = log.follow(0)
    assert (ranges.nr_lost, ranges.page.tolist()) == (3, list(range(3, RING + 3)))


def test_taking_empties_it():
    log = AccessLog()
    log.record(1, 1)
    first = log.take().page
    assert len(log.take()[0]) == 0
    log.record(2, 1)
    assert log.take()[0].tolist() == [2]
    assert first.tolist() == [1], "what was taken is a copy"


@given(
    epochs=st.lists(
        st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 12)), max_size=3 * RING),
        max_size=4,
    )
)
def test_the_newest_survive(epochs):
    """Of too many ranges the oldest go, and then those that would be too many pages; all count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access_log, "NR_RANGES_MAX", RING)
        patch.setattr(access_log, "NR_EPOCH_PAGES_MAX", EPOCH_PAGES)
        log = AccessLog()
        nr_dropped = 0
        for ranges in epochs:
            for page, nr_pages in ranges:
                log.record(page, nr_pages)
            kept: list[list[int]] = []
            for page, nr_pages in reversed(ranges[-RING:]):
                if sum(map(len, kept)) + nr_pages > EPOCH_PAGES:
                    break
                kept.insert(0, list(range(page, page + nr_pages)))
            nr_dropped += len(ranges) - len(kept)
            pages, kinds, *_ = log.take()
            assert pages.tolist() == list(chain(*kept))
            assert len(kinds) == len(pages)
            assert log.nr_dropped_ranges == nr_dropped


def test_a_full_ring_is_not_yet_an_overflow(small_log):
    log = small_log()
    for page in range(RING):
        log.record(page, 1)
    assert log.take()[0].tolist() == list(range(RING))
    assert log.nr_dropped_ranges == 0
    for page in range(RING + 1):
        log.record(page, 1)
    assert log.take()[0].tolist() == list(range(1, RING + 1))
    assert log.nr_dropped_ranges == 1
