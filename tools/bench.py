"""Measures xipfs beside its peers; every ratio comes from interleaved runs on one machine.

    read    reads through the mount against a bare pyfuse3 server that has no filesystem at all,
            and warm reads against a plain file
    scale   a 64 GiB sparse image against one of 64 MiB: time to mount, memory of the daemon
    mm      the simulated page table against plain numpy arrays: no peer does what it does
    mkfs    making images against `tar -cf` of the same tree to the same disk
    drift   accesses in RAM under each policy, of a program whose working set moves; no peer
    sampling    what the daemon takes for hot against what a program read, and what that costs it
    tiering     reads while 10,000 pages a second migrate, against none
    write       writes, names and programs against passthrough filesystems
    sync        the same with sync=full against the default
    record      reads while `xipfs trace record` records them, against reads nobody records

A ratio above 1 is in favour of xipfs. Medians of the rounds; the machine should be quiet. What
`drift` tells are counts, the same on every machine.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from drift import make_drift_image, measure_drift
from measure import (
    READ_FILE_SIZE_BYTES,
    SEED,
    Comparison,
    bare,
    compare,
    random_reads,
    report,
    sequential_reads,
    workspace,
    xipfs_mount,
)
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tiering_bench import record, sampling, tiering
from write_bench import sync, write

from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import walk_tree
from xipfs.mm.access import access_range
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.fault import handle_mm_fault
from xipfs.mm.filemap_xip import xip_file_mmap
from xipfs.mm.machine import Machine
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.pgtable import PTRS_PER_PTE, Leaf
from xipfs.mm.rmap import zap_page_range
from xipfs.mm.vma import Mm, Vma
from xipfs.phys.nvram import NvramDevice
from xipfs.policy.registry import policy_names
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, Kaddr, Pfn, Pgoff, pfn_to_kaddr

__all__ = ["app"]

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(sampling)
app.command()(tiering)
app.command()(record)
app.command()(write)
app.command()(sync)

_TOOLS = Path(__file__).resolve().parent


@app.command()
def read(
    rounds: Annotated[int, typer.Option(help="Counted rounds of each measurement.")] = 7,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Cold and warm reads of one file of 128 MiB."""
    with workspace() as work:
        source = work / "source"
        source.mkdir()
        (source / "image").write_bytes(random.Random(SEED).randbytes(READ_FILE_SIZE_BYTES))
        image = work / "a.img"
        mkfs(image, walk_tree(source), now_ns=0)
        results = []
        for cache, policy in (
            ("sampled", "none"),
            ("none", "none"),
            ("sampled", "second_chance"),
            ("none", "second_chance"),
        ):
            for name, unit, measure in (
                ("4 KiB random, cold", "reads/s", random_reads),
                ("1 MiB sequential, cold", "MB/s", sequential_reads),
            ):
                with (
                    xipfs_mount(image, work / "ours", f"cache={cache},policy={policy}") as ours,
                    bare(image, work / "bare", cache) as peer,
                ):
                    results.append(
                        compare(
                            f"{name}, cache={cache}, policy={policy}",
                            unit,
                            partial(measure, ours / "image"),
                            partial(measure, peer / "image"),
                            "bare pyfuse3",
                            rounds=rounds,
                        )
                    )
        with xipfs_mount(image, work / "ours", "cache=full") as ours:
            results.append(
                compare(
                    "4 KiB random, warm, cache=full",
                    "reads/s",
                    lambda: _warm_reads(ours / "image"),
                    lambda: _warm_reads(source / "image"),
                    "plain file",
                    rounds=rounds,
                )
            )
        report(results, as_json)


