"""How commands talk to a mount's daemon: one request and one answer, a line of JSON each.

    -> {"request": "stat", "cells": 1600}
    <- {"ok": true, "answer": {...}}            or {"ok": false, "error": "one line"}

The address is an abstract unix socket; its name is told by the attribute user.xipfs.control of the
mount's root, so that whoever can see the mount can find it. It answers only the daemon's own user
and root, as the kernel names the peer (SO_PEERCRED): all others get an error.

    request   arguments      answer
    stat      cells, files   every figure of the mount; with a number of cells also "map", with one
              (numbers)      of files the hottest "files"
    smaps     address, ino   areas from an address on, of one file if ino is given: see `maps`
    pagemap   address, ino   the same with runs of pages; "next" is the address of the next part
    paths     inos           a path of each inode by which it was looked up, where one is known
    ping                     "pong"; the connection then stays open until the daemon ends
    trace                    the clocks; the connection is a `trace_stream` from then on

and those of `steering`, which change something.
"""

import functools
import json
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from xipfs.errors import ControlError, XipfsError
from xipfs.fs.superblock import SuperBlock
from xipfs.fuse.maps import pagemap_part, path_of, smaps_part
from xipfs.fuse.mount import Mount
from xipfs.fuse.steering import Steering
from xipfs.fuse.trace_stream import encode_ranges
from xipfs.fuse.view import hottest_files
from xipfs.mm.vma import Mm
from xipfs.units import Ino, Vaddr

__all__ = ["ControlServer"]

_log = logging.getLogger(__name__)

_LINE_SIZE_BYTES_MAX = 1 << 16
_NR_CELLS_MAX = 1 << 14
_NR_FILES_MAX = 1000
_TRACE_INTERVAL_S = 0.02
"""The ring of the log has room for more than comes in so long."""

_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid

_MapsPart = Callable[[Mm, SuperBlock, Vaddr, Ino | None], dict[str, Any]]


class ControlServer:
    """Answers for *mount* until it is cancelled."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._name = f"xipfs.{os.getpid()}.{secrets.token_hex(8)}"
        self._requests: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "stat": self._stat,
            "smaps": functools.partial(self._maps, smaps_part),
            "pagemap": functools.partial(self._maps, pagemap_part),
            "paths": self._paths,
            "ping": self._ping,
            "trace": self._trace,
            **Steering(mount).requests,
        }

    @property
    def address(self) -> bytes:
        """What the attribute answers: the socket's name without its leading zero byte."""
        return self._name.encode()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept connections, each in a task of its own."""
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await listener.bind("\0" + self._name)
        listener.listen()
        task_status.started()
        await trio.serve_listeners(self._serve_one, [trio.SocketListener(listener)])

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        with stream.socket:
            try:
                peer = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
                _, uid, _ = _PEER.unpack(peer)
                buffer = b""
                while data := await stream.receive_some():
                    buffer += data
                    while b"\n" in buffer:
                        line, buffer = buffer.split(b"\n", 1)
                        answer, follows = await self._answer(line, uid)
                        # Who has the answer may read at once.
                        position = self._mount.log.position
                        await stream.send_all(answer + b"\n")
                        if not _may_ask(uid):
                            return  # nor keep a connection of ours
                        if follows:
                            await self._send_accesses(stream, position)
                    if len(buffer) > _LINE_SIZE_BYTES_MAX:
                        return
            except (trio.BrokenResourceError, OSError):
                return  # the client went away

    async def _answer(self, line: bytes, uid: int) -> tuple[bytes, bool]:
        """Return the answer to a line, and whether accesses shall follow it."""
        try:
            if not _may_ask(uid):
                raise ControlError("only root and the user who mounted may ask")
            request = _parse(line)
            name = str(request.get("request"))
            handler = self._requests.get(name)
            if handler is None:
                raise ControlError(f"no such request: there are {', '.join(self._requests)}")
            answer = json.dumps({"ok": True, "answer": await handler(request)})
            return answer.encode(), name == "trace"
        except XipfsError as exc:
            error = str(exc)
        except Exception:
            _log.exception("a control request failed: %r", line[:200])
            error = "the daemon met a bug, see its log"
        return json.dumps({"ok": False, "error": error}).encode(), False

    async def _trace(self, _request: dict[str, Any]) -> dict[str, int]:
        return {"clock_ns": self._mount.log.clock(), "time_ns": time.time_ns()}

    async def _send_accesses(self, stream: trio.SocketStream, position: int) -> None:
        """Send what is recorded since *position*, until the other side goes away."""
        log = self._mount.log
        sent_s = trio.current_time()
        while True:
            await trio.sleep(_TRACE_INTERVAL_S)
            ranges = self._mount.dispatch(log.follow, position)
            position = ranges.next_position
            if len(ranges.page) or trio.current_time() - sent_s > 1:
                await stream.send_all(encode_ranges(ranges))
                sent_s = trio.current_time()

    async def _ping(self, _request: dict[str, Any]) -> str:
        return "pong"

    async def _stat(self, request: dict[str, Any]) -> dict[str, Any]:
        facts = self._mount.statistics()
        nr_cells = _count(request, "cells", _NR_CELLS_MAX)
        nr_files = _count(request, "files", _NR_FILES_MAX)
        if nr_files:
            facts["files"] = self._mount.dispatch(
                hottest_files, self._mount.mm, self._mount.sb, nr_files
            )
        if nr_cells:
            region = self._mount.region_map(nr_cells)
            facts["map"] = {
                "nr_cell_pages": region.nr_cell_pages,
                "nr_mapped": region.nr_mapped.tolist(),
                "nr_ram": region.nr_ram.tolist(),
                "heat": region.heat.tolist(),
            }
        return facts

    async def _paths(self, request: dict[str, Any]) -> dict[str, str]:
        inos = request.get("inos", [])
        if not isinstance(inos, list) or not all(type(ino) is int for ino in inos):
            raise ControlError("inos: a list of numbers")
        return self._mount.dispatch(self._find_paths, inos)

    def _find_paths(self, inos: list[int]) -> dict[str, str]:
        sb = self._mount.sb
        found = {ino: sb.find_inode(Ino(ino)) for ino in inos}
        return {
            str(ino): path
            for ino, inode in found.items()
            if inode is not None and (path := path_of(sb, inode)) is not None
        }

    async def _maps(self, part: _MapsPart, request: dict[str, Any]) -> dict[str, Any]:
        address, ino = request.get("address", 0), request.get("ino")
        if type(address) is not int or address < 0:
            raise ControlError("address: a number, where the part begins")
        if ino is not None and type(ino) is not int:
            raise ControlError("ino: a number, or none for all files")
        mount = self._mount
        file = Ino(ino) if ino is not None else None
        return mount.dispatch(part, mount.mm, mount.sb, Vaddr(address), file)


def _may_ask(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _count(request: dict[str, Any], name: str, most: int) -> int:
    count = request.get(name, 0)
    if not isinstance(count, int) or not 0 <= count <= most:
        raise ControlError(f"{name}: a number from 0 to {most}")
    return count


def _parse(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ControlError(f"a request is a line of JSON: {exc}") from None
    return request if isinstance(request, dict) else {}
