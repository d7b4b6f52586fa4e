"""read_tar: archives as entries, by Python's tarfile and by GNU tar."""

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.kit.image_reader import read_image
from xipfs.errors import SourceError
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import PIECE_SIZE_BYTES, Entry, walk_tree
from xipfs.fs.tarsource import read_tar
from xipfs.units import PAGE_SIZE


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def archive(
    members: Iterable[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]],
    mode: str = "w",
    tar_format: int = tarfile.PAX_FORMAT,
) -> bytes:
    """Return an archive of members, or of (member, contents)."""
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode=mode, format=tar_format, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for item in members:
            info, data = item if isinstance(item, tuple) else (item, b"")
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def open_tar(data: bytes) -> Iterator[Entry]:
    return read_tar(io.BufferedReader(io.BytesIO(data)), "a.tar")


def read(data: bytes) -> list[Entry]:
    """Return all entries, with their pieces taken as they came."""
    return [
        entry._replace(pieces=[(pgoff, bytes(piece)) for pgoff, piece in entry.pieces])
        for entry in open_tar(data)
    ]


def contents(entry: Entry) -> bytes:
    data = bytearray(entry.size_bytes)
    for pgoff, piece in entry.pieces:
        assert len(piece) <= PIECE_SIZE_BYTES
        end = min(pgoff * PAGE_SIZE + len(piece), entry.size_bytes)
        data[pgoff * PAGE_SIZE : end] = piece
    return bytes(data)


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.mark.parametrize("tar_format", FORMATS)
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_kind_in_every_format(tar_format, mode):
    owner = {"uid": 1000, "gid": 100, "mtime": 1_600_000_000}
    data = archive(
        [
            member(".", tarfile.DIRTYPE, mode=0o700, **owner),
            member("./d", tarfile.DIRTYPE, mode=0o1777, **owner),
            (member("./d/f", mode=0o4755, **owner), b"data"),
            member("empty", mode=0o600, **owner),
            member("l", tarfile.SYMTYPE, linkname="../out/side", mode=0o777, **owner),
            member("h", tarfile.LNKTYPE, linkname="./d/f", **owner),
            member("c", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666, **owner),
            member("b", tarfile.BLKTYPE, devmajor=259, devminor=300, mode=0o660, **owner),
            member("p", tarfile.FIFOTYPE, mode=0o644, **owner),
        ],
        mode,
        tar_format,
    )
    entries = {entry.path: entry for entry in read(data)}
    assert [oct(entry.mode) for entry in entries.values()] == [
        oct(mode)
        for mode in (
            stat.S_IFDIR | 0o700,
            stat.S_IFDIR | 0o1777,
            stat.S_IFREG | 0o4755,
            stat.S_IFREG | 0o600,
            stat.S_IFLNK | 0o777,
            stat.S_IFREG | 0o644,
            stat.S_IFCHR | 0o666,
            stat.S_IFBLK | 0o660,
            stat.S_IFIFO | 0o644,
        )
    ]
    assert list(entries) == [b"", b"d", b"d/f", b"empty", b"l", b"h", b"c", b"b", b"p"]
    assert {(e.uid, e.gid, e.mtime_ns) for e in entries.values()} == {
        (1000, 100, 1_600_000_000 * 10**9)
    }
    assert contents(entries[b"d/f"]) == b"data"
    assert entries[b"l"].target == b"../out/side"
    assert entries[b"h"].hard_link == b"d/f"
    assert entries[b"c"].rdev == os.makedev(1, 3)
    assert entries[b"b"].rdev == os.makedev(259, 300)


@pytest.mark.parametrize("tar_format", FORMATS[1:])
def test_names_of_any_bytes(tar_format):
    names = [b"\xff\xfe", "ä".encode(), b"n" * 255, b"/".join([b"d" * 200] * 5), b"a\nb", b"\x01"]
    data = archive([member(os.fsdecode(name)) for name in names], tar_format=tar_format)
    assert [entry.path for entry in read(data)] == names


def test_times_to_the_nanosecond():
    times = {
        "1600000000.123456789": 1_600_000_000_123_456_789,
        "-1.5": -1_500_000_000,
        "7": 7 * 10**9,
    }
    data = archive([member("f", pax_headers={"mtime": text}) for text in times])
    assert [entry.mtime_ns for entry in read(data)] == list(times.values())


