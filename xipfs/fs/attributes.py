"""What a file has beside its bytes and names: mode, owner, times, extended attributes, ACLs.

    notify_change(sb, inode, now_ns, mode=0o640, gid=100)     chmod, chown, utimens: any of them
    setxattr(sb, inode, b"user.comment", b"..", 0, now_ns)
    removexattr(sb, inode, b"user.comment", now_ns)

Each is one transaction. Who may do what is the kernel's to check (`default_permissions`), but for
what it does not know: files that are immutable or can only grow.

Access ACL and mode say the same, so who changes one changes both. The first ACL of an image turns
the feature on in its superblocks, before it is stored.

Source: fs/attr.c (notify_change), fs/xattr.c, fs/posix_acl.c.
"""

import os
import stat
from typing import TYPE_CHECKING

from xipfs.errors import (
    ExistsError,
    FormatError,
    InvalidArgumentError,
    NoDataError,
    NoSpaceError,
    NotPermittedError,
    RangeError,
    TooBigError,
)
from xipfs.fs.inode import Inode
from xipfs.fs.posix_acl import (
    XATTR_ACL_ACCESS,
    XATTR_ACL_DEFAULT,
    acl_after_chmod,
    check_acl,
    mode_of_acl,
)
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import DiskInode, InodeFlags
from xipfs.ondisk.superblock import Compat
from xipfs.ondisk.xattr import NR_XATTR_PAGES_MAX, XATTR_VALUE_SIZE_BYTES_MAX, encode_xattrs
from xipfs.units import PAGE_SHIFT, Block

if TYPE_CHECKING:
    from xipfs.fs.transaction import Transaction

__all__ = [
    "XATTR_OWN_PREFIX",
    "check_changeable",
    "drop_suidgid",
    "notify_change",
    "removexattr",
    "setxattr",
    "store_xattrs",
]

XATTR_OWN_PREFIX = b"user.xipfs."
"""Attributes that the mount makes when they are asked for: nobody stores one."""

_XATTR_NAME_SIZE_BYTES_MAX = 255
_MODE_BITS = 0o7777
_FIXED = int(InodeFlags.IMMUTABLE | InodeFlags.APPEND)


def notify_change(
    sb: SuperBlock,
    inode: Inode,
    now_ns: int,
    *,
    mode: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    atime_ns: int | None = None,
    mtime_ns: int | None = None,
) -> None:
    """Change what is given; ctime becomes now. Of *mode* only the bits of chmod(2) count.

    A new owner takes the setuid and setgid bits of what is no directory, unless a mode is given.
    Raises: NotPermittedError, NoSpaceError, ReadOnlyFsError; FormatError, DeviceError.
    """
    if all(value is None for value in (mode, uid, gid, atime_ns, mtime_ns)):
        return
    check_changeable(inode.disk)
    with sb.transaction(now_ns) as tx:
        disk = tx.inode(inode.ino)
        if mode is not None:
            mode = stat.S_IFMT(disk.mode) | mode & _MODE_BITS
            disk = _with_mode(tx, inode, disk, mode)
        elif (uid is not None or gid is not None) and not inode.is_dir:
            disk = disk._replace(mode=drop_suidgid(disk.mode))
        tx.put_inode(
            disk._replace(
                uid=disk.uid if uid is None else uid,
                gid=disk.gid if gid is None else gid,
                atime_ns=disk.atime_ns if atime_ns is None else atime_ns,
                mtime_ns=disk.mtime_ns if mtime_ns is None else mtime_ns,
                ctime_ns=now_ns,
            )
        )


def drop_suidgid(mode: int) -> int:
    """Return *mode* after a file was written to, cut, or given away (setattr_should_drop_suidgid).

    setgid without group execution once meant mandatory locks, and stays.
    """
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode & ~stat.S_ISUID


def check_changeable(disk: DiskInode) -> None:
    """Raise NotPermittedError if attributes of the inode must stay as they are."""
    if disk.flags & _FIXED:
        raise NotPermittedError(f"inode {disk.ino}: immutable, or can only grow")


def setxattr(
    sb: SuperBlock, inode: Inode, name: bytes, value: bytes, flags: int, now_ns: int
) -> None:
    """Set an extended attribute. flags: 0, os.XATTR_CREATE or os.XATTR_REPLACE.

    An access ACL sets the mode too, and is not stored where the mode says all of it.
    Raises: ExistsError, NoDataError (by *flags*); NotPermittedError, InvalidArgumentError,
            RangeError (name), TooBigError (value), NoSpaceError; ReadOnlyFsError, FormatError, ..
    """
    _check_xattr_name(name)
    if len(value) > XATTR_VALUE_SIZE_BYTES_MAX:
        raise TooBigError(
            f"an attribute of {len(value)} bytes, {XATTR_VALUE_SIZE_BYTES_MAX} may be"
        )
    if flags not in (0, os.XATTR_CREATE, os.XATTR_REPLACE):
        raise InvalidArgumentError(f"setxattr with flags {flags:#x}")
    check_changeable(inode.disk)
    xattrs = sb.read_xattrs(inode)
    if flags == os.XATTR_CREATE and name in xattrs:
        raise ExistsError(f"inode {inode.ino}: has an attribute {os.fsdecode(name)}")
    if flags == os.XATTR_REPLACE and name not in xattrs:
        raise NoDataError(f"inode {inode.ino}: no attribute {os.fsdecode(name)}")
    mode = inode.disk.mode
    xattrs[name] = value
    if name in (XATTR_ACL_ACCESS, XATTR_ACL_DEFAULT):
        _check_acl(inode, name, value)
        if name == XATTR_ACL_ACCESS:
            mode, is_all = mode_of_acl(value, mode)
            if is_all:
                del xattrs[name]
        if name in xattrs and not sb.disk.compat & Compat.ACL:
            _enable_acl(sb, now_ns)
    with sb.transaction(now_ns) as tx:
        disk = store_xattrs(tx, tx.inode(inode.ino), xattrs)
        tx.put_inode(disk._replace(mode=mode, ctime_ns=now_ns))


