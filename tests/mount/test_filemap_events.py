"""Reads that the kernel's page cache answers are seen all the same, where there are tracepoints."""

import mmap
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.mount import LiveMount, mounted, xipfs
from xipfs.tiering.filemap_events import TRACEFS

pytestmark = [pytest.mark.fuse, pytest.mark.root]

EVENT = TRACEFS / "events" / "filemap" / "mm_filemap_get_pages"


@pytest.fixture(scope="module", autouse=True)
def tracefs() -> Iterator[None]:
    """Debian mounts it when it boots, a container does not."""
    mounts = not (TRACEFS / "events").exists()
    if mounts:
        subprocess.run(["mount", "-t", "tracefs", "nodev", TRACEFS], check=True)
    if not EVENT.exists():
        pytest.skip("needs Linux 6.12")
    yield
    if mounts:
        subprocess.run(["umount", "--lazy", TRACEFS], check=True)  # other mounts may use it


def instance(live: LiveMount) -> Path:
    return TRACEFS / "instances" / f"xipfs-{live.stat()['pid']}"


def test_cached_reads_are_told(image: Path, mnt: Path):
    """One page is read again and again; no request comes, and yet it is promoted."""
    with mounted(image, mnt, "epoch=20,cache=sampled") as live:
        with (mnt / "hello").open("rb", buffering=0) as file:
            while not live.tiers("hello")["ram"]:
                for _ in range(100):
                    file.seek(0)
                    assert file.read(6) == b"hello\n"
        facts = live.stat()
        assert facts["sees_reads"]
        assert facts["reads_told"] > 0
        assert "pages read from the page cache" in xipfs("stat", mnt).stdout
        made = instance(live)
        assert made.is_dir()
    assert not made.exists()


def test_maps_are_dropped_to_be_seen(image: Path, mnt: Path):
    with mounted(image, mnt, "epoch=20,cache=sampled") as live:
        with (
            (mnt / "hello").open("rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        ):
            while not live.tiers("hello")["ram"]:
                assert mapped[:6] == b"hello\n"
        assert live.stat()["ranges_dropped"] > 0


def test_they_can_be_left_alone(image: Path, mnt: Path):
    with mounted(image, mnt, "epoch=20,cache=sampled,noevents") as live:
        live.wait_epochs(2)
        assert not live.stat()["sees_reads"]
        assert not instance(live).exists()


def test_a_killed_daemon_leaves_nothing_for_long(image: Path, mnt: Path):
    abandoned = TRACEFS / "instances" / "xipfs-4194305"  # no process has such a number
    abandoned.mkdir()
    with mounted(image, mnt, "epoch=20") as live:
        live.wait_epochs(1)
        assert not abandoned.exists()
