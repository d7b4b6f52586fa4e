"""`xipfs crash`: what it prints, and what it answers to nonsense."""

import json
import re

import pytest

from tests.kit.mount import xipfs
from xipfs.fs.fsck import fsck

SMALL = ("--seq", "1", "--share", "0.05", "--states", "4", "--seed", "7")


def test_run_tells_what_was_looked_at():
    done = xipfs("crash", "run", *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"\d+ workloads, \d+ operations of theirs cut at \d+ moments\n"
        r"\d+ crash states, \d+ recovered to bytes that were new; "
        r"\d+ more were of bytes seen before\n"
        r"\d+ moments with all their states, \d+ with a sample of at most 4\n"
        r"[\d.]+ s of CPU, [\d,]+ states a second of it; [\d.]+ s\n"
        r"seed 7; 0 failures\n",
        done.stdout,
    )


def test_a_report_is_saved_and_shown(tmp_path):
    saved = tmp_path / "report.json"
    saved.write_text(xipfs("crash", "run", *SMALL, "--json").stdout)
    facts = json.loads(saved.read_text())
    assert facts["plan"]["seed"] == 7
    assert facts["tally"]["nr_states"] > facts["tally"]["nr_examined"] > 0
    shown = xipfs("crash", "report", saved)
    assert shown.returncode == 0
    assert f"{facts['tally']['nr_states']:,} crash states" in shown.stdout


def test_replay_judges_one_state_and_saves_it(tmp_path):
    image = tmp_path / "crashed.img"
    done = xipfs("crash", "replay", "chmod /foo 400 @3 0*4", "--save", image)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nsound\n")
    assert not fsck(image).exit_code & 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--seq", "3"), "--seq: 1 or 2; longer ones are for --fuzz"),
        (("replay", "chmod /foo"), "chmod /foo: chmod takes PATH MODE"),
        (("replay", "chmod /foo 400 @x 1"), "no state: OPERATIONS @NUMBER CHOICE"),
        (("replay", "chmod /foo 400 @999999 1"), "there is no cut at 999999"),
        (("replay", "dance /foo @1 -"), "dance /foo: no operation: create"),
        (("report", "missing.json"), "missing.json: No such file or directory"),
        (("report", __file__), "no report"),
    ],
)
def test_nonsense_is_answered_in_one_line(arguments, message):
    done = xipfs("crash", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
