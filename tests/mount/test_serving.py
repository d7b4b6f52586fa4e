"""What the kernel makes of a mount: trees compared, programs run, files mapped, answers kept."""

import errno
import fcntl
import mmap
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kit.mount import TIMEOUT_S, LiveMount, mounted, python, xipfs
from tests.kit.syscalls import ACL_FOR_NOBODY
from tests.kit.tree import NR_MANY
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry, walk_tree
from xipfs.fuse.mountpoint import find_mount
from xipfs.units import PAGE_SIZE

pytestmark = pytest.mark.fuse

every_cache = pytest.mark.parametrize("cache", ["none", "sampled", "full"])


def run(*command: object, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        list(map(str, command)),
        **{"capture_output": True, "text": True, "check": False, "timeout": TIMEOUT_S, **options},
    )


# The whole tree


def rsync(source: Path, target: Path) -> str:
    """What rsync would have to do to make *target* the same as *source*; checksums and all."""
    done = run("rsync", "-aHAXcn", "--delete", "--itemize-changes", f"{source}/", f"{target}/")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.root
@every_cache
def test_rsync_finds_nothing(made_tree: Path, made_image: Path, tmp_path: Path, cache: str):
    with mounted(made_image, tmp_path / "mnt", f"ro,cache={cache},epoch=20,ram=1M") as live:
        assert rsync(made_tree, live.path) == ""
        assert rsync(live.path, made_tree) == ""


def test_rsync_would_find_something(tmp_path: Path):
    """One byte, one mode, one time, one name: so the test above says something."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("byte", "mode", "time", "name"):
        (tree / name).write_bytes(b"12345")
    mkfs(tmp_path / "nvram.img", walk_tree(tree), now_ns=0)
    status = (tree / "byte").stat()
    (tree / "byte").write_bytes(b"12346")
    os.utime(tree / "byte", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tree / "mode").chmod(0o600)
    os.utime(tree / "time", (0, 0))
    (tree / "name").rename(tree / "other")
    with mounted(tmp_path / "nvram.img", tmp_path / "mnt") as live:
        found = {line.split()[-1] for line in rsync(tree, live.path).splitlines()}
        assert {"byte", "mode", "time", "name", "other"} <= found


# Programs


@every_cache
def test_programs_run(made_image: Path, tmp_path: Path, cache: str):
    """A dynamic binary, one that reads, and a #! script, twice."""
    with mounted(made_image, tmp_path / "mnt", f"ro,cache={cache},epoch=20,ram=1M") as live:
        programs = live.path / "bin"
        for _ in range(2):
            assert run(programs / "true").returncode == 0
            done = run(programs / "cat", live.path / "links" / "hard-1")
            assert (done.returncode, done.stdout) == (0, "three names")
            done = run(programs / "script", "a", "b c")
            assert (done.returncode, done.stdout) == (0, "arguments: a b c\n")


def test_noexec(made_image: Path, tmp_path: Path):
    with (
        mounted(made_image, tmp_path / "mnt", "ro,noexec") as live,
        pytest.raises(PermissionError),
    ):
        run(live.path / "bin" / "true")


# Maps


MAP = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    flags = {"shared": mmap.MAP_SHARED, "private": mmap.MAP_PRIVATE}[sys.argv[2]]
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if sys.argv[2] == "private" else 0)
    try:
        mapped = mmap.mmap(file.fileno(), 0, flags, prot)
    except OSError as exc:
        sys.exit(f"errno {exc.errno}")
    sys.stdout.buffer.write(mapped[:])
    if sys.argv[2] == "private":
        mapped[:3] = b"own"
        assert mapped[:3] == b"own" and file.read(3) != b"own"
