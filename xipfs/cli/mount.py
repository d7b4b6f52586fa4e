"""`xipfs mount IMAGE MNT`, and mount.xipfs, which mount(8) calls for `-t xipfs`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from xipfs.errors import XipfsError
from xipfs.fuse.daemon import start
from xipfs.fuse.options import OPTION_HELP, CacheMode, parse_options

__all__ = ["mount", "mount_helper"]

_OPTIONS_HELP = "Options, separated by commas: " + "; ".join(
    f"{name}: {text}" for name, text in OPTION_HELP.items()
)


def mount(
    image: Annotated[Path, typer.Argument(help="The image, made by xipfs mkfs.")],
    mountpoint: Annotated[Path, typer.Argument(metavar="MNT", help="An existing directory.")],
    foreground: Annotated[
        bool, typer.Option("-f", "--foreground", help="Stay in front until unmounted.")
    ] = False,
    option: Annotated[
        list[str] | None, typer.Option("-o", metavar="OPTIONS", help=_OPTIONS_HELP)
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Log to this file, not to syslog (or, in front, stderr)."),
    ] = None,
) -> None:
    """Mount an image: return when the mount answers."""
    options = parse_options(",".join(option or []))
    if options.cache is CacheMode.NONE:
        _say(
            "cache=none: files bypass the page cache, so the kernel refuses to map them MAP_SHARED"
        )
    start(image, mountpoint, options, foreground=foreground, log_file=log, say=_say)


def mount_helper(argv: Sequence[str] | None = None) -> int:
    """Be /sbin/mount.xipfs: `mount.xipfs IMAGE MNT [-sfnv] [-o OPTIONS]`, see mount(8)."""
    parser = argparse.ArgumentParser(prog="mount.xipfs")
    parser.add_argument("image", type=Path)
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("-o", dest="options", action="append", default=[])
    parser.add_argument("-f", dest="fake", action="store_true", help="do all but mount")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="ignored")
    parser.add_argument("-n", dest="no_mtab", action="store_true", help="ignored")
    parser.add_argument("-v", dest="verbose", action="store_true", help="ignored")
    parser.add_argument("-t", dest="type", help="ignored")
    arguments = parser.parse_args(argv)
    try:
        words = ",".join(arguments.options).split(",")
        # mount(8) says rw wherever nobody said ro.
        options = parse_options(",".join(word for word in words if word != "rw"))
        if not arguments.fake:
            start(
                arguments.image,
                arguments.mountpoint,
                options,
                foreground=False,
                log_file=None,
                say=_say,
            )
    except (XipfsError, OSError) as exc:
        _say(str(exc))
        return 32  # "mount failure" of mount(8)
    return 0


def _say(line: str) -> None:
    print(f"xipfs: {line}", file=sys.stderr)
