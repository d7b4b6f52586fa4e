"""Peers: other filesystems that programs can write to, on the same disk as the image.

    with passthrough(folder) as mountpoint:    pyfuse3's own example: a mirror of a directory
    with bindfs(folder) as mountpoint:         the same in C
    with fuse2fs(folder) as mountpoint:        ext4 in an image, in C, without its journal

Each keeps what it needs in *folder*, which exists and is empty. PeerMissingError says in one line
why there is none.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

__all__ = ["PEERS", "PeerMissingError", "bindfs", "fuse2fs", "passthrough"]

_EXAMPLE = "examples/passthroughfs.py"
_DOWNLOAD_TIMEOUT_S = 300
_START_TIMEOUT_S = 10
_IMAGE_SIZE_BYTES = 2 << 30


class PeerMissingError(Exception):
    """A peer that is not there: its message is one line that says why."""


@contextlib.contextmanager
def passthrough(folder: Path) -> Iterator[Path]:
    """Mirror a directory by pyfuse3's examples/passthroughfs.py, as it is, in Python like us."""
    example = _fetch_example()
    source, mountpoint = _make_folders(folder, "source", "mnt")
    with _served([sys.executable, example, source, mountpoint], mountpoint):
        yield mountpoint


@contextlib.contextmanager
def bindfs(folder: Path) -> Iterator[Path]:
    """Mirror a directory by bindfs."""
    program = _find("bindfs")
    source, mountpoint = _make_folders(folder, "source", "mnt")
    with _served([program, "-f", "--no-allow-other", source, mountpoint], mountpoint):
        yield mountpoint


@contextlib.contextmanager
def fuse2fs(folder: Path) -> Iterator[Path]:
    """Mount an ext4 image by fuse2fs of e2fsprogs."""
    program, mke2fs = _find("fuse2fs"), _find("mke2fs")
    image = folder / "ext4.img"
    with image.open("xb") as file:
        file.truncate(_IMAGE_SIZE_BYTES)
    subprocess.run([mke2fs, "-q", "-t", "ext4", "-F", image], check=True)
    [mountpoint] = _make_folders(folder, "mnt")
    with _served([program, "-f", "-o", "fakeroot", image, mountpoint], mountpoint):
        yield mountpoint


PEERS = {"passthrough": passthrough, "bindfs": bindfs, "fuse2fs": fuse2fs}


def _fetch_example() -> Path:
    """Return the example of the pyfuse3 that is installed; its sdist has it, its wheel has not."""
    name = f"pyfuse3-{version('pyfuse3')}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xipfs"
    example = cache / name / _EXAMPLE
    if example.exists():
        return example
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    wanted = name.replace("-", "==")
    try:
        with tempfile.TemporaryDirectory(prefix="xipfs-bench-") as folder:
            subprocess.run(
                [*pip, "--no-binary", "pyfuse3", "--dest", folder, wanted],
                check=True,
                capture_output=True,
                timeout=_DOWNLOAD_TIMEOUT_S,
            )
            with tarfile.open(Path(folder) / f"{name}.tar.gz") as sdist:
                found = sdist.extractfile(f"{name}/{_EXAMPLE}")
                text = found.read() if found is not None else b""
    except (OSError, subprocess.SubprocessError, tarfile.TarError, KeyError) as exc:
        raise PeerMissingError(f"passthrough: pip could not get {wanted}: {exc}") from exc
    example.parent.mkdir(parents=True, exist_ok=True)
    example.write_bytes(text)
    return example


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise PeerMissingError(f"{program}: not installed")
    return found


def _make_folders(folder: Path, *names: str) -> list[Path]:
    folders = [folder / name for name in names]
    for path in folders:
        path.mkdir()
    return folders


@contextlib.contextmanager
def _served(command: Sequence[str | Path], mountpoint: Path) -> Iterator[None]:
    """Let *command*, a server in the foreground, have something mounted for the block."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end_s = time.monotonic() + _START_TIMEOUT_S
    while not os.path.ismount(mountpoint):
        if server.poll() is not None or time.monotonic() > end_s:
            server.kill()
            server.wait()
            raise PeerMissingError(f"{Path(command[0]).name}: does not mount")
        time.sleep(0.01)
    try:
        yield
    finally:
        subprocess.run(["fusermount3", "-u", mountpoint], check=True)
        server.wait()
