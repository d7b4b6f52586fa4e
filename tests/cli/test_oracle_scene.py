"""`xipfs oracle scene`: a scene file, played on the simulated kernel or a real one."""

from pathlib import Path

import pytest

from xipfs.cli.main import main

SCENE = """# a private copy
device plan=R vm=mixed hooks=full
0 map A rw private 2
0 write A 0 Q -> an answer of long ago
0 read A 0
"""


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "copy.scene"
    path.write_text(SCENE)
    return path


def test_each_line_gets_its_answer(scene: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["oracle", "scene", str(scene)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "device plan=R vm=mixed hooks=full -> ok",
        "0 map A rw private 2 -> ok",
        "0 write A 0 Q -> ok",
        "0 read A 0 -> 'Q'",
    ]


def test_a_bug_of_the_kernel_ends_the_scene(scene: Path, capsys: pytest.CaptureFixture[str]):
    scene.write_text("device plan=F vm=pfn hooks=full\n0 map A rw private 1\n0 read A 0\ncount\n")
    assert main(["oracle", "scene", str(scene)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 read A 0 -> BUG"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no scene"),
        ("device plan=R vm=mixed hooks=full\n0 fly A 0\n", "no such operation: '0 fly A 0'"),
    ],
)
def test_no_scene_is_one_clear_line(
    scene: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
):
    scene.write_text(text)
    assert main(["oracle", "scene", str(scene)]) != 0
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert words in errors[0]


def test_a_kernel_that_is_not_there_says_how_to_make_it(
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["oracle", "scene", str(scene), "--kernel"]) != 0
    assert "tools/oracle-kernel build makes it" in capsys.readouterr().err
