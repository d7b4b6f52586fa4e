"""The pytest plugin: fixtures for tests of programs on a xipfs. docs/TESTING.md shows each.

    xipfs_image           a new, empty image: make_image(size="16M") -> Path
    xipfs_mount           mount(image=None, options="", fault="") -> TestMount
    xipfs_crash_states    states(program, nr_states=20) -> images that crashes may leave

All that a test has mounted is gone after it, whatever has become of the test.

pytest imports this module wherever xipfs is installed, so the rest waits for a test that needs it.
"""

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xipfs.testing.mounted import TestMount

__all__ = ["xipfs_crash_states", "xipfs_image", "xipfs_mount"]


@pytest.fixture
def xipfs_image(tmp_path: Path) -> Callable[..., Path]:
    """Return what makes an empty image: call it with size="16M"."""
    from xipfs.fs.mkfs import mkfs
    from xipfs.units import parse_size

    numbers = itertools.count()

    def make_image(size: str = "16M") -> Path:
        path = tmp_path / f"xipfs-{next(numbers)}.img"
        mkfs(path, None, now_ns=time.time_ns(), size_bytes=parse_size(size))
        return path

    return make_image


@pytest.fixture
def xipfs_mount(
    tmp_path: Path, xipfs_image: Callable[..., Path]
) -> "Iterator[Callable[..., TestMount]]":
    """Return what mounts an image, a new one if none is named: see `testing.mounted`."""
    from xipfs.testing.mounted import TestMount

    mounts: list[TestMount] = []

    def mount(image: Path | None = None, *, options: str = "", fault: str = "") -> TestMount:
        path = tmp_path / f"xipfs-mnt-{len(mounts)}"
        found = TestMount(image or xipfs_image(), path, options=options, fault=fault)
        mounts.append(found)
        return found

    yield mount
    for found in mounts:
        found.close()


@pytest.fixture
def xipfs_crash_states(
    tmp_path: Path, xipfs_image: Callable[..., Path]
) -> Callable[..., Iterator[Path]]:
    """Return what runs a program on a mount, and yields images of crashes while it ran.

    states(program, image=None, nr_states=20, seed=0): program is called with the mount's path, and
    may raise nothing. Each image stands in a file that is overwritten by the next.
    """

    from xipfs.testing.mounted import TestMount
    from xipfs.testing.recording import read_events
    from xipfs.testing.states import crash_states

    def states(
        program: Callable[[Path], object],
        image: Path | None = None,
        *,
        nr_states: int = 20,
        seed: int = 0,
    ) -> Iterator[Path]:
        image = image or xipfs_image()
        before = image.read_bytes()
        log = tmp_path / "xipfs-stores.log"
        mount = TestMount(image, tmp_path / "xipfs-recorded", record=log)
        try:
            program(mount.path)
            mount.unmount()
        finally:
            mount.close()
        events = list(read_events(log))
        log.unlink()
        crashed = tmp_path / "xipfs-crashed.img"
        for state in crash_states(before, events, nr_states=nr_states, seed=seed):
            crashed.write_bytes(state)
            yield crashed
        shutil.rmtree(mount.path, ignore_errors=True)

    return states
