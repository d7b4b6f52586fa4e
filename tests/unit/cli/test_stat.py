"""The map of `xipfs stat`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.cli.stat import render_map


def region(*cells: tuple[int, int, int], nr_cell_pages: int = 1) -> dict:
    """A region of cells of (nr_mapped, nr_ram, heat)."""
    columns = list(zip(*cells, strict=True)) or [(), (), ()]
    return {
        "nr_cell_pages": nr_cell_pages,
        "nr_mapped": list(columns[0]),
        "nr_ram": list(columns[1]),
        "heat": list(columns[2]),
    }


def test_one_row():
    lines = render_map(region((0, 0, 0), (1, 0, 1), (0, 1, 1), (0, 0, 0)), 4).splitlines()
    assert lines == [
        "map of the region, 4 KiB a character",
        ".+R.",
        ". untouched   - NVRAM   + NVRAM, hot   m some in RAM   r RAM   R RAM, hot",
    ]


@pytest.mark.parametrize(
    ("cell", "drawn"),
    [
        ((0, 0, 0), "."),
        ((8, 0, 0), "-"),
        ((8, 0, 1), "-"),
        ((8, 0, 50), "+"),
        ((7, 1, 50), "m"),
        ((0, 8, 1), "r"),
        ((0, 8, 0), "r"),
        ((0, 8, 50), "R"),
    ],
)
def test_every_character(cell, drawn):
    """What is hot is at least as hot as the average of all that was used."""
    rows = render_map(region(cell, (1, 0, 19), (1, 0, 21), (0, 0, 0)), 10).splitlines()
    assert rows[1][0] == drawn


def test_the_scale():
    assert "2 MiB a character" in render_map(region((0, 0, 0), nr_cell_pages=512), 10)


@given(
    st.lists(st.tuples(*[st.integers(0, 300)] * 3), max_size=200),
    st.integers(1, 80),
)
def test_every_cell_has_its_character(cells, columns):
    head, *rows, _legend = render_map(region(*cells), columns).splitlines()
    assert head.startswith("map of the region")
    assert len("".join(rows)) == len(cells)
    assert all(len(row) == columns for row in rows[:-1])
    assert all(set(row) <= set(".-+mrR") for row in rows)
