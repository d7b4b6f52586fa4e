"""mkfs with a profile: hot pages lie together, all contents are the same, nothing is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.tree import random_bytes
from xipfs.fs.contents import iter_contents
from xipfs.fs.extent import iter_extents
from xipfs.fs.fsck import fsck
from xipfs.fs.hotarea import HotArea
from xipfs.fs.mkfs import mkfs
from xipfs.fs.namei import path_lookup
from xipfs.fs.source import Entry
from xipfs.fs.superblock import SuperBlock
from xipfs.units import PAGE_SIZE, Block

SIZES = {b"a": 10 * PAGE_SIZE + 7, b"b": 3 * PAGE_SIZE, b"sparse": 6 * PAGE_SIZE}


def pages(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def entries():
    for number, (name, size_bytes) in enumerate(SIZES.items()):
        data = random_bytes(size_bytes, number)
        pieces = [(0, data)]
        if name == b"sparse":
            pieces = [(0, data[:PAGE_SIZE]), (4, data[4 * PAGE_SIZE :])]
        yield Entry(name, 0o100644, 0, 0, 0, size_bytes=size_bytes, pieces=pieces)


def make(path, hot):
    mkfs(path, entries(), now_ns=0, reproducible=True, force=True, hot=hot)
    return SuperBlock.open(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    sb = make(tmp_path_factory.mktemp("hot") / "plain.img", {})
    yield sb
    sb.close()


def test_a_piece_is_cut_where_it_gets_hot_or_cold():
    area = HotArea(Block(100), {7: pages(1, 2, 5, 9)})
    data = bytes(range(6)) * PAGE_SIZE
    data = b"".join(bytes([i]) * PAGE_SIZE for i in range(5)) + b"\5" * 10
    parts = [(pgoff, len(part), home) for pgoff, part, home in area.split(7, 0, data)]
    assert parts == [
        (0, PAGE_SIZE, None),
        (1, 2 * PAGE_SIZE, 100),
        (3, 2 * PAGE_SIZE, None),
        (5, 10, 102),
    ]
    assert list(area.split(8, 0, data)) == [(0, data, None)]
    assert area.free_runs() == [(103, 1)]
    assert area.end == 104


def test_hot_pages_lie_together_and_contents_are_the_same(plain, tmp_path):
    inos = {name: path_lookup(plain, b"/" + name).ino for name in SIZES}
    hot = {
        inos[b"a"]: pages(2, 3, 10, 400),
        inos[b"sparse"]: pages(1, 5),
        999: pages(0),
    }
    path = tmp_path / "hot.img"
    sb = make(path, hot)
    try:
        blocks = {}
        for name, ino in inos.items():
            inode = path_lookup(sb, b"/" + name)
            assert inode.ino == ino
            expected = b"".join(iter_contents(plain, path_lookup(plain, b"/" + name)))
            assert b"".join(iter_contents(sb, inode)) == expected
            for pgoff, block, nr_pages, _ in iter_extents(sb.nvram, sb.seed, inode.disk):
                blocks |= {(name, pgoff + i): block + i for i in range(nr_pages)}
        assert [blocks[b"a", pgoff] for pgoff in (2, 3, 10)] == [2, 3, 4]
        assert blocks[b"sparse", 5] == 7
        assert min(block for page, block in blocks.items() if page == (b"a", 0)) > 8
        assert (b"sparse", 1) not in blocks, "a hole stays one"
    finally:
        sb.close()
    assert not fsck(path).findings


@given(hot=st.dictionaries(st.integers(0, 8), st.sets(st.integers(0, 12), min_size=1), max_size=5))
def test_any_profile_makes_a_sound_image(hot, plain, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any-profile.img"
    sb = make(path, {ino: pages(*sorted(numbers)) for ino, numbers in hot.items()})
    try:
        for name in SIZES:
            expected = b"".join(iter_contents(plain, path_lookup(plain, b"/" + name)))
            assert b"".join(iter_contents(sb, path_lookup(sb, b"/" + name))) == expected
    finally:
        sb.close()
    assert not fsck(path).findings
