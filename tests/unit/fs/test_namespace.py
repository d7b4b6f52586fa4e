"""Names come, go and move; every errno of the way; fsck is content after each test."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.volume import OWNER, Volume
from xipfs.errors import (
    ExistsError,
    InvalidArgumentError,
    IsDirError,
    NameTooLongError,
    NoEntryError,
    NoSpaceError,
    NotDirError,
    NotEmptyError,
    NotPermittedError,
    TooManyLinksError,
    XipfsError,
)
from xipfs.fs.attributes import setxattr
from xipfs.fs.inode import Inode
from xipfs.fs.namespace import (
    NLINK_MAX,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Owner,
    link,
    mkdir,
    mknod,
    rename,
    rmdir,
    symlink,
    unlink,
)
from xipfs.fs.orphans import release_orphan
from xipfs.fs.posix_acl import XATTR_ACL_ACCESS, XATTR_ACL_DEFAULT, acl_from_text
from xipfs.ondisk.inode import InodeFlags

FILE = stat.S_IFREG | 0o644


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume(tmp_path / "nvram.img") as volume:
        yield volume


class Shell:
    """Operations by path, as short as the tests that use them."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    def split(self, path: str) -> tuple[Inode, bytes]:
        parent, _, name = path.rpartition("/")
        return self.volume.find(parent.encode()), name.encode()

    def touch(self, path: str, mode: int = FILE, owner: Owner = OWNER) -> Inode:
        return mknod(self.volume.sb, *self.split(path), mode, owner, self.volume.tick())

    def mkdir(self, path: str, mode: int = 0o755) -> Inode:
        return mkdir(self.volume.sb, *self.split(path), mode, OWNER, self.volume.tick())

    def unlink(self, path: str) -> Inode | None:
        return unlink(self.volume.sb, *self.split(path), self.volume.tick())

    def rmdir(self, path: str) -> Inode | None:
        return rmdir(self.volume.sb, *self.split(path), self.volume.tick())

    def link(self, path: str, new: str) -> None:
        link(self.volume.sb, self.volume.find(path.encode()), *self.split(new), self.volume.tick())

    def mv(self, old: str, new: str, flags: int = 0) -> Inode | None:
        places = *self.split(old), *self.split(new)
        return rename(self.volume.sb, *places, flags, self.volume.tick())

    def stat(self, path: str):
        return self.volume.find(path.encode()).disk

    def set_flags(self, path: str, flags: int) -> None:
        with self.volume.sb.transaction(0) as tx:
            tx.put_inode(self.stat(path)._replace(flags=flags))


@pytest.fixture
def sh(volume: Volume) -> Shell:
    return Shell(volume)


# Making


def test_a_new_file(volume, sh):
    inode = sh.touch("/a", stat.S_IFREG | 0o4751)
    disk = inode.disk
    assert (disk.mode, disk.nlink, disk.uid, disk.gid) == (stat.S_IFREG | 0o4751, 1, 1000, 100)
    times = (disk.atime_ns, disk.mtime_ns, disk.ctime_ns, disk.btime_ns)
    root = volume.root.disk
    assert {*times, root.mtime_ns, root.ctime_ns} == {volume.now_ns}
    assert root.nr_entries == 1
    assert volume.sb.lookup(volume.root, b"a") is inode


def test_every_kind_of_file(volume, sh):
    for name, kind in (("fifo", stat.S_IFIFO), ("sock", stat.S_IFSOCK)):
        assert sh.touch(f"/{name}", kind | 0o600).disk.mode == kind | 0o600
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        name = b"dev%o" % kind
        made = mknod(volume.sb, volume.root, name, kind | 0o660, OWNER, 5, rdev=0x801)
        assert made.disk.rdev == 0x801
    for target in (b"t", b"t" * 120, b"t" * 121, b"t" * 4095):
        made = symlink(volume.sb, volume.root, b"%d" % len(target), target, OWNER, 5)
        assert made.disk.mode == stat.S_IFLNK | 0o777
        assert volume.sb.read_all(made, 4096) == target
    volume.check()
    assert volume.sb.read_all(volume.find(b"121"), 4096) == b"t" * 121


