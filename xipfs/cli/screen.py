"""The screen of `xipfs top`: a live mount on 80 columns and 24 lines of a terminal.

    rates of the last second, how full RAM is
    the region as a heat map: colour is the tier, brightness the heat
    the hottest files, and how much of each is in RAM

`p` lets another policy take over, `q` ends.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Label, OptionList, Static

from xipfs.cli.imagepath import looked_up_paths, paths_of
from xipfs.errors import ControlError, XipfsError
from xipfs.policy.registry import policy_names
from xipfs.units import format_size

__all__ = ["MAP_COLUMNS", "MAP_ROWS", "TopApp", "render_heat_map", "run"]

MAP_COLUMNS, MAP_ROWS = 78, 8
_NR_FILES = 7

_INTERVAL_S = 1.0
_NR_SHADES = 5
_NVRAM_SHADES = ("#26324a", "#2f4a7a", "#3a66ad", "#4a86dd", "#79b4ff")
_RAM_SHADES = ("#5a2d16", "#8a3f14", "#bd5a12", "#ec7d1c", "#ffb454")

_Ask = Callable[..., dict[str, Any]]


def run(mountpoint: Path, ask: _Ask) -> None:
    """Take the terminal until the user or the daemon ends it. ask: as for TopApp."""
    TopApp(ask, _PathFinder(mountpoint).find).run()


def render_heat_map(region: dict[str, Any], columns: int) -> Text:
    """Draw the region, a cell a character, *columns* a row.

    Blue is NVRAM, orange where most of the pages in use are in RAM; the brighter, the hotter. A
    dot is memory that nobody has touched.
    """
    hottest = max(region["heat"], default=0)
    text = Text()
    cells = zip(region["nr_mapped"], region["nr_ram"], region["heat"], strict=True)
    for i, (nr_mapped, nr_ram, heat) in enumerate(cells):
        if i and i % columns == 0:
            text.append("\n")
        if not nr_mapped and not nr_ram:
            text.append("·", "#444444")
            continue
        shade = min(heat * _NR_SHADES // (hottest + 1), _NR_SHADES - 1)
        shades = _RAM_SHADES if nr_ram * 2 > nr_mapped + nr_ram else _NVRAM_SHADES
        text.append("█", shades[shade])
    return text


class _PolicyScreen(ModalScreen[str]):
    """Choose a policy: Enter takes it, Escape leaves all as it is."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss('')", "Back")]

    def compose(self) -> ComposeResult:
        """Show the list."""
        with Vertical(id="dialog"):
            yield Label("Which policy shall decide from now on?")
            yield OptionList(*policy_names())

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Give the name to whoever asked."""
        self.dismiss(str(event.option.prompt))


class TopApp(App[None]):
    """The screen. ask: as `fuse.client.ask`, without a mountpoint. find_path: of an inode."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #facts, #map { height: auto; padding: 0 1; }
    #files { height: 1fr; padding: 0 1; }
    _PolicyScreen { align: center middle; }
    #dialog { width: 44; height: 20; border: round $accent; padding: 0 1; background: $surface; }
    OptionList { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("p", "choose_policy", "Policy"),
    ]

    def __init__(self, ask: _Ask, find_path: Callable[[str, list[int]], dict[int, str]]) -> None:
        super().__init__()
        self._ask = ask
        self._find_path = find_path
        self._before: dict[str, Any] | None = None

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        yield Static(id="facts")
        yield Static(id="map")
        yield DataTable(id="files", cursor_type="none")
        yield Footer()

    def on_mount(self) -> None:
        """Show what there is, and look again every second."""
        table = self.query_one(DataTable)
        table.add_column("heat", width=8)
        table.add_column("in RAM", width=17)
        table.add_column("file", width=46)
        self.refresh_facts()
        self.set_interval(_INTERVAL_S, self.refresh_facts)

    def refresh_facts(self) -> None:
        """Ask the daemon and draw anew; where it has ended, say so and stop."""
        try:
            facts = self._ask("stat", cells=MAP_COLUMNS * MAP_ROWS, files=_NR_FILES)
        except ControlError as exc:
            self.exit(message=f"xipfs: {exc}")
            return
        self.query_one("#facts", Static).update(_facts_text(facts, self._before))
        heat_map = Text(f"{format_size(facts['map']['nr_cell_pages'] * 4096)} a cell\n", "dim")
        heat_map.append_text(render_heat_map(facts["map"], MAP_COLUMNS))
        self.query_one("#map", Static).update(heat_map)
        table = self.query_one(DataTable)
        table.clear()
        paths = self._find_path(facts["image"], [file["ino"] for file in facts["files"]])
        for file in facts["files"]:
            in_ram = f"{file['ram']} of {file['pages']}"
            name = paths.get(file["ino"], f"inode {file['ino']}")
            table.add_row(str(file["heat"]), in_ram, name[-46:])
        self._before = facts

    def action_choose_policy(self) -> None:
        """Let the user choose another policy."""
        self.push_screen(_PolicyScreen(), self._set_policy)

    def _set_policy(self, name: str | None) -> None:
        if not name:
            return
        try:
            self._ask("policy", policy=name)
        except XipfsError as exc:
            self.notify(str(exc), severity="error")
        self.refresh_facts()


class _PathFinder:
    """Paths of inodes, as the daemon knows them now; others from the image, once."""

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._from_image: dict[int, str] = {}

    def find(self, image: str, inos: list[int]) -> dict[int, str]:
        found = looked_up_paths(self._mountpoint, inos)
        missing = [ino for ino in inos if ino not in found and ino not in self._from_image]
        if missing:
            self._from_image |= paths_of(self._mountpoint, Path(image), missing)
        return self._from_image | found


def _facts_text(facts: dict[str, Any], before: dict[str, Any] | None) -> Text:
    """Say how it stands; rates need an earlier look."""
    page_bytes = facts["page_size_bytes"]
    nr_used = facts["ram_frames"] - facts["ram_free_frames"]
    share = nr_used / max(facts["ram_frames"], 1)
    width = 24
    bar = "█" * round(share * width)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{facts['image']}\n", "bold")
    text.append(
        f"policy {facts['policy']}, cache={facts['cache']}, epoch {facts['epochs']} of "
        f"{facts['epoch_ms']} ms, up {facts['uptime_s']:.0f} s\n"
    )
    text.append("RAM  ").append(bar, _RAM_SHADES[-2]).append("░" * (width - len(bar)), "dim")
    text.append(
        f"  {format_size(nr_used * page_bytes)} of {format_size(facts['ram_frames'] * page_bytes)}"
        f", {facts['pinned_pages']} pages pinned\n"
    )
    rates = _rates(facts, before)
    text.append(
        f"/s   {rates['xip_access']:.0f} accesses, {rates['in_ram']:.0%} in RAM, "
        f"{rates['pgfault']:.0f} faults, {rates['pgpromote_success']:.0f} up, "
        f"{rates['pgdemote']:.0f} down\n"
    )
    return text


def _rates(facts: dict[str, Any], before: dict[str, Any] | None) -> dict[str, float]:
    now, then = facts["vmstat"], before["vmstat"] if before else {}
    elapsed_s = facts["uptime_s"] - (before["uptime_s"] if before else 0.0)
    names = ("xip_access", "xip_access_ram", "pgfault", "pgpromote_success", "pgdemote")
    rates = {name: (now[name] - then.get(name, 0)) / max(elapsed_s, 1e-3) for name in names}
    return rates | {"in_ram": rates["xip_access_ram"] / max(rates["xip_access"], 1e-9)}
