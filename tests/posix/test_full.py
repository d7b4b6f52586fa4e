"""A filesystem that is full says ENOSPC, keeps what it has, and takes more when there is room."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.mount import mounted, xipfs
from tests.kit.syscalls import fails, may_fail, wait_until
from xipfs.fs.mkfs import mkfs

SIZE_BYTES = 12 << 20


@pytest.fixture(
    params=[
        pytest.param("tmpfs", marks=pytest.mark.root),
        pytest.param("xipfs", marks=pytest.mark.fuse),
    ]
)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The root of a filesystem of SIZE_BYTES; an image must be sound afterwards."""
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    if request.param == "tmpfs":
        options = f"size={SIZE_BYTES},nr_inodes=3000"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", mnt], check=True)
        try:
            yield mnt
        finally:
            subprocess.run(["umount", "-l", mnt], check=True)
        return
    image = tmp_path / "nvram.img"
    mkfs(image, None, now_ns=0, size_bytes=SIZE_BYTES)
    with mounted(image, mnt, "ram=1M,epoch=50", timeout_s=600) as live:
        yield live.path
    checked = xipfs("fsck", image)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def fill(path: Path, chunk: bytes = b"f" * 65536) -> int:
    """Write to *path* until nothing fits any more; return how many bytes did."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    nr_bytes = 0
    with may_fail(errno.ENOSPC):
        while True:
            nr_bytes += os.write(fd, chunk)
    os.close(fd)
    return nr_bytes


def test_until_full_and_empty_again(small: Path):
    (small / "before").write_bytes(b"b" * 100_000)
    free = os.statvfs(small).f_bfree
    for _ in range(3):
        filled = fill(small / "filler")
        assert os.stat(small / "filler").st_size == filled > SIZE_BYTES // 2
        assert os.statvfs(small).f_bavail <= 16
        assert (small / "filler").read_bytes() == b"f" * filled
        assert (small / "before").read_bytes() == b"b" * 100_000
        os.unlink(small / "filler")
        wait_until(lambda: abs(os.statvfs(small).f_bfree - free) <= 1)


def test_a_full_one_can_be_overwritten_cut_and_renamed(small: Path):
    (small / "other").write_bytes(b"o" * 100_000)
    (small / "d").mkdir()
    filled = fill(small / "filler")
    fill(small / "last", b"x")
    with open(small / "filler", "r+b") as file:
        file.write(b"o" * 50_000)
    os.chmod(small / "filler", 0o600)
    os.utime(small / "filler", ns=(1, 2))
    os.rename(small / "filler", small / "d" / "renamed")
    assert (small / "d" / "renamed").read_bytes() == b"o" * 50_000 + b"f" * (filled - 50_000)
    os.truncate(small / "d" / "renamed", 0)
    (small / "new").write_bytes(b"n" * 100_000)
    assert (small / "new").read_bytes() == b"n" * 100_000


def test_full_of_small_files(small: Path):
    made = 0
    with may_fail(errno.ENOSPC):
        for i in range(100_000):
            (small / f"{i}").write_bytes(b"%d" % i)
            made += 1
    assert made > 500
    fails(errno.ENOSPC, os.mkdir, small / "directory")
    for i in range(made):
        assert (small / f"{i}").read_bytes() == b"%d" % i
    for name in os.listdir(small):
        os.unlink(small / name)
    (small / "directory").mkdir()
    fill(small / "filler")


def test_a_write_that_fits_in_part(small: Path):
    """It writes what fits, or says ENOSPC, and the size tells the truth."""
    fd = os.open(small / "file", os.O_CREAT | os.O_RDWR)
    written = 0
    with may_fail(errno.ENOSPC):
        written = os.write(fd, b"x" * (2 * SIZE_BYTES))
    size = os.fstat(fd).st_size
    assert size >= written
    assert os.pread(fd, 2 * SIZE_BYTES, 0) == b"x" * size
    os.close(fd)


def test_an_error_through_a_map_is_told_by_fsync_or_a_signal(small: Path):
    """A map of a hole, and no room: msync says so, or SIGBUS does, and nothing else is hurt."""
    (small / "other").write_bytes(b"o" * 100_000)
    (small / "sparse").touch()
    os.truncate(small / "sparse", 4 << 20)
    fill(small / "filler")
    code = (
        "import mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "mapped = mmap.mmap(fd, 4 << 20)\n"
        "mapped[:] = b'm' * (4 << 20)\n"
        "try: mapped.flush(); os.fsync(fd)\n"
        "except OSError as exc: sys.exit(exc.errno)\n"
    )
    run = subprocess.run(["python3", "-c", code, small / "sparse"], check=False)
    assert run.returncode in (-7, errno.ENOSPC)
    assert (small / "other").read_bytes() == b"o" * 100_000
