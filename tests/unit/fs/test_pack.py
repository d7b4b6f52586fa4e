"""Packing of directories, extent trees and groups; test_mkfs reads what becomes of it."""

import numpy as np
import pytest

from xipfs.errors import BugError
from xipfs.fs import pack
from xipfs.fs.pack import pack_directory, pack_extents, pack_groups
from xipfs.ondisk.dentry import decode_dir_page
from xipfs.ondisk.extent import EXTENT_DTYPE, decode_node
from xipfs.ondisk.group import GROUP_DESC, NR_GROUP_PAGES, GroupFlags, decode_group_desc
from xipfs.units import PAGE_SIZE, Block

SEED = 7
KEY = bytes(16)


def directory(entries):
    pages = pack_directory(SEED, KEY, ino=5, generation=2, entries=entries)
    return [decode_dir_page(page, SEED, "directory") for page in pages]


def test_an_empty_directory_has_a_leaf():
    (root,) = directory([])
    assert (root.ino, root.generation, root.level, len(root.entries)) == (5, 2, 0, 0)


@pytest.mark.parametrize(("name_size", "nr_names"), [(4, 3000), (255, 400), (100, 1)])
def test_leaves_keep_room_for_more(name_size, nr_names):
    pages = directory([(b"%0*d" % (name_size, i), 20 + i, 8) for i in range(nr_names)])
    leaves = [page for page in pages if page.level == 0]
    assert sum(len(leaf.entries) for leaf in leaves) == nr_names
    for leaf in leaves:
        free = leaf.names_start - 32 - 24 * len(leaf.entries)
        assert free >= PAGE_SIZE // 10
    for leaf in leaves[:-1]:  # all but the last are as full as may be
        assert 32 + (len(leaf.entries) + 1) * (24 + name_size) > PAGE_SIZE * 8 // 10


def test_names_do_not_depend_on_their_order():
    entries = [(b"%d" % i, i, 8) for i in range(500)]
    pages = pack_directory(SEED, KEY, ino=5, generation=2, entries=entries)
    assert pages == pack_directory(SEED, KEY, ino=5, generation=2, entries=entries[::-1])


def test_one_hash_has_128_sequences(monkeypatch):
    monkeypatch.setattr(pack, "name_key", lambda name, hash_key: 9 << 7)
    entries = [(b"%03d" % i, i, 8) for i in range(129)]
    pages = directory(entries[:128])
    keys = [key for page in pages if page.level == 0 for key in page.entries["key"].tolist()]
    assert keys == list(range(9 << 7, 10 << 7))
    with pytest.raises(BugError, match="one hash"):
        directory(entries)


def extents(nr_extents):
    rows = [(2 * i, 1000 + 3 * i, 1, 0) for i in range(nr_extents)]
    return np.array(rows, EXTENT_DTYPE)


def test_few_extents_need_no_node():
    pages, top, depth = pack_extents(
        SEED, ino=5, generation=2, extents=extents(5), first_block=Block(50)
    )
    assert (pages, depth) == ([], 0)
    assert np.array_equal(top, extents(5))


@pytest.mark.parametrize(("nr_extents", "nr_nodes", "depth"), [(6, 1, 1), (845, 5, 1), (846, 7, 2)])
def test_nodes_name_their_children(nr_extents, nr_nodes, depth):
    pages, top, found_depth = pack_extents(
        SEED, ino=5, generation=2, extents=extents(nr_extents), first_block=Block(50)
    )
    assert (len(pages), found_depth) == (nr_nodes, depth)
    nodes = {50 + i: decode_node(page, SEED, "node") for i, page in enumerate(pages)}

    def leaves(rows, depth):
        if depth == 0:
            return rows.tolist()
        found = []
        for pgoff, block, nr_pages, flags in rows.tolist():
            ino, generation, node_depth, entries = nodes.pop(block)
            assert (ino, generation, node_depth) == (5, 2, depth - 1)
            assert (entries["pgoff"][0], nr_pages, flags) == (pgoff, 0, 0)
            found += leaves(entries, depth - 1)
        return found

    assert leaves(top, depth) == extents(nr_extents).tolist()
    assert not nodes


def test_groups():
    nr_pages = 4 * NR_GROUP_PAGES + 100
    descriptors, bitmaps = pack_groups(
        SEED,
        nr_pages=nr_pages,
        used_end=Block(NR_GROUP_PAGES + 10),
        free_runs=[(Block(NR_GROUP_PAGES - 5), 10), (Block(3), 2)],
    )
    records = [decode_group_desc(record.tobytes(), SEED, i) for i, record in enumerate(descriptors)]
    assert [record.nr_free_pages for record in records] == [
        5 + 2,
        NR_GROUP_PAGES - 10 + 5,
        NR_GROUP_PAGES,
        NR_GROUP_PAGES,
        99,
    ]
    assert sorted(bitmaps) == [0, 1, 4]
    assert [record.flags for record in records[2:4]] == [GroupFlags.BITMAP_UNINIT] * 2
    assert bitmaps[0][0] == 0b11100111
    assert bitmaps[1][:2] == bytes([0b11100000, 0b00000011])
    assert bitmaps[4][:13] == bytes(12) + b"\xf8"
    assert set(bitmaps[4][13:]) == {0xFF}
    assert descriptors.dtype == GROUP_DESC.dtype


def test_a_group_whose_pages_were_all_given_back():
    descriptors, bitmaps = pack_groups(
        SEED,
        nr_pages=3 * NR_GROUP_PAGES,
        used_end=Block(2 * NR_GROUP_PAGES + 1),
        free_runs=[(Block(NR_GROUP_PAGES), NR_GROUP_PAGES)],
    )
    assert sorted(bitmaps) == [0, 2]
    assert descriptors["nr_free_pages"].tolist() == [0, NR_GROUP_PAGES, NR_GROUP_PAGES - 2]