def test_impossible_files(volume, sh):
    for mode in (stat.S_IFDIR, stat.S_IFLNK, 0, 0o644):
        with pytest.raises(InvalidArgumentError):
            sh.touch("/a", mode)
    for target, error in (
        (b"", NoEntryError),
        (b"t" * 4096, NameTooLongError),
        (b"a\0", InvalidArgumentError),
    ):
        with pytest.raises(error):
            symlink(volume.sb, volume.root, b"a", target, OWNER, 5)
    assert volume.tree() == {}


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"n" * 256, NameTooLongError),
        (b"", InvalidArgumentError),
        (b".", InvalidArgumentError),
        (b"..", InvalidArgumentError),
        (b"a/b", InvalidArgumentError),
        (b"a\0", InvalidArgumentError),
    ],
)
def test_impossible_names(volume, sh, name, error):
    """Names that are too long reach us: the kernel lets FUSE decide."""
    sb, root = volume.sb, volume.root
    inode = sh.touch("/a")
    for operation in (
        lambda: mknod(sb, root, name, FILE, OWNER, 5),
        lambda: mkdir(sb, root, name, 0o755, OWNER, 5),
        lambda: symlink(sb, root, name, b"t", OWNER, 5),
        lambda: link(sb, inode, root, name, 5),
        lambda: unlink(sb, root, name, 5),
        lambda: rmdir(sb, root, name, 5),
        lambda: rename(sb, root, name, root, b"b", 0, 5),
        lambda: rename(sb, root, b"a", root, name, 0, 5),
    ):
        with pytest.raises(error):
            operation()
    assert list(volume.tree()) == [b"a"]


def test_a_name_that_is_taken(volume, sh):
    sh.touch("/a")
    before = volume.sb.state
    for operation in (sh.touch, sh.mkdir, lambda path: sh.link(path, path)):
        with pytest.raises(ExistsError):
            operation("/a")
    assert volume.sb.state == before


def test_a_file_is_no_directory(volume, sh):
    inode = sh.touch("/a")
    for operation in (
        lambda: mknod(volume.sb, inode, b"x", FILE, OWNER, 5),
        lambda: unlink(volume.sb, inode, b"x", 5),
        lambda: rename(volume.sb, volume.root, b"a", inode, b"x", 0, 5),
    ):
        with pytest.raises(NotDirError):
            operation()


def test_directories_count_their_directories(volume, sh):
    sh.mkdir("/d")
    sh.mkdir("/d/e")
    sh.touch("/d/f")
    assert [sh.stat(path).nlink for path in ("/", "/d", "/d/e", "/d/f")] == [3, 3, 2, 1]
    assert sh.stat("/d/e").parent_ino == sh.stat("/d").ino
    sh.rmdir("/d/e")
    assert sh.stat("/d").nlink == 2


def test_a_setgid_directory_hands_on_its_group(volume, sh):
    directory = sh.mkdir("/d", 0o2775)
    with volume.sb.transaction(5) as tx:
        tx.put_inode(directory.disk._replace(gid=77))
    assert (sh.touch("/d/f").disk.gid, sh.stat("/d/f").mode) == (77, FILE)
    sub = sh.mkdir("/d/e", 0o755).disk
    assert (sub.gid, sub.mode) == (77, stat.S_IFDIR | 0o2755)
    assert symlink(volume.sb, directory, b"l", b"t", OWNER, 5).disk.gid == 77
    assert sh.mkdir("/d/e/deep").disk.gid == 77


def test_a_umask_is_left_away_without_a_default_acl(volume):
    made = mknod(volume.sb, volume.root, b"a", FILE | 0o666, OWNER, 5, umask=0o027)
    assert made.disk.mode & 0o777 == 0o640


