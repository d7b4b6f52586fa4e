"""The tree of pages of a directory against a plain dict: name -> (ino, d_type)."""

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.kit.operations import nr_examples
from tests.kit.transaction import MemoryTransaction
from xipfs.errors import ExistsError, NameTooLongError, NoEntryError, NoSpaceError
from xipfs.fs.dentry import DirReader, load_dir_page
from xipfs.fs.dirwriter import (
    find_entry,
    insert_entry,
    make_directory,
    remove_entry,
    replace_entry,
)
from xipfs.fs.extent import ExtentMap
from xipfs.fs.inodetable import BLANK_INODE
from xipfs.ondisk.dentry import KEY_MAX, SEQUENCE_BITS, name_key
from xipfs.ondisk.inode import PAYLOAD_SIZE_BYTES
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Pgoff


class Directory:
    """One directory, and the dict that it must be equal to."""

    def __init__(self) -> None:
        self.tx = MemoryTransaction()
        blank = BLANK_INODE._replace(
            ino=17, generation=3, parent_ino=1, payload=bytes(PAYLOAD_SIZE_BYTES)
        )
        self.inode = make_directory(self.tx, blank)
        self.names: dict[bytes, tuple[int, int]] = {}

    def insert(self, name: bytes, ino: int) -> None:
        if name in self.names:
            with pytest.raises(ExistsError):
                insert_entry(self.tx, self.inode, name, ino, 8)
            return
        self.inode = insert_entry(self.tx, self.inode, name, ino, 8)
        self.names[name] = (ino, 8)

    def replace(self, name: bytes, ino: int) -> None:
        if name not in self.names:
            with pytest.raises(NoEntryError):
                replace_entry(self.tx, self.inode, name, ino, 4)
            return
        self.inode = replace_entry(self.tx, self.inode, name, ino, 4)
        self.names[name] = (ino, 4)

    def remove(self, name: bytes) -> None:
        if name not in self.names:
            with pytest.raises(NoEntryError):
                remove_entry(self.tx, self.inode, name)
            return
        self.inode = remove_entry(self.tx, self.inode, name)
        del self.names[name]

    def positions(self) -> dict[bytes, int]:
        reader = DirReader(self.tx, self.tx.sb.seed, self.tx.sb.disk.hash_key)
        extents = ExtentMap(self.tx, self.tx.sb.seed, self.inode)
        entries = list(reader.iter_entries(self.inode, extents, 2))
        assert {e.name: (e.ino, e.d_type) for e in entries} == self.names
        assert [e.position for e in entries] == sorted({e.position for e in entries})
        return {e.name: e.position for e in entries}

    def check(self) -> None:
        inode, extents = self.inode, ExtentMap(self.tx, self.tx.sb.seed, self.inode)
        assert inode.nr_entries == len(self.names)
        self.positions()
        seen = []
        # (page, its level or None for any, keys that it may have)
        waiting: list[tuple[int, int | None, int, int]] = [(0, None, 128, KEY_MAX + 1)]
        while waiting:
            pgoff, level, low, high = waiting.pop()
            seen.append(pgoff)
            page = load_dir_page(self.tx, self.tx.sb.seed, inode, extents, Pgoff(pgoff))
            assert level is None or page.level == level
            keys = page.entries["key"].tolist()
            assert keys == sorted(set(keys))
            assert keys or pgoff == 0
            assert all(low <= key < high for key in keys[bool(page.level) :])
            if page.level:
                assert pgoff or len(keys) > 1
                bounds = [low, *keys[1:], high]
                waiting += [
                    (child, page.level - 1, *bounds[i : i + 2])
                    for i, child in enumerate(page.entries["pgoff"].tolist())
                ]
            else:
                slots = bytes(page.page[32 : 32 + 24 * len(keys)])
                assert all(slots[i + 20 : i + 24] == bytes(4) for i in range(0, len(slots), 24))
        assert sorted(seen) == list(range(inode.size_bytes >> PAGE_SHIFT))
        assert inode.nr_pages == len(self.tx.used)
        assert self.tx.inode(inode.ino) == inode


@pytest.fixture
def few_hashes(monkeypatch) -> None:
    """Names share five hashes, so that entries of one hash fill several leaves."""
    _patch_hashes(monkeypatch)


