"""`xipfs stat MNT`: what a mount is doing, in figures and as a map of the region.

`--as` shows it in a form of the kernel's instead; a form is a function in `_FORMS`.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from xipfs.cli.imagepath import paths_of
from xipfs.cli.procforms import join_runs, render_pagemap, render_smaps
from xipfs.cli.vmforms import (
    render_numastat,
    render_prometheus,
    render_vmstat,
    render_vmstat_rates,
)
from xipfs.errors import InvalidArgumentError
from xipfs.fuse.client import ask, iter_areas
from xipfs.units import format_size

__all__ = ["Form", "render_cost", "render_map", "stat"]

_MAP_ROWS = 16
_NR_NUMASTAT_FILES = 1000
_MAP_LEGEND = ". untouched   - NVRAM   + NVRAM, hot   m some in RAM   r RAM   R RAM, hot"


class Form(StrEnum):
    """What `--as` takes."""

    SMAPS = "smaps"
    PAGEMAP = "pagemap"
    VMSTAT = "vmstat"
    NUMASTAT = "numastat"


def stat(
    mountpoint: Annotated[Path, typer.Argument(metavar="MNT")],
    detail: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATH|INTERVAL]",
            help="With --as smaps or pagemap: of this file of MNT only. With --as vmstat: a line "
            "every so many seconds, until Ctrl-C.",
        ),
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--as", help="In the form of a file of /proc, or of a command.")
    ] = None,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="All figures as Prometheus reads them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All figures, for programs.")] = False,
) -> None:
    """Show a mount's counters, tiers and a map of its region, or its memory as /proc would."""
    if prometheus:
        print("\n".join(render_prometheus(ask(mountpoint, "stat"))))
        return
    if form is not None:
        for line in _FORMS[form](mountpoint, detail, as_json):
            print(line, flush=True)
        return
    if detail is not None:
        raise typer.BadParameter(f"{detail}: say how to show it: --as smaps, or --as pagemap")
    columns = min(shutil.get_terminal_size().columns, 80)
    facts = ask(mountpoint, "stat", cells=columns * _MAP_ROWS)
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    print("\n".join(_lines(facts)))
    print(render_map(facts["map"], columns))


def _smaps(mountpoint: Path, path: str | None, as_json: bool) -> Iterator[str]:
    areas = iter_areas(mountpoint, "smaps", _ino(mountpoint, path))
    if as_json:
        return iter([json.dumps(list(areas), indent=1)])
    lines = render_smaps(areas, os.path.realpath(mountpoint), os.stat(mountpoint).st_dev)
    return _or_not_mapped(lines, path)


def _pagemap(mountpoint: Path, path: str | None, as_json: bool) -> Iterator[str]:
    areas = iter_areas(mountpoint, "pagemap", _ino(mountpoint, path))
    if as_json:
        return iter([json.dumps(join_runs(areas), indent=1)])
    return _or_not_mapped(render_pagemap(areas, os.path.realpath(mountpoint)), path)


def _or_not_mapped(lines: Iterator[str], path: str | None) -> Iterator[str]:
    """Yield *lines*; where there are none of a file, one that says why."""
    first = next(lines, None)
    if first is not None:
        yield first
        yield from lines
    elif path is not None:
        yield f"{path}: not mapped: it was not opened yet, or the kernel has forgotten it"


def _vmstat(mountpoint: Path, interval: str | None, as_json: bool) -> Iterator[str]:
    facts = ask(mountpoint, "stat")
    if interval is None:
        return iter([json.dumps(facts["vmstat"])] if as_json else render_vmstat(facts))
    try:
        interval_s = float(interval)
    except ValueError:
        interval_s = 0.0
    if not 0 < interval_s < threading.TIMEOUT_MAX:
        raise InvalidArgumentError(f"interval {interval!r}: seconds between two lines, like 1")
    return render_vmstat_rates(_repeat(mountpoint, facts, interval_s), as_json=as_json)


def _repeat(mountpoint: Path, facts: dict[str, Any], interval_s: float) -> Iterator[dict[str, Any]]:
    """Yield *facts*, and newer ones every interval_s seconds."""
    yield facts
    while True:
        time.sleep(interval_s)
        yield ask(mountpoint, "stat")


def _numastat(mountpoint: Path, _detail: str | None, as_json: bool) -> Iterator[str]:
    facts = ask(mountpoint, "stat", files=_NR_NUMASTAT_FILES)
    paths = paths_of(mountpoint, Path(facts["image"]), [file["ino"] for file in facts["files"]])
    rows = [{"path": paths[file["ino"]], **file} for file in facts["files"]]
    return iter([json.dumps(rows)]) if as_json else render_numastat(rows)


_FORMS: dict[Form, Callable[[Path, str | None, bool], Iterator[str]]] = {
    Form.SMAPS: _smaps,
    Form.PAGEMAP: _pagemap,
    Form.VMSTAT: _vmstat,
    Form.NUMASTAT: _numastat,
}


