"""mount.xipfs, called as mount(8) does for `-t xipfs`."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xipfs.fs.mkfs import mkfs

CODE = "import sys; from xipfs.cli.mount import mount_helper; sys.exit(mount_helper())"
Helper = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[Helper]:
    """Run the helper with these options on an empty image and tmp_path/mnt."""
    image, mountpoint = tmp_path / "a.img", tmp_path / "mnt"
    mkfs(image, None, now_ns=0)
    mountpoint.mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CODE, image, mountpoint, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    yield run
    if os.path.ismount(mountpoint):
        subprocess.run([sys.executable, "-m", "xipfs", "umount", mountpoint], check=True)


@pytest.mark.fuse
def test_rw_is_what_mount_says_by_itself(helper: Helper, tmp_path: Path):
    done = helper("-o", "rw,nosuid,nodev,x-systemd.automount,ram=1M", "-n", "-v")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not os.statvfs(tmp_path / "mnt").f_flag & os.ST_RDONLY


@pytest.mark.fuse
def test_ro_is_mounted_without_a_word(helper: Helper, tmp_path: Path):
    done = helper("-o", "ro")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.path.ismount(tmp_path / "mnt")


def test_fake_checks_options_and_mounts_nothing(helper: Helper, tmp_path: Path):
    done = helper("-f", "-o", "ro")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not os.path.ismount(tmp_path / "mnt")


def test_failure_is_exit_code_32_and_one_line(helper: Helper, tmp_path: Path):
    done = helper("-o", "ro,bogus")
    assert done.returncode == 32
    assert len(done.stderr.splitlines()) == 1
    assert "'bogus'" in done.stderr
    assert not os.path.ismount(tmp_path / "mnt")
