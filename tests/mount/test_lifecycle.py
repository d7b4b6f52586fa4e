"""How a mount begins and ends: in front and behind, by signals, by umount, by sudden death."""

import errno
import fcntl
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kit.mount import TIMEOUT_S, is_mounted, mounted, python, tear_away, xipfs
from tests.mount.conftest import make_small_image
from xipfs.fuse.client import ask

pytestmark = pytest.mark.fuse


@pytest.fixture
def daemon(image: Path, mnt: Path) -> Iterator[int]:
    """The pid of a daemon that `xipfs mount` has left behind, serving *image* at *mnt*."""
    done = xipfs("mount", image, mnt, "--log", mnt.with_name("daemon.log"))
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        yield int(ask(mnt, "stat")["pid"])
    finally:
        tear_away(mnt)


def end_by_signal(pid: int) -> None:
    """End a process that is not our child, and wait until it has."""
    process = os.pidfd_open(pid)
    signal.pidfd_send_signal(process, signal.SIGTERM)
    assert select.select([process], [], [], TIMEOUT_S)[0], "still there"
    os.close(process)


def umount(path: Path) -> None:
    subprocess.run(["umount", path], check=True, timeout=TIMEOUT_S)


def fusermount(path: Path) -> None:
    subprocess.run(["fusermount3", "-u", path], check=True, timeout=TIMEOUT_S)


def xipfs_umount(path: Path) -> None:
    done = xipfs("umount", path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def close_dead(file: int) -> None:
    """Close a file of a mount that is gone: done, whatever close(2) says about it."""
    with suppress(OSError):
        os.close(file)


# Ends


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_it_in_order(image: Path, mnt: Path, name: str):
    with mounted(image, mnt) as live:
        assert (mnt / "hello").read_text() == "hello\n"
        live.process.send_signal(signal.Signals[name])
        assert live.wait_ended() == 0
    assert list(mnt.iterdir()) == []


@pytest.mark.parametrize(
    "end", [pytest.param(umount, marks=pytest.mark.root), fusermount, xipfs_umount]
)
def test_unmounting_ends_it_in_order(image: Path, mnt: Path, end):
    with mounted(image, mnt) as live:
        assert (mnt / "hello").read_text() == "hello\n"
        end(mnt)
        assert live.wait_ended() == 0


def test_signals_that_were_ignored_when_it_was_started(image: Path, mnt: Path):
    """As by a shell that puts it behind: `xipfs mount -f .. &` has SIGINT ignored."""
    prelude = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    with mounted(image, mnt, prelude=prelude) as live:
        live.process.send_signal(signal.SIGINT)
        assert live.wait_ended() == 0


def test_two_signals(image: Path, mnt: Path):
    with mounted(image, mnt) as live:
        live.process.send_signal(signal.SIGTERM)
        live.process.send_signal(signal.SIGTERM)
        live.process.send_signal(signal.SIGINT)
        assert live.wait_ended() == 0


def test_a_signal_ends_it_though_it_is_in_use(image: Path, mnt: Path):
    """Who has a file open then finds the daemon gone; nothing is left mounted."""
    with mounted(image, mnt) as live:
        file = os.open(mnt / "hello", os.O_RDONLY)
        live.process.send_signal(signal.SIGTERM)
        assert live.wait_ended() == 0
        with pytest.raises(OSError) as caught:
            os.pread(file, 1, 0)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        close_dead(file)


def test_a_busy_mount_is_not_unmounted(image: Path, mnt: Path):
    with mounted(image, mnt), (mnt / "hello").open("rb") as file:
        done = xipfs("umount", mnt)
        assert done.returncode == 1
        assert done.stderr.startswith(f"xipfs: {mnt}: ")
        assert done.stderr.count("\n") == 1
        assert "busy" in done.stderr
        assert file.read() == b"hello\n"


def test_a_lazy_umount(image: Path, mnt: Path):
    """It is gone at once; who has a file open can go on, and the daemon ends after that."""
    with mounted(image, mnt) as live:
        with (mnt / "hello").open("rb") as file:
            done = xipfs("umount", "-l", mnt)
            assert (done.returncode, done.stderr) == (0, "")
            assert not is_mounted(mnt)
            assert file.read() == b"hello\n"
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), 4, 1) == b"ello"
        assert live.wait_ended() == 0


def test_a_hung_daemon_is_unmounted_by_force(image: Path, mnt: Path):
    """`xipfs umount` looks from a process of its own, gives up, and takes the mount away."""
    impatient = "import xipfs.fuse.mountpoint as m; m._PROBE_TIMEOUT_S = 0.5"
    with mounted(image, mnt, must_end_well=False) as live:
        live.process.send_signal(signal.SIGSTOP)
        done = xipfs("umount", mnt, prelude=impatient)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not is_mounted(mnt)
        live.process.send_signal(signal.SIGCONT)
        live.process.wait(TIMEOUT_S)


# Begins


