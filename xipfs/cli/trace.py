"""`xipfs trace`: record what is accessed on a mount, and look at a recording."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from xipfs.cli.imagepath import paths_of
from xipfs.errors import InvalidArgumentError
from xipfs.fuse.client import ask
from xipfs.fuse.trace_stream import follow_mount
from xipfs.policy.contract import page_id_parts
from xipfs.policy.profile import write_profile
from xipfs.tiering.access_log import AccessRanges

__all__ = ["trace"]

trace = typer.Typer(no_args_is_help=True, help="Record what is accessed on a mount.")


@trace.callback()
def _trace() -> None:
    """Record what is accessed on a mount, and look at a recording."""


@trace.command(name="record")
def _record(
    mountpoint: Annotated[Path, typer.Argument(metavar="MNT")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The Parquet file to write.")],
    for_s: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="Stop after so long.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary, for programs.")] = False,
) -> None:
    """Record accesses until Ctrl-C, the end of the mount, or --for.

    What `cache=` hides is not in it: with cache=none it has every read(2).
    """
    lab = _lab()
    facts = ask(mountpoint, "stat")
    kept = {name: facts[name] for name in ("image", "cache", "policy", "epoch_ms", "ram_frames")}
    recording = _Recording(mountpoint, for_s)
    with lab.TraceWriter(output, kept) as writer:
        for ranges in recording.follow():
            file, page = page_id_parts(ranges.page)
            writer.append(
                time_ns=ranges.time_ns - recording.clock_ns,
                client=ranges.client,
                file=file,
                page=page,
                nr_pages=ranges.nr_pages,
                kind=ranges.kind,
                tier=ranges.tier,
            )
        writer.facts |= recording.facts()
        writer.facts["paths"] = paths_of(mountpoint, Path(facts["image"]), recording.files)
    summary = {
        "output": str(output),
        "rows": writer.nr_rows,
        "files": len(recording.files),
        "lost": recording.nr_lost,
        "size_bytes": output.stat().st_size,
    }
    if as_json:
        print(json.dumps(summary))
    else:
        print(
            f"{output}: {writer.nr_rows} accesses of {len(recording.files)} files, "
            f"{summary['size_bytes']} bytes, {recording.nr_lost} lost"
        )


@trace.command(name="info")
def _info(
    path: Annotated[Path, typer.Argument(help="A recording.")],
    as_json: Annotated[bool, typer.Option("--json", help="All of it, for programs.")] = False,
) -> None:
    """Show what a recording is of."""
    lab = _lab()
    with lab.open_trace(path) as found:
        facts = lab.trace_facts(found) | {"rows": found.metadata.num_rows}
    if as_json:
        print(json.dumps(facts))
        return
    for name in ("paths", "clients"):
        facts[name] = len(facts[name])
    for name, value in facts.items():
        print(f"{name:10} {value}")


@trace.command(name="profile")
def _profile(
    path: Annotated[Path, typer.Argument(help="A recording.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The profile to write.")],
    nr_pages: Annotated[
        int | None, typer.Option("--pages", min=1, help="Only so many, the hottest.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary, for programs.")] = False,
) -> None:
    """Make a profile of a recording: its pages, those accessed most first.

    For `mount -o prefetch=`, and for `policy=static:profile=`.
    """
    lab = _lab()
    with lab.open_trace(path) as found:
        pages, counts = lab.count_pages(found)
    hottest = pages[np.argsort(-counts, kind="stable")][:nr_pages]
    with output.open("w") as file:
        write_profile(file, hottest, [f"{len(hottest)} pages, hottest first, of {path}"])
    if as_json:
        print(json.dumps({"output": str(output), "pages": len(hottest)}))
    else:
        print(f"{output}: {len(hottest)} of {len(pages)} pages")


class _Recording:
    """What comes from a mount's daemon, until it ends or somebody stops it.

    clock_ns: the log's clock at the start. files: the inodes seen. nr_lost: ranges overwritten
    before they were read.
    """

    def __init__(self, mountpoint: Path, for_s: float | None) -> None:
        self._mountpoint = mountpoint
        self._end_s = time.monotonic() + for_s if for_s is not None else float("inf")
        self._start_time_ns = 0
        self._clients: dict[int, str] = {}
        self._is_stopped = False
        self.clock_ns = 0
        self.files: set[int] = set()
        self.nr_lost = 0

    def follow(self) -> Iterator[AccessRanges]:
        """Yield what is accessed, with progress on a terminal."""
        nr_accesses = 0
        with _signals_call(self._stop), Console(stderr=True).status("recording") as status:
            clocks, stream = follow_mount(self._mountpoint)
            self.clock_ns, self._start_time_ns = clocks["clock_ns"], clocks["time_ns"]
            print(f"xipfs: recording {self._mountpoint}: Ctrl-C ends it", file=sys.stderr)
            for ranges in stream:
                self._note(ranges)
                nr_accesses += len(ranges.page)
                status.update(f"recording: {nr_accesses} accesses of {len(self.files)} files")
                yield ranges
                if self._is_stopped or time.monotonic() >= self._end_s:
                    return

    def facts(self) -> dict[str, Any]:
        """Return what shall stand in the recording."""
        return {
            "start_time_ns": self._start_time_ns,
            "lost": self.nr_lost,
            "clients": self._clients,
        }

    def _note(self, ranges: AccessRanges) -> None:
        self.nr_lost += ranges.nr_lost
        self.files.update(np.unique(page_id_parts(ranges.page)[0]).tolist())
        for client in set(np.unique(ranges.client).tolist()) - self._clients.keys():
            with contextlib.suppress(OSError):  # it may have ended
                self._clients[client] = Path(f"/proc/{client}/comm").read_text().strip()

    def _stop(self, *_: object) -> None:
        self._is_stopped = True


@contextlib.contextmanager
def _signals_call(stop: Callable[..., None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM call *stop* instead of ending us amid a file."""
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lab() -> ModuleType:
    try:
        import xipfs.lab.trace
    except ImportError as exc:
        raise InvalidArgumentError(
            f"traces need pyarrow ({exc}): pip install 'xipfs[trace]'"
        ) from None
    return xipfs.lab.trace
