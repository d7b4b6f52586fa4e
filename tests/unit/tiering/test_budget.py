"""Budget: by epoch and by second."""

import pytest

from xipfs.tiering.budget import Budget

S = 1_000_000_000
MIB = 1 << 20


def test_without_a_rate():
    budget = Budget(100, None, 0)
    budget.spend(100)
    assert budget.pages(0) == budget.pages(S) == 100


def test_a_rate_is_kept_in_the_long_run():
    """4 MiB a second are 1024 pages, however long epochs are and however greedy the policy."""
    budget = Budget(5000, 4 * MIB, 0)
    nr_moved = 0
    for i in range(1, 101):
        nr_pages = budget.pages(i * S // 10)
        budget.spend(nr_pages)
        nr_moved += nr_pages
    assert 10200 <= nr_moved <= 10240


def test_what_is_not_used_is_saved_for_a_second():
    budget = Budget(5000, 4 * MIB, 0)
    assert budget.pages(S // 2) == 512
    assert budget.pages(10 * S) == 1024
    budget.spend(1000)
    assert budget.pages(10 * S) == 24


def test_the_epoch_limits_too():
    assert Budget(10, 4 * MIB, 0).pages(S) == 10


@pytest.mark.parametrize("rate_bytes_per_s", [1, 4096])
def test_a_swap_is_possible_at_any_rate(rate_bytes_per_s):
    assert Budget(10, rate_bytes_per_s, 0).pages(8192 * S) == 2
