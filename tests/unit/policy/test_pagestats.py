"""PageStats: rows by page, columns by name; as a dict of tuples would have it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xipfs.policy.pageset import page_set
from xipfs.policy.pagestats import PageStats

pages = st.lists(st.integers(0, 40), max_size=20)


def ids(numbers) -> np.ndarray:
    return page_set(np.array(list(numbers), np.int64))


@given(steps=st.lists(st.tuples(pages, pages), max_size=8))
def test_like_a_dict(steps):
    stats = PageStats(count=np.uint16, last=np.int64)
    expected: dict[int, tuple[int, int]] = {}
    for step, (touched, forgotten) in enumerate(steps):
        rows = stats.rows(ids(touched))
        assert stats.pages[rows].tolist() == sorted(set(touched))
        stats["count"][rows] += 1
        stats["last"][rows] = step
        for page in set(touched):
            expected[page] = (expected.get(page, (0, 0))[0] + 1, step)
        stats.keep(~np.isin(stats.pages, forgotten))
        expected = {page: row for page, row in expected.items() if page not in forgotten}
        columns = zip(stats["count"].tolist(), stats["last"].tolist(), strict=True)
        assert dict(zip(stats.pages.tolist(), columns, strict=True)) == expected
        assert stats.pages.tolist() == sorted(expected)


def test_columns_keep_their_dtype():
    stats = PageStats(count=np.uint8)
    stats.rows(ids([3, 1]))
    stats["count"] = np.array([200.7, 3.0])
    stats["count"] >>= 1
    assert stats["count"].dtype == np.uint8
    assert stats["count"].tolist() == [100, 1]


def test_find():
    stats = PageStats(count=np.uint8)
    stats.rows(ids([5, 9]))
    assert stats.find(np.array([9, 1, 5, 9])).tolist() == [1, -1, 0, 1]


def test_no_page_no_memory():
    stats = PageStats(count=np.uint64, age=np.float32)
    assert (len(stats), stats.size_bytes) == (0, 0)
    stats.rows(ids(range(100)))
    assert stats.size_bytes == 100 * (8 + 8 + 4)
