"""mkfs from lists of entries; `tests.kit.image_reader` reads what it made, and checks it."""

import errno
import fcntl
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.image_reader import ReadImage, read_image
from xipfs.errors import (
    ImageBusyError,
    InvalidArgumentError,
    IsDirError,
    NoEntryError,
    NoSpaceError,
    NotPermittedError,
    SourceError,
)
from xipfs.fs import dentry, pack
from xipfs.fs.inodetable import InodeTable
from xipfs.fs.mkfs import MkfsProgress, MkfsStatistics, mkfs
from xipfs.fs.source import Entry
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import FILE_SIZE_BYTES_MAX, INO_FIRST, INO_ROOT, InodeFlags
from xipfs.ondisk.superblock import Compat
from xipfs.ondisk.xattr import XATTR_VALUE_SIZE_BYTES_MAX
from xipfs.units import PAGE_SIZE

NOW_NS = 1_700_000_000_123_456_789
MTIME_NS = 1_600_000_000_987_654_321


def directory(path: bytes, mode: int = 0o755, **fields) -> Entry:
    return Entry(path, stat.S_IFDIR | mode, 1000, 100, MTIME_NS, **fields)


def regular(path: bytes, data: bytes = b"", mode: int = 0o644, **fields) -> Entry:
    pieces = [(0, data)] if data else []
    fields = {"size_bytes": len(data), "pieces": pieces} | fields
    return Entry(path, stat.S_IFREG | mode, 1000, 100, MTIME_NS, **fields)


def symlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, 0, 0, MTIME_NS, target=target)


def hard_link(path: bytes, first: bytes) -> Entry:
    return Entry(path, 0, 0, 0, 0, hard_link=first)


@pytest.fixture
def make(tmp_path):
    """Make an image of entries, and read it: make([...]) -> ReadImage."""

    def make(entries, name="nvram.img", **options) -> ReadImage:
        mkfs(tmp_path / name, entries, **({"now_ns": NOW_NS} | options))
        return read_image(tmp_path / name)

    return make


def test_an_empty_image(make, tmp_path):
    image = make(None)
    root = image.inodes[INO_ROOT]
    assert list(image.inodes) == [INO_ROOT]
    assert (root.mode, root.nlink) == (stat.S_IFDIR | 0o755, 2)
    assert (root.uid, root.gid) == (os.geteuid(), os.getegid())
    assert root.size_bytes == PAGE_SIZE
    assert (root.nr_entries, image.dir_levels[INO_ROOT]) == (0, 0)
    assert image.size_bytes == 1 << 20
    assert image.state.ino_end == INO_FIRST
    assert image.superblock.compat == 0


def test_every_kind_of_inode(make):
    entries = [
        directory(b"", 0o700),
        directory(b"dev", 0o1777),
        Entry(b"dev/null", stat.S_IFCHR | 0o666, 1, 2, 3, rdev=os.makedev(1, 3)),
        Entry(b"dev/sda", stat.S_IFBLK | 0o660, 0, 6, -4, rdev=os.makedev(259, 70000)),
        Entry(b"fifo", stat.S_IFIFO | 0o600, 1, 2, 3),
        Entry(b"socket", stat.S_IFSOCK | 0o755, 1, 2, 3),
        regular(b"empty"),
        regular(b"setuid", b"#!", 0o4755),
        symlink(b"link", b"dev/null"),
    ]
    image = make(entries)
    for entry in entries:
        inode = image.inode(entry.path)
        assert inode.mode == entry.mode
        assert (inode.uid, inode.gid, inode.rdev) == (entry.uid, entry.gid, entry.rdev)
        assert inode.mtime_ns == inode.atime_ns == entry.mtime_ns
        assert inode.ctime_ns == inode.btime_ns == NOW_NS
    assert image.read(b"setuid") == b"#!"
    assert image.read(b"link") == b"dev/null"
    assert image.inode(b"").nlink == 3
    # Numbers are given in the order of the entries, behind the reserved ones.
    numbers = [image.paths[entry.path] for entry in entries]
    assert numbers == [INO_ROOT, *range(INO_FIRST, INO_FIRST + 8)]


