"""`xipfs trace record` on a real mount: every read(2) is in the file, whoever ends first."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kit.image import ImageKit
from tests.kit.mount import mounted, xipfs
from xipfs.lab.trace import open_trace, trace_facts
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SIZE

pytestmark = pytest.mark.fuse


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with a file of 8 pages, /big."""
    kit = ImageKit(nr_pages=64)
    kit.add_file(INO_ROOT, b"big", bytes(range(8)) * PAGE_SIZE)
    return kit.build().write(tmp_path / "nvram.img")


def start_recording(mnt: Path, output: Path) -> "subprocess.Popen[str]":
    """Return the recorder once it is recording."""
    process = subprocess.Popen(
        [sys.executable, "-m", "xipfs", "trace", "record", mnt, "-o", output, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == f"xipfs: recording {mnt}: Ctrl-C ends it\n"
    return process


def read_pages(path: Path, pages: list[int]) -> None:
    with path.open("rb", buffering=0) as file:
        for page in pages:
            assert len(os.pread(file.fileno(), PAGE_SIZE, page * PAGE_SIZE)) == PAGE_SIZE


def rows_of(output: Path, ino: int) -> list[dict]:
    with open_trace(output) as trace:
        return [row for row in trace.read().to_pylist() if row["file"] == ino]


def test_every_read_is_in_it(image: Path, mnt: Path, tmp_path: Path):
    output = tmp_path / "trace.parquet"
    with mounted(image, mnt, "cache=none,policy=none"):
        big = mnt / "big"
        recorder = start_recording(mnt, output)
        pages = [3, 1, 3, 0, 2]
        read_pages(big, pages)
        time.sleep(0.2)
        recorder.send_signal(signal.SIGINT)
        said, _ = recorder.communicate(timeout=30)
        ino = big.stat().st_ino
    summary = json.loads(said)
    rows = rows_of(output, ino)
    assert [(row["page"], row["nr_pages"]) for row in rows] == [(page, 1) for page in pages]
    assert {row["client"] for row in rows} == {os.getpid()}
    assert {(row["kind"], row["tier"]) for row in rows} == {("read", "nvram")}
    times = [row["time_ns"] for row in rows]
    assert times == sorted(times)
    assert summary["lost"] == 0
    with open_trace(output) as trace:
        facts = trace_facts(trace)
    assert facts["paths"][str(ino)] == "/big"
    assert facts["image"] == str(image)
    assert str(os.getpid()) in facts["clients"]
    shown = xipfs("trace", "info", output).stdout
    assert f"image      {image}" in shown


def test_a_killed_daemon_leaves_a_whole_trace(image: Path, mnt: Path, tmp_path: Path):
    output = tmp_path / "trace.parquet"
    with mounted(image, mnt, "cache=none,policy=none", must_end_well=False) as live:
        ino = (mnt / "big").stat().st_ino
        recorder = start_recording(mnt, output)
        read_pages(mnt / "big", [0, 1, 2])
        time.sleep(0.2)
        live.process.kill()
        said, complaint = recorder.communicate(timeout=30)
        assert recorder.returncode == 0, complaint
        assert [row["page"] for row in rows_of(output, ino)] == [0, 1, 2]
        assert json.loads(said)["rows"] >= 3
        xipfs("umount", mnt)


def test_what_was_hot_is_in_ram_at_the_next_mount(image: Path, mnt: Path, tmp_path: Path):
    """A recording, its profile, and a mount that begins with the pages in RAM."""
    output, profile = tmp_path / "trace.parquet", tmp_path / "hot.txt"
    with mounted(image, mnt, "cache=none,policy=none"):
        recorder = start_recording(mnt, output)
        read_pages(mnt / "big", [5, 2, 5, 7, 5, 2])
        time.sleep(0.2)
        recorder.send_signal(signal.SIGTERM)
        recorder.communicate(timeout=30)
        ino = (mnt / "big").stat().st_ino
    done = xipfs("trace", "profile", output, "-o", profile, "--pages", 2)
    assert done.stdout == f"{profile}: 2 of 3 pages\n"
    assert profile.read_text().splitlines()[1:] == [f"{ino} 5", f"{ino} 2"]
    with profile.open("a") as file:
        file.write(f"999 0\n{ino} 4000\n")  # pages that do not exist do no harm
    with mounted(image, mnt, f"policy=none,prefetch={profile}") as live:
        while live.vmstat("pgpromote_success") < 2:
            time.sleep(0.01)
        assert live.tiers("big")["ram"] == 2
        assert (mnt / "big").read_bytes() == bytes(range(8)) * PAGE_SIZE
        assert live.stat()["vmstat_complaints"] == []


def test_a_profile_that_is_none(image: Path, mnt: Path, tmp_path: Path):
    profile = tmp_path / "hot.txt"
    profile.write_text("12 0\nnonsense\n")
    done = xipfs("mount", image, mnt, "-o", f"prefetch={profile}")
    assert done.returncode == 1
    assert "line 2: 'nonsense' is no page" in done.stderr
