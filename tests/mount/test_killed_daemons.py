"""The daemon is killed while programs write: what they were told is durable is there.

A round: mount, let some workers of `tests.kit.killed` write, SIGKILL the daemon at a moment that
the seed says; mount again, which replays the journal; check what they left, unmount, fsck. One
image lives through many rounds, so that later ones find what earlier ones left.
"""

import random
import shutil
import time
from pathlib import Path

import pytest

from tests.kit.killed import Worker, check
from tests.kit.mount import mounted, xipfs
from tests.kit.operations import OPERATIONS
from xipfs.fs.mkfs import mkfs

pytestmark = pytest.mark.fuse

OPTIONS = "ram=2M,epoch=20"
"""Some pages in RAM, dirty ones among them, and pages on the move all the while."""

NR_ROUNDS = 6
NR_ROUNDS_LONG = 300

COMPANIES = [
    ("files",),
    ("files", "files", "files"),
    ("sqlite-wal",),
    ("sqlite-delete", "files"),
    ("git",),
    ("sqlite-persist", "sqlite-wal"),
]


def test_what_was_synced_survives(tmp_path: Path):
    play_rounds(tmp_path, range(NR_ROUNDS))


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 1000 + NR_ROUNDS_LONG, 30))
def test_what_was_synced_survives_300_times(tmp_path: Path, first: int):
    play_rounds(tmp_path, range(first, first + 30))


def play_rounds(tmp_path: Path, seeds: range) -> None:
    image = tmp_path / "nvram.img"
    mkfs(image, None, now_ns=0, size_bytes=128 << 20)
    nr_steps = 0
    for seed in seeds:
        nr_steps += play_round(image, tmp_path, seed)
        OPERATIONS["daemons killed"] += 1
    OPERATIONS["steps synced before that"] += nr_steps
    assert nr_steps > len(seeds), "nothing was interrupted"


def play_round(image: Path, tmp_path: Path, seed: int) -> int:
    """Return how many steps were done when the daemon died."""
    rng = random.Random(seed)
    company = COMPANIES[seed % len(COMPANIES)]
    mnt = tmp_path / "mnt"
    notes = [tmp_path / f"notes-{seed}-{i}" for i in range(len(company))]
    with mounted(image, mnt, OPTIONS, must_end_well=False) as live:
        workers = [
            Worker(kind, live.path / f"{seed}-{i}", notes[i], seed * 10 + i)
            for i, kind in enumerate(company)
        ]
        while not all(path.stat().st_size for path in notes):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.2))
        live.process.kill()
        xipfs("umount", mnt)  # who waits for a page that its notifier was after waits until then
        for worker in workers:
            worker.wait()
    with mounted(image, mnt, OPTIONS) as live:
        # The log is that of both daemons: mounted() appends.
        nr_steps = sum(
            check(kind, live.path / f"{seed}-{i}", notes[i]) for i, kind in enumerate(company)
        )
        for i in range(len(company)):
            shutil.rmtree(live.path / f"{seed}-{i}")
    checked = xipfs("fsck", image)
    assert checked.returncode == 0, f"seed {seed}: {checked.stdout}{checked.stderr}"
    return nr_steps
