"""`xipfs umount MNT`: unmount, and wait until the daemon has ended."""

import contextlib
import os
import select
from pathlib import Path
from typing import Annotated

import typer

from xipfs.errors import ControlError, MountError
from xipfs.fuse.client import open_daemon
from xipfs.fuse.mountpoint import MountState, absolute_mountpoint, probe, unmount

__all__ = ["umount"]

_TIMEOUT_S = 30.0


def umount(
    mountpoint: Annotated[Path, typer.Argument(metavar="MNT")],
    lazy: Annotated[
        bool, typer.Option("-l", "--lazy", help="Even if it is in use: detach it, wait for nobody.")
    ] = False,
) -> None:
    """Unmount and wait for the daemon to end: the image is free then."""
    mountpoint = absolute_mountpoint(mountpoint)
    state = probe(mountpoint)
    if state is MountState.FREE:
        raise MountError(f"{mountpoint}: no xipfs is mounted there")
    if state is MountState.DEAD:
        unmount(mountpoint, abort=True)
        return
    with contextlib.ExitStack() as stack:
        daemon = None
        with contextlib.suppress(ControlError):  # nobody to wait for: unmount it all the same
            daemon = open_daemon(mountpoint)
            stack.callback(os.close, daemon)
        unmount(mountpoint, lazy=lazy)
        if daemon is not None and not lazy and not select.select([daemon], [], [], _TIMEOUT_S)[0]:
            raise MountError(
                f"{mountpoint}: unmounted, but its daemon has not ended in {_TIMEOUT_S:.0f} s"
            )
