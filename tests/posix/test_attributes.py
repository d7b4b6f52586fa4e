"""Modes, owners, times and extended attributes; what a change of one does to another."""

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kit.syscalls import caller, fails


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def make(path: Path, uid: int, gid: int, bits: int) -> None:
    path.write_bytes(b"x" * 100)
    os.chown(path, uid, gid)
    os.chmod(path, bits)


# Modes


@pytest.mark.parametrize("bits", [0o000, 0o644, 0o7777, 0o1777, 0o2755, 0o4711])
def test_chmod(place: Path, bits: int):
    (place / "file").touch()
    os.chmod(place / "file", bits)
    assert mode(place / "file") == bits
    fd = os.open(place, os.O_RDONLY)
    before = mode(place)
    os.fchmod(fd, bits)
    assert mode(place) == bits
    os.fchmod(fd, before)
    os.close(fd)


def test_chmod_changes_ctime_and_not_mtime(place: Path):
    (place / "file").touch()
    os.utime(place / "file", ns=(1, 2))
    before = os.stat(place / "file").st_ctime_ns
    time.sleep(0.02)  # more than the granularity of the kernel's clock
    os.chmod(place / "file", 0o600)
    after = os.stat(place / "file")
    assert after.st_mtime_ns == 2
    assert after.st_ctime_ns > before


@pytest.mark.root
def test_only_the_owner_changes_modes(place: Path):
    make(place / "file", 1000, 1000, 0o666)
    with caller(1001, 1000):
        fails(errno.EPERM, os.chmod, place / "file", 0o777)
    with caller(1000, 1000):
        os.chmod(place / "file", 0o640)
    assert mode(place / "file") == 0o640


@pytest.mark.root
def test_chmod_of_a_stranger_to_the_group_clears_setgid(place: Path):
    make(place / "file", 1000, 2000, 0o755)
    with caller(1000, 1000):
        os.chmod(place / "file", 0o2755)
    assert mode(place / "file") == 0o755
    with caller(1000, 1000, [2000]):
        os.chmod(place / "file", 0o2755)
    assert mode(place / "file") == 0o2755


# Owners


@pytest.mark.root
def test_chown(place: Path):
    (place / "file").touch()
    os.symlink("file", place / "symlink")
    os.chown(place / "file", 1000, -1)
    os.chown(place / "file", -1, 2000)
    os.lchown(place / "symlink", 3000, 4000)
    status = os.stat(place / "symlink")
    assert (status.st_uid, status.st_gid) == (1000, 2000)
    status = os.lstat(place / "symlink")
    assert (status.st_uid, status.st_gid) == (3000, 4000)
    os.chown(place / "file", 2**32 - 2, 2**32 - 2)
    status = os.stat(place / "file")
    assert (status.st_uid, status.st_gid) == (2**32 - 2, 2**32 - 2)


@pytest.mark.root
def test_who_may_chown(place: Path):
    make(place / "file", 1000, 1000, 0o644)
    with caller(1000, 1000, [2000]):
        fails(errno.EPERM, os.chown, place / "file", 1001, -1)
        fails(errno.EPERM, os.chown, place / "file", -1, 3000)
        os.chown(place / "file", -1, 2000)
    with caller(1001, 2000):
        fails(errno.EPERM, os.chown, place / "file", -1, 2000)
    assert os.stat(place / "file").st_gid == 2000


# setuid and setgid


@pytest.mark.root
@pytest.mark.parametrize(
    ("bits", "left"),
    [(0o6755, 0o755), (0o4711, 0o711), (0o2755, 0o755), (0o2745, 0o2745), (0o6644, 0o2644)],
)
def test_chown_clears_them_even_for_root(place: Path, bits: int, left: int):
    """But for setgid without execution by the group, which once meant mandatory locking."""
    make(place / "file", 1000, 1000, bits)
    os.chown(place / "file", 1001, -1)
    assert mode(place / "file") == left


@pytest.mark.root
def test_chown_leaves_those_of_directories(place: Path):
    (place / "d").mkdir()
    os.chmod(place / "d", 0o6755)
    os.chown(place / "d", 1001, 1001)
    assert mode(place / "d") == 0o6755


def _write(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"y")
    os.close(fd)


def _append_later(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"y")
    os.close(fd)


