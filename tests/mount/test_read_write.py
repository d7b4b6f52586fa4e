"""A mount that writes, as a whole: how it begins, what it leaves, and what it does when it cannot.

What system calls do on it is in tests/posix, under kills in test_killed_daemons.py.
"""

import ctypes
import errno
import mmap
import os
import random
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.kit.mount import mounted, xipfs
from tests.kit.syscalls import ACL_FOR_NOBODY, caller, fails, may_fail, wait_until
from xipfs.fs.mkfs import mkfs

pytestmark = pytest.mark.fuse

_MS_RDONLY, _MS_REMOUNT = 1, 32


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "nvram.img"
    mkfs(path, None, now_ns=0, size_bytes=32 << 20)
    return path


def check(image: Path) -> None:
    checked = xipfs("fsck", image)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def remount(path: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(path), None, _MS_REMOUNT | flags, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# What a mount leaves


@pytest.mark.parametrize("cache", ["none", "sampled", "full"])
def test_what_is_written_is_there_next_time(image: Path, mnt: Path, cache: str):
    data = os.urandom(3_000_001)
    with mounted(image, mnt, f"cache={cache},ram=1M,epoch=20"):
        (mnt / "d").mkdir()
        (mnt / "d" / "file").write_bytes(data)
        assert (mnt / "d" / "file").read_bytes() == data
        with (mnt / "d" / "file").open("r+b") as file:
            file.seek(1_000_000)
            file.write(b"changed")
        assert (mnt / "d" / "file").read_bytes()[1_000_000:1_000_007] == b"changed"
    check(image)
    with mounted(image, mnt, "ro"):
        assert (mnt / "d" / "file").read_bytes() == data[:1_000_000] + b"changed" + data[1_000_007:]


@pytest.mark.parametrize("end", ["umount", "SIGTERM"])
def test_dirty_maps_and_frames_are_written_back_at_the_end(image: Path, mnt: Path, end: str):
    """Nobody has called msync, and the pages are in RAM alone."""
    with mounted(image, mnt, "ram=1M,policy=none") as live:
        (mnt / "file").write_bytes(b"." * 8192)
        assert xipfs("tier", mnt, "promote", mnt / "file").returncode == 0
        assert live.tiers("file")["ram"] == 2
        fd = os.open(mnt / "file", os.O_RDWR)
        mapped = mmap.mmap(fd, 8192)
        mapped[5000:5003] = b"map"
        mapped.close()
        os.pwrite(fd, b"write", 100)
        os.close(fd)
        if end == "umount":
            assert xipfs("umount", mnt).returncode == 0
        else:
            live.process.send_signal(signal.SIGTERM)
        live.wait_ended()
    check(image)
    with mounted(image, mnt, "ro"):
        found = (mnt / "file").read_bytes()
    assert (found[100:105], found[5000:5003]) == (b"write", b"map")


def test_frames_are_written_back_by_and_by(image: Path, mnt: Path):
    with mounted(image, mnt, "ram=1M,policy=none", must_end_well=False) as live:
        (mnt / "file").write_bytes(b"." * 8192)
        assert xipfs("tier", mnt, "promote", mnt / "file").returncode == 0
        with (mnt / "file").open("r+b") as file:
            file.write(b"late")
        wait_until(lambda: live.vmstat("xip_writeback") > 0)
        live.process.kill()
    with mounted(image, mnt):
        assert (mnt / "file").read_bytes()[:4] == b"late"


@pytest.mark.parametrize("end", ["end", "kill"])
def test_what_has_no_name_is_freed_at_the_end_or_the_next_beginning(
    image: Path, mnt: Path, end: str
):
    """It was open when the mount ended."""
    with mounted(image, mnt):
        (mnt / "first").touch()  # for which the inode file grows
        free = os.statvfs(mnt).f_bfree
    with mounted(image, mnt, must_end_well=end == "end") as live:
        fd = os.open(mnt / "file", os.O_CREAT | os.O_RDWR)
        os.write(fd, bytes(4 << 20))
        os.unlink(mnt / "file")
        assert os.fstat(fd).st_nlink == 0
        if end == "kill":
            live.process.kill()
        else:
            live.process.send_signal(signal.SIGTERM)
        live.process.wait()
        os.closerange(fd, fd + 1)
    with mounted(image, mnt):
        assert os.statvfs(mnt).f_bfree == free
    check(image)


@pytest.mark.parametrize("cache", ["none", "sampled"])
def test_direct_io_of_any_size_and_place(image: Path, mnt: Path, cache: str):
    """Neither memory nor offsets nor sizes need be aligned; several pages are cut anyhow."""
    rng = random.Random(5)
    with mounted(image, mnt, f"cache={cache},ram=64K,epoch=20"):
        expected = bytearray()
        fd = os.open(mnt / "file", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
        buffer = mmap.mmap(-1, 64 << 10)
        for _ in range(150):
            offset, size = rng.randrange(100_000), rng.randrange(1, 30_000)
            start = rng.randrange(1000)
            buffer[start : start + size] = data = rng.randbytes(size)
            assert os.pwrite(fd, memoryview(buffer)[start : start + size], offset) == size
            expected.extend(bytes(max(0, offset + size - len(expected))))
            expected[offset : offset + size] = data
            offset, size = rng.randrange(100_000), rng.randrange(1, 30_000)
            nr_bytes = os.preadv(fd, [memoryview(buffer)[start : start + size]], offset)
            assert buffer[start : start + nr_bytes] == expected[offset : offset + size]
        os.close(fd)
        assert (mnt / "file").read_bytes() == expected
    check(image)


def test_a_file_is_emptied_while_its_dirty_pages_are_dropped(image: Path, mnt: Path):
    """The kernel wrote them out to drop them, after open(2) had emptied the file: it grew again."""
    with mounted(image, mnt, "ram=1M,epoch=10"):
        for _ in range(400):
            fd = os.open(mnt / "file", os.O_CREAT | os.O_RDWR)
            os.pwrite(fd, b"x" * 81920, 0)
            with mmap.mmap(fd, 81920) as mapped:
                mapped[::4096] = b"y" * 20
                emptied = os.open(mnt / "file", os.O_RDWR | os.O_TRUNC)
                assert os.fstat(emptied).st_size == 0
                os.close(emptied)
            os.close(fd)


# Who may write


def test_one_writer_or_many_readers(image: Path, tmp_path: Path):
    with mounted(image, tmp_path / "a"):
        for options in ([], ["-o", "ro"]):
            (tmp_path / "b").mkdir(exist_ok=True)
            refused = xipfs("mount", image, tmp_path / "b", *options)
            assert refused.returncode == 1
            assert len(refused.stderr.splitlines()) == 1
            assert "in use" in refused.stderr or "unmount" in refused.stderr
    with mounted(image, tmp_path / "a", "ro"), mounted(image, tmp_path / "b", "ro"):
        fails(errno.EROFS, os.mkdir, tmp_path / "a" / "new")


@pytest.mark.root
def test_an_image_that_cannot_be_written_is_mounted_read_only(image: Path, mnt: Path):
    subprocess.run(["mount", "--bind", image, image], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", image], check=True)
    try:
        refused = xipfs("mount", image, mnt, "-o", "rw")
        assert refused.returncode == 1
        done = xipfs("mount", image, mnt)
        assert done.returncode == 0
        assert done.stderr == f"xipfs: {image}: cannot be written, mounting read-only\n"
        fails(errno.EROFS, os.mkdir, mnt / "new")
        assert xipfs("umount", mnt).returncode == 0
    finally:
        subprocess.run(["umount", image], check=True)


@pytest.mark.root
def test_remount_read_only_and_back(image: Path, mnt: Path):
    with mounted(image, mnt):
        (mnt / "file").write_bytes(b"before")
        fd = os.open(mnt / "file", os.O_RDWR)
        fails(errno.EBUSY, remount, mnt, _MS_RDONLY)
        os.close(fd)

        def is_read_only() -> bool:
            with may_fail(errno.EBUSY):
                remount(mnt, _MS_RDONLY)
                return True
            return False

        wait_until(is_read_only)
        for attempt in (
            lambda: os.mkdir(mnt / "new"),
            lambda: os.open(mnt / "file", os.O_WRONLY),
            lambda: os.unlink(mnt / "file"),
            lambda: os.chmod(mnt / "file", 0),
            lambda: os.truncate(mnt / "file", 0),
            lambda: os.setxattr(mnt / "file", "user.a", b""),
        ):
            fails(errno.EROFS, attempt)
        assert (mnt / "file").read_bytes() == b"before"
        remount(mnt, 0)
        (mnt / "file").write_bytes(b"after")
    check(image)
    with mounted(image, mnt, "ro"):
        assert (mnt / "file").read_bytes() == b"after"


def test_a_dirty_image_wants_to_be_mounted_to_write_first(image: Path, mnt: Path):
    with mounted(image, mnt, must_end_well=False) as live:
        (mnt / "d").mkdir()
        live.process.kill()
    refused = xipfs("mount", image, mnt, "-o", "ro")
    assert refused.returncode == 1
    assert "mount it once" in refused.stderr
    with mounted(image, mnt):
        assert (mnt / "d").is_dir()
    with mounted(image, mnt, "ro"):
        assert (mnt / "d").is_dir()


# When something breaks

_BREAK = """
import xipfs.fuse.operations
def broken(*_, **__):
    raise RuntimeError("planted")
for name in ("mkdir", "write", "rename", "setattr", "setxattr"):
    setattr(xipfs.fuse.operations.Operations, name, broken)
"""


def test_a_bug_in_a_handler_is_eio_and_the_mount_lives(image: Path, mnt: Path):
    with mounted(image, mnt, prelude=_BREAK) as live:
        live.expected_logs.append("RuntimeError: planted")
        fails(errno.EIO, os.mkdir, mnt / "d")
        fd = os.open(mnt / "file", os.O_CREAT | os.O_RDWR)
        fails(errno.EIO, os.write, fd, b"x")
        fails(errno.EIO, os.ftruncate, fd, 10)
        fails(errno.EIO, os.rename, mnt / "file", mnt / "other")
        fails(errno.EIO, os.setxattr, mnt / "file", "user.a", b"")
        assert os.fstat(fd).st_size == 0
        os.close(fd)
        os.unlink(mnt / "file")
        assert os.listdir(mnt) == []
    check(image)


_FAIL_A_TRANSACTION = """
import xipfs.phys.nvram
from xipfs.errors import DeviceError
flush, count = xipfs.phys.nvram.NvramDevice.flush, 0
def failing(self, *arguments):
    global count
    count += 1
    if count > 60:
        raise DeviceError("planted: the medium is worn out")
    flush(self, *arguments)
xipfs.phys.nvram.NvramDevice.flush = failing
"""


def test_a_medium_that_fails_ends_writing_and_nothing_else(image: Path, mnt: Path):
    """What was answered is there on the next mount, which replays the journal."""
    with mounted(image, mnt) as live:
        (mnt / "first").mkdir()
    made = []
    with mounted(image, mnt, prelude=_FAIL_A_TRANSACTION, must_end_well=False) as live:
        for i in range(100):
            with may_fail(errno.EIO):
                (mnt / f"d{i}").mkdir()
                made.append(f"d{i}")
        assert 0 < len(made) < 100
        assert (mnt / "first").is_dir()
        live.process.kill()
    live.log.unlink()
    with mounted(image, mnt):
        left = set(os.listdir(mnt))
        assert {"first", *made} <= left
        assert len(left) <= len(made) + 2  # and the one that was on its way
    check(image)


@pytest.mark.root
def test_setuid_is_cleared_past_the_page_cache_too(image: Path, mnt: Path):
    with mounted(image, mnt, "cache=none,suid"):
        (mnt / "file").write_bytes(b"x")
        os.chmod(mnt / "file", 0o6755)
        with (mnt / "file").open("r+b") as file:
            file.write(b"y")
        assert stat.S_IMODE(os.stat(mnt / "file").st_mode) == 0o755


def test_sync_full(image: Path, mnt: Path):
    with mounted(image, mnt, "sync=full,ram=1M"):
        (mnt / "file").write_bytes(b"x" * 100_000)
        (mnt / "d").mkdir()
        fd = os.open(mnt / "file", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    check(image)


# What it costs


def test_the_daemon_forgets_what_nobody_uses(image: Path, mnt: Path):
    with mounted(image, mnt, "ram=0") as live:
        (mnt / "d").mkdir()
        for i in range(500):
            (mnt / "d" / f"{i}").write_bytes(b"x")
        for i in range(500):
            os.unlink(mnt / "d" / f"{i}")
        os.rmdir(mnt / "d")
        wait_until(lambda: live.stat()["inodes_in_memory"] <= 2)
        facts = live.stat()
        assert (facts["open_handles"], facts["vmas"]) == (0, 0)


def test_pages_that_go_are_not_pinned_any_more(image: Path, mnt: Path):
    """Else those of the next file with that number would be."""
    with mounted(image, mnt, "ram=1M,policy=none") as live:
        (mnt / "file").write_bytes(b"x" * 12288)
        assert xipfs("tier", mnt, "pin", mnt / "file").returncode == 0
        assert live.stat()["pinned_pages"] == 3
        os.truncate(mnt / "file", 4097)
        assert live.stat()["pinned_pages"] == live.stat()["ram_pages"] == 2
        os.unlink(mnt / "file")
        wait_until(lambda: live.stat()["pinned_pages"] == 0)
        assert live.stat()["ram_pages"] == 0


def test_policies_hear_of_writes(image: Path, mnt: Path):
    """And of pages that went before they could be moved they are not told off."""
    policy = mnt.with_name("mine.py")
    policy.write_text(
        "from xipfs.policy import Plan\n"
        "class Policy:\n"
        "    pages = []\n"
        "    def decide(self, batch, tiers):\n"
        "        written = batch.page[batch.kind == 1].tolist()\n"
        "        self.pages += [page for page in written if page not in self.pages]\n"
        "        return Plan(promote=[p for p in self.pages if p not in tiers.resident.tolist()])\n"
    )
    with mounted(image, mnt, f"ram=1M,epoch=20,policy={policy}") as live:
        (mnt / "file").write_bytes(b"x" * 12288)
        wait_until(lambda: live.stat()["ram_pages"] == 3)
        assert (mnt / "file").read_bytes() == b"x" * 12288
        os.unlink(mnt / "file")
        wait_until(lambda: live.stat()["ram_pages"] == 0)
        live.wait_epochs(3)  # it goes on asking for them
        assert (live.stat()["policy_errors"], live.stat()["plan_refused"]) == (0, 0)


@pytest.mark.root
def test_a_full_host_disk_is_enospc(tmp_path: Path, mnt: Path):
    """A sparse image whose blocks the host cannot give: no signal, and nothing that was is lost."""
    host = tmp_path / "host"
    host.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", host], check=True)
    try:
        image = host / "nvram.img"
        mkfs(image, None, now_ns=0, size_bytes=64 << 20)
        with mounted(image, mnt, "ram=0"):
            (mnt / "small").write_bytes(b"s" * 100_000)
            fd = os.open(mnt / "large", os.O_CREAT | os.O_RDWR)
            fails(errno.ENOSPC, _write_all, fd, 32 << 20)
            os.close(fd)
            assert (mnt / "small").read_bytes() == b"s" * 100_000
            os.unlink(mnt / "large")
            os.unlink(mnt / "small")
        check(image)
    finally:
        subprocess.run(["umount", "-l", host], check=True)


def _write_all(fd: int, size_bytes: int) -> None:
    while size_bytes > 0:
        size_bytes -= os.write(fd, b"l" * 65536)


@pytest.mark.root
def test_an_acl_is_obeyed_from_the_moment_it_is_set(image: Path, mnt: Path):
    with mounted(image, mnt, "acl,allow_other"):
        (mnt / "file").write_text("secret")
        os.chmod(mnt / "file", 0o600)
        assert not may_read(mnt / "file", 65534)
        os.setxattr(mnt / "file", "system.posix_acl_access", ACL_FOR_NOBODY)
        assert may_read(mnt / "file", 65534)
        assert not may_read(mnt / "file", 65533)
    check(image)


@pytest.mark.root
def test_an_acl_that_nobody_would_obey_is_refused(image: Path, mnt: Path):
    """It was once taken, and its mask was then what the file's group might do."""
    with mounted(image, mnt):
        (mnt / "file").write_text("secret")
        os.chmod(mnt / "file", 0o600)
        with pytest.raises(OSError, match="not supported"):
            os.setxattr(mnt / "file", "system.posix_acl_access", ACL_FOR_NOBODY)
        assert stat.S_IMODE(os.stat(mnt / "file").st_mode) == 0o600
    check(image)


def may_read(path: Path, uid: int) -> bool:
    """May another user? The folders above let nobody in."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        with caller(uid, uid):
            os.close(os.open(path.name, os.O_RDONLY, dir_fd=folder))
    except PermissionError:
        return False
    finally:
        os.close(folder)
    return True