def _patch_hashes(patch: pytest.MonkeyPatch) -> None:
    def key(name: bytes, hash_key: bytes) -> int:
        return (1 + name_key(name, hash_key) // 128 % 5) << SEQUENCE_BITS

    for module in ("dentry", "dirwriter"):
        patch.setattr(f"xipfs.fs.{module}.name_key", key)


NAMES = [b"%d" % n + b"-" * (n * 37 % 253) for n in range(120)]
steps = st.tuples(
    st.sampled_from(["insert", "insert", "remove", "replace"]),
    st.sampled_from(NAMES),
    st.integers(16, 1 << 31),
)


@given(
    nr_first=st.sampled_from([0, 1, 20, len(NAMES)]),
    steps=st.lists(steps, max_size=80),
    few=st.booleans(),
    small=st.booleans(),
)
@settings(max_examples=nr_examples(40, 3000))
def test_any_changes_give_what_a_dict_gives(nr_first, steps, few, small):
    with pytest.MonkeyPatch.context() as patch:
        if few:
            _patch_hashes(patch)
        if small:  # few leaves make deep trees
            patch.setattr("xipfs.fs.dirwriter.NR_INDEX_ENTRIES", 2)
        directory = Directory()
        for name in NAMES[:nr_first]:
            directory.insert(name, 99)
        directory.check()
        for what, name, ino in steps:
            {
                "insert": directory.insert,
                "replace": directory.replace,
                "remove": lambda name, _: directory.remove(name),
            }[what](name, ino)
            directory.check()


def test_thousands_of_names_come_and_go():
    """In random order; the directory is as small at the end as at the start."""
    directory = Directory()
    names = [b"name %d" % n for n in range(8000)]
    for ino, name in enumerate(names, 16):
        directory.insert(name, ino)
    directory.check()
    for name in names:
        entry = find_entry(directory.tx, directory.inode, name)
        assert entry is not None
        assert (entry.ino, entry.d_type) == directory.names[name]
    random.Random(3).shuffle(names)
    for n, name in enumerate(names):
        if n % 1000 == 0:
            directory.check()
        directory.remove(name)
    directory.check()
    assert directory.inode.size_bytes == PAGE_SIZE
    assert len(directory.tx.used) == 1


@pytest.mark.parametrize("order", ["random", "rising", "falling"])
def test_a_deep_tree_has_no_holes_at_any_time(monkeypatch, order):
    """Indexes of three entries: they come and go as leaves do, several at once."""
    monkeypatch.setattr("xipfs.fs.dirwriter.NR_INDEX_ENTRIES", 3)
    directory = Directory()
    names = [b"%d" % n + b"-" * 240 for n in range(300)]
    for name in names:
        directory.insert(name, 16)
        directory.check()
    positions = directory.positions()
    if order == "random":
        random.Random(4).shuffle(names)
    else:
        names.sort(key=positions.__getitem__, reverse=order == "falling")
    for name in names:
        directory.remove(name)
        directory.check()
    assert directory.inode.size_bytes == PAGE_SIZE


def test_positions_survive_what_happens_to_other_names():
    directory = Directory()
    stay = [b"stay %d" % n for n in range(500)]
    for name in stay:
        directory.insert(name, 16)
    before = directory.positions()
    for n in range(3000):
        directory.insert(b"passes %d" % n, 16)
    assert directory.positions().items() >= before.items()
    for n in range(3000):
        directory.remove(b"passes %d" % n)
    assert directory.positions() == before


def test_names_of_one_hash_in_several_leaves(few_hashes):
    """Each keeps its key, and a new one takes the lowest that is free."""
    directory = Directory()
    names = [b"%03d" % n + b"x" * 240 for n in range(300)]
    for name in names:
        directory.insert(name, 16)
    directory.check()
    before = directory.positions()
    for name in names[::7]:
        directory.remove(name)
    free = {before[name] for name in names[::7]}
    for name in names[::7]:
        directory.insert(name, 17)
    after = directory.positions()
    assert {after[name] for name in names[::7]} == free
    directory.check()


def test_the_129th_name_of_one_hash_is_refused(monkeypatch):
    for module in ("dentry", "dirwriter"):
        monkeypatch.setattr(f"xipfs.fs.{module}.name_key", lambda name, hash_key: 7 << 7)
    directory = Directory()
    for n in range(128):
        directory.insert(b"%d" % n, 16)
    with pytest.raises(NoSpaceError, match="hash"):
        insert_entry(directory.tx, directory.inode, b"128", 16, 8)
    directory.remove(b"77")
    directory.insert(b"128", 16)
    directory.check()


def test_long_names():
    directory = Directory()
    directory.insert(b"n" * 255, 16)
    directory.check()
    for change in (insert_entry, replace_entry):
        with pytest.raises(NameTooLongError):
            change(directory.tx, directory.inode, b"n" * 256, 16, 8)
    with pytest.raises(NameTooLongError):
        remove_entry(directory.tx, directory.inode, b"n" * 256)


def test_times_of_the_directory():
    directory = Directory()
    directory.tx.now_ns = 55
    directory.insert(b"a", 16)
    assert (directory.inode.mtime_ns, directory.inode.ctime_ns) == (55, 55)
