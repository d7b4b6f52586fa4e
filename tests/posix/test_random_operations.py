"""Random operations on a mount and on tmpfs, side by side: see tests/kit/twins.py."""

import ast
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.mount import mounted, xipfs
from tests.kit.operations import OPERATIONS
from tests.kit.twins import Op, Side, compare, generate, shrink
from xipfs.fs.mkfs import mkfs

NR_OPS = 400
"""In a sequence: enough for files to have a history, and few enough to be made short."""

NR_SEQUENCES = 20
NR_SEQUENCES_LONG = 2500
"""A million operations, less those that are played by several at once."""

OPTIONS = "suid,dev,ram=1M,epoch=20"
"""A RAM tier for some of the pages, and epochs so short that they migrate all the while."""


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """An image that must be sound when all is done."""
    path = tmp_path / "nvram.img"
    mkfs(path, None, now_ns=0, size_bytes=64 << 20)
    yield path
    checked = xipfs("fsck", path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A directory that others may enter."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="xipfs-test-") as path:
        yield Path(path)


def play(seeds: range, ours: Side, theirs: Side, nr_workers: int) -> None:
    for seed in seeds:
        ops = generate(seed, NR_OPS, nr_workers=nr_workers)
        OPERATIONS["system calls on two filesystems"] += len(ops)
        found = compare(ops, ours, theirs)
        if found is not None:
            made_by = f"generate({seed}, {NR_OPS}, nr_workers={nr_workers})"
            report(ops, ours, theirs, f"{made_by}: {found}")


def report(ops: list[Op], ours: Side, theirs: Side, said: str) -> None:
    """Fail with what was found, and the shortest sequence that differs."""
    ops = shrink(ops, lambda ops: compare(ops, ours, theirs) is not None)
    found = compare(ops, ours, theirs) or "sometimes only"
    lines = "\n".join(f"    {op}," for op in ops)
    pytest.fail(f"{said}\nshorter: {found}\nreplay = [\n{lines}\n]", pytrace=False)


@pytest.mark.root
@pytest.mark.parametrize("parent", ["/dev/shm", "/var/tmp"])
def test_the_filesystems_of_linux_agree(tmpfs: Path, parent: str):
    """Else the tests below would ask for more than a filesystem has to promise."""
    with (
        tempfile.TemporaryDirectory(dir=parent, prefix="xipfs-test-") as other,
        Side(tmpfs) as ours,
        Side(Path(other)) as theirs,
    ):
        play(range(NR_SEQUENCES), ours, theirs, 3)


_KEEPS_ATTRIBUTES = """
import xipfs.fuse.operations
xipfs.fuse.operations.Operations.removexattr = lambda *_: None
"""


@pytest.mark.fuse
@pytest.mark.root
def test_a_difference_is_found_and_made_short(image: Path, tmpfs: Path, tmp_path: Path):
    """By this daemon, which only says that it has removed an attribute."""
    with (
        mounted(image, tmp_path / "mnt", prelude=_KEEPS_ATTRIBUTES) as live,
        Side(tmpfs) as ours,
        Side(live.path) as theirs,
        pytest.raises(pytest.fail.Exception) as caught,
    ):
        play(range(NR_SEQUENCES), ours, theirs, 3)
    replay = str(caught.value).partition("replay = ")[2]
    assert [op[1] for op in ast.literal_eval(replay)] == ["open", "removexattr"]


@pytest.mark.fuse
@pytest.mark.root
def test_several_processes_one_operation_at_a_time(image: Path, tmpfs: Path, tmp_path: Path):
    check_in_turns(image, tmpfs, tmp_path, range(NR_SEQUENCES))


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.long
def test_several_processes_one_operation_at_a_time_a_million(
    image: Path, tmpfs: Path, tmp_path: Path
):
    for start in range(0, NR_SEQUENCES_LONG, 25):
        check_in_turns(image, tmpfs, tmp_path, range(start, start + 25))


def check_in_turns(image: Path, tmpfs: Path, tmp_path: Path, seeds: range) -> None:
    """Play on one mount; what the last sequence leaves must be there after another mount."""
    with Side(tmpfs) as ours:
        with mounted(image, tmp_path / "mnt", OPTIONS) as live, Side(live.path) as theirs:
            play(seeds, ours, theirs, 3)
            left = theirs.kept
            theirs.enter("/")
        with mounted(image, tmp_path / "mnt", OPTIONS), Side(tmp_path) as theirs:
            assert left is not None
            theirs.enter(str(left))
            assert theirs.ask(0, [(0, "tree")]) == ours.ask(0, [(0, "tree")])


@pytest.mark.fuse
@pytest.mark.root
def test_several_processes_at_once(image: Path, tmpfs: Path, tmp_path: Path):
    """Each in a directory of its own: the daemon serves them in any order."""
    failures: list[str] = []

    def run(number: int, parent: Path) -> None:
        seeds = range(1_000_000 + number * 1000, 1_000_000 + number * 1000 + NR_SEQUENCES // 4)
        with Side(tmpfs, nr_workers=1) as ours, Side(parent, nr_workers=1) as theirs:
            try:
                play(seeds, ours, theirs, 1)
            except pytest.fail.Exception as exc:
                failures.append(str(exc))

    with mounted(image, tmp_path / "mnt", OPTIONS) as live:
        threads = [threading.Thread(target=run, args=(i, live.path)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, "\n".join(failures)
