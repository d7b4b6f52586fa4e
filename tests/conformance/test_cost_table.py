"""docs/COST.md: its table of memories is that of the code."""

from pathlib import Path

import pytest

from xipfs.phys.cost import NR_UNDER_WAY_MAX, PAGE_MIGRATION_NS
from xipfs.phys.media import RAM_AND_NVRAM, Medium
from xipfs.units import format_size

TEXT = (Path(__file__).parents[2] / "docs" / "COST.md").read_text()


def row(name: str, medium: Medium) -> str:
    def number(value: float | None, digits: str) -> str:
        return "" if value is None else f"{value:{digits}}"

    size = format_size(medium.wear_block_size_bytes)
    cells = [
        f"`{name}`",
        medium.name,
        f"{medium.read_latency_ns:,.0f} + {medium.read_transfer_ns:,.0f}",
        f"{medium.write_latency_ns:,.0f} + {medium.write_transfer_ns:,.0f}",
        number(medium.read_bandwidth_bytes_per_s / 1e9, ".4g"),
        number(medium.write_bandwidth_bytes_per_s / 1e9, ".4g"),
        number(medium.read_energy_pj_per_byte, ".1f"),
        number(medium.write_energy_pj_per_byte, ".1f"),
        f"{medium.endurance_cycles:,} of {size}" if medium.endurance_cycles else "",
    ]
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


@pytest.mark.parametrize("name", RAM_AND_NVRAM)
def test_each_memory_has_its_row(name):
    assert row(name, RAM_AND_NVRAM[name][1]) in TEXT.splitlines()


def test_no_other_memory_has_one():
    assert TEXT.count("\n| `") == len(RAM_AND_NVRAM) + 1  # and the head


def test_ram_is_dram_in_all():
    assert {ram.name for ram, _ in RAM_AND_NVRAM.values()} == {"DRAM"}


def test_the_other_figures():
    assert f"at most that of {NR_UNDER_WAY_MAX} pages for each client" in TEXT
    assert PAGE_MIGRATION_NS == 1000
    assert "A\nclean page back: 1 us" in TEXT