def test_mount_returns_when_it_answers(daemon: int, mnt: Path):
    """No waiting, no trying again: the line behind `xipfs mount` may use it."""
    assert (mnt / "hello").read_text() == "hello\n"
    assert sorted(os.listdir(mnt)) == ["directory", "hello"]


def test_umount_returns_when_the_image_is_free(daemon: int, image: Path, mnt: Path):
    """It waited for the end of the daemon's socket once, while the daemon still held the lock."""
    xipfs_umount(mnt)
    with image.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_daemon_holds_on_to_nothing(daemon: int, mnt: Path):
    """No terminal, no directory, no descriptor of whoever started it."""
    proc = Path(f"/proc/{daemon}")
    assert os.readlink(proc / "cwd") == "/"
    assert [os.readlink(proc / "fd" / str(fd)) for fd in (0, 1, 2)] == ["/dev/null"] * 3
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    _parent, _group, session, terminal = map(int, fields[1:5])
    assert session != os.getsid(0)
    assert terminal == 0
    xipfs_umount(mnt)


def test_in_one_shell_command(image: Path, mnt: Path):
    """The exit status alone decides, as in any script."""
    python, image_path, mountpoint = (shlex.quote(str(p)) for p in (sys.executable, image, mnt))
    script = f"{python} -m xipfs mount {image_path} {mountpoint} && cat {mountpoint}/hello"
    try:
        done = subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    finally:
        tear_away(mnt)


@pytest.mark.parametrize("as_file", ["nvram.img", "./nvram.img", "../{}/nvram.img"])
def test_relative_paths(image: Path, mnt: Path, as_file: str):
    """The daemon leaves the directory, and still serves the image."""
    folder = image.parent
    try:
        done = xipfs("mount", as_file.format(folder.name), "mnt", cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert (mnt / "hello").read_text() == "hello\n"
        assert ask(mnt, "stat")["image"] == str(folder / as_file.format(folder.name))
        assert xipfs("umount", "mnt", cwd=folder).returncode == 0
    finally:
        tear_away(mnt)


def test_relative_policy_and_log(image: Path, mnt: Path):
    folder = image.parent
    (folder / "mine.py").write_text(
        "from xipfs.policy import Plan\n"
        "class Policy:\n"
        "    def decide(self, batch, tiers):\n"
        "        return Plan()\n"
    )
    try:
        done = xipfs(
            "mount", image, mnt, "-o", "policy=./mine.py,epoch=20", "--log", "a.log", cwd=folder
        )
        assert (done.returncode, done.stderr) == (0, "")
        facts = ask(mnt, "stat")
        assert facts["policy"] == "./mine.py"
        while ask(mnt, "stat")["epochs"] < 3:
            time.sleep(0.01)
        assert ask(mnt, "stat")["policy_errors"] == 0
        end_by_signal(facts["pid"])
        assert "SIGTERM: unmounting" in (folder / "a.log").read_text()
    finally:
        tear_away(mnt)


ODD = ["space tab\tnew\nline", "back\\slash\\040#,=", "\udcff\udcfeä€"]


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_odd_names(tmp_path: Path, name: str):
    """Of the image and of the mountpoint, as found again in the kernel's list of mounts."""
    image = make_small_image(tmp_path / f"{name}.img")
    mnt = tmp_path / name
    with mounted(image, mnt) as live:
        assert (mnt / "hello").read_text() == "hello\n"
        assert live.stat()["image"] == str(image)
        done = xipfs("stat", mnt)
        assert (done.returncode, done.stderr) == (0, "")
        assert str(image).encode(errors="backslashreplace").decode() in done.stdout
        again = xipfs("mount", image, mnt)
        assert again.returncode == 1
        assert "mounted there already" in again.stderr
        xipfs_umount(mnt)
        assert live.wait_ended() == 0


def test_a_mountpoint_that_is_a_symbolic_link(image: Path, tmp_path: Path, mnt: Path):
    link = tmp_path / "link"
    link.symlink_to(mnt)
    try:
        assert xipfs("mount", image, link).returncode == 0
        assert is_mounted(mnt)
        again = xipfs("mount", image, link)
        assert again.returncode == 1
        assert "mounted there already" in again.stderr
        assert xipfs("stat", link, "--json").returncode == 0
        xipfs_umount(link)
        assert not is_mounted(mnt)
    finally:
        tear_away(mnt)


def test_two_mounts_of_one_image(image: Path, tmp_path: Path):
    """Many readers: each has its own RAM tier."""
    a, b = tmp_path / "a", tmp_path / "b"
    with mounted(image, a, "ro") as first, mounted(image, b, "ro") as second:
        assert (first.path / "hello").read_text() == (second.path / "hello").read_text()
        assert first.stat()["pid"] != second.stat()["pid"]


def test_a_mount_is_not_stacked(image: Path, mnt: Path):
    with mounted(image, mnt):
        done = xipfs("mount", image, mnt)
        assert done.returncode == 1
        assert done.stderr == (
            f"xipfs: {mnt}: a xipfs is mounted there already: xipfs umount it first\n"
        )
        assert (mnt / "hello").read_text() == "hello\n"


# Sudden death


def test_a_killed_daemon(image: Path, mnt: Path):
    """Its mount answers ENOTCONN, and the next mount takes its place."""
    with mounted(image, mnt, must_end_well=False) as live:
        live.process.kill()
        live.process.wait()
        assert is_mounted(mnt)
        with pytest.raises(OSError) as caught:
            os.listdir(mnt)
        assert caught.value.errno == errno.ENOTCONN
        done = xipfs("mount", image, mnt)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"xipfs: {mnt}: replacing a mount whose daemon had died\n"
        assert (mnt / "hello").read_text() == "hello\n"
        xipfs_umount(mnt)
        assert not is_mounted(mnt)


def test_a_killed_daemon_behind_a_symbolic_link(image: Path, tmp_path: Path, mnt: Path):
    """The link led to a dead mount, which looked as if it did not exist."""
    link = tmp_path / "link"
    link.symlink_to("mnt")
    with mounted(image, mnt, must_end_well=False) as live:
        live.process.kill()
        live.process.wait()
        done = xipfs("mount", image, link)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"xipfs: {mnt}: replacing a mount whose daemon had died\n"
        assert (link / "hello").read_text() == "hello\n"
        xipfs_umount(link)
        assert not is_mounted(mnt)


def test_the_mount_of_a_killed_daemon_is_unmounted(image: Path, mnt: Path):
    with mounted(image, mnt, must_end_well=False) as live:
        file = os.open(mnt / "hello", os.O_RDONLY)  # even if it is in use
        live.process.kill()
        live.process.wait()
        xipfs_umount(mnt)
        assert not is_mounted(mnt)
        assert list(mnt.iterdir()) == []
        close_dead(file)


def test_a_killed_daemon_lets_its_clients_go(image: Path, mnt: Path):
    """Who waited for an answer gets an error, not patience."""
    asked = mnt.with_name("asked")
    prelude = (
        "import pathlib, time\n"
        "from xipfs.fuse.operations import Operations\n"
        f"asked = pathlib.Path({str(asked)!r})\n"
        "Operations.read = lambda self, fh, off, size: (asked.touch(), time.sleep(1000))\n"
    )
    with mounted(image, mnt, prelude=prelude, must_end_well=False) as live:
        client = subprocess.Popen(
            [sys.executable, "-c", "import sys; open(sys.argv[1], 'rb').read()", mnt / "hello"],
            stderr=subprocess.PIPE,
            text=True,
        )
        while not asked.exists():
            time.sleep(0.01)
        live.process.kill()
        _, errors = client.communicate(timeout=TIMEOUT_S)
        assert "[Errno " in errors
        assert client.returncode == 1


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("server.Adapter", "the daemon died"),
        ("server.pyfuse3.init", "the daemon died"),
        ("server.gc.collect", "mounted, but did not answer: Transport endpoint is not connected"),
    ],
)
def test_a_daemon_killed_while_it_starts(image: Path, mnt: Path, place: str, message: str):
    """The command says so in one line, and takes away what was mounted."""
    prelude = (
        "import os\n"
        "import xipfs.fuse.server as server\n"
        f"before = {place}\n"
        f"{place} = lambda *a: (before(*a), os.kill(os.getpid(), 9))\n"
    )
    try:
        done = xipfs("mount", image, mnt, prelude=prelude)
        assert done.returncode == 1
        assert done.stderr == f"xipfs: {mnt}: {message}\n"
        assert not is_mounted(mnt)
    finally:
        tear_away(mnt)


