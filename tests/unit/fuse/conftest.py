"""A mount of a small image, without FUSE."""

import pytest

from tests.kit.image import Extent, ImageKit
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import MountOptions
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SIZE

NR_IMAGE_PAGES = 256


def page_of(char: bytes) -> bytes:
    return char * PAGE_SIZE


@pytest.fixture
def image(tmp_path):
    """An image: big (8 pages), empty, sparse (pages 1 and 5 of 8, page 3 unwritten), link, dir."""
    kit = ImageKit(nr_pages=NR_IMAGE_PAGES)
    kit.add_file(INO_ROOT, b"big", b"".join(page_of(b"%d" % i) for i in range(8)))
    kit.add_file(INO_ROOT, b"empty")
    extents = [Extent(1, page_of(b"A")), Extent(3, nr_pages=1, unwritten=True)]
    extents.append(Extent(5, page_of(b"B")))
    kit.add_extents(INO_ROOT, b"sparse", extents, 8 * PAGE_SIZE)
    kit.add_symlink(INO_ROOT, b"link", b"big")
    kit.add_dir(INO_ROOT, b"dir")
    return kit.build().write(tmp_path / "nvram.img")


@pytest.fixture
def mount(image):
    """The image, opened with 8 RAM frames; moves nothing by itself."""
    mount = Mount.open(image, MountOptions(ram_bytes=8 * PAGE_SIZE, policy="none"))
    yield mount
    mount.close()
