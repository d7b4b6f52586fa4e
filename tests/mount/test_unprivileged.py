"""A mount by a user who is not root, through fusermount3.

Run by root, who plays the user: in mounts of its own, where /dev/fuse is open to all as on most
machines, a shell script is run by nobody. (Nobody keeps the right to read any file, since Python
may be installed where only root gets in.) If these tests are run by a user, all the others show
what these are for.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.mount.conftest import make_small_image

pytestmark = [pytest.mark.fuse, pytest.mark.root]

NOBODY = 65534

UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Whatever the script leaves behind, processes or mounts, goes with it."""

NAMESPACE = """
cd "$1"
mknod fuse c 10 229
chmod "$2" fuse
mount --bind fuse /dev/fuse
script=$3
shift 3
nobody() {
    setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=+dac_read_search \\
        --ambient-caps=+dac_read_search "$@"
}
xipfs() { "$python" -m xipfs "$@"; }
user() { nobody "$python" -m xipfs "$@"; }
daemon() { user stat mnt --json | sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p'; }
await_dead() { while nobody ls mnt >/dev/null 2>&1; do sleep 0.02; done; }
eval "$script"
"""


class Script(Protocol):
    """script("nobody ..; xipfs ..") -> its CompletedProcess.

    The script is that of a shell, run by root in the folder with nvram.img and mnt; "nobody" in
    front of a command has it run by nobody, `user` is that with `python -m xipfs`; `daemon` prints
    the pid of the one that serves mnt, `await_dead` waits until it has gone.
    """

    def __call__(
        self, script: str, *, mode: str = "666", **environment: str
    ) -> "subprocess.CompletedProcess[str]": ...


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that nobody can reach, with an image, and mnt, which is his."""
    folder = Path(os.path.realpath("/tmp")) / f"xipfs-user-{os.getpid()}"
    folder.mkdir(mode=0o755)
    (folder / "mnt").mkdir()
    os.chown(folder / "mnt", NOBODY, NOBODY)
    (folder / "roots").mkdir()
    os.chown(make_small_image(folder / "nvram.img"), NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def script(folder: Path) -> Script:
    def script(
        script: str, *, mode: str = "666", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*UNSHARE, "sh", "-e", "-c", NAMESPACE, "sh", folder, mode, script],
            env=os.environ
            | {
                "python": sys.executable,
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            }
            | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    return script


def only_line(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("xipfs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("xipfs: ").rstrip("\n")


def test_a_user_mounts_looks_and_unmounts(script: Script, folder: Path):
    done = script(
        "user mount nvram.img mnt; nobody cat mnt/hello; grep -c user_id=65534 /proc/mounts;"
        "user stat mnt | grep -c struct.pages; user umount mnt; nobody ls mnt;"
        "flock -n nvram.img true"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "hello\n1\n1\n"


def test_a_mount_of_a_user_is_for_him_alone(script: Script):
    """Not even for root, as FUSE has it; who may unmount it all the same."""
    done = script(
        "user mount nvram.img mnt; cat mnt/hello || echo refused;"
        "xipfs stat mnt || echo refused; xipfs umount mnt; grep -c user_id=65534 /proc/mounts || :;"
        "flock -w 20 nvram.img true"
    )
    assert done.stdout == "refused\nrefused\n0\n"
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("mnt: no xipfs mount: Permission denied")


def test_root_does_not_mistake_it_for_a_dead_mount(script: Script):
    """A live mount that root may not look into is not replaced."""
    done = script(
        "user mount nvram.img mnt; xipfs mount nvram.img mnt || nobody cat mnt/hello;"
        "user umount mnt"
    )
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "a xipfs is mounted there already" in done.stderr


def test_a_user_replaces_and_unmounts_what_died(script: Script):
    done = script(
        "user mount nvram.img mnt; kill -9 $(daemon); await_dead;"
        "user mount nvram.img mnt; nobody cat mnt/hello; kill -9 $(daemon); await_dead;"
        "user umount mnt; nobody ls mnt"
    )
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("mnt: replacing a mount whose daemon had died\n")


def test_a_users_signal(script: Script):
    done = script(
        "user mount -f nvram.img mnt &"
        "until grep -q $PWD/mnt.fuse.xipfs /proc/mounts; do sleep 0.05; done;"
        "nobody cat mnt/hello; kill -TERM $(daemon); wait; nobody ls mnt"
    )
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr


def test_dev_fuse_is_for_root_alone(script: Script):
    message = only_line(script("user mount nvram.img mnt", mode="600"))
    assert message == "/dev/fuse: Permission denied: ask root for access"


def test_no_fusermount3(script: Script, folder: Path):
    """A user mounts by it; libfuse would not say that it is not there."""
    (folder / "empty").mkdir()
    done = script('nobody env PATH="$PWD/empty" "$python" -m xipfs mount nvram.img mnt')
    assert only_line(done) == "fusermount3 not found: install the package fuse3"


@pytest.mark.parametrize("option", ["suid", "dev"])
def test_what_only_root_may_ask_for(script: Script, option: str):
    message = only_line(script(f"user mount nvram.img mnt -o {option}"))
    assert message == "options suid and dev are for root only"


def test_allow_other_needs_roots_permission(script: Script):
    """Unless /etc/fuse.conf says user_allow_other."""
    done = script(
        "echo > none; mount --bind none /etc/fuse.conf; user mount nvram.img mnt -o allow_other"
    )
    message = only_line(done)
    assert "mnt: cannot be mounted: fusermount3: option allow_other only allowed if" in message


def test_a_mountpoint_that_is_not_the_users(script: Script):
    message = only_line(script("user mount nvram.img roots"))
    assert "roots: cannot be mounted: fusermount3: user has no write access" in message


def test_a_user_does_not_unmount_what_is_not_his(script: Script):
    done = script(
        "xipfs mount nvram.img roots; user umount roots || cat roots/hello; xipfs umount roots"
    )
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("xipfs: ")
    assert "roots: " in done.stderr
