"""`xipfs top MNT`: a live mount on one screen of a terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer

from xipfs.errors import InvalidArgumentError
from xipfs.fuse.client import ask

__all__ = ["top"]


def top(mountpoint: Annotated[Path, typer.Argument(metavar="MNT")]) -> None:
    """Watch a mount: its tiers, its heat, its hottest files; and swap its policy."""

    def ask_mount(request: str, **arguments: object) -> dict[str, Any]:
        return ask(mountpoint, request, **arguments)

    ask_mount("stat")  # a mount that cannot be asked is an error before the screen is taken
    try:
        from xipfs.cli import screen
    except ImportError as exc:
        raise InvalidArgumentError(
            f"top needs textual ({exc}): pip install 'xipfs[fuse]'"
        ) from None
    screen.run(mountpoint, ask_mount)
