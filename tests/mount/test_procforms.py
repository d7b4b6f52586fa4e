"""`xipfs stat --as`: the memory behind a real mount in the forms of /proc/PID."""

import json
import mmap
import os
import re
from pathlib import Path

import pytest

from tests.kit.mount import mounted, xipfs
from tests.kit.tree import random_bytes
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE

pytestmark = pytest.mark.fuse

NR_PAGES = 64


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of /hot and /sub/cold, 64 pages each."""
    size = NR_PAGES * PAGE_SIZE
    entries = [
        Entry(name, 0o100644, 0, 0, 0, size_bytes=size, pieces=[(0, random_bytes(size, i))])
        for i, name in enumerate([b"hot", b"sub/cold"])
    ]
    mkfs(tmp_path / "nvram.img", [Entry(b"", 0o040755, 0, 0, 0), *entries], now_ns=0)
    return tmp_path / "nvram.img"


def stat_as(*arguments: object) -> str:
    done = xipfs("stat", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_smaps_has_an_area_for_each_file_that_was_opened(image: Path, mnt: Path):
    with mounted(image, mnt, "policy=none"):
        assert stat_as(mnt, "--as", "smaps") == ""
        (mnt / "sub" / "cold").read_bytes()
        (mnt / "hot").read_bytes()
        text = stat_as(mnt, "--as", "smaps")
        heads = [line for line in text.splitlines() if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line)]
        assert [head.split(maxsplit=5)[5] for head in heads] == [f"{mnt}/sub/cold", f"{mnt}/hot"]
        # The kernel of the reader names the same file, device and inode for a map of his own.
        with (mnt / "hot").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
            maps = Path("/proc/self/maps").read_text().splitlines()
            (theirs,) = [line for line in maps if line.endswith(f"{mnt}/hot")]
        assert heads[1].split()[2:] == theirs.split()[2:]
        assert text.count(f"Size:         {NR_PAGES * 4:>10} kB\n") == 2
        assert text.count("VmFlags: rd mr ms mm \n") == 2
        only = stat_as(mnt, mnt / "hot", "--as", "smaps")
        assert only.splitlines()[0] == heads[1]
        assert len(json.loads(stat_as(mnt, "--as", "smaps", "--json"))) == 2


def test_pagemap_before_and_after_pages_moved(image: Path, mnt: Path):
    with mounted(image, mnt, "cache=none,epoch=20,ram=4M") as live:
        hot = mnt / "hot"
        assert stat_as(mnt, hot, "--as", "pagemap").startswith(f"{hot}: not mapped: ")
        (mnt / "sub" / "cold").read_bytes()
        while live.tiers("hot")["ram"] < NR_PAGES:
            hot.read_bytes()
            live.wait_epochs(1)
        hot.read_bytes()
        (area,) = json.loads(stat_as(mnt, hot, "--as", "pagemap", "--json"))
        assert (area["ino"], area["path"]) == (os.stat(hot).st_ino, "/hot")
        assert sum(run["nr_pages"] for run in area["runs"]) == NR_PAGES
        for run in area["runs"]:
            assert (run["present"], run["tier"]) == (True, "ram")
            assert (run["kpagecount"], run["refcount"]) == (1, 2)
            assert run["pfn"] < NVRAM_PFN_START
        (cold,) = [
            line
            for line in stat_as(mnt, "--as", "pagemap").splitlines()
            if re.search(r" yes +nvram ", line)
        ]
        pgoff, nr_pages, _, _, pfn, kpagecount, refcount, _ = cold.split()
        assert (pgoff, nr_pages, kpagecount, refcount) == ("0", str(NR_PAGES), "0", "-")
        extents = json.loads(os.getxattr(mnt / "sub" / "cold", "user.xipfs.extents"))["extents"]
        assert int(pfn) == extents[0][1]


def test_what_cannot_be_shown_is_one_clear_line(image: Path, mnt: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    with mounted(image, mnt):
        for arguments, status, text in [
            ((mnt, mnt / "hot"), 2, "say how to show it: --as smaps, or --as pagemap"),
            ((mnt, elsewhere, "--as", "smaps"), 1, f"{elsewhere}: no file of the mount {mnt}"),
            ((mnt, mnt / "none", "--as", "smaps"), 1, f"{mnt}/none: No such file"),
            ((mnt, "--as", "numbers"), 2, "'numbers' is not one of 'smaps', 'pagemap'"),
            ((tmp_path, "--as", "smaps"), 1, f"{tmp_path}: no xipfs mount"),
        ]:
            done = xipfs("stat", *arguments)
            assert (done.returncode, done.stdout) == (status, "")
            assert text in done.stderr
            assert done.stderr.count("\n") == 1
