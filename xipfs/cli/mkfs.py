"""`xipfs mkfs IMAGE`: make an image from a directory tree, from a tar archive, or empty.

With SOURCE_DATE_EPOCH set the same input makes the same bytes, wherever it lies.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from xipfs.cli.progress import task_bar
from xipfs.errors import InvalidArgumentError, SourceError
from xipfs.fs.mkfs import MkfsProgress, MkfsStatistics
from xipfs.fs.mkfs import mkfs as make_image
from xipfs.fs.source import Entry, walk_tree
from xipfs.fs.tarsource import read_tar
from xipfs.policy.contract import page_id_parts
from xipfs.policy.profile import read_profile
from xipfs.units import format_size, parse_size

__all__ = ["mkfs"]


def mkfs(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The file to make.")],
    from_dir: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Copy this directory tree.")
    ] = None,
    from_tar: Annotated[
        str | None,
        typer.Option("--from-tar", metavar="FILE|-", help="Copy this archive; - is stdin."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="SIZE", help="Of the image, like 4G; default: as needed."),
    ] = None,
    label: Annotated[str, typer.Option("--label", help="A name for the image, 64 bytes.")] = "",
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace an image that exists.")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(help="Lay the pages of this profile together: xipfs trace profile makes one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures, for programs.")] = False,
) -> None:
    """Make an image: of a directory tree, of a tar archive, or empty."""
    now_ns, reproducible = _read_clock()
    with _open_source(image, from_dir, from_tar) as source, _progress() as progress:
        statistics = make_image(
            image,
            source,
            now_ns=now_ns,
            size_bytes=None if size is None else _parse_size(size),
            label=os.fsencode(label),
            reproducible=reproducible,
            force=force,
            progress=progress,
            hot=None if profile is None else _read_hot_pages(profile),
        )
    if as_json:
        facts = {"image": os.fspath(image), "label": label, **dataclasses.asdict(statistics)}
        print(json.dumps(facts, indent=1))
    else:
        print(_summary(image, statistics))


def _read_hot_pages(profile: Path) -> dict[int, NDArray[np.int64]]:
    inos, pgoffs = page_id_parts(np.sort(read_profile(profile)))
    return {int(ino): pgoffs[inos == ino] for ino in np.unique(inos)}


def _read_clock() -> tuple[int, bool]:
    """Return the time of creation in ns, and whether SOURCE_DATE_EPOCH fixed it."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return time.time_ns(), False
    if not epoch.isdecimal() or int(epoch) >= 1 << 33:
        raise InvalidArgumentError(f"SOURCE_DATE_EPOCH={epoch}: not a number of seconds since 1970")
    return int(epoch) * 10**9, True


def _parse_size(size: str) -> int:
    try:
        return parse_size(size)
    except ValueError as exc:
        raise InvalidArgumentError(f"--size: {exc}") from None


@contextmanager
def _open_source(
    image: Path, from_dir: Path | None, from_tar: str | None
) -> Iterator[Iterator[Entry] | None]:
    if from_dir is not None and from_tar is not None:
        raise InvalidArgumentError("--from and --from-tar: one of them, please")
    if from_dir is not None:
        yield walk_tree(from_dir, image=image)
    elif from_tar is not None:
        is_stdin = from_tar == "-"
        try:
            archive = open(0 if is_stdin else from_tar, "rb", closefd=not is_stdin)  # noqa: SIM115
        except OSError as exc:
            raise SourceError(f"{from_tar}: {exc.strerror}") from exc
        with archive:
            yield read_tar(archive, "stdin" if is_stdin else from_tar)
    else:
        yield None


@contextmanager
def _progress() -> Iterator[Callable[[MkfsProgress], None] | None]:
    """Show on a terminal how far it is; how much there will be nobody knows."""
    columns = (
        BarColumn(bar_width=20),
        TextColumn("{task.fields[nr_inodes]:,} files, {task.fields[data]}"),
        TimeElapsedColumn(),
    )
    with task_bar(*columns, nr_inodes=0, data="") as update:
        yield update and (
            lambda done: update(nr_inodes=done.nr_inodes, data=format_size(done.data_bytes))
        )


def _summary(image: Path, statistics: MkfsStatistics) -> str:
    free_bytes = statistics.nr_free_pages * statistics.size_bytes // statistics.nr_pages
    return (
        f"{image}: {format_size(statistics.size_bytes)} with {format_size(statistics.data_bytes)} "
        f"in {statistics.nr_files:,} files, {statistics.nr_directories:,} directories, "
        f"{format_size(free_bytes)} free, uuid {statistics.uuid}"
    )
