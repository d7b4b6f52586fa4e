"""Cooling: in one long epoch or in many short ones, about the same is left."""

import pytest

from xipfs.policy.cooling import Cooling


def count(nr_samples, nr_epochs, period, share):
    """Return the count of a page that has *share* of all samples."""
    cooling, counted = Cooling(), 0.0
    for _ in range(nr_epochs):
        before, weight, after = cooling.take(nr_samples // nr_epochs, period)
        counted = (counted / 2**before + share * nr_samples / nr_epochs * weight) / 2**after
    return counted


def test_no_period_is_over():
    assert Cooling().take(9, 10) == (0, 1.0, 0)


def test_the_rest_of_a_period_is_remembered():
    cooling = Cooling()
    assert [cooling.take(4, 10)[2] for _ in range(5)] == [0, 0, 1, 0, 1]


@pytest.mark.parametrize("nr_epochs", [1, 2, 4, 8])
def test_long_epochs_and_short_ones(nr_epochs):
    assert count(8000, nr_epochs, 1000, 0.1) == pytest.approx(count(8000, 8, 1000, 0.1), rel=0.01)


def test_an_endless_epoch_leaves_something():
    before, weight, after = Cooling().take(10**12, 1)
    assert before <= 31
    assert weight > 0
    assert after == 1
