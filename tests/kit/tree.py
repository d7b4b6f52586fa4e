"""A made tree with every kind of entry that a filesystem can hold, to make images from.

    make_tree(tmp_path / "tree")           some thousands of entries, in half a second
    walk(tmp_path / "tree")                the path of every one, relative, as bytes

What only root can make (owners, device nodes, trusted attributes) is there for root only; the
tests that need it are marked `root`.
"""

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from xipfs.units import PAGE_SIZE

__all__ = ["NR_MANY", "ODD_NAMES", "SIZES", "make_tree", "random_bytes", "walk"]

NR_MANY = 3000
"""Entries of the directory `many`: its index has more than one level."""

NR_FRAGMENTS = 2500
"""Extents of `sparse/torn`."""

SIZES = [0, 1, 4095, 4096, 4097, 12288, 100_000, (1 << 20) - 1, (1 << 20) + 1, 5_000_001]
"""Sizes of the files `sizes/<size>`, around the ends of pages and of requests."""

ODD_NAMES = [
    bytes(range(1, 47)),  # all bytes that a name can have, in two names
    bytes(range(48, 256)),
    b"\xff" * 255,
    "ä€𐍈".encode() * 28,
    b"n" * 255,
    b"...",
    b"-rf",
    b" ",
    b"\\040",
    b"a\nb",
    b"tail ",
    b".hidden",
    b"~",
]

MTIME_NS = 1_234_567_890_123_456_789


def random_bytes(size_bytes: int, seed: int) -> bytes:
    """Return bytes that look random and are the same each time."""
    return random.Random(seed).randbytes(size_bytes)


def make_tree(root: Path) -> None:
    """Make the tree at *root*, which must not exist yet."""
    for name in ("modes", "times", "links", "xattrs", "special", "sparse", "sizes", "odd", "many"):
        (root / name).mkdir(parents=True)
    _make_sizes(root / "sizes")
    _make_modes(root / "modes")
    _make_links(root / "links")
    _make_xattrs(root / "xattrs")
    _make_special(root / "special")
    _make_sparse(root / "sparse")
    _make_programs(root / "bin")
    for i, name in enumerate(ODD_NAMES):
        Path(os.fsdecode(os.fsencode(root / "odd") + b"/" + name)).write_bytes(b"odd %d" % i)
    for i in range(NR_MANY):
        (root / "many" / f"entry-{i:05d}").touch()
    deep = root / "deep"
    for i in range(40):
        deep /= f"directory-number-{i:02d}-{'x' * 30}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"down here")
    if os.geteuid() == 0:
        _make_owners(root / "owners")
    _set_times(root)


def walk(root: Path) -> Iterator[bytes]:
    """Yield the path of every entry below *root*, relative to it, and b"" for itself; sorted."""
    top = os.fsencode(root)
    found = [b""]
    for directory, names, files in os.walk(top):
        found += [os.path.relpath(os.path.join(directory, name), top) for name in names + files]
    yield from sorted(found)


def _make_sizes(folder: Path) -> None:
    for size_bytes in SIZES:
        (folder / str(size_bytes)).write_bytes(random_bytes(size_bytes, size_bytes))
    (folder / "empty-directory").mkdir()


def _make_modes(folder: Path) -> None:
    for mode in (0o444, 0o640, 0o700, 0o777, 0o1644, 0o2755, 0o4755, 0o6711):
        path = folder / f"{mode:05o}"
        path.write_bytes(b"x")
        path.chmod(mode)
    for mode in (0o700, 0o1777, 0o2755, 0o555):
        path = folder / f"directory-{mode:05o}"
        path.mkdir()
        path.chmod(mode)


def _make_links(folder: Path) -> None:
    targets = {
        "short": b"../sizes/4097",
        "directory": b"../sizes",
        "dangling": b"nowhere/at/all",
        "absolute": b"/etc/passwd",
        "self": b"self",
        "odd": b"\xff \n",
        "sixty": b"./" * 80 + b"short",  # about as long as what an inode can hold
        "long": b"./" * 1000 + b"short",
        "longest": b"x" * 4095,
    }
    for name, target in targets.items():
        os.symlink(target, os.fsencode(folder / name))
    (folder / "hard-1").write_bytes(b"three names")
    (folder / "sub").mkdir()
    os.link(folder / "hard-1", folder / "hard-2")
    os.link(folder / "hard-1", folder / "sub" / "hard-3")
    os.link(folder / "short", folder / "short-2", follow_symlinks=False)


