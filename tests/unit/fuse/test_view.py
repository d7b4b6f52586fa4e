"""What people look at: tiers and extents of a file, the region as a map."""

import json

import numpy as np
import pytest

from tests.kit.image import Extent, ImageKit
from tests.unit.fuse.conftest import NR_IMAGE_PAGES, page_of
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import MountOptions
from xipfs.fuse.view import NR_LISTED_EXTENTS_MAX
from xipfs.mm.migrate import promote_pages
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE


def open_file(mount: Mount, name: bytes):
    """Look a file up and open it; return (inode, fh)."""
    inode = mount.dispatch(mount.operations.lookup, INO_ROOT, name)
    return inode, mount.dispatch(mount.operations.open, inode.ino, 0)


def read(mount: Mount, fh, pgoff: int, nr_pages: int) -> None:
    mount.dispatch(mount.operations.read, fh, pgoff * PAGE_SIZE, nr_pages * PAGE_SIZE)


def promote(mount: Mount, inode, *pgoffs: int) -> None:
    promote_pages(mount.machine, inode.mapping, np.array(pgoffs))


def attribute(mount: Mount, inode, name: str):
    value = mount.dispatch(mount.operations.getxattr, inode.ino, f"user.xipfs.{name}".encode())
    return json.loads(value)


def first_block(inode) -> int:
    return int(inode.disk.extents["block"][0])


def test_tiers_of_a_file(mount):
    inode, fh = open_file(mount, b"big")
    assert attribute(mount, inode, "tiers") == {"pages": 8, "ram": 0, "nvram": 8, "hole": 0}
    read(mount, fh, 0, 8)
    promote(mount, inode, 2, 3, 7)
    assert attribute(mount, inode, "tiers") == {"pages": 8, "ram": 3, "nvram": 5, "hole": 0}


def test_tiers_count_holes_and_unwritten_pages_as_no_memory(mount):
    inode, _ = open_file(mount, b"sparse")
    promote(mount, inode, 5)
    assert attribute(mount, inode, "tiers") == {"pages": 8, "ram": 1, "nvram": 1, "hole": 6}


def test_tiers_of_an_empty_file(mount):
    inode, _ = open_file(mount, b"empty")
    assert attribute(mount, inode, "tiers") == {"pages": 0, "ram": 0, "nvram": 0, "hole": 0}


def test_extents_of_a_file(mount):
    inode, _ = open_file(mount, b"big")
    block = first_block(inode)
    assert attribute(mount, inode, "extents") == {
        "nr_extents": 1,
        "extents": [[0, NVRAM_PFN_START + block, 8]],
    }


def test_extents_of_a_sparse_file(mount):
    inode, _ = open_file(mount, b"sparse")
    blocks = [NVRAM_PFN_START + int(block) for block in inode.disk.extents["block"]]
    assert attribute(mount, inode, "extents") == {
        "nr_extents": 3,
        "extents": [[1, blocks[0], 1], [3, blocks[1], 1, "unwritten"], [5, blocks[2], 1]],
    }


def test_extents_of_a_directory(mount):
    inode = mount.dispatch(mount.operations.getattr, INO_ROOT)
    assert attribute(mount, inode, "extents")["nr_extents"] == 1


def test_only_so_many_extents_are_listed(tmp_path):
    """All are counted; an attribute's value ends at 64 KiB."""
    kit = ImageKit(nr_pages=4096)
    nr_extents = NR_LISTED_EXTENTS_MAX + 88
    extents = [Extent(2 * i, page_of(b"x")) for i in range(nr_extents)]
    kit.add_extents(INO_ROOT, b"torn", extents, 2 * nr_extents * PAGE_SIZE)
    image = kit.build().write(tmp_path / "torn.img")
    mount = Mount.open(image, MountOptions(ram_bytes=0))
    inode, _ = open_file(mount, b"torn")
    value = mount.operations.getxattr(inode.ino, b"user.xipfs.extents")
    assert len(value) < 1 << 16
    found = json.loads(value)
    assert found["nr_extents"] == nr_extents
    assert len(found["extents"]) == NR_LISTED_EXTENTS_MAX
    assert attribute(mount, inode, "tiers")["hole"] == nr_extents
    mount.close()


def test_the_map_of_an_untouched_region(mount):
    region = mount.region_map(64)
    assert region.nr_cell_pages == 4
    for array in (region.nr_mapped, region.nr_ram, region.heat):
        assert array.shape == (64,)
        assert array.dtype == np.int64
        assert not array.any()


@pytest.mark.parametrize(
    ("nr_asked", "nr_cells", "nr_cell_pages"),
    [(1, 1, 256), (2, 2, 128), (3, 3, 86), (100, 86, 3), (256, 256, 1), (10_000, 256, 1)],
)
def test_the_cells_cover_the_region(mount, nr_asked, nr_cells, nr_cell_pages):
    region = mount.region_map(nr_asked)
    assert (len(region.nr_mapped), region.nr_cell_pages) == (nr_cells, nr_cell_pages)
    assert NR_IMAGE_PAGES <= nr_cells * nr_cell_pages < NR_IMAGE_PAGES + nr_cell_pages


def test_the_map_tells_tier_and_heat_by_place(mount):
    inode, fh = open_file(mount, b"big")
    read(mount, fh, 0, 8)
    read(mount, fh, 4, 1)
    read(mount, fh, 4, 1)
    promote(mount, inode, 6, 7)
    region = mount.region_map(NR_IMAGE_PAGES)
    block = first_block(inode)
    expected = np.zeros(NR_IMAGE_PAGES, np.int64)
    expected[block : block + 6] = 1
    assert region.nr_mapped.tolist() == expected.tolist()
    expected[block : block + 8] = [0, 0, 0, 0, 0, 0, 1, 1]
    assert region.nr_ram.tolist() == expected.tolist()
    assert region.heat[block : block + 8].tolist() == [1, 1, 1, 1, 3, 1, 0, 0]
    # In RAM and read there: the heat is shown where the page's shadow is.
    read(mount, fh, 6, 1)
    region = mount.region_map(NR_IMAGE_PAGES)
    assert region.heat[block + 6] == 2
    assert region.nr_mapped[block + 6] == 0


def test_holes_are_nowhere_on_the_map(mount):
    inode, fh = open_file(mount, b"sparse")
    read(mount, fh, 0, 8)
    region = mount.region_map(NR_IMAGE_PAGES)
    assert region.nr_mapped.sum() == 2
    assert region.heat.sum() == 2
    blocks = {int(row["block"]) for row in inode.disk.extents if not row["flags"]}
    assert set(np.flatnonzero(region.nr_mapped).tolist()) == blocks


def test_the_sums_do_not_depend_on_the_scale(mount):
    inode, fh = open_file(mount, b"big")
    read(mount, fh, 0, 8)
    promote(mount, inode, 0, 5)
    read(mount, fh, 0, 3)
    fine = mount.region_map(NR_IMAGE_PAGES)
    for nr_cells in (1, 2, 7, 50, 200):
        coarse = mount.region_map(nr_cells)
        for name in ("nr_mapped", "nr_ram", "heat"):
            assert getattr(coarse, name).sum() == getattr(fine, name).sum()
