"""Real programs that write, on a mount: what they make is what they make on tmpfs.

Each is a function that takes an empty directory, works in it, and returns what must be the same
wherever that is. The RAM tier is small and epochs are short, so that pages migrate all the while.
An image must be sound afterwards, and hold the same after another mount.
"""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.made import made_tree
from tests.kit.mount import mounted, xipfs
from tests.kit.programs import SOURCES
from xipfs.fs.mkfs import mkfs

__all__ = ["made_tree"]

pytestmark = pytest.mark.fuse

TIMEOUT_S = 300
OPTIONS = "suid,dev,allow_other,ram=4M,epoch=50"

Program = Callable[[Path], object]


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a program to its end; it must succeed. Returns what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), "LC_ALL": "C.UTF-8"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "nvram.img"
    mkfs(path, None, now_ns=0, size_bytes=512 << 20)
    yield path
    checked = xipfs("fsck", path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    path.unlink()


def digests(tree: Path) -> dict[str, object]:
    """What stands in a tree: path -> mode and the hash of the bytes, or the target."""
    found: dict[str, object] = {}
    for path in sorted(tree.rglob("*")):
        contents = ""
        if path.is_symlink():
            contents = os.readlink(path)
        elif path.is_file():
            contents = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(tree))] = (path.lstat().st_mode, contents)
    return found


def check(program: Program, image: Path, tmp_path: Path) -> None:
    """Compare what *program* makes on a mount with what it makes on the host."""
    host = tmp_path / "host"
    host.mkdir()
    expected = program(host)
    with mounted(image, tmp_path / "mnt", OPTIONS, timeout_s=TIMEOUT_S) as live:
        (live.path / "place").mkdir()
        assert program(live.path / "place") == expected
        left = digests(live.path)
    with mounted(image, tmp_path / "mnt", OPTIONS, timeout_s=TIMEOUT_S) as live:
        assert digests(live.path) == left


# git


def git(place: Path) -> object:
    """Commits, a merge, a rebase, gc, clones; the same ids wherever that happens."""
    repo = place / "repo"
    repo.mkdir()
    seconds = iter(range(1_700_000_000, 1_800_000_000))

    def do(*arguments: object, cwd: Path = repo) -> str:
        now = f"{next(seconds)} +0000"
        people = {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "n"), ("EMAIL", "e@example.com"), ("DATE", now))
        }
        return run("git", *arguments, cwd=cwd, GIT_CONFIG_NOSYSTEM="1", **people)

    do("init", "-q", "-b", "main")
    for i in range(12):
        (repo / f"dir{i % 3}").mkdir(exist_ok=True)
        for j in range(8):
            (repo / f"dir{i % 3}" / f"file{j}").write_text(f"{i} {j}\n" * (i * j + 1))
        do("add", "-A")
        do("commit", "-q", "-m", f"commit {i}")
    do("checkout", "-q", "-b", "side", "HEAD~4")
    (repo / "side").write_text("side\n")
    do("add", "side")
    do("commit", "-q", "-m", "side")
    do("mv", "dir0/file1", "renamed")
    do("commit", "-q", "-m", "moved")
    do("checkout", "-q", "main")
    do("merge", "-q", "--no-edit", "side")
    do("checkout", "-q", "-b", "rebased", "side")
    (repo / "more").write_text("more\n")
    do("add", "more")
    do("commit", "-q", "-m", "more")
    do("rebase", "-q", "main")
    do("tag", "-a", "-m", "tag", "v1")
    do("gc", "-q", "--prune=now")
    do("fsck", "--strict", "--full")
    do("clone", "-q", repo, place / "local", cwd=place)
    do("clone", "-q", "--bare", f"file://{repo}", place / "bare", cwd=place)
    do("fsck", "--strict", cwd=place / "local")
    do("push", "-q", place / "bare", "main:refs/heads/pushed")
    assert do("status", "--porcelain") == ""
    return do("log", "--format=%H %s", "--all"), do("show-ref", cwd=place / "bare")


