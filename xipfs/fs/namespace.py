"""Names: create, mkdir, symlink, link, unlink, rmdir, rename. Each is one transaction.

    inode = mknod(sb, directory, b"hosts", stat.S_IFREG | 0o644, Owner(uid, gid), now_ns)
    orphan = unlink(sb, directory, b"hosts", now_ns)
    orphan = rename(sb, directory, b"a", other, b"b", RENAME_NOREPLACE, now_ns)

What loses its last name is freed at once if nobody knows it (it is not in memory). Else it becomes
an orphan and the call returns it: whoever takes the last use from it (its lookups, maps and pages
in RAM) calls `orphans.release_orphan`.

Who may do what is the kernel's to check (`default_permissions`), but for immutable and append-only
files and directories, which it does not know of.

Source: fs/namei.c (may_create, may_delete, vfs_rename), fs/inode.c (inode_init_owner).
"""

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from xipfs.errors import (
    ExistsError,
    FormatError,
    InvalidArgumentError,
    IsDirError,
    NameTooLongError,
    NoEntryError,
    NotDirError,
    NotEmptyError,
    NotPermittedError,
    TooManyLinksError,
)
from xipfs.fs.attributes import check_changeable, store_xattrs
from xipfs.fs.dentry import name_legal
from xipfs.fs.dirwriter import insert_entry, make_directory, remove_entry, replace_entry
from xipfs.fs.extentwriter import insert_extent
from xipfs.fs.inode import Inode
from xipfs.fs.namei import PATH_MAX
from xipfs.fs.orphans import drop_inode, release_orphan
from xipfs.fs.posix_acl import XATTR_ACL_ACCESS, XATTR_ACL_DEFAULT, inherited_acl
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.dentry import NAME_SIZE_BYTES_MAX
from xipfs.ondisk.inode import INO_ROOT, PAYLOAD_SIZE_BYTES, DiskInode, InodeFlags
from xipfs.units import PAGE_SIZE, Ino

if TYPE_CHECKING:
    from xipfs.fs.transaction import Transaction

__all__ = [
    "NLINK_MAX",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "Owner",
    "link",
    "mkdir",
    "mknod",
    "rename",
    "rmdir",
    "symlink",
    "unlink",
]

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
"""Flags of renameat2(2)."""

NLINK_MAX = (1 << 32) - 1

_FILE_TYPES = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)


class Owner(NamedTuple):
    """Whose a new file is: the fsuid and fsgid of who asks. A setgid directory gives its group."""

    uid: int
    gid: int


def mknod(
    sb: SuperBlock,
    directory: Inode,
    name: bytes,
    mode: int,
    owner: Owner,
    now_ns: int,
    *,
    rdev: int = 0,
    umask: int = 0,
) -> Inode:
    """Create a file of the type in *mode*: regular, fifo, socket or device number *rdev*.

    umask: permissions to leave away, if the kernel has not; a default ACL counts instead.
    Raises: ExistsError, NameTooLongError, NotDirError, NoEntryError (*directory* was removed),
            NotPermittedError, InvalidArgumentError, NoSpaceError; ReadOnlyFsError, FormatError,
            DeviceError.
    """
    if stat.S_IFMT(mode) not in _FILE_TYPES:
        raise InvalidArgumentError(f"mknod of mode {mode:#o}")
    return _make(sb, directory, name, mode, owner, now_ns, rdev=rdev, umask=umask)


def mkdir(
    sb: SuperBlock,
    directory: Inode,
    name: bytes,
    mode: int,
    owner: Owner,
    now_ns: int,
    *,
    umask: int = 0,
) -> Inode:
    """Create a directory; in a setgid one it is setgid, too. Raises: as `mknod`."""
    mode = stat.S_IFDIR | mode & 0o7777
    return _make(sb, directory, name, mode, owner, now_ns, umask=umask)


def symlink(
    sb: SuperBlock, directory: Inode, name: bytes, target: bytes, owner: Owner, now_ns: int
) -> Inode:
    """Create a symbolic link to *target*, 1 to 4095 bytes. Raises: as `mknod`."""
    if not target:
        raise NoEntryError("a symbolic link to nothing")
    if len(target) >= PATH_MAX:
        raise NameTooLongError(f"a symbolic link of {len(target)} bytes, {PATH_MAX - 1} may be")
    if b"\0" in target:
        raise InvalidArgumentError("a symbolic link to a NUL")
    return _make(sb, directory, name, stat.S_IFLNK | 0o777, owner, now_ns, target=target)


