"""The commands' side of `control`: find the daemon of a mount, ask it something.

Who asks need not trust who mounted: the attribute leads to sockets of xipfs only, and an answer may
be anything. It is parsed with distrust, and what it holds is shown as the daemon says it.
"""

import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any

from xipfs.errors import ControlError
from xipfs.fs.contents import printable

__all__ = ["answer_of", "ask", "connect", "iter_areas", "open_daemon"]

XATTR_CONTROL = "user.xipfs.control"
_ADDRESS = re.compile(rb"xipfs\.[0-9]+\.[0-9a-f]+")
"""Names that `ControlServer` gives itself."""
ANSWER_SIZE_BYTES_MAX = 64 << 20
"""Far more than any answer, of which the largest come in parts."""
_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid


def connect(mountpoint: str | os.PathLike[str]) -> socket.socket:
    """Connect to the daemon of the mount at *mountpoint*; the caller closes.

    Raises: ControlError when that is no xipfs mount, or its daemon does not answer.
    """
    try:
        name = os.getxattr(mountpoint, XATTR_CONTROL)
    except OSError as exc:
        raise ControlError(f"{os.fspath(mountpoint)}: no xipfs mount: {exc.strerror}") from None
    if not _ADDRESS.fullmatch(name):
        raise ControlError(
            f"{os.fspath(mountpoint)}: no xipfs mount: its attribute names no daemon"
        )
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(b"\0" + name)
    except OSError as exc:
        connection.close()
        raise ControlError(
            f"{os.fspath(mountpoint)}: its daemon does not answer: {exc.strerror}"
        ) from None
    return connection


def open_daemon(mountpoint: str | os.PathLike[str]) -> int:
    """Return a descriptor of the daemon's process (pidfd); the caller closes.

    Raises: ControlError, also when it is out of sight, in a container.
    """
    with connect(mountpoint) as connection:
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid, _, _ = _PEER.unpack(peer)
        try:
            return os.pidfd_open(pid)
        except OSError as exc:
            raise ControlError(
                f"{os.fspath(mountpoint)}: its daemon cannot be seen: {exc.strerror}"
            ) from None


def ask(mountpoint: str | os.PathLike[str], request: str, **arguments: object) -> dict[str, Any]:
    """Send one request to the daemon of a mount and return its answer.

    Raises: ControlError, also with what the daemon refused.
    """
    with connect(mountpoint) as connection:
        try:
            connection.sendall(json.dumps({"request": request, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline(ANSWER_SIZE_BYTES_MAX)
        except OSError as exc:
            raise ControlError(
                f"{os.fspath(mountpoint)}: its daemon ended: {exc.strerror}"
            ) from None
    return answer_of(mountpoint, line)


def answer_of(mountpoint: str | os.PathLike[str], line: bytes) -> dict[str, Any]:
    """Return the answer that a line of the daemon's holds. Raises: ControlError if it refuses."""
    if not line:
        raise ControlError(f"{os.fspath(mountpoint)}: its daemon ended without an answer")
    try:
        match json.loads(line):
            case {"ok": True, "answer": dict(facts)}:
                return facts
            case {"ok": False, "error": str(error)}:
                text = printable(error.encode(errors="surrogatepass"))
                raise ControlError(f"{os.fspath(mountpoint)}: {text}")
    except (ValueError, RecursionError):
        pass
    raise ControlError(f"{os.fspath(mountpoint)}: its daemon talks nonsense")


def iter_areas(
    mountpoint: str | os.PathLike[str], request: str, ino: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the areas that `smaps` or `pagemap` tell of, asking part by part.

    An area that is told in parts comes as often, each time with further runs. Raises: ControlError.
    """
    address: int | None = 0
    while address is not None:
        part = ask(mountpoint, request, address=address, ino=ino)
        yield from part["areas"]
        address = part["next"]
