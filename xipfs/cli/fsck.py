"""`xipfs fsck IMAGE`: check every invariant of an image, and repair it; docs/FSCK.md lists them."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from xipfs.cli.progress import task_bar
from xipfs.fs.fsck import Finding, FsckProgress, FsckReport, Repair, repair
from xipfs.fs.fsck import fsck as check_image

__all__ = ["fsck"]


def fsck(
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    check_only: Annotated[bool, typer.Option("-n", help="Change nothing (default).")] = False,
    safe: Annotated[bool, typer.Option("-p", help="Repair what loses nothing.")] = False,
    unsafe: Annotated[bool, typer.Option("-y", help="Repair all that can be repaired.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The findings, for programs.")] = False,
) -> int:
    """Check an image: exit code 0 clean, 1 repaired, 4 damaged, 8 could not judge."""
    if check_only + safe + unsafe > 1:
        raise typer.BadParameter("one of -n, -p and -y")
    with _progress() as progress:
        if safe or unsafe:
            report = repair(image, unsafe=unsafe, now_ns=time.time_ns(), progress=progress)
        else:
            report = check_image(image, progress)
    if as_json:
        print(json.dumps(_facts(image, report), indent=1))
    else:
        print("\n".join(_lines(image, report)))
    return report.exit_code


def _facts(image: Path, report: FsckReport) -> dict[str, object]:
    return {
        "image": str(image),
        "exit_code": report.exit_code,
        "repairs": [_fact(done) for done in report.repairs],
        "findings": [_fact(finding) for finding in report.findings],
        "unchecked": list(report.unchecked),
        "nr_pages": report.nr_pages,
        "nr_used_pages": report.nr_used_pages,
        "nr_inodes": report.nr_inodes,
        "nr_dirs": report.nr_dirs,
    }


def _fact(about: Finding | Repair) -> dict[str, str]:
    invariant = about.invariant
    return {"invariant": str(invariant), "name": invariant.name.lower(), "text": about.text}


def _lines(image: Path, report: FsckReport) -> list[str]:
    verdict = _number(len(report.findings), "finding") if report.findings else "clean"
    if report.repairs:
        verdict = f"{_number(len(report.repairs), 'repair')}, {verdict}"
    return [
        *(f"{done.invariant} repaired: {done.text}" for done in report.repairs),
        *map(str, report.findings),
        *(f"not checked: {text}" for text in report.unchecked),
        f"{image}: {verdict}; {report.nr_inodes} inodes, {report.nr_dirs} of them directories; "
        f"{report.nr_used_pages} of {report.nr_pages} pages in use",
    ]


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


@contextmanager
def _progress() -> Iterator[Callable[[FsckProgress], None] | None]:
    """Show on a terminal how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with task_bar(*columns) as update:
        yield update and (
            lambda now: update(description=now.what, completed=now.done, total=now.total)
        )
