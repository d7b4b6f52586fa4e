"""The golden images: what any released version of xipfs has written, this one can read.

`nvram_images/golden/vN.json` says what is in `vN.img.xz`; it was made from the same entries, not
from the image. An image made by the mkfs of today must hold the same.
"""

import hashlib
import json
import lzma
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xipfs.fs.fsck import fsck
from xipfs.fs.inode import Inode
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import MountOptions
from xipfs.ondisk.inode import INO_ROOT
from xipfs.ondisk.superblock import FORMAT_VERSION
from xipfs.units import PAGE_SIZE, bytes_to_pages

NVRAM_IMAGES = Path(__file__).parents[2] / "nvram_images"
GOLDEN = NVRAM_IMAGES / "golden"
VERSIONS = [f"v{version}" for version in range(1, FORMAT_VERSION + 1)]
NOW_NS = 1_234_567_890_123_456_789
READ_SIZE_BYTES = 3 * PAGE_SIZE


@pytest.fixture(scope="module")
def made_today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the golden image of this version's format, made now."""
    folder = tmp_path_factory.mktemp("golden")
    subprocess.run([sys.executable, NVRAM_IMAGES / "golden.py", folder], check=True)
    return folder


@pytest.fixture(params=[*VERSIONS, "made today"])
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """An image, unpacked, and what it must hold."""
    folder, name = GOLDEN, request.param
    if name == "made today":
        folder, name = request.getfixturevalue("made_today"), f"v{FORMAT_VERSION}"
    image = tmp_path / "golden.img"
    image.write_bytes(lzma.decompress((folder / f"{name}.img.xz").read_bytes()))
    return image, json.loads((folder / f"{name}.json").read_text())


def text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def walk(mount: Mount, directory: Inode, path: str = "") -> Iterator[tuple[str, Inode]]:
    """Yield every name below a directory, as it is listed and as it is looked up."""
    listed = []

    def emit(name: bytes, inode: Inode, position: int) -> bool:
        listed.append((name, inode.ino))
        return True

    operations = mount.operations
    fh = mount.dispatch(operations.opendir, directory.ino)
    mount.dispatch(operations.readdir, fh, 0, emit)
    mount.dispatch(operations.release, fh)
    assert [name for name, _ in listed[:2]] == [b".", b".."]
    for name, ino in listed[2:]:
        inode = mount.dispatch(operations.lookup, directory.ino, name)
        assert inode.ino == ino
        yield path + text(name), inode
        if inode.is_dir:
            yield from walk(mount, inode, f"{path}{text(name)}/")


def read(mount: Mount, inode: Inode, size_bytes: int) -> bytes:
    """Read the first bytes of a file, which has so many, some pages at a time."""
    fh = mount.dispatch(mount.operations.open, inode.ino, os.O_RDONLY)
    data = b""
    while len(data) < size_bytes:
        runs = mount.dispatch(mount.operations.read, fh, len(data), READ_SIZE_BYTES)
        assert runs
        data += mount.read_bytes(runs)
    mount.dispatch(mount.operations.release, fh)
    return data


def describe(mount: Mount, inode: Inode) -> dict[str, Any]:
    """Return what the mount says of an inode, in the form of golden.json."""
    operations, disk = mount.operations, inode.disk
    facts: dict[str, Any] = {
        "mode": f"{disk.mode:06o}",
        "nlink": disk.nlink,
        "uid": disk.uid,
        "gid": disk.gid,
        "mtime_ns": disk.mtime_ns,
        "rdev": disk.rdev,
        "xattrs": {
            text(name): hashlib.sha256(
                mount.dispatch(operations.getxattr, inode.ino, name)
            ).hexdigest()
            for name in mount.dispatch(operations.listxattr, inode.ino)
        },
    }
    if stat.S_ISLNK(disk.mode):
        facts["target"] = text(mount.dispatch(operations.readlink, inode.ino))
    if stat.S_ISREG(disk.mode):
        facts |= describe_contents(mount, inode)
    return {name: value for name, value in facts.items() if value}


def describe_contents(mount: Mount, inode: Inode) -> dict[str, Any]:
    size_bytes = inode.disk.size_bytes
    answer = mount.dispatch(mount.operations.getxattr, inode.ino, b"user.xipfs.extents")
    extents = json.loads(answer)
    # The list has an end; behind it, in these images, all have one page.
    nr_unlisted_pages = extents["nr_extents"] - len(extents["extents"])
    answer = mount.dispatch(mount.operations.getxattr, inode.ino, b"user.xipfs.tiers")
    tiers = json.loads(answer)
    assert tiers["pages"] == bytes_to_pages(size_bytes)
    assert tiers["pages"] == tiers["ram"] + tiers["nvram"] + tiers["hole"]
    facts = {
        "size_bytes": size_bytes,
        "data_pages": sum(nr_pages for _, _, nr_pages in extents["extents"]) + nr_unlisted_pages,
    }
    assert tiers["nvram"] == facts["data_pages"]
    if 0 < size_bytes < 1 << 30:
        data = read(mount, inode, size_bytes)
        assert len(data) == size_bytes
        facts["sha256"] = hashlib.sha256(data).hexdigest()
    elif size_bytes:  # one hole
        assert not any(read(mount, inode, READ_SIZE_BYTES))
    return facts


def test_the_image_holds_what_its_description_says(golden: tuple[Path, dict[str, Any]]):
    image, expected = golden
    mount = Mount.open(image, MountOptions(ro=True))
    try:
        root = mount.dispatch(mount.operations.getattr, INO_ROOT)
        inodes = {"": root, **dict(walk(mount, root))}
        assert set(inodes) == set(expected)
        for path, facts in expected.items():
            inode = inodes[path]
            assert inode.ino == inodes[facts.pop("first_name", path)].ino
            assert describe(mount, inode) == facts, path
            assert (inode.disk.btime_ns, inode.disk.ctime_ns) == (NOW_NS, NOW_NS), path
        assert mount.sb.state.nr_inodes == len({inode.ino for inode in inodes.values()})
        assert text(mount.sb.disk.label).rstrip("\0") == "golden \N{SNOWMAN}"
    finally:
        mount.close()


def test_fsck_finds_nothing(golden: tuple[Path, dict[str, Any]]):
    image, _ = golden
    report = fsck(image)
    assert (report.findings, report.unchecked) == ((), ())


def test_the_description_is_that_of_the_entries(made_today: Path):
    name = f"v{FORMAT_VERSION}.json"
    assert (made_today / name).read_text() == (GOLDEN / name).read_text()


def test_every_version_has_its_image_and_each_is_small():
    names = {path.name for path in GOLDEN.iterdir()}
    assert names == {f"{version}{end}" for version in VERSIONS for end in (".img.xz", ".json")}
    for version in VERSIONS:
        assert (GOLDEN / f"{version}.img.xz").stat().st_size <= 64 << 10


def test_the_readme_tells_the_checksums():
    readme = (NVRAM_IMAGES / "README.md").read_text()
    for version in VERSIONS:
        image = lzma.decompress((GOLDEN / f"{version}.img.xz").read_bytes())
        assert hashlib.sha256(image).hexdigest() in readme, version
