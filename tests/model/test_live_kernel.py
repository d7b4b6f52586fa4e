"""Random scenes, played on a live kernel, on mm and on the reference: equal answers of all three.

Part of `tools/oracle-kernel scenes` only, which builds the kernels; `--nr-scenes` of them are
written by hypothesis for each kernel, the same ones each time unless `--scenes-seed` is given. The
first on which the three differ is shrunk, line by line, and shown. What is found becomes a golden:
tests/conformance/scenes/.
"""

import logging
import re
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.kit.reference import BadScene, Reference
from tests.kit.scenes import scenes
from xipfs.mm.arch import get_arch
from xipfs.oracle.live import ARCHS, LiveKernel
from xipfs.oracle.player import BUG, play_scene

pytestmark = pytest.mark.kernel

ALARM = re.compile(r"BUG|Bad |WARNING: .* at (?!\S+ insert_pfn)")
"""What a kernel logs when something is wrong; insert_pfn warns of what scenes do on purpose."""


@pytest.fixture(autouse=True)
def no_warnings_of_mkwrite() -> Iterator[None]:
    """Scenes make pages writable where others are mapped: the kernel warns, and so do we."""
    logger = logging.getLogger("xipfs.mm.mixedmap")
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


def play_reference(arch: str, lines: list[str]) -> list[str]:
    reference = Reference(lines[0], arch)
    answers = ["ok"]
    for op in lines[1:]:
        answers.append(reference.play(op))
        if answers[-1] == BUG:
            break
    return answers


class Trio:
    """The three players of one architecture."""

    def __init__(self, arch: str, kernel: LiveKernel) -> None:
        self.arch = arch
        self.kernel = kernel

    def differing(self, lines: list[str]) -> tuple[int, str] | None:
        """Where they differ first, and what they say. None also for a scene without sense."""
        try:
            reference = play_reference(self.arch, lines)
        except BadScene:
            return None
        answers = {
            "kernel": self.kernel.play(lines),
            "model": play_scene(lines, get_arch(self.arch, "6.1")),
            "reference": reference,
        }
        for i in range(len(lines)):
            said = {name: said[i] if i < len(said) else "-" for name, said in answers.items()}
            if len(set(said.values())) > 1:
                return i, "".join(f"  {name:9} {text}\n" for name, text in said.items())
            if BUG in said.values():
                break
        if alarms := [line for line in self.kernel.complaints if ALARM.search(line)]:
            return len(lines) - 1, "".join(f"  kernel's log: {line}\n" for line in alarms)
        return None

    def shrink(self, lines: list[str]) -> tuple[list[str], str]:
        """Leave out line after line, from the end on, as long as they differ anywhere."""
        found = self.differing(lines)
        assert found is not None, "they differed, and do not any more"
        place, said = found
        lines = lines[: place + 1]
        i = len(lines) - 2
        while i > 0:
            shorter = lines[:i] + lines[i + 1 :]
            if (found := self.differing(shorter)) is not None:
                place, said = found
                lines = shorter[: place + 1]
            i = min(i, len(lines)) - 1
        return lines, said


@pytest.mark.parametrize("arch", ARCHS)
def test_mm_and_the_reference_answer_as_the_kernel(
    arch: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
):
    config = request.config
    nr_scenes = nr_operations = 0
    found: dict[str, str] = {}  # hypothesis asks again for what failed
    start = time.monotonic()

    @seed(config.getoption("scenes_seed"))
    @settings(
        max_examples=config.getoption("nr_scenes"),
        derandomize=False,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(scenes(arch=arch))
    def play(scene: str) -> None:
        nonlocal nr_scenes, nr_operations
        lines = scene.splitlines()
        if scene not in found and trio.differing(lines):
            shrunk, said = trio.shrink(lines)
            found[scene] = "\n".join(shrunk) + f"\n{said}"
        if scene in found:
            pytest.fail(found[scene], pytrace=False)
        nr_scenes += 1
        nr_operations += len(lines)

    with LiveKernel(arch) as kernel:
        trio = Trio(arch, kernel)
        play()
        with capsys.disabled():
            print(
                f"\n{arch}: {nr_scenes} scenes, {nr_operations} operations, "
                f"{kernel.nr_boots} boots, {time.monotonic() - start:.0f} s"
            )
