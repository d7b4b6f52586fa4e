"""Recipes of damaged images, given to all readers: those that once broke one, those that reach most
of the code, and some that nobody wrote. Each failure prints the `tools/fuzz` line that replays it.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.fuzzer import INPUT_TIMEOUT_S, Outcome, fuzz, read_corpus, replay
from tests.kit.readers import READERS
from tests.kit.recipe import bake, sweep

ROOT = Path(__file__).parents[2]

# What went wrong, and with what. Found by tools/fuzz, or by looking for what it could find.
BUGS = [
    ("dump", "tiny | super.nr_groups=0x8000000000000000", "went through 2^63 groups"),
    ("write", "tiny | journal0.sequence=0xffffffffffffffff", "the next sequence fits no field"),
    ("replay", "dirty | journal0.sequence=0xfffffffffffffff0", "the same after a replay"),
    ("replay", "tiny | state.mount_count=0xffffffffffffffff", "one mount more fits no field"),
    ("write", "tiny | state.nr_inodes=0xffffffffffffffff", "one inode more fits no field"),
    ("write", "tiny | state.nr_free_pages=0xffffffffffffffff", "one free page more fits no field"),
    ("write", "tiny | inode16.nr_pages=0xffffffffffffffff", "one page more fits no field"),
    ("write", "tiny | inode16.nr_pages=0", "one page less fits no field"),
    ("write", "tiny | inode16[0].pgoff=0x7fffffffffffffff", "the file's end fits no extent"),
    ("write", "tiny | inode0.size_bytes=0xc", "the inode file grew over its own pages"),
    ("rename", "tiny | state.ino_end=0x13", "a new inode took the number of one in use"),
    ("rename", "tiny | inode16.mode=0xffffffff", "the type of such a mode fits no entry"),
    ("fsck", "tiny | inode0[0].pgoff=0x7fffffffffffffff", "the inodes there have no numbers"),
    ("write", "tiny | inode16[0].nr_pages=0", "an extent of nothing overlaps what is put there"),
]


@pytest.fixture(autouse=True)
def log_watch() -> None:
    """In place of the watch of all other tests: here errors in the log are what is expected."""


@pytest.mark.parametrize(("reader", "recipe", "story"), BUGS, ids=[bug[2] for bug in BUGS])
def test_what_once_broke_a_reader(reader: str, recipe: str, story: str):
    assert not complaints(replay([recipe], [reader])), story


def complaints(outcome: Outcome) -> str:
    return "\n".join(map(str, outcome.findings.values()))


def test_the_corpus():
    """Between them these reach what a long run of tools/fuzz has reached."""
    recipes = read_corpus()
    assert len(recipes) >= 50
    outcome = replay(recipes)
    assert not complaints(outcome)
    assert outcome.nr_inputs.total() == len(recipes) * len(READERS)
    assert outcome.nr_refused > len(recipes)


def test_recipes_that_nobody_wrote():
    """In a process of its own with a limit of memory, and of time for each input."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kit.fuzzer", "--inputs", "1500", "--jobs", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=10 * INPUT_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1,500 inputs" in done.stdout


@pytest.mark.long
def test_many_recipes_that_nobody_wrote():
    outcome = fuzz(40_000, nr_jobs=2, seed=1, corpus=read_corpus())
    assert not complaints(outcome)
    assert outcome.nr_inputs.total() == 40_000


@pytest.mark.long
@pytest.mark.parametrize("name", ["tiny", "dirty"])
def test_every_field_at_the_ends_of_what_it_holds(name: str):
    outcome = replay(sweep(name), [reader for reader in READERS if reader != "mount"])
    assert not complaints(outcome)
    assert outcome.nr_inputs.total() > 10_000


def test_the_sweep_reaches_every_record():
    recipes = list(sweep("tiny"))
    assert len(recipes) > 2000
    for record in ("super", "state", "journal0", "group0", "inode1", "xattr5", "dir4[1]"):
        assert any(f"| {record}." in recipe for recipe in recipes)


BROKEN = {
    "takes all memory": "raise SystemExit(bytearray(1 << 40))",
    "hangs": "import time\nwhile True: time.sleep(1)",
    "dies": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "raises": "{}['x']",
    "writes lines": "from xipfs.errors import FormatError\nraise FormatError('two\\nlines')",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_reader_that_misbehaves_is_found(how: str):
    """Otherwise all of the above would prove nothing."""
    program = (
        "import sys\n"
        "from tests.kit import fuzzer, readers\n"
        "fuzzer.INPUT_TIMEOUT_S = 1\n"
        f"def broken(path):\n    exec({BROKEN[how]!r})\n"
        "readers.READERS['info'] = broken\n"
        "outcome = fuzzer.fuzz(30, corpus=['tiny'])\n"
        "print(*outcome.findings.values())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert "tools/fuzz --reader 'info' --replay" in done.stdout, done.stderr
    expected = {"takes all memory": "MemoryError", "hangs": "info hangs", "dies": "dies of SIGSEGV"}
    assert expected.get(how, "Error") in done.stdout


def test_a_recipe_does_what_it_says():
    image = bake("tiny | state.mount_count=7 | @0x3000*8:ff | @0x3000^0f | copy 3 4 | size 0x5000")
    assert image.data[4096 + 72 : 4096 + 80] == (7).to_bytes(8, "little")
    assert image.data[0x3000:0x3009] == b"\xf0" + b"\xff" * 7 + b"\xbb"
    assert image.data[0x4000:0x5000] == image.data[0x3000:0x4000]
    assert image.size_bytes == 0x5000
    sound_image = bake("tiny")
    assert image.data[:4096] == sound_image.data[:4096]
    with pytest.raises(ValueError, match="no step of a recipe: 'nonsense'"):
        bake("tiny | nonsense")
