"""A directory on each kind of filesystem: what holds on tmpfs and on the host's disk must hold on
a xipfs mount.

A test of this folder asks for `place`, an empty directory, and knows nothing else: system calls go
in, what POSIX or Linux says comes out. It runs three times. Where the two filesystems of Linux fail
it, the test is wrong.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.mount import mounted, xipfs
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry

IMAGE_SIZE_BYTES = 256 << 20
RIGHTS = "allow_other,suid,dev," if os.geteuid() == 0 else ""
DOORS = ["tmpfs", "host", pytest.param("xipfs", marks=pytest.mark.fuse)]


@pytest.fixture(scope="session")
def xipfs_root() -> Iterator[Path]:
    """One mount for all tests, in which pages migrate all the while; its image must be sound."""
    # Not below pytest's folders, which no other user may enter.
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="xipfs-posix-") as folder:
        Path(folder).chmod(0o755)
        image = Path(folder, "nvram.img")
        root = Entry(b"", 0o040755, os.geteuid(), os.getegid(), 0)
        mkfs(image, [root], now_ns=0, size_bytes=IMAGE_SIZE_BYTES)
        options = f"{RIGHTS}ram=4M,epoch=50"
        with mounted(image, Path(folder, "mnt"), options, timeout_s=3600) as live:
            yield live.path
        checked = xipfs("fsck", image)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.fixture(params=DOORS)
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory that others may enter, gone with all that is in it when the test ends."""
    if request.param == "xipfs":
        parent = request.getfixturevalue("xipfs_root")
    else:
        parent = "/dev/shm" if request.param == "tmpfs" else "/var/tmp"
    path = Path(tempfile.mkdtemp(dir=parent, prefix="xipfs-posix-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
