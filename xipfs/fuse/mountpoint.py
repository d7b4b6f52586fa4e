"""What the commands do with a mountpoint from outside of the daemon: look, replace, unmount.

A mountpoint is never looked at carelessly: stat(2) on a mount whose daemon hangs would hang too,
so `absolute_mountpoint` asks nothing of what is mounted there, and `probe` asks in a child process
and gives up after a while.
"""

import ctypes
import errno
import os
import signal
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from xipfs.errors import MountError

__all__ = ["MountInfo", "MountState", "absolute_mountpoint", "find_mount", "probe", "unmount"]

FSTYPE = "fuse.xipfs"

_PROBE_TIMEOUT_S = 10.0
_NR_SYMLINKS_MAX = 40
_MNT_FORCE, _MNT_DETACH = 1, 2


class MountState(Enum):
    """What stands at a mountpoint."""

    FREE = "free"
    ANSWERS = "mounted"
    DEAD = "dead"


class MountInfo(NamedTuple):
    """One line of /proc/self/mountinfo, as far as it is needed. device: "major:minor"."""

    device: str
    fstype: str
    source: str


def absolute_mountpoint(path: Path) -> Path:
    """Return *path* absolute and without symbolic links, as the kernel names it."""
    for _ in range(_NR_SYMLINKS_MAX):
        if path.name in ("", ".."):
            break
        path = Path(os.path.realpath(path.parent)) / path.name
        try:
            path = path.parent / os.readlink(path)
        except OSError:
            return path
    return Path(os.path.realpath(path))


def find_mount(mountpoint: Path) -> MountInfo | None:
    """Return what is mounted at *mountpoint* (absolute, without links), None for nothing."""
    wanted = os.fsencode(mountpoint)
    found = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        head, _, tail = line.partition(b" - ")
        fields = head.split(b" ")
        if _unescape(fields[4]) == wanted:
            fstype, source = tail.split(b" ")[:2]
            found = MountInfo(fields[2].decode(), fstype.decode(), os.fsdecode(_unescape(source)))
    return found  # the last one is on top


def probe(mountpoint: Path) -> MountState:
    """Tell whether a xipfs mount is at *mountpoint*, and whether its daemon answers.

    Raises: MountError if another filesystem is mounted there.
    """
    info = find_mount(mountpoint)
    if info is None:
        return MountState.FREE
    if info.fstype != FSTYPE:
        raise MountError(f"{mountpoint}: a {info.fstype} filesystem is mounted there")
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "import os, sys; os.statvfs(sys.argv[1])", mountpoint],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return MountState.ANSWERS if child.wait(_PROBE_TIMEOUT_S) == 0 else MountState.DEAD
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        return MountState.DEAD


def unmount(mountpoint: Path, *, lazy: bool = False, abort: bool = False) -> None:
    """Unmount *mountpoint*.

    lazy: if it is in use take it out of sight only; who uses it can go on. abort: those get errors
    from now on (only root can do that to them; for others it is the same as lazy).
    Raises: MountError when it is busy or may not be unmounted.
    """
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        target = os.fsencode(mountpoint)
        if abort:
            # Aborts the connection, which lets go of clients that wait for a dead daemon.
            libc.umount2(target, _MNT_FORCE)
            ctypes.set_errno(0)
        if libc.umount2(target, _MNT_DETACH if lazy or abort else 0) == 0:
            return
        error = ctypes.get_errno()
        if abort and error == errno.EINVAL:  # the first call has done it
            return
        raise MountError(f"{mountpoint}: cannot unmount: {os.strerror(error)}")
    command = ["fusermount3", "-u", *(["-z"] if lazy or abort else []), "--", os.fspath(mountpoint)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MountError("fusermount3 not found: install the package fuse3") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["fusermount3 failed"]
        raise MountError(f"{mountpoint}: {lines[-1]}")


def _unescape(field: bytes) -> bytes:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return field
