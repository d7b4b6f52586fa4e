"""`xipfs tier` on a real mount: what a user says is done, and what is read stays what it was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.mount import mounted, xipfs

pytestmark = pytest.mark.fuse


def tier(mnt: Path, *words: object) -> dict:
    done = xipfs("tier", mnt, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_another_policy_takes_over(image: Path, mnt: Path):
    mine = mnt.with_name("mine.py")
    mine.write_text(
        "from xipfs.policy import Plan\n"
        "class Policy:\n"
        "    def __init__(self, *, most=1):\n"
        "        self.most = most\n"
        "    def decide(self, batch, tiers):\n"
        "        room = self.most - len(tiers.resident)\n"
        "        return Plan(promote=batch.page[:1] if room > 0 and len(batch.page) else [])\n"
    )
    with mounted(image, mnt, "epoch=20,cache=none,policy=none") as live:
        (mnt / "hello").read_bytes()
        live.wait_epochs(2)
        assert live.stat()["ram_pages"] == 0
        assert tier(mnt, "policy", mine, "--set", "most=1") == {"policy": f"{mine}:most=1"}
        while not live.stat()["ram_pages"]:
            assert (mnt / "hello").read_text() == "hello\n"
            live.wait_epochs(1)
        facts = live.stat()
        assert facts["policies"][f"{mine}:most=1"]["nr_promoted"] == 1
        assert list(facts["policies"]) == ["none", f"{mine}:most=1"]


def test_a_policy_that_never_comes_back(image: Path, mnt: Path):
    """The mount serves on, says what the matter is, and another policy can take over."""
    mine = mnt.with_name("mine.py")
    mine.write_text(
        "class Policy:\n    def decide(self, batch, tiers):\n        while True: pass\n"
    )
    with mounted(image, mnt, f"epoch=20,cache=none,policy={mine}") as live:
        while not live.stat()["epochs"]:
            pass
        assert (mnt / "hello").read_text() == "hello\n"
        assert live.stat()["epochs"] == 1
        tier(mnt, "policy", "none")
        live.wait_epochs(2)
        assert (mnt / "hello").read_text() == "hello\n"


def test_by_hand(image: Path, mnt: Path):
    with mounted(image, mnt, "policy=none") as live:
        before = (mnt / "hello").read_bytes()
        assert tier(mnt, "promote", "hello") == {"migrated": 1, "resident": 0, "failed": 0}
        assert live.tiers("hello")["ram"] == 1
        assert (mnt / "hello").read_bytes() == before
        assert tier(mnt, "pin", mnt / "hello", "0-4K")["resident"] == 1
        assert tier(mnt, "demote", "hello")["failed"] == 1
        [run] = tier(mnt, "map", "hello")
        assert (run["tier"], run["pinned"]) == ("ram", True)
        assert tier(mnt, "unpin", "hello") == {"unpinned": 1}
        assert tier(mnt, "demote", "hello")["migrated"] == 1
        assert (mnt / "hello").read_bytes() == before


def test_what_people_see(image: Path, mnt: Path):
    with mounted(image, mnt, "policy=none"):
        shown = xipfs("tier", mnt, "policy").stdout
        assert shown.startswith("policy none decides\n")
        assert "second_chance" in shown
        assert "1 pages moved" in xipfs("tier", mnt, "promote", "hello").stdout
        assert "r\n" in xipfs("tier", mnt, "map", "hello").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("policy", "nonsense"), "no policy 'nonsense': there are 2q, "),
        (("policy", "second_chance", "--set", "x=1"), "no parameter 'x': there are history_ratio"),
        (("pin", "nothing"), "nothing: No such file or directory"),
        (("pin", "hello", "4K-1K"), "range '4K-1K': START-END in bytes"),
        (("map", "/etc/passwd"), "/etc/passwd: not on the mount"),
        (("promote", "directory"), "Is a directory"),
    ],
)
def test_refusals(image: Path, mnt: Path, words, said):
    with mounted(image, mnt, "policy=none"):
        done = xipfs("tier", mnt, *words)
        assert done.returncode == 1
        assert said in done.stderr.replace("\n", " ")
        assert done.stderr.count("\n") == 1


def test_figures_in_other_forms(image: Path, mnt: Path):
    with mounted(image, mnt, "policy=none,cache=none,epoch=20") as live:
        (mnt / "hello").read_bytes()
        tier(mnt, "promote", "hello")
        live.wait_epochs(1)
        vmstat = dict(
            line.split() for line in xipfs("stat", mnt, "--as", "vmstat").stdout.splitlines()
        )
        assert vmstat["pgpromote_success"] == vmstat["pgpromote_candidate_nrl"] == "1"
        counts = json.loads(xipfs("stat", mnt, "--as", "vmstat", "--json").stdout)
        assert counts["xip_access"] >= 1
        numastat = xipfs("stat", mnt, "--as", "numastat").stdout
        assert "/hello" in numastat
        figures = xipfs("stat", mnt, "--prometheus").stdout
        assert 'xipfs_vmstat_pgpromote_success_total{image="' in figures
        done = xipfs("stat", mnt, "--as", "vmstat", "often")
        assert done.stderr == "xipfs: interval 'often': seconds between two lines, like 1\n"


def test_rates_until_somebody_has_seen_enough(image: Path, mnt: Path):
    with mounted(image, mnt, "policy=none"):
        shell = f"{sys.executable} -m xipfs stat {mnt} --as vmstat 0.05 | head -3"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
        head, *rows = done.stdout.splitlines()
        assert head.split()[:3] == ["%ram", "free", "access"]
        assert len(rows) == 2
