"""System calls that Python does not offer, and other callers than the one who runs the tests.

    renameat2(old, new, RENAME_EXCHANGE)
    for entry in getdents(fd): ...            lseek(fd, entry.offset) goes on behind it
    handle = name_to_handle(path); open_by_handle(mount_fd, handle, os.O_RDONLY)
    with caller(1000, 1000): os.open(...)     as another user, in this thread alone
    fails(errno.ENOENT, os.stat, path)        it must, and with that

All raise OSError, as the functions of `os` do.
"""

import ctypes
import errno
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "ACL_FOR_NOBODY",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "Dirent",
    "FileHandle",
    "caller",
    "fails",
    "getdents",
    "may_fail",
    "name_to_handle",
    "open_by_handle",
    "renameat2",
    "wait_until",
]

ACL_FOR_NOBODY = struct.pack(
    "<I" + "HHI" * 5,
    *(2, 0x01, 6, 0xFFFFFFFF, 0x02, 4, 65534, 0x04, 0, 0xFFFFFFFF),
    *(0x10, 4, 0xFFFFFFFF, 0x20, 0, 0xFFFFFFFF),
)
"""As system.posix_acl_access has it: version 2, then (tag, permissions, id)."""

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

_AT_FDCWD = -100
_HANDLE_SIZE_BYTES_MAX = 128
_GETDENTS_BYTES = 1024
_DIRENT = struct.Struct("<QqHB")

_libc = ctypes.CDLL(None, use_errno=True)
_SYSCALLS = {
    "x86_64": {"setgroups": 116, "setfsuid": 122, "setfsgid": 123, "getdents64": 217},
    "aarch64": {"setgroups": 159, "setfsuid": 151, "setfsgid": 152, "getdents64": 61},
}[os.uname().machine]


class Dirent(NamedTuple):
    """An entry as getdents64(2) gives it; offset: where the listing goes on behind it."""

    name: bytes
    ino: int
    d_type: int
    offset: int


class FileHandle(NamedTuple):
    """What names a file without a path: struct file_handle."""

    handle_type: int
    handle: bytes


def fails(number: int, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Expect a call to fail with the errno *number*."""
    found: int | None = 0
    try:
        function(*arguments, **options)
    except OSError as exc:
        found = exc.errno
    assert found == number, errno.errorcode.get(found or 0, "it did not fail")


@contextmanager
def may_fail(number: int) -> Iterator[None]:
    """Let what is in the block fail with the errno *number*."""
    try:
        yield
    except OSError as exc:
        if exc.errno != number:
            raise


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when it does: FUSE tells a daemon a little later that a file was closed."""
    end_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: Path, new: Path, flags: int) -> None:
    _checked(_libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags))


def getdents(fd: int, size_bytes: int = _GETDENTS_BYTES) -> list[Dirent]:
    """Return what one call finds from the directory's offset on; nothing at its end."""
    buffer = ctypes.create_string_buffer(size_bytes)
    filled = _checked(_libc.syscall(_SYSCALLS["getdents64"], fd, buffer, size_bytes))
    found = []
    at = 0
    while at < filled:
        ino, offset, record_bytes, d_type = _DIRENT.unpack_from(buffer, at)
        name = buffer.raw[at + _DIRENT.size : at + record_bytes].split(b"\0", 1)[0]
        found.append(Dirent(name, ino, d_type, offset))
        at += record_bytes
    return found


def name_to_handle(path: Path) -> FileHandle:
    buffer = ctypes.create_string_buffer(
        struct.pack("<Ii", _HANDLE_SIZE_BYTES_MAX, 0), 8 + _HANDLE_SIZE_BYTES_MAX
    )
    mount_id = ctypes.c_int()
    _checked(
        _libc.name_to_handle_at(_AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount_id), 0)
    )
    size_bytes, handle_type = struct.unpack_from("<Ii", buffer)
    return FileHandle(handle_type, buffer.raw[8 : 8 + size_bytes])


def open_by_handle(mount_fd: int, handle: FileHandle, flags: int) -> int:
    """Return a descriptor. mount_fd: of anything on the same mount."""
    packed = struct.pack("<Ii", len(handle.handle), handle.handle_type) + handle.handle
    return _checked(_libc.open_by_handle_at(mount_fd, packed, flags))


@contextmanager
def caller(uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
    """Have this thread ask filesystems as another user, without root's capabilities.

    Only a thread's own ids change: the C library's functions would change those of all threads.
    """
    before = os.getgroups()
    _set_caller(uid, gid, groups)
    try:
        yield
    finally:
        _set_caller(0, 0, before)


def _set_caller(uid: int, gid: int, groups: Sequence[int]) -> None:
    array = (ctypes.c_uint32 * len(groups))(*groups)
    _checked(_libc.syscall(_SYSCALLS["setgroups"], len(groups), array))
    for name, number in (("setfsgid", gid), ("setfsuid", uid)):
        _libc.syscall(_SYSCALLS[name], number)
        # It says what was before, and nothing of an error: ask once more.
        assert _libc.syscall(_SYSCALLS[name], -1) == number, f"{name}({number})"
