"""Faults while a mount lives: bugs of ours, images that are cut or flipped, policies that break.

The client gets an errno, the log a line, and the mount lives on.
"""

import errno
import os
from pathlib import Path

import pytest

from tests.kit.image import HandmadeImage, ImageKit
from tests.kit.mount import LiveMount, mounted
from tests.kit.tree import random_bytes
from xipfs.ondisk.inode import INO_FIRST
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

pytestmark = pytest.mark.fuse


def error_of(call, *arguments) -> str:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    return errno.errorcode[caught.value.errno]


def check_alive(live: LiveMount) -> None:
    """It answers, in both ways."""
    os.statvfs(live.path)
    assert live.stat()["pid"] == live.process.pid


# Bugs of ours


CALLS = {
    "open": lambda mnt: os.close(os.open(mnt / "hello", os.O_RDONLY)),
    "read": lambda mnt: (mnt / "hello").read_bytes(),
    "listxattr": lambda mnt: os.listxattr(mnt / "hello"),
    "readdir": lambda mnt: os.listdir(mnt / "directory"),
    "statfs": lambda mnt: os.statvfs(mnt / "hello"),
}


@pytest.mark.parametrize("error", ["ZeroDivisionError('planted')", "BugError('BUG: planted')"])
@pytest.mark.parametrize("name", CALLS)
def test_a_handler_that_meets_a_bug(image: Path, mnt: Path, name: str, error: str):
    """EIO for the client, a traceback for the log; the next request is served."""
    prelude = (
        "from xipfs.errors import BugError\n"
        "from xipfs.fuse.operations import Operations\n"
        f"original = Operations.{name}\n"
        "left = [1, 2]\n"  # the first statfs is that of the fixture
        f"if {name!r} != 'statfs': left.pop()\n"
        "def broken(self, *arguments):\n"
        "    if left and left.pop() == 1:\n"
        f"        raise {error}\n"
        "    return original(self, *arguments)\n"
        f"Operations.{name} = broken\n"
    )
    # cache=none, since the kernel tries again where it reads ahead.
    with mounted(image, mnt, "cache=none", prelude=prelude) as live:
        live.expected_logs += ["(?s)ERROR: a bug in xipfs: the client gets EIO\nTrace.*planted"]
        assert error_of(CALLS[name], mnt) == "EIO"
        CALLS[name](mnt)
        assert (mnt / "directory" / "inner").read_text() == "x\n"
        check_alive(live)


def test_an_epoch_that_meets_a_bug(image: Path, mnt: Path):
    prelude = (
        "from xipfs.tiering.daemon import TieringDaemon\n"
        "sample = TieringDaemon.sample\n"
        "def broken(self, *told):\n"
        "    if self.nr_epochs == 3:\n"
        "        self.nr_epochs += 1\n"
        "        raise RuntimeError('planted')\n"
        "    return sample(self, *told)\n"
        "TieringDaemon.sample = broken\n"
    )
    with mounted(image, mnt, "epoch=20", prelude=prelude) as live:
        live.expected_logs += ["(?s)ERROR: a bug in xipfs: epoch 4 ended early\nTrace.*planted"]
        live.wait_epochs(6)
        assert (mnt / "hello").read_text() == "hello\n"


# Policies


def test_a_policy_that_breaks_while_it_runs(image: Path, mnt: Path):
    """Whatever it does: it is counted, logged once, and the mount serves on."""
    policy = mnt.with_name("mine.py")
    policy.write_text(
        "import sys\n"
        "class Policy:\n"
        "    def decide(self, batch, tiers):\n"
        "        if tiers.epoch % 2:\n"
        "            sys.exit('enough')\n"
        "        return 1 / 0\n"
    )
    with mounted(image, mnt, f"epoch=20,policy={policy}") as live:
        live.expected_logs += [
            "(?s)ERROR: policy .*mine.py failed, nothing is moved\nTrace.*by zero"
        ]
        live.wait_epochs(5)
        assert (mnt / "hello").read_text() == "hello\n"
        facts = live.stat()
        assert facts["policy_errors"] >= 5
        assert facts["vmstat"]["pgmigrate_success"] == 0
        assert live.log.read_text().count("nothing is moved") == 1


def test_a_policy_that_asks_for_the_impossible(image: Path, mnt: Path):
    policy = mnt.with_name("mine.py")
    policy.write_text(
        "import numpy as np\n"
        "from xipfs.policy import Plan, page_id\n"
        "class Policy:\n"
        "    def decide(self, batch, tiers):\n"
        "        everything = np.arange(-50, 50) << 32\n"
        "        return Plan(promote=everything, demote=everything)\n"
    )
    with mounted(image, mnt, f"ro,epoch=20,policy={policy}") as live:
        live.expected_logs += ["WARNING: policy .*mine.py: 200 of 200 entries refused"]
        live.wait_epochs(3)
        facts = live.stat()
        assert facts["plan_refused"] >= 400
        assert (facts["policy_errors"], facts["ram_pages"]) == (0, 0)
        assert (mnt / "hello").read_text() == "hello\n"