def _open_trunc(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def _truncate(path: Path) -> None:
    os.truncate(path, 10)


def _ftruncate(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.ftruncate(fd, 10)
    os.close(fd)


CHANGES = [_write, _append_later, _open_trunc, _truncate, _ftruncate]


@pytest.mark.root
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_bytes_clears_them(place: Path, change):
    make(place / "file", 1000, 1000, 0o6777)
    with caller(1001, 1001):
        change(place / "file")
    assert mode(place / "file") == 0o777


@pytest.mark.root
@pytest.mark.parametrize("change", CHANGES)
def test_not_so_by_root(place: Path, change):
    make(place / "file", 1000, 1000, 0o6777)
    change(place / "file")
    assert mode(place / "file") == 0o6777


@pytest.mark.root
def test_setgid_directory_hands_on_its_group(place: Path):
    shared = place / "shared"
    shared.mkdir()
    os.chown(shared, 0, 2000)
    os.chmod(shared, 0o2777)
    with caller(1000, 1000):
        (shared / "file").touch()
        (shared / "d").mkdir(mode=0o750)
        (shared / "d" / "inner").mkdir(mode=0o750)
        os.symlink("x", shared / "symlink")
        os.mkfifo(shared / "fifo")
        os.close(os.open(shared / "setgid", os.O_CREAT | os.O_WRONLY, 0o2755))
    for name in ("file", "d", "d/inner", "symlink", "fifo", "setgid"):
        status = os.lstat(shared / name)
        assert (status.st_uid, status.st_gid) == (1000, 2000), name
    assert mode(shared / "d") == mode(shared / "d" / "inner") == 0o2750
    assert mode(shared / "file") & 0o7000 == 0
    assert mode(shared / "setgid") == 0o755  # the caller is no member of the group


# Times


@pytest.mark.parametrize(
    "mtime_ns", [0, 1, 999_999_999, 1_700_000_000_123_456_789, -1, -1_500_000_000, 2**33 * 10**9]
)
def test_utimens_in_ns(place: Path, mtime_ns: int):
    (place / "file").touch()
    os.utime(place / "file", ns=(5, mtime_ns))
    assert os.stat(place / "file").st_mtime_ns == mtime_ns
    os.symlink("file", place / "symlink")
    os.utime(place / "symlink", ns=(7, 8), follow_symlinks=False)
    assert os.lstat(place / "symlink").st_mtime_ns == 8
    assert os.stat(place / "file").st_mtime_ns == mtime_ns


def test_utimens_now(place: Path):
    (place / "file").touch()
    os.utime(place / "file", ns=(1, 1))
    before = time.time_ns()
    os.utime(place / "file")
    status = os.stat(place / "file")
    for found in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns):
        assert before - 10**8 < found < time.time_ns() + 10**8


def test_atime_can_be_set(place: Path):
    (place / "file").touch()
    os.utime(place / "file", ns=(1_600_000_000_000_000_001, 2))
    assert os.stat(place / "file").st_atime_ns == 1_600_000_000_000_000_001


@pytest.mark.root
def test_who_may_set_times(place: Path):
    make(place / "file", 1000, 1000, 0o666)
    with caller(1001, 1001):
        os.utime(place / "file")  # to now: who may write
        fails(errno.EPERM, os.utime, place / "file", ns=(1, 1))
    os.chmod(place / "file", 0o644)
    with caller(1001, 1001):
        fails(errno.EACCES, os.utime, place / "file")


def test_write_and_truncate_change_mtime(place: Path):
    (place / "file").write_bytes(b"x" * 100)
    fd = os.open(place / "file", os.O_RDWR)
    for change in (
        lambda: os.write(fd, b"y"),
        lambda: os.ftruncate(fd, 10),
        lambda: os.truncate(place / "file", 5000),
        lambda: os.close(os.open(place / "file", os.O_WRONLY | os.O_TRUNC)),
        lambda: os.close(os.open(place / "file", os.O_WRONLY | os.O_TRUNC)),  # empty already
    ):
        os.utime(fd, ns=(1, 1))
        change()
        status = os.stat(place / "file")
        assert status.st_mtime_ns > 1_600_000_000 * 10**9
        assert status.st_ctime_ns >= status.st_mtime_ns
    os.close(fd)


def test_reading_changes_neither_mtime_nor_ctime(place: Path):
    (place / "file").write_bytes(b"x")
    before = os.stat(place / "file")
    (place / "file").read_bytes()
    os.listdir(place)
    after = os.stat(place / "file")
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)


# Extended attributes


def test_xattrs(place: Path):
    (place / "file").touch()
    (place / "d").mkdir()
    for path in (place / "file", place / "d"):
        os.setxattr(path, "user.one", b"1")
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.bytes", bytes(range(256)))
        assert sorted(os.listxattr(path)) == ["user.bytes", "user.empty", "user.one"]
        assert os.getxattr(path, "user.bytes") == bytes(range(256))
        assert os.getxattr(path, "user.empty") == b""
        os.setxattr(path, "user.one", b"another, longer")
        assert os.getxattr(path, "user.one") == b"another, longer"
        os.removexattr(path, "user.one")
        fails(errno.ENODATA, os.getxattr, path, "user.one")
        fails(errno.ENODATA, os.removexattr, path, "user.one")
        os.removexattr(path, "user.empty")
        os.removexattr(path, "user.bytes")
        assert os.listxattr(path) == []


