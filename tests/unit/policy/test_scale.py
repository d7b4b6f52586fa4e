"""Scaling: by RAM's size unless a number is given; a count is never scaled away."""

import pytest

from xipfs.policy.scale import scale_of, scaled


def test_by_the_size_of_ram():
    assert scale_of(None, 1 << 14, 1 << 20) == 1 / 64
    assert scale_of(None, 1 << 21, 1 << 20) == 1


def test_a_number_is_taken_as_it_is():
    assert scale_of(2.5, 10, 1000) == 2.5


@pytest.mark.parametrize(
    ("count", "scale", "expected"), [(512, 1 / 16, 32), (3, 0.01, 1), (5, 2, 10)]
)
def test_scaled(count, scale, expected):
    assert scaled(count, scale) == expected