@app.command()
def scale(
    rounds: Annotated[int, typer.Option(help="Counted rounds of each measurement.")] = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What the size of an image costs: 64 GiB, nearly all free, against 64 MiB."""
    with workspace() as work:
        source = work / "source"
        source.mkdir()
        for i in range(1000):
            (source / f"file-{i}").write_bytes(random.Random(i).randbytes(20000))
        small, large = work / "small.img", work / "large.img"
        mkfs(small, walk_tree(source), size_bytes=64 << 20, now_ns=0)
        mkfs(large, walk_tree(source), size_bytes=64 << 30, now_ns=0)

        def mount_time_ms(image: Path) -> float:
            start = time.perf_counter()
            with xipfs_mount(image, work / "mnt", ""):
                return (time.perf_counter() - start) * 1e3

        results = [
            compare(
                "time to mount, 64 GiB",
                "ms",
                lambda: mount_time_ms(large),
                lambda: mount_time_ms(small),
                "64 MiB",
                rounds=rounds,
                more_is_better=False,
            )
        ]
        for name, reads in (("before", False), ("after reading 1,000 files", True)):
            anonymous_kib = []
            for image in (large, small):
                with xipfs_mount(image, work / "mnt", "epoch=3600000") as mnt:
                    if reads:
                        for path in mnt.iterdir():
                            path.read_bytes()
                    anonymous_kib.append(_rss_anon_kib(mnt))
            results.append(
                Comparison(
                    f"RssAnon {name}, 64 GiB",
                    "KiB",
                    anonymous_kib[0],
                    anonymous_kib[1],
                    "64 MiB",
                    anonymous_kib[1] / anonymous_kib[0],
                )
            )
        report(results, as_json)


@app.command()
def mm(
    rounds: Annotated[int, typer.Option(help="Counted rounds of each measurement.")] = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Ptes, faults and migrations on one core, without a mount.

    The peer of ptes and faults just fills an array; that of a promotion copies as many pages by as
    many system calls, and that of a demotion forgets them in a dict.
    """
    nr_leaves = 64
    nr_pages = nr_leaves * PTRS_PER_PTE
    nvram = NvramDevice.scratch(nr_pages * PAGE_SIZE)
    machine = Machine(nvram, nr_tier_frames=0)
    mapping = AddressSpace(1, _LinearFile(), i_size_bytes=nvram.size_bytes, read_only=True)
    vma = xip_file_mmap(Mm(machine), mapping, nr_pages=nr_pages)
    array = np.zeros(nr_pages, np.uint64)

    def millions_a_second(work: Callable[[], object], count: int) -> float:
        start = time.perf_counter()
        work()
        return count / (time.perf_counter() - start) / 1e6

    def zap() -> None:
        zap_page_range(vma, vma.vm_start, vma.vm_end)

    def insert() -> None:
        access_range(vma, Pgoff(0), nr_pages)

    def fault() -> None:
        for page in range(2000):
            handle_mm_fault(vma, vma.address(Pgoff(page)))

    def measure(work: Callable[[], None], count: int, *, mapped: bool) -> float:
        zap()
        if mapped:
            insert()
        return millions_a_second(work, count)

    measurements = (
        ("read faults of whole leaves", insert, nr_pages, False),
        ("ptes zapped, whole leaves", zap, nr_pages, True),
        ("single read faults", fault, 2000, False),
    )
    results = [
        compare(
            name,
            "M/s",
            partial(measure, work, count, mapped=mapped),
            lambda: millions_a_second(lambda: np.copyto(array, 1), nr_pages),
            "array fill",
            rounds=rounds,
        )
        for name, work, count, mapped in measurements
    ]
    leaf = Leaf()
    arrays = (leaf.ptes, leaf.accessed, leaf.dirty, leaf.heat)
    leaf_bytes = sum(a.nbytes for a in arrays) / PTRS_PER_PTE
    results.append(Comparison("memory of a pte", "bytes", leaf_bytes, 8, "a word", 8 / leaf_bytes))
    machine.close()
    results += _migrations(nvram, rounds)
    report(results, as_json)
    nvram.close()


def _migrations(nvram: NvramDevice, rounds: int) -> list[Comparison]:
    """Return what a page costs on its way up and down, in batches of one file or of many."""
    results = []
    for where, nr_files, is_scattered in (
        ("in a row", 1, False),
        ("scattered", 1, True),
        ("scattered, 16 files", 16, True),
        ("scattered, 128 files", 128, True),
    ):
        moving = _MovingPages(nvram, nr_files=nr_files, is_scattered=is_scattered)
        for name, work, peer, peer_name in (
            ("promoted", moving.promote, moving.copy, "copying"),
            ("demoted", moving.demote, moving.forget, "del in a dict"),
        ):
            results.append(
                compare(
                    f"a page {name}, {where}",
                    "us",
                    work,
                    peer,
                    peer_name,
                    rounds=rounds,
                    more_is_better=False,
                )
            )
        moving.machine.close()
    return results


class _MovingPages:
    """2,048 mapped pages, moved in batches of at most 256; figures are us of CPU time a page."""

    nr_pages = 2048

    def __init__(self, nvram: NvramDevice, *, nr_files: int, is_scattered: bool) -> None:
        self.machine = Machine(nvram, nr_tier_frames=self.nr_pages)
        self.step = 1 if is_scattered else 64
        mm = Mm(self.machine)
        rng = random.Random(SEED)
        nr_file_pages = nvram.size_bytes // PAGE_SIZE // nr_files
        nr_chosen = self.nr_pages // nr_files
        self.vmas: list[Vma] = []
        self.batches: list[tuple[AddressSpace, NDArray[np.int64]]] = []
        for i in range(nr_files):
            file = AddressSpace(
                i + 1, _LinearFile(), i_size_bytes=nr_file_pages * PAGE_SIZE, read_only=True
            )
            self.vmas.append(xip_file_mmap(mm, file, nr_pages=nr_file_pages))
            pages = np.arange(nr_chosen)
            if is_scattered:
                pages = np.array(sorted(rng.sample(range(nr_file_pages), nr_chosen)))
            self.batches += [(file, pages[at : at + 256]) for at in range(0, nr_chosen, 256)]

    def promote(self) -> float:
        self._demote()
        self._map()
        return self._time(self._promote)

    def demote(self) -> float:
        self._promote()
        self._map()
        return self._time(self._demote)

    def copy(self) -> float:
        """Copy as many pages by as many system calls."""
        buffers = [memoryview(bytearray(PAGE_SIZE))] * self.step
        nvram = self.machine.physmem.nvram

        def work() -> None:
            for _, pgoffs in self.batches:
                for pgoff in pgoffs.tolist()[:: self.step]:
                    nvram.load_into(pgoff * PAGE_SIZE, buffers)

        return self._time(work)

    def forget(self) -> float:
        """Forget as many pages of a dict."""
        pages = dict.fromkeys(range(self.nr_pages))

        def work() -> None:
            for page in range(self.nr_pages):
                del pages[page]

        return self._time(work)

    def _map(self) -> None:
        for vma in self.vmas:
            access_range(vma, Pgoff(0), vma.pgoff(vma.vm_end))

    def _promote(self) -> None:
        for file, pgoffs in self.batches:
            promote_pages(self.machine, file, pgoffs)

    def _demote(self) -> None:
        for file, pgoffs in self.batches:
            demote_pages(self.machine, file, pgoffs.tolist(), DemoteReason.KSWAPD)

    def _time(self, work: Callable[[], None]) -> float:
        start = time.thread_time()
        work()
        return (time.thread_time() - start) / self.nr_pages * 1e6


class _LinearFile:
    """A file whose page n is frame n of the region."""

    def get_xip_mem(
        self, mapping: AddressSpace, pgoff: Pgoff, *, create: bool
    ) -> tuple[Kaddr, Pfn]:
        pfn = Pfn(NVRAM_PFN_START + pgoff)
        return pfn_to_kaddr(pfn), pfn

    def get_xip_pfns(self, mapping: AddressSpace, pgoff: Pgoff, nr_pages: int) -> NDArray[np.int64]:
        return np.arange(nr_pages) + (NVRAM_PFN_START + pgoff)

    def get_nvram_pfns(self, mapping: AddressSpace, pgoffs: Sequence[int]) -> list[int]:
        return [NVRAM_PFN_START + pgoff for pgoff in pgoffs]


@app.command(name="mkfs")
def mkfs_command(
    rounds: Annotated[int, typer.Option(help="Counted rounds of each measurement.")] = 3,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Images of the demo's tree and of 100,000 small files, against tar, on the disk of TMPDIR."""
    with tempfile.TemporaryDirectory(prefix="xipfs-bench-") as folder:
        work = Path(folder)
        userland, small_files = work / "userland", work / "small"
        recipe = _TOOLS.parent / "nvram_images" / "userland.py"
        subprocess.run(
            [sys.executable, recipe, work / "userland.img", "--tree", userland],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for i in range(100):
            directory = small_files / f"d{i}"
            directory.mkdir(parents=True)
            for j in range(1000):
                (directory / f"file-{j}").write_bytes(b"x" * (100 + 3 * j))
        results = []
        for name, tree in (("the demo's tree", userland), ("100,000 small files", small_files)):
            for what, make in (("mkfs()", _make_image), ("xipfs mkfs", _make_image_by_command)):
                results.append(
                    compare(
                        f"{what}, {name}",
                        "s",
                        partial(make, tree, work / "a.img"),
                        partial(_make_archive, tree, work / "a.tar"),
                        "tar -cf",
                        rounds=rounds,
                        more_is_better=False,
                    )
                )
        report(results, as_json)


@app.command()
def drift(
    policies: Annotated[
        list[str] | None, typer.Argument(help="With parameters if need be; default all.")
    ] = None,
    noise: Annotated[float, typer.Option(help="Share of the reads that go anywhere.")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Accesses in RAM of a program whose working set drifts: see tools/drift.py."""
    rows = []
    with workspace() as work:
        image = make_drift_image(work / "drift.img")
        for name in policies or policy_names():
            plain, noisy = (measure_drift(image, name, noise=share) for share in (0.0, noise))
            rows.append((name, plain.ratio, plain.nr_migrated, noisy.ratio, noisy.nr_migrated))
    if as_json:
        keys = ("policy", "ratio", "migrated", "noisy_ratio", "noisy_migrated")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=1))
        return
    table = Table("policy", "in RAM", "pages moved", f"{noise:.0%} anywhere", "pages moved")
    for name, ratio, moved, noisy_ratio, noisy_moved in rows:
        table.add_row(name, f"{ratio:.2f}", f"{moved:,}", f"{noisy_ratio:.2f}", f"{noisy_moved:,}")
    Console().print(table)


def _make_image(tree: Path, image: Path) -> float:
    """Return the seconds that mkfs takes, with the fsync at its end."""
    start = time.perf_counter()
    mkfs(image, walk_tree(tree), now_ns=0, force=True)
    return time.perf_counter() - start


def _make_image_by_command(tree: Path, image: Path) -> float:
    """Return the seconds of the whole command, with the start of Python."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "xipfs", "mkfs", "--force", image, "--from", tree],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def _make_archive(tree: Path, archive: Path) -> float:
    """Return the seconds of tar, which does not wait for the disk."""
    start = time.perf_counter()
    subprocess.run(["tar", "-C", tree, "-cf", archive, "."], check=True)
    return time.perf_counter() - start


def _warm_reads(path: Path, nr_reads: int = 200_000) -> float:
    """Return reads a second of 4 KiB pages that are all in the page cache."""
    path.read_bytes()
    rng = random.Random(SEED)
    offsets = [
        rng.randrange(READ_FILE_SIZE_BYTES // PAGE_SIZE) * PAGE_SIZE for _ in range(nr_reads)
    ]
    fd = os.open(path, os.O_RDONLY)
    start = time.perf_counter()
    for offset in offsets:
        os.pread(fd, PAGE_SIZE, offset)
    elapsed_s = time.perf_counter() - start
    os.close(fd)
    return nr_reads / elapsed_s


def _rss_anon_kib(mountpoint: Path) -> int:
    facts = json.loads(
        subprocess.run(
            [sys.executable, "-m", "xipfs", "stat", "--json", mountpoint],
            check=True,
            capture_output=True,
        ).stdout
    )
    status = Path(f"/proc/{facts['pid']}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


if __name__ == "__main__":
    app()
