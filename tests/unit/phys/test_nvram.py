"""NvramDevice: locks between processes, files that are no image, files that shrink."""

import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.mm import block_bytes, make_nvram, run_python
from tests.kit.power import PowerLoss
from xipfs.errors import (
    BugError,
    DeviceError,
    FormatError,
    ImageBusyError,
    NoSpaceError,
    ReadOnlyFsError,
)
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SIZE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "region"


@pytest.fixture
def nvram(path: Path) -> Iterator[NvramDevice]:
    nvram = make_nvram(path, 8)
    yield nvram
    nvram.close()


def nr_open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_load_load_into_view_and_bytes_agree(nvram: NvramDevice):
    expected = block_bytes(2)[100:] + block_bytes(3)[:50]
    offset, size_bytes = 2 * PAGE_SIZE + 100, PAGE_SIZE - 50
    assert nvram.load(offset, size_bytes) == expected
    assert bytes(nvram.view(offset, size_bytes)) == expected
    assert nvram.bytes[offset : offset + size_bytes].tobytes() == expected
    parts = [bytearray(1), bytearray(PAGE_SIZE - 60), bytearray(9)]
    nvram.load_into(offset, [memoryview(part) for part in parts])
    assert b"".join(parts) == expected


def test_nothing_that_is_given_out_can_be_written(nvram: NvramDevice):
    assert nvram.view(0, 8).readonly
    assert not nvram.bytes.flags.writeable


def test_load_of_nothing_is_nothing_even_at_the_end(nvram: NvramDevice):
    assert nvram.load(nvram.size_bytes, 0) == b""
    nvram.load_into(nvram.size_bytes, [])


@pytest.mark.parametrize("offset", [8 * PAGE_SIZE - 1, 8 * PAGE_SIZE, 1 << 60])
def test_load_past_the_end_says_where(nvram: NvramDevice, offset: int):
    first_missing = max(offset, 8 * PAGE_SIZE)
    with pytest.raises(DeviceError, match=f"{nvram.path}: .* no byte at {first_missing:#x}"):
        nvram.load(offset, 2)
    with pytest.raises(DeviceError, match=f"no byte at {first_missing:#x}"):
        nvram.load_into(offset, [memoryview(bytearray(1)), memoryview(bytearray(1))])


def test_load_from_where_no_file_can_be(nvram: NvramDevice):
    """What a damaged image names may be too large for pread(2) even to be asked."""
    with pytest.raises(DeviceError, match=f"no byte at {1 << 70:#x}"):
        nvram.load(1 << 70, PAGE_SIZE)


def test_load_into_before_the_image_is_a_bug(nvram: NvramDevice):
    """To preadv2(2) offset -1 means "from the file's position", and it read the first page."""
    with pytest.raises(BugError, match="load before the image: offset=-1"):
        nvram.load_into(-1, [memoryview(bytearray(1))])