def link(sb: SuperBlock, inode: Inode, directory: Inode, name: bytes, now_ns: int) -> None:
    """Give a file another name.

    Raises: ExistsError, NotPermittedError (a directory), NoEntryError (it has no name any more),
            TooManyLinksError, ..: as `mknod`.
    """
    _check_may_create(directory, name)
    disk = inode.disk
    if inode.is_dir:
        raise NotPermittedError(f"inode {inode.ino}: a directory has one name")
    check_changeable(disk)
    if not disk.nlink:
        raise NoEntryError(f"inode {inode.ino}: its last name was removed")
    with sb.transaction(now_ns) as tx:
        insert_entry(tx, directory.disk, name, inode.ino, disk.mode >> 12)
        _add_link(tx, inode.ino)


def unlink(sb: SuperBlock, directory: Inode, name: bytes, now_ns: int) -> Inode | None:
    """Remove a name of what is no directory.

    Returns: the inode, if that was its last name and somebody still uses it.
    Raises: NoEntryError, NotDirError, IsDirError, NotPermittedError, InvalidArgumentError,
            NameTooLongError; NoSpaceError, ReadOnlyFsError, FormatError, DeviceError.
    """
    ino = _lookup(sb, directory, name)
    with sb.transaction(now_ns, use_reserve=True) as tx:
        child = tx.inode(ino)
        _check_may_delete(directory, child)
        if stat.S_ISDIR(child.mode):
            raise IsDirError(f"{os.fsdecode(name)!r} in inode {directory.ino} is a directory")
        remove_entry(tx, directory.disk, name)
        _drop_link(tx, ino)
    return _settle(sb, ino, (directory.ino, name), now_ns)


def rmdir(sb: SuperBlock, directory: Inode, name: bytes, now_ns: int) -> Inode | None:
    """Remove a directory, which must be empty. Returns: as `unlink`.

    Raises: NotEmptyError; NotDirError, also for a file; ..: as `unlink`.
    """
    ino = _lookup(sb, directory, name)
    with sb.transaction(now_ns, use_reserve=True) as tx:
        child = tx.inode(ino)
        _check_may_delete(directory, child)
        if not stat.S_ISDIR(child.mode):
            raise NotDirError(f"{os.fsdecode(name)!r} in inode {directory.ino} is no directory")
        _check_empty(child)
        remove_entry(tx, directory.disk, name)
        _drop_dir(tx, ino, directory.ino)
    return _settle(sb, ino, (directory.ino, name), now_ns)


def rename(
    sb: SuperBlock,
    directory: Inode,
    name: bytes,
    new_directory: Inode,
    new_name: bytes,
    flags: int,
    now_ns: int,
) -> Inode | None:
    """Give what *name* stands for another name instead, which it takes from what has it.

    flags: 0, RENAME_NOREPLACE or RENAME_EXCHANGE. Two names of one inode stay as they are.
    Returns: as `unlink`, of what the new name stood for.
    Raises: ExistsError (NOREPLACE), NoEntryError, NotDirError, IsDirError, NotEmptyError,
            InvalidArgumentError (flags; a directory to below itself), TooManyLinksError, ..: as
            `mknod` and `unlink`.
    """
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise InvalidArgumentError(f"rename with flags {flags:#x}")
    ino = _lookup(sb, directory, name)
    _check_may_create(new_directory, new_name)
    try:
        new_ino = _lookup(sb, new_directory, new_name)
    except NoEntryError:
        if flags == RENAME_EXCHANGE:
            raise
        new_ino = None
    if new_ino is not None and flags == RENAME_NOREPLACE:
        raise ExistsError(f"{os.fsdecode(new_name)!r} exists in inode {new_directory.ino}")
    if new_ino == ino:
        return None
    old_place, new_place = (directory.ino, name), (new_directory.ino, new_name)
    if flags == RENAME_EXCHANGE:
        assert new_ino is not None
        with sb.transaction(now_ns) as tx:
            _exchange(tx, (directory, name, ino), (new_directory, new_name, new_ino))
        _moved(sb, ino, old_place, new_place)
        _moved(sb, new_ino, new_place, old_place)
        return None
    with sb.transaction(now_ns) as tx:
        child = tx.inode(ino)
        _check_may_delete(directory, child)
        _check_not_below(tx, child, new_directory.ino)
        if new_ino is None:
            insert_entry(tx, tx.inode(new_directory.ino), new_name, ino, child.mode >> 12)
        else:
            _replace(tx, new_directory, new_name, new_ino, child)
        remove_entry(tx, tx.inode(directory.ino), name)
        _touch_moved(tx, ino, directory.ino, new_directory.ino)
    _moved(sb, ino, old_place, new_place)
    return None if new_ino is None else _settle(sb, new_ino, new_place, now_ns)


