"""`xipfs tier MNT ...`: steer what a live mount does with its tiers."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from xipfs.errors import ControlError, InvalidArgumentError
from xipfs.fuse.client import ask
from xipfs.policy.registry import policy_names, policy_parameters, policy_summary
from xipfs.units import PAGE_SIZE, format_size, parse_size

__all__ = ["parse_range", "render_tier_map", "tier"]

tier = typer.Typer(no_args_is_help=True, help="Steer what a live mount does with its tiers.")

_NR_MAP_COLUMNS = 64
_MAP_LEGEND = (
    ". NVRAM   - NVRAM, read   + NVRAM, hot   r RAM   R RAM, hot   P pinned   (blank) hole"
)

JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
RangeArgument = Annotated[
    str,
    typer.Argument(
        metavar="[RANGE]", help="START-END in bytes, 64K-1M or 1M- or -4K; default all of it."
    ),
]


@tier.callback()
def _tier(
    context: typer.Context, mountpoint: Annotated[Path, typer.Argument(metavar="MNT")]
) -> None:
    """Steer what a live mount does with its tiers."""
    context.obj = mountpoint


@tier.command(name="policy")
def _policy(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="A policy's name, or a file: ./mine.py; none: show.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PARAMETER=VALUE", help="Set a parameter; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let another policy decide from now on; without a name, show which does, and which there are.

    Pages stay where they are until the new policy moves them.
    """
    if name is None:
        _show_policies(context.obj, as_json)
        return
    if "/" in name or name.endswith(".py"):
        name = os.path.abspath(name)  # the daemon has a working directory of its own
    facts = ask(context.obj, "policy", policy=":".join([name, *(settings or [])]))
    print(json.dumps(facts) if as_json else f"policy {facts['policy']} decides from now on")


@tier.command(name="pin")
def _pin(
    context: typer.Context, path: Path, byte_range: RangeArgument = "-", as_json: JsonOption = False
) -> None:
    """Bring pages of a file into RAM, and keep them there whatever the policy says."""
    _move(context.obj, "pin", path, byte_range, as_json)


@tier.command(name="unpin")
def _unpin(
    context: typer.Context, path: Path, byte_range: RangeArgument = "-", as_json: JsonOption = False
) -> None:
    """Let the policy have pages again."""
    _move(context.obj, "unpin", path, byte_range, as_json)


@tier.command(name="promote")
def _promote(
    context: typer.Context, path: Path, byte_range: RangeArgument = "-", as_json: JsonOption = False
) -> None:
    """Bring pages of a file into RAM now; the policy may take them out again."""
    _move(context.obj, "promote", path, byte_range, as_json)


@tier.command(name="demote")
def _demote(
    context: typer.Context, path: Path, byte_range: RangeArgument = "-", as_json: JsonOption = False
) -> None:
    """Give the frames of a file's pages back; the policy may bring them in again."""
    _move(context.obj, "demote", path, byte_range, as_json)


@tier.command(name="resize")
def _resize(
    context: typer.Context,
    size: Annotated[str, typer.Argument(help="Of the RAM tier: 64M.")],
    as_json: JsonOption = False,
) -> None:
    """Give the RAM tier another size; if it shrinks, the coldest pages leave."""
    try:
        size_bytes = parse_size(size)
    except ValueError as exc:
        raise InvalidArgumentError(f"resize: {exc}") from None
    facts = ask(context.obj, "resize", ram_bytes=size_bytes)
    print(json.dumps(facts) if as_json else f"RAM tier: {format_size(facts['ram_bytes'])}")


@tier.command(name="map")
def _map(context: typer.Context, path: Path, as_json: JsonOption = False) -> None:
    """Show page by page in which tier a file is, and how hot."""
    with _open_file(context.obj, path) as ino:
        runs: list[Any] = []
        start: int | None = 0
        while start is not None:
            facts = ask(context.obj, "tier_map", ino=ino, start=start)
            runs += facts["runs"]
            start = facts["next"]
    if as_json:
        keys = ("pgoff", "pages", "tier", "pinned", "heat")
        print(json.dumps([dict(zip(keys, run, strict=True)) for run in runs]))
    else:
        print("\n".join(render_tier_map(runs)))


def parse_range(text: str) -> tuple[int, int]:
    """Return the bytes that START-END names, either of which may be missing.

    Raises: InvalidArgumentError.

    >>> parse_range("4K-1M"), parse_range("-8K")
    ((4096, 1048576), (0, 8192))
    """
    start, dash, end = text.partition("-")
    try:
        found = parse_size(start) if start else 0, parse_size(end) if end else (1 << 63) - 1
    except ValueError as exc:
        raise InvalidArgumentError(f"range {text!r}: {exc}") from None
    if not dash or found[0] >= found[1]:
        raise InvalidArgumentError(f"range {text!r}: START-END in bytes, like 64K-1M or 1M-")
    return found


def render_tier_map(runs: list[Any]) -> list[str]:
    """Draw runs [pgoff, pages, tier, pinned, heat], a character a page, 64 pages a line."""
    heats = [run[4] for run in runs if run[4]]
    hot = sum(heats) / len(heats) if heats else 0
    cells = "".join(
        _cell(tier, pinned, heat, hot) * nr_pages for _, nr_pages, tier, pinned, heat in runs
    )
    lines = [
        f"{format_size(start * PAGE_SIZE):>9} {cells[start : start + _NR_MAP_COLUMNS]}"
        for start in range(0, len(cells), _NR_MAP_COLUMNS)
    ]
    return [*lines, _MAP_LEGEND]


def _cell(tier: str, pinned: bool, heat: int, hot: float) -> str:
    if tier == "hole":
        return " "
    if pinned:
        return "P"
    is_hot = heat >= hot > 0
    if tier == "ram":
        return "R" if is_hot else "r"
    return "+" if is_hot else "-" if heat else "."


def _move(mountpoint: Path, request: str, path: Path, byte_range: str, as_json: bool) -> None:
    start, end = parse_range(byte_range)
    with _open_file(mountpoint, path) as ino:
        facts = ask(mountpoint, request, ino=ino, start=start, end=end)
    if as_json:
        print(json.dumps(facts))
    elif request == "unpin":
        print(f"{path}: {facts['unpinned']} pages were pinned")
    else:
        print(
            f"{path}: {facts['migrated']} pages moved, {facts['resident']} were there, "
            f"{facts['failed']} could not be moved"
        )


@contextlib.contextmanager
def _open_file(mountpoint: Path, path: Path) -> Iterator[int]:
    """Yield the inode of a file on the mount, which stays open so that the daemon keeps it.

    *path* counts from the mountpoint if there is such a file, or else as any path.
    """
    inside = mountpoint / path
    found = inside if not path.is_absolute() and inside.exists() else path
    with found.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_dev != mountpoint.stat().st_dev:
            raise ControlError(f"{found}: not on the mount {mountpoint}")
        yield status.st_ino


def _show_policies(mountpoint: Path, as_json: bool) -> None:
    facts = ask(mountpoint, "stat")
    names = policy_names()
    if as_json:
        policies = {name: {p.name: p.default for p in policy_parameters(name)} for name in names}
        print(json.dumps({"policy": facts["policy"], "policies": policies}))
        return
    print(f"policy {facts['policy']} decides")
    table = Table("policy", "what it does", "parameters", box=None)
    for name in names:
        parameters = [f"{p.name}={p.default}" for p in policy_parameters(name)]
        table.add_row(name, policy_summary(name), " ".join(parameters))
    Console().print(table)
