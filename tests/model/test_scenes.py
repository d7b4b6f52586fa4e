"""Random scenes of several processes, played on mm and on the reference: equal answers, and after
each operation every reference accounted for.

The reference is written from the specification alone (tests/kit/reference.py). What a scene may
do, and what it asks for at its end, is in tests/kit/scenes.py; hypothesis makes failing ones short.
"""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import given, settings

from tests.kit.operations import OPERATIONS, nr_examples
from tests.kit.reference import Reference
from tests.kit.scenes import scenes
from xipfs.mm.arch import get_arch
from xipfs.mm.check import check_invariants
from xipfs.oracle.player import Player

ARCHES = ("um", "um-special", "x86")

COPIES_OF_THE_KERNEL = ("ptrace_poke", "write_pipe", "read_pipe")
"""User-mode Linux copies from and to user memory by looking at ptes itself, which is not of mm."""


@pytest.fixture(scope="module", autouse=True)
def no_warnings_of_mkwrite() -> Iterator[None]:
    """Scenes make pages writable where others are mapped: the kernel warns, and so do we."""
    logger = logging.getLogger("xipfs.mm.mixedmap")
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("arch", ARCHES)
def test_mm_answers_as_the_reference(arch: str):
    without = () if arch == "x86" else COPIES_OF_THE_KERNEL
    # On x86 a fork that PAT refuses has copied as many areas as lie below in memory, and the kernel
    # puts areas elsewhere: how many were opened and closed again is not told.
    vms = ("mixed", "pfn") if arch == "x86" else ("mixed", "pfn", "remap")

    @settings(max_examples=nr_examples(15, 1000))
    @given(scenes(arch=arch, vms=vms, without_users=without, with_rss=True))
    def play_both(scene: str) -> None:
        header, *ops = scene.splitlines()
        model = Player(header, get_arch(arch, "6.1"))
        reference = Reference(header, arch, "6.1")
        for op in ops:
            assert (op, model.play(op)) == (op, reference.play(op))
            check_invariants(model.boot.machine, model.mms, [model.device.f_mapping], model.pins)
            OPERATIONS["scenes"] += 1
        reference.check_invariants()
        model.close()

    play_both()