"""


@every_cache
@pytest.mark.parametrize("kind", ["shared", "private"])
def test_maps(made_tree: Path, made_image: Path, tmp_path: Path, cache: str, kind: str):
    """MAP_SHARED of a direct-I/O file is refused by the kernel, and only that."""
    expected = (made_tree / "sizes" / "1048577").read_bytes()
    with mounted(made_image, tmp_path / "mnt", f"ro,cache={cache},ram=1M,epoch=20") as live:
        path = live.path / "sizes" / "1048577"
        done = python("-c", MAP, path, kind, text=False, errors=None)
        if (cache, kind) == ("none", "shared"):
            assert done.stderr.decode() == f"errno {errno.ENODEV}\n"
            assert done.returncode == 1
        else:
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout == expected


def test_the_message_about_maps(image: Path, mnt: Path):
    """Who asks for cache=none is told what he gives up."""
    done = xipfs("mount", image, mnt, "-o", "cache=none")
    try:
        assert done.returncode == 0
        assert re.fullmatch(r"xipfs: cache=none: .*MAP_SHARED.*\n", done.stderr)
        assert done.stderr.count("\n") == 1
    finally:
        assert xipfs("umount", mnt).returncode == 0


# What the kernel keeps


COUNT = """
import collections
import functools
from xipfs.fuse.adapter import Adapter
from xipfs.fuse.mount import Mount

counts = collections.Counter()

def counted(name, handler):
    @functools.wraps(handler)
    async def count(*arguments):
        counts[name] += 1
        return await handler(*arguments)
    return count

for name in ("lookup", "getattr", "readlink", "open", "opendir", "readdir", "read", "flush",
             "release", "statfs", "getxattr", "listxattr", "access"):
    setattr(Adapter, name, counted(name, getattr(Adapter, name)))