def test_git(image: Path, tmp_path: Path):
    check(git, image, tmp_path)


# sqlite

_WRITE_ROWS = """
import sqlite3, sys
path, mode, writer = sys.argv[1:]
db = sqlite3.connect(path, timeout=60, isolation_level=None)
db.execute(f"PRAGMA journal_mode={mode}")
for i in range(15):
    db.execute("BEGIN IMMEDIATE")
    for j in range(20):
        db.execute("INSERT INTO rows VALUES (?, ?, ?)", (int(writer), i, f"{j}" * 100))
    db.execute("UPDATE total SET count = count + 20")
    if i % 5 == 4:
        db.execute("ROLLBACK")
    else:
        db.execute("COMMIT")
db.close()
"""


def sqlite(place: Path) -> object:
    """Two processes write to one database, in each journal mode."""
    found: list[object] = []
    for mode in ("DELETE", "TRUNCATE", "PERSIST", "WAL"):
        path = place / f"{mode}.sqlite"
        db = sqlite3.connect(path)
        assert db.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode.lower(),)
        db.execute("CREATE TABLE rows (writer INTEGER, turn INTEGER, text TEXT)")
        db.execute("CREATE TABLE total (count INTEGER)")
        db.execute("INSERT INTO total VALUES (0)")
        db.commit()
        command = [sys.executable, "-c", _WRITE_ROWS, path, mode]
        writers = [subprocess.Popen([*command, f"{i}"]) for i in range(2)]
        assert [writer.wait(TIMEOUT_S) for writer in writers] == [0, 0]
        found.append(db.execute("PRAGMA integrity_check").fetchall())
        found.append(db.execute("SELECT count FROM total").fetchall())
        found.append(db.execute("SELECT * FROM rows ORDER BY 1, 2, 3").fetchall())
        db.execute("DELETE FROM rows WHERE turn % 2")
        db.commit()
        db.execute("VACUUM")
        found.append(db.execute("PRAGMA integrity_check").fetchall())
        db.close()
    return found


def test_sqlite(image: Path, tmp_path: Path):
    check(sqlite, image, tmp_path)


# A C project

_MAKEFILE = """
CFLAGS = -O1 -g
OBJECTS = main.o table.o
counts: $(OBJECTS)
\t$(CC) -o $@ $^
$(OBJECTS): table.h
clean:
\trm -f counts $(OBJECTS)
.PHONY: clean
"""


def build(place: Path) -> object:
    """What is newer is left alone, and what is not is made: by the mtimes of this filesystem."""
    for name, text in SOURCES.items():
        (place / name).write_text(text)
    (place / "Makefile").write_text(_MAKEFILE)
    run("make", "-j2", cwd=place)
    output = run(place / "counts", cwd=place)
    assert "up to date" in run("make", cwd=place)
    os.utime(place / "table.h")
    assert run("make", cwd=place).count(" -c ") == 2
    (place / "main.c").write_text(SOURCES["main.c"].replace("10000", "5000"))
    assert run("make", cwd=place).count(" -c ") == 1
    run("strip", place / "counts", cwd=place)
    output += run(place / "counts", cwd=place)
    run("make", "clean", cwd=place)
    return output, sorted(os.listdir(place))


def test_make(image: Path, tmp_path: Path):
    check(build, image, tmp_path)


# pip


