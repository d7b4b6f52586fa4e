"""File pages to image pages, by inline extents and by trees, sound and damaged."""

import numpy as np
import pytest

from tests.kit.image import Extent, HandmadeImage, ImageKit
from xipfs.errors import FormatError
from xipfs.fs.extent import ExtentMap, iter_extents, iter_nodes
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.extent import EXTENT_DTYPE, NR_INLINE_EXTENTS, ExtentFlags
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, PFN_NONE, Ino, Pgoff

PAGE = b"\xab" * PAGE_SIZE


def scattered(nr_extents: int, depth: int | None = None) -> tuple[HandmadeImage, int]:
    """A file whose extents are one page each, at file pages 1, 3, 5, .."""
    kit = ImageKit(fanout=3)
    extents = [Extent(2 * i + 1, PAGE) for i in range(nr_extents)]
    ino = kit.add_extents(INO_ROOT, b"file", extents, 2 * nr_extents * PAGE_SIZE, depth=depth)
    return kit.build(), ino


@pytest.fixture
def open_map(tmp_path):
    """Image and inode number -> ExtentMap, SuperBlock; all are closed at the end."""
    opened = []

    def open_map(image: HandmadeImage, ino: int) -> tuple[ExtentMap, SuperBlock]:
        sb = SuperBlock.open(image.write(tmp_path / "nvram.img"))
        opened.append(sb)
        return sb.iget(Ino(ino)).extents, sb

    yield open_map
    for sb in opened:
        sb.close()


@pytest.mark.parametrize(("nr_extents", "depth"), [(0, 0), (5, 0), (6, 1), (12, 1), (60, 3)])
def test_find_block_and_pfns_agree_with_the_extents(open_map, nr_extents, depth):
    image, ino = scattered(nr_extents)
    assert image.inode(ino).extent_depth == depth
    extents, sb = open_map(image, ino)
    expected = np.full(2 * nr_extents + 5, PFN_NONE)
    for pgoff, block, nr_pages, _ in iter_extents(sb.nvram, sb.seed, sb.load_inode(Ino(ino))):
        expected[pgoff : pgoff + nr_pages] = NVRAM_PFN_START + np.arange(block, block + nr_pages)
    assert (expected != PFN_NONE).sum() == nr_extents
    assert extents.pfns(Pgoff(0), len(expected)).tolist() == expected.tolist()
    for pgoff, pfn in enumerate(expected.tolist()):
        block = extents.find_block(Pgoff(pgoff))
        assert block == (None if pfn == PFN_NONE else pfn - NVRAM_PFN_START)
        for nr_pages in (1, 4):
            part = expected[pgoff : pgoff + nr_pages].tolist()
            assert extents.pfns(Pgoff(pgoff), len(part)).tolist() == part


def test_long_extents_next_to_each_other(open_map):
    kit = ImageKit()
    ino = kit.add_extents(
        INO_ROOT, b"file", [Extent(0, PAGE * 3), Extent(3, PAGE * 2), Extent(9, PAGE)], 10 << 12
    )
    extents, _ = open_map(kit.build(), ino)
    first = extents.find_block(Pgoff(0))
    found = (extents.pfns(Pgoff(1), 10) - NVRAM_PFN_START - first).tolist()
    hole = PFN_NONE - NVRAM_PFN_START - first
    assert found == [1, 2, 3, 4, hole, hole, hole, hole, 5, hole]


def test_unwritten_extents_are_holes(open_map):
    kit = ImageKit()
    ino = kit.add_extents(
        INO_ROOT,
        b"file",
        [Extent(0, PAGE), Extent(1, nr_pages=2, unwritten=True), Extent(3, PAGE)],
        4 << 12,
    )
    extents, sb = open_map(kit.build(), ino)
    assert [extents.find_block(Pgoff(n)) is None for n in range(5)] == [
        False,
        True,
        True,
        False,
        True,
    ]
    assert (extents.pfns(Pgoff(0), 5) == PFN_NONE).tolist() == [False, True, True, False, True]
    flags = [f for _, _, _, f in iter_extents(sb.nvram, sb.seed, sb.load_inode(Ino(ino)))]
    assert flags == [0, ExtentFlags.UNWRITTEN, 0]