def _make_xattrs(folder: Path) -> None:
    (folder / "file").write_bytes(b"attributes")
    os.setxattr(folder / "file", "user.text", b"text")
    os.setxattr(folder / "file", "user.empty", b"")
    os.setxattr(folder / "file", "user.bytes", bytes(range(256)))
    os.setxattr(folder / "file", b"user.\xff\xfe", b"odd")
    (folder / "many").touch()
    for i in range(30):
        os.setxattr(folder / "many", f"user.number.{i}", b"v" * i)
    (folder / "large").touch()
    os.setxattr(folder / "large", "user.large", random_bytes(3000, 1))
    (folder / "directory").mkdir()
    os.setxattr(folder / "directory", "user.of-a-directory", b"yes")
    for acl, name in (("u:12345:r--,g:54321:rw-", "acl"), ("u::rwx,u:1:---", "acl-2")):
        (folder / name).touch()
        subprocess.run(["setfacl", "-m", acl, folder / name], check=True)
    (folder / "default-acl").mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:7:rwx", folder / "default-acl"], check=True)
    if os.geteuid() == 0:
        os.setxattr(folder / "file", "trusted.secret", b"for root")
        # cap_net_raw=ep, as VFS_CAP_REVISION_2 stores it.
        capability = bytes.fromhex("0100000200200000000000000000000000000000")
        os.setxattr(folder / "file", "security.capability", capability)
        os.setxattr(folder / "directory", "trusted.secret", b"for root")


def _make_special(folder: Path) -> None:
    os.mkfifo(folder / "fifo", 0o640)
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o755)
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(folder / "block", stat.S_IFBLK | 0o660, os.makedev(7, 0))
        os.mknod(folder / "large-numbers", stat.S_IFCHR | 0o600, os.makedev(4000, 1_000_000))


def _make_sparse(folder: Path) -> None:
    with (folder / "holes").open("wb") as file:
        file.truncate(32 << 20)
        for offset in (0, (10 << 20) + 100, (32 << 20) - 10):
            file.seek(offset)
            file.write(b"data here"[: (32 << 20) - offset])
    with (folder / "nothing").open("wb") as file:
        file.truncate(1_000_001)
    with (folder / "torn").open("wb") as file:
        for i in range(NR_FRAGMENTS):
            file.seek(2 * i * PAGE_SIZE)
            file.write(b"%8d" % i * (PAGE_SIZE // 8))


def _make_programs(folder: Path) -> None:
    folder.mkdir()
    for name in ("cat", "true"):
        program = shutil.which(name)
        assert program is not None
        shutil.copy2(program, folder / name)
    script = folder / "script"
    script.write_text('#!/bin/sh\necho "arguments: $*"\n')
    script.chmod(0o755)


def _make_owners(folder: Path) -> None:
    folder.mkdir()
    for uid, gid in ((0, 0), (1, 2), (65534, 65534), (100_000, 1 << 20), (0xFFFFFFFE, 0xFFFFFFFE)):
        path = folder / f"{uid}-{gid}"
        path.touch()
        os.chown(path, uid, gid)
    os.symlink("0-0", folder / "link")
    os.lchown(folder / "link", 33, 34)
    (folder / "for-root-alone").touch(mode=0)
    os.chown(folder, 5, 6)


def _set_times(root: Path) -> None:
    for i, mtime_ns in enumerate((0, 1, -1, -(1 << 30) * 10**9 + 1, MTIME_NS, (1 << 33) * 10**9)):
        (root / "times" / str(i)).touch()
        os.utime(root / "times" / str(i), ns=(mtime_ns, mtime_ns))
    os.utime(root / "links" / "short", ns=(MTIME_NS, MTIME_NS + 7), follow_symlinks=False)
    # Directories from the bottom up: what is made in one changes its time.
    for i, (directory, _, _) in enumerate(os.walk(root, topdown=False)):
        os.utime(directory, ns=(MTIME_NS + i, MTIME_NS + i))