def test_xattr_create_and_replace(place: Path):
    (place / "file").touch()
    path = place / "file"
    fails(errno.ENODATA, os.setxattr, path, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    fails(errno.EEXIST, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
    assert os.getxattr(path, "user.a") == b"1"
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"3"


def test_xattr_limits(place: Path):
    (place / "file").touch()
    path = place / "file"
    longest = "user." + "n" * 250
    os.setxattr(path, longest, b"v" * 2000)
    assert os.getxattr(path, longest) == b"v" * 2000
    fails(errno.ERANGE, os.setxattr, path, longest + "n", b"v")
    fails(errno.E2BIG, os.setxattr, path, "user.big", bytes(65537))
    fails(errno.EOPNOTSUPP, os.setxattr, path, "nonsense.a", b"v")
    assert os.listxattr(path) == [longest]


_SMALL_BUFFER = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(4)
path = os.fsencode(sys.argv[1])
print(libc.getxattr(path, b"user.a", None, 0), libc.listxattr(path, None, 0))
print(libc.getxattr(path, b"user.a", buffer, 4), ctypes.get_errno() == errno.ERANGE)
print(libc.listxattr(path, buffer, 4), ctypes.get_errno() == errno.ERANGE)
"""


def test_xattr_that_does_not_fit_the_buffer(place: Path):
    (place / "file").touch()
    os.setxattr(place / "file", "user.a", b"12345")
    command = [sys.executable, "-c", _SMALL_BUFFER, place / "file"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["5", "7", "-1", "True", "-1", "True"]


def test_many_xattrs(place: Path):
    (place / "file").write_bytes(b"x")
    for i in range(40):
        os.setxattr(place / "file", f"user.{i}", b"%d" % i * 20)
    assert sorted(os.listxattr(place / "file")) == sorted(f"user.{i}" for i in range(40))
    for i in range(0, 40, 2):
        os.removexattr(place / "file", f"user.{i}")
    assert {os.getxattr(place / "file", f"user.{i}") for i in range(1, 40, 2)} == {
        b"%d" % i * 20 for i in range(1, 40, 2)
    }
    assert (place / "file").read_bytes() == b"x"


def test_user_xattrs_are_for_files_and_directories(place: Path):
    os.symlink("nowhere", place / "symlink")
    fails(errno.EPERM, os.setxattr, place / "symlink", "user.a", b"1", follow_symlinks=False)


@pytest.mark.root
def test_other_namespaces_of_xattrs(place: Path):
    (place / "file").touch()
    (place / "file").chmod(0o666)
    os.setxattr(place / "file", "trusted.a", b"1")
    os.setxattr(place / "file", "security.a", b"2")
    assert os.getxattr(place / "file", "trusted.a") == b"1"
    assert os.getxattr(place / "file", "security.a") == b"2"
    with caller(1000, 1000):
        os.setxattr(place / "file", "user.a", b"1")
    (place / "file").chmod(0o600)
    with caller(1000, 1000):
        fails(errno.EACCES, os.getxattr, place / "file", "user.a")


# The filesystem


def test_statvfs(place: Path):
    facts = os.statvfs(place)
    assert facts.f_bsize >= 512 <= facts.f_frsize
    assert 0 <= facts.f_bavail <= facts.f_bfree <= facts.f_blocks
    assert 0 <= facts.f_favail <= facts.f_ffree <= facts.f_files
    (place / "file").touch()
    fd = os.open(place / "file", os.O_RDWR)
    assert os.fstatvfs(fd).f_blocks == facts.f_blocks
    os.write(fd, b"x" * (4 << 20))
    os.fsync(fd)
    taken_bytes = (facts.f_bfree - os.statvfs(place).f_bfree) * facts.f_frsize
    assert taken_bytes >= 3 << 20
    os.close(fd)


def test_st_blocks(place: Path):
    (place / "file").write_bytes(b"x" * 40960)
    fd = os.open(place / "file", os.O_RDONLY)
    os.fsync(fd)  # ext4 allocates late
    os.close(fd)
    status = os.stat(place / "file")
    assert 40960 <= status.st_blocks * 512 <= 40960 + 8192
    os.truncate(place / "file", 4096)
    assert os.stat(place / "file").st_blocks * 512 <= 4096 + 8192
