"""Policies that misbehave on a real mount: each is told of by name, and no reader notices.

One mount, on which one after the other takes over; what each did is in `xipfs stat --json`, what it
did first in the log.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.mount import LiveMount, mounted, xipfs
from tests.kit.tree import random_bytes
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry
from xipfs.policy.registry import policy_names
from xipfs.units import PAGE_SIZE

pytestmark = pytest.mark.fuse

NR_PAGES = 64
NR_FRAMES = 8
CONTENT = random_bytes(NR_PAGES * PAGE_SIZE, 1)

HEAD = """
import numpy as np
from xipfs.policy import Plan

class Policy:
    def decide(self, batch, tiers):
        pages = np.setdiff1d(batch.page, tiers.resident)
        if not len(pages):
            return Plan()
"""


class Mistake(NamedTuple):
    """What a policy does once pages were read, and the reason it is refused for, or its error."""

    name: str
    body: str
    refused: str | None = None
    error: str | None = None


MISTAKES = [
    Mistake("raises", "return pages.no_such_thing", error="AttributeError: .*no_such_thing"),
    Mistake("exits", "raise SystemExit(3)", error="SystemExit: 3"),
    Mistake("returns_none", "return None", error="AttributeError: .*promote"),
    Mistake("floats", "return Plan(promote=pages / 2)", error="TypeError: page ids are a flat"),
    Mistake("invents", "return Plan(promote=[1 << 50, -1])", refused="no such page"),
    Mistake("beyond_the_end", "return Plan(promote=pages + 4096)", refused="no such page"),
    Mistake("twice", "return Plan(promote=np.repeat(pages[:2], 3))", refused="twice"),
    Mistake("too_much", "return Plan(promote=pages[:6])", refused="no free frame"),
    Mistake("over_budget", "return Plan(demote=tiers.resident, promote=pages[:4])", "over budget"),
    Mistake("again", "return Plan(promote=tiers.resident)", refused="in RAM already"),
    Mistake("not_there", "return Plan(demote=pages)", refused="not in RAM"),
    Mistake("bad_pair", "return Plan(exchange=np.stack([pages, pages], 1))", refused="not in RAM"),
]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with one file of 64 pages, /file."""
    path = tmp_path / "nvram.img"
    file = Entry(b"file", 0o100644, 0, 0, 0, size_bytes=len(CONTENT), pieces=[(0, CONTENT)])
    mkfs(path, [file], now_ns=0)
    return path


def tier(mnt: Path, *words: object) -> None:
    done = xipfs("tier", mnt, *words)
    assert done.returncode == 0, done.stderr


def facts_of(live: LiveMount, policy: Path) -> dict:
    """What `stat --json` says of it."""
    shown = xipfs("stat", live.path, "--json")
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)["policies"][str(policy)]


def read_until(live: LiveMount, policy: Path, count: str) -> dict:
    """Read the file until the policy has made its mistake; it is right each time."""
    while True:
        assert (live.path / "file").read_bytes() == CONTENT
        live.wait_epochs(1)
        facts = facts_of(live, policy)
        if facts[count]:
            return facts


def test_each_mistake_is_refused_and_counted(image: Path, mnt: Path):
    """Some pages are in RAM from the start, for those who take what is there."""
    options = f"ro,cache=none,policy=none,epoch=20,budget=6,ram={NR_FRAMES * PAGE_SIZE}"
    with mounted(image, mnt, options) as live:
        nr_errors = nr_refused = 0
        for mistake in MISTAKES:
            mine = mnt.with_name(f"{mistake.name}.py")
            mine.write_text(f"{HEAD}        {mistake.body}\n")
            tier(mnt, "policy", "none")
            tier(mnt, "demote", "file")
            tier(mnt, "promote", "file", "0-16K")
            tier(mnt, "policy", mine)
            facts = read_until(live, mine, "errors" if mistake.error else "nr_refused")
            if mistake.error:
                assert re.search(mistake.error, facts["last_error"])
                assert facts["nr_refused"] == {}
                live.expected_logs.append(f"ERROR: policy {mine} failed(?s:.*){mistake.error}")
            else:
                assert set(facts["nr_refused"]) == {mistake.refused}
                assert facts["errors"] == 0
                said = rf"WARNING: policy {mine}: \d+ of \d+ entries refused: \d+ {mistake.refused}"
                live.expected_logs.append(said)
        tier(mnt, "policy", "second_chance")
        live.wait_epochs(2)
        facts = live.stat()
        for policy in facts["policies"].values():
            nr_errors += policy["errors"]
            nr_refused += sum(policy["nr_refused"].values())
        assert (facts["policy_errors"], facts["plan_refused"]) == (nr_errors, nr_refused)
        assert facts["policies"]["second_chance"]["nr_refused"] == {}
        assert facts["vmstat_complaints"] == []
        assert len(re.findall("ERROR|WARNING", live.log.read_text())) == len(MISTAKES)


def test_an_unknown_name_lists_what_exists(image: Path, mnt: Path):
    done = xipfs("mount", image, mnt, "-o", "policy=lru_k")
    assert done.returncode == 1
    assert "no policy 'lru_k': there are" in done.stderr
    assert set(policy_names()) <= set(re.findall(r"\w+", done.stderr))
    assert done.stderr.count("\n") == 1


def test_an_unknown_parameter_lists_what_exists(image: Path, mnt: Path):
    done = xipfs("mount", image, mnt, "-o", "policy=tpp:scan=3")
    assert done.returncode == 1
    expected = (
        "no parameter 'scan': there are demote_scale_factor, scan_pages, scan_period_ms, scale"
    )
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