def test_statistics(tmp_path):
    statistics = mkfs(
        tmp_path / "a.img",
        [
            regular(b"d/a", b"x" * 5000),
            hard_link(b"d/b", b"d/a"),
            symlink(b"l", b"d"),
            Entry(b"p", stat.S_IFIFO, 0, 0, 0),
        ],
        now_ns=NOW_NS,
        label=b"system",
    )
    image = read_image(tmp_path / "a.img")
    assert statistics == MkfsStatistics(
        uuid=statistics.uuid,
        size_bytes=1 << 20,
        nr_pages=256,
        nr_free_pages=image.state.nr_free_pages,
        nr_journal_pages=16,
        nr_inodes=5,
        nr_files=1,
        nr_directories=2,
        nr_symlinks=1,
        nr_others=1,
        data_bytes=5000,
        created_ns=NOW_NS,
    )
    assert statistics.uuid.replace("-", "") == image.superblock.uuid.hex()
    assert image.superblock.label == b"system".ljust(64, b"\0")
    assert image.superblock.created_ns == image.state.written_ns == NOW_NS


@pytest.mark.parametrize("size_bytes", [1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 3_000_000])
def test_contents_of_any_size(make, size_bytes):
    data = bytes(i * 7 % 251 for i in range(997)) * (size_bytes // 997 + 1)
    image = make([regular(b"before", b"b"), regular(b"f", data[:size_bytes]), regular(b"z", b"z")])
    assert image.read(b"f") == data[:size_bytes]
    assert image.read(b"before") + image.read(b"z") == b"bz"


def test_pieces_that_follow_each_other_are_one_extent(make):
    pieces = [(i * 256, bytes([i]) * (1 << 20)) for i in range(3)] + [(768, b"end")]
    image = make([regular(b"f", size_bytes=(3 << 20) + 3, pieces=pieces)])
    assert len(image.all_extents[image.paths[b"f"]]) == 1
    assert image.read(b"f") == b"".join(data for _, data in pieces)


def test_what_no_piece_covers_is_a_hole(make):
    size_bytes = 1 << 40
    pieces = [(1, b"one".ljust(PAGE_SIZE, b"\0")), (1 << 20, b"x" * 5000)]
    entries = [
        regular(b"all", size_bytes=64 << 10, pieces=[]),
        regular(b"huge", size_bytes=(1 << 32) + 5000, pieces=pieces),
    ]
    image = make(entries)
    assert image.read(b"all") == bytes(64 << 10)
    assert image.page(b"huge", 1) == pieces[0][1]
    assert image.page(b"huge", 2) is None
    assert [(p, n) for p, _, n in image.all_extents[image.paths[b"huge"]]] == [(1, 1), (1 << 20, 2)]
    assert image.inode(b"huge").nr_pages == 3
    assert image.size_bytes < size_bytes


@pytest.mark.parametrize(("nr_extents", "depth"), [(5, 0), (6, 1), (845, 1), (846, 2), (30_000, 2)])
def test_many_extents_make_a_tree(make, nr_extents, depth):
    pieces = [(2 * i, i.to_bytes(4, "little") * 1024) for i in range(nr_extents)]
    size_bytes = (2 * nr_extents - 1) * PAGE_SIZE
    image = make([regular(b"f", size_bytes=size_bytes, pieces=iter(pieces))])
    inode = image.inode(b"f")
    assert inode.extent_depth == depth
    assert len(image.all_extents[inode.ino]) == nr_extents
    data = image.read(b"f")
    for pgoff, page in pieces:
        assert data[pgoff * PAGE_SIZE : (pgoff + 1) * PAGE_SIZE] == page


@pytest.mark.parametrize(("size", "inline"), [(1, True), (120, True), (121, False), (4095, False)])
def test_symbolic_links_of_any_length(make, size, inline):
    image = make([symlink(b"l", b"t" * size)])
    inode = image.inode(b"l")
    assert image.read(b"l") == b"t" * size
    assert bool(inode.flags & InodeFlags.INLINE) == inline
    assert inode.nr_pages == (0 if inline else 1)


def test_hard_links_share_an_inode(make):
    image = make(
        [
            regular(b"a/first", b"data"),
            symlink(b"l", b"t"),
            hard_link(b"a/second", b"a/first"),
            hard_link(b"third", b"a/second"),
            hard_link(b"l2", b"l"),
        ]
    )
    assert image.paths[b"a/first"] == image.paths[b"a/second"] == image.paths[b"third"]
    assert image.inode(b"third").nlink == 3
    assert image.inode(b"l").nlink == 2


def test_names_of_any_bytes(make):
    names = [bytes([i]) for i in range(1, 256) if i not in b"/."] + [
        b"...",
        b"n" * 255,
        b" ",
        b"\n",
    ]
    image = make([regular(name, name) for name in names])
    for name in names:
        assert image.read(name) == name


def test_attributes(make):
    xattrs = {
        b"user.large": bytes(range(256)) * 256,
        b"user.empty": b"",
        b"trusted." + b"n" * 247: b"v",
        b"security.capability": b"\1\0\0\2",
    }
    assert len(xattrs[b"user.large"]) == XATTR_VALUE_SIZE_BYTES_MAX
    entries = [
        regular(b"f", b"data", xattrs=xattrs),
        directory(b"d", xattrs={b"user.a": b"1"}),
        directory(b"", xattrs={b"user.b": b"2"}),
        directory(b"d", xattrs={}),
    ]
    image = make(entries)
    assert image.xattrs(b"f") == xattrs
    assert image.xattrs(b"") == {b"user.b": b"2"}
    assert image.xattrs(b"d") == {}
    assert image.superblock.compat == 0


def test_an_acl_sets_the_feature_bit(make):
    acl = {b"system.posix_acl_default": b"\2\0\0\0"}
    image = make([directory(b"d", xattrs=acl)])
    assert image.superblock.compat == Compat.ACL
    assert image.xattrs(b"d") == acl


@pytest.mark.parametrize(("nr_names", "level"), [(60, 0), (5000, 1), (30_000, 2)])
def test_large_directories(make, nr_names, level):
    names = [b"file-%06d.txt" % i for i in range(nr_names)]
    image = make([directory(b"d"), *(regular(b"d/" + name) for name in names)])
    assert image.dir_levels[image.paths[b"d"]] == level
    assert image.inode(b"d").nr_entries == nr_names
    assert {b"d/" + name for name in names} < set(image.paths)


def test_names_of_one_hash_are_told_apart(make, monkeypatch, tmp_path):
    """Sequences are given in the order of the names; a leaf's border may cut through them."""
    for module in (pack, dentry):
        monkeypatch.setattr(module, "name_key", lambda name, hash_key: len(name) << 7)
    names = [b"%0200d" % i for i in range(100)] + [b"%0100d" % i for i in range(128)]
    mkfs(tmp_path / "a.img", [regular(name, name) for name in names], now_ns=NOW_NS)
    sb = SuperBlock.open(tmp_path / "a.img")
    try:
        root = sb.iget(INO_ROOT)
        for name in names:
            assert sb.read_all(sb.lookup(root, name), PAGE_SIZE) == name
        found = [e.name for e in sb.dir_reader.iter_entries(root.disk, root.extents)][2:]
        assert found == sorted(names, key=lambda name: (len(name), name))
    finally:
        sb.close()


def test_many_inodes(make, monkeypatch):
    """The table of inodes grows by chunks; here a chunk is one page."""
    monkeypatch.setattr(InodeTable, "_NR_CHUNK_INODES", 16)
    image = make([regular(b"%d" % i, b"%d" % i) for i in range(300)])
    assert all(image.read(b"%d" % i) == b"%d" % i for i in range(300))


def test_directories_that_no_entry_names_are_made(make):
    image = make([regular(b"a/b/c/file", b"x"), directory(b"a/b", 0o700)])
    assert image.inode(b"a").mode == stat.S_IFDIR | 0o755
    assert (image.inode(b"a").uid, image.inode(b"a").mtime_ns) == (0, NOW_NS)
    assert image.inode(b"a/b").mode == stat.S_IFDIR | 0o700
    assert image.inode(b"a/b").nr_entries == 1
    assert image.inode(b"a/b/c").nlink == 2


def test_later_entries_win(make):
    """What nobody names any more is free: pages, the inode's number, the place in nlink."""
    sparse = [(2 * i, b"x" * PAGE_SIZE) for i in range(10)]
    image = make(
        [
            regular(b"f", b"old" * 3000, xattrs={b"user.a": b"1"}),
            regular(b"linked", b"kept"),
            hard_link(b"other", b"linked"),
            regular(b"sparse", size_bytes=19 * PAGE_SIZE, pieces=sparse),
            directory(b"d"),
            directory(b"empty"),
            regular(b"f", b"new"),
            regular(b"linked", b"new too"),
            symlink(b"sparse", b"f"),
            hard_link(b"empty", b"f"),
            directory(b"d", 0o500),
        ]
    )
    assert image.read(b"f") == b"new"
    assert image.xattrs(b"f") == {}
    assert image.inode(b"f").nlink == 2
    assert image.read(b"linked") == b"new too"
    assert image.read(b"other") == b"kept"
    assert image.inode(b"other").nlink == 1
    assert image.read(b"sparse") == b"f"
    assert image.paths[b"empty"] == image.paths[b"f"]
    assert image.inode(b"d").mode == stat.S_IFDIR | 0o500
    assert image.inode(b"").nlink == 3
    assert image.state.free_ino_head != 0
    assert image.state.nr_inodes == 6


def test_a_link_to_itself_changes_nothing(make):
    image = make([regular(b"f", b"x"), hard_link(b"f", b"f")])
    assert (image.read(b"f"), image.inode(b"f").nlink) == (b"x", 1)


BAD_ENTRIES = {
    "256 bytes": [regular(b"n" * 256)],
    "not a name": [regular(b"a/../b")],
    "not a directory": [regular(b"f"), regular(b"f/g")],
    "not empty": [regular(b"d/f"), regular(b"d")],
    "which is missing": [hard_link(b"a", b"b")],
    "a directory": [directory(b"d"), hard_link(b"a", b"d")],
    "known type": [Entry(b"a", 0o644, 0, 0, 0)],
    "1677 and 2262": [Entry(b"a", stat.S_IFIFO, 0, 0, 1 << 63)],
    "4096 bytes": [symlink(b"l", b"t" * 4096)],
    "to 0 bytes": [symlink(b"l", b"")],
    "NUL": [symlink(b"l", b"a\0b")],
    "17592186044417 bytes": [regular(b"a", size_bytes=FILE_SIZE_BYTES_MAX + 1)],
    "65537 bytes": [regular(b"a", xattrs={b"user.a": bytes(65537)})],
    "no name of an attribute": [regular(b"a", xattrs={b"user." + bytes(251): b""})],
    "1 MiB": [regular(b"a", xattrs={b"user.%d" % i: bytes(65536) for i in range(16)})],
}


@pytest.mark.parametrize("text", BAD_ENTRIES)
def test_what_an_image_cannot_hold_is_refused(tmp_path, text):
    with pytest.raises(SourceError, match=text):
        mkfs(tmp_path / "a.img", BAD_ENTRIES[text], now_ns=NOW_NS)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_file(make):
    image = make([regular(b"f", size_bytes=FILE_SIZE_BYTES_MAX, pieces=[])], size_bytes=1 << 20)
    assert image.superblock.nr_pages == 256


# Reproducible images


def some_entries() -> Iterator[Entry]:
    yield directory(b"")
    yield regular(b"a", b"data", xattrs={b"user.x": b"1", b"user.y": b"2"})
    yield directory(b"d")
    yield regular(b"d/b", size_bytes=9 << 20, pieces=[(2 * i, b"x" * PAGE_SIZE) for i in range(9)])


def test_same_input_same_bytes(tmp_path):
    for name in ("a.img", "b.img"):
        mkfs(tmp_path / name, some_entries(), now_ns=NOW_NS, reproducible=True, label=b"l")
    assert (tmp_path / "a.img").read_bytes() == (tmp_path / "b.img").read_bytes()
    uuid = read_image(tmp_path / "a.img").superblock.uuid
    assert (uuid[6] >> 4, uuid[8] >> 6) == (5, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"now_ns": NOW_NS + 1},
        {"label": b"m"},
        {"size_bytes": 1 << 22},
        {"entries": [directory(b"", 0o700)]},
        {"entries": [regular(b"e", b"")]},
        {"entries": [regular(b"a", b"data", xattrs={b"user.x": b"1", b"user.y": b"3"})]},
        {"entries": [Entry(b"d", stat.S_IFDIR | 0o755, 1000, 100, MTIME_NS + 1)]},
    ],
)
def test_other_input_other_uuid(make, change):
    options = {"now_ns": NOW_NS, "reproducible": True, "label": b"l"}
    before = make(some_entries(), **options)
    entries = [*some_entries(), *change.get("entries", [])]
    options |= {name: value for name, value in change.items() if name != "entries"}
    after = make(entries, "b.img", **options)
    assert before.superblock.uuid != after.superblock.uuid


