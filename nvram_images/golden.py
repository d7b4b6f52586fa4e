#!/usr/bin/env python3
"""Makes a golden image: tiny, with every kind of entry that an image can hold.

    nvram_images/golden.py [DIR]        default: nvram_images/golden

writes vN.img.xz, N being the version of the format, and vN.json, which says what is in it: taken
from the entries below, not from the image. The bytes are the same each time. The image of a version
is made once and stays: every later xipfs must read it, and a test makes sure.
"""

import argparse
import hashlib
import json
import lzma
import os
import random
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry
from xipfs.ondisk.superblock import FORMAT_VERSION
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["describe", "entries", "make_image"]

NOW_NS = 1_234_567_890_123_456_789
"""When the image was made, as far as it knows."""

LABEL = "golden \N{SNOWMAN}".encode()

_MTIME_NS = 1_000_000_000_000_000_001
_ID_MAX = (1 << 32) - 2
_SIZE_BYTES_MAX = 1 << 44
_NR_MANY_EXTENTS = 850  # more than five nodes of 169: the tree has two levels
_NR_MANY_NAMES = 260  # more than two leaves: the directory has an index
# user::rw-,user:1000:r--,group::r--,mask::rw-,other::--- in the layout of Linux.
_ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000600ffffffff 20000000ffffffff"
)


def entries() -> Iterator[Entry]:
    """Yield all that is in the image, the root first."""
    yield _directory("", mode=0o751)._replace(uid=1, gid=2)
    yield from _files()
    yield from _links()
    yield from _nodes()
    yield from _attributes()
    yield from _directories()


def _files() -> Iterator[Entry]:
    some_bytes = random.Random(1).randbytes
    yield _directory("files")
    yield _file("files/empty")
    yield _file("files/one byte", (0, b"x"))
    yield _file("files/one page", (0, some_bytes(PAGE_SIZE)))
    yield _file("files/one page, one byte", (0, some_bytes(PAGE_SIZE) + b"x"))
    yield _file("files/hole first", (2, b"behind two pages of zeros"))
    hole_last = _file("files/hole last", (0, b"x".ljust(PAGE_SIZE, b"\0")))
    yield hole_last._replace(size_bytes=3 * PAGE_SIZE + 1)
    yield _file("files/hole only")._replace(size_bytes=_SIZE_BYTES_MAX)
    pages = ((2 * i, (b"extent %d" % i).ljust(PAGE_SIZE, b"\0")) for i in range(_NR_MANY_EXTENTS))
    yield _file("files/many extents", *pages)
    for mode in (0o0000, 0o0777, 0o4755, 0o2755, 0o6711, 0o1644):
        yield _file(f"files/mode {mode:04o}", mode=mode)
    for mtime_ns in (0, -1, -(1 << 63), (1 << 63) - 1):
        yield _file(f"files/mtime {mtime_ns}")._replace(mtime_ns=mtime_ns)
    yield _file("files/highest owner")._replace(uid=_ID_MAX, gid=_ID_MAX)
    # Two inodes become free again, and pages.
    yield _file("files/replaced", (0, some_bytes(2 * PAGE_SIZE)))
    yield _file("files/replaced", (0, b"a second file of this name"))
    yield _directory("files/replaced directory")
    yield _file("files/replaced directory", (0, b"a file now"))


def _links() -> Iterator[Entry]:
    yield _directory("links")
    for target in ("../files/empty", "nowhere", "/", "t" * 120, "t" * 121, "t" * 4095):
        name = f"links/{len(target)} bytes"
        yield _entry(name, stat.S_IFLNK | 0o777)._replace(target=target.encode())
    yield _file("links/first", (0, b"three names"))
    yield _hard_link("links/second", "links/first")
    yield _hard_link("files/third", "links/first")
    yield _hard_link("links/again 7 bytes", "links/7 bytes")


def _nodes() -> Iterator[Entry]:
    yield _directory("nodes")
    yield _entry("nodes/fifo", stat.S_IFIFO | 0o600)
    yield _entry("nodes/socket", stat.S_IFSOCK | 0o600)
    for name, kind, major, minor in (
        ("null", stat.S_IFCHR, 1, 3),
        ("disk", stat.S_IFBLK, 259, 1048575),
        ("highest", stat.S_IFCHR, 4095, 1048575),
    ):
        yield _entry(f"nodes/{name}", kind | 0o660)._replace(rdev=os.makedev(major, minor))


def _attributes() -> Iterator[Entry]:
    yield _directory("attributes")._replace(xattrs={b"user.on a directory": b"yes"})
    for name, xattrs in (
        ("few", {b"user.one": b"1", b"user.none": b"", b"user.\xff": bytes(range(256))}),
        ("large", {b"user." + b"n" * 250: b"v" * 65536, b"user.x": b""}),
        ("many", {b"user.%d" % i: b"%d" % (i * i) for i in range(200)}),
        ("capability", {b"security.capability": b"\1" + bytes(19)}),
        ("acl", {b"system.posix_acl_access": _ACL}),
    ):
        yield _file(f"attributes/{name}", mode=0o660)._replace(xattrs=xattrs)
    default_acl = {b"system.posix_acl_default": _ACL}
    yield _directory("attributes/default acl")._replace(xattrs=default_acl)
    link = _entry("attributes/link", stat.S_IFLNK | 0o777)
    yield link._replace(target=b"few", xattrs={b"trusted.on": b"a link"})


