"""`xipfs info IMAGE`: what an image says of itself."""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from xipfs.fs.info import ImageInfo, read_info
from xipfs.units import STRUCT_PAGE_SIZE_BYTES, format_size

__all__ = ["info"]


def info(
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    as_json: Annotated[bool, typer.Option("--json", help="All figures, for programs.")] = False,
) -> None:
    """Show an image's version, size, features and what is free."""
    facts = read_info(image)
    if as_json:
        print(json.dumps(dataclasses.asdict(facts), indent=1))
    else:
        print("\n".join(_lines(facts)))


def _lines(facts: ImageInfo) -> list[str]:
    page = facts.page_size_bytes
    features = [*facts.compat, *facts.ro_compat, *facts.incompat]
    label = f", label {facts.label!r}" if facts.label else ""
    return [
        f"image        {facts.image}, format version {facts.format_version}",
        f"uuid         {facts.uuid}{label}",
        f"created      {_time(facts.created_ns)}, written {_time(facts.written_ns)}, "
        f"mounted writable {facts.mount_count} times",
        f"state        {', '.join(facts.state) or 'not clean: the journal must be replayed'}",
        f"features     {', '.join(features) or 'none'}",
        f"size         {format_size(facts.size_bytes)}, {facts.nr_pages} pages of {page} bytes; "
        f"{format_size(facts.allocated_bytes)} on disk",
        f"used         {format_size(facts.nr_used_pages * page)}, "
        f"free {format_size(facts.nr_free_pages * page)}, groups: {facts.nr_groups}",
        f"inodes       {facts.nr_inodes}",
        f"journal      {format_size(facts.nr_journal_pages * page)}, "
        f"transaction {facts.journal_sequence} is next",
        f"struct pages none; {STRUCT_PAGE_SIZE_BYTES} bytes for each page would be "
        f"{format_size(facts.struct_page_saved_bytes)}",
    ]


def _time(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns // 10**9, UTC):%Y-%m-%d %H:%M:%SZ}"