def test_otherwise_no_uuid_comes_twice(make):
    first, second = make(some_entries()), make(some_entries(), "b.img")
    assert first.superblock.uuid != second.superblock.uuid
    assert first.superblock.hash_key != second.superblock.hash_key
    assert (first.superblock.uuid[6] >> 4, first.superblock.uuid[8] >> 6) == (4, 2)


# Sizes


def test_room_is_left_where_no_size_is_given(make):
    data = bytes(100) * (1 << 18)
    image = make([regular(b"f", data)])
    nr_pages = image.superblock.nr_pages
    assert nr_pages // 18 < image.state.nr_free_pages < nr_pages // 15


def test_a_sparse_image_of_64_gib_costs_nothing(make, tmp_path):
    image = make([regular(b"f", b"x")], size_bytes=64 << 30)
    assert image.size_bytes == 64 << 30
    assert image.superblock.nr_groups == 512
    assert sum(descriptor.flags == 0 for descriptor in image.descriptors) == 2
    assert image.superblock.nr_journal_pages == 16384
    assert (tmp_path / "nvram.img").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("nr_pages", [32767, 32768, 32769, 32768 + 256, 65536, 65537])
def test_sizes_about_the_border_of_a_group(make, nr_pages):
    image = make([regular(b"f", b"x")], size_bytes=nr_pages * PAGE_SIZE)
    assert image.superblock.nr_pages == nr_pages


