"""`xipfs umount MNT`: unmount, and wait until the daemon has ended."""

import os
from pathlib import Path
from typing import Annotated

import typer

from xipfs.errors import ControlError, MountError
from xipfs.fuse.client import connect
from xipfs.fuse.mountpoint import MountState, probe, unmount

__all__ = ["umount"]

_TIMEOUT_S = 30.0


def umount(
    mountpoint: Annotated[Path, typer.Argument(metavar="MNT")],
    lazy: Annotated[
        bool, typer.Option("-l", "--lazy", help="Even if it is in use: detach it now.")
    ] = False,
) -> None:
    """Unmount and wait for the daemon to end."""
    mountpoint = Path(os.path.realpath(mountpoint.parent)) / mountpoint.name
    state = probe(mountpoint)
    if state is MountState.FREE:
        raise MountError(f"{mountpoint}: no xipfs is mounted there")
    if state is MountState.DEAD:
        unmount(mountpoint, force=True)
        return
    try:
        daemon = connect(mountpoint)
    except ControlError:
        unmount(mountpoint, force=lazy)  # not our mount: nobody to wait for
        return
    with daemon:
        unmount(mountpoint, force=lazy)
        daemon.settimeout(_TIMEOUT_S)
        try:
            while daemon.recv(4096):
                pass
        except TimeoutError:
            raise MountError(
                f"{mountpoint}: unmounted, but its daemon has not ended in {_TIMEOUT_S:.0f} s"
            ) from None
        except ConnectionResetError:
            pass
