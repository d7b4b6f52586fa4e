"""What cannot be mounted, unmounted or asked: one clear line, an exit status, nothing damaged.

Each test looks at the whole of stderr and stdout; after it the image has every byte it had, and
nothing is mounted.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.kit.image import HandmadeImage, ImageKit
from tests.kit.mount import is_mounted, mounted, tear_away, xipfs
from xipfs.ondisk.superblock import STATE_INODE_OFFSET
from xipfs.units import PAGE_SIZE

pytestmark = pytest.mark.fuse


class Refused(Protocol):
    """refused("mount", image, mnt) -> its only line, without the "xipfs: " in front.

    status: the exit status that is due. In front and behind it must be the same.
    """

    def __call__(self, *arguments: object, status: int = 1, **options: object) -> str: ...


@pytest.fixture
def refused(tmp_path: Path) -> Iterator[Refused]:
    before = digests(tmp_path)

    def refused(*arguments: object, status: int = 1, **options: object) -> str:
        done = xipfs(*arguments, **options)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert done.stderr.startswith("xipfs: "), done.stderr
        assert done.stderr.endswith("\n")
        assert done.stderr.count("\n") == 1, done.stderr
        return str(done.stderr).removeprefix("xipfs: ").rstrip("\n")

    yield refused
    left = [path for path in tmp_path.iterdir() if is_mounted(path)]
    for path in left:
        tear_away(path)
    assert left == []
    after = digests(tmp_path)
    assert {path: after[path] for path in before} == before


def digests(folder: Path) -> dict[Path, str]:
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Mountpoints


def test_no_such_mountpoint(refused: Refused, image: Path, tmp_path: Path):
    missing = tmp_path / "missing"
    assert refused("mount", image, missing) == f"{missing}: no such directory: make it first"
    below = missing / "below"
    assert refused("mount", image, below) == f"{below}: no such directory: make it first"


def test_a_mountpoint_that_is_no_directory(refused: Refused, image: Path, tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    assert refused("mount", image, file) == f"{file}: not a directory"
    assert "file" in refused("mount", image, file / "below")


def test_symbolic_links_as_mountpoints(refused: Refused, image: Path, tmp_path: Path):
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert refused("mount", image, tmp_path / "dangling") == (
        f"{tmp_path / 'nowhere'}: no such directory: make it first"
    )
    assert "loop" in refused("mount", image, tmp_path / "loop")


def test_a_mountpoint_with_a_name_that_cannot_be(refused: Refused, image: Path, tmp_path: Path):
    assert "File name too long" in refused("mount", image, tmp_path / ("x" * 300))


def test_where_something_else_is_mounted(refused: Refused, image: Path):
    assert refused("mount", image, "/proc") == "/proc: a proc filesystem is mounted there"
    assert refused("umount", "/proc") == "/proc: a proc filesystem is mounted there"


def test_an_image_below_its_own_mountpoint(refused: Refused, image: Path, tmp_path: Path):
    """It would be out of reach as soon as it is mounted, and could never be found again."""
    expected = f"{image}: lies below its own mountpoint {tmp_path}"
    assert refused("mount", image, tmp_path) == expected
    assert refused("mount", image.name, ".", cwd=tmp_path) == expected
    (tmp_path / "link").symlink_to(".")
    assert refused("mount", image, tmp_path / "link") == expected
    (tmp_path / "mnt" / "sub").mkdir(parents=True)
    (tmp_path / "mnt" / "sub" / "link.img").symlink_to(image)
    assert refused("mount", tmp_path / "mnt" / "sub" / "link.img", tmp_path).endswith(
        f"lies below its own mountpoint {tmp_path}"
    )


# Images


@pytest.fixture
def handmade() -> HandmadeImage:
    kit = ImageKit()
    kit.add_file(1, b"hello", b"hello\n")
    return kit.build()


def test_no_such_image(refused: Refused, tmp_path: Path, mnt: Path):
    missing = tmp_path / "missing.img"
    assert refused("mount", missing, mnt) == f"{missing}: No such file or directory"


def test_an_image_that_is_a_directory_or_a_device(refused: Refused, tmp_path: Path, mnt: Path):
    assert refused("mount", tmp_path, mnt).startswith(f"{tmp_path}: ")
    assert refused("mount", "/dev/null", mnt) == ("/dev/null: not a regular file: an image is one")


def test_an_empty_image(refused: Refused, tmp_path: Path, mnt: Path):
    empty = tmp_path / "empty.img"
    empty.touch()
    assert refused("mount", empty, mnt) == (f"{empty}: no xipfs image: 0 bytes, less than one page")


@pytest.mark.parametrize("in_front", [False, True])
def test_a_foreign_image(refused: Refused, tmp_path: Path, mnt: Path, in_front: bool):
    foreign = tmp_path / "foreign.img"
    foreign.write_bytes(b"\x7fELF" * 100_000)
    front = ["-f"] if in_front else []
    assert "no superblock" in refused("mount", *front, foreign, mnt)


@pytest.mark.parametrize("nr_pages", [1, 2, 200])
def test_a_truncated_image(
    refused: Refused, handmade: HandmadeImage, tmp_path: Path, mnt: Path, nr_pages: int
):
    image = handmade.write(tmp_path / "cut.img")
    os.truncate(image, nr_pages * PAGE_SIZE)
    message = refused("mount", image, mnt)
    assert message.startswith(f"{image}: cut short: ")


def test_a_newer_image(refused: Refused, handmade: HandmadeImage, tmp_path: Path, mnt: Path):
    handmade.change_superblock(version=2)
    assert "version 2" in refused("mount", handmade.write(tmp_path / "newer.img"), mnt)
    handmade.change_superblock(version=1, incompat=1 << 9)
    assert "feature" in refused("mount", handmade.write(tmp_path / "features.img"), mnt)


FLIPS = {
    "superblock": 70,
    "state": PAGE_SIZE + 20,
    "the inode of the inodes": PAGE_SIZE + STATE_INODE_OFFSET + 90,
}


@pytest.mark.parametrize("where", FLIPS)
def test_flipped_metadata(
    refused: Refused, handmade: HandmadeImage, tmp_path: Path, mnt: Path, where: str
):
    handmade.data[FLIPS[where]] ^= 4
    image = handmade.write(tmp_path / "flipped.img")
    assert refused("mount", image, mnt).startswith(f"{image}: ")


def test_a_flipped_root(refused: Refused, handmade: HandmadeImage, tmp_path: Path, mnt: Path):
    """Every path would end there, so it is looked at before the mount is made."""
    handmade.data[handmade.inode_offset(1) + 50] ^= 4
    image = handmade.write(tmp_path / "flipped.img")
    assert refused("mount", image, mnt).startswith(f"{image}: inode 1: ")


def test_an_image_in_use_by_a_writer(refused: Refused, image: Path, mnt: Path):
    with image.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        said = refused("mount", image, mnt, "-o", "ro")
        assert said.startswith(f"{image}: in use by a writer: ")
        assert refused("mount", image, mnt).startswith(f"{image}: in use: ")


def test_an_image_that_is_mounted_is_not_made_anew(refused: Refused, image: Path, mnt: Path):
    """mkfs is a writer."""
    with mounted(image, mnt):
        message = refused("mkfs", image, "--force")
        assert str(image) in message
        assert "in use" in message
        assert (mnt / "hello").read_text() == "hello\n"


# Options


@pytest.mark.parametrize(
    "options",
    [
        "no_such_option",
        "cache=some",
        "ram=lots",
        "epoch=1",
        "budget=0",
        "arch=vax",
        "sync=often",
        "cache",
    ],
)
def test_a_bad_option(refused: Refused, image: Path, mnt: Path, options: str):
    message = refused("mount", image, mnt, "-o", f"ro,{options}")
    assert options.partition("=")[0] in message


def test_more_ram_than_any_machine_has(refused: Refused, image: Path, mnt: Path):
    assert "ram=" in refused("mount", image, mnt, "-o", "ram=100P")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["mount"], "IMAGE"),
        (["mount", "image"], "MNT"),
        (["mount", "image", "mnt", "more"], "more"),
        (["mount", "image", "mnt", "--no-such"], "--no-such"),
        (["umount"], "MNT"),
        (["stat"], "MNT"),
        (["stat", "a", "b"], "b"),
        (["no-such-command"], "no-such-command"),
    ],
)
def test_wrong_usage(refused: Refused, arguments: list[str], what: str):
    assert what.lower() in refused(*arguments, status=2).lower()


def test_a_log_that_cannot_be_written(refused: Refused, image: Path, mnt: Path, tmp_path: Path):
    log = tmp_path / "missing" / "a.log"
    expected = f"{log}: cannot log there: No such file or directory"
    assert refused("mount", image, mnt, "--log", log) == expected
    assert refused("mount", image, mnt, "-f", "--log", log) == expected


# Policies


POLICIES = {
    "class Policy:\n    def decide(self, batch, tiers)\n        pass\n": "line 2: expected ':'",
    "import nothing_of_that_name\n": "line 1: ModuleNotFoundError: ",
    "class Polizei:\n    pass\n": "no class Policy with a method decide(self, batch, tiers)",
    "class Policy:\n    decide = len\n    def __init__(self):\n        1 / 0\n": (
        "Policy(): line 4: ZeroDivisionError: division by zero"
    ),
}


@pytest.mark.parametrize("source", POLICIES, ids=range(len(POLICIES)))
def test_a_policy_file_with_a_mistake(
    refused: Refused, image: Path, mnt: Path, tmp_path: Path, source: str
):
    (tmp_path / "mine.py").write_text(source)
    message = refused("mount", image, mnt, "-o", "policy=./mine.py", cwd=tmp_path)
    assert message.removeprefix("./").startswith(f"mine.py: {POLICIES[source]}")


def test_no_such_policy(refused: Refused, image: Path, mnt: Path):
    assert "no policy 'mru'" in refused("mount", image, mnt, "-o", "policy=mru")
    assert "missing.py" in refused("mount", image, mnt, "-o", "policy=./missing.py")


# What is no mount


def test_umount_of_what_is_not_mounted(refused: Refused, mnt: Path, tmp_path: Path):
    assert refused("umount", mnt) == f"{mnt}: no xipfs is mounted there"
    missing = tmp_path / "missing"
    assert refused("umount", missing) == f"{missing}: no xipfs is mounted there"


def test_stat_of_what_is_not_mounted(refused: Refused, mnt: Path, tmp_path: Path):
    for path in (mnt, tmp_path / "missing", Path("/proc")):
        assert refused("stat", path).startswith(f"{path}: no xipfs mount: ")


def test_stat_of_what_is_below_a_mount(refused: Refused, image: Path, mnt: Path):
    with mounted(image, mnt):
        for path in (mnt / "directory", mnt / "hello"):
            assert refused("stat", path).startswith(f"{path}: no xipfs mount: ")


def test_stat_of_a_dead_mount(refused: Refused, image: Path, mnt: Path):
    with mounted(image, mnt, must_end_well=False) as live:
        live.process.kill()
        live.process.wait()
        assert refused("stat", mnt) == (
            f"{mnt}: no xipfs mount: Transport endpoint is not connected"
        )


def test_stat_of_a_mount_that_lost_its_socket(refused: Refused, image: Path, mnt: Path):
    prelude = (
        "import xipfs.fuse.control as control\n"
        "control.ControlServer.address = b'xipfs.1.0123456789abcdef'\n"
    )
    with mounted(image, mnt, prelude=prelude):
        assert refused("stat", mnt) == f"{mnt}: its daemon does not answer: Connection refused"
        assert xipfs("umount", mnt).returncode == 0


# What the machine lacks


def in_namespace(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a shell script with mounts of its own, as only root can; "$@" is `python -m xipfs ..`."""
    command = ["unshare", "--mount", "sh", "-e", "-c", script, "sh", sys.executable, "-m", "xipfs"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.root
@pytest.mark.parametrize("front", [[], ["-f"]], ids=["behind", "in front"])
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            'mount -t tmpfs none /dev; exec "$@"',
            "/dev/fuse: No such file or directory: load it with: modprobe fuse",
        ),
        (
            'mount -t tmpfs none /dev; mknod /dev/fuse c 10 65000; exec "$@"',
            "/dev/fuse: No such device: load it with: modprobe fuse",
        ),
        (
            'mount --bind /dev/null /dev/fuse; exec "$@"',
            "{mnt}: cannot be mounted: fuse: mount failed: Invalid argument",
        ),
    ],
    ids=["none", "no driver", "another device"],
)
def test_no_dev_fuse(
    refused: Refused, image: Path, mnt: Path, script: str, message: str, front: list[str]
):
    done = in_namespace(script, "mount", *front, image, mnt)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"xipfs: {message.format(mnt=mnt)}")
    assert done.stderr.count("\n") == 1, done.stderr