def test_contents_over_the_border_of_a_group(make):
    pieces = ((i * 256, bytes([i]) * (1 << 20)) for i in range(130))
    image = make([regular(b"f", size_bytes=130 << 20, pieces=pieces)])
    assert image.superblock.nr_groups == 2
    assert all(descriptor.flags == 0 for descriptor in image.descriptors)


def test_a_size_is_rounded_down_to_pages(make):
    assert make(None, size_bytes=(1 << 20) + 4095).size_bytes == 1 << 20


def test_the_smallest_size_is_named_and_enough(make, tmp_path):
    entries = [regular(b"f", bytes(100_000))]
    with pytest.raises(NoSpaceError, match=r"a\.img: 64 KiB are too small .* need (\d+)K") as error:
        make(entries, "a.img", size_bytes=1 << 16)
    assert list(tmp_path.iterdir()) == []
    size_bytes = int(str(error.value).split(" need ")[1].split("K")[0]) * 1024
    make(entries, size_bytes=size_bytes)
    with pytest.raises(NoSpaceError):
        make(entries, "a.img", size_bytes=size_bytes - PAGE_SIZE)


def test_contents_that_do_not_fit_are_not_all_read(make, tmp_path):
    taken = []

    def pieces():
        for i in range(1000):
            taken.append(i)
            yield i * 256, bytes(1 << 20)

    with pytest.raises(NoSpaceError, match="too small"):
        make([regular(b"f", size_bytes=1000 << 20, pieces=pieces())], size_bytes=4 << 20)
    assert len(taken) < 10
    assert list(tmp_path.iterdir()) == []


