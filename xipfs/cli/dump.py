"""`xipfs dump IMAGE [PATH]`: the records of an image, field by field."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from xipfs.cli.imagepath import open_image
from xipfs.errors import InvalidArgumentError
from xipfs.fs.dump import Dump, dump_inode, dump_volume
from xipfs.fs.namei import path_lookup
from xipfs.phys.nvram import NvramDevice
from xipfs.units import Ino

__all__ = ["dump"]


def dump(
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    path: Annotated[str | None, typer.Argument(metavar="PATH", help="A file in it.")] = None,
    ino: Annotated[
        int | None, typer.Option("--inode", metavar="N", min=0, help="By its number.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the records of an image, or of one inode, sound or not."""
    if path is not None and ino is not None:
        raise InvalidArgumentError("PATH and --inode: one of them, please")
    if path is not None:
        with open_image(image) as sb:
            ino = path_lookup(sb, os.fsencode(path), follow=False).ino
    nvram = NvramDevice.open(image)
    try:
        facts = dump_volume(nvram) if ino is None else dump_inode(nvram, Ino(ino))
    finally:
        nvram.close()
    print(json.dumps(facts, indent=1) if as_json else "\n".join(_lines(facts, "")))


def _lines(facts: Dump, indent: str) -> Iterator[str]:
    """Yield `name value` lines; of a list of dicts each is one line, or more if it has some."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield f"{indent}{name}"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield f"{indent}{name}"
            for item in value:
                yield f"{indent}  - " + " ".join(
                    f"{key}={_text(v)}" for key, v in item.items() if not _is_nested(v)
                )
                nested = {key: v for key, v in item.items() if _is_nested(v)}
                yield from _lines(nested, indent + "    ")
        else:
            yield f"{indent}{name} {_text(value)}".rstrip()


def _is_nested(value: object) -> bool:
    if isinstance(value, list):
        return any(isinstance(item, dict) for item in value)
    return isinstance(value, dict)


def _text(value: object) -> str:
    return ",".join(map(str, value)) or "-" if isinstance(value, list) else str(value)
