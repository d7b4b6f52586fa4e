"""Real programs while pages migrate: under every policy the bytes are those on tmpfs.

What the programs are, and which files they take from the mount, tells tests/kit/programs.py. The
RAM tier has room for a share of the pages that a program touches, so that policies must choose, and
epochs are so short that a run has many.
"""

import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from itertools import cycle, product
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.mount import mounted, xipfs
from tests.kit.programs import PROGRAMS, make_programs_tree
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import walk_tree
from xipfs.policy.registry import policy_names, policy_parameters
from xipfs.units import PAGE_SIZE

pytestmark = pytest.mark.fuse

MODES = ["cache=none,epoch=20", "cache=sampled,epoch=100"]
"""Under `none` every read(2) is seen; under `sampled` so is what is mapped and executed, as it is
dropped and faulted in again, for which a program needs time."""

PERCENTS = [5, 10, 30]
NR_RUNS_MAX = 100

POLICIES = policy_names()
WAYS = list(product(PROGRAMS, PERCENTS))
SHARE = [
    (policy, *way, mode)
    for policy, way, mode in zip(POLICIES, cycle(WAYS), cycle(MODES), strict=False)
]
"""Each policy once, and every way and mode with several of them."""

MATRIX = [(policy, *way, mode) for policy, way, mode in product(POLICIES, WAYS, MODES)]


class Expected(NamedTuple):
    """What a program makes of the tree on tmpfs, and how many pages of a mount it touches."""

    output: bytes
    nr_pages: int


class World(NamedTuple):
    image: Path
    programs: Mapping[str, Expected]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("programs")
    image = folder / "nvram.img"
    has_room = shutil.disk_usage("/dev/shm").free > 256 << 20  # a container may have 64 MiB there
    parent = "/dev/shm" if has_room else folder
    with tempfile.TemporaryDirectory(dir=parent, prefix="xipfs-test-") as tmpfs:
        tree = Path(tmpfs, "tree")
        make_programs_tree(tree)
        mkfs(image, walk_tree(tree), now_ns=0)
        outputs = {name: program.run(tree) for name, program in PROGRAMS.items()}
    programs = {}
    for name, output in outputs.items():
        # Each page that is touched faults once: no pte is taken away meanwhile.
        with mounted(image, folder / "mnt", "cache=full,policy=none") as live:
            assert PROGRAMS[name].run(live.path) == output
            programs[name] = Expected(output, live.vmstat("pgfault"))
    yield World(image, programs)
    image.unlink()


@pytest.mark.parametrize(("policy", "program", "percent", "mode"), SHARE)
def test_same_bytes_as_on_tmpfs(
    world: World, tmp_path: Path, policy: str, program: str, percent: int, mode: str
):
    check_program(world, tmp_path, policy, program, percent, mode)


@pytest.mark.long
@pytest.mark.parametrize(("policy", "program", "percent", "mode"), MATRIX)
def test_same_bytes_in_every_way(
    world: World, tmp_path: Path, policy: str, program: str, percent: int, mode: str
):
    check_program(world, tmp_path, policy, program, percent, mode)


def swift(policy: str) -> str:
    """Have it scan each epoch, if it scans: a run is over within the second between two scans."""
    scans = any(parameter.name == "scan_period_ms" for parameter in policy_parameters(policy))
    return f"{policy}:scan_period_ms=20" if scans else policy


def check_program(
    world: World, tmp_path: Path, policy: str, program: str, percent: int, mode: str
) -> None:
    """Run the program twice, and until pages have moved while it ran."""
    expected = world.programs[program]
    ram_bytes = expected.nr_pages * percent // 100 * PAGE_SIZE
    options = f"{mode},policy={swift(policy)},ram={ram_bytes}"
    with mounted(world.image, tmp_path / "mnt", f"ro,{options}") as live:
        for run in range(NR_RUNS_MAX):
            assert PROGRAMS[program].run(live.path) == expected.output
            facts = live.stat()
            if run and (facts["vmstat"]["pgmigrate_success"] or policy == "none"):
                break
    assert (facts["vmstat"]["pgmigrate_success"] > 0) == (policy != "none")
    assert facts["vmstat_complaints"] == []
    assert (facts["policy_errors"], facts["plan_refused"]) == (0, 0)
    assert facts["ram_pages"] <= facts["ram_frames"] == ram_bytes // PAGE_SIZE


def test_all_at_once_while_policies_take_turns(world: World, tmp_path: Path):
    """All programs in a loop, side by side, on one mount; every policy decides for a while."""
    nr_pages = max(program.nr_pages for program in world.programs.values())
    options = f"{MODES[1]},policy=none,ram={nr_pages // 20 * PAGE_SIZE}"
    wrong: list[str] = []
    done = threading.Event()

    def run_over_and_over(name: str) -> None:
        while not done.is_set():
            if PROGRAMS[name].run(live.path) != world.programs[name].output:
                wrong.append(name)

    with mounted(world.image, tmp_path / "mnt", f"ro,{options}") as live:
        runners = [threading.Thread(target=run_over_and_over, args=(name,)) for name in PROGRAMS]
        for runner in runners:
            runner.start()
        try:
            for policy in POLICIES:
                done_with = xipfs("tier", live.path, "policy", policy)
                assert done_with.returncode == 0, done_with.stderr
                live.wait_epochs(4)
                assert all(runner.is_alive() for runner in runners)
        finally:
            done.set()
            for runner in runners:
                runner.join()
        facts = live.stat()
    assert wrong == []
    assert list(facts["policies"])[-len(POLICIES) :] == POLICIES
    assert facts["vmstat"]["pgpromote_success"] > facts["ram_frames"] < facts["vmstat"]["pgdemote"]
    assert facts["vmstat_complaints"] == []
    assert (facts["policy_errors"], facts["plan_refused"]) == (0, 0)