def test_medium_error_is_a_device_error(nvram: NvramDevice, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(DeviceError, match=f"{nvram.path}: Input/output error at byte 0x1000"):
        nvram.load(PAGE_SIZE, 1)
    with pytest.raises(DeviceError, match=f"{nvram.path}: Input/output error at byte 0x1000"):
        nvram.load_into(PAGE_SIZE, [memoryview(bytearray(1))])


def test_growing_afterwards_changes_nothing(nvram: NvramDevice, path: Path):
    with path.open("ab") as file:
        file.write(bytes(PAGE_SIZE))
    assert nvram.size_bytes == 8 * PAGE_SIZE
    assert len(nvram.bytes) == 8 * PAGE_SIZE


def test_smallest_image_is_one_page(path: Path):
    path.write_bytes(bytes(PAGE_SIZE))
    nvram = NvramDevice.open(path)
    assert nvram.size_bytes == PAGE_SIZE
    nvram.close()


@pytest.mark.parametrize("size_bytes", [0, 1, PAGE_SIZE - 1])
def test_less_than_a_page_is_no_image(path: Path, size_bytes: int):
    path.write_bytes(bytes(size_bytes))
    before = nr_open_fds()
    with pytest.raises(FormatError, match=f"{path}: no xipfs image: {size_bytes} bytes"):
        NvramDevice.open(path)
    assert nr_open_fds() == before


def test_missing_file(path: Path):
    with pytest.raises(DeviceError, match=f"{path}: No such file"):
        NvramDevice.open(path)


def test_directory_fifo_and_character_device_are_no_images(tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # opening one that nobody writes to must not wait
    before = nr_open_fds()
    for path in (tmp_path, fifo, Path("/dev/null")):
        with pytest.raises(DeviceError, match=f"{path}: not a regular file"):
            NvramDevice.open(path)
    assert nr_open_fds() == before


def test_mapping_that_the_host_refuses_is_a_device_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An image larger than the address space ended in a bare OSError."""

    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    path.write_bytes(bytes(PAGE_SIZE))
    before = nr_open_fds()
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(DeviceError, match=f"{path}: Cannot allocate memory"):
        NvramDevice.open(path)
    assert nr_open_fds() == before


WRITER = """
import fcntl, sys
file = open(sys.argv[1], "rb")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_writer_in_another_process_shuts_us_out_until_it_ends(path: Path):
    path.write_bytes(bytes(PAGE_SIZE))
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"locked\n"
        before = nr_open_fds()
        with pytest.raises(ImageBusyError, match=f"{path}: in use by a writer"):
            NvramDevice.open(path)
        assert nr_open_fds() == before
        writer.kill()  # no last words: the lock goes with the process
    NvramDevice.open(path).close()


READER = """
import sys
from xipfs.phys.nvram import NvramDevice
nvram = NvramDevice.open(sys.argv[1])
print("opened", nvram.load(0, 3), flush=True)
sys.stdin.read()
"""


def test_readers_share_and_keep_writers_out(path: Path):
    nvram = make_nvram(path, 1)
    run = run_python(READER, path)
    assert (run.stdout, run.stderr) == (f"opened {block_bytes(0)[:3]!r}\n", "")
    with path.open("rb") as writer:
        with pytest.raises(BlockingIOError):
            fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        nvram.close()
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_close_reports_a_view_that_somebody_holds_and_can_be_tried_again(path: Path):
    nvram = make_nvram(path, 1)
    view = nvram.view(0, 8)
    with pytest.raises(BufferError):
        nvram.close()
    assert bytes(view) == block_bytes(0)[:8]
    view.release()
    before = nr_open_fds()
    nvram.close()
    assert nr_open_fds() < before


CUT_SHORT = """
import os, sys
from xipfs.errors import DeviceError
from xipfs.phys.nvram import NvramDevice
nvram = NvramDevice.open(sys.argv[1])
views = [nvram.view(0, 4096), nvram.view(5 * 4096, 4096)]
os.truncate(sys.argv[1], 4096 + 10)
print(nvram.load(4096, 10) == bytes([1]) * 10)
buffer = bytearray(4096)
for load in (
    lambda: nvram.load(4096, 11),
    lambda: nvram.load(5 * 4096, 1),
    lambda: nvram.load_into(4096, [memoryview(buffer)]),
):
    try:
        print("read", load())
    except DeviceError as exc:
        print(str(exc).removeprefix(sys.argv[1]))
out = os.open("/dev/null", os.O_WRONLY)
pipe = os.pipe()[1]
print(os.writev(pipe, [b"head", views[0]]))
try:
    print(os.writev(pipe, [views[1]]))
except OSError as exc:
    print(exc.strerror)
print("alive")
"""


def test_file_cut_short_while_it_is_open_is_an_error_not_the_end(path: Path):
    """A touch of a mapping past the end of its file is SIGBUS: so loads copy, and never touch."""
    path.write_bytes(bytes([1]) * 8 * PAGE_SIZE)
    run = run_python(CUT_SHORT, path)
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        "True",
        ": cut short: no byte at 0x100a, the image had 0x8000 when it was opened",
        ": cut short: no byte at 0x5000, the image had 0x8000 when it was opened",
        ": cut short: no byte at 0x100a, the image had 0x8000 when it was opened",
        "4100",
        "Bad address",
        "alive",
    ]
    assert run.returncode == 0


# --- durability ---


def test_observer_is_told_of_stores_flushes_and_fences_in_their_order():
    nvram = NvramDevice.scratch(PAGE_SIZE)
    told: list[tuple[object, ...]] = []

    class Observer:
        def on_store(self, offset: int, size_bytes: int) -> None:
            told.append(("store", offset, nvram.load(offset, size_bytes)))

        def on_flush(self, offset: int, size_bytes: int) -> None:
            told.append(("flush", offset, size_bytes))

        def on_fence(self) -> None:
            told.append(("fence",))

    nvram.observer = Observer()
    nvram.store_bytes(60, b"two lines")
    nvram.flush(60, 9)
    nvram.fence()
    nvram.store8(128, b"one word")
    assert told == [
        ("store", 60, b"two lines"),
        ("flush", 60, 9),
        ("fence",),
        ("store", 128, b"one word"),
    ]
    assert (nvram.nr_flushed_lines, nvram.nr_fences) == (2, 1)
    nvram.close()


@pytest.mark.parametrize(("offset", "data"), [(4, b"unaligne"), (8, b"short"), (8, b"too long!")])
def test_store8_takes_one_aligned_word(offset: int, data: bytes):
    nvram = NvramDevice.scratch(PAGE_SIZE)
    with pytest.raises(BugError, match="store8: not a word"):
        nvram.store8(offset, data)
    nvram.close()


def test_store_that_fails_is_not_told_of(nvram: NvramDevice):
    power = PowerLoss(nvram)
    with pytest.raises(DeviceError):
        nvram.store_bytes(0, b"read-only")
    assert not power.unsafe_lines()


def test_line_is_safe_when_flushed_after_its_last_store_and_fenced():
    nvram = NvramDevice.scratch(PAGE_SIZE)
    power = PowerLoss(nvram)
    nvram.store_bytes(0, b"a")
    nvram.fence()
    assert power.unsafe_lines() == {0}, "not flushed"
    nvram.flush(0, 1)
    assert power.unsafe_lines() == {0}, "not fenced"
    nvram.store_bytes(0, b"b")
    nvram.fence()
    assert power.unsafe_lines() == {0}, "stored to since it was flushed"
    nvram.flush(0, 1)
    nvram.fence()
    assert not power.unsafe_lines()
    nvram.close()


def test_one_writer_and_nobody_else(path: Path):
    path.write_bytes(bytes(2 * PAGE_SIZE))
    writer = NvramDevice.open(path, writable=True)
    for writable in (False, True):
        with pytest.raises(ImageBusyError, match=f"{path}: in use"):
            NvramDevice.open(path, writable=writable)
    view = writer.view(PAGE_SIZE, 4)
    writer.store_bytes(PAGE_SIZE, b"seen")
    assert bytes(view) == writer.load(PAGE_SIZE, 4) == b"seen"
    view.release()
    writer.close()
    reader = NvramDevice.open(path)
    with pytest.raises(ImageBusyError, match="in use: unmount it"):
        NvramDevice.open(path, writable=True)
    with pytest.raises(DeviceError, match="Bad file descriptor"):
        reader.store_bytes(0, b"x")
    reader.close()


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_an_image_that_may_only_be_read(path: Path, monkeypatch: pytest.MonkeyPatch, error: int):
    path.write_bytes(bytes(PAGE_SIZE))
    open_file = os.open

    def refuse(name: Path, flags: int, *more: int) -> int:
        if flags & os.O_RDWR:
            raise OSError(error, os.strerror(error))
        return open_file(name, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ReadOnlyFsError, match=f"{path}: may not be written: "):
        NvramDevice.open(path, writable=True)
    NvramDevice.open(path).close()


def test_blocks_of_a_sparse_image_are_there_before_the_first_store(path: Path):
    piece = 1 << 20
    with path.open("wb") as file:
        file.truncate(3 * piece + PAGE_SIZE)
    nvram = NvramDevice.open(path, writable=True)
    assert os.stat(path).st_blocks == 0, "opening takes none"
    nvram.store_bytes(piece - 1, b"ab")
    assert os.stat(path).st_blocks * 512 == 2 * piece
    nvram.reserve(3 * piece + 10, 1)
    assert os.stat(path).st_blocks * 512 == 2 * piece + PAGE_SIZE
    nvram.reserve(0, 0)
    nvram.close()
    assert path.stat().st_size == 3 * piece + PAGE_SIZE


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_told_before_anything_is_stored(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: int
):
    kind = DeviceError if error == errno.EIO else NoSpaceError
    path.write_bytes(b"old" + bytes(PAGE_SIZE))
    nvram = NvramDevice.open(path, writable=True)
    calls = []

    def full(*where: int) -> None:
        calls.append(where)
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        for _ in range(2):
            with pytest.raises(kind, match=f"{path}: {os.strerror(error)} at byte 0x0"):
                nvram.store_bytes(0, b"new")
    assert len(calls) == 2
    assert nvram.load(0, 3) == b"old"
    nvram.store_bytes(0, b"new")
    assert nvram.load(0, 3) == b"new"
    nvram.close()


def test_a_fence_waits_for_the_disk_where_it_shall(path: Path, monkeypatch: pytest.MonkeyPatch):
    path.write_bytes(bytes(PAGE_SIZE))
    nvram = NvramDevice.open(path, writable=True)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    nvram.store_bytes(0, b"a")
    nvram.flush(0, 1)
    nvram.fence()
    assert synced == [], "the host keeps its pages when we die"
    nvram.fence_syncs = True
    nvram.flush(0, 1)
    nvram.fence()
    assert len(synced) == 1
    nvram.fence()
    assert len(synced) == 1, "nothing was flushed since"

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    nvram.flush(0, 1)
    with pytest.raises(DeviceError, match="at a fence"):
        nvram.fence()
    nvram.close()
