"""A world for each test of mm, on both kinds of architecture."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.mm import ARCH_KINDS, World, block_bytes
from xipfs.mm.arch import Arch
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT


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


@pytest.fixture
def writable(arch: Arch) -> Iterator[World]:
    """The same over a region that takes stores."""
    nvram = NvramDevice.scratch(64 << PAGE_SHIFT)
    for block in range(60):
        nvram.store_bytes(block << PAGE_SHIFT, block_bytes(block))
    world = World(None, arch, nvram=nvram)
    yield world
    world.close()
    nvram.close()
