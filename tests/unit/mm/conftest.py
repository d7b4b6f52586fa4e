"""A world for each test of mm, on both kinds of architecture."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.mm import ARCH_KINDS, World
from xipfs.mm.arch import Arch


@pytest.fixture(params=ARCH_KINDS.values(), ids=ARCH_KINDS)
def arch(request: pytest.FixtureRequest) -> Arch:
    """Without and with a pte special bit."""
    return request.param


@pytest.fixture
def world(tmp_path: Path, arch: Arch) -> Iterator[World]:
    """64 blocks, the last 4 of them zeros; 8 frames; one mm. Every reference is accounted for."""
    world = World(tmp_path / "region", arch)
    yield world
    world.close()
