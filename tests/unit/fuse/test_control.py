"""The control socket: what it answers, to whom, and what it does about nonsense."""

import json
import os
import subprocess
import sys

import pytest
import trio

from xipfs.fuse.control import ControlServer
from xipfs.fuse.operations import XATTR_CONTROL
from xipfs.ondisk.inode import INO_ROOT


class Connection:
    """A client's connection: `ask` sends bytes and returns one line."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def ask(self, *parts: bytes):
        for part in parts:
            await self.stream.send_all(part)
        return await self.answer()

    async def answer(self):
        """The next line, None at the end of the connection."""
        while b"\n" not in self._buffer:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)


@pytest.fixture
def server(mount):
    return ControlServer(mount)


@pytest.fixture
async def connect(server, nursery):
    """connect() -> a new connection to the server, which runs."""
    await nursery.start(server.serve)
    sockets = []

    async def connect() -> Connection:
        sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        sockets.append(sock)
        await sock.connect(b"\0" + server.address)
        return Connection(trio.SocketStream(sock))

    yield connect
    for sock in sockets:
        sock.close()


def line(request: object) -> bytes:
    return json.dumps(request).encode() + b"\n"


async def test_every_figure(connect, mount):
    connection = await connect()
    answer = await connection.ask(line({"request": "stat"}))
    assert answer["ok"]
    facts = answer["answer"]
    expected = json.loads(json.dumps(mount.statistics()))
    facts.pop("uptime_s"), expected.pop("uptime_s")
    assert facts == expected


async def test_what_was_refused_is_told_by_its_reason(connect, mount):
    """Once it had been, stat could not be written as JSON: that ended the daemon."""
    mount.tiering.policies[mount.tiering.policy_name].nr_refused["twice"] += 3
    connection = await connect()
    policies = (await connection.ask(line({"request": "stat"})))["answer"]["policies"]
    assert policies[mount.tiering.policy_name]["nr_refused"] == {"twice": 3}


async def test_an_answer_that_is_no_json_ends_nothing(connect, server, expected_logs):
    async def answer(_request):
        return {("a", "tuple"): 1}

    server._requests["stat"] = answer
    expected_logs("a control request failed")
    connection = await connect()
    assert "a bug" in (await connection.ask(line({"request": "stat"})))["error"]
    assert (await connection.ask(line({"request": "ping"})))["answer"] == "pong"


async def test_the_map_comes_when_it_is_asked_for(connect):
    connection = await connect()
    assert "map" not in (await connection.ask(line({"request": "stat"})))["answer"]
    assert "map" not in (await connection.ask(line({"request": "stat", "cells": 0})))["answer"]
    answer = await connection.ask(line({"request": "stat", "cells": 10}))
    region = answer["answer"]["map"]
    assert region["nr_cell_pages"] == 26
    assert [len(region[name]) for name in ("nr_mapped", "nr_ram", "heat")] == [10, 10, 10]


@pytest.mark.parametrize("cells", [-1, 1 << 15, 1.5, "7", None, [3], {}])
async def test_a_bad_number_of_cells(connect, cells):
    answer = await (await connect()).ask(line({"request": "stat", "cells": cells}))
    assert answer == {"ok": False, "error": "cells: a number from 0 to 16384"}


@pytest.mark.parametrize("request_name", ["smaps", "pagemap"])
async def test_areas_come_in_parts(connect, mount, request_name):
    inode = mount.operations.lookup(INO_ROOT, b"big")
    mount.operations.open(inode.ino, 0)
    connection = await connect()
    answer = await connection.ask(line({"request": request_name}))
    (area,) = answer["answer"]["areas"]
    assert (area["path"], answer["answer"]["next"]) == ("/big", None)
    for arguments in ({"address": area["end"]}, {"ino": inode.ino + 1}):
        answer = await connection.ask(line({"request": request_name} | arguments))
        assert answer == {"ok": True, "answer": {"areas": [], "next": None}}


@pytest.mark.parametrize("request_name", ["smaps", "pagemap"])
@pytest.mark.parametrize("value", [-1, 1.5, "7", [3], {}, True])
async def test_a_bad_address_or_inode(connect, request_name, value):
    connection = await connect()
    answer = await connection.ask(line({"request": request_name, "address": value}))
    assert answer == {"ok": False, "error": "address: a number, where the part begins"}
    answer = await connection.ask(line({"request": request_name, "ino": value}))
    if value == -1:
        assert answer["answer"]["areas"] == []
    else:
        assert answer == {"ok": False, "error": "ino: a number, or none for all files"}


async def test_paths_of_what_was_looked_up(connect, mount):
    inode = mount.operations.lookup(INO_ROOT, b"big")
    connection = await connect()
    answer = await connection.ask(line({"request": "paths", "inos": [inode.ino, 999, INO_ROOT]}))
    assert answer["answer"] == {str(inode.ino): "/big", str(INO_ROOT): "/"}
    for inos in (7, "x", [None], [True], {"1": 1}):
        answer = await connection.ask(line({"request": "paths", "inos": inos}))
        assert answer == {"ok": False, "error": "inos: a list of numbers"}


async def test_ping(connect):
    assert await (await connect()).ask(line({"request": "ping"})) == {"ok": True, "answer": "pong"}


NONSENSE = {
    "no request": b"{}",
    "unknown": b'{"request": "format"}',
    "not a name": b'{"request": 3}',
    "not even hashable": b'{"request": []}',
    "nothing": b'{"request": null}',
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_no_such_request(connect, what):
    connection = await connect()
    answer = await connection.ask(NONSENSE[what] + b"\n")
    assert not answer["ok"]
    assert answer["error"].startswith(
        "no such request: there are stat, smaps, pagemap, paths, ping, "
    )
    assert (await connection.ask(line({"request": "ping"})))["ok"], "and it goes on"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"stat", b"\xff\xfe", b'{"request": "stat"', b"[" * 9000]
)
async def test_no_json(connect, data):
    connection = await connect()
    answer = await connection.ask(data + b"\n")
    assert answer["ok"] is False
    assert answer["error"].startswith("a request is a line of JSON")
    assert (await connection.ask(line({"request": "ping"})))["ok"], "and it goes on"


async def test_a_line_in_pieces_and_lines_in_one_piece(connect):
    connection = await connect()
    answer = await connection.ask(b'{"req', b'uest": "p', b'ing"}', b"\n")
    assert answer["ok"]
    assert (await connection.ask(line({"request": "ping"}) * 3))["ok"]
    assert (await connection.answer())["ok"]
    assert (await connection.answer())["ok"]


async def test_a_line_without_end_ends_the_connection(connect):
    connection = await connect()
    # It may close while we are still sending.
    try:
        found = await connection.ask(*[b"x" * (1 << 16)] * 4)
    except trio.BrokenResourceError:
        found = None
    assert found is None
    assert (await (await connect()).ask(line({"request": "ping"})))["ok"]


async def test_clients_that_go_away(connect):
    """Before asking, in the middle of a line, and without reading the answer."""
    for data in (b"", b'{"request":', line({"request": "stat", "cells": 16384}) * 20):
        connection = await connect()
        if data:
            await connection.stream.send_all(data)
        await connection.stream.aclose()
    assert (await (await connect()).ask(line({"request": "ping"})))["ok"]


async def test_many_at_once(connect):
    connections = [await connect() for _ in range(50)]
    for connection in connections:
        assert (await connection.ask(line({"request": "ping"})))["ok"]


async def test_a_bug_is_logged_and_told_in_one_line(connect, server, expected_logs):
    def broken(_):
        raise ZeroDivisionError("1 / 0")

    server._requests["stat"] = broken
    expected_logs("a control request failed")
    connection = await connect()
    answer = await connection.ask(line({"request": "stat"}))
    assert answer == {"ok": False, "error": "the daemon met a bug, see its log"}
    assert (await connection.ask(line({"request": "ping"})))["ok"]


async def test_the_address_is_found_by_the_attribute_of_the_root(mount, server):
    with pytest.raises(Exception, match="no attribute user"):
        mount.operations.getxattr(INO_ROOT, XATTR_CONTROL)
    mount.operations.control_address = server.address
    assert mount.operations.getxattr(INO_ROOT, XATTR_CONTROL) == server.address
    assert XATTR_CONTROL not in mount.operations.listxattr(INO_ROOT)


def test_nobody_can_guess_the_address(mount):
    first, second = ControlServer(mount).address, ControlServer(mount).address
    assert first != second
    assert len(first.split(b".")[-1]) >= 16


STRANGER = """
import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
os.setresuid(65534, 65534, 65534)
connection.connect(b"\\0" + sys.argv[1].encode())
connection.sendall(b'{"request": "stat"}\\n' * 2)
print(connection.makefile().read(), end="")
"""


@pytest.mark.root
async def test_other_users_are_refused(connect, server):
    """Once, and then the connection is closed, so that they cannot hold many."""
    done = await trio.run_process(
        [sys.executable, "-c", STRANGER, server.address.decode()],
        capture_stdout=True,
        stderr=subprocess.STDOUT,
    )
    assert json.loads(done.stdout) == {
        "ok": False,
        "error": "only root and the user who mounted may ask",
    }


@pytest.mark.root
async def test_root_may_ask_the_daemon_of_a_user(connect, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert (await (await connect()).ask(line({"request": "ping"})))["ok"]
