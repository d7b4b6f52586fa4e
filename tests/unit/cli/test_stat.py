"""The map and the bill of `xipfs stat`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.cli.stat import render_cost, render_map


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


BILL = {
    "model": "pcm:clients=3",
    "ram": "DRAM",
    "nvram": "PCM",
    "clients": 3,
    "clock_ns": 7_654_321_000,
    "accesses": 20,
    "access_mean_ns": 123.4,
    "access_ram_ns": 0,
    "access_nvram_ns": 2_468,
    "access_all_in_nvram_ns": 2_468_000,
    "migration_ns": 999,
    "net_benefit_ns": -1_500_000,
    "latency_ram_ns": 119.7,
    "latency_nvram_ns": 760.0,
    "energy_pj": 2_500_000,
    "wear_blocks": 8,
    "wear_block_size_bytes": 256,
    "wear_max_cycles": 9,
    "wear_mean_cycles": 1.5,
    "endurance_cycles": 1000,
    "inject": False,
}


def test_a_bill_names_its_model_and_the_unit_of_each_figure():
    assert render_cost(BILL) == [
        "cost model   pcm:clients=3, simulated: RAM is DRAM, NVRAM is PCM",
        "a page read  123.4 ns on average, now 119.7 ns in RAM, 760 ns in NVRAM",
        "accesses     20 took 0 ns in RAM, 2.468 us in NVRAM",
        "migration    999 ns",
        "net benefit  -1.5 ms, all in NVRAM would have taken 2.468 ms",
        "energy       2.5 uJ",
        "wear         8 blocks of 256 B written, 1.5 times on average, at most 9 of 1000",
        "cost clock   7.654 s",
    ]


def test_a_bill_leaves_out_what_is_not_modelled_or_did_not_happen():
    unworn = render_cost(BILL | {"energy_pj": None, "wear_blocks": 0, "inject": True})
    assert [line.split()[0] for line in unworn[5:]] == ["cost"]
    assert "really waited for" in unworn[0]
    assert render_cost(BILL | {"wear_blocks": None})[-2].startswith("energy")
