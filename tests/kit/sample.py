"""One small image with everything in it that an image can have, for tests that break things."""

import copy
import functools
import os
import stat
from dataclasses import dataclass

from tests.kit.image import Extent, HandmadeImage, ImageKit
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SIZE

__all__ = ["ACL", "Sample", "make_sample"]

ACL = bytes.fromhex(
    "02000000 01000700ffffffff 02000500e8030000 04000500ffffffff 10000500ffffffff 20000500ffffffff"
)
"""user::rwx,user:1000:r-x,group::r-x,mask::r-x,other::r-x, as Linux stores it in an attribute."""


@dataclass(slots=True)
class Sample:
    """The image, and the inode numbers of what is in it.

    etc: a directory of 30 names in a tree of three levels; sub: an empty one in it. hosts: a small
    file with attributes; empty; hard: two names; tree: extents in a tree of depth 2; sparse: three
    inline extents, the second unwritten, one unwritten behind the end; short and long: symbolic
    links; null, fifo: special files. orphans, free: two inodes on each list.
    """

    image: HandmadeImage
    etc: int
    sub: int
    hosts: int
    empty: int
    hard: int
    tree: int
    sparse: int
    short: int
    long: int
    null: int
    fifo: int
    orphans: list[int]
    free: list[int]


def make_sample() -> Sample:
    """Return a sample of the caller's own."""
    return copy.deepcopy(_build())


@functools.cache
def _build() -> Sample:
    kit = ImageKit(fanout=3)
    etc = kit.add_dir(INO_ROOT, b"etc")
    hosts = kit.add_file(etc, b"hosts", b"127.0.0.1 localhost\n")
    kit.set_xattrs(hosts, {b"user.comment": b"made by hand", b"user.empty": b""})
    kit.set_xattrs(etc, {b"system.posix_acl_access": ACL})
    for i in range(28):
        kit.add_file(etc, b"%d.conf" % i)
    hard = kit.add_file(INO_ROOT, b"hard", b"\xaa" * PAGE_SIZE)
    kit.link(etc, b"hard", hard)
    page = b"\xbb" * PAGE_SIZE
    sparse = [
        Extent(1, page),
        Extent(2, nr_pages=2, unwritten=True),
        Extent(7, page),
        Extent(10, nr_pages=1, unwritten=True),
    ]
    return Sample(
        etc=etc,
        sub=kit.add_dir(etc, b"sub"),
        hosts=hosts,
        empty=kit.add_file(INO_ROOT, b"empty"),
        hard=hard,
        tree=kit.add_extents(
            INO_ROOT, b"tree", [Extent(2 * i, page) for i in range(12)], 23 * PAGE_SIZE, depth=2
        ),
        sparse=kit.add_extents(INO_ROOT, b"sparse", sparse, 8 * PAGE_SIZE),
        short=kit.add_symlink(INO_ROOT, b"short", b"etc/hosts"),
        long=kit.add_symlink(INO_ROOT, b"long", b"./" * 100 + b"etc"),
        null=kit.add_special(INO_ROOT, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        fifo=kit.add_special(INO_ROOT, b"fifo", stat.S_IFIFO | 0o600),
        orphans=[kit.add_orphan(), kit.add_orphan()],
        free=[kit.add_free(), kit.add_free()],
        image=kit.build(),
    )