@pytest.mark.parametrize("pgoff", [1 << 32, (1 << 63) - 1, (1 << 64) - 1])
def test_pages_far_behind_the_end_are_holes(open_map, pgoff):
    for nr_extents in (2, 12):
        extents, _ = open_map(*scattered(nr_extents))
        assert extents.find_block(Pgoff(pgoff)) is None


def test_nodes_come_parents_first_and_in_file_order(open_map):
    image, ino = scattered(12, depth=2)
    _, sb = open_map(image, ino)
    nodes = list(iter_nodes(sb.nvram, sb.seed, sb.load_inode(Ino(ino))))
    assert [depth for _, depth, _ in nodes] == [1, 0, 0, 0, 1, 0]
    leaves = [int(entries["pgoff"][0]) for _, depth, entries in nodes if depth == 0]
    assert leaves == [1, 7, 13, 19]
    assert image.inode(ino).nr_pages == 12 + len(nodes)


@pytest.mark.parametrize(
    "change",
    [
        {"block": 0},
        {"block": -1},
        {"block": 256},
        {"block": (1 << 63) - 1},
        {"block": 255, "nr_pages": 2},
        {"nr_pages": (1 << 32) - 1},
        {"pgoff": -1},
        {"pgoff": 5},
    ],
)
@pytest.mark.parametrize("nr_extents", [3, 7])
def test_extents_outside_or_out_of_order_are_refused(open_map, nr_extents, change):
    """A block near 2^63 once passed the check, its end having wrapped around."""
    image, ino = scattered(nr_extents)
    if image.inode(ino).extent_depth:
        image.change_node(image.node_block(ino), 1, **change)
    else:
        image.change_extent(ino, 1, **change)
    extents, sb = open_map(image, ino)
    with pytest.raises(FormatError, match=f"inode {ino}: extent of"):
        extents.find_block(Pgoff(3))
    with pytest.raises(FormatError, match=f"inode {ino}: extent of"):
        extents.pfns(Pgoff(0), 7)
    with pytest.raises(FormatError, match=f"inode {ino}: extent of"):
        list(iter_extents(sb.nvram, sb.seed, sb.load_inode(Ino(ino))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ino": 99}, "says inode 99"),
        ({"generation": 99}, "generation 99"),
        ({"depth": 1}, "depth 1"),
        ({"nr_entries": 170}, "170 extents"),
    ],
)
def test_nodes_of_somebody_else_are_refused(open_map, change, message):
    image, ino = scattered(7)
    image.change_node(image.node_block(ino), **change)
    extents, _ = open_map(image, ino)
    with pytest.raises(FormatError, match=message):
        extents.find_block(Pgoff(1))


@pytest.mark.parametrize("block", [0, -5, 256, 1 << 60])
def test_nodes_outside_of_the_image_are_refused(open_map, block):
    image, ino = scattered(7)
    image.change_extent(ino, 0, block=block)
    extents, _ = open_map(image, ino)
    with pytest.raises(FormatError, match="outside of the image"):
        extents.find_block(Pgoff(1))


AREAS = ["superblock", "state", "journal", "ring", "descriptors", "bitmaps", "replica"]


def block_of(image: HandmadeImage, area: str) -> int:
    disk = image.disk
    return {
        "superblock": 0,
        "state": 1,
        "journal": disk.journal_block,
        "ring": disk.journal_block + disk.nr_journal_pages - 1,
        "descriptors": disk.gdt_block,
        "bitmaps": disk.bitmap_block,
        "replica": disk.nr_pages - 1,
    }[area]