def test_attributes():
    value = bytes(range(256))
    headers = {
        "SCHILY.xattr.user.bytes": value.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.security.selinux": "system_u\0",
        "SCHILY.xattr.system.nfs4_acl": "left out",
        "SCHILY.acl.access": "user::rw-,user:7:r--,group::r--,mask::r--,other::---",
        "comment": "nothing",
    }
    (entry,) = read(archive([member("f", pax_headers=headers)]))
    acl = entry.xattrs[b"system.posix_acl_access"]
    assert len(acl) == 4 + 5 * 8
    assert entry.xattrs == {
        b"user.bytes": value,
        b"security.selinux": b"system_u\0",
        b"system.posix_acl_access": acl,
    }


def test_large_members_come_in_pieces():
    data = bytes(i * 31 % 253 for i in range(1009)) * 3000
    tar = archive([(member("a"), b"first"), (member("f"), data), (member("z"), b"last")])
    entries = read(tar)
    assert [contents(entry) for entry in entries] == [b"first", data, b"last"]
    assert [len(piece) for _, piece in entries[1].pieces] == [
        1 << 20,
        1 << 20,
        len(data) - (2 << 20),
    ]


def test_contents_may_be_left_unread():
    tar = archive([(member("a"), bytes(3 << 20)), (member("b"), b"data")])
    entries = [entry for entry in open_tar(tar) if entry.path == b"b"]
    assert len(entries) == 1


def test_a_volume_label_is_no_file():
    assert [e.path for e in read(archive([member("label", b"V"), member("f")]))] == [b"f"]


def test_an_archive_of_nothing():
    assert read(archive([])) == []


def test_an_image_of_a_container_export(tmp_path):
    """Like `docker export`: no root, directories late or never, links to what came before."""
    data = archive(
        [
            (member(".dockerenv", mode=0o755), b""),
            member("bin", tarfile.SYMTYPE, linkname="usr/bin"),
            (member("etc/hosts", mode=0o644), b"old"),
            member("etc", tarfile.DIRTYPE, mode=0o750, uid=1),
            member("dev/console", tarfile.CHRTYPE, devmajor=5, devminor=1, mode=0o620),
            (member("usr/bin/perl", mode=0o755), b"#!perl"),
            member("usr/bin/perl5.36.0", tarfile.LNKTYPE, linkname="usr/bin/perl"),
            (member("etc/hosts", mode=0o600), b"new"),
        ]
    )
    mkfs(tmp_path / "a.img", open_tar(data), now_ns=1)
    image = read_image(tmp_path / "a.img")
    assert image.inode(b"").mode == stat.S_IFDIR | 0o755
    assert image.inode(b"etc").mode == stat.S_IFDIR | 0o750
    assert image.read(b"etc/hosts") == b"new"
    assert image.inode(b"usr/bin/perl5.36.0").nlink == 2
    assert image.inode(b"dev/console").rdev == os.makedev(5, 1)
    assert image.read(b"bin") == b"usr/bin"


# GNU tar