def removexattr(sb: SuperBlock, inode: Inode, name: bytes, now_ns: int) -> None:
    """Remove an extended attribute.

    Raises: NoDataError, NotPermittedError, RangeError; ReadOnlyFsError, FormatError, DeviceError.
    """
    _check_xattr_name(name)
    check_changeable(inode.disk)
    xattrs = sb.read_xattrs(inode)
    if xattrs.pop(name, None) is None:
        raise NoDataError(f"inode {inode.ino}: no attribute {os.fsdecode(name)}")
    with sb.transaction(now_ns, use_reserve=True) as tx:
        disk = store_xattrs(tx, tx.inode(inode.ino), xattrs)
        tx.put_inode(disk._replace(ctime_ns=now_ns))


def store_xattrs(tx: "Transaction", inode: DiskInode, xattrs: dict[bytes, bytes]) -> DiskInode:
    """Let *xattrs* be all attributes of the inode: a new run, the old one is freed.

    Raises: NoSpaceError, also for more than an inode can have.
    """
    nr_pages = 0
    block = Block(0)
    if xattrs:
        run = encode_xattrs(xattrs, tx.sb.seed, inode.ino, inode.generation)
        nr_pages = len(run) >> PAGE_SHIFT
        if nr_pages > NR_XATTR_PAGES_MAX:
            raise NoSpaceError(f"inode {inode.ino}: its attributes have no room for more")
        (block, nr_run_pages), *others = tx.allocate(nr_pages)
        if others:
            raise NoSpaceError(
                f"inode {inode.ino}: {nr_pages} neighbouring pages wanted for its attributes, "
                f"{nr_run_pages} are free"
            )
        for n in range(nr_pages):
            tx.new_page(Block(block + n), run[n << PAGE_SHIFT : (n + 1) << PAGE_SHIFT])
    if inode.nr_xattr_pages:
        tx.free(inode.xattr_block, inode.nr_xattr_pages)
    inode = inode._replace(
        xattr_block=block,
        nr_xattr_pages=nr_pages,
        nr_pages=inode.nr_pages + nr_pages - inode.nr_xattr_pages,
    )
    tx.put_inode(inode)
    return inode


def _with_mode(tx: "Transaction", inode: Inode, disk: DiskInode, mode: int) -> DiskInode:
    """Return *disk* with *mode*, its access ACL changed in step."""
    if disk.nr_xattr_pages:
        xattrs = tx.sb.read_xattrs(inode)
        acl = xattrs.get(XATTR_ACL_ACCESS)
        if acl is not None:
            try:
                xattrs[XATTR_ACL_ACCESS] = acl_after_chmod(acl, mode)
            except ValueError as exc:
                raise FormatError(f"inode {inode.ino}: {exc}") from exc
            disk = store_xattrs(tx, disk, xattrs)
    return disk._replace(mode=mode)


def _check_xattr_name(name: bytes) -> None:
    if not 1 <= len(name) <= _XATTR_NAME_SIZE_BYTES_MAX:
        raise RangeError(f"a name of {len(name)} bytes for an attribute")
    if b"\0" in name:
        raise InvalidArgumentError(f"{name!r} for an attribute has a NUL")
    if name.startswith(XATTR_OWN_PREFIX):
        raise NotPermittedError(f"{os.fsdecode(name)}: what xipfs says of a file cannot be set")


def _check_acl(inode: Inode, name: bytes, value: bytes) -> None:
    if name == XATTR_ACL_DEFAULT and not inode.is_dir:
        raise NotPermittedError(f"inode {inode.ino}: only directories have a default ACL")
    try:
        check_acl(value)
    except ValueError as exc:
        raise InvalidArgumentError(f"inode {inode.ino}: {exc}") from exc


def _enable_acl(sb: SuperBlock, now_ns: int) -> None:
    """Turn the feature ACL on: the replica first, page 0 when the journal is done with that."""
    disk = sb.disk._replace(compat=sb.disk.compat | Compat.ACL)
    page = disk.encode()
    for block in (disk.nr_pages - 1, 0):
        with sb.transaction(now_ns) as tx:
            tx.store(block << PAGE_SHIFT, page)
    sb.disk = disk
