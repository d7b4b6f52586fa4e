"""Hostile images on real mounts: a mount is refused in one line, or it serves and ends well.

Whatever the image says, a program that walks through the mount comes to an end, gets errno or
bytes, and leaves the mount by no name; the daemon lives, logs no bug, and unmounts.
"""

import errno
import os
import random
import stat
from pathlib import Path

import pytest

from tests.kit.image import ImageKit
from tests.kit.mount import is_mounted, tear_away, xipfs
from tests.kit.recipe import bake, invent
from xipfs.ondisk.inode import INO_ROOT

pytestmark = pytest.mark.fuse

NR_PATHS_MAX = 300
EXPECTED = {
    errno.EUCLEAN,
    errno.EIO,
    errno.ENOENT,
    errno.EINVAL,
    errno.ELOOP,
    errno.ENODATA,
    errno.ENOTDIR,
    errno.ENOTSUP,
    errno.EISDIR,
    errno.EACCES,
    errno.ENXIO,
    errno.ENODEV,
    errno.ENOMEM,
    errno.EOVERFLOW,
}


class Visit:
    """A program that looks at everything. nr_errors: answers that were an errno."""

    def __init__(self, top: Path) -> None:
        self.nr_errors = 0
        self.names: list[bytes] = []
        waiting = [os.fsencode(top)]
        while waiting and len(self.names) < NR_PATHS_MAX:
            path = waiting.pop()
            self.names.append(os.path.basename(path))
            found = self.ask(os.lstat, path)
            for name in self.ask(os.listxattr, path, follow_symlinks=False) or ():
                self.ask(os.getxattr, path, name, follow_symlinks=False)
            if found is None:
                continue
            if stat.S_ISDIR(found.st_mode):
                names = self.ask(os.listdir, path) or []
                assert not {b".", b"..", b""} & set(names)
                assert not any(b"/" in name for name in names)
                waiting += [os.path.join(path, name) for name in names]
            elif stat.S_ISLNK(found.st_mode):
                self.ask(os.readlink, path)
            elif stat.S_ISREG(found.st_mode):
                self.ask(self.read, path)

    def ask(self, call, *arguments, **options):
        try:
            return call(*arguments, **options)
        except OSError as exc:
            error = exc
        assert error.errno in EXPECTED, error
        self.nr_errors += 1
        return None

    @staticmethod
    def read(path: bytes) -> None:
        with open(path, "rb", buffering=0) as file:
            file.read(1 << 16)
            file.seek(1 << 30)
            file.read(1)


def visit(image: Path, mnt: Path) -> Visit | None:
    """Mount, walk through, unmount; None if it is refused."""
    log = mnt.with_name("log")
    log.write_bytes(b"")
    try:
        done = xipfs("mount", image, mnt, "--log", log, "-o", "ram=1M,epoch=20")
        if done.returncode:
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1, done.stderr
            assert done.stderr.startswith("xipfs: ")
            assert not is_mounted(mnt)
            return None
        visit = Visit(mnt)
        done = xipfs("umount", mnt)
        assert (done.returncode, done.stderr) == (0, "")
        assert not is_mounted(mnt)
    finally:
        tear_away(mnt)
    assert "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")
    return visit


def write(recipe: str, tmp_path: Path) -> Path:
    image = tmp_path / "nvram.img"
    fd = os.open(image, os.O_RDWR | os.O_CREAT)
    bake(recipe).write(fd)
    os.close(fd)
    return image


def named(**names: bytes):
    """An image with files that the keyword names, whose names are then those of the arguments."""
    kit = ImageKit()
    for number, (name, new_name) in enumerate(names.items()):
        kit.add_file(INO_ROOT, name.encode().ljust(len(new_name), b"_"), b"%d" % number)
    kit.add_file(INO_ROOT, b"sound", b"sound\n")
    image = kit.build()
    for name, new_name in names.items():
        image.change_name(INO_ROOT, name.encode().ljust(len(new_name), b"_"), new_name)
    return image


@pytest.mark.parametrize("name", [b"../x", b"/etc", b"a\0b", b".", b"..", b"x/../../y"])
def test_names_that_lead_out(tmp_path: Path, mnt: Path, name: bytes):
    """The listing ends at such a name, and a name that can be is found as ever."""
    image = named(a=name).write(tmp_path / "nvram.img")
    found = visit(image, mnt)
    assert found is not None
    assert set(found.names) <= {b"mnt", b"sound"}
    assert found.nr_errors


def test_names_for_a_terminal(tmp_path: Path, mnt: Path):
    """Escape sequences are legal names; what xipfs prints has none."""
    image = named(a=b"\x1b]0;owned\x07").write(tmp_path / "nvram.img")
    assert visit(image, mnt) is not None
    for command in (["ls", image], ["ls", "-lR", image], ["dump", image, "/"], ["fsck", image]):
        done = xipfs(*command)
        assert (done.stdout + done.stderr).replace("\n", "").isprintable(), command


def test_a_label_for_a_terminal(tmp_path: Path):
    image = ImageKit().build()
    label = b"\x1b]0;owned\x07".ljust(64, b"\0")
    image.change_superblock(label=label)
    path = image.write(tmp_path / "nvram.img")
    for command in (["info", path], ["dump", path]):
        done = xipfs(*command)
        assert done.stdout.replace("\n", "").isprintable(), command


@pytest.mark.parametrize("ancestor", [INO_ROOT, 16, 17])
def test_directories_in_circles(tmp_path: Path, mnt: Path, ancestor: int):
    """An entry that is its own directory, or one above: the kernel refuses what would be a loop."""
    kit = ImageKit()
    outer = kit.add_dir(INO_ROOT, b"outer")
    inner = kit.add_dir(outer, b"inner")
    kit.add_dir(inner, b"loop")
    image = kit.build()
    image.change_entry(inner, b"loop", ino=ancestor)
    found = visit(image.write(tmp_path / "nvram.img"), mnt)
    assert found is not None
    assert found.nr_errors
    assert len(found.names) == 4


@pytest.mark.parametrize(
    "place", ["super.nr_pages", "super.journal_block", "super.bitmap_block", "super.nr_groups"]
)
def test_layouts_that_cannot_be(tmp_path: Path, mnt: Path, place: str):
    assert visit(write(f"tiny | {place}=0x7fffffffffff", tmp_path), mnt) is None


@pytest.mark.parametrize("block", [0, 1, 12, 63])
def test_files_that_show_metadata(tmp_path: Path, mnt: Path, block: int):
    image = write(f"tiny | inode16[0].block={block}", tmp_path)
    found = visit(image, mnt)
    assert found is not None
    assert found.nr_errors
    assert xipfs("fsck", image).returncode == 4


def test_a_file_of_sixteen_tebibytes_of_nothing(tmp_path: Path, mnt: Path):
    found = visit(write("tiny | inode16.size_bytes=0x100000000000", tmp_path), mnt)
    assert found is not None
    assert not found.nr_errors


@pytest.mark.parametrize("number", range(6))
def test_recipes_that_nobody_wrote(tmp_path: Path, mnt: Path, number: int):
    """Those that are not refused at once, as most are."""
    rng = random.Random(number)
    while True:
        image = write(invent(rng, []), tmp_path)
        if visit(image, mnt) is not None:
            return


@pytest.mark.long
def test_many_recipes_that_nobody_wrote(tmp_path: Path, mnt: Path):
    rng = random.Random(-1)
    nr_served = sum(visit(write(invent(rng, []), tmp_path), mnt) is not None for _ in range(300))
    assert nr_served > 100