def test_a_default_acl_is_inherited(volume, sh):
    """By files as their access ACL, cut to the mode asked for; by directories as both."""
    directory = sh.mkdir("/d")
    default = acl_from_text("u::rwx,u:7:rwx,g::r-x,m::rwx,o::---")
    setxattr(volume.sb, directory, XATTR_ACL_DEFAULT, default, 0, 5)
    made = mknod(volume.sb, directory, b"f", stat.S_IFREG | 0o666, OWNER, 5, umask=0o077)
    assert made.disk.mode == stat.S_IFREG | 0o660
    assert volume.sb.read_xattrs(made) == {
        XATTR_ACL_ACCESS: acl_from_text("u::rw-,u:7:rwx,g::r-x,m::rw-,o::---")
    }
    sub = sh.mkdir("/d/e", 0o777)
    assert volume.sb.read_xattrs(sub) == {XATTR_ACL_ACCESS: default, XATTR_ACL_DEFAULT: default}
    assert not volume.sb.read_xattrs(symlink(volume.sb, directory, b"l", b"t", OWNER, 5))


def test_a_default_acl_that_is_only_a_mode(volume, sh):
    directory = sh.mkdir("/d")
    setxattr(volume.sb, directory, XATTR_ACL_DEFAULT, acl_from_text("u::rwx,g::r-x,o::-"), 0, 5)
    made = sh.touch("/d/f", stat.S_IFREG | 0o666).disk
    assert (made.mode & 0o777, made.nr_xattr_pages) == (0o640, 0)


# Links


def test_links(volume, sh):
    inode = sh.touch("/a")
    sh.mkdir("/d")
    sh.link("/a", "/d/b")
    assert (inode.disk.nlink, inode.disk.ctime_ns) == (2, volume.now_ns)
    assert volume.find(b"/d/b") is inode
    assert sh.unlink("/a") is None
    assert inode.disk.nlink == 1
    with pytest.raises(NotPermittedError):
        sh.link("/d", "/e")


def test_a_file_without_a_name_gets_none_again(volume, sh):
    inode = sh.touch("/a")
    assert sh.unlink("/a") is inode
    with pytest.raises(NoEntryError):
        link(volume.sb, inode, volume.root, b"b", 5)


def test_links_are_counted_to_an_end(volume, sh):
    """And are not counted round to 0."""
    inode, directory = sh.touch("/a"), sh.mkdir("/d")
    disks = inode.disk, directory.disk
    with volume.sb.transaction(5) as tx:
        for disk in disks:
            tx.put_inode(disk._replace(nlink=NLINK_MAX))
    for operation in (
        lambda: sh.link("/a", "/b"),
        lambda: sh.mkdir("/d/e"),
    ):
        with pytest.raises(TooManyLinksError):
            operation()
    with volume.sb.transaction(5) as tx:
        for disk in disks:
            tx.put_inode(disk)


# Removing


def test_what_is_removed_is_free_again(volume, sh):
    """Also its inode, which comes back with another generation."""
    before = volume.sb.state
    sh.mkdir("/d")
    symlink(volume.sb, volume.find(b"/d"), b"long", b"t" * 4000, OWNER, 5)
    sh.touch("/d/f")
    generation = sh.stat("/d/f").generation
    volume.check()
    for path, remove in (("/d/f", sh.unlink), ("/d/long", sh.unlink), ("/d", sh.rmdir)):
        orphan = remove(path)
        if orphan is not None:
            release_orphan(volume.sb, orphan.ino, volume.tick())
    after = volume.sb.state
    assert (after.nr_inodes, after.orphan_ino_head) == (before.nr_inodes, 0)
    inodes = [sh.touch(f"/{n}").disk for n in range(3)]
    assert max(inode.generation for inode in inodes) == generation + 1
    assert volume.sb.state.ino_end == after.ino_end


def test_the_wrong_kind_of_removal(volume, sh):
    sh.touch("/a")
    sh.mkdir("/d")
    sh.touch("/d/f")
    with pytest.raises(IsDirError):
        sh.unlink("/d")
    with pytest.raises(NotDirError):
        sh.rmdir("/a")
    with pytest.raises(NotEmptyError):
        sh.rmdir("/d")
    for remove in (sh.unlink, sh.rmdir):
        with pytest.raises(NoEntryError):
            remove("/nothing")


