"""A directory on each kind of filesystem: what holds on tmpfs and on the host's disk must hold on
a xipfs mount.

A test of this folder asks for `place`, an empty directory, and knows nothing else: system calls go
in, what POSIX or Linux says comes out. It runs three times. Where the two filesystems of Linux fail
it, the test is wrong.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.mount import mounted
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry

IMAGE_SIZE_BYTES = 256 << 20
DOORS = ["tmpfs", "host", pytest.param("xipfs", marks=pytest.mark.fuse)]


@pytest.fixture(scope="session")
def xipfs_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One mount for all tests, in which pages migrate all the while."""
    folder = tmp_path_factory.mktemp("posix")
    image = folder / "nvram.img"
    root = Entry(b"", 0o040755, 0, 0, 0)
    mkfs(image, [root], now_ns=0, size_bytes=IMAGE_SIZE_BYTES)
    with mounted(image, folder / "mnt", "allow_other,suid,dev,ram=4M,epoch=50") as live:
        yield live.path
    image.unlink()


@pytest.fixture(params=DOORS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty directory that others may enter, gone with all that is in it when the test ends."""
    if request.param == "xipfs":
        parent = request.getfixturevalue("xipfs_root")
    else:
        # Not below tmp_path, which pytest keeps from other users.
        parent = "/dev/shm" if request.param == "tmpfs" else "/var/tmp"
    path = Path(tempfile.mkdtemp(dir=parent, prefix="xipfs-posix-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
