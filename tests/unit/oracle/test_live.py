"""LiveKernel: talking to a kernel that stops, with a shell script in its place."""

from pathlib import Path

import pytest

from xipfs.oracle.live import KernelError, LiveKernel

SCRIPT = """#!/bin/sh
echo booting >&2
{greeting}
while read line; do
    case $line in
        crash) echo "Kernel panic" >&2; exit 1 ;;
        grumble) echo "BUG: Bad page map" >&2; echo ok ;;
        *) echo "did $line" ;;
    esac
done
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where LiveKernel looks for kernels, with one in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    home = tmp_path / "xipfs" / "oracle-kernel" / "current"
    (home / "um").mkdir(parents=True)
    write_kernel(home, "echo ready")
    return home


def write_kernel(home: Path, greeting: str) -> None:
    linux = home / "um" / "linux"
    linux.write_text(SCRIPT.format(greeting=greeting))
    linux.chmod(0o755)


def test_scenes_share_a_boot(home: Path):
    with LiveKernel("um") as kernel:
        assert kernel.play(["a", "b"]) == ["did a", "did b"]
        assert kernel.play(["grumble"]) == ["ok"]
        assert kernel.complaints == ["BUG: Bad page map"]
        assert kernel.play(["c"]) == ["did c"]
        assert (kernel.nr_boots, kernel.complaints) == (1, [])


def test_more_lines_than_a_console_takes_at_once(home: Path):
    lines = [f"{i} is a line of a long scene" for i in range(500)]
    with LiveKernel("um") as kernel:
        assert kernel.play(lines) == [f"did {line}" for line in lines]


def test_a_kernel_that_stops_is_booted_again(home: Path):
    with LiveKernel("um") as kernel:
        assert kernel.play(["a", "crash", "b"]) == ["did a", "BUG"]
        assert kernel.complaints == ["Kernel panic"]
        assert kernel.play(["b"]) == ["did b"]
        assert kernel.nr_boots == 2


def test_a_kernel_that_does_not_boot_tells_its_last_words(home: Path):
    write_kernel(home, "exit 1")
    with LiveKernel("um") as kernel, pytest.raises(KernelError, match="does not boot: booting"):
        kernel.play(["a"])


def test_no_kernel_says_how_to_make_one(home: Path):
    with pytest.raises(KernelError, match="tools/oracle-kernel build"):
        LiveKernel("um-special")