def test_an_unlinked_file_that_is_in_use(volume, sh):
    """It stays as it is, without a name, until its last user goes."""
    inode = sh.touch("/a")
    orphan = sh.unlink("/a")
    assert orphan is inode
    assert (inode.disk.nlink, inode.disk.flags) == (0, InodeFlags.ORPHAN)
    assert volume.sb.state.orphan_ino_head == inode.ino
    release_orphan(volume.sb, inode.ino, volume.tick())
    assert volume.sb.find_inode(inode.ino) is None
    assert volume.sb.state.orphan_ino_head == 0


def test_nothing_is_made_in_a_directory_that_was_removed(volume, sh):
    directory = sh.mkdir("/d")
    sh.touch("/a")
    assert sh.rmdir("/d") is directory
    for operation in (
        lambda: mknod(volume.sb, directory, b"x", FILE, OWNER, 5),
        lambda: rename(volume.sb, volume.root, b"a", directory, b"x", 0, 5),
    ):
        with pytest.raises(NoEntryError):
            operation()


# Rename


def test_rename_within_a_directory(volume, sh):
    inode = sh.touch("/a")
    inode.dentry = (volume.root.ino, b"a")
    sh.mv("/a", "/b")
    assert list(volume.tree()) == [b"b"]
    assert inode.dentry == (volume.root.ino, b"b")
    assert inode.disk.ctime_ns == volume.root.disk.mtime_ns == volume.now_ns
    assert volume.root.disk.nr_entries == 1


def test_rename_over_a_file(volume, sh):
    inode, old = sh.touch("/a"), sh.touch("/b")
    old.dentry = (volume.root.ino, b"b")
    assert sh.mv("/a", "/b") is old
    assert (old.disk.nlink, old.dentry) == (0, None)
    assert volume.find(b"/b") is inode
    release_orphan(volume.sb, old.ino, volume.tick())


def test_rename_of_a_directory_to_another_parent(volume, sh):
    for path in ("/d", "/e", "/d/x"):
        sh.mkdir(path)
    sh.mv("/d/x", "/e/y")
    assert [sh.stat(path).nlink for path in ("/", "/d", "/e", "/e/y")] == [4, 2, 3, 2]
    assert sh.stat("/e/y").parent_ino == sh.stat("/e").ino


def test_rename_over_an_empty_directory(volume, sh):
    for path in ("/d", "/e", "/d/x", "/e/y"):
        sh.mkdir(path)
    sh.touch("/d/x/f")
    old = volume.find(b"/e/y")
    assert sh.mv("/d/x", "/e/y") is old
    assert [sh.stat(path).nlink for path in ("/", "/d", "/e")] == [4, 2, 3]
    with pytest.raises(NotEmptyError):
        sh.mv("/d", "/e/y")
    assert sorted(volume.tree()) == [b"d", b"e"]


def test_rename_over_the_wrong_kind(volume, sh):
    sh.touch("/a")
    sh.mkdir("/d")
    with pytest.raises(IsDirError):
        sh.mv("/a", "/d")
    with pytest.raises(NotDirError):
        sh.mv("/d", "/a")


def test_rename_of_a_directory_to_below_itself(volume, sh):
    for path in ("/d", "/d/e", "/d/e/f", "/g"):
        sh.mkdir(path)
    for new in ("/d/x", "/d/e/x", "/d/e/f"):
        with pytest.raises(InvalidArgumentError):
            sh.mv("/d", new)
    for one, other in (("/d", "/d/e/f"), ("/d/e/f", "/d")):
        with pytest.raises(InvalidArgumentError):
            sh.mv(one, other, RENAME_EXCHANGE)
    with pytest.raises(NotEmptyError):
        sh.mv("/g", "/d/e")


def test_rename_noreplace(volume, sh):
    sh.touch("/a")
    sh.touch("/b")
    with pytest.raises(ExistsError):
        sh.mv("/a", "/b", RENAME_NOREPLACE)
    sh.mv("/a", "/c", RENAME_NOREPLACE)
    assert sorted(volume.tree()) == [b"b", b"c"]


