"""No struct page means none: a daemon's memory does not grow with the image it serves."""

from pathlib import Path

import pytest

from tests.kit.mount import LiveMount, mounted
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry
from xipfs.units import PAGE_SIZE

pytestmark = pytest.mark.fuse

NR_FILES = 1000


def make_image(path: Path, size_bytes: int) -> Path:
    """A thousand files of one page, and nothing behind them."""
    entries = [
        Entry(
            b"%02d/%03d" % (i // 50, i),
            0o100644,
            0,
            0,
            0,
            size_bytes=PAGE_SIZE,
            pieces=[(0, b"%4096d" % i)],
        )
        for i in range(NR_FILES)
    ]
    mkfs(path, entries, now_ns=0, size_bytes=size_bytes)
    return path


def rss_anon_bytes(live: LiveMount) -> int:
    for line in Path(f"/proc/{live.process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


@pytest.mark.parametrize("policy", ["second_chance", "hemem"])
def test_64_gib_cost_no_more_than_64_mib(tmp_path: Path, policy: str):
    """Before and after reading the same thousand files; 1 MiB is what chance may make of it.

    One policy knows of pages in RAM, the other counts the reads of every page; after some epochs.
    """
    found = []
    for size_bytes in (64 << 20, 64 << 30):
        image = make_image(tmp_path / "nvram.img", size_bytes)
        assert image.stat().st_size == size_bytes
        with mounted(image, tmp_path / "mnt", f"epoch=50,policy={policy}") as live:
            before = rss_anon_bytes(live)
            for i in range(NR_FILES):
                path = live.path / f"{i // 50:02d}" / f"{i:03d}"
                assert path.read_bytes() == b"%4096d" % i
            live.wait_epochs(10)
            found.append((before, rss_anon_bytes(live)))
            facts = live.stat()
            assert facts["nvram_pages"] == size_bytes // PAGE_SIZE
            assert facts["struct_pages"] == facts["ram_frames"] + 2
            assert facts["struct_page_saved_bytes"] == size_bytes // PAGE_SIZE * 64
        image.unlink()
    (small_before, small_after), (large_before, large_after) = found
    assert abs(large_before - small_before) <= 1 << 20
    assert abs(large_after - small_after) <= 1 << 20
