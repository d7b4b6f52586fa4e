"""A world for each case, on every architecture and version unless the test names some."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.mm import World, arch_id
from xipfs.mm.arch import ARCHS, Arch
from xipfs.mm.vma import Vma
from xipfs.units import Pfn


@pytest.fixture(params=ARCHS, ids=arch_id)
def arch(request: pytest.FixtureRequest) -> Arch:
    return request.param


@pytest.fixture
def world(tmp_path: Path, arch: Arch) -> Iterator[World]:
    world = World(tmp_path / "region", arch)
    yield world
    world.close()


@pytest.fixture
def vma(world: World) -> Vma:
    """Eight pages of a file, none mapped yet."""
    return world.mmap(world.fs.make_file({pgoff: 10 + pgoff for pgoff in range(8)}))


@pytest.fixture
def frame(world: World) -> Pfn:
    """A frame of RAM that the test holds a reference of."""
    frame = world.machine.mem_map.alloc_page()
    assert frame is not None
    return frame
