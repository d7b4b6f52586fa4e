"""Every line that a real kernel printed for the mappings of the goldens (golden/README.md)."""

from pathlib import Path

import pytest

from xipfs.errors import BugError, InvalidArgumentError
from xipfs.mm.arch import get_arch
from xipfs.oracle.device import Hooks, VmMode
from xipfs.oracle.probe import Target, play
from xipfs.oracle.scenarios import SCENARIOS

GOLDEN = Path(__file__).parent / "golden"
FILES = {
    "um-special": "linux-6.1-um-ptespecial.txt",
    "um": "linux-6.1-um-pfnvalid.txt",
    "x86": "linux-6.1-x86-pfnremap.txt",
}
TARGETS = {
    **{f"mix{letter}": Target(f"mix{letter}", letter) for letter in "RPIV"},
    "pfnremap": Target("pfnremap", "G", VmMode.REMAP),
    "cramx": Target("cramx", "D", VmMode.CRAMFS),
    "cramm": Target("cramm", "DDDDDC", VmMode.CRAMFS),
}
OTHERWISE = {
    # The first page that a file brings into the page cache. A batch for the LRU list holds a third
    # reference of it until the process ends: mm has no LRU lists.
    "cramx|read_private|p0": ("ref=3", "ref=2"),
    "cramm|read_private|p0": ("ref=3", "ref=2"),
}
"""Lines that mm answers otherwise, and wherein: docs/LIMITS.md names them."""


def golden_lines(arch: str, target: str) -> list[str]:
    lines = (GOLDEN / FILES[arch]).read_text().splitlines()
    return [line for line in lines if line.startswith(f"{target}|")]


def expected_lines(arch: str, target: str) -> list[str]:
    """The golden lines, with what is known to be otherwise as mm has it."""
    expected = []
    for line in golden_lines(arch, target):
        theirs, ours = OTHERWISE.get("|".join(line.split("|")[:3]), ("", ""))
        assert theirs in line
        expected.append(line.replace(theirs, ours) if theirs else line)
    return expected


CASES = [("um", name) for name in TARGETS] + [("um-special", name) for name in TARGETS]


@pytest.mark.parametrize(("arch", "target"), [*CASES, ("x86", "pfnremap")])
def test_every_line_of_the_kernel(arch: str, target: str):
    assert list(play(TARGETS[target], get_arch(arch, "6.1"))) == expected_lines(arch, target)


@pytest.mark.parametrize("target", ["mixR", "mixP", "mixI", "mixV", "cramx", "cramm"])
def test_x86_agrees_with_a_special_bit_elsewhere(target: str):
    lines = list(play(TARGETS[target], get_arch("x86", "6.1")))
    assert lines == expected_lines("um-special", target)


def test_no_line_was_left_out():
    cases = [*CASES, ("x86", "pfnremap")]
    assert sum(len(golden_lines(arch, target)) for arch, target in cases) == 4100


def test_one_scenario_is_the_same_alone():
    lines = list(play(TARGETS["mixI"], get_arch("um", "6.1"), "mlock"))
    assert lines == [line for line in golden_lines("um", "mixI") if line.startswith("mixI|mlock|")]


@pytest.mark.parametrize("arch", ["um", "um-special", "x86"])
@pytest.mark.parametrize("hooks", list(Hooks))
@pytest.mark.parametrize("plan", ["RRPV", "IVZ", "WF", "VRI"])
def test_other_plans_play_to_the_end_and_leave_nothing_behind(arch: str, hooks: Hooks, plan: str):
    lines = list(play(Target("mine", plan, VmMode.MIXED, hooks), get_arch(arch, "6.1")))
    assert {line.split("|")[1] for line in lines} == set(SCENARIOS)


@pytest.mark.parametrize("blocks", ["C", "DC", "CD", "DDDDDDDC"])
def test_other_files_of_cramfs_show_the_same_bytes(blocks: str):
    """However a page is stored, programs see the same."""
    said = ("read", "write", "child_read", "child_write", "other_view", "parent_sees", "after")
    lines: list[list[str]] = []
    for letters in ("D", blocks):
        played = play(Target("mine", letters, VmMode.CRAMFS), get_arch("um", "6.1"))
        lines.append([line for line in played if line.split("|")[2] in said])
    assert len(lines[0]) > 10
    assert lines[0] == lines[1]


def test_a_file_of_cramfs_whose_first_block_is_compressed_is_an_ordinary_map():
    target = Target("mine", "CD", VmMode.CRAMFS)
    lines = list(play(target, get_arch("um", "6.1"), "read_shared_ro"))
    assert lines[0].endswith("VmFlags=[rd mr me ms ]")
    assert "|p0_before|pm=none pte=none" in lines[1]
    assert "p0='A' p1='B'" in lines[2]
    assert "vm_normal_page=page ref=2 mapc=1" in lines[3]


def test_a_private_pfnmap_area_tells_its_copies_from_its_pages():
    """18: the pfn of a copy is never its linear place, however small the machine."""
    arch = get_arch("um", "6.1")
    lines = list(play(Target("pfn", "V", VmMode.PFN), arch, "cow"))
    (written,) = [line for line in lines if "|p0_w|" in line]
    assert written.endswith("cls=anon valid=1 vm_normal_page=page mapc=1 PageAnon")


def test_a_bug_ends_its_scenario_and_is_told():
    lines: list[str] = []
    with pytest.raises(BugError, match=r"read_private: BUG: vm_insert_pfn: private"):
        lines.extend(play(Target("pfn", "F", VmMode.PFN), get_arch("um", "6.1")))
    played = {line.split("|")[1] for line in lines}
    assert played >= {"read_shared_ro", "fork_shared", "mincore", "msync"}
    assert "read_private" not in played, "it ends at its first access"


@pytest.mark.parametrize(
    ("plan", "vm", "scenario"),
    [
        ("", VmMode.MIXED, None),
        ("RX", VmMode.MIXED, None),
        ("R", VmMode.MIXED, "nonsense"),
        ("", VmMode.CRAMFS, None),
        ("R", VmMode.CRAMFS, None),
    ],
)
def test_what_cannot_be_played_is_one_clear_error(plan: str, vm: VmMode, scenario: str | None):
    with pytest.raises(InvalidArgumentError, match=r"no plan|no scenario|no blocks"):
        list(play(Target("mine", plan, vm), get_arch("um", "6.1"), scenario))
