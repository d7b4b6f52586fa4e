"""The pytest plugin: its fixtures on real mounts, and docs/TESTING.md's examples as they stand."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xipfs.errors import InvalidArgumentError, MountError
from xipfs.fs.fsck import fsck

pytestmark = pytest.mark.fuse

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "TESTING.md").read_text(), re.DOTALL)


def test_the_examples_of_the_document(tmp_path: Path):
    """Each in a file of its own, by a pytest of its own that knows the plugin by its name."""
    assert len(EXAMPLES) == 3
    for number, example in enumerate(EXAMPLES):
        (tmp_path / f"test_example{number}.py").write_text(example)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_a_daemon_dies_at_a_fence_and_the_image_recovers(xipfs_mount):
    mount = xipfs_mount(fault="kill-at-fence=60")
    with contextlib.suppress(OSError):
        for number in range(50):
            (mount.path / f"file{number}").mkdir()
    mount.wait_dead()
    assert not mount.is_alive
    mount.remount()
    assert list(mount.path.iterdir())
    mount.unmount()
    assert fsck(mount.image).findings == ()


def test_what_is_no_fault(xipfs_mount):
    with pytest.raises(InvalidArgumentError, match="no fault: kill-at-fence=N"):
        xipfs_mount(fault="burn=1")


def test_what_cannot_be_mounted_says_why(xipfs_mount, tmp_path: Path):
    image = tmp_path / "no.img"
    image.write_bytes(bytes(8192))
    with pytest.raises(MountError, match="no superblock"):
        xipfs_mount(image)


def test_crash_states_of_a_program(xipfs_crash_states, xipfs_mount):
    """One directory, and another: each is durable when mkdir returns."""

    def program(path: Path) -> None:
        (path / "one").mkdir()
        (path / "two").mkdir()

    seen = set()
    for image in xipfs_crash_states(program, nr_states=12):
        mount = xipfs_mount(image)
        seen.add(tuple(sorted(path.name for path in mount.path.iterdir())))
        mount.unmount()
        assert fsck(image).findings == ()
    assert seen == {(), ("one",), ("one", "two")}
