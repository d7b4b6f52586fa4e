"""The made tree, its image, and two doors to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.files import DirectFiles, Files, KernelFiles
from tests.kit.made import made, made_image, made_tree
from tests.kit.mount import mounted
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import MountOptions

__all__ = ["made", "made_image", "made_tree"]


@pytest.fixture
def direct(made_image: Path) -> Iterator[DirectFiles]:
    """The image behind operations called directly; its books are balanced at the end."""
    mount = Mount.open(made_image, MountOptions(ro=True, ram_bytes=1 << 20))
    yield DirectFiles(mount)
    mount.mm.check_invariants()
    mount.machine.mem_map.check_invariants()
    mount.close()


@pytest.fixture(scope="module")
def live_files(made_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelFiles]:
    """The image through a real mount, one for all tests of a module."""
    mountpoint = tmp_path_factory.mktemp("live") / "mnt"
    with mounted(made_image, mountpoint, "ro,epoch=50") as live:
        yield KernelFiles(live.path)


@pytest.fixture(params=["direct", pytest.param("mount", marks=pytest.mark.fuse)])
def files(request: pytest.FixtureRequest) -> Files:
    """Both doors: a test with this fixture runs once through each."""
    name = "direct" if request.param == "direct" else "live_files"
    found: Files = request.getfixturevalue(name)
    return found
