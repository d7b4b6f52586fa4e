"""chmod, chown, utimens, extended attributes and ACLs, without a kernel in between."""

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.crash import StoreLog, recovered
from tests.kit.volume import OWNER, Volume
from xipfs.errors import (
    ExistsError,
    FormatError,
    InvalidArgumentError,
    NoDataError,
    NoSpaceError,
    NotPermittedError,
    RangeError,
    ReadOnlyFsError,
    TooBigError,
)
from xipfs.fs.attributes import (
    drop_suidgid,
    notify_change,
    removexattr,
    setxattr,
    store_xattrs,
)
from xipfs.fs.inode import Inode
from xipfs.fs.namespace import mkdir, mknod
from xipfs.fs.posix_acl import (
    XATTR_ACL_ACCESS,
    XATTR_ACL_DEFAULT,
    acl_from_text,
)
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import InodeFlags
from xipfs.ondisk.superblock import Compat
from xipfs.units import PAGE_SIZE


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume(tmp_path / "nvram.img", 8 << 20) as volume:
        yield volume


@pytest.fixture
def inode(volume: Volume) -> Inode:
    return mknod(volume.sb, volume.root, b"a", stat.S_IFREG | 0o644, OWNER, volume.tick())


def test_each_attribute_alone_and_all_together(volume, inode):
    before = inode.disk
    for fields in (
        {"mode": stat.S_IFREG | 0o600},
        {"uid": 5},
        {"gid": 6},
        {"atime_ns": -1},
        {"mtime_ns": 1 << 62},
        {"mode": stat.S_IFREG | 0o4711, "uid": 7, "gid": 8, "atime_ns": 9, "mtime_ns": 10},
    ):
        notify_change(volume.sb, inode, volume.tick(), **fields)
        before = before._replace(ctime_ns=volume.now_ns, **fields)
        assert inode.disk == before
    volume.check()
    assert volume.find(b"a").disk == before


def test_nothing_to_change_changes_nothing(volume, inode):
    ctime_ns = inode.disk.ctime_ns
    notify_change(volume.sb, inode, volume.tick())
    assert inode.disk.ctime_ns == ctime_ns


def test_chmod_leaves_the_type_alone(volume, inode):
    notify_change(volume.sb, inode, 5, mode=0o7777)
    assert inode.disk.mode == stat.S_IFREG | 0o7777
    notify_change(volume.sb, inode, 5, mode=stat.S_IFDIR | 0o1)
    assert inode.disk.mode == stat.S_IFREG | 0o1


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o6755, 0o755), (0o4644, 0o644), (0o2745, 0o2745), (0o2755, 0o755), (0o1777, 0o1777)],
)
def test_setuid_and_setgid_go_with_the_owner(volume, inode, mode, expected):
    """setgid without execution by the group is no setgid, and stays."""
    for owner in ({"uid": 1}, {"gid": 1}):
        notify_change(volume.sb, inode, 5, mode=mode)
        notify_change(volume.sb, inode, 5, **owner)
        assert inode.disk.mode & 0o7777 == expected == drop_suidgid(mode)


def test_setgid_of_a_directory_stays(volume):
    directory = mkdir(volume.sb, volume.root, b"d", 0o2775, OWNER, 5)
    notify_change(volume.sb, directory, 5, uid=1)
    assert directory.disk.mode & 0o7777 == 0o2775


@pytest.mark.parametrize("flag", [InodeFlags.IMMUTABLE, InodeFlags.APPEND])
def test_what_may_not_change(volume, inode, flag):
    setxattr(volume.sb, inode, b"user.a", b"1", 0, 5)
    with volume.sb.transaction(5) as tx:
        tx.put_inode(inode.disk._replace(flags=int(flag)))
    before = inode.disk
    for operation in (
        lambda: notify_change(volume.sb, inode, 5, mode=0o600),
        lambda: notify_change(volume.sb, inode, 5, mtime_ns=1),
        lambda: setxattr(volume.sb, inode, b"user.b", b"1", 0, 5),
        lambda: removexattr(volume.sb, inode, b"user.a", 5),
    ):
        with pytest.raises(NotPermittedError):
            operation()
    assert inode.disk == before


