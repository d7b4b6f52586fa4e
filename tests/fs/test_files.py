"""A tree with every kind of entry, compared with its image: by direct calls, and by a mount."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.files import DirectFiles, Files, attributes
from tests.kit.tree import NR_MANY, ODD_NAMES, SIZES, walk
from xipfs.fs.mkfs import MkfsStatistics
from xipfs.units import PAGE_SIZE

PREFIXES = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")


@contextmanager
def refused(number: int) -> Iterator[None]:
    """The block must fail with this errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number, caught.value


def source(tree: Path, path: bytes) -> bytes:
    return os.path.join(os.fsencode(tree), path) if path else os.fsencode(tree)


def of_kind(tree: Path, kind: int) -> list[bytes]:
    return [
        path for path in walk(tree) if stat.S_IFMT(os.lstat(source(tree, path)).st_mode) == kind
    ]


def read_all(files: Files, path: bytes, request_bytes: int = 1 << 20) -> bytes:
    opened = files.open(path)
    parts = []
    while part := files.read(opened, sum(map(len, parts)), request_bytes):
        parts.append(part)
    files.close(opened)
    return b"".join(parts)


def test_every_name_and_no_other(files: Files, made_tree: Path):
    for path in of_kind(made_tree, stat.S_IFDIR):
        assert sorted(files.names(path)) == sorted(os.listdir(source(made_tree, path))), path


def test_every_attribute(files: Files, made_tree: Path):
    for path in walk(made_tree):
        expected = attributes(source(made_tree, path))
        found = files.attributes(path)
        if stat.S_ISDIR(expected.mode):
            # Its size is a matter of the filesystem; some have no link counts for directories.
            assert found.size_bytes % PAGE_SIZE == 0
            expected = expected._replace(size_bytes=found.size_bytes, nlink=found.nlink)
        assert found == expected, path


def test_links_of_directories(files: Files, made_tree: Path):
    """Its name, its own ".", and the ".." of each directory in it."""
    for path in of_kind(made_tree, stat.S_IFDIR):
        with os.scandir(source(made_tree, path)) as listing:
            nr_directories = sum(entry.is_dir(follow_symlinks=False) for entry in listing)
        assert files.attributes(path).nlink == 2 + nr_directories, path


def test_the_tree_is_what_it_should_be(made_tree: Path):
    """Or else the tests here would say little."""
    kinds = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK]
    assert all(of_kind(made_tree, kind) for kind in kinds)
    assert len(os.listdir(made_tree / "many")) == NR_MANY
    assert (made_tree / "sparse" / "holes").stat().st_blocks * 512 < 1 << 20


@pytest.mark.root
def test_devices_and_owners(files: Files):
    found = files.attributes(b"special/large-numbers")
    assert stat.S_ISCHR(found.mode)
    assert (os.major(found.rdev), os.minor(found.rdev)) == (4000, 1_000_000)
    assert stat.S_ISBLK(files.attributes(b"special/block").mode)
    found = files.attributes(b"owners/4294967294-4294967294")
    assert (found.uid, found.gid) == (0xFFFFFFFE, 0xFFFFFFFE)


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_odd_names(files: Files, name: bytes):
    expected = b"odd %d" % ODD_NAMES.index(name)
    assert read_all(files, b"odd/" + name) == expected


def test_all_bytes_that_a_name_can_have(files: Files):
    assert set(b"".join(files.names(b"odd"))) == set(range(1, 256)) - set(b"/")


def test_every_link_points_where_it_did(files: Files, made_tree: Path):
    links = of_kind(made_tree, stat.S_IFLNK)
    assert len(links) >= 10
    for path in links:
        assert files.readlink(path) == os.readlink(source(made_tree, path)), path


@pytest.mark.parametrize("path", [b"sizes", b"sizes/1", b"special/fifo", b""])
def test_what_is_no_link_cannot_be_read_as_one(files: Files, path: bytes):
    with refused(errno.EINVAL):
        files.readlink(path)


def test_hard_links(files: Files):
    names = [b"links/hard-1", b"links/hard-2", b"links/sub/hard-3"]
    assert len({files.ino(name) for name in names}) == 1
    assert [files.attributes(name).nlink for name in names] == [3, 3, 3]
    assert [read_all(files, name) for name in names] == [b"three names"] * 3
    assert files.ino(b"links/short") == files.ino(b"links/short-2")
    assert files.ino(b"links/short") != files.ino(b"links/long")


def test_every_file_has_a_number_of_its_own(files: Files):
    inos = {files.ino(b"many/" + name) for name in files.names(b"many")}
    assert len(inos) == NR_MANY


def test_every_byte(files: Files, made_tree: Path):
    for path in of_kind(made_tree, stat.S_IFREG):
        if os.access(source(made_tree, path), os.R_OK):
            assert read_all(files, path) == Path(os.fsdecode(source(made_tree, path))).read_bytes()


@pytest.mark.parametrize("size_bytes", SIZES)
def test_reads_around_the_end(files: Files, made_tree: Path, size_bytes: int):
    data = (made_tree / "sizes" / str(size_bytes)).read_bytes()
    opened = files.open(b"sizes/%d" % size_bytes)
    for offset in {0, *range(max(size_bytes - 2, 0), size_bytes + 3), size_bytes + PAGE_SIZE}:
        for wanted in (0, 1, 2, PAGE_SIZE, PAGE_SIZE + 1, 1 << 20):
            assert files.read(opened, offset, wanted) == data[offset : offset + wanted]
    files.close(opened)


OFFSETS = [
    page * PAGE_SIZE + delta for page in (0, 1, 2, 23, 24) for delta in (0, 1, 7, 2048, 4095)
]


