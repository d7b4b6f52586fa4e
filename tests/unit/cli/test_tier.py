"""`xipfs tier`, without a mount: ranges, and maps of files."""

import pytest

from xipfs.cli.tier import parse_range, render_tier_map
from xipfs.errors import InvalidArgumentError

K = 1024


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-", (0, (1 << 63) - 1)),
        ("0-4K", (0, 4 * K)),
        ("64K-1M", (64 * K, K * K)),
        ("1M-", (K * K, (1 << 63) - 1)),
        ("-8192", (0, 8192)),
    ],
)
def test_ranges(text, expected):
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "4K", "8K-4K", "4K-4K", "a-b", "1-2-3", "4X-", "-0"])
def test_what_is_no_range(text):
    with pytest.raises(InvalidArgumentError, match=f"range {text!r}: "):
        parse_range(text)


def test_a_map():
    runs = [
        [0, 2, "nvram", False, 0],
        [2, 1, "nvram", False, 1],
        [3, 1, "ram", False, 1],
        [4, 1, "ram", False, 9],
        [5, 1, "nvram", False, 9],
        [6, 1, "ram", True, 9],
        [7, 1, "hole", False, 0],
        [8, 60, "nvram", False, 0],
    ]
    first, second, legend = render_tier_map(runs)
    assert first[10:] == "..-rR+P " + "." * 56
    assert second.split() == ["256", "KiB", "...."]
    assert "R RAM, hot" in legend


def test_a_map_of_nothing():
    assert len(render_tier_map([])) == 1
