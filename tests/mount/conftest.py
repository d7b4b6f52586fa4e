"""Images for real mounts. Every test in this folder mounts, or is about not being able to."""

from pathlib import Path

import pytest

from tests.kit.made import made, made_image, made_tree
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry

__all__ = ["made", "made_image", "made_tree"]


def make_small_image(path: Path) -> Path:
    """An image with /hello and /directory/inner."""
    entries = [
        Entry(b"", 0o040755, 0, 0, 0),
        Entry(b"hello", 0o100644, 0, 0, 0, size_bytes=6, pieces=[(0, b"hello\n")]),
        Entry(b"directory/inner", 0o100644, 0, 0, 0, size_bytes=2, pieces=[(0, b"x\n")]),
    ]
    mkfs(path, entries, now_ns=0, force=True)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small image of the test's own: /hello and /directory/inner."""
    return make_small_image(tmp_path / "nvram.img")


@pytest.fixture
def mnt(tmp_path: Path) -> Path:
    """An empty directory to mount at."""
    path = tmp_path / "mnt"
    path.mkdir()
    return path
