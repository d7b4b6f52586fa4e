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
        listener.bind(b"\0xipfs-test-" + secrets.token_hex(8).encode())
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