def make_wheel(path: Path) -> Path:
    """A wheel of a package with many modules, data, and a command."""
    files = {f"manifold/module{i}.py": f"NUMBER = {i}\n" * (i + 1) for i in range(60)}
    files["manifold/__init__.py"] = (
        "import importlib\n"
        "def main():\n"
        "    names = [f'manifold.module{i}' for i in range(60)]\n"
        "    print(sum(importlib.import_module(name).NUMBER for name in names))\n"
    )
    files["manifold/data/blob"] = "blob" * 100_000
    about = "manifold-1.0.dist-info"
    files[f"{about}/METADATA"] = "Metadata-Version: 2.1\nName: manifold\nVersion: 1.0\n"
    files[f"{about}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{about}/entry_points.txt"] = "[console_scripts]\nmanifold = manifold:main\n"
    record = "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"])
    wheel = path / "manifold-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{about}/RECORD": record}.items():
            archive.writestr(name, text)
    return wheel


def install(place: Path, *, with_pip: bool = False) -> object:
    """A virtual environment, into which a wheel is installed, and whose command is run."""
    wheel = make_wheel(place)
    venv = place / "venv"
    run(sys.executable, "-m", "venv", *([] if with_pip else ["--without-pip"]), venv, cwd=place)
    python = venv / "bin" / "python"
    pip = [python, "-m", "pip"] if with_pip else [sys.executable, "-m", "pip", "--python", python]
    quiet = ["--no-index", "--disable-pip-version-check", "--no-cache-dir"]
    run(*pip, "install", *quiet, wheel, cwd=place)
    output = run(venv / "bin" / "manifold", cwd=place)
    run(*pip, "uninstall", "--disable-pip-version-check", "-y", "manifold", cwd=place)
    packages = next((venv / "lib").glob("python*")) / "site-packages"
    return output, [path.name for path in packages.glob("manifold*")]


def test_pip(image: Path, tmp_path: Path):
    check(install, image, tmp_path)


@pytest.mark.long
def test_pip_of_the_venv_itself(image: Path, tmp_path: Path):
    check(lambda place: install(place, with_pip=True), image, tmp_path)


# Copies


@pytest.mark.parametrize("left_out", ["/many", pytest.param("/none", marks=pytest.mark.long)])
def test_rsync_and_tar_round_trips(image: Path, tmp_path: Path, made_tree: Path, left_out: str):
    """Owners, modes, times in ns, links, holes, attributes, devices, any name: all come back."""
    copy = ["rsync", "-aHX", f"--exclude={left_out}"]
    compare = [*copy, "-nci", "--delete"]
    with mounted(image, tmp_path / "mnt", OPTIONS, timeout_s=TIMEOUT_S) as live:
        here = live.path / "tree"
        run(*copy, f"{made_tree}/", f"{here}/", cwd=tmp_path)
        run(
            "rsync",
            "-aHXS",
            "--inplace",
            f"{made_tree}/sizes/",
            f"{live.path}/again/",
            cwd=tmp_path,
        )
        (live.path / "tar").mkdir()
        script = (
            f"tar -C {made_tree} --exclude=.{left_out} --xattrs --format=posix -cf - . | "
            f"tar -C {live.path}/tar --xattrs --xattrs-include='*' -xpf -"
        )
        run("bash", "-o", "pipefail", "-c", script, cwd=tmp_path)
        run("rm", "-r", live.path / "again", cwd=tmp_path)
    with mounted(image, tmp_path / "mnt", OPTIONS, timeout_s=TIMEOUT_S) as live:
        assert run(*compare, f"{made_tree}/", f"{live.path}/tree/", cwd=tmp_path) == ""
        # tar keeps no sockets.
        kept = [*compare, "--exclude=/special/socket", "--omit-dir-times"]
        assert run(*kept, f"{made_tree}/", f"{live.path}/tar/", cwd=tmp_path) == ""


# fio

FIO = {
    "random": ["--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned"],
    "mixed": ["--rw=randrw", "--bs=4k", "--numjobs=2"],
    "mapped": ["--rw=randwrite", "--bs=4k", "--ioengine=mmap", "--fsync=32"],
    "appended": ["--rw=write", "--bs=100k", "--fallocate=none", "--end_fsync=1"],
    "direct": ["--rw=randwrite", "--bs=8k", "--direct=1"],
    "overwritten": ["--rw=randwrite", "--bs=16k", "--fsync=16", "--overwrite=1"],
}


