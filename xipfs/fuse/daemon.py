"""Starting a mount: check what can be checked, then serve it in front or in a daemon of its own.

The parent of a daemon returns when the mount answers, and raises what kept it from doing so.
"""

import errno
import logging
import logging.handlers
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from xipfs.errors import MountError, XipfsError
from xipfs.fuse.mount import Mount
from xipfs.fuse.mountpoint import (
    MountState,
    absolute_mountpoint,
    find_mount,
    probe,
    unmount,
)
from xipfs.fuse.options import MountOptions

__all__ = ["check_mountpoint", "start"]

_log = logging.getLogger(__name__)

_READY = b"\0"


def start(
    image: Path,
    mountpoint: Path,
    options: MountOptions,
    *,
    foreground: bool,
    log_file: Path | None,
    say: Callable[[str], None],
) -> None:
    """Mount *image* at *mountpoint*; in front, return when it is unmounted.

    log_file: where the daemon logs; without one, stderr in front and syslog behind.
    say: shows a line to the user.
    Raises: MountError, and what Mount.open raises. Nothing is mounted then.
    """
    image = image.absolute()
    _check_fuse(options)
    mountpoint = check_mountpoint(mountpoint, image, say)
    mount = Mount.open(image, options)
    if mount.options.ro and not options.ro:
        say(f"{image}: cannot be written, mounting read-only")
    _configure_log(log_file, in_front=foreground)
    if foreground:
        _serve(mount, mountpoint, lambda: None)
        return
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _daemon(mount, mountpoint, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        message = pipe.read()
    if message != _READY:
        os.waitpid(child, 0)
        if find_mount(mountpoint) is not None:
            unmount(mountpoint, abort=True)
        raise MountError(os.fsdecode(message) or f"{mountpoint}: the daemon died")
    try:
        os.statvfs(mountpoint)
    except OSError as exc:
        unmount(mountpoint, abort=True)
        raise MountError(f"{mountpoint}: mounted, but did not answer: {exc.strerror}") from exc


def check_mountpoint(mountpoint: Path, image: Path, say: Callable[[str], None]) -> Path:
    """Return *mountpoint* absolute and without links, after making sure that it can be used.

    A mount left behind by a dead daemon is taken away.
    Raises: MountError.
    """
    mountpoint = absolute_mountpoint(mountpoint)
    state = probe(mountpoint)
    if state is MountState.ANSWERS:
        raise MountError(f"{mountpoint}: a xipfs is mounted there already: xipfs umount it first")
    if state is MountState.DEAD:
        unmount(mountpoint, abort=True)
        say(f"{mountpoint}: replacing a mount whose daemon had died")
    if not mountpoint.exists():
        raise MountError(f"{mountpoint}: no such directory: make it first")
    if not mountpoint.is_dir():
        raise MountError(f"{mountpoint}: not a directory")
    if mountpoint in Path(os.path.realpath(image)).parents:
        raise MountError(f"{image}: lies below its own mountpoint {mountpoint}")
    return mountpoint


def _check_fuse(options: MountOptions) -> None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        missing = exc.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        hint = "load it with: modprobe fuse" if missing else "ask root for access"
        raise MountError(f"/dev/fuse: {exc.strerror}: {hint}") from None
    if os.geteuid() != 0:
        if shutil.which("fusermount3") is None:
            raise MountError("fusermount3 not found: install the package fuse3")
        if options.suid or options.dev:
            raise MountError("options suid and dev are for root only")
    try:
        import pyfuse3  # noqa: F401
    except ImportError as exc:
        raise MountError(
            f"mounting needs pyfuse3 ({exc}): pip install 'xipfs[fuse]', which needs the "
            f"packages libfuse3-dev, pkg-config and gcc"
        ) from None


def _serve(mount: Mount, mountpoint: Path, mounted: Callable[[], None]) -> None:
    from xipfs.fuse.server import serve

    try:
        serve(mount, mountpoint, mounted)
    finally:
        mount.close()


def _daemon(mount: Mount, mountpoint: Path, write_end: int) -> NoReturn:
    """Be the daemon: report to the parent by *write_end*, never return."""
    status = 1

    def mounted() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)
        os.write(write_end, _READY)
        os.close(write_end)

    try:
        os.setsid()
        os.chdir("/")
        _serve(mount, mountpoint, mounted)
        status = 0
    except XipfsError as exc:
        os.write(write_end, os.fsencode(str(exc)))
    except BaseException:
        _log.exception("the daemon died")
    finally:
        logging.shutdown()
        os._exit(status)


def _configure_log(log_file: Path | None, *, in_front: bool) -> None:
    handler: logging.Handler
    if log_file is not None:
        try:
            handler = logging.FileHandler(log_file, errors="backslashreplace")
        except OSError as exc:
            raise MountError(f"{log_file}: cannot log there: {exc.strerror}") from None
    elif in_front:
        handler = logging.StreamHandler(sys.stderr)
    elif os.path.exists("/dev/log"):
        handler = logging.handlers.SysLogHandler("/dev/log")
    else:
        handler = logging.NullHandler()
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s xipfs[%(process)d] %(levelname)s: %(message)s",
        handlers=[handler],
    )
