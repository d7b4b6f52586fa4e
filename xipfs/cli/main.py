"""The `xipfs` command: its subcommands, and what becomes of their errors.

    0    done
    1    it could not be done: one line on stderr says what, where and what to do
    2    wrong usage (`fsck`: 16)
    130  interrupted

`fsck` exits as fsck(8) says.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from xipfs import __version__
from xipfs.errors import XipfsError

__all__ = ["COMMANDS", "main", "make_app"]

COMMANDS = [
    *("mkfs", "info", "fsck", "ls", "cat", "cp", "dump"),
    *("mount", "umount", "stat", "top", "tier", "trace", "oracle", "crash"),
]
"""Each is a function, or a command with subcommands, in a module of its name."""

_EXIT_FAILED, _EXIT_USAGE, _EXIT_INTERRUPTED = 1, 2, 130
_EXIT_FSCK_OPERATIONAL, _EXIT_FSCK_USAGE = 8, 16


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"xipfs {__version__}")
        raise typer.Exit


def _global_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Hold the options of the command itself."""


def make_app(commands: Sequence[str]) -> typer.Typer:
    """Return the command with these subcommands, whose modules are imported now."""
    app = typer.Typer(
        name="xipfs",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="A filesystem in memory without struct pages that migrates its hot pages to RAM.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for command in commands:
        function = getattr(importlib.import_module(f"xipfs.cli.{command}"), command)
        if isinstance(function, typer.Typer):
            app.add_typer(function, name=command)
        else:
            app.command()(function)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (sys.argv if None); return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may be of any bytes
    is_fsck = arguments[:1] == ["fsck"]
    # One command needs one module: importing all of them would take longer than most commands do.
    named = [command for command in COMMANDS if arguments[:1] == [command]]
    try:
        result = make_app(named or COMMANDS)(arguments, prog_name="xipfs", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.TyperException as exc:
        print(f"xipfs: {exc.format_message()} (see xipfs --help)", file=sys.stderr)
        return _EXIT_FSCK_USAGE if is_fsck else _EXIT_USAGE
    except XipfsError as exc:
        print(f"xipfs: {exc}", file=sys.stderr)
        return _EXIT_FSCK_OPERATIONAL if is_fsck else _EXIT_FAILED
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as exc:
        where = f"{os.fsdecode(exc.filename)}: " if exc.filename is not None else ""
        print(f"xipfs: {where}{exc.strerror}", file=sys.stderr)
        return _EXIT_FSCK_OPERATIONAL if is_fsck else _EXIT_FAILED
    except (KeyboardInterrupt, typer.Abort):
        return _EXIT_INTERRUPTED