def test_reads_at_odd_places(files: Files, made_tree: Path):
    data = (made_tree / "sizes" / "100000").read_bytes()
    opened = files.open(b"sizes/100000")
    for offset in OFFSETS:
        for wanted in (1, 3, 4095, 4096, 4097, 8191, 12289, 70_000):
            assert files.read(opened, offset, wanted) == data[offset : offset + wanted]
    files.close(opened)


def test_holes_are_zeros(files: Files, made_tree: Path):
    for name in (b"holes", b"nothing", b"torn"):
        path = b"sparse/" + name
        size_bytes = files.attributes(path).size_bytes
        expected = (made_tree / os.fsdecode(path)).read_bytes()
        opened = files.open(path)
        for offset in [*range(0, size_bytes, 1_000_003), size_bytes - 20, size_bytes - 1]:
            for wanted in (1, 10_000, 300_000):
                found = files.read(opened, offset, wanted)
                assert found == expected[offset : offset + wanted], (name, offset, wanted)
        files.close(opened)


def test_a_file_of_thousands_of_extents(files: Files):
    facts = json.loads(files.xattr(b"sparse/torn", b"user.xipfs.extents"))
    assert facts["nr_extents"] > 2000
    tiers = json.loads(files.xattr(b"sparse/torn", b"user.xipfs.tiers"))
    assert tiers["pages"] == tiers["ram"] + tiers["nvram"] + tiers["hole"]
    assert tiers["hole"] > 2000


def test_every_xattr(files: Files, made_tree: Path):
    nr_found = 0
    for path in walk(made_tree):
        host = source(made_tree, path)
        expected = {
            os.fsencode(name): os.getxattr(host, name, follow_symlinks=False)
            for name in os.listxattr(host, follow_symlinks=False)
            if os.fsencode(name).startswith(PREFIXES)
        }
        found = {name: files.xattr(path, name) for name in files.xattrs(path)}
        assert found == expected, path
        nr_found += len(found)
    assert nr_found > 35


@pytest.mark.root
def test_xattrs_for_root(files: Files):
    assert files.xattr(b"xattrs/file", b"trusted.secret") == b"for root"
    assert len(files.xattr(b"xattrs/file", b"security.capability")) == 20
    assert b"system.posix_acl_default" in files.xattrs(b"xattrs/default-acl")


@pytest.mark.parametrize(
    "name", [b"user.none", b"user.xipfs.unknown", b"user.xipfs", b"user.xipfs.control"]
)
def test_xattrs_that_are_not_there(files: Files, name: bytes):
    for path in (b"xattrs/file", b"sizes/1", b"sizes"):
        with refused(errno.ENODATA):
            files.xattr(path, name)


def test_our_own_xattrs_are_not_listed(files: Files):
    """So that copying a file with its attributes does not copy them."""
    assert json.loads(files.xattr(b"sizes/12288", b"user.xipfs.tiers"))["pages"] == 3
    assert json.loads(files.xattr(b"sizes/12288", b"user.xipfs.extents"))["nr_extents"] == 1
    assert files.xattrs(b"sizes/12288") == []
    for path in (b"sizes", b"links/short"):
        with refused(errno.ENODATA):
            files.xattr(path, b"user.xipfs.tiers")


def test_space(files: Files, made: tuple[Path, MkfsStatistics]):
    _, statistics = made
    nr_pages, nr_free_pages, nr_inodes, nr_free_inodes = files.space()
    assert nr_pages == statistics.nr_pages
    assert nr_free_pages == statistics.nr_free_pages
    assert nr_inodes - nr_free_inodes == statistics.nr_inodes


MISSING = {
    b"missing": errno.ENOENT,
    b"sizes/missing": errno.ENOENT,
    b"missing/too": errno.ENOENT,
    b"sizes/1/below": errno.ENOTDIR,
    b"x" * 256: errno.ENAMETOOLONG,
    b"x" * 255: errno.ENOENT,
    b"many/entry-3000": errno.ENOENT,
    b"Sizes": errno.ENOENT,
    b"odd/\xfe": errno.ENOENT,
}


@pytest.mark.parametrize("path", MISSING, ids=range(len(MISSING)))
def test_what_is_not_there(files: Files, path: bytes):
    for _ in range(2):  # the second time the kernel may know
        with refused(MISSING[path]):
            files.attributes(path)


@pytest.mark.parametrize(
    "flags",
    [os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC],
)
def test_no_way_of_writing(files: Files, flags: int):
    with refused(errno.EROFS):
        files.open(b"sizes/4097", flags)
    assert files.attributes(b"sizes/4097").size_bytes == 4097


def test_writing_to_a_directory(files: Files):
    with pytest.raises(OSError) as caught:
        files.open(b"sizes", os.O_WRONLY)
    assert caught.value.errno in (errno.EISDIR, errno.EROFS)


@settings(max_examples=200)
@given(offset=st.integers(0, 5_100_000), wanted=st.integers(1, 1 << 20))
def test_any_read(direct_once: DirectFiles, made_tree: Path, offset: int, wanted: int):
    data = (made_tree / "sizes" / "5000001").read_bytes()
    opened = direct_once.open(b"sizes/5000001")
    found = direct_once.read(opened, offset, wanted)
    direct_once.close(opened)
    assert found == data[offset : offset + wanted]


@pytest.fixture(scope="module")
def direct_once(made_image: Path) -> Iterator[DirectFiles]:
    """One mount for all examples of a test."""
    from xipfs.fuse.mount import Mount
    from xipfs.fuse.options import MountOptions

    mount = Mount.open(made_image, MountOptions(ro=True, ram_bytes=1 << 20))
    yield DirectFiles(mount)
    mount.close()