def test_a_label_has_64_bytes(make, tmp_path):
    assert make(None, label=b"l" * 64).superblock.label == b"l" * 64
    with pytest.raises(InvalidArgumentError, match="65 bytes"):
        make(None, "b.img", label=b"l" * 65)


def test_progress_is_told(tmp_path):
    told: list[MkfsProgress] = []
    entries = [regular(b"%d" % i, bytes(1 << 20)) for i in range(5)]
    mkfs(tmp_path / "a.img", entries, now_ns=NOW_NS, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == MkfsProgress(nr_inodes=6, data_bytes=5 << 20)
    assert len(told) >= 5


# The world's faults


@pytest.fixture
def old_image(tmp_path) -> Path:
    """An image that stands in the way."""
    path = tmp_path / "nvram.img"
    mkfs(path, [regular(b"old", b"old")], now_ns=NOW_NS)
    return path


def failing_entries():
    yield regular(b"f", bytes(3 << 20))
    raise SourceError("broken")


def test_an_existing_file_is_replaced_only_by_force(old_image):
    with pytest.raises(InvalidArgumentError, match=r"nvram\.img: exists: use --force"):
        mkfs(old_image, [regular(b"new")], now_ns=NOW_NS)
    assert read_image(old_image).read(b"old") == b"old"
    old_image.chmod(0o640)
    mkfs(old_image, [regular(b"new")], now_ns=NOW_NS, force=True)
    assert set(read_image(old_image).paths) == {b"", b"new"}
    assert stat.S_IMODE(old_image.stat().st_mode) == 0o640
    assert os.listdir(old_image.parent) == [old_image.name]


def test_an_empty_file_may_be_replaced(tmp_path):
    path = tmp_path / "a.img"
    path.touch(0o600)
    mkfs(path, None, now_ns=NOW_NS)
    assert read_image(path).size_bytes == 1 << 20
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failure_leaves_the_old_image_alone(old_image):
    before = old_image.read_bytes()
    with pytest.raises(SourceError, match="broken"):
        mkfs(old_image, failing_entries(), now_ns=NOW_NS, force=True)
    assert old_image.read_bytes() == before
    assert os.listdir(old_image.parent) == [old_image.name]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(SourceError, match="broken"):
        mkfs(tmp_path / "a.img", failing_entries(), now_ns=NOW_NS)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    def entries():
        yield regular(b"f", bytes(3 << 20))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mkfs(tmp_path / "a.img", entries(), now_ns=NOW_NS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lock", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_an_image_in_use_is_not_replaced(old_image, lock):
    before = old_image.read_bytes()
    with old_image.open("rb") as user:
        fcntl.flock(user, lock)
        with pytest.raises(ImageBusyError, match="in use"):
            mkfs(old_image, None, now_ns=NOW_NS, force=True)
    assert old_image.read_bytes() == before


def test_while_it_is_replaced_nobody_may_use_the_old_one(old_image):
    def entries():
        yield regular(b"f")
        with pytest.raises(ImageBusyError):
            SuperBlock.open(old_image)

    mkfs(old_image, entries(), now_ns=NOW_NS, force=True)
    SuperBlock.open(old_image).close()


def test_an_image_that_appears_meanwhile_is_left_alone(tmp_path):
    path = tmp_path / "a.img"

    def entries():
        yield regular(b"f")
        path.write_text("mine")

    with pytest.raises(InvalidArgumentError, match="meanwhile"):
        mkfs(path, entries(), now_ns=NOW_NS)
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["a.img"]


def test_a_symbolic_link_is_followed(tmp_path, old_image):
    link = tmp_path / "link.img"
    link.symlink_to(old_image)
    mkfs(link, [regular(b"new")], now_ns=NOW_NS, force=True)
    assert link.is_symlink()
    assert b"new" in read_image(old_image).paths


def test_bad_places_for_an_image(tmp_path):
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    for path, error, text in [
        (tmp_path, IsDirError, "is a directory"),
        (tmp_path / "none" / "a.img", NoEntryError, "no directory"),
        (tmp_path / "file" / "a.img", NoEntryError, "no directory"),
        (tmp_path / "fifo", InvalidArgumentError, "not a regular file"),
        (Path("/dev/null"), InvalidArgumentError, "not a regular file"),
    ]:
        with pytest.raises(error, match=text):
            mkfs(path, None, now_ns=NOW_NS, force=True)


@pytest.fixture
def small_disk():
    """Files that are made meanwhile can have 4 MiB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_room_on_the_disk(old_image, small_disk):
    before = old_image.read_bytes()
    entries = [regular(b"f", size_bytes=8 << 20, pieces=[(0, bytes(8 << 20))])]
    with pytest.raises(NoSpaceError, match=r"nvram\.img: cannot be written.*nothing was changed"):
        mkfs(old_image, entries, now_ns=NOW_NS, force=True)
    assert old_image.read_bytes() == before
    with pytest.raises(NoSpaceError, match="cannot be written"):
        mkfs(old_image, None, size_bytes=1 << 30, now_ns=NOW_NS, force=True)
    assert os.listdir(old_image.parent) == [old_image.name]


@pytest.mark.parametrize(
    ("call", "number", "error"),
    [
        ("pwritev", errno.ENOSPC, NoSpaceError),
        ("pwritev", errno.EDQUOT, NoSpaceError),
        ("fsync", errno.ENOSPC, NoSpaceError),
        ("rename", errno.EROFS, NotPermittedError),
    ],
)
def test_a_disk_that_fails(old_image, monkeypatch, call, number, error):
    before = old_image.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(error, match=os.strerror(number)):
            mkfs(old_image, [regular(b"f", b"x")], now_ns=NOW_NS, force=True)
    assert old_image.read_bytes() == before
    assert os.listdir(old_image.parent) == [old_image.name]
