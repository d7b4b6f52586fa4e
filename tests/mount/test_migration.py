"""Pages that move under real readers: hot ones come to RAM and stay, and no byte is ever wrong."""

import hashlib
import mmap
import os
import signal
import threading
from itertools import cycle, islice
from pathlib import Path

import pytest

from tests.kit.mount import LiveMount, mounted
from tests.kit.tree import random_bytes, walk
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry
from xipfs.fuse.client import ask
from xipfs.units import PAGE_SIZE

pytestmark = pytest.mark.fuse

NR_FILES = 40
NR_FILE_PAGES = 256
HOT = [b"file-00", b"file-01"]
NR_HOT_PAGES = len(HOT) * NR_FILE_PAGES


@pytest.fixture(scope="module")
def large_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 files of 1 MiB; 5 % of that are two."""
    path = tmp_path_factory.mktemp("migration") / "nvram.img"
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


CHURN = """
import numpy as np

from xipfs.policy import Batch, Plan, Tiers


class Policy:
    # Never at rest: all that is in RAM goes, and of what was read comes what finds room.
    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        pages = np.setdiff1d(batch.page, tiers.resident)
        pages = np.roll(pages, 17 * tiers.epoch)[: tiers.nr_ram_frames]
        return Plan(promote=pages, demote=tiers.resident)
"""


@pytest.fixture
def churn(tmp_path: Path) -> str:
    """The option for a policy that keeps all of the RAM tier moving."""
    (tmp_path / "churn.py").write_text(CHURN)
    return f"policy={tmp_path / 'churn.py'}"


def read_whole(live: LiveMount, name: bytes) -> bytes:
    return (live.path / os.fsdecode(name)).read_bytes()


def hot_ratio(live: LiveMount) -> float:
    """How much of the hot files is in RAM frames, as the files themselves tell."""
    return sum(live.tiers(os.fsdecode(name))["ram"] for name in HOT) / NR_HOT_PAGES


@pytest.mark.parametrize("cache", ["none", "sampled"])
def test_a_hot_loop_and_a_scan_beside_it(large_image: Path, tmp_path: Path, cache: str):
    """5 % of the image, reread: in RAM after ten epochs; and a scan of the rest changes nothing.

    The loop waits for the next epoch after each round, so that nothing here depends on how fast
    the machine is: in whatever time, each page is read at least once in each round.
    """
    options = f"cache={cache},epoch=100,ram={NR_HOT_PAGES * PAGE_SIZE * 5 // 4}"
    with mounted(large_image, tmp_path / "mnt", f"ro,{options}") as live:
        for _ in range(10):
            for name in HOT:
                read_whole(live, name)
            live.wait_epochs(1)
        live.wait_epochs(1)  # what the last one decided has been done
        assert hot_ratio(live) >= 0.8
        scan = cycle([b"file-%02d" % i for i in range(2, NR_FILES)])
        for _ in range(15):
            for name in HOT:
                read_whole(live, name)
            for name in islice(scan, 10):  # all of the image in four rounds
                read_whole(live, name)
            live.wait_epochs(1)
            assert hot_ratio(live) >= 0.8
        facts = live.stat()
        assert (facts["policy_errors"], facts["plan_refused"]) == (0, 0)
        assert facts["access_ranges_lost"] == 0
        assert facts["ram_pages"] == facts["ram_frames"] - facts["ram_free_frames"]


@pytest.mark.parametrize("cache", ["none", "sampled", "full"])
def test_no_byte_is_wrong_while_pages_migrate(
    made_tree: Path, made_image: Path, tmp_path: Path, cache: str, churn: str
):
    """Four readers over the whole tree, epochs of 20 ms, and a RAM tier much too small for it.

    The readers drop what they have read from the page cache, so that under `full` too every round
    reaches the mount.
    """
    files = [
        path
        for path in walk(made_tree)
        if not path.startswith((b"many/", b"special/"))
        and os.path.isfile(os.fsencode(made_tree) + b"/" + path)
        and not os.path.islink(os.fsencode(made_tree) + b"/" + path)
    ]
    expected = {path: digest(os.fsencode(made_tree) + b"/" + path) for path in files}
    with mounted(made_image, tmp_path / "mnt", f"ro,cache={cache},epoch=20,ram=1M,{churn}") as live:
        wrong: list[bytes] = []
        done = threading.Event()
        readers = [
            threading.Thread(target=read_until, args=(live, expected, start, wrong, done))
            for start in range(4)
        ]
        for reader in readers:
            reader.start()
        try:
            while live.vmstat("pgpromote_success") < 4000 or live.vmstat("pgdemote") < 4000:
                assert all(reader.is_alive() for reader in readers)
                live.wait_epochs(1)
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert wrong == []
        facts = live.stat()
        assert facts["vmstat"]["xip_insert_page"] > 0
        assert facts["vmstat"]["pgmigrate_fail"] == 0
        assert (facts["policy_errors"], facts["plan_refused"]) == (0, 0)


def digest(path: bytes) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        found = hashlib.sha256()
        offset = 0
        while part := os.pread(fd, 1 << 20, offset):
            found.update(part)
            offset += len(part)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    return found.digest()


def read_until(
    live: LiveMount,
    expected: dict[bytes, bytes],
    start: int,
    wrong: list[bytes],
    done: threading.Event,
) -> None:
    """Read all files over and over, each reader in another order."""
    paths = list(expected)
    paths = paths[start * len(paths) // 4 :] + paths[: start * len(paths) // 4]
    while not done.is_set():
        wrong += [
            path for path in paths if digest(os.fsencode(live.path) + b"/" + path) != expected[path]
        ]


def test_what_is_mapped_stays_right_while_it_moves(large_image: Path, tmp_path: Path, churn: str):
    """A map of a file whose pages are dropped and migrated faults them in again."""
    expected = random_bytes(NR_FILE_PAGES * PAGE_SIZE, 0)
    with (
        mounted(large_image, tmp_path / "mnt", f"ro,epoch=20,ram=512K,{churn}") as live,
        (live.path / "file-00").open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        while live.vmstat("pgdemote") < 1000:
            assert mapped[:] == expected
            assert read_whole(live, b"file-00") == expected


def test_when_the_hot_set_moves_ram_follows(large_image: Path, tmp_path: Path):
    """What was hot makes room for what is, and is as right from NVRAM as it was from RAM."""
    with mounted(large_image, tmp_path / "mnt", "ro,cache=none,epoch=20,ram=1M") as live:
        while live.tiers("file-00")["ram"] < 200:
            read_whole(live, b"file-00")
            live.wait_epochs(1)
        before = live.stat()
        while live.tiers("file-01")["ram"] < 200:
            read_whole(live, b"file-01")
            live.wait_epochs(1)
        after = live.stat()
        assert after["vmstat"]["pgdemote"] > before["vmstat"]["pgdemote"]
        assert live.tiers("file-00")["ram"] <= 56
        assert read_whole(live, b"file-00") == random_bytes(NR_FILE_PAGES * PAGE_SIZE, 0)


PROMOTE = """
import numpy as np

