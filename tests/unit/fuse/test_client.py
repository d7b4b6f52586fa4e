"""The commands' side of the control socket, against daemons that do all sorts of things."""

import os
import secrets
import socket
import threading

import pytest

from xipfs.errors import ControlError
from xipfs.fuse import client
from xipfs.fuse.client import ask, connect


@pytest.fixture
def listener():
    """A socket to answer at; `address` is its name."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(b"\0xipfs.1." + secrets.token_hex(8).encode())
        listener.listen()
        yield listener


@pytest.fixture
def mountpoint(tmp_path, listener):
    """A directory that has the attribute, as the root of a mount would."""
    os.setxattr(tmp_path, client.XATTR_CONTROL, listener.getsockname()[1:])
    return tmp_path


@pytest.fixture
def daemon(listener):
    """daemon(bytes): answer one connection with this, after a line was read; and close it."""
    threads = []

    def run(answer: bytes, received: list[bytes]) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            received.append(stream.readline())
            stream.write(answer)

    def daemon(answer: bytes) -> list[bytes]:
        received: list[bytes] = []
        threads.append(threading.Thread(target=run, args=(answer, received)))
        threads[-1].start()
        return received

    yield daemon
    for thread in threads:
        thread.join()


def test_a_request_and_its_answer(mountpoint, daemon):
    received = daemon(b'{"ok": true, "answer": {"pid": 7}}\n')
    assert ask(mountpoint, "stat", cells=5) == {"pid": 7}
    assert received == [b'{"request": "stat", "cells": 5}\n']


def test_a_refusal(mountpoint, daemon):
    daemon(b'{"ok": false, "error": "no such request"}\n')
    with pytest.raises(ControlError, match=f"{mountpoint}: no such request$"):
        ask(mountpoint, "stat")


def test_a_daemon_that_ends(mountpoint, daemon):
    daemon(b"")
    with pytest.raises(ControlError, match=f"{mountpoint}: its daemon ended without an answer$"):
        ask(mountpoint, "stat")


NONSENSE = [
    b"what?\n",
    b"[]\n",
    b"{}\n",
    b'{"ok": true}\n',
    b'{"ok": true, "answer": 7}\n',
    b'{"ok": false}\n',
    b"\xff\xfe\n",
    b"[" * 100_000 + b"\n",
]


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda answer: str(answer[:20]))
def test_a_daemon_that_talks_nonsense(mountpoint, daemon, answer):
    """Anybody can mount something that has the attribute: it ended in a traceback."""
    daemon(answer)
    with pytest.raises(ControlError, match=f"{mountpoint}: its daemon talks nonsense$"):
        ask(mountpoint, "stat")


def test_a_refusal_for_a_terminal(mountpoint, daemon):
    daemon(b'{"ok": false, "error": "\\u001b[31mred\\n"}\n')
    with pytest.raises(ControlError) as failure:
        ask(mountpoint, "stat")
    assert str(failure.value).endswith(": \\x1b[31mred\\n")


def test_a_daemon_that_never_ends_its_line(mountpoint, daemon, monkeypatch):
    monkeypatch.setattr(client, "ANSWER_SIZE_BYTES_MAX", 1000)
    daemon(b"1" * 2000)
    with pytest.raises(ControlError, match="its daemon talks nonsense"):
        ask(mountpoint, "stat")


@pytest.mark.parametrize(
    "name", [b"", b"org.freedesktop.something", b"xipfs.1.", b"xipfs.1.0g", b"x" * 200]
)
def test_an_attribute_that_leads_elsewhere(mountpoint, name):
    """Root may look at a mount of anybody: he is not to be sent to somebody else's socket."""
    os.setxattr(mountpoint, client.XATTR_CONTROL, name)
    with pytest.raises(ControlError, match="no xipfs mount: its attribute names no daemon"):
        connect(mountpoint)


def test_a_daemon_that_is_gone(mountpoint, listener):
    listener.close()
    with pytest.raises(ControlError, match=f"{mountpoint}: its daemon does not answer: "):
        connect(mountpoint)


def test_no_mount(tmp_path):
    with pytest.raises(ControlError, match=f"{tmp_path}: no xipfs mount: No data available$"):
        ask(tmp_path, "stat")
    missing = tmp_path / "missing"
    with pytest.raises(ControlError, match=f"{missing}: no xipfs mount: No such file or directory"):
        ask(missing, "stat")