def test_extended_attributes(volume, inode):
    sb = volume.sb
    setxattr(sb, inode, b"user.b", b"1", 0, volume.tick())
    assert inode.disk.ctime_ns == volume.now_ns
    setxattr(sb, inode, b"user.a", b"", os.XATTR_CREATE, 5)
    setxattr(sb, inode, b"user.b", b"2" * 65536, os.XATTR_REPLACE, 5)
    assert sb.read_xattrs(inode) == {b"user.a": b"", b"user.b": b"2" * 65536}
    assert inode.disk.nr_pages == inode.disk.nr_xattr_pages == 17
    with pytest.raises(ExistsError):
        setxattr(sb, inode, b"user.a", b"", os.XATTR_CREATE, 5)
    with pytest.raises(NoDataError):
        setxattr(sb, inode, b"user.c", b"", os.XATTR_REPLACE, 5)
    volume.check()
    inode = volume.find(b"a")
    removexattr(volume.sb, inode, b"user.b", 5)
    assert volume.sb.read_xattrs(inode) == {b"user.a": b""}
    removexattr(volume.sb, inode, b"user.a", 5)
    assert (inode.disk.nr_pages, inode.disk.xattr_block) == (0, 0)
    with pytest.raises(NoDataError):
        removexattr(volume.sb, inode, b"user.a", 5)


def test_impossible_attributes(volume, inode):
    for name, value, flags, error in (
        (b"user." + b"n" * 251, b"", 0, RangeError),
        (b"", b"", 0, RangeError),
        (b"user.a\0", b"", 0, InvalidArgumentError),
        (b"user.xipfs.tiers", b"", 0, NotPermittedError),
        (b"user.a", b"v" * 65537, 0, TooBigError),
        (b"user.a", b"", 3, InvalidArgumentError),
    ):
        with pytest.raises(error):
            setxattr(volume.sb, inode, name, value, flags, 5)
    with pytest.raises(NotPermittedError):
        removexattr(volume.sb, inode, b"user.xipfs.tiers", 5)
    assert not volume.sb.read_xattrs(inode)


def test_more_attributes_than_an_inode_can_have(volume, inode):
    def fill() -> None:
        for n in range(20):
            setxattr(volume.sb, inode, b"user.%d" % n, b"v" * 65536, 0, 5)

    with pytest.raises(NoSpaceError, match="no room for more"):
        fill()
    assert len(volume.sb.read_xattrs(inode)) == 15
    volume.check()


def test_the_first_acl_turns_the_feature_on(volume, inode):
    """In both superblocks, and not before: a mount need not ask the kernel for ACLs."""
    assert not volume.sb.disk.compat & Compat.ACL
    setxattr(volume.sb, inode, XATTR_ACL_ACCESS, acl_from_text("u::rw,g::r,o::r"), 0, 5)
    assert not volume.sb.disk.compat & Compat.ACL
    setxattr(
        volume.sb, inode, XATTR_ACL_ACCESS, acl_from_text("u::rw,u:7:rwx,g::r,m::rwx,o::r"), 0, 5
    )
    assert volume.sb.disk.compat & Compat.ACL
    volume.check()
    assert volume.sb.disk.compat & Compat.ACL


