"""tools/demo as a user runs it: with a mount, without one, and stopped in the middle."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "tools" / "demo.py"
COLUMNS = ["read", "in RAM", "faulted", "by pfn", "by page", "promoted", "demoted"]
TIMEOUT_S = 300


@pytest.fixture
def demo(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the demo, with its files below tmp_path, where only the image may be left behind."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-u", DEMO, f"--image={tmp_path / 'a.img'}", *arguments],
            env=os.environ | {"TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a group of its own, to be signalled as by Ctrl-C
        )

    return start


def rows(output: str) -> dict[str, dict[str, int]]:
    """Return the table of the steps: what was done, column, number of pages."""
    lines = re.findall(rf"^   (\S.*?)((?: +\d+){{{len(COLUMNS)}}})  +\d+%$", output, re.MULTILINE)
    return {
        name.strip(): dict(zip(COLUMNS, map(int, numbers.split()), strict=True))
        for name, numbers in lines
    }


def check_clean(tmp_path: Path) -> None:
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["a.img"]


@pytest.mark.fuse
def test_demo_with_a_mount(demo: Callable[..., subprocess.Popen[str]], tmp_path: Path):
    process = demo()
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert "== all results were equal" in output
    nr_equal = 5 + (os.geteuid() == 0)  # with the chroot
    assert output.count("   equal: ") == nr_equal
    found = rows(output)
    scan, total = found["rsync, a scan"], found["since the mount"]
    assert scan["by page"] < scan["read"] // 10
    assert total["by pfn"] > 10_000
    # Nothing has to go while what is hot fits.
    assert min(total[column] for column in COLUMNS if column != "demoted") > 0
    assert found["Python, run 2"]["in RAM"] > found["Python, run 2"]["read"] // 2
    check_clean(tmp_path)


def test_demo_in_process(demo: Callable[..., subprocess.Popen[str]], tmp_path: Path):
    process = demo("--in-process")
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert "== no mount (as you asked)" in output
    assert output.count("   equal: ") == 6
    found = rows(output)
    # A scan promotes nothing; what is read again is promoted, and then read from RAM.
    assert found["every file, a scan"]["promoted"] == 0
    first, second = found["Python sources, run 1"], found["Python sources, run 2"]
    assert first["promoted"] == first["read"] == second["in RAM"] == second["by page"] > 1000
    # More than fits pushes something out, once it has no chance left.
    assert found["libraries, run 3"]["demoted"] > 0
    check_clean(tmp_path)


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted(
    demo: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
):
    process = demo()
    assert process.stdout is not None
    for line in process.stdout:
        if "mnt/python/bin/python3" in line:  # it runs from the mount now
            os.killpg(process.pid, number)
            break
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, output
    assert "tools/demo: interrupted" in output
    check_clean(tmp_path)
