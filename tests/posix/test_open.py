"""open(2): who may, what is made, whose it is, and what each flag does."""

import errno
import mmap
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.syscalls import caller, fails


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_create_and_read_back(place: Path):
    with open(place / "file", "xb") as file:
        file.write(b"bytes")
    assert (place / "file").read_bytes() == b"bytes"
    assert os.listdir(place) == ["file"]
    status = os.stat(place / "file")
    assert (status.st_nlink, status.st_size) == (1, 5)
    assert stat.S_ISREG(status.st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o000, 0o644, 0o777, 0o4755, 0o7777])
def test_mode_less_umask(place: Path, mode: int, mask: int):
    with umask(mask):
        os.close(os.open(place / "file", os.O_CREAT | os.O_WRONLY, mode))
        os.mkdir(place / "directory", mode & 0o777)
        os.mkfifo(place / "fifo", mode & 0o777)
    assert stat.S_IMODE(os.stat(place / "file").st_mode) == mode & ~mask
    assert stat.S_IMODE(os.stat(place / "directory").st_mode) == mode & ~mask & 0o777
    assert stat.S_IMODE(os.stat(place / "fifo").st_mode) == mode & ~mask & 0o777


def test_the_one_who_creates_may_write_whatever_the_mode(place: Path):
    fd = os.open(place / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o000)
    os.write(fd, b"mine")
    assert os.pread(fd, 9, 0) == b"mine"
    os.close(fd)


@pytest.mark.root
def test_a_file_belongs_to_the_caller(place: Path):
    place.chmod(0o777)
    with caller(1234, 5678, [42]):
        os.close(os.open(place / "file", os.O_CREAT | os.O_WRONLY, 0o640))
        os.mkdir(place / "directory")
        os.symlink("target", place / "symlink")
        os.mkfifo(place / "fifo")
    with caller(1235, 5679):
        os.close(os.open(place / "other", os.O_CREAT | os.O_WRONLY, 0o600))
    for name in ("file", "directory", "symlink", "fifo"):
        status = os.lstat(place / name)
        assert (status.st_uid, status.st_gid) == (1234, 5678), name
    assert (os.stat(place / "other").st_uid, os.stat(place / "other").st_gid) == (1235, 5679)


@pytest.mark.root
def test_permissions_of_owner_group_and_others(place: Path):
    (place / "file").write_bytes(b"x")
    os.chown(place / "file", 1000, 2000)
    who = {"owner": (1000, 1), "group": (1001, 2000), "other": (1001, 1)}
    bits = {"owner": 0o400, "group": 0o040, "other": 0o004}
    for allowed, bit in bits.items():
        os.chmod(place / "file", bit)
        for name, ids in who.items():
            with caller(*ids):
                if name == allowed:
                    os.close(os.open(place / "file", os.O_RDONLY))
                else:
                    fails(errno.EACCES, os.open, place / "file", os.O_RDONLY)
                fails(errno.EACCES, os.open, place / "file", os.O_WRONLY)
                fails(errno.EACCES, os.truncate, place / "file", 0)
    os.chmod(place / "file", 0o060)
    with caller(1002, 1, [2000]):  # by a supplementary group
        os.close(os.open(place / "file", os.O_RDWR))


@pytest.mark.root
def test_directories_need_write_to_change_and_search_to_enter(place: Path):
    inner = place / "inner"
    inner.mkdir(mode=0o755)
    (inner / "file").write_bytes(b"x")
    (inner / "file").chmod(0o666)
    with caller(1000, 1000):
        fails(errno.EACCES, os.open, inner / "new", os.O_CREAT | os.O_WRONLY)
        fails(errno.EACCES, os.mkdir, inner / "new")
        fails(errno.EACCES, os.unlink, inner / "file")
        fails(errno.EACCES, os.rename, inner / "file", inner / "new")
        fails(errno.EACCES, os.link, inner / "file", inner / "new")
        os.close(os.open(inner / "file", os.O_RDWR))
    inner.chmod(0o766)
    with caller(1000, 1000):
        assert os.listdir(inner) == ["file"]
        fails(errno.EACCES, os.stat, inner / "file")
    inner.chmod(0o733)
    with caller(1000, 1000):
        fails(errno.EACCES, os.listdir, inner)
        os.unlink(inner / "file")