def _ino(mountpoint: Path, path: str | None) -> int | None:
    if path is None:
        return None
    status = os.stat(path)
    if status.st_dev != mountpoint.stat().st_dev:
        raise InvalidArgumentError(f"{path}: no file of the mount {mountpoint}")
    return status.st_ino


def render_map(region: dict[str, Any], columns: int) -> str:
    """Draw the region, one character a cell, *columns* a row; the first line tells the scale."""
    heats = [heat for heat in region["heat"] if heat]
    hot = sum(heats) / len(heats) if heats else 0
    cells = "".join(
        _cell(nr_mapped, nr_ram, heat >= hot > 0)
        for nr_mapped, nr_ram, heat in zip(
            region["nr_mapped"], region["nr_ram"], region["heat"], strict=True
        )
    )
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    scale = format_size(region["nr_cell_pages"] * 4096)
    return "\n".join([f"map of the region, {scale} a character", *rows, _MAP_LEGEND])


def _cell(nr_mapped: int, nr_ram: int, hot: bool) -> str:
    if nr_ram:
        if nr_ram < nr_mapped:
            return "m"
        return "R" if hot else "r"
    if nr_mapped:
        return "+" if hot else "-"
    return "."


def _lines(facts: dict[str, Any]) -> list[str]:
    page = facts["page_size_bytes"]
    vmstat = facts["vmstat"]
    used = facts["ram_frames"] - facts["ram_free_frames"]
    return [
        f"image        {facts['image']}, {format_size(facts['nvram_pages'] * page)}",
        f"daemon       pid {facts['pid']}, up {facts['uptime_s']:.0f} s, arch {facts['arch']}",
        f"cache        {facts['cache']}, {facts['ranges_dropped']} ranges dropped",
        f"policy       {facts['policy']}, {facts['epochs']} epochs of {facts['epoch_ms']} ms, "
        f"{facts['policy_errors']} errors, {facts['plan_refused']} entries refused",
        f"RAM tier     {used} of {facts['ram_frames']} frames used "
        f"({format_size(used * page)} of {format_size(facts['ram_frames'] * page)})",
        f"struct pages {facts['struct_pages']} for RAM ({format_size(facts['struct_page_bytes'])}),"
        f" none for NVRAM ({format_size(facts['struct_page_saved_bytes'])} saved)",
        f"inserted     {vmstat['xip_insert_pfn']} ptes by pfn, {vmstat['xip_insert_page']} by page",
        *render_cost(facts["cost"]),
        *_tracepoints(facts),
        "",
        *(f"{name} {count}" for name, count in vmstat.items()),
        "",
    ]


def _tracepoints(facts: dict[str, Any]) -> list[str]:
    if facts["sees_reads"]:
        return [f"tracepoints  {facts['reads_told']} pages read from the page cache were told"]
    return [f"tracepoints  none: {facts['events_missing']}"] if facts["events_missing"] else []


def render_cost(cost: dict[str, Any]) -> list[str]:
    """Say what the cost model makes of it; every time here is on its clock."""
    how = "really waited for" if cost["inject"] else "simulated"
    mean, ram, nvram = (
        _format_ns(cost[name]) for name in ("access_mean_ns", "latency_ram_ns", "latency_nvram_ns")
    )
    lines = [
        f"cost model   {cost['model']}, {how}: RAM is {cost['ram']}, NVRAM is {cost['nvram']}",
        f"a page read  {mean} on average, now {ram} in RAM, {nvram} in NVRAM",
        f"accesses     {cost['accesses']} took {_format_ns(cost['access_ram_ns'])} in RAM, "
        f"{_format_ns(cost['access_nvram_ns'])} in NVRAM",
        f"migration    {_format_ns(cost['migration_ns'])}",
        f"net benefit  {_format_ns(cost['net_benefit_ns'])}, all in NVRAM would have taken "
        f"{_format_ns(cost['access_all_in_nvram_ns'])}",
    ]
    if cost["energy_pj"] is not None:
        lines.append(f"energy       {cost['energy_pj'] / 1e6:.4g} uJ")
    if cost["wear_blocks"]:
        blocks = f"{cost['wear_blocks']} blocks of {format_size(cost['wear_block_size_bytes'])}"
        lines.append(
            f"wear         {blocks} written, {cost['wear_mean_cycles']} times on average, "
            f"at most {cost['wear_max_cycles']} of {cost['endurance_cycles']}"
        )
    return [*lines, f"cost clock   {_format_ns(cost['clock_ns'])}"]


def _format_ns(time_ns: float) -> str:
    """Write a time for people, in the unit that leaves one to four digits."""
    for unit, unit_ns in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if abs(time_ns) >= unit_ns:
            return f"{time_ns / unit_ns:.4g} {unit}"
    return f"{time_ns:.4g} ns"
