"""Scenes that a live kernel has answered, played on mm and on the reference.

`scenes/ARCH/NAME.scene` has a kernel's answer behind each operation; its first line says what it
shows. `xipfs oracle scene FILE --arch ARCH --kernel` printed them (Linux 6.1.192, see
tools/oracle-kernel), and prints them again for those who have the kernels.
"""

from pathlib import Path

import pytest

from tests.kit.reference import Reference
from xipfs.mm.arch import get_arch
from xipfs.oracle.player import play_scene, scene_lines

SCENES = sorted((Path(__file__).parent / "scenes").glob("*/*.scene"))


def read_scene(path: Path) -> tuple[list[str], list[str]]:
    """The lines of the scene, each with the kernel's answer, and the lines alone."""
    text = path.read_text()
    answered = [line for line in text.splitlines() if not line.startswith("#")]
    return answered, scene_lines(text)


@pytest.mark.parametrize("path", SCENES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_mm_answers_as_the_kernel_did(path: Path):
    answered, lines = read_scene(path)
    answers = play_scene(lines, get_arch(path.parent.name, "6.1"))
    assert [f"{op} -> {answer}" for op, answer in zip(lines, answers, strict=True)] == answered


@pytest.mark.parametrize("path", SCENES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_reference_answers_as_the_kernel_did(path: Path):
    answered, lines = read_scene(path)
    reference = Reference(lines[0], path.parent.name)
    answers = ["ok", *(reference.play(op) for op in lines[1:])]
    assert [f"{op} -> {answer}" for op, answer in zip(lines, answers, strict=True)] == answered
    reference.check_invariants()


def test_every_scene_says_what_it_shows():
    assert len(SCENES) >= 24
    for path in SCENES:
        assert path.read_text().startswith("# "), path.name