def test_rename_exchange(volume, sh):
    sh.mkdir("/d")
    sh.mkdir("/d/x")
    one, other = sh.touch("/a"), volume.find(b"/d/x")
    one.dentry, other.dentry = (1, b"a"), (volume.find(b"/d").ino, b"x")
    sh.mv("/a", "/d/x", RENAME_EXCHANGE)
    assert (volume.find(b"/d/x"), volume.find(b"/a")) == (one, other)
    assert [sh.stat(path).nlink for path in ("/", "/d")] == [4, 2]
    assert other.disk.parent_ino == 1
    assert (one.dentry, other.dentry) == ((volume.find(b"/d").ino, b"x"), (1, b"a"))
    with pytest.raises(NoEntryError):
        sh.mv("/a", "/nothing", RENAME_EXCHANGE)
    with pytest.raises(NoEntryError):
        sh.mv("/nothing", "/a", RENAME_EXCHANGE)


def test_two_names_of_one_file_stay(volume, sh):
    sh.touch("/a")
    sh.link("/a", "/b")
    assert sh.mv("/a", "/b") is None
    assert sh.mv("/a", "/a") is None
    assert volume.tree() == {b"a": (16, 2), b"b": (16, 2)}


def test_rename_flags_nobody_knows(volume, sh):
    sh.touch("/a")
    for flags in (3, 4, 8):
        with pytest.raises(InvalidArgumentError):
            sh.mv("/a", "/b", flags)


# What may not change


def test_immutable_and_append_only(volume, sh):
    for path in ("/fixed", "/grows"):
        sh.mkdir(path)
        sh.touch(f"{path}/f")
    sh.touch("/a")
    sh.touch("/b")
    sh.set_flags("/fixed", InodeFlags.IMMUTABLE)
    sh.set_flags("/grows", InodeFlags.APPEND)
    sh.set_flags("/a", InodeFlags.IMMUTABLE)
    for operation in (
        lambda: sh.touch("/fixed/new"),
        lambda: sh.unlink("/fixed/f"),
        lambda: sh.unlink("/grows/f"),
        lambda: sh.mv("/grows/f", "/f"),
        lambda: sh.mv("/b", "/grows/f"),
        lambda: sh.mv("/b", "/grows/f", RENAME_EXCHANGE),
        lambda: sh.unlink("/a"),
        lambda: sh.mv("/a", "/c"),
        lambda: sh.mv("/b", "/a"),
        lambda: sh.link("/a", "/c"),
        lambda: sh.rmdir("/grows"),
    ):
        with pytest.raises(NotPermittedError):
            operation()
    sh.touch("/grows/new")
    sh.mv("/b", "/grows/b")
    for path in ("/fixed", "/grows", "/a"):
        sh.set_flags(path, 0)


# No room


def test_a_full_image_stays_sound_and_can_be_emptied(volume, sh):
    paths = (f"/{n:0200}" for n in range(100_000))

    def fill() -> None:
        while True:
            sh.mkdir(next(paths))

    with pytest.raises(NoSpaceError):
        fill()
    names = list(volume.tree())
    assert volume.root.disk.nr_entries == len(names)
    volume.check()
    for name in names:
        volume.sb.drop_unused(volume.find(name))
        assert rmdir(volume.sb, volume.root, name, volume.tick()) is None
    assert volume.sb.state.nr_inodes == 1
    assert volume.tree() == {}
    assert volume.root.disk.nr_pages == 1


def test_an_error_leaves_everything_as_it_was(volume, sh, monkeypatch):
    """Whatever step fails: nothing in memory and nothing in the image has changed."""
    sh.mkdir("/d")
    sh.touch("/d/a")
    sh.touch("/b")
    tree, state, root = volume.tree(), volume.sb.state, volume.root.disk

    def fail(*_: object) -> None:
        raise NoSpaceError("no room")

    for name in ("Transaction.put_inode", "Transaction.store"):
        with monkeypatch.context() as patch:
            patch.setattr(f"xipfs.fs.transaction.{name}", fail)
            for operation in (
                lambda: sh.touch("/x"),
                lambda: sh.mkdir("/x"),
                lambda: sh.unlink("/b"),
                lambda: sh.mv("/b", "/d/a"),
                lambda: sh.mv("/d", "/b", RENAME_EXCHANGE),
                lambda: sh.link("/b", "/d/b"),
            ):
                with pytest.raises(XipfsError):
                    operation()
        assert (volume.tree(), volume.sb.state, volume.root.disk) == (tree, state, root)
