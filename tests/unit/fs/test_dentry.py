"""Names in directories of one page and of trees, sound and damaged."""

import itertools
import stat

import pytest

from tests.kit.image import HASH_KEY, HandmadeImage, ImageKit
from xipfs.errors import FormatError, NameTooLongError, NoEntryError
from xipfs.fs.dentry import DirReader
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.dentry import KEY_MAX, name_key
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import Ino

NAMES = [b"name-%d" % i for i in range(60)] + [b"\xff\n", b"a" * 255, b"...", b"-"]


def directory_of(names, fanout=None) -> HandmadeImage:
    """An image with all *names* in its root, in files 16 and up."""
    kit = ImageKit(fanout=fanout)
    for name in names:
        kit.add_file(INO_ROOT, name)
    return kit.build()


class Directory:
    """The root of an image, opened."""

    def __init__(self, image: HandmadeImage, path) -> None:
        self.sb = SuperBlock.open(image.write(path))
        self.inode = self.sb.iget(INO_ROOT)
        self.reader: DirReader = self.sb.dir_reader

    def lookup(self, name):
        return self.reader.lookup(self.inode.disk, self.inode.extents, name)

    def entries(self, position=0):
        return list(self.reader.iter_entries(self.inode.disk, self.inode.extents, position))

    def names(self, position=0):
        return [entry.name for entry in self.entries(position)]


@pytest.fixture
def open_root(tmp_path):
    opened = []

    def open_root(image: HandmadeImage) -> Directory:
        opened.append(Directory(image, tmp_path / "nvram.img"))
        return opened[-1]

    yield open_root
    for directory in opened:
        directory.sb.close()


# Levels 0, 1, 2 and 3.
@pytest.fixture(params=[None, 20, 5, 2])
def root(request, open_root) -> Directory:
    return open_root(directory_of(NAMES, request.param))


def test_every_name_is_found_and_no_other(root):
    for ino, name in enumerate(NAMES, 16):
        assert root.lookup(name) == ino
    for name in (b"name-60", b"name", b"", b"\xff", b"a" * 254):
        with pytest.raises(NoEntryError):
            root.lookup(name)


def test_dot_and_dotdot_are_not_stored_but_found(open_root):
    kit = ImageKit()
    child = kit.add_dir(INO_ROOT, b"child")
    directory = open_root(kit.build())
    inode = directory.sb.iget(Ino(child))
    assert directory.reader.lookup(inode.disk, inode.extents, b".") == child
    assert directory.reader.lookup(inode.disk, inode.extents, b"..") == INO_ROOT
    assert directory.lookup(b"..") == INO_ROOT


def test_a_name_too_long(root):
    with pytest.raises(NameTooLongError):
        root.lookup(b"a" * 256)


def test_all_entries_come_once_in_the_order_of_their_keys(root):
    entries = root.entries()
    assert [e.name for e in entries[:2]] == [b".", b".."]
    assert sorted(e.name for e in entries[2:]) == sorted(NAMES)
    assert [e.position for e in entries] == sorted({e.position for e in entries})
    assert {e.d_type for e in entries[2:]} == {stat.S_IFREG >> 12}


def test_listing_goes_on_behind_any_position(root):
    entries = root.entries()
    for i, entry in enumerate(entries):
        assert root.entries(entry.position) == entries[i + 1 :]
    assert root.entries(KEY_MAX) == []


def test_a_position_between_two_entries(root):
    first, second = root.entries()[2:4]
    assert root.names(first.position - 1)[0] == first.name
    assert root.names(second.position - 1)[0] == second.name


def test_names_of_one_hash_are_told_apart(open_root):
    """Nobody finds two names of one hash, so the key of one is forged to be near the other's."""
    low, high = sorted([b"one", b"two"], key=lambda name: name_key(name, HASH_KEY))
    image = directory_of([low, high])
    key = name_key(high, HASH_KEY)
    image.change_entry(INO_ROOT, low, key=key)
    image.change_entry(INO_ROOT, high, key=key + 1)
    directory = open_root(image)
    assert directory.lookup(high) == 17
    assert directory.names() == [b".", b"..", low, high]


def test_names_of_one_hash_in_two_leaves(open_root):
    """The lookup goes on in the next leaf when the first ends inside the range of keys."""
    image = directory_of([b"name-%d" % i for i in range(8)], fanout=4)
    keys = sorted((name_key(b"name-%d" % i, HASH_KEY), b"name-%d" % i) for i in range(8))
    (_, last), (key, sought) = keys[3], keys[4]
    image.change_entry(INO_ROOT, last, key=key)
    image.change_entry(INO_ROOT, sought, key=key + 1)
    image.change_index(INO_ROOT, 0, 1, key=key + 1)
    directory = open_root(image)
    assert directory.lookup(sought) == 16 + int(sought[5:])