def test_excl_refuses_what_is_there(place: Path):
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(os.open(place / "file", flags))
    os.mkdir(place / "directory")
    os.symlink("nowhere", place / "dangling")
    for name in ("file", "directory", "dangling"):
        fails(errno.EEXIST, os.open, place / name, flags)


def test_create_through_a_dangling_symlink(place: Path):
    os.symlink("target", place / "symlink")
    os.close(os.open(place / "symlink", os.O_CREAT | os.O_WRONLY))
    assert sorted(os.listdir(place)) == ["symlink", "target"]
    assert stat.S_ISREG(os.lstat(place / "target").st_mode)


def test_what_cannot_be_opened(place: Path):
    (place / "file").touch()
    os.mkdir(place / "directory")
    os.symlink("file", place / "symlink")
    os.symlink("loop", place / "loop")
    fails(errno.ENOENT, os.open, place / "missing", os.O_RDONLY)
    fails(errno.ENOENT, os.open, place / "missing" / "file", os.O_CREAT | os.O_RDWR)
    fails(errno.ENOTDIR, os.open, place / "file" / "below", os.O_RDONLY)
    fails(errno.ENOTDIR, os.open, place / "file", os.O_RDONLY | os.O_DIRECTORY)
    fails(errno.EISDIR, os.open, place / "directory", os.O_WRONLY)
    fails(errno.EISDIR, os.open, place / "directory", os.O_RDWR)
    fails(errno.ELOOP, os.open, place / "symlink", os.O_RDONLY | os.O_NOFOLLOW)
    fails(errno.ELOOP, os.open, place / "loop", os.O_RDONLY)


