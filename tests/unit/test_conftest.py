"""The promises of tests/conftest.py, kept in a small suite of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent.parent / "conftest.py"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A folder with nothing but our conftest.py in its tests/."""
    (tmp_path / "tests").mkdir()
    shutil.copy(CONFTEST, tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = fuse\n")
    return tmp_path


def add(suite: Path, name: str, body: str) -> None:
    path = suite / "tests" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(body)


def run(suite: Path, **environ: str) -> str:
    """Return what pytest prints. No PATH: there is no fusermount3, so nobody can mount."""
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        command, cwd=suite, env={"PATH": "", **environ}, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_lowest_layer_runs_first(suite: Path):
    for name in ("cli/test_c.py", "unit/test_b.py", "mount/test_d.py", "tidy/test_a.py"):
        add(suite, name, "def test_it(): pass\n")
    passed = [line for line in run(suite).splitlines() if "PASSED" in line]
    assert [line.split("/")[1] for line in passed] == ["tidy", "unit", "cli", "mount"]


def test_folder_without_a_place_is_refused(suite: Path):
    add(suite, "misc/test_a.py", "def test_it(): pass\n")
    assert "tests/misc has no place in FOLDERS" in run(suite)


def test_mount_test_is_skipped_with_a_reason_but_never_where_fuse_is_required(suite: Path):
    add(suite, "mount/test_a.py", "import pytest\n@pytest.mark.fuse\ndef test_it(): pass\n")
    printed = run(suite)
    assert "1 skipped" in printed
    assert "fuse" in next(line for line in printed.splitlines() if line.startswith("SKIPPED"))
    printed = run(suite, XIPFS_REQUIRE_FUSE="1")
    assert "1 skipped" not in printed
    assert "XIPFS_REQUIRE_FUSE=1, but" in printed


WARNS = """
import logging
def test_announced(expected_logs):
    expected_logs("frame .* is lost")
    logging.getLogger("xipfs.mm").error("frame 7 is lost")
def test_information():
    logging.getLogger("xipfs.mm").info("frame 7 is found")
def test_silent():
    logging.getLogger("xipfs.mm").warning("frame 8 is lost")
def test_hopeful(expected_logs):
    expected_logs("frame 9")
"""


def test_warning_must_be_announced_and_an_announced_one_must_come(suite: Path):
    add(suite, "unit/test_a.py", WARNS)
    printed = run(suite)
    errors = [
        line.split()[0] for line in printed.splitlines() if line.endswith("%]") and "ERROR" in line
    ]
    assert errors == ["tests/unit/test_a.py::test_silent", "tests/unit/test_a.py::test_hopeful"]
    assert "not announced: WARNING xipfs.mm: frame 8 is lost" in printed
    assert "announced, but not logged: 'frame 9'" in printed
