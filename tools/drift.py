"""A program whose working set drifts over an image: how many of its accesses find RAM?

    image = make_drift_image(path)
    measure_drift(image, "lru").ratio           a policy by name, with parameters if one likes

Each epoch reads NR_READS pages, drawn evenly from a window of NR_WINDOW_PAGES that moves by
STEP_PAGES from one epoch to the next, round and round; of *noise*, from anywhere instead. A quarter
more than the window fits in RAM. No FUSE, no kernel's cache, and a clock that ticks an epoch at a
time: every access is counted, and a figure is the same on each machine.
"""

import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import CacheMode, MountOptions
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SIZE

__all__ = ["NR_FRAMES", "Drift", "make_drift_image", "measure_drift"]

NR_FILES, NR_FILE_PAGES = 40, 64
NR_PAGES = NR_FILES * NR_FILE_PAGES
NR_WINDOW_PAGES = NR_PAGES // 10
NR_FRAMES = NR_WINDOW_PAGES * 5 // 4
NR_READS = 2 * NR_WINDOW_PAGES
STEP_PAGES = 4

NR_WARM_UP_EPOCHS, NR_EPOCHS = 20, 100
"""In those that count, the window has moved to where it shares no page with its first place."""

_OPTIONS = MountOptions(ro=True, cache=CacheMode.NONE, ram_bytes=NR_FRAMES * PAGE_SIZE)
_SEED = 1


class Drift(NamedTuple):
    """Counts after the warm-up, in pages. facts: what `xipfs stat` would show at the end."""

    nr_accesses: int
    nr_in_ram: int
    nr_migrated: int
    facts: dict[str, Any]

    @property
    def ratio(self) -> float:
        """The share of accesses that found their page in RAM."""
        return self.nr_in_ram / self.nr_accesses


def make_drift_image(path: Path) -> Path:
    """Make the image; each page of it says which it is."""
    entries = []
    for file in range(NR_FILES):
        first = file * NR_FILE_PAGES
        content = b"".join(b"%4096d" % (first + page) for page in range(NR_FILE_PAGES))
        entries.append(
            Entry(
                b"%02d" % file,
                *(0o100644, 0, 0, 0),
                size_bytes=len(content),
                pieces=[(0, content)],
            )
        )
    mkfs(path, entries, now_ns=0)
    return path


def measure_drift(image: Path, policy: str, *, noise: float = 0.0) -> Drift:
    """Run the program under *policy*. Raises: PolicyError."""
    rng = random.Random(_SEED)
    with closing(Mount.open(image, replace(_OPTIONS, policy=policy))) as mount:
        now_ns = mount.log.clock()
        mount.log.clock = lambda: now_ns
        operations, vmstat = mount.operations, mount.machine.vmstat
        handles = [
            operations.open(operations.lookup(INO_ROOT, b"%02d" % file).ino, 0)
            for file in range(NR_FILES)
        ]
        before = vmstat.as_dict()
        for epoch in range(NR_WARM_UP_EPOCHS + NR_EPOCHS):
            if epoch == NR_WARM_UP_EPOCHS:
                before = vmstat.as_dict()
            for _ in range(NR_READS):
                page = rng.randrange(NR_WINDOW_PAGES) + epoch * STEP_PAGES
                if rng.random() < noise:
                    page = rng.randrange(NR_PAGES)
                file, pgoff = divmod(page % NR_PAGES, NR_FILE_PAGES)
                mount.dispatch(operations.read, handles[file], pgoff * PAGE_SIZE, PAGE_SIZE)
            now_ns += _OPTIONS.epoch_ms * 1_000_000
            mount.run_epoch()
        counted = {name: count - before[name] for name, count in vmstat.as_dict().items()}
        return Drift(
            counted["xip_access"],
            counted["xip_access_ram"],
            counted["pgmigrate_success"],
            mount.statistics(),
        )