statistics = Mount._statistics
Mount._statistics = lambda self: statistics(self) | {"requests": dict(counts)}
"""


class Requests:
    """How many requests of each kind came since the last look; those of looking are left out."""

    def __init__(self, live: LiveMount) -> None:
        self.live = live
        self._before: dict[str, int] = {}
        self.new()

    def new(self) -> dict[str, int]:
        now = self.live.stat()["requests"]
        found = {name: count - self._before.get(name, 0) for name, count in now.items()}
        self._before = now
        found.pop("getxattr", None)  # how `stat` finds the daemon
        return {name: count for name, count in found.items() if count}


@pytest.fixture
def counting(image: Path, mnt: Path):
    """A mount that counts requests, in epochs so long that none comes."""
    with mounted(image, mnt, "epoch=3600000", prelude=COUNT) as live:
        yield Requests(live)


def test_names_that_are_not_there_are_remembered(counting: Requests, mnt: Path):
    """A program looks for its libraries in many places: each once."""
    assert not (mnt / "missing").exists()
    assert counting.new() == {"lookup": 1}
    for _ in range(5):
        assert not (mnt / "missing").exists()
    assert counting.new() == {}
    assert not (mnt / "missing-too").exists()
    assert counting.new() == {"lookup": 1}


def test_names_and_attributes_are_remembered(counting: Requests, mnt: Path):
    assert (mnt / "directory" / "inner").stat().st_size == 2
    assert counting.new() == {"lookup": 2}
    for _ in range(5):
        (mnt / "directory" / "inner").stat()
        (mnt / "directory").stat()
    assert counting.new() == {}


def test_flush_is_asked_once(counting: Requests, mnt: Path):
    """It is refused by ENOSYS, after which close(2) is no request any more."""
    for _ in range(5):
        (mnt / "hello").read_bytes()
    found = counting.new()
    assert found["flush"] == 1
    assert found["open"] == 5
    for _ in range(5):
        (mnt / "directory" / "inner").read_bytes()
    assert "flush" not in counting.new()


def test_a_listing_brings_the_attributes(made_image: Path, tmp_path: Path):
    """READDIRPLUS: looking at what was listed costs nothing."""
    with mounted(made_image, tmp_path / "mnt", "ro", prelude=COUNT) as live:
        requests = Requests(live)
        many = live.path / "many"
        with os.scandir(many) as listing:
            entries = list(listing)
        assert len(entries) == NR_MANY
        found = requests.new()
        assert found["lookup"] == 1
        assert found["readdir"] < NR_MANY / 10
        for entry in entries:
            os.lstat(entry.path)
        assert "lookup" not in requests.new()


def test_pages_are_remembered_or_not(made_image: Path, tmp_path: Path):
    """As `cache=` says: read once, at each read(2), or once until they are dropped."""
    nr_pages = 3
    for cache, nr_seen in (("full", nr_pages), ("sampled", nr_pages), ("none", 3 * nr_pages)):
        options = f"cache={cache},epoch=3600000"
        with mounted(made_image, tmp_path / cache, f"ro,{options}") as live:
            with (live.path / "sizes" / "12288").open("rb", buffering=0) as file:
                for _ in range(3):
                    file.seek(0)
                    assert len(file.read(nr_pages * PAGE_SIZE)) == nr_pages * PAGE_SIZE
            assert live.vmstat("xip_access") == nr_seen


def test_sampling_makes_readings_seen_again(made_image: Path, tmp_path: Path):
    """Each epoch drops what is cached, so that the next reading is a request again."""
    with mounted(made_image, tmp_path / "mnt", "ro,epoch=50") as live:
        path = live.path / "sizes" / "12288"
        for nr_seen in (3, 6, 9):
            while live.vmstat("xip_access") < nr_seen:
                assert len(path.read_bytes()) == 12288
        assert live.stat()["ranges_dropped"] >= 2
        assert live.stat()["epochs"] >= 2


# The mount itself


def mount_flags(live: LiveMount) -> set[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(live.path):
            return set(fields[5].split(",")) | set(line.split(" - ")[1].split()[2].split(","))
    raise AssertionError("not mounted")


def test_flags(image: Path, mnt: Path):
    with mounted(image, mnt) as live:
        assert {"rw", "nosuid", "nodev", "default_permissions"} <= mount_flags(live)
        assert "allow_other" not in mount_flags(live)
        found = find_mount(mnt)
        assert found is not None
        assert (found.fstype, found.source) == ("fuse.xipfs", str(image))


@pytest.mark.root
def test_flags_for_root(image: Path, mnt: Path):
    with mounted(image, mnt, "suid,dev,noexec,allow_other,fsname=something") as live:
        flags = mount_flags(live)
        assert {"rw", "noexec", "allow_other"} <= flags
        assert flags.isdisjoint({"nosuid", "nodev"})
        found = find_mount(mnt)
        assert found is not None
        assert found.source == "something"


@pytest.mark.root
def test_the_read_ahead_is_raised(image: Path, mnt: Path):
    """Soon after the mount, since the kernel has to have its first answer before."""
    with mounted(image, mnt) as live:
        device = os.stat(mnt).st_dev
        setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        end = time.monotonic() + TIMEOUT_S
        while setting.read_text() != "1024\n" and time.monotonic() < end:
            time.sleep(0.01)
        assert setting.read_text() == "1024\n"
        assert live.process.poll() is None


STRANGER = """
import os, sys
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
for path in sys.argv[1:]:
    try:
        with open(path) as file:
            print(repr(file.read()))
    except OSError as exc:
        print(exc.strerror)
"""


@pytest.fixture
def owned_image(tmp_path: Path) -> Path:
    """Files of root, of nobody, for all, and for nobody by an ACL; others can enter."""
    entries = [
        Entry(b"", stat.S_IFDIR | 0o755, 0, 0, 0),
        *[
            Entry(name, stat.S_IFREG | mode, uid, 0, 0, size_bytes=2, pieces=[(0, b"x\n")])
            for name, mode, uid in (
                (b"root", 0o600, 0),
                (b"nobody", 0o600, 65534),
                (b"all", 0o644, 0),
            )
        ],
        # Root's own, but for the ACL: user::rw-, user:65534:r--, group::---, mask::r--, other::---
        Entry(
            b"acl",
            stat.S_IFREG | 0o640,
            0,
            0,
            0,
            size_bytes=2,
            pieces=[(0, b"x\n")],
            xattrs={b"system.posix_acl_access": ACL_FOR_NOBODY},
        ),
    ]
    mkfs(tmp_path / "owned.img", entries, now_ns=0)
    os.chmod(tmp_path, 0o755)
    return tmp_path / "owned.img"


@pytest.fixture
def open_folder():
    """A folder that other users can reach, which pytest's own are not."""
    folder = Path(os.path.realpath("/tmp")) / f"xipfs-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("", ["Permission denied"] * 4),
        ("allow_other", ["Permission denied", "'x\\n'", "'x\\n'", "'x\\n'"]),
    ],
)
def test_other_users(owned_image: Path, open_folder: Path, options: str, found: list[str]):
    """Refused altogether, or let in as far as modes, owners and ACLs say."""
    with mounted(owned_image, open_folder / "mnt", f"ro,{options}") as live:
        done = run(
            sys.executable,
            "-c",
            STRANGER,
            *(live.path / name for name in ("root", "nobody", "all", "acl")),
        )
        assert done.stdout.splitlines() == found, done.stderr
        assert (live.path / "root").read_text() == "x\n"


