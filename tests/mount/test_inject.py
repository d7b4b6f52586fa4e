"""`-o inject` through the kernel: reads take at least what they cost, and give the same bytes.

Only lower bounds: a wait cannot be shorter than it is.
"""

import mmap
import os
import time
from pathlib import Path

import pytest

from tests.kit.mount import mounted, xipfs
from tests.kit.tree import random_bytes
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry
from xipfs.phys.media import RAM_AND_NVRAM
from xipfs.units import PAGE_SIZE

pytestmark = pytest.mark.fuse

NR_PAGES = 256


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """One file of 1 MiB."""
    size_bytes = NR_PAGES * PAGE_SIZE
    pieces = [(0, random_bytes(size_bytes, 1))]
    entry = Entry(b"file", 0o100644, 0, 0, 0, size_bytes=size_bytes, pieces=pieces)
    mkfs(tmp_path / "nvram.img", [entry], now_ns=0)
    return tmp_path / "nvram.img"


@pytest.mark.parametrize("cost", ["nor", "pcm"])
def test_reads_take_what_the_pages_cost(image: Path, tmp_path: Path, cost: str):
    """Page by page (nor: 40 us, looks at the clock), then all at once (10 ms, sleeps)."""
    expected = random_bytes(NR_PAGES * PAGE_SIZE, 1)
    least_s = NR_PAGES * RAM_AND_NVRAM[cost][1].read_ns / 1e9
    with mounted(image, tmp_path / "mnt", f"cache=none,policy=none,cost={cost},inject") as live:
        fd = os.open(live.path / "file", os.O_RDONLY)
        whole = mmap.mmap(-1, NR_PAGES * PAGE_SIZE)  # aligned, or a page would be asked for twice
        start_s = time.perf_counter()
        pages = [os.pread(fd, PAGE_SIZE, i * PAGE_SIZE) for i in range(NR_PAGES)]
        middle_s = time.perf_counter()
        os.preadv(fd, [whole], 0)
        end_s = time.perf_counter()
        os.close(fd)
        assert b"".join(pages) == whole[:] == expected
        assert middle_s - start_s >= least_s
        assert end_s - middle_s >= least_s
        bill = live.stat()["cost"]
        assert (bill["model"], bill["inject"], bill["accesses"]) == (cost, True, 2 * NR_PAGES)
        shown = xipfs("stat", live.path).stdout
        assert f"cost model   {cost}, really waited for: RAM is DRAM, " in shown


def test_pages_in_ram_are_quicker_by_the_model(image: Path, tmp_path: Path):
    """The daemon says so on its own clock: the host's is too coarse for a fair test."""
    with mounted(image, tmp_path / "mnt", "cache=none,epoch=20,cost=nor,inject,ram=4M") as live:
        data = b""
        for _ in range(20):
            data = (live.path / "file").read_bytes()
            live.wait_epochs(1)
            if live.tiers("file")["ram"] == NR_PAGES:
                break
        assert live.tiers("file")["ram"] == NR_PAGES
        before = live.stat()["cost"]
        assert (live.path / "file").read_bytes() == data == random_bytes(NR_PAGES * PAGE_SIZE, 1)
        after = live.stat()["cost"]
        assert after["access_nvram_ns"] == before["access_nvram_ns"]
        assert after["access_ram_ns"] > before["access_ram_ns"]
        assert after["migration_ns"] > 0
