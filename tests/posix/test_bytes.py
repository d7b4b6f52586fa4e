"""The bytes of files: written, truncated, sparse, mapped, and read by others."""

import errno
import fcntl
import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.syscalls import fails

PAGE = 4096


def make(place: Path, size: int = 0) -> tuple[int, bytes]:
    """Return a descriptor of a new file with random bytes, and these."""
    data = random.Random(size).randbytes(size)
    fd = os.open(place / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    assert os.write(fd, data) == size
    return fd, data


@pytest.mark.parametrize("size", [1, 119, 4095, 4096, 4097, 131072, 131073, 3_000_001])
def test_sizes(place: Path, size: int):
    fd, data = make(place, size)
    assert os.pread(fd, size + 9, 0) == data
    assert os.fstat(fd).st_size == size
    assert os.pread(fd, 9, size) == b""
    assert os.pread(fd, 9, size - 1) == data[-1:]
    os.close(fd)


def test_overwriting_in_pieces(place: Path):
    fd, data = make(place, 50_000)
    expected = bytearray(data)
    rng = random.Random(1)
    for _ in range(200):
        offset, piece = rng.randrange(50_000), rng.randbytes(rng.randrange(1, 9000))
        assert os.pwrite(fd, piece, offset) == len(piece)
        if offset + len(piece) > len(expected):
            expected += bytes(offset + len(piece) - len(expected))
        expected[offset : offset + len(piece)] = piece
    assert (place / "file").read_bytes() == expected
    os.close(fd)


def test_vectors(place: Path):
    fd, _ = make(place)
    assert os.writev(fd, [b"one", b"", b"two" * 2000]) == 6003
    assert os.pwritev(fd, [b"x", b"y"], 1) == 2
    first, second = bytearray(2), bytearray(3)
    assert os.preadv(fd, [first, second], 0) == 5
    assert first + second == b"oxytw"
    os.close(fd)


def test_a_write_of_nothing_changes_nothing(place: Path):
    fd, _ = make(place, 10)
    os.utime(fd, ns=(1, 2))
    assert os.write(fd, b"") == 0
    assert os.pwrite(fd, b"", 1000) == 0
    assert os.fstat(fd).st_size == 10
    assert os.fstat(fd).st_mtime_ns == 2
    os.close(fd)


def test_gap_reads_as_zeros(place: Path):
    fd, _ = make(place)
    os.pwrite(fd, b"end", 3 * PAGE + 5)
    assert os.pread(fd, 99999, 0) == bytes(3 * PAGE + 5) + b"end"
    os.pwrite(fd, b"x", PAGE)
    assert os.pread(fd, PAGE, PAGE - 1) == b"\0x" + bytes(PAGE - 2)
    os.close(fd)


def test_holes_take_no_room(place: Path):
    fd, _ = make(place)
    os.pwrite(fd, b"x", 1 << 30)
    status = os.fstat(fd)
    assert status.st_size == (1 << 30) + 1
    assert 0 < status.st_blocks * 512 <= 1 << 20
    os.close(fd)


def test_more_than_4_gib(place: Path):
    fd, _ = make(place)
    places = [0, (1 << 31) - 2, (1 << 32) - 2, (1 << 32) + PAGE, 5 << 30]
    for i, offset in enumerate(places):
        os.pwrite(fd, b"%04d" % i, offset)
    assert os.fstat(fd).st_size == (5 << 30) + 4
    for i, offset in enumerate(places):
        assert os.pread(fd, 4, offset) == b"%04d" % i
        assert os.pread(fd, 4, offset + 4) == (bytes(4) if i < 4 else b"")
    with mmap.mmap(fd, PAGE, offset=1 << 32, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:2] == b"02"
    os.ftruncate(fd, (1 << 32) + 1)
    assert os.pread(fd, 9, (1 << 32) - 3) == b"\x00000"
    os.close(fd)


def test_seek(place: Path):
    fd, _ = make(place, 100)
    assert os.lseek(fd, -1, os.SEEK_END) == 99
    assert os.lseek(fd, 1000, os.SEEK_CUR) == 1099
    assert os.read(fd, 1) == b""
    fails(errno.EINVAL, os.lseek, fd, -1, os.SEEK_SET)
    os.close(fd)


def test_seek_data_and_hole(place: Path):
    """A filesystem may tell holes or may not: data is never called a hole."""
    fd, _ = make(place)
    os.pwrite(fd, b"x" * PAGE, 1 << 20)
    os.ftruncate(fd, 2 << 20)
    assert os.lseek(fd, 0, os.SEEK_DATA) <= 1 << 20
    assert os.lseek(fd, (1 << 20) + 5, os.SEEK_DATA) == (1 << 20) + 5
    hole = os.lseek(fd, 1 << 20, os.SEEK_HOLE)
    assert (1 << 20) + PAGE <= hole <= 2 << 20
    fails(errno.ENXIO, os.lseek, fd, 2 << 20, os.SEEK_DATA)
    fails(errno.ENXIO, os.lseek, fd, 2 << 20, os.SEEK_HOLE)
    os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 5000, 8192, 9999])
