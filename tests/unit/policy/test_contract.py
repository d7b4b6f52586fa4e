"""Page ids and batches: what all policies are built from."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xipfs.policy import Batch, Plan, page_id
from xipfs.policy.contract import PGOFF_BITS, no_pages, page_id_parts


@given(
    st.lists(
        st.tuples(
            st.integers(0, (1 << (63 - PGOFF_BITS)) - 1), st.integers(0, (1 << PGOFF_BITS) - 1)
        )
    )
)
def test_a_page_id_holds_file_and_offset(parts):
    pages = np.array([page_id(*part) for part in parts], np.int64)
    mapping_ids, pgoffs = page_id_parts(pages)
    assert list(zip(mapping_ids.tolist(), pgoffs.tolist(), strict=True)) == parts


def test_neighbours_in_a_file_are_neighbours_in_number():
    assert page_id(7, 4) == page_id(7, 3) + 1
    assert page_id(7, (1 << PGOFF_BITS) - 1) + 1 == page_id(8, 0)


def test_counts_of_a_batch():
    pages = np.array([5, 3, 5, 5, 9], np.int64)
    zeros = np.zeros(5, np.uint8)
    batch = Batch(page=pages, kind=zeros, tier=zeros, latency_ns=np.full(5, -1, np.int64))
    distinct, counts = batch.counts()
    assert distinct.tolist() == [3, 5, 9]
    assert counts.tolist() == [1, 3, 1]
    assert distinct.dtype == counts.dtype == np.int64


def test_an_empty_plan_moves_nothing():
    plan = Plan()
    assert len(plan.promote) == len(plan.demote) == 0
    assert plan.promote.dtype == no_pages().dtype == np.int64
