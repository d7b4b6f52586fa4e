"""`xipfs fsck IMAGE`: check every invariant of an image; docs/FSCK.md lists them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from xipfs.fs.fsck import FsckProgress, FsckReport
from xipfs.fs.fsck import fsck as check_image

__all__ = ["fsck"]


def fsck(
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    as_json: Annotated[bool, typer.Option("--json", help="The findings, for programs.")] = False,
) -> int:
    """Check an image and change nothing: exit code 0 clean, 4 damaged, 8 could not judge."""
    with _progress() as progress:
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
        "findings": [
            {
                "invariant": str(finding.invariant),
                "name": finding.invariant.name.lower(),
                "text": finding.text,
            }
            for finding in report.findings
        ],
        "unchecked": list(report.unchecked),
        "nr_pages": report.nr_pages,
        "nr_used_pages": report.nr_used_pages,
        "nr_inodes": report.nr_inodes,
        "nr_dirs": report.nr_dirs,
    }


def _lines(image: Path, report: FsckReport) -> list[str]:
    number = len(report.findings)
    verdict = f"{number} finding{'s' * (number != 1)}" if number else "clean"
    return [
        *map(str, report.findings),
        *(f"not checked: {text}" for text in report.unchecked),
        f"{image}: {verdict}; {report.nr_inodes} inodes, {report.nr_dirs} of them directories; "
        f"{report.nr_used_pages} of {report.nr_pages} pages in use",
    ]


@contextmanager
def _progress() -> Iterator[Callable[[FsckProgress], None] | None]:
    """Show on a terminal how far it is."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda now: bar.update(
            task, description=now.what, completed=now.done, total=now.total
        )