def fio(place: Path, name: str, size: str) -> None:
    """Blocks carry a checksum of themselves and where they belong; all are read back."""
    run(
        "fio", f"--name={name}", f"--directory={place}", f"--size={size}", *FIO[name],
        "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0",
        "--randseed=7", cwd=place,
    )  # fmt: skip


@pytest.mark.parametrize("name", FIO)
def test_fio(image: Path, tmp_path: Path, name: str):
    with mounted(image, tmp_path / "mnt", OPTIONS, timeout_s=TIMEOUT_S) as live:
        fio(live.path, name, "2m")


@pytest.mark.long
@pytest.mark.parametrize("name", FIO)
def test_fio_64_mib(image: Path, tmp_path: Path, name: str):
    with mounted(image, tmp_path / "mnt", OPTIONS, timeout_s=TIMEOUT_S) as live:
        fio(live.path, name, "64m")


# stress-ng

STRESSORS = [
    "access", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dirmany", "dup",
    "fcntl", "filename", "flock", "fsize", "fstat", "getdent", "handle", "hdd", "io", "iomix",
    "lease", "link", "locka", "lockf", "lockofd", "mknod", "msync", "open", "readahead", "rename",
    "revio", "seek", "sendfile", "symlink", "sync-file", "touch", "utime", "xattr",
]  # fmt: skip

_OPS = {
    "chdir": 20,
    "link": 2,
    "symlink": 2,
    "xattr": 5,
    "copy-file": 20,
    "dirmany": 1,
    "dirdeep": 50,
    "hdd": 50,
    "iomix": 50,
    "fsize": 5,
    "io": 3,
}
_SMALL = {
    "chdir": ("--chdir-dirs", "64"),
    "copy-file": ("--copy-file-bytes", "128M"),  # it takes no less
    "dirdeep": ("--dirdeep-inodes", "300"),
    "hdd": ("--hdd-bytes", "4M"),
    "iomix": ("--iomix-bytes", "2M"),
    "msync": ("--msync-bytes", "1M"),
    "readahead": ("--readahead-bytes", "4M"),
    "revio": ("--revio-bytes", "4M"),
    "seek": ("--seek-size", "4M"),
    "sendfile": ("--sendfile-size", "1M"),
    "sync-file": ("--sync-file-bytes", "4M"),
}
_NOT_IMPLEMENTED = 4  # says stress-ng where a kernel lacks what it stresses


def stress(place: Path, name: str, factor: int) -> None:
    nr_ops = _OPS.get(name, 200) * factor
    command = ["stress-ng", "--temp-path", place, "--verify", "--timeout", "15"]
    done = subprocess.run(
        [*command, *_SMALL.get(name, ()), f"--{name}", "1", f"--{name}-ops", str(nr_ops)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode in (0, _NOT_IMPLEMENTED), f"{name}: {done.stdout}"
    assert list(place.iterdir()) == []


def test_stress_ng(image: Path, tmp_path: Path):
    with mounted(image, tmp_path / "mnt", OPTIONS, timeout_s=TIMEOUT_S) as live:
        for name in STRESSORS[::4]:
            stress(live.path, name, 1)


@pytest.mark.long
@pytest.mark.parametrize("name", STRESSORS)
def test_stress_ng_each(image: Path, tmp_path: Path, name: str):
    with mounted(image, tmp_path / "mnt", OPTIONS, timeout_s=TIMEOUT_S) as live:
        stress(live.path, name, 5)


# The tools that all of this needs, for a clear word where one is missing.


@pytest.mark.parametrize(
    "tool", ["git", "make", "gcc", "strip", "rsync", "tar", "fio", "stress-ng"]
)
def test_tools_are_there(tool: str):
    assert shutil.which(tool), f"{tool} is missing: tools/setup brings it"