def _make(
    sb: SuperBlock,
    directory: Inode,
    name: bytes,
    mode: int,
    owner: Owner,
    now_ns: int,
    *,
    rdev: int = 0,
    umask: int = 0,
    target: bytes = b"",
) -> Inode:
    _check_may_create(directory, name)
    is_dir = stat.S_ISDIR(mode)
    gid = owner.gid
    if directory.disk.mode & stat.S_ISGID:
        gid = directory.disk.gid
        mode |= stat.S_ISGID if is_dir else 0
    xattrs: dict[bytes, bytes] = {}
    if not target:
        mode, xattrs = _inherit(sb, directory, mode, umask)
    with sb.transaction(now_ns) as tx:
        inode = tx.new_inode(
            mode=mode,
            nlink=2 if is_dir else 1,
            uid=owner.uid,
            gid=gid,
            rdev=rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
            parent_ino=directory.ino if is_dir else 0,
        )
        insert_entry(tx, directory.disk, name, inode.ino, mode >> 12)
        if is_dir:
            make_directory(tx, inode)
            _add_link(tx, directory.ino)
        if xattrs:
            store_xattrs(tx, tx.inode(inode.ino), xattrs)
        if target:
            _store_target(tx, inode, target)
    return sb.iget(inode.ino)


def _inherit(
    sb: SuperBlock, directory: Inode, mode: int, umask: int
) -> tuple[int, dict[bytes, bytes]]:
    """Return mode and attributes of what is created in *directory* (posix_acl_create)."""
    default = sb.read_xattrs(directory).get(XATTR_ACL_DEFAULT)
    if default is None:
        return mode & ~umask, {}
    try:
        mode, access = inherited_acl(default, mode)
    except ValueError as exc:
        raise FormatError(f"inode {directory.ino}: {exc}") from exc
    xattrs = {} if access is None else {XATTR_ACL_ACCESS: access}
    if stat.S_ISDIR(mode):
        xattrs[XATTR_ACL_DEFAULT] = default
    return mode, xattrs


def _store_target(tx: "Transaction", inode: DiskInode, target: bytes) -> None:
    inode = inode._replace(size_bytes=len(target))
    if len(target) <= PAYLOAD_SIZE_BYTES:
        tx.put_inode(inode._replace(flags=inode.flags | InodeFlags.INLINE, payload=target))
        return
    [(block, _)] = tx.allocate(1)
    tx.new_page(block, target.ljust(PAGE_SIZE, b"\0"))
    insert_extent(tx, inode, 0, block, 1)


def _exchange(
    tx: "Transaction", one: tuple[Inode, bytes, Ino], other: tuple[Inode, bytes, Ino]
) -> None:
    """Let two names change places."""
    children = [tx.inode(ino) for _, _, ino in (one, other)]
    for (directory, name, _), (to_directory, _, _), child, new in (
        (one, other, children[0], children[1]),
        (other, one, children[1], children[0]),
    ):
        _check_may_delete(directory, child)
        _check_not_below(tx, child, to_directory.ino)
        replace_entry(tx, tx.inode(directory.ino), name, new.ino, new.mode >> 12)
    _touch_moved(tx, one[2], one[0].ino, other[0].ino)
    _touch_moved(tx, other[2], other[0].ino, one[0].ino)


def _replace(
    tx: "Transaction", directory: Inode, name: bytes, old_ino: Ino, new: DiskInode
) -> None:
    """Let *name*, which stands for *old_ino*, stand for *new*."""
    old = tx.inode(old_ino)
    _check_may_delete(directory, old)
    shown = os.fsdecode(name)
    if stat.S_ISDIR(old.mode):
        if not stat.S_ISDIR(new.mode):
            raise IsDirError(f"{shown!r} in inode {directory.ino} is a directory")
        _check_empty(old)
    elif stat.S_ISDIR(new.mode):
        raise NotDirError(f"{shown!r} in inode {directory.ino} is no directory")
    replace_entry(tx, tx.inode(directory.ino), name, new.ino, new.mode >> 12)
    if stat.S_ISDIR(old.mode):
        _drop_dir(tx, old_ino, directory.ino)
    else:
        _drop_link(tx, old_ino)


def _touch_moved(tx: "Transaction", ino: Ino, old_parent: Ino, new_parent: Ino) -> None:
    """ctime, and of a directory ".." and what it counts in its parents, after it was moved."""
    child = tx.inode(ino)
    if stat.S_ISDIR(child.mode) and old_parent != new_parent:
        child = child._replace(parent_ino=new_parent)
        _drop_parent_link(tx, old_parent)
        _add_link(tx, new_parent)
    tx.put_inode(child._replace(ctime_ns=tx.now_ns))


# Links


