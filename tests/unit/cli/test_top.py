"""`xipfs top`, headless: what is on the screen, that it fits 80 x 24, and what the keys do."""

import asyncio
import re

import pytest
from textual.widgets import DataTable

from xipfs.cli.screen import MAP_COLUMNS, MAP_ROWS, TopApp, render_heat_map
from xipfs.errors import ControlError, PolicyError

SIZE = (80, 24)
NR_CELLS = MAP_COLUMNS * MAP_ROWS


class FakeDaemon:
    """Answers as the daemon of a mount would, whose counters go up by the second."""

    def __init__(self) -> None:
        self.policy = "second_chance"
        self.seconds = 1
        self.has_ended = False

    def ask(self, request: str, **arguments):
        if self.has_ended:
            raise ControlError("/mnt: its daemon ended")
        if request == "policy":
            if arguments["policy"] == "lru":
                raise PolicyError("policy lru: not today")
            self.policy = arguments["policy"]
            return {"policy": self.policy}
        assert (arguments["cells"], arguments["files"]) == (NR_CELLS, 7)
        self.seconds += 1
        return {
            "image": "/images/demo.img",
            "policy": self.policy,
            "cache": "sampled",
            "epochs": 41 + self.seconds,
            "epoch_ms": 1000,
            "uptime_s": float(self.seconds),
            "page_size_bytes": 4096,
            "ram_frames": 1024,
            "ram_free_frames": 256,
            "pinned_pages": 3,
            "vmstat": {
                "xip_access": 1000 * self.seconds,
                "xip_access_ram": 750 * self.seconds,
                "pgfault": 20 * self.seconds,
                "pgpromote_success": 7 * self.seconds,
                "pgdemote": 5 * self.seconds,
            },
            "map": {
                "nr_cell_pages": 16,
                "nr_mapped": [0, 16, 16, 0] * (NR_CELLS // 4),
                "nr_ram": [0, 0, 0, 16] * (NR_CELLS // 4),
                "heat": [0, 1, 9, 9] * (NR_CELLS // 4),
            },
            "files": [
                {"ino": 9, "heat": 5000, "pages": 300, "ram": 200},
                {"ino": 12, "heat": 40, "pages": 8, "ram": 0},
            ],
        }


def run(scenario, daemon: FakeDaemon) -> TopApp:
    """Run scenario(pilot) on an app of 80 x 24; asyncio's, since textual knows no trio."""
    app = TopApp(daemon.ask, lambda image, inos: {9: "/usr/lib/libc.so"})

    async def main() -> None:
        async with app.run_test(size=SIZE) as pilot:
            await pilot.pause()
            await scenario(app, pilot)

    asyncio.run(main())
    return app


def screen_text(app: TopApp) -> str:
    """What a person reads, from the screenshot."""
    svg = app.export_screenshot()
    texts = re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>([^<]*)</text>', svg)
    lines: dict[float, str] = {}
    for y, text in texts:
        lines[float(y)] = lines.get(float(y), "") + text
    return "\n".join(lines.values()).replace("&#160;", " ")


def test_the_screen(tmp_path):
    async def scenario(app: TopApp, pilot) -> None:
        app.refresh_facts()
        await pilot.pause()
        text = screen_text(app)
        assert "/images/demo.img" in text
        assert "policy second_chance, cache=sampled" in text
        assert "3.0 MiB of 4.0 MiB" in text or "3 MiB of 4 MiB" in text
        assert "1000 accesses, 75% in RAM, 20 faults, 7 up, 5 down" in text
        assert "/usr/lib/libc.so" in text
        assert "inode 12" in text
        assert "200 of 300" in text
        assert "64 KiB a cell" in text
        table = app.query_one(DataTable)
        assert table.region.bottom <= SIZE[1] - 1, "the footer is below it"
        assert table.max_scroll_x == 0
        screenshot = tmp_path / "top.svg"
        screenshot.write_text(app.export_screenshot())
        assert screenshot.stat().st_size > 10_000

    run(scenario, FakeDaemon())


def test_a_key_swaps_the_policy():
    daemon = FakeDaemon()

    async def scenario(app: TopApp, pilot) -> None:
        await pilot.press("p")
        await pilot.pause()
        assert "Which policy shall decide" in screen_text(app)
        await pilot.press("home", "enter")
        await pilot.pause()
        assert f"policy {daemon.policy}," in screen_text(app)

    run(scenario, daemon)
    assert daemon.policy == "2q"


def test_escape_leaves_all_as_it_is():
    daemon = FakeDaemon()

    async def scenario(app: TopApp, pilot) -> None:
        await pilot.press("p", "escape")
        await pilot.pause()
        assert "Which policy" not in screen_text(app)

    run(scenario, daemon)
    assert daemon.policy == "second_chance"


def test_a_daemon_that_ends():
    daemon = FakeDaemon()

    async def scenario(app: TopApp, pilot) -> None:
        daemon.has_ended = True
        app.refresh_facts()

    assert run(scenario, daemon).return_code == 0


@pytest.mark.parametrize(("nr_cells", "columns"), [(0, 10), (7, 3), (10, 10)])
def test_a_map_has_a_character_for_each_cell(nr_cells, columns):
    region = {"nr_mapped": [1] * nr_cells, "nr_ram": [0] * nr_cells, "heat": [0] * nr_cells}
    lines = render_heat_map(region, columns).plain.split("\n")
    assert "".join(lines) == "█" * nr_cells
    assert all(len(line) == columns for line in lines[:-1])


def test_colours_tell_tier_and_heat():
    region = {"nr_mapped": [0, 5, 5, 1], "nr_ram": [0, 0, 0, 4], "heat": [0, 0, 9, 9]}
    text = render_heat_map(region, 4)
    colours = [str(span.style) for span in text.spans]
    assert len(set(colours)) == 4