from xipfs.policy import Plan


class Policy:
    def __init__(self, *, file: int = 0) -> None:
        self.pages = (file << 32) + np.arange(256)

    def decide(self, batch, tiers):
        return Plan(promote=np.setdiff1d(self.pages, tiers.resident))
"""


def promote_file(live: LiveMount, tmp_path: Path, fd: int) -> None:
    """Have the policy promote all pages of an open file."""
    (tmp_path / "promote.py").write_text(PROMOTE)
    ino = os.fstat(fd).st_ino
    ask(live.path, "policy", policy=f"{tmp_path / 'promote.py'}:file={ino}")
    while live.vmstat("pgpromote_success") < NR_FILE_PAGES:
        live.wait_epochs(1)


def reads_of(live: LiveMount, fd: int, page: int) -> int:
    """Read a page; return how many pages the mount was asked for because of that."""
    before = live.vmstat("xip_access")
    found = os.pread(fd, PAGE_SIZE, page * PAGE_SIZE)
    start = page * PAGE_SIZE
    assert found == random_bytes(NR_FILE_PAGES * PAGE_SIZE, 0)[start : start + PAGE_SIZE]
    return live.vmstat("xip_access") - before


def test_promoted_pages_are_pushed(large_image: Path, tmp_path: Path):
    """Nobody read them, and yet the kernel has them: no request comes for any."""
    options = "cache=full,epoch=20,policy=none,promoted=push"
    with mounted(large_image, tmp_path / "mnt", f"ro,{options}") as live:
        fd = os.open(live.path / "file-00", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        promote_file(live, tmp_path, fd)
        # The notifier may not have come to the end yet; it goes from front to back.
        last = next(page for page in range(255, 0, -1) if not reads_of(live, fd, page))
        assert [reads_of(live, fd, page) for page in range(0, last, 7)] == [0] * len(
            range(0, last, 7)
        )
        os.close(fd)


def test_promoted_pages_are_dropped(large_image: Path, tmp_path: Path):
    """The kernel had them all; their next use is seen again, under cache=full too."""
    options = "cache=full,epoch=20,policy=none,promoted=drop"
    with mounted(large_image, tmp_path / "mnt", f"ro,{options}") as live:
        fd = os.open(live.path / "file-00", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(fd, NR_FILE_PAGES * PAGE_SIZE, 0)
        assert reads_of(live, fd, 255) == 0
        promote_file(live, tmp_path, fd)
        while not reads_of(live, fd, 255):
            live.wait_epochs(1)
        assert [reads_of(live, fd, page) for page in (0, 100, 254)] == [1, 1, 1]
        os.close(fd)


@pytest.mark.parametrize("cache", ["none", "sampled", "full"])
def test_an_end_amid_readers(made_tree: Path, made_image: Path, tmp_path: Path, cache: str):
    """SIGTERM while pages are read, dropped and migrated: an end in order, errors for readers.

    The notifier may just be waiting for a page that only we can bring.
    """
    files = [b"sizes/1048577", b"sizes/5000001", b"sparse/torn", b"sizes/100000"]
    expected = {path: digest(os.fsencode(made_tree) + b"/" + path) for path in files}
    with mounted(made_image, tmp_path / "mnt", f"ro,cache={cache},epoch=10,ram=1M") as live:
        ended: list[OSError] = []

        def read_to_the_end(start: int) -> None:
            try:
                read_until(live, expected, start, [], threading.Event())
            except OSError as exc:
                ended.append(exc)

        readers = [threading.Thread(target=read_to_the_end, args=(i,)) for i in range(4)]
        for reader in readers:
            reader.start()
        live.wait_epochs(10)
        live.process.send_signal(signal.SIGTERM)
        assert live.wait_ended() == 0
        for reader in readers:
            reader.join()
        assert len(ended) == 4
