"""The sampler: drops what is cached, residents first, within its budget, and joins neighbours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.policy.contract import page_id
from xipfs.tiering.sampler import CacheSampler, DropRange

CHUNK = 16
NONE = np.empty(0, np.int64)


def ids(*parts: tuple[int, int]) -> np.ndarray:
    return np.array([page_id(*part) for part in parts], np.int64)


def run(mapping_id: int, start: int, end: int) -> np.ndarray:
    return np.arange(page_id(mapping_id, start), page_id(mapping_id, end))


def make_sampler(nr_chunks_min=4, nr_chunks_max=8) -> CacheSampler:
    return CacheSampler(
        budget_pages_min=nr_chunks_min * CHUNK, budget_pages_max=nr_chunks_max * CHUNK
    )


def chunks_of(ranges: list[DropRange]) -> list[tuple[int, int]]:
    """The chunks in *ranges*, as (file, first page)."""
    return [
        (mapping_id, start)
        for mapping_id, pgoff, nr_pages in ranges
        for start in range(pgoff, pgoff + nr_pages, CHUNK)
    ]


def test_nothing_was_read():
    sampler = make_sampler()
    assert sampler.choose(NONE) == []
    assert sampler.choose(run(7, 0, 100)) == []
    assert sampler.nr_cached_pages == 0


def test_what_was_read_is_dropped_once():
    sampler = make_sampler()
    sampler.observe(ids((7, 3)))
    assert sampler.nr_cached_pages == CHUNK
    assert sampler.choose(NONE) == [DropRange(7, 0, CHUNK)]
    assert sampler.nr_cached_pages == 0
    assert sampler.choose(NONE) == []
    sampler.observe(ids((7, 15), (7, 0)))
    assert sampler.choose(NONE) == [DropRange(7, 0, CHUNK)]


def test_neighbours_are_joined_and_others_are_not():
    sampler = make_sampler(8, 8)
    sampler.observe(ids((7, 40), (7, 20), (7, 0), (7, 100), (9, 112)))
    assert sampler.choose(NONE) == [
        DropRange(7, 0, 3 * CHUNK),
        DropRange(7, 96, CHUNK),
        DropRange(9, 112, CHUNK),
    ]


def test_the_end_of_one_file_is_not_next_to_the_start_of_another():
    """In page ids it is: the last chunk that file 7 can have is followed by the first of file 8."""
    sampler = make_sampler()
    last = (1 << 32) - CHUNK
    sampler.observe(ids((7, last), (8, 0)))
    assert sampler.choose(NONE) == [DropRange(7, last, CHUNK), DropRange(8, 0, CHUNK)]


def test_half_is_for_residents_and_the_rest_for_others():
    sampler = make_sampler(4, 4)
    sampler.observe(run(7, 0, 10 * CHUNK))
    resident = run(7, 5 * CHUNK, 10 * CHUNK)
    # Of both kinds those longest not looked at: they were read in this order.
    assert chunks_of(sampler.choose(resident)) == [(7, chunk * CHUNK) for chunk in (0, 1, 5, 6)]
    assert chunks_of(sampler.choose(resident)) == [(7, chunk * CHUNK) for chunk in (2, 3, 7, 8)]


def test_others_get_what_residents_leave():
    sampler = make_sampler(4, 4)
    sampler.observe(run(7, 0, 6 * CHUNK))
    assert chunks_of(sampler.choose(ids((7, 5 * CHUNK)))) == [
        (7, chunk * CHUNK) for chunk in (0, 1, 2, 5)
    ]


def test_residents_alone_get_their_half():
    sampler = make_sampler(4, 4)
    sampler.observe(run(7, 0, 6 * CHUNK))
    assert len(chunks_of(sampler.choose(run(7, 0, 6 * CHUNK)))) == 2


def test_the_longest_not_looked_at_come_first():
    sampler = make_sampler(1, 1)
    for chunk in (3, 1, 2, 0):
        sampler.observe(ids((7, chunk * CHUNK)))
    sampler.observe(ids((7, 3 * CHUNK)))  # read again: seen just now
    assert chunks_of(sampler.choose(NONE)) == [(7, CHUNK)]
    assert chunks_of(sampler.choose(NONE)) == [(7, 2 * CHUNK)]
    assert chunks_of(sampler.choose(NONE)) == [(7, 0)]
    assert chunks_of(sampler.choose(NONE)) == [(7, 3 * CHUNK)]


@pytest.mark.parametrize(("nr_cached", "nr_chosen"), [(4, 4), (60, 8), (80, 10), (800, 32)])
def test_the_budget_grows_with_what_is_cached(nr_cached, nr_chosen):
    """An eighth of it, between the bounds."""
    sampler = make_sampler(8, 32)
    sampler.observe(run(7, 0, nr_cached * CHUNK))
    assert len(chunks_of(sampler.choose(NONE))) == nr_chosen


def test_blind_are_those_that_the_kernel_answers():
    sampler = make_sampler()
    sampler.observe(ids((7, 3), (9, 20)))
    asked = ids((9, 31), (7, 16), (7, 15), (8, 3), (7, 0), (9, 15))
    assert sampler.blind(asked).tolist() == ids((9, 31), (7, 15), (7, 0)).tolist()
    sampler.choose(NONE)
    assert sampler.blind(asked).tolist() == []
    assert sampler.blind(NONE).tolist() == []


pages = st.builds(
    page_id, st.integers(1, 2), st.one_of(st.integers(0, 400), st.just((1 << 32) - 1))
)


@given(
    steps=st.lists(
        st.tuples(st.lists(pages, max_size=30), st.sets(pages, max_size=30)), max_size=10
    ),
    nr_chunks_min=st.integers(1, 4),
    nr_more=st.integers(0, 4),
)
def test_against_a_set(steps, nr_chunks_min, nr_more):
    """Only what is cached is dropped, each once, within the budget; blind is what is cached."""
    nr_chunks_max = nr_chunks_min + nr_more
    sampler = make_sampler(nr_chunks_min, nr_chunks_max)
    cached: set[int] = set()
    for read, resident in steps:
        sampler.observe(np.array(read, np.int64))
        cached |= {page // CHUNK for page in read}
        assert sampler.nr_cached_pages == CHUNK * len(cached)
        in_ram = np.array(sorted(resident), np.int64)
        assert sampler.blind(in_ram).tolist() == [
            page for page in in_ram.tolist() if page // CHUNK in cached
        ]
        ranges = sampler.choose(in_ram)
        dropped = [page_id(*chunk) // CHUNK for chunk in chunks_of(ranges)]
        assert len(set(dropped)) == len(dropped)
        assert cached.issuperset(dropped)
        assert len(dropped) <= nr_chunks_max
        assert ranges == sorted(ranges)
        assert all(nr_pages % CHUNK == 0 for _, _, nr_pages in ranges)
        cached -= set(dropped)
        if cached and nr_chunks_min > 1:
            assert dropped, "something is cached, and there is a budget"


def test_everything_cached_is_looked_at_in_the_end():
    """Whatever is in RAM and whatever is not: nothing stays blind for ever."""
    sampler = make_sampler(4, 4)
    resident = run(7, 0, 20 * CHUNK)
    sampler.observe(run(7, 0, 20 * CHUNK))
    sampler.observe(run(8, 0, 20 * CHUNK))
    for _ in range(20):
        sampler.choose(resident)
    assert sampler.nr_cached_pages == 0