def _directories() -> Iterator[Entry]:
    yield _directory("directories", mode=0o1777)
    yield _directory("directories/empty", mode=0o2750)
    yield _directory("directories/many")
    for i in range(_NR_MANY_NAMES):
        yield _file(f"directories/many/{i}")
    names = [b"n" * 255, b"\xff" * 255, b" ", b"\n", b"-rf", b"...", b"*", b"\\", b"\x01"]
    names += ["\N{SNOWMAN}".encode(), b"e\xcc\x81", b"\xc3\xa9"]
    for name in names:
        yield _file("directories/")._replace(path=b"directories/" + name)
    yield _file("directories/implied/also implied/file", (0, b"in directories of no entry"))
    yield _directory("directories" + "/deep" * 40)


def _entry(path: str, mode: int) -> Entry:
    return Entry(path.encode(), mode, uid=0, gid=0, mtime_ns=_MTIME_NS)


def _directory(path: str, *, mode: int = 0o755) -> Entry:
    return _entry(path, stat.S_IFDIR | mode)


def _file(path: str, *pieces: tuple[int, bytes], mode: int = 0o644) -> Entry:
    end = max(((pgoff << PAGE_SHIFT) + len(data) for pgoff, data in pieces), default=0)
    return _entry(path, stat.S_IFREG | mode)._replace(size_bytes=end, pieces=pieces)


def _hard_link(path: str, first: str) -> Entry:
    return _entry(path, stat.S_IFREG)._replace(hard_link=first.encode())


def describe() -> dict[str, dict[str, Any]]:
    """Return what a reader of the image must find, by path; ready for JSON.

    Zeros and empty values are left out, and the contents of files too large to read; contents and
    the values of attributes are given by their SHA-256. Bytes that are no UTF-8 stand as lone
    surrogates. Names of one inode say the same, and which is the first of them.
    """
    found: dict[bytes, dict[str, Any]] = {}
    for entry in entries():
        _add_parents(found, entry.path)
        if entry.hard_link is None:
            found[entry.path] = _describe_inode(entry)
        else:
            found[entry.path] = found[entry.hard_link]
            found[entry.path].setdefault("first_name", _text(entry.hard_link))
            found[entry.path]["nlink"] += 1
    for path, facts in found.items():
        if path and facts["mode"].startswith("04"):
            found[path.rpartition(b"/")[0]]["nlink"] += 1
    return {_text(path): _without_nothing(facts) for path, facts in sorted(found.items())}


def _add_parents(found: dict[bytes, dict[str, Any]], path: bytes) -> None:
    """Describe the directories that a path goes through and nobody named, as mkfs makes them."""
    parent = path.rpartition(b"/")[0]
    if parent not in found and path:
        _add_parents(found, parent)
        found[parent] = _describe_inode(Entry(parent, stat.S_IFDIR | 0o755, 0, 0, NOW_NS))


def _describe_inode(entry: Entry) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "mode": f"{entry.mode:06o}",
        "nlink": 2 if stat.S_ISDIR(entry.mode) else 1,
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
        "rdev": entry.rdev,
        "target": _text(entry.target),
        "xattrs": {
            _text(name): hashlib.sha256(value).hexdigest() for name, value in entry.xattrs.items()
        },
    }
    if stat.S_ISREG(entry.mode):
        pieces = list(entry.pieces)
        facts["size_bytes"] = entry.size_bytes
        facts["data_pages"] = sum(-(-len(data) // PAGE_SIZE) for _, data in pieces)
        if 0 < entry.size_bytes < _SIZE_BYTES_MAX:
            contents = bytearray(entry.size_bytes)
            for pgoff, data in pieces:
                contents[pgoff << PAGE_SHIFT : (pgoff << PAGE_SHIFT) + len(data)] = data
            facts["sha256"] = hashlib.sha256(contents).hexdigest()
    return facts


def _without_nothing(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def make_image(image: Path) -> None:
    """Write the image, not compressed, to the new file *image*. Raises: XipfsError."""
    mkfs(image, entries(), now_ns=NOW_NS, label=LABEL, reproducible=True)


def main() -> int:
    """Write image and description."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent / "golden"
    parser.add_argument("directory", nargs="?", type=Path, default=default)
    directory: Path = parser.parse_args().directory
    directory.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="xipfs-golden-") as work:
        image = Path(work) / "golden.img"
        make_image(image)
        data = image.read_bytes()
    compressed = directory / f"v{FORMAT_VERSION}.img.xz"
    compressed.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    lines = [f"{json.dumps(path)}: {json.dumps(facts)}" for path, facts in describe().items()]
    compressed.with_suffix("").with_suffix(".json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{compressed}: {compressed.stat().st_size} bytes of {len(data)}")
    print(f"sha256 of the image: {hashlib.sha256(data).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
