"""Sets of pages, against Python's."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xipfs.policy.pageset import is_in, page_set

pages = st.lists(st.one_of(st.integers(-3, 9), st.integers(-(1 << 63), (1 << 63) - 1)))


@given(pages)
def test_page_set(listed):
    found = page_set(np.array(listed, np.int64))
    assert found.tolist() == sorted(set(listed))
    assert found.dtype == np.int64


@given(pages, pages)
def test_is_in(asked, members):
    found = is_in(np.array(asked, np.int64), np.array(sorted(set(members)), np.int64))
    assert found.tolist() == [page in members for page in asked]
    assert found.dtype == np.bool_


def test_the_argument_stays_as_it_is():
    given_pages = np.array([3, 1, 3], np.int64)
    found = page_set(given_pages)
    found[:] = 0
    assert given_pages.tolist() == [3, 1, 3]