@pytest.mark.parametrize("area", AREAS)
def test_no_file_has_pages_of_the_metadata(open_map, area):
    """Who may write to such a file could write himself a journal."""
    image, ino = scattered(3)
    image.change_extent(ino, 1, block=block_of(image, area))
    extents, sb = open_map(image, ino)
    for read in (
        lambda: extents.find_block(Pgoff(3)),
        lambda: extents.pfns(Pgoff(0), 6),
        lambda: list(iter_extents(sb.nvram, sb.seed, sb.load_inode(Ino(ino)))),
    ):
        with pytest.raises(FormatError, match="in its metadata"):
            read()


def test_extents_that_run_into_the_metadata_are_refused(open_map):
    image, ino = scattered(3)
    start = image.disk.journal_block - 3
    image.change_extent(ino, 2, block=start, nr_pages=3)
    extents, _ = open_map(image, ino)
    assert extents.find_block(Pgoff(5)) == start
    image.change_extent(ino, 2, block=start, nr_pages=4)
    extents, _ = open_map(image, ino)
    with pytest.raises(FormatError, match="in its metadata"):
        extents.find_block(Pgoff(5))


@pytest.mark.parametrize("area", AREAS[1:])
def test_no_node_stands_in_the_metadata(open_map, area):
    """The ring of a journal may hold anything, also a sealed node."""
    image, ino = scattered(7)
    block = block_of(image, area)
    if area == "ring":
        image.page(block)[:] = image.page(image.node_block(ino))
    image.change_extent(ino, 0, block=block)
    extents, _ = open_map(image, ino)
    with pytest.raises(FormatError, match="in its metadata"):
        extents.find_block(Pgoff(1))


def test_more_pages_than_the_image_has_are_refused(open_map):
    """A file whose extents all show the same pages is small in the image and huge in a copy."""
    kit = ImageKit(nr_pages=64)
    ino = kit.add_extents(INO_ROOT, b"f", [Extent(i, PAGE * 20) for i in (0, 20)], 40 * PAGE_SIZE)
    image = kit.build()
    payload = b"".join(
        np.array([(20 * i, 2, 20, 0)], EXTENT_DTYPE).tobytes() for i in range(NR_INLINE_EXTENTS)
    )
    image.change_inode(ino, nr_extents=NR_INLINE_EXTENTS, payload=payload)
    _, sb = open_map(image, ino)
    with pytest.raises(FormatError, match="more pages than the image"):
        list(iter_extents(sb.nvram, sb.seed, sb.load_inode(Ino(ino))))


def test_a_damaged_node_is_refused(open_map):
    image, ino = scattered(7)
    image.page(image.node_block(ino))[100] ^= 1
    extents, _ = open_map(image, ino)
    with pytest.raises(FormatError, match="damaged extent node"):
        extents.pfns(Pgoff(0), 3)


def test_a_node_named_twice_is_refused(open_map):
    image, ino = scattered(12)
    image.change_extent(ino, 1, block=image.node_block(ino, 0))
    _, sb = open_map(image, ino)
    with pytest.raises(FormatError, match="named twice"):
        list(iter_nodes(sb.nvram, sb.seed, sb.load_inode(Ino(ino))))


def test_a_tree_too_deep_is_refused(open_map):
    image, ino = scattered(7)
    image.change_inode(ino, extent_depth=5)
    extents, sb = open_map(image, ino)
    with pytest.raises(FormatError, match="depth 5, at most 4"):
        extents.find_block(Pgoff(0))
    with pytest.raises(FormatError, match="depth 5, at most 4"):
        list(iter_nodes(sb.nvram, sb.seed, sb.load_inode(Ino(ino))))


def test_an_empty_index_is_refused(open_map):
    image, ino = scattered(12, depth=2)
    image.change_node(image.node_block(ino), nr_entries=0)
    extents, _ = open_map(image, ino)
    with pytest.raises(FormatError, match="empty or out of order"):
        extents.find_block(Pgoff(1))


def test_an_index_out_of_order_is_refused(open_map):
    image, ino = scattered(12)
    image.change_extent(ino, 1, pgoff=1 << 20)
    extents, _ = open_map(image, ino)
    with pytest.raises(FormatError, match="out of order"):
        extents.find_block(Pgoff(1))
