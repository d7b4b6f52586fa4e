"""The sampler: drops what is cached, residents first, within its budget, and joins neighbours."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.policy.contract import page_id
from xipfs.tiering.filemap_events import Told
from xipfs.tiering.sampler import CacheSampler, DropRange

CHUNK = 16
NONE = np.empty(0, np.int64)


def ids(*parts: tuple[int, int]) -> np.ndarray:
    return np.array([page_id(*part) for part in parts], np.int64)


def run(mapping_id: int, start: int, end: int) -> np.ndarray:
    return np.arange(page_id(mapping_id, start), page_id(mapping_id, end))


def observe(sampler: CacheSampler, pages: np.ndarray, now_ns: int = 0) -> list[int]:
    return sampler.observe(pages, np.full(len(pages), now_ns)).tolist()


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
    assert sampler.choose(NONE, 0) == []
    assert sampler.choose(run(7, 0, 100), 0) == []
    assert sampler.nr_cached_pages == 0


def test_what_was_read_is_dropped_once():
    sampler = make_sampler()
    observe(sampler, ids((7, 3)))
    assert sampler.nr_cached_pages == CHUNK
    assert sampler.choose(NONE, 0) == [DropRange(7, 0, CHUNK)]
    assert sampler.nr_cached_pages == 0
    assert sampler.choose(NONE, 0) == []
    observe(sampler, ids((7, 15), (7, 0)))
    assert sampler.choose(NONE, 0) == [DropRange(7, 0, CHUNK)]


def test_neighbours_are_joined_and_others_are_not():
    sampler = make_sampler(8, 8)
    observe(sampler, ids((7, 40), (7, 20), (7, 0), (7, 100), (9, 112)))
    assert sampler.choose(NONE, 0) == [
        DropRange(7, 0, 3 * CHUNK),
        DropRange(7, 96, CHUNK),
        DropRange(9, 112, CHUNK),
    ]


def test_the_end_of_one_file_is_not_next_to_the_start_of_another():
    """In page ids it is: the last chunk that file 7 can have is followed by the first of file 8."""
    sampler = make_sampler()
    last = (1 << 32) - CHUNK
    observe(sampler, ids((7, last), (8, 0)))
    assert sampler.choose(NONE, 0) == [DropRange(7, last, CHUNK), DropRange(8, 0, CHUNK)]


def pages_of(ranges: list[DropRange]) -> list[tuple[int, int]]:
    """The pages in *ranges*, as (file, page)."""
    return [(m, page) for m, pgoff, nr_pages in ranges for page in range(pgoff, pgoff + nr_pages)]


def test_a_quarter_is_for_residents_page_by_page_and_the_rest_for_chunks():
    sampler = make_sampler(4, 4)
    observe(sampler, run(7, 0, 10 * CHUNK))
    resident = np.arange(page_id(7, 5 * CHUNK), page_id(7, 10 * CHUNK), 4)
    assert sampler.choose(resident, 0) == [
        DropRange(7, 0, 3 * CHUNK),
        *(DropRange(7, page, 1) for page in range(80, 80 + 16 * 4, 4)),
    ]
    # They go on behind the last ones, and begin anew at the end.
    assert sampler.choose(resident, 0) == [
        DropRange(7, 3 * CHUNK, 3 * CHUNK),
        *(DropRange(7, page, 1) for page in range(144, 160, 4)),
    ]


def test_a_resident_is_dropped_again_only_after_it_was_read():
    sampler = make_sampler(4, 4)
    observe(sampler, run(7, 0, 100 * CHUNK))
    resident = ids((7, 1500), (7, 1550))
    assert set(pages_of(sampler.choose(resident, 0))) >= {(7, 1500), (7, 1550)}
    assert sampler.blind(resident).tolist() == []
    assert {(7, 1500), (7, 1550)}.isdisjoint(pages_of(sampler.choose(resident, 0)))
    observe(sampler, resident[:1])
    assert sampler.blind(resident).tolist() == resident[:1].tolist()
    assert (7, 1500) in pages_of(sampler.choose(resident, 0))


def test_how_long_after_it_was_dropped_a_page_was_read():
    sampler = make_sampler(4, 4)
    assert observe(sampler, run(7, 0, 100 * CHUNK), 50) == [-1] * 100 * CHUNK
    resident = ids((7, 1500))
    sampler.choose(resident, 1000)  # chunks 0 to 2, and the resident
    assert observe(sampler, ids((7, 1500), (7, 1501), (7, 3), (7, 3), (7, 70)), 1300) == [
        300, -1, 300, 300, -1
    ]  # fmt: skip
    assert observe(sampler, ids((7, 4)), 1400) == [400], "though another of its chunk came before"
    assert observe(sampler, ids((7, 1500)), 1400) == [-1], "cached again by then"
    sampler.choose(NONE, 2000)
    assert observe(sampler, ids((7, 80)), 1999) == [0], "clocks that cross are no latency"


def test_others_get_what_residents_leave():
    sampler = make_sampler(4, 4)
    observe(sampler, run(7, 0, 6 * CHUNK))
    assert chunks_of(sampler.choose(ids((7, 5 * CHUNK)), 0)) == [
        (7, chunk * CHUNK) for chunk in (0, 1, 2, 5)
    ]


def test_the_longest_not_looked_at_come_first():
    sampler = make_sampler(1, 1)
    for chunk in (3, 1, 2, 0):
        observe(sampler, ids((7, chunk * CHUNK)))
    observe(sampler, ids((7, 3 * CHUNK)))  # read again: seen just now
    assert chunks_of(sampler.choose(NONE, 0)) == [(7, CHUNK)]
    assert chunks_of(sampler.choose(NONE, 0)) == [(7, 2 * CHUNK)]
    assert chunks_of(sampler.choose(NONE, 0)) == [(7, 0)]
    assert chunks_of(sampler.choose(NONE, 0)) == [(7, 3 * CHUNK)]


@pytest.mark.parametrize(
    ("nr_cached", "nr_chosen"), [(4, 4), (30, 8), (60, 10), (80, 13), (800, 32)]
)
def test_the_budget_grows_with_what_is_cached(nr_cached, nr_chosen):
    """A sixth of it, between the bounds."""
    sampler = make_sampler(8, 32)
    observe(sampler, run(7, 0, nr_cached * CHUNK))
    assert len(chunks_of(sampler.choose(NONE, 0))) == nr_chosen


def test_no_more_is_dropped_than_may_come_back():
    """What came back costs credit, by requests; the credit is an average over some epochs.

    A program whose 128 MiB were cached waited for 4,000 requests a second, and for nothing else.
    """
    sampler = CacheSampler(budget_pages_min=512, budget_pages_max=512, nr_returns_max=8)

    def nr_dropped(now_ns: int) -> int:
        return sum(nr_pages for *_, nr_pages in sampler.choose(NONE, now_ns))

    observe(sampler, run(7, 0, 1000 * CHUNK))
    assert nr_dropped(0) == 8 * 8, "unspent credit of eight epochs"
    observe(sampler, run(7, 0, 64), 50)
    assert nr_dropped(100) == 8 * 8, "one request brought all of them"
    sampler.observe(run(7, 64, 128), np.arange(100, 164))
    assert nr_dropped(200) == CHUNK, "8 were earned and 64 spent; the least is a chunk"
    for epoch in range(3, 11):
        observe(sampler, NONE)
        dropped = nr_dropped(100 * epoch)
    assert dropped == 8 * 8, "nothing came back"


def test_what_was_promoted_can_be_dropped_or_put_into_the_cache():
    sampler = make_sampler()
    observe(sampler, run(7, 0, CHUNK))
    promoted = ids((7, 3), (7, 4), (7, 100))
    assert sampler.drop(promoted, 1000) == [DropRange(7, 3, 2)], "the other is not cached"
    assert sampler.blind(promoted).tolist() == []
    assert sampler.drop(promoted, 1500) == []
    assert observe(sampler, ids((7, 4)), 1200) == [200]
    sampler.cache(promoted)
    assert sampler.blind(promoted).tolist() == promoted.tolist()


def test_blind_are_those_that_the_kernel_answers():
    sampler = make_sampler()
    observe(sampler, ids((7, 3), (9, 20)))
    asked = ids((9, 31), (7, 16), (7, 15), (8, 3), (7, 0), (9, 15))
    assert sampler.blind(asked).tolist() == ids((9, 31), (7, 15), (7, 0)).tolist()
    sampler.choose(NONE, 0)
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
    """Only what is cached is dropped, within the budget; blind is what is cached and was not."""
    nr_chunks_max = nr_chunks_min + nr_more
    sampler = make_sampler(nr_chunks_min, nr_chunks_max)
    cached: set[int] = set()
    single: set[int] = set()
    for read, resident in steps:
        observe(sampler, np.array(read, np.int64))
        cached |= {page // CHUNK for page in read}
        single -= set(read)
        assert sampler.nr_cached_pages == CHUNK * len(cached)
        in_ram = np.array(sorted(resident), np.int64)
        blind = {page for page in resident if page // CHUNK in cached} - single
        assert sampler.blind(in_ram).tolist() == sorted(blind)
        ranges = sampler.choose(in_ram, 0)
        pages = [page_id(*page) for page in pages_of(ranges)]
        assert len(set(pages)) == len(pages) <= nr_chunks_max * CHUNK
        assert ranges == sorted(ranges)
        assert cached.issuperset(page // CHUNK for page in pages)
        counts = Counter(page // CHUNK for page in pages)
        whole = {chunk for chunk, count in counts.items() if chunk not in sampler._cached}
        assert all(counts[chunk] == CHUNK for chunk in whole)
        alone = {page for page in pages if page // CHUNK not in whole}
        assert alone <= blind
        cached -= whole
        single = {page for page in single | alone if page // CHUNK in cached}
        if cached and nr_chunks_min > 1:
            assert whole, "something is cached, and there is a budget"


def test_everything_cached_is_looked_at_in_the_end():
    """Whatever is in RAM and whatever is not: nothing stays blind for ever."""
    sampler = make_sampler(4, 4)
    resident = run(7, 0, 20 * CHUNK)
    observe(sampler, run(7, 0, 20 * CHUNK))
    observe(sampler, run(8, 0, 20 * CHUNK))
    for _ in range(20):
        sampler.choose(resident, 0)
    assert sampler.nr_cached_pages == 0


def told(reads: np.ndarray = NONE, faults: np.ndarray = NONE, mapped: np.ndarray = NONE) -> Told:
    return Told(reads, faults, mapped)


def test_what_the_kernel_tells_is_not_dropped():
    """For some epochs: a chunk that nothing was told of since may be hidden again."""
    sampler = make_sampler()
    sampler.see_reads()
    observe(sampler, ids((7, 0), (7, CHUNK)))
    sampler.tell(told(reads=ids((7, 3))))
    assert len(sampler.blind_chunks(NONE)) == 2, "once is no habit"
    sampler.tell(told(reads=ids((7, 3))))
    assert sampler.blind(ids((7, 0), (7, CHUNK))).tolist() == [page_id(7, CHUNK)]
    assert sampler.blind_chunks(NONE).tolist() == [page_id(7, CHUNK) >> 4]
    assert sampler.choose(NONE, 0) == [DropRange(7, CHUNK, CHUNK)]
    for _ in range(8):
        assert sampler.choose(NONE, 0) == []
        sampler.tell(told())
    assert sampler.choose(NONE, 0) == [DropRange(7, 0, CHUNK)]


def test_what_faults_have_mapped_is_dropped():
    sampler = make_sampler()
    sampler.see_reads()
    sampler.tell(told(mapped=run(7, 0, 5)))
    assert sampler.choose(NONE, 0) == [DropRange(7, 0, CHUNK)]


def test_of_maps_the_page_that_was_touched_counts():
    """A fault brings its neighbours to the cache, too; reads of other files are as they are."""
    sampler = make_sampler()
    sampler.see_reads()
    came = ids((7, 0), (7, 1), (7, 2), (8, 0))
    touched = told(faults=ids((7, 1)))
    assert sampler.wanted(came, touched).tolist() == [True] * 4
    sampler.tell(touched)
    assert sampler.wanted(came, touched).tolist() == [False, True, False, True]


def test_without_telling_all_that_came_counts():
    sampler = make_sampler()
    sampler.tell(told(reads=ids((7, 0)), mapped=ids((7, 0))))
    assert sampler.nr_cached_pages == 0
    assert sampler.wanted(ids((7, 0)), told()).tolist() == [True]