def test_stat_shows_the_mount(image: Path, mnt: Path):
    with mounted(image, mnt, "ram=1M"):
        (mnt / "hello").read_bytes()
        done = xipfs("stat", mnt)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].startswith(f"image        {image}, 1 MiB")
        assert any(line.startswith("pgfault 1") for line in lines)
        assert "RAM tier     0 of 256 frames used (0 B of 1 MiB)" in lines
        assert lines[-1].startswith(". untouched")
        done = xipfs("stat", mnt, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert '"pgpromote_success": 0' in done.stdout


def test_hints_locks_and_sendfile(made_image: Path, tmp_path: Path):
    """What programs do with files beside reading them."""
    with mounted(made_image, tmp_path / "mnt", "ro") as live:
        path = live.path / "sizes" / "100000"
        with path.open("rb") as file:
            fd = file.fileno()
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            assert os.lseek(fd, 0, os.SEEK_HOLE) == 100_000
            assert os.fstat(fd).st_blksize == PAGE_SIZE
            with (tmp_path / "copy").open("wb") as target:
                assert os.sendfile(target.fileno(), fd, 0, 100_000) == 100_000
            assert (tmp_path / "copy").read_bytes() == path.read_bytes()
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
                mapped.madvise(mmap.MADV_RANDOM)
                assert mapped[50_000] == path.read_bytes()[50_000]


def test_direct_io(made_tree: Path, made_image: Path, tmp_path: Path):
    """O_DIRECT, into memory of whole pages, in any `cache=`."""
    data = (made_tree / "sizes" / "1048577").read_bytes()
    with mounted(made_image, tmp_path / "mnt", "ro") as live, mmap.mmap(-1, 1 << 20) as buffer:
        fd = os.open(live.path / "sizes" / "1048577", os.O_RDONLY | os.O_DIRECT)
        for offset in (0, PAGE_SIZE, 512 * 7, 1 << 20):
            nr_read = os.preadv(fd, [buffer], offset)
            assert buffer[:nr_read] == data[offset : offset + (1 << 20)]
        os.close(fd)


def test_a_huge_sparse_file(tmp_path: Path):
    """8 TiB with a page at both ends: its size is told, and reading costs what is read."""
    size_bytes = 8 << 40
    last = (size_bytes >> 12) - 1
    pieces = [(0, b"a" * PAGE_SIZE), (last, b"z" * PAGE_SIZE)]
    entry = Entry(b"huge", stat.S_IFREG | 0o644, 0, 0, 0, size_bytes=size_bytes, pieces=pieces)
    mkfs(tmp_path / "huge.img", [entry], now_ns=0)
    with mounted(tmp_path / "huge.img", tmp_path / "mnt", "epoch=20") as live:
        path = live.path / "huge"
        assert path.stat().st_size == size_bytes
        assert path.stat().st_blocks == 2 * PAGE_SIZE // 512
        with path.open("rb") as file:
            assert os.pread(file.fileno(), 3, 0) == b"aaa"
            assert os.pread(file.fileno(), 100, size_bytes - 3) == b"zzz"
            assert os.pread(file.fileno(), 1 << 20, size_bytes // 2) == bytes(1 << 20)
        assert live.tiers("huge")["hole"] == last - 1
        live.wait_epochs(3)
        assert live.stat()["page_table_leaves"] < 10