def test_a_crash_while_the_feature_is_turned_on(tmp_path):
    """Also one that tears page 0: no state has an ACL without the feature, or two superblocks."""
    acl = acl_from_text("u::rw,u:7:rwx,g::r,m::rwx,o::r")
    with Volume(tmp_path / "nvram.img") as volume:
        inode = mknod(volume.sb, volume.root, b"a", stat.S_IFREG | 0o644, OWNER, volume.tick())
        with StoreLog(volume.sb.nvram) as log:
            setxattr(volume.sb, inode, XATTR_ACL_ACCESS, acl, 0, volume.tick())
        states = [*log.states(), *log.torn_states(1, 100)]
        # Page 0 half-written, too: its record and what it covers are more than one word.
        for before, after in itertools.pairwise(log.states()):
            if before[:PAGE_SIZE] != after[:PAGE_SIZE]:
                states += [after[:n] + before[n:] for n in (8, 16)]
        found = set()
        for state in set(states):
            recovered(state, tmp_path / "crash.img")
            sb = SuperBlock.open(tmp_path / "crash.img")
            is_on = bool(sb.disk.compat & Compat.ACL)
            found.add((is_on, len(sb.read_xattrs(sb.lookup(sb.iget(1), b"a")))))
            sb.close()
    assert found == {(False, 0), (True, 0), (True, 1)}


def test_access_acl_and_mode_say_the_same(volume, inode):
    sb = volume.sb
    setxattr(sb, inode, XATTR_ACL_ACCESS, acl_from_text("u::rw,u:7:rwx,g::r,m::rw,o::-"), 0, 5)
    assert inode.disk.mode == stat.S_IFREG | 0o660
    notify_change(sb, inode, 5, mode=0o715)
    assert sb.read_xattrs(inode)[XATTR_ACL_ACCESS] == acl_from_text(
        "u::rwx,u:7:rwx,g::r,m::x,o::rx"
    )
    setxattr(sb, inode, XATTR_ACL_ACCESS, acl_from_text("u::rw,g::x,o::w"), 0, 5)
    assert (inode.disk.mode & 0o777, sb.read_xattrs(inode)) == (0o612, {})


def test_acls_that_are_none(volume, inode):
    good = acl_from_text("u::rw,u:7:rwx,g::r,m::rw,o::-")
    for value in (
        b"",
        good[:-1],
        b"\1" + good[1:],
        good[:4] + good[12:],
        good[:4] + good[12:20] + good[4:12] + good[20:],
        acl_from_text("u::rw,u:7:rwx,g::r,o::-"),
    ):
        with pytest.raises(InvalidArgumentError, match="no ACL"):
            setxattr(volume.sb, inode, XATTR_ACL_ACCESS, value, 0, 5)
    with pytest.raises(NotPermittedError, match="only directories"):
        setxattr(volume.sb, inode, XATTR_ACL_DEFAULT, good, 0, 5)


def test_an_acl_in_the_image_that_is_none(volume, inode):
    """mkfs stores what archives say; it comes to light when it is used."""
    setxattr(volume.sb, inode, XATTR_ACL_ACCESS, acl_from_text("u::rw,u:7:r,g::r,m::r,o::r"), 0, 5)
    directory = mkdir(volume.sb, volume.root, b"d", 0o755, OWNER, 5)
    with volume.sb.transaction(5) as tx:
        store_xattrs(tx, inode.disk, {XATTR_ACL_ACCESS: b"nonsense"})
        store_xattrs(tx, directory.disk, {XATTR_ACL_DEFAULT: b"nonsense"})
    with pytest.raises(FormatError, match="no ACL"):
        notify_change(volume.sb, inode, 5, mode=0o600)
    with pytest.raises(FormatError, match="no ACL"):
        mknod(volume.sb, directory, b"f", stat.S_IFREG | 0o600, OWNER, 5)


def test_a_read_only_image_refuses(volume, inode):
    volume.sb.close()
    sb = SuperBlock.open(volume.path)
    inode = sb.lookup(sb.iget(1), b"a")
    for operation in (
        lambda: notify_change(sb, inode, 5, mode=0o600),
        lambda: setxattr(sb, inode, b"user.a", b"", 0, 5),
        lambda: mkdir(sb, sb.iget(1), b"d", 0o755, OWNER, 5),
    ):
        with pytest.raises(ReadOnlyFsError):
            operation()
    sb.close()
    volume._open()
