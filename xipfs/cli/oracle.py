"""`xipfs oracle`: what a real kernel answered, played on the simulated memory manager."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from xipfs.errors import BugError, InvalidArgumentError
from xipfs.mm.arch import get_arch
from xipfs.oracle.device import Hooks, VmMode
from xipfs.oracle.live import HANG, LiveKernel
from xipfs.oracle.player import BUG, play_scene, scene_lines
from xipfs.oracle.probe import Target, play

__all__ = ["oracle"]

oracle = typer.Typer(
    no_args_is_help=True, help="Play the scenarios of a kernel's answers on the simulated one."
)


@oracle.callback()
def _oracle() -> None:
    """Play the scenarios of a kernel's answers on the simulated one."""


@oracle.command(name="play")
def _play(
    plan: Annotated[
        str,
        typer.Option(
            help="How each page is inserted: letters R W P I V Z F G, repeated. "
            "With --vm cramfs how each block is stored: D direct, C compressed."
        ),
    ],
    name: Annotated[str, typer.Option(help="The first field of each line.")] = "mix",
    vm: Annotated[
        VmMode,
        typer.Option(
            help="What mmap does: sets VM_MIXEDMAP or VM_PFNMAP, remaps all, or as cramfs."
        ),
    ] = VmMode.MIXED,
    hooks: Annotated[
        Hooks,
        typer.Option(help="page_mkwrite and pfn_mkwrite: there, absent, or answering SIGBUS."),
    ] = Hooks.FULL,
    arch: Annotated[
        str, typer.Option(help="Architecture: um, um-special, x86, powerpc, s390, generic.")
    ] = "um",
    version: Annotated[
        str, typer.Option(help="Kernel version: 2.6.26, 2.6.28, 6.1, 6.18.")
    ] = "6.1",
    scenario: Annotated[str | None, typer.Option(help="Print this one only.")] = None,
) -> None:
    """Print what the simulated kernel answers, one line for each line of a real one.

    Where a kernel stops with BUG, the scenario ends there, and the command with exit code 1.
    """
    try:
        for line in play(Target(name, plan, vm, hooks), get_arch(arch, version), scenario):
            print(line)
    except BugError as exc:
        print(f"xipfs oracle: {exc}", file=sys.stderr)
        raise typer.Exit(1) from None


@oracle.command(name="scene")
def _scene(
    file: Annotated[Path, typer.Argument(help="A scene: a header, then an operation a line.")],
    arch: Annotated[str, typer.Option(help="um, um-special, x86, powerpc, s390, generic.")] = "um",
    kernel: Annotated[
        bool, typer.Option("--kernel", help="Let a real one answer: um or um-special.")
    ] = False,
) -> None:
    """Play a scene file on the simulated kernel, or on a real one, and print it with the answers.

    The language is in xipfs/oracle/player.py; tools/oracle-kernel build makes the real kernels.
    """
    try:
        lines = scene_lines(file.read_text())
    except OSError as exc:
        raise InvalidArgumentError(f"{file}: {exc.strerror}") from None
    if not lines:
        raise InvalidArgumentError(f"{file}: no scene: its first line is `device plan=...`")
    if kernel:
        with LiveKernel(arch) as live:
            answers = live.play(lines)
    else:
        answers = play_scene(lines, get_arch(arch, "6.1"))
    for op, answer in zip(lines, answers, strict=False):
        print(f"{op} -> {answer}")
    if answers[-1] in (BUG, HANG):
        raise typer.Exit(1)