def _add_link(tx: "Transaction", ino: Ino) -> None:
    inode = tx.inode(ino)
    if inode.nlink >= NLINK_MAX:
        raise TooManyLinksError(f"inode {ino}: has {inode.nlink} links")
    tx.put_inode(inode._replace(nlink=inode.nlink + 1, ctime_ns=tx.now_ns))


def _drop_link(tx: "Transaction", ino: Ino) -> None:
    """Count a name less; without one it ends."""
    inode = tx.inode(ino)
    if not inode.nlink:
        raise FormatError(f"inode {ino}: named, but without links: run xipfs fsck")
    inode = inode._replace(nlink=inode.nlink - 1, ctime_ns=tx.now_ns)
    tx.put_inode(inode)
    if not inode.nlink:
        _end(tx, inode)


def _drop_dir(tx: "Transaction", ino: Ino, parent_ino: Ino) -> None:
    """End an empty directory, and count it off its parent."""
    inode = tx.inode(ino)._replace(nlink=0, ctime_ns=tx.now_ns)
    tx.put_inode(inode)
    _end(tx, inode)
    _drop_parent_link(tx, parent_ino)


def _end(tx: "Transaction", inode: DiskInode) -> None:
    """Free what has no name any more, or leave an orphan, to somebody who uses it or for later."""
    if tx.sb.find_inode(inode.ino) is None:
        drop_inode(tx, inode)
    elif not inode.flags & InodeFlags.ORPHAN:  # it may be one: a file in the course of being cut
        tx.add_orphan(inode.ino)


def _drop_parent_link(tx: "Transaction", ino: Ino) -> None:
    inode = tx.inode(ino)
    if inode.nlink <= 2:
        raise FormatError(f"inode {ino}: no links left for its directories: run xipfs fsck")
    tx.put_inode(inode._replace(nlink=inode.nlink - 1))


# Checks


def _lookup(sb: SuperBlock, directory: Inode, name: bytes) -> Ino:
    """Return what *name*, which is to change, stands for."""
    _check_name(directory, name)
    return sb.dir_reader.lookup(directory.disk, directory.extents, name)


def _check_name(directory: Inode, name: bytes) -> None:
    if not directory.is_dir:
        raise NotDirError(f"inode {directory.ino}: not a directory")
    if len(name) > NAME_SIZE_BYTES_MAX:
        raise NameTooLongError(f"a name of {len(name)} bytes, {NAME_SIZE_BYTES_MAX} may be")
    if not name_legal(name):
        raise InvalidArgumentError(f"{os.fsdecode(name)!r} is no name for a file")


def _check_may_create(directory: Inode, name: bytes) -> None:
    _check_name(directory, name)
    if not directory.disk.nlink:
        raise NoEntryError(f"inode {directory.ino}: the directory was removed")
    if directory.disk.flags & InodeFlags.IMMUTABLE:
        raise NotPermittedError(f"inode {directory.ino}: immutable")


def _check_may_delete(directory: Inode, child: DiskInode) -> None:
    check_changeable(directory.disk)
    check_changeable(child)


def _check_empty(inode: DiskInode) -> None:
    if inode.nr_entries:
        raise NotEmptyError(f"inode {inode.ino}: a directory with {inode.nr_entries} entries")


def _check_not_below(tx: "Transaction", child: DiskInode, directory: Ino) -> None:
    """Raise InvalidArgumentError if *child* is *directory* or above it."""
    if not stat.S_ISDIR(child.mode):
        return
    seen: set[Ino] = set()
    ino = directory
    while ino != INO_ROOT:
        if ino == child.ino:
            raise InvalidArgumentError(f"inode {child.ino}: into a directory below itself")
        if ino in seen:
            raise FormatError(f"inode {ino}: a directory in a circle: run xipfs fsck")
        seen.add(ino)
        ino = tx.inode(ino).parent_ino


# Memory


def _settle(sb: SuperBlock, ino: Ino, place: tuple[Ino, bytes], now_ns: int) -> Inode | None:
    """After *ino* lost the name *place*: return it if it is an orphan that somebody may use.

    One that nobody knows, and that was too large to go within the transaction, goes now.
    """
    inode = sb.find_inode(ino)
    if inode is None:
        if ino in sb.orphan_before and not sb.load_inode(ino).nlink:
            release_orphan(sb, ino, now_ns)
        return None
    if inode.dentry == place:
        inode.dentry = None
    return None if inode.disk.nlink else inode


def _moved(
    sb: SuperBlock, ino: Ino, place: tuple[Ino, bytes], new_place: tuple[Ino, bytes]
) -> None:
    inode = sb.find_inode(ino)
    if inode is not None and inode.dentry == place:
        inode.dentry = new_place
