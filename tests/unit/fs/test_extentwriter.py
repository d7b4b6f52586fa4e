"""The extent tree against a plain dict: pgoff -> (block, unwritten)."""

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.kit.operations import nr_examples
from tests.kit.transaction import MemoryTransaction
from xipfs.errors import BugError
from xipfs.fs import extentwriter
from xipfs.fs.extent import ExtentMap, iter_extents, iter_nodes
from xipfs.fs.extentwriter import end_of_extents, insert_extent, mark_written, remove_extents
from xipfs.fs.inodetable import BLANK_INODE
from xipfs.ondisk.extent import NR_NODE_EXTENTS, ExtentFlags
from xipfs.ondisk.inode import PAYLOAD_SIZE_BYTES, DiskInode
from xipfs.units import Pgoff

UNWRITTEN = int(ExtentFlags.UNWRITTEN)


class Tree:
    """One inode, and the dict that it must be equal to."""

    def __init__(self) -> None:
        self.tx = MemoryTransaction()
        self.inode: DiskInode = BLANK_INODE._replace(
            ino=17, generation=3, payload=bytes(PAYLOAD_SIZE_BYTES)
        )
        self.pages: dict[int, tuple[int, int]] = {}

    def insert(self, pgoff: int, nr_pages: int, flags: int = 0) -> None:
        nr_pages = next((n for n in range(nr_pages) if pgoff + n in self.pages), nr_pages)
        if not nr_pages:
            return
        [(block, _)] = self.tx.allocate(nr_pages)
        self.inode = insert_extent(self.tx, self.inode, pgoff, block, nr_pages, flags)
        self.pages |= {pgoff + n: (block + n, flags) for n in range(nr_pages)}

    def remove(self, first: int, end: int, **limits: int) -> int:
        self.inode, nr_freed = remove_extents(self.tx, self.inode, first, end, **limits)
        gone = sorted(pgoff for pgoff in self.pages if first <= pgoff < end)[::-1]
        if not limits:
            assert nr_freed == len(gone)
        for pgoff in gone[:nr_freed]:
            del self.pages[pgoff]
        return nr_freed

    def mark_written(self, pgoff: int, nr_pages: int) -> None:
        nr_pages = next((n for n in range(nr_pages) if pgoff + n not in self.pages), nr_pages)
        self.inode = mark_written(self.tx, self.inode, pgoff, nr_pages)
        for page in range(pgoff, pgoff + nr_pages):
            self.pages[page] = (self.pages[page][0], 0)

    def check(self) -> None:
        tx, inode = self.tx, self.inode
        found = {}
        for pgoff, block, nr_pages, flags in iter_extents(tx, tx.sb.seed, inode):
            assert nr_pages
            found |= {pgoff + n: (block + n, flags) for n in range(nr_pages)}
        assert found == self.pages
        nodes = list(iter_nodes(tx, tx.sb.seed, inode))
        for _, depth, entries in nodes:
            assert len(entries)
            if depth == inode.extent_depth - 1 and inode.nr_extents == 1:
                assert len(entries) > extentwriter.NR_INLINE_EXTENTS
            if depth:
                for entry in entries:
                    below = next(e for block, _, e in nodes if block == entry["block"])
                    assert entry["pgoff"] == below["pgoff"][0]
        assert inode.nr_pages == len(self.pages) + len(nodes)
        assert {block for block, _ in found.values()} | {n[0] for n in nodes} == tx.used
        assert tx.inode(inode.ino) == inode
        assert end_of_extents(tx, inode) == max(self.pages, default=-1) + 1
        if inode.extent_depth == 0:
            assert inode.payload[inode.nr_extents * 24 :] == bytes(120 - inode.nr_extents * 24)


ranges = st.tuples(st.integers(0, 60), st.integers(1, 8))
steps = st.one_of(
    st.tuples(st.just("insert"), ranges, st.sampled_from([0, UNWRITTEN])),
    st.tuples(st.just("remove"), ranges, st.none()),
    st.tuples(st.just("mark_written"), ranges, st.none()),
)


@given(steps=st.lists(steps, max_size=60), small=st.booleans())
@settings(max_examples=nr_examples(150, 5000))
def test_any_changes_give_what_a_dict_gives(steps, small):
    with pytest.MonkeyPatch.context() as patch:
        if small:  # few extents make deep trees
            patch.setattr("xipfs.fs.extentwriter.NR_NODE_EXTENTS", 4)
            patch.setattr("xipfs.fs.extentwriter.NR_INLINE_EXTENTS", 2)
        tree = Tree()
        for what, (pgoff, nr_pages), flags in steps:
            if what == "insert":
                tree.insert(pgoff, nr_pages, flags)
            elif what == "remove":
                tree.remove(pgoff, pgoff + nr_pages)
            else:
                tree.mark_written(pgoff, nr_pages)
            tree.check()


def test_a_file_of_20000_extents_grows_and_shrinks_in_steps():
    """In random order: the tree gets three levels and loses them again."""
    tree = Tree()
    order = list(range(20_000))
    random.Random(5).shuffle(order)
    for n in order:
        tree.insert(2 * n, 1)
    tree.check()
    assert tree.inode.extent_depth == 2
    extents = ExtentMap(tree.tx, tree.tx.sb.seed, tree.inode)
    assert all(extents.find_block(Pgoff(p)) == block for p, (block, _) in tree.pages.items())
    nr_steps = 0
    while nr_freed := tree.remove(0, 1 << 33, nr_extents_max=1000):
        assert nr_freed == 1000
        nr_steps += 1
        assert max(tree.pages, default=-1) < 2 * (20_000 - nr_steps * 1000)
    assert nr_steps == 20
    tree.check()
    assert (tree.inode.extent_depth, tree.inode.nr_extents, tree.tx.used) == (0, 0, set())


def test_a_file_that_grows_at_its_end_leaves_full_nodes():
    tree = Tree()
    for n in range(10 * NR_NODE_EXTENTS):
        tree.insert(2 * n, 1)
    nodes = list(iter_nodes(tree.tx, 7, tree.inode))
    assert sum(depth == 0 for _, depth, _ in nodes) == 10


def test_neighbours_become_one_extent():
    tree = Tree()
    [(block, _)] = tree.tx.allocate(12)
    for pgoff in (0, 4, 2, 8, 6, 10):
        tree.inode = insert_extent(tree.tx, tree.inode, pgoff, block + pgoff, 2)
    assert tree.inode.extents.tolist() == [(0, block, 12, 0)]


def test_one_huge_extent_goes_in_parts():
    """What one transaction frees is bounded by pages, too."""
    tree = Tree()
    tree.insert(5, 1000)
    assert [tree.remove(0, 2000, nr_pages_max=300) for _ in range(5)] == [300, 300, 300, 100, 0]
    tree.check()


def test_written_in_the_middle_of_unwritten():
    tree = Tree()
    tree.insert(10, 10, UNWRITTEN)
    tree.mark_written(13, 4)
    assert [row[3] for row in tree.inode.extents.tolist()] == [UNWRITTEN, 0, UNWRITTEN]
    tree.mark_written(10, 3)
    tree.mark_written(17, 3)
    assert len(tree.inode.extents) == 1
    tree.check()


def test_pages_that_are_mapped_are_not_mapped_again():
    tree = Tree()
    tree.insert(10, 10)
    for pgoff in (9, 10, 15, 19):
        with pytest.raises(BugError, match="overlap"):
            insert_extent(tree.tx, tree.inode, pgoff, 99, 2)
