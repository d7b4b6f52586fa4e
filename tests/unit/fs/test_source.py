"""walk_tree: a directory tree as entries."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from xipfs.errors import SourceError
from xipfs.fs import source
from xipfs.fs.mkfs import mkfs
from xipfs.fs.newimage import TEMPORARY_PREFIX
from xipfs.fs.source import PIECE_SIZE_BYTES, Entry, walk_tree
from xipfs.units import PAGE_SIZE


def walk(root: Path, **options) -> dict[bytes, Entry]:
    """Return all entries by path, with their pieces taken as they came."""
    entries = {}
    for entry in walk_tree(root, **options):
        assert entry.path not in entries
        entries[entry.path] = entry._replace(pieces=list(entry.pieces))
    return entries


def contents(entry: Entry) -> bytes:
    data = bytearray(entry.size_bytes)
    for pgoff, piece in entry.pieces:
        data[pgoff * PAGE_SIZE : pgoff * PAGE_SIZE + len(piece)] = piece
    return bytes(data)


def test_every_kind_that_anybody_can_make(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir(mode=0o2750)
    (tmp_path / "d" / "f").write_bytes(b"data")
    (tmp_path / "d" / "f").chmod(0o4711)
    (tmp_path / "empty").touch()
    (tmp_path / "l").symlink_to("no/where")
    os.mkfifo(tmp_path / "p", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        listener.bind("s")
    for i, name in enumerate(["d/f", "d", "empty", "l", "p", "s", "."]):
        os.utime(tmp_path / name, ns=(1, 10**18 + i), follow_symlinks=False)

    entries = walk(tmp_path)
    assert list(entries) == [b"", b"d", b"d/f", b"empty", b"l", b"p", b"s"]
    for path, entry in entries.items():
        status = os.lstat(tmp_path / os.fsdecode(path))
        assert entry.mode == status.st_mode
        assert (entry.uid, entry.gid) == (status.st_uid, status.st_gid)
        assert entry.mtime_ns == status.st_mtime_ns
        assert (entry.rdev, entry.hard_link, entry.xattrs) == (0, None, {})
    assert entries[b"d/f"].mtime_ns == 10**18
    assert contents(entries[b"d/f"]) == b"data"
    assert entries[b"empty"].pieces == []
    assert entries[b"l"].target == b"no/where"


def test_names_come_in_the_order_of_their_bytes(tmp_path):
    names = [b"Z", b"a", b"a-b", b"a.b", b"ab", b"\xff\xfe", "ä".encode(), b"\x01", b"n" * 255]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).touch()
    (tmp_path / "a-d").mkdir()
    (tmp_path / "a-d" / "x").touch()
    found = list(walk(tmp_path))[1:]
    assert found == sorted([*names, b"a-d", b"a-d/x"])


def test_device_nodes():
    """/dev/null is on every machine, and walking to it needs no right to make one."""
    entry = source._special_entry(b"null", b"/dev/null", {})
    assert stat.S_ISCHR(entry.mode)
    assert entry.rdev == os.makedev(1, 3)


@pytest.mark.root
def test_what_only_root_can_make(tmp_path):
    os.mknod(tmp_path / "b", stat.S_IFBLK | 0o600, os.makedev(259, 300))
    (tmp_path / "f").touch()
    os.setxattr(tmp_path / "f", "trusted.a", b"\0\1")
    os.setxattr(tmp_path / "f", "user.b", b"")
    os.symlink("x", tmp_path / "l")
    os.setxattr(tmp_path / "l", "trusted.l", b"link", follow_symlinks=False)
    os.chown(tmp_path / "l", 1, 2, follow_symlinks=False)
    os.chown(tmp_path / "f", 4_000_000_000, 3)
    entries = walk(tmp_path)
    assert entries[b"b"].rdev == os.makedev(259, 300)
    assert entries[b"f"].xattrs == {b"trusted.a": b"\0\1", b"user.b": b""}
    assert entries[b"l"].xattrs == {b"trusted.l": b"link"}
    assert (entries[b"l"].uid, entries[b"l"].gid) == (1, 2)
    assert entries[b"f"].uid == 4_000_000_000


def test_attributes(tmp_path):
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    os.setxattr(tmp_path / "f", "user.bytes", bytes(range(256)))
    os.setxattr(tmp_path / "d", "user.d", b"1")
    os.setxattr(tmp_path, "user.root", b"2")
    entries = walk(tmp_path)
    assert entries[b"f"].xattrs == {b"user.bytes": bytes(range(256))}
    assert entries[b"d"].xattrs == {b"user.d": b"1"}
    assert entries[b""].xattrs == {b"user.root": b"2"}


def test_attributes_that_may_not_be_read_are_left_out(tmp_path, monkeypatch):
    (tmp_path / "f").touch()
    names = ["user.a", "trusted.b", "system.nfs4_acl", "system.posix_acl_access", "btrfs.x"]

    def getxattr(file, name, **options):
        if name == "trusted.b":
            raise PermissionError(1, "no")
        return name.encode()

    monkeypatch.setattr(os, "listxattr", lambda file, **options: names)
    monkeypatch.setattr(os, "getxattr", getxattr)
    found = {b"user.a": b"user.a", b"system.posix_acl_access": b"system.posix_acl_access"}
    assert walk(tmp_path)[b"f"].xattrs == found


def test_a_filesystem_without_attributes(tmp_path, monkeypatch):
    def listxattr(file, **options):
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "listxattr", listxattr)
    assert walk(tmp_path)[b""].xattrs == {}


def test_hard_links(tmp_path):
    (tmp_path / "b").write_text("x")
    os.link(tmp_path / "b", tmp_path / "c")
    (tmp_path / "a").mkdir()
    os.link(tmp_path / "b", tmp_path / "a" / "z")
    os.mkfifo(tmp_path / "p")
    os.link(tmp_path / "p", tmp_path / "q")
    entries = walk(tmp_path)
    links = {path: entry.hard_link for path, entry in entries.items() if entry.hard_link}
    assert links == {b"b": b"a/z", b"c": b"a/z", b"q": b"p"}
    assert contents(entries[b"a/z"]) == b"x"
    assert entries[b"b"].pieces == []


def test_a_link_from_outside_is_an_ordinary_file(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "outside").write_text("x")
    os.link(tmp_path / "outside", tmp_path / "d" / "f")
    assert walk(tmp_path / "d")[b"f"].hard_link is None


@pytest.mark.parametrize(
    "size_bytes", [PIECE_SIZE_BYTES, PIECE_SIZE_BYTES + 1, 3 * PIECE_SIZE_BYTES - 7]
)
def test_large_files_come_in_pieces(tmp_path, size_bytes):
    data = bytes(i * 31 % 253 for i in range(1009)) * (size_bytes // 1009 + 1)
    (tmp_path / "f").write_bytes(data[:size_bytes])
    entry = walk(tmp_path)[b"f"]
    assert contents(entry) == data[:size_bytes]
    assert max(len(piece) for _, piece in entry.pieces) == PIECE_SIZE_BYTES


def sparse_file(path: Path, pages: list[int], size_bytes: int) -> None:
    with path.open("wb") as file:
        for page in pages:
            file.seek(page * PAGE_SIZE)
            file.write(bytes([page % 255 + 1]) * PAGE_SIZE)
        file.truncate(size_bytes)


def covered_pages(entry: Entry) -> set[int]:
    return {pgoff + i for pgoff, piece in entry.pieces for i in range(-(-len(piece) // PAGE_SIZE))}


@pytest.mark.parametrize(
    ("pages", "nr_pages"),
    [([], 10), ([0], 10), ([9], 10), ([0, 2, 4, 6, 8], 10), ([1, 2, 3, 500, 501], 5000)],
)
def test_holes_stay_holes(tmp_path, pages, nr_pages):
    sparse_file(tmp_path / "f", pages, nr_pages * PAGE_SIZE)
    entry = walk(tmp_path)[b"f"]
    assert covered_pages(entry) == set(pages)
    assert contents(entry) == (tmp_path / "f").read_bytes()


def test_only_whole_pages_are_holes(tmp_path, monkeypatch):
    """A filesystem may have smaller blocks than a page."""
    (tmp_path / "f").write_bytes(b"x" * (5 * PAGE_SIZE - 100))
    runs = [(1024, 2048), (PAGE_SIZE + 512, PAGE_SIZE + 1024), (4 * PAGE_SIZE - 512, 4 * PAGE_SIZE)]
    monkeypatch.setattr(source, "_BLOCK_SIZE_BYTES", 0)  # looks sparse

    def lseek(fd, offset, whence):
        for start, end in runs:
            if offset < end:
                return max(offset, start) if whence == os.SEEK_DATA else end
        raise OSError(6, "no such device or address")

    monkeypatch.setattr(os, "lseek", lseek)
    entry = walk(tmp_path)[b"f"]
    assert [(pgoff, len(piece)) for pgoff, piece in entry.pieces] == [
        (0, PAGE_SIZE),
        (1, PAGE_SIZE),
        (3, PAGE_SIZE),
    ]


def test_a_filesystem_that_cannot_tell_holes(tmp_path, monkeypatch):
    sparse_file(tmp_path / "f", [1], 4 * PAGE_SIZE)

    def lseek(fd, offset, whence):
        raise OSError(22, "invalid argument")

    monkeypatch.setattr(os, "lseek", lseek)
    entry = walk(tmp_path)[b"f"]
    assert covered_pages(entry) == {0, 1, 2, 3}
    assert contents(entry) == (tmp_path / "f").read_bytes()


# The image itself


def test_the_image_inside_the_tree_is_left_out(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("f", "nvram.img", "d/nvram.img", f"d/{TEMPORARY_PREFIX}0", f"{TEMPORARY_PREFIX}0"):
        (tmp_path / name).touch()
    found = set(walk(tmp_path, image=tmp_path / "nvram.img"))
    assert found == {b"", b"f", b"d", b"d/nvram.img", b"d/.xipfs-new-0"}
    (tmp_path / "link").symlink_to(tmp_path / "d")
    found = set(walk(tmp_path, image=tmp_path / "link" / "nvram.img"))
    assert found == {b"", b"f", b"d", b"link", b"nvram.img", b".xipfs-new-0"}


def test_an_image_of_the_directory_it_is_in(tmp_path):
    (tmp_path / "f").touch()
    image = tmp_path / "nvram.img"
    for _ in range(2):  # the second replaces the first
        mkfs(image, walk_tree(tmp_path, image=image), now_ns=1, reproducible=True, force=True)
    assert image.stat().st_size == 1 << 20


# The same tree at another place


def test_a_copy_makes_the_same_image(tmp_path):
    for name in ("one", "other/place"):
        root = tmp_path / name
        (root / "d").mkdir(parents=True)
        for i in range(20) if name == "one" else reversed(range(20)):
            (root / "d" / f"{i}").write_text(f"{i}")
        os.link(root / "d" / "3", root / "link")
        for path in [*root.rglob("*"), root]:
            os.utime(path, ns=(0, 10**18))
        image = tmp_path / f"{name[:3]}.img"
        mkfs(image, walk_tree(root), now_ns=10**18, reproducible=True)
    assert (tmp_path / "one.img").read_bytes() == (tmp_path / "oth.img").read_bytes()


# What cannot be read


def test_no_directory(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(SourceError, match="f': not a directory"):
        walk(tmp_path / "f")
    with pytest.raises(SourceError, match="none': cannot be read: No such file"):
        walk(tmp_path / "none")


def test_a_link_to_a_directory_is_as_good(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").touch()
    (tmp_path / "l").symlink_to("d")
    assert set(walk(tmp_path / "l")) == {b"", b"f"}


def failing(monkeypatch, name: str, path: Path, exc: OSError) -> None:
    """Let os.*name* fail for *path* alone."""
    real = getattr(os, name)

    def call(file, *args, **options):
        if file == os.fsencode(path):
            raise exc
        return real(file, *args, **options)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(("call", "name"), [("open", "f"), ("scandir", "d"), ("readlink", "l")])
def test_the_unreadable_is_named(tmp_path, monkeypatch, call, name):
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("f")
    failing(monkeypatch, call, tmp_path / name, PermissionError(13, "Permission denied"))
    with pytest.raises(SourceError, match=f"/{name}': cannot be read: Permission denied"):
        walk(tmp_path)


def test_a_file_that_vanishes(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    walk_on = walk_tree(tmp_path)
    assert [next(walk_on).path for _ in range(2)] == [b"", b"a"]
    (tmp_path / "b").unlink()
    with pytest.raises(SourceError, match="/b': cannot be read: No such file"):
        next(walk_on)


def test_a_file_whose_place_a_fifo_took(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    walk_on = walk_tree(tmp_path)
    assert [next(walk_on).path for _ in range(2)] == [b"", b"a"]
    (tmp_path / "b").unlink()
    os.mkfifo(tmp_path / "b")
    with pytest.raises(SourceError, match="was replaced"):
        next(walk_on)


def entry_of(walk_on: Iterator[Entry], path: bytes) -> Entry:
    return next(entry for entry in walk_on if entry.path == path)


def test_a_file_that_shrinks(tmp_path):
    """Also a sparse one, whose missing end looks like a hole."""
    (tmp_path / "large").write_bytes(bytes(3 << 20))
    sparse_file(tmp_path / "sparse", [0, 600], 4 << 20)
    for name in ("large", "sparse"):
        walk_on = walk_tree(tmp_path)
        pieces = iter(entry_of(walk_on, name.encode()).pieces)
        next(pieces)
        os.truncate(tmp_path / name, 100)
        with pytest.raises(SourceError, match=f"/{name}'.*shrank"):
            list(pieces)


def test_a_small_file_that_shrinks(tmp_path, monkeypatch):
    (tmp_path / "small").write_bytes(b"12345")
    real = os.pread

    def pread(fd, size_bytes, offset):
        os.truncate(tmp_path / "small", 3)
        return real(fd, size_bytes, offset)

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(SourceError, match=r"/small'.*shrank"):
        walk(tmp_path)


def test_a_file_that_grows_is_as_it_was(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * (2 << 20))
    walk_on = walk_tree(tmp_path)
    entry = entry_of(walk_on, b"f")
    with (tmp_path / "f").open("ab") as file:
        file.write(b"more")
    assert contents(entry) == b"x" * (2 << 20)


def test_short_reads_are_continued(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"0123456789")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, min(size, 3), offset))
    assert contents(walk(tmp_path)[b"f"]) == b"0123456789"


def test_files_are_closed(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}").write_text("x")
    before = len(os.listdir("/proc/self/fd"))
    walk(tmp_path)
    abandoned = walk_tree(tmp_path)
    entry_of(abandoned, b"7")
    del abandoned
    assert len(os.listdir("/proc/self/fd")) == before