# As mount(8) calls it


def helper(*arguments: object) -> "subprocess.CompletedProcess[str]":
    script = "import sys; from xipfs.cli.mount import mount_helper; sys.exit(mount_helper())"
    done: subprocess.CompletedProcess[str] = python("-c", script, *arguments)
    return done


def test_the_helper_of_mount_8(image: Path, mnt: Path):
    """`mount -t xipfs -o .. IMAGE MNT` adds rw where nobody said ro, and flags of its own."""
    try:
        done = helper(
            image, mnt, "-s", "-n", "-v", "-o", "rw,cache=full,x-systemd.automount,nofail"
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (mnt / "hello").read_text() == "hello\n"
        assert ask(mnt, "stat")["cache"] == "full"
        done = helper(image, mnt, "-o", "ro")
        assert done.returncode == 32
        assert done.stderr.startswith(f"xipfs: {mnt}: a xipfs is mounted there already")
        xipfs_umount(mnt)
    finally:
        tear_away(mnt)


def test_the_helper_with_nothing_to_do_or_a_mistake(image: Path, mnt: Path):
    assert helper(image, mnt, "-f", "-o", "ro").returncode == 0
    assert not is_mounted(mnt)
    done = helper(image, mnt, "-f", "-o", "no_such_option")
    assert done.returncode == 32
    assert done.stderr.count("\n") == 1
    assert "no_such_option" in done.stderr