# Images that are cut or flipped while they are mounted


NR_FILES = 60


@pytest.fixture
def wide() -> HandmadeImage:
    """Sixty files of five pages; inode file and directories lie behind them."""
    kit = ImageKit(nr_pages=1024)
    for i in range(NR_FILES):
        kit.add_file(1, b"file-%02d" % i, random_bytes(5 * PAGE_SIZE, i))
    sub = kit.add_dir(1, b"sub")
    kit.add_file(sub, b"inner", b"inner\n")
    return kit.build()


@pytest.mark.parametrize("cache", ["none", "sampled", "full"])
def test_an_image_that_is_cut_short(wide: HandmadeImage, tmp_path: Path, mnt: Path, cache: str):
    """Bytes and metadata that are gone are EIO; SIGBUS does not kill the daemon."""
    image = wide.write(tmp_path / "nvram.img")
    with mounted(image, mnt, f"cache={cache},epoch=20,ram=1M") as live:
        assert (mnt / "file-00").read_bytes() == random_bytes(5 * PAGE_SIZE, 0)
        files = [(mnt / f"file-{i:02d}").open("rb", buffering=0) for i in range(1, 4)]
        os.truncate(image, 4 * PAGE_SIZE)
        live.expected_logs += ["ERROR: .*nvram.img: cut short: no byte at"]
        for _ in range(2):
            for file in files:  # opened before: as one page, and as several
                assert error_of(os.pread, file.fileno(), 10, 0) == "EIO"
                assert error_of(os.pread, file.fileno(), 5 * PAGE_SIZE, 0) == "EIO"
            assert error_of(os.stat, mnt / "file-50") == "EIO"
            assert error_of(os.listdir, mnt / "sub") == "EIO"
            live.wait_epochs(2)
            check_alive(live)
        for file in files:
            file.close()
        live.expected_logs += ["^fuse: writing device", "fuse_read.*: fuse_reply_.* failed"]


def test_an_image_that_comes_back(wide: HandmadeImage, tmp_path: Path, mnt: Path):
    """Cut, and restored: nothing was lost, so nothing is wrong from then on."""
    image = wide.write(tmp_path / "nvram.img")
    whole = image.read_bytes()
    with mounted(image, mnt, "cache=none") as live:
        live.expected_logs += ["cut short: no byte at"]
        os.truncate(image, 4 * PAGE_SIZE)
        assert error_of(os.listdir, mnt / "sub") == "EIO"
        image.write_bytes(whole)
        assert (mnt / "file-07").read_bytes() == random_bytes(5 * PAGE_SIZE, 7)
        assert os.listdir(mnt / "sub") == ["inner"]


def test_metadata_that_is_flipped(wide: HandmadeImage, tmp_path: Path, mnt: Path):
    """What was looked at stays; what was not is found damaged; the rest is as good as ever."""
    image = wide.write(tmp_path / "nvram.img")
    with mounted(image, mnt, "cache=none") as live:
        live.expected_logs += ["ERROR: .*(checksum|seal|inode)"]
        assert (mnt / "file-01").stat().st_size == 5 * PAGE_SIZE
        flip(image, wide.inode_offset(ino_of(wide, 2)) + 40)
        assert error_of(os.stat, mnt / "file-02") == "EUCLEAN"
        assert error_of((mnt / "file-02").read_bytes) == "EUCLEAN"
        assert (mnt / "file-01").read_bytes() == random_bytes(5 * PAGE_SIZE, 1)
        assert (mnt / "file-03").read_bytes() == random_bytes(5 * PAGE_SIZE, 3)
        check_alive(live)


def test_a_directory_that_is_flipped(wide: HandmadeImage, tmp_path: Path, mnt: Path):
    image = wide.write(tmp_path / "nvram.img")
    sub = ino_of(wide, NR_FILES)
    with mounted(image, mnt) as live:
        live.expected_logs += ["ERROR: .*directory page 0 of inode"]
        flip(image, (wide.dir_block(sub) << PAGE_SHIFT) + 100)
        assert error_of(os.listdir, mnt / "sub") == "EUCLEAN"
        assert error_of(os.stat, mnt / "sub" / "inner") == "EUCLEAN"
        assert (mnt / "file-59").read_bytes() == random_bytes(5 * PAGE_SIZE, 59)


def ino_of(image: HandmadeImage, number: int) -> int:
    """The kit gives numbers in the order of its calls, the first one to the first file."""
    return INO_FIRST + number


def flip(image: Path, offset: int) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