def test_trunc_empties(place: Path):
    (place / "file").write_bytes(b"x" * 10000)
    reader = os.open(place / "file", os.O_RDONLY)
    assert os.pread(reader, 3, 5000) == b"xxx"
    fd = os.open(place / "file", os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == os.stat(place / "file").st_size == 0
    assert os.pread(reader, 3, 5000) == b""
    os.pwrite(fd, b"new", 6000)
    assert os.pread(reader, 9000, 0) == bytes(6000) + b"new"
    os.close(fd)
    os.close(reader)


def test_trunc_of_an_empty_file_and_a_new_one(place: Path):
    for _ in range(2):
        fd = os.open(place / "file", os.O_CREAT | os.O_RDWR | os.O_TRUNC)
        assert os.fstat(fd).st_size == 0
        os.close(fd)


def test_append_writes_at_the_end_wherever_the_offset_is(place: Path):
    (place / "file").write_bytes(b"head")
    fd = os.open(place / "file", os.O_RDWR | os.O_APPEND)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    os.write(fd, b"+one")
    os.lseek(fd, 1, os.SEEK_SET)
    os.write(fd, b"+two")
    assert os.lseek(fd, 0, os.SEEK_CUR) == 12
    with open(place / "file", "ab") as other:
        other.write(b"+other")
    os.write(fd, b"+three")
    assert os.pread(fd, 99, 0) == b"head+one+two+other+three"
    os.ftruncate(fd, 2)
    os.write(fd, b"!")
    assert os.pread(fd, 99, 0) == b"he!"
    os.close(fd)


_APPEND = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for i in range(int(sys.argv[3])):
    line = f"{sys.argv[2]} {i:06} " + "x" * (i % 90)
    assert os.write(fd, line.encode() + b"\\n") == len(line) + 1
"""


def test_appends_of_two_processes_never_overwrite(place: Path):
    count = 400
    (place / "log").touch()
    command = [sys.executable, "-c", _APPEND, str(place / "log")]
    writers = [subprocess.Popen([*command, name, str(count)]) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = (place / "log").read_text().splitlines()
    assert len(lines) == 2 * count
    for name in "ab":
        mine = [line for line in lines if line.startswith(name)]
        assert mine == [f"{name} {i:06} " + "x" * (i % 90) for i in range(count)]


@pytest.mark.root
def test_a_running_program_cannot_be_written_nor_a_written_one_run(place: Path):
    program = place / "sleep"
    shutil.copy("/bin/sleep", program)
    running = subprocess.Popen([program, "100"])
    try:
        fails(errno.ETXTBSY, os.open, program, os.O_WRONLY)
        fails(errno.ETXTBSY, os.open, program, os.O_RDONLY | os.O_TRUNC | os.O_WRONLY)
        fails(errno.ETXTBSY, os.truncate, program, 0)
        os.unlink(program)  # which may go, and does not hurt
        assert running.poll() is None
    finally:
        running.kill()
        running.wait()
    shutil.copy("/bin/sleep", program)
    fd = os.open(program, os.O_RDWR)
    fails(errno.ETXTBSY, subprocess.run, [program, "0"])
    os.close(fd)
    assert subprocess.run([program, "0"], check=False).returncode == 0


@pytest.mark.parametrize("alignment", [512, 4096])
def test_direct_io(place: Path, alignment: int):
    """Aligned memory, offsets and sizes: what every filesystem takes."""
    buffer = mmap.mmap(-1, 3 * 4096)
    buffer.write(os.urandom(len(buffer)))
    fd = os.open(place / "file", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    assert os.pwrite(fd, memoryview(buffer)[: 2 * alignment], alignment) == 2 * alignment
    assert os.fstat(fd).st_size == 3 * alignment
    assert (place / "file").read_bytes() == bytes(alignment) + buffer[: 2 * alignment]
    back = mmap.mmap(-1, 4096)
    assert os.preadv(fd, [memoryview(back)[:alignment]], 2 * alignment) == alignment
    assert back[:alignment] == buffer[alignment : 2 * alignment]
    assert os.preadv(fd, [back], 8192 * 4) == 0
    os.close(fd)


def test_direct_and_cached_descriptors_see_each_other(place: Path):
    buffer = mmap.mmap(-1, 8192)
    cached = os.open(place / "file", os.O_CREAT | os.O_RDWR)
    os.write(cached, b"a" * 8192)
    direct = os.open(place / "file", os.O_RDWR | os.O_DIRECT)
    os.preadv(direct, [buffer], 0)
    assert buffer[:] == b"a" * 8192
    buffer[:] = b"b" * 8192
    os.pwrite(direct, memoryview(buffer)[:4096], 4096)
    assert os.pread(cached, 9999, 0) == b"a" * 4096 + b"b" * 4096
    os.pwrite(cached, b"c" * 100, 50)
    os.preadv(direct, [memoryview(buffer)[:4096]], 0)
    assert buffer[:4096] == b"a" * 50 + b"c" * 100 + b"a" * (4096 - 150)
    os.close(cached)
    os.close(direct)


def test_an_open_file_is_the_file_whatever_becomes_of_its_name(place: Path):
    fd = os.open(place / "a", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"first")
    os.rename(place / "a", place / "b")
    (place / "a").write_bytes(b"second")
    os.pwrite(fd, b"FIRST", 0)
    assert (place / "b").read_bytes() == b"FIRST"
    assert (place / "a").read_bytes() == b"second"
    assert os.fstat(fd).st_ino == os.stat(place / "b").st_ino != os.stat(place / "a").st_ino
    os.close(fd)


def test_opened_for_one_thing_only(place: Path):
    (place / "file").write_bytes(b"x")
    fd = os.open(place / "file", os.O_RDONLY)
    fails(errno.EBADF, os.write, fd, b"x")
    fails(errno.EINVAL, os.ftruncate, fd, 0)
    os.close(fd)
    fd = os.open(place / "file", os.O_WRONLY)
    fails(errno.EBADF, os.read, fd, 1)
    os.close(fd)
    fd = os.open(place / "file", os.O_PATH)
    fails(errno.EBADF, os.read, fd, 1)
    assert os.fstat(fd).st_size == 1
    os.close(fd)


def test_one_file_made_by_many_threads_at_once(place: Path):
    """With O_EXCL exactly one wins."""
    won: list[int] = []

    def race(i: int) -> None:
        for turn in range(20):
            try:
                fd = os.open(place / f"{turn}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                continue
            won.append(turn)
            os.close(fd)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(20))