@pytest.mark.parametrize(
    "name", [b"name-1/", b".", b"..", b"na\0me-1", b"name-\x00"], ids=lambda n: n.hex()
)
def test_impossible_names_are_refused(open_root, name):
    old = b"x" * len(name)
    image = directory_of([old, b"other"])
    image.change_name(INO_ROOT, old, name)
    with pytest.raises(FormatError, match="impossible name"):
        open_root(image).entries()


@pytest.mark.parametrize("change", [{"name_size_bytes": 0}, {"name_offset": 30}])
def test_names_outside_of_the_names_are_refused(open_root, change):
    image = directory_of([b"name"])
    image.change_entry(INO_ROOT, b"name", **change)
    directory = open_root(image)
    with pytest.raises(FormatError, match="impossible name"):
        directory.entries()
    with pytest.raises(FormatError, match="has its name at"):
        directory.lookup(b"name")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ino": 99}, "belongs to inode 99"),
        ({"generation": 99}, "generation 99"),
        ({"level": 6}, "6 levels"),
        ({"nr_entries": 500}, "500 entries"),
        ({"names_start": 33}, "names start at 33"),
        ({"names_start": 4097}, "names start at 4097"),
    ],
)
def test_damaged_heads_are_refused(open_root, change, message):
    image = directory_of([b"name"])
    image.change_dir_page(INO_ROOT, **change)
    directory = open_root(image)
    with pytest.raises(FormatError, match=message):
        directory.lookup(b"name")
    with pytest.raises(FormatError, match=message):
        directory.entries()


def test_a_damaged_page_is_refused(open_root):
    image = directory_of([b"name"])
    image.page(image.dir_block(INO_ROOT))[40] ^= 1
    with pytest.raises(FormatError, match="directory page 0 of inode 1: damaged"):
        open_root(image).lookup(b"name")


def test_a_page_that_is_not_there(open_root):
    image = directory_of(NAMES, fanout=20)
    image.change_index(INO_ROOT, 0, 1, pgoff=(1 << 64) - 1)
    with pytest.raises(FormatError, match="a hole"):
        open_root(image).entries()


def test_a_child_of_the_wrong_level(open_root):
    image = directory_of(NAMES, fanout=20)
    image.change_index(INO_ROOT, 0, 1, pgoff=0)
    with pytest.raises(FormatError, match="has level 1, its index has 1"):
        open_root(image).entries()


def test_an_index_that_names_a_leaf_twice_does_not_send_readers_in_circles(open_root):
    """Listing goes on from the key of the last entry: with keys that fall it never ended."""
    image = directory_of(NAMES, fanout=20)
    image.change_index(INO_ROOT, 0, 3, pgoff=1)
    with pytest.raises(FormatError, match="out of order"):
        open_root(image).entries()


def test_empty_leaves_named_again_and_again_end(open_root):
    """Five levels of indexes with 254 entries that all name one page: 10^12 steps to walk."""
    image = directory_of(NAMES, fanout=2)
    root = image.dir_page(INO_ROOT)
    assert root.level >= 3
    for pgoff in range(image.inode(INO_ROOT).size_bytes >> 12):
        page = image.dir_page(INO_ROOT, pgoff)
        if page.level:
            first = int(page.entries["pgoff"][0])
            for number in range(len(page.entries)):
                image.change_index(INO_ROOT, pgoff, number, pgoff=first)
        else:
            image.change_dir_page(INO_ROOT, pgoff, nr_entries=0)
    image.change_inode(INO_ROOT, size_bytes=4 << 12)
    directory = open_root(image)
    with pytest.raises(FormatError, match="more than once"):
        directory.entries()
    with pytest.raises(FormatError, match="more than once"):
        directory.lookup(b"name")


def test_more_directories_than_pages_are_kept(open_root, monkeypatch):
    monkeypatch.setattr("xipfs.fs.dentry.NR_CACHED_PAGES", 2)
    directory = open_root(directory_of(NAMES, fanout=5))
    for _ in range(2):
        assert sorted(directory.names()[2:]) == sorted(NAMES)
    for ino, name in itertools.chain(enumerate(NAMES, 16), enumerate(NAMES, 16)):
        assert directory.lookup(name) == ino