def gnu_tar(directory: Path, *options: str) -> bytes:
    command = ["tar", "-C", str(directory), *options, "-cf", "-", "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


SPARSE_FORMATS = [
    ["--format=gnu"],
    ["--format=posix", "--sparse-version=0.0"],
    ["--format=posix", "--sparse-version=0.1"],
    ["--format=posix", "--sparse-version=1.0"],
]


@pytest.mark.parametrize("options", SPARSE_FORMATS, ids=" ".join)
def test_sparse_files_of_gnu_tar(tmp_path, options):
    offsets = [0, 3 << 20, (5 << 20) + 4096, *range(8 << 20, 9 << 20, 3 * PAGE_SIZE)]
    with (tmp_path / "sparse").open("wb") as file:
        for i, offset in enumerate(offsets):
            file.seek(offset)
            file.write(bytes([i % 255 + 1]) * 5000)
        file.truncate((20 << 20) + 123)
    (tmp_path / "z").write_bytes(b"behind it")
    data = gnu_tar(tmp_path, "--sparse", *options)
    assert len(data) < 2 << 20
    entries = {entry.path: entry for entry in read(data)}
    assert contents(entries[b"sparse"]) == (tmp_path / "sparse").read_bytes()
    nr_pages = sum(-(-len(piece) // PAGE_SIZE) for _, piece in entries[b"sparse"].pieces)
    assert nr_pages == 2 * len(offsets)
    assert contents(entries[b"z"]) == b"behind it"


def test_a_tree_makes_the_same_image_by_way_of_gnu_tar(tmp_path):
    """All but the order of the names, which an image does not know either."""
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "f").write_bytes(b"data" * 5000)
    os.link(tree / "d" / "f", tree / "d" / "g")
    (tree / "l").symlink_to("t" * 300)
    os.mkfifo(tree / "p")
    os.setxattr(tree / "d" / "f", "user.a", b"\0\xff\n")
    for i, path in enumerate([*sorted(tree.rglob("*")), tree]):
        os.utime(path, ns=(0, 10**18 + i), follow_symlinks=False)
    data = gnu_tar(tree, "--format=posix", "--xattrs", "--sort=name")
    for name, source in [
        ("tree.img", walk_tree(tree)),
        ("tar.img", open_tar(data)),
    ]:
        mkfs(tmp_path / name, source, now_ns=1, reproducible=True)
    assert (tmp_path / "tree.img").read_bytes() == (tmp_path / "tar.img").read_bytes()


# Bad archives


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a/.."])
def test_paths_that_lead_out(name):
    with pytest.raises(SourceError, match=r"a\.tar: .*(absolute|leads out)"):
        read(archive([member(name)]))
    with pytest.raises(SourceError, match=r"a\.tar: .*(absolute|leads out)"):
        read(archive([member("h", tarfile.LNKTYPE, linkname=name)]))


GOOD = archive([(member("a"), b"x" * 2000), (member("b"), b"y" * 2000)])


@pytest.mark.parametrize("end", [1, 511, 512, 1000, 1536, 2560, 3072, 3100, 4608, 5120])
def test_an_archive_that_was_cut_short(end):
    """Also between two members, and before its end mark, which tarfile takes for an end."""
    with pytest.raises(SourceError, match=r"a\.tar"):
        read(GOOD[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive",
        os.fsencode("x" * 5000),
        GOOD[:512].replace(b"ustar", b"uster"),
        b"\x1f\x8b",
    ],
)
def test_no_archive(data):
    with pytest.raises(SourceError, match=r"a\.tar: not a tar archive"):
        read(data)


def test_zstd_is_named():
    with pytest.raises(SourceError, match="zstd -dc"):
        read(b"\x28\xb5\x2f\xfd" + bytes(100))


def test_a_damaged_header_is_not_the_end():
    damaged = bytearray(GOOD)
    damaged[2560 + 10] ^= 1
    with pytest.raises(SourceError, match="damaged"):
        read(bytes(damaged))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_damaged_compression(mode):
    data = bytearray(archive([(member("a"), os.urandom(100_000))], mode))
    half = len(data) // 2
    with pytest.raises(SourceError, match=r"a\.tar"):
        read(bytes(data[:half]))
    data[half : half + 1000] = bytes(1000)
    with pytest.raises(SourceError, match=r"a\.tar"):
        read(bytes(data))


@pytest.mark.parametrize(
    "bad",
    [
        member("f", b"Z"),
        member("f", pax_headers={"mtime": "inf"}),
        member("f", pax_headers={"mtime": "no time"}),
        member("f", pax_headers={"uid": str(1 << 32)}),
        member("f", pax_headers={"gid": "-1"}),
        member("f", pax_headers={"SCHILY.acl.access": "user:no such user:rwx"}),
    ],
)
def test_members_that_no_image_can_hold(bad):
    with pytest.raises(SourceError, match=r"a\.tar: 'f'"):
        read(archive([bad]))


def test_an_impossible_sparse_map():
    headers = {"GNU.sparse.map": "0,512,0,512", "GNU.sparse.size": "1024"}
    with pytest.raises(SourceError, match="impossible map"):
        read(archive([(member("f", pax_headers=headers), bytes(1024))]))


def test_the_writer_of_a_pipe_is_read_to_the_end():
    stream = io.BufferedReader(io.BytesIO(GOOD + bytes(3 << 20)))
    assert len(list(read_tar(stream, "stdin"))) == 2
    assert stream.read() == b""


def test_nothing_is_kept_in_memory():
    """tarfile keeps all members; a stream of millions must not cost memory."""
    entries = open_tar(archive([member(f"{i}") for i in range(100)]))
    next(entries)
    assert entries.gi_frame.f_locals["archive"].members == []