def test_truncate_down_and_up_again(place: Path, size: int):
    """What was cut off never comes back, not even the rest of the last page."""
    fd, data = make(place, 10_000)
    os.ftruncate(fd, size)
    assert os.fstat(fd).st_size == size
    assert os.pread(fd, 99999, 0) == data[:size]
    os.ftruncate(fd, 20_000)
    assert os.pread(fd, 99999, 0) == data[:size] + bytes(20_000 - size)
    os.close(fd)


def test_truncate_by_path(place: Path):
    fd, data = make(place, 300)
    os.truncate(place / "file", 200)
    assert os.pread(fd, 999, 0) == data[:200]
    fails(errno.EINVAL, os.truncate, place / "file", -1)
    fails(errno.EISDIR, os.truncate, place, 0)
    fails(errno.ENOENT, os.truncate, place / "missing", 0)
    os.close(fd)


def test_write_behind_a_cut_shows_zeros_between(place: Path):
    fd, data = make(place, 10_000)
    os.ftruncate(fd, 100)
    os.pwrite(fd, b"end", 4000)
    assert os.pread(fd, 9999, 0) == data[:100] + bytes(3900) + b"end"
    os.close(fd)


def test_file_size_limit_of_a_process(place: Path):
    code = (
        "import os, resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)\n"
        "print(os.write(fd, bytes(9000)))\n"
        "for attempt in (lambda: os.write(fd, b'x'), lambda: os.ftruncate(fd, 6000)):\n"
        "    try: attempt()\n"
        "    except OSError as exc: print(exc.errno)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, place / "file"], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["5000", str(errno.EFBIG), str(errno.EFBIG)]
    assert os.stat(place / "file").st_size == 5000


def test_fsync(place: Path):
    fd, data = make(place, 10_000)
    os.fsync(fd)
    os.pwrite(fd, b"x", 0)
    os.fdatasync(fd)
    directory = os.open(place, os.O_RDONLY)
    os.fsync(directory)
    os.fdatasync(directory)
    os.close(directory)
    os.close(fd)
    fd = os.open(place / "file", os.O_RDONLY)  # one that cannot write may fsync
    os.fsync(fd)
    assert os.pread(fd, 99999, 0) == b"x" + data[1:]
    os.close(fd)


def test_sync_flags(place: Path):
    for flag in (os.O_SYNC, os.O_DSYNC):
        fd = os.open(place / "file", os.O_CREAT | os.O_RDWR | flag)
        assert os.write(fd, b"synced") == 6
        os.close(fd)
    assert (place / "file").read_bytes() == b"synced"


def test_posix_fallocate_grows_and_keeps(place: Path):
    fd, data = make(place, 100)
    os.posix_fallocate(fd, 0, 10_000)
    assert os.fstat(fd).st_size == 10_000
    assert os.pread(fd, 99999, 0) == data + bytes(9_900)
    os.close(fd)


def test_copies_in_the_kernel(place: Path):
    fd, data = make(place, 100_000)
    out = os.open(place / "copy", os.O_CREAT | os.O_RDWR)
    assert os.copy_file_range(fd, out, 50_000, offset_src=10_000, offset_dst=5) == 50_000
    assert os.pread(out, 99999, 0) == bytes(5) + data[10_000:60_000]
    os.ftruncate(out, 0)
    os.lseek(out, 0, os.SEEK_SET)
    assert os.sendfile(out, fd, 0, 100_000) == 100_000
    assert os.pread(out, 200_000, 0) == data
    os.close(out)
    os.close(fd)


# Maps


def test_shared_map_is_the_file(place: Path):
    fd, data = make(place, 3 * PAGE + 100)
    with mmap.mmap(fd, 0) as mapped:
        assert mapped[:] == data
        mapped[PAGE - 2 : PAGE + 2] = b"MAPS"
        assert os.pread(fd, 4, PAGE - 2) == b"MAPS"
        os.pwrite(fd, b"write", 2 * PAGE)
        assert mapped[2 * PAGE : 2 * PAGE + 5] == b"write"
        mapped.flush()
    assert (place / "file").read_bytes()[PAGE - 2 : PAGE + 2] == b"MAPS"
    os.close(fd)


def test_a_map_outlives_its_descriptor_and_its_name(place: Path):
    fd, _ = make(place, 2 * PAGE)
    os.link(place / "file", place / "link")
    mapped = mmap.mmap(fd, 0)
    os.close(fd)
    os.unlink(place / "file")
    mapped[0:4] = b"late"
    mapped.close()
    assert (place / "link").read_bytes()[:4] == b"late"


def test_private_map_keeps_to_itself(place: Path):
    fd, data = make(place, PAGE)
    with mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        mapped[0:4] = b"mine"
        assert os.pread(fd, PAGE, 0) == data
    assert os.pread(fd, PAGE, 0) == data
    os.close(fd)


def test_map_needs_the_way_the_file_was_opened(place: Path):
    os.close(make(place, PAGE)[0])
    fd = os.open(place / "file", os.O_RDONLY)
    fails(errno.EACCES, mmap.mmap, fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE)
    os.close(fd)


def test_map_of_a_hole(place: Path):
    fd, _ = make(place)
    os.ftruncate(fd, 4 * PAGE)
    with mmap.mmap(fd, 0) as mapped:
        assert mapped[:] == bytes(4 * PAGE)
        mapped[2 * PAGE] = 7
        mapped.flush()
    expected = bytearray(4 * PAGE)
    expected[2 * PAGE] = 7
    assert (place / "file").read_bytes() == expected
    os.close(fd)


def test_map_beyond_the_end_reads_zeros_and_is_lost(place: Path):
    fd, data = make(place, PAGE)
    with mmap.mmap(fd, PAGE) as mapped:
        os.ftruncate(fd, 100)
        assert mapped[100:] == bytes(PAGE - 100)
        mapped[200:204] = b"lost"
        mapped.flush()
        assert (place / "file").read_bytes() == data[:100]
    os.close(fd)


_TOUCH = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
mapped = mmap.mmap(fd, 3 * 4096)
os.ftruncate(fd, 4096)
mapped[4095]
print("in", flush=True)
mapped[4096]
print("out", flush=True)
"""


def test_map_behind_a_cut_is_sigbus(place: Path):
    os.close(make(place, 3 * PAGE)[0])
    run = subprocess.run(
        [sys.executable, "-c", _TOUCH, place / "file"], capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.returncode) == ("in\n", -7)


def test_truncate_and_regrow_under_a_map(place: Path):
    fd, data = make(place, 2 * PAGE)
    with mmap.mmap(fd, 2 * PAGE) as mapped:
        mapped[PAGE : PAGE + 3] = b"old"
        os.ftruncate(fd, 10)
        os.ftruncate(fd, 2 * PAGE)
        assert mapped[:] == data[:10] + bytes(2 * PAGE - 10)
    os.close(fd)


_COUNT = """
import fcntl, mmap, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
mapped = mmap.mmap(fd, 4096)
for _ in range(300):
    fcntl.lockf(fd, fcntl.LOCK_EX)
    value, = struct.unpack_from("<q", mapped, 64)
    struct.pack_into("<q", mapped, 64, value + 1)
    fcntl.lockf(fd, fcntl.LOCK_UN)
"""


def test_two_processes_count_in_one_map(place: Path):
    os.close(make(place, PAGE)[0])
    os.truncate(place / "file", 0)
    os.truncate(place / "file", PAGE)
    command = [sys.executable, "-c", _COUNT, place / "file"]
    counters = [subprocess.Popen(command) for _ in range(2)]
    assert [counter.wait(60) for counter in counters] == [0, 0]
    assert int.from_bytes((place / "file").read_bytes()[64:72], "little") == 600


# Locks


_LOCKED = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for name, lock in (("flock", fcntl.flock), ("lockf", fcntl.lockf)):
    try:
        lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print(name)
    except BlockingIOError:
        pass
"""


@pytest.mark.parametrize("held", ["", "flock", "lockf"])
def test_locks_keep_others_out(place: Path, held: str):
    fd, _ = make(place)
    if held:
        getattr(fcntl, held)(fd, fcntl.LOCK_EX)
    command = [sys.executable, "-c", _LOCKED, place / "file"]
    got = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert got == [name for name in ("flock", "lockf") if name != held]
    os.close(fd)
    got = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert got == ["flock", "lockf"]
