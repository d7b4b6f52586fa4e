"""The notifier's thread: one message for each range, errors that mean nothing, a prompt end."""

import errno
import os
import socket
import struct
import threading

import pytest

from xipfs.fuse.notifier import Notifier, StoreRange, find_session_fd
from xipfs.tiering.sampler import DropRange
from xipfs.units import PAGE_SIZE

MESSAGE = struct.Struct("<IiQQqq")
INVAL_INODE = 2
STORE = 4
TIMEOUT_S = 30.0


@pytest.fixture
def session():
    """Both ends of what stands for /dev/fuse: a datagram for each write."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.settimeout(TIMEOUT_S)
    with ours, theirs:
        yield ours, theirs


def end(notifier: Notifier) -> None:
    notifier.stop()
    assert notifier.join(TIMEOUT_S)


def test_a_message_for_each_range(session):
    ours, theirs = session
    notifier = Notifier(theirs.fileno())
    notifier.send([DropRange(7, 0, 16), DropRange((1 << 40) + 3, 32, 1)])
    notifier.send([DropRange(9, (1 << 32) - 16, 16)])
    found = [MESSAGE.unpack(ours.recv(1000)) for _ in range(3)]
    head = (MESSAGE.size, INVAL_INODE, 0)
    assert found == [
        (*head, 7, 0, 16 * PAGE_SIZE),
        (*head, (1 << 40) + 3, 32 * PAGE_SIZE, PAGE_SIZE),
        (*head, 9, ((1 << 32) - 16) * PAGE_SIZE, 16 * PAGE_SIZE),
    ]
    end(notifier)


def test_bytes_to_store_follow_their_header(session):
    ours, theirs = session
    notifier = Notifier(theirs.fileno())
    data = bytes(range(256)) * 20
    notifier.send([StoreRange(7, 3, data), DropRange(7, 0, 1)])
    found = ours.recv(1 << 16)
    head = struct.Struct("<IiQQQII")
    size = head.size + len(data)
    assert head.unpack(found[: head.size]) == (size, STORE, 0, 7, 3 * PAGE_SIZE, len(data), 0)
    assert found[head.size :] == data
    assert MESSAGE.unpack(ours.recv(1000))[1] == INVAL_INODE, "in the order they were given"
    end(notifier)


def test_nothing_to_drop_is_nothing_to_do(session):
    ours, theirs = session
    notifier = Notifier(theirs.fileno())
    notifier.send([])
    assert notifier.idle
    notifier.send([DropRange(7, 0, 1)])
    assert MESSAGE.unpack(ours.recv(1000))[3] == 7
    end(notifier)


def failing(monkeypatch, *errors: int) -> list[int]:
    """Let os.writev fail by these errors, one after the other, then work; return the inodes."""
    left = list(errors)
    written: list[int] = []

    def writev(fd: int, message: tuple[bytes, ...]) -> int:
        written.append(MESSAGE.unpack(message[0])[3])
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number))
        return len(message[0])

    monkeypatch.setattr("xipfs.fuse.notifier.os.writev", writev)
    return written


def drop_and_wait(notifier: Notifier, count: int, written: list[int]) -> None:
    notifier.send([DropRange(ino, 0, 1) for ino in range(count)])
    done = threading.Event()
    while len(written) < count:
        done.wait(0.001)


def test_what_the_kernel_has_forgotten_is_no_error(monkeypatch):
    errors = [errno.ENOENT, errno.EINTR, errno.ENODEV, errno.ENOTCONN, errno.EBADF]
    written = failing(monkeypatch, *errors)
    notifier = Notifier(-1)
    drop_and_wait(notifier, 7, written)
    assert written == list(range(7))
    end(notifier)


def test_another_error_is_logged_and_the_next_range_is_tried(monkeypatch, expected_logs):
    expected_logs("dropping pages of inode 0: Invalid argument")
    written = failing(monkeypatch, errno.EINVAL)
    notifier = Notifier(-1)
    drop_and_wait(notifier, 3, written)
    assert written == [0, 1, 2]
    end(notifier)


def test_it_ends_though_much_is_waiting(monkeypatch):
    """Each range may wait for a page: those behind it are skipped."""
    entered, leave = threading.Event(), threading.Event()
    written: list[bytes] = []

    def writev(fd: int, message: tuple[bytes, ...]) -> int:
        written.append(message[0])
        entered.set()
        assert leave.wait(TIMEOUT_S)
        return len(message[0])

    monkeypatch.setattr("xipfs.fuse.notifier.os.writev", writev)
    notifier = Notifier(-1)
    notifier.send([DropRange(ino, 0, 1) for ino in range(100)])
    notifier.send([DropRange(ino, 0, 1) for ino in range(100)])
    assert entered.wait(TIMEOUT_S)
    assert not notifier.idle
    notifier.stop()
    assert not notifier.join(0.01)
    leave.set()
    assert notifier.join(TIMEOUT_S)
    assert len(written) == 1


def test_there_is_no_session_here():
    assert find_session_fd() is None
