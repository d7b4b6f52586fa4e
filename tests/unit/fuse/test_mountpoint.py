"""Looking at mountpoints: what the kernel lists, and paths as it names them."""

import os
from pathlib import Path

import pytest

from xipfs.errors import MountError
from xipfs.fuse import mountpoint
from xipfs.fuse.mountpoint import MountState, absolute_mountpoint, find_mount, probe, unmount


def test_what_is_mounted():
    root, proc = find_mount(Path("/")), find_mount(Path("/proc"))
    assert root is not None
    assert proc is not None
    assert proc.fstype == "proc"
    assert proc.device != root.device
    major, _, minor = root.device.partition(":")
    assert major.isdecimal()
    assert minor.isdecimal()


def test_what_is_not_mounted(tmp_path):
    assert find_mount(tmp_path) is None
    assert find_mount(tmp_path / "missing") is None
    assert probe(tmp_path) is MountState.FREE
    with pytest.raises(MountError, match="/proc: a proc filesystem is mounted there"):
        probe(Path("/proc"))


LINES = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:30 / /mnt/a\040b rw shared:2 master:3 - fuse.xipfs /images/one\040two.img ro
31 22 0:31 / /mnt/a\134040b rw - fuse.xipfs /images/back\134slash.img ro
32 30 0:32 / /mnt/a\040b rw - fuse.xipfs /images/on\011top.img ro
33 22 0:33 / /mnt/line\012break rw - tmpfs none rw
34 22 0:34 /sub /mnt/\303\244\xff rw - ext4 /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", ("8:1", "ext4", "/dev/sda1")),
        ("/mnt/a b", ("0:32", "fuse.xipfs", "/images/on\ttop.img")),
        ("/mnt/a\\040b", ("0:31", "fuse.xipfs", "/images/back\\slash.img")),
        ("/mnt/line\nbreak", ("0:33", "tmpfs", "none")),
        ("/mnt", None),
        ("/mnt/a", None),
    ],
)
def test_how_the_kernel_writes_names(monkeypatch, path, found):
    """Spaces and the like as octal numbers; of mounts on one place the last is on top."""
    monkeypatch.setattr(mountpoint.Path, "read_bytes", lambda _: LINES.strip().encode())
    assert find_mount(Path(path)) == found


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """target, and links to it of all sorts; we stand in it."""
    (tmp_path / "target" / "sub").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, to in {
        "link": "target",
        "absolute": str(tmp_path / "target"),
        "chain": "link",
        "back": "target/sub/..",
        "dangling": "nowhere",
        "loop": "loop",
        "self": ".",
    }.items():
        (tmp_path / name).symlink_to(to)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("target", "target"),
        ("./target/", "target"),
        ("target/sub/..", "target"),
        ("target/..", ""),
        (".", ""),
        ("link", "target"),
        ("absolute", "target"),
        ("chain", "target"),
        ("back", "target"),
        ("self/link", "target"),
        ("link/sub", "target/sub"),
        ("dangling", "nowhere"),
        ("missing", "missing"),
        ("missing/below", "missing/below"),
        ("file", "file"),
        ("file/below", "file/below"),
    ],
)
def test_paths_as_the_kernel_names_them(tree, path, expected):
    assert absolute_mountpoint(Path(path)) == tree / expected
    assert absolute_mountpoint(tree / path) == tree / expected


def test_a_link_to_itself(tree):
    assert absolute_mountpoint(Path("loop")) == tree / "loop"
    assert absolute_mountpoint(Path("/")) == Path("/")


@pytest.mark.parametrize("how", [{}, {"lazy": True}])
def test_unmounting_nothing(tmp_path, how):
    with pytest.raises(MountError, match=f"{tmp_path}: ") as caught:
        unmount(tmp_path, **how)
    assert "\n" not in str(caught.value)
    assert os.path.isdir(tmp_path)
