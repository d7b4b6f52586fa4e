"""Epochs over a whole mount without FUSE: does what is hot come to RAM, and stay there?

The kernel's page cache is played by a set: what is in it is answered from there, and the mount sees
nothing of it, until the sampler has it dropped.
"""

from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import pytest

from tests.kit.files import DirectFiles
from tests.kit.tree import random_bytes
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import CacheMode, MountOptions
from xipfs.tiering.sampler import CacheSampler, DropRange
from xipfs.units import PAGE_SIZE

NR_FILES = 40
NR_FILE_PAGES = 64
NR_PAGES = NR_FILES * NR_FILE_PAGES
NR_HOT_PAGES = NR_PAGES // 20
HOT_FILES = range(NR_HOT_PAGES // NR_FILE_PAGES)
NR_FRAMES = NR_HOT_PAGES * 5 // 4


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 files of 64 pages; 5 % of that are two files."""
    path = tmp_path_factory.mktemp("tiering") / "nvram.img"
    size_bytes = NR_FILE_PAGES * PAGE_SIZE
    entries = [
        Entry(
            b"file-%02d" % i,
            0o100644,
            0,
            0,
            0,
            size_bytes=size_bytes,
            pieces=[(0, random_bytes(size_bytes, i))],
        )
        for i in range(NR_FILES)
    ]
    mkfs(path, entries, now_ns=0)
    return path


class Machine:
    """A mount and the kernel above it."""

    def __init__(self, image: Path, cache: CacheMode, **options) -> None:
        self.mount = Mount.open(
            image,
            MountOptions(ro=True, ram_bytes=NR_FRAMES * PAGE_SIZE, cache=cache, **options),
        )
        self.files = DirectFiles(self.mount)
        self.opened = [self.files.open(b"file-%02d" % i) for i in range(NR_FILES)]
        self.caches = cache is not CacheMode.NONE
        self.page_cache: set[tuple[int, int]] = set()
        self.nr_requests = 0

    def read(self, file: int, pgoff: int) -> None:
        """Read one page as a program does."""
        page = (self.opened[file][1].ino, pgoff)
        if page in self.page_cache:
            return
        self.nr_requests += 1
        self.mount.dispatch(
            self.files.operations.read, self.opened[file][0], pgoff * PAGE_SIZE, PAGE_SIZE
        )
        if self.caches:
            self.page_cache.add(page)

    def read_hot(self) -> None:
        for file in HOT_FILES:
            for pgoff in range(NR_FILE_PAGES):
                self.read(file, pgoff)

    def epoch(self) -> list[DropRange]:
        ranges = self.mount.run_epoch()
        for ino, pgoff, nr_pages in ranges:
            self.page_cache -= {(ino, page) for page in range(pgoff, pgoff + nr_pages)}
        return ranges

    @property
    def ratio_hot_in_ram(self) -> float:
        in_ram = sum(len(self.opened[file][1].mapping.i_pages) for file in HOT_FILES)
        return in_ram / NR_HOT_PAGES

    def check(self) -> None:
        """Whatever moved, the bytes are those of the files, and the books are right."""
        for file, opened in enumerate(self.opened):
            expected = random_bytes(NR_FILE_PAGES * PAGE_SIZE, file)
            assert self.files.read(opened, 0, len(expected)) == expected
        self.mount.mm.check_invariants()
        self.mount.machine.mem_map.check_invariants()


@pytest.fixture(params=[CacheMode.NONE, CacheMode.SAMPLED], ids=str)
def machine(request: pytest.FixtureRequest, image: Path) -> Iterator[Machine]:
    machine = Machine(image, request.param)
    yield machine
    machine.check()
    machine.mount.close()


def scan() -> Iterator[tuple[int, int]]:
    """Every page of the image in turn, over and over."""
    return cycle((file, pgoff) for file in range(NR_FILES) for pgoff in range(NR_FILE_PAGES))


def test_a_hot_loop_is_in_ram_after_ten_epochs(machine: Machine):
    for _ in range(10):
        machine.read_hot()
        machine.epoch()
    assert machine.ratio_hot_in_ram >= 0.8


@pytest.mark.parametrize("nr_scanned", [50, 500, NR_PAGES])
def test_a_scan_beside_it_does_not_push_it_out(machine: Machine, nr_scanned: int):
    """From the first epoch on, slow and fast: at worst the whole image once an epoch."""
    pages = scan()
    for epoch in range(40):
        machine.read_hot()
        for file, pgoff in islice(pages, nr_scanned):
            machine.read(file, pgoff)
        machine.epoch()
        if epoch >= 10:
            assert machine.ratio_hot_in_ram >= 0.8, f"epoch {epoch}"


@pytest.mark.parametrize("nr_scanned", [50, 500, NR_PAGES])
@pytest.mark.parametrize("budget_pages_min", [32, 160])
def test_a_large_image_is_looked_at_little_by_little(
    image: Path, monkeypatch: pytest.MonkeyPatch, budget_pages_min: int, nr_scanned: int
):
    """The same with budgets in proportion to an image of 256 MiB, or of more than a GiB."""
    monkeypatch.setattr(
        "xipfs.fuse.mount.CacheSampler",
        partial(
            CacheSampler,
            budget_pages_min=budget_pages_min,
            budget_pages_max=4 * budget_pages_min,
        ),
    )
    machine = Machine(image, CacheMode.SAMPLED)
    for _ in range(10):
        machine.read_hot()
        machine.epoch()
    assert machine.ratio_hot_in_ram >= 0.8
    pages = scan()
    for epoch in range(60):
        machine.read_hot()
        for file, pgoff in islice(pages, nr_scanned):
            machine.read(file, pgoff)
        machine.epoch()
        assert machine.ratio_hot_in_ram >= 0.8, f"epoch {epoch}"
    machine.check()
    machine.mount.close()


def test_when_the_hot_set_moves_ram_follows(machine: Machine):
    for _ in range(10):
        machine.read_hot()
        machine.epoch()
    assert machine.ratio_hot_in_ram >= 0.8
    for _ in range(30):
        for file in (10, 11):
            for pgoff in range(NR_FILE_PAGES):
                machine.read(file, pgoff)
        machine.epoch()
    in_ram = sum(len(machine.opened[file][1].mapping.i_pages) for file in (10, 11))
    assert in_ram >= 0.8 * NR_HOT_PAGES


def test_an_idle_mount_moves_nothing(machine: Machine):
    for _ in range(10):
        machine.read_hot()
        machine.epoch()
    while machine.epoch():  # what is cached is looked at, and found idle
        pass
    vmstat = machine.mount.machine.vmstat.as_dict()
    nr_requests = machine.nr_requests
    for _ in range(10):
        assert machine.epoch() == []
    assert machine.mount.machine.vmstat.as_dict() == vmstat
    assert machine.nr_requests == nr_requests
    assert machine.ratio_hot_in_ram >= 0.8, "nothing else wants the room"


def test_under_full_only_the_first_touch_is_seen(image: Path):
    machine = Machine(image, CacheMode.FULL)
    for _ in range(10):
        machine.read_hot()
        assert machine.epoch() == []
    assert machine.nr_requests == NR_HOT_PAGES
    assert machine.mount.machine.vmstat.pgpromote_success == 0
    machine.mount.close()


def test_a_sampled_epoch_costs_a_bounded_number_of_requests(image: Path):
    """A loop over everything: what is asked again is what was dropped, within the budget."""
    machine = Machine(image, CacheMode.SAMPLED)
    for file, pgoff in islice(scan(), NR_PAGES):
        machine.read(file, pgoff)
    for _ in range(5):
        dropped = sum(nr_pages for _, _, nr_pages in machine.epoch())
        assert 0 < dropped <= 4096
        nr_requests = machine.nr_requests
        for file, pgoff in islice(scan(), NR_PAGES):
            machine.read(file, pgoff)
        assert machine.nr_requests - nr_requests == min(dropped, NR_PAGES)
    machine.mount.close()


@pytest.mark.parametrize("policy", ["none", "second_chance"])
def test_a_small_budget(image: Path, policy: str):
    machine = Machine(image, CacheMode.NONE, budget_pages=7, policy=policy)
    for _ in range(30):
        before = machine.mount.machine.vmstat.pgmigrate_success
        machine.read_hot()
        machine.epoch()
        assert machine.mount.machine.vmstat.pgmigrate_success - before <= 7
    assert (machine.mount.machine.vmstat.pgpromote_success > 0) == (policy != "none")
    machine.check()
    machine.mount.close()


MINE = """
import numpy as np

from xipfs.policy import Batch, Plan, Tiers


class Policy:
    '''Promotes what was read most in this epoch, and demotes all that was not read.'''

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        pages, counts = batch.counts()
        idle = np.setdiff1d(tiers.resident, pages)
        new = ~np.isin(pages, tiers.resident)
        hottest = pages[new][np.argsort(-counts[new], kind="stable")]
        return Plan(promote=hottest[: tiers.nr_free_frames + len(idle)], demote=idle)
"""


def test_a_policy_of_the_users_own(image: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text(MINE)
    machine = Machine(image, CacheMode.NONE, policy=str(tmp_path / "mine.py"))
    machine.read_hot()
    machine.epoch()
    assert machine.ratio_hot_in_ram == 1.0
    machine.read(20, 3)
    machine.epoch()
    assert machine.ratio_hot_in_ram == 0.0
    assert set(machine.opened[20][1].mapping.i_pages) == {3}
    facts = machine.mount.statistics()
    assert (facts["policy_errors"], facts["plan_refused"]) == (0, 0)
    machine.check()
    machine.mount.close()


BROKEN = """
class Policy:
    def decide(self, batch, tiers):
        return batch.no_such_thing
"""


def test_a_policy_that_breaks_while_it_runs(image: Path, tmp_path: Path, expected_logs):
    (tmp_path / "mine.py").write_text(BROKEN)
    machine = Machine(image, CacheMode.NONE, policy=str(tmp_path / "mine.py"))
    expected_logs("policy .*mine.py failed, nothing is moved")
    for _ in range(3):
        machine.read_hot()
        machine.epoch()
    assert machine.mount.statistics()["policy_errors"] == 3
    machine.check()
    machine.mount.close()
