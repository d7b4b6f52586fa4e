"""Names: made, linked, renamed and taken away, and what stays of a file that has none."""

import errno
import mmap
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.syscalls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    caller,
    fails,
    may_fail,
    name_to_handle,
    open_by_handle,
    renameat2,
    wait_until,
)

OTHER_FILESYSTEM = "/dev/xipfs-test-no-such-file"


def link_descriptor(fd: int, path: Path) -> None:
    """Give an open file a name. src_dir_fd makes it linkat(2): link(2) follows nothing."""
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def nlink(path: Path) -> int:
    return os.lstat(path).st_nlink


# Lengths and letters


@pytest.mark.parametrize("letter", ["n", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\udcff"])
def test_a_name_has_at_most_255_bytes(place: Path, letter: str):
    size_bytes = len(os.fsencode(letter))
    longest = letter * (255 // size_bytes) + "n" * (255 % size_bytes)
    too_long = longest + "n"
    (place / longest).write_bytes(b"long")
    assert (place / longest).read_bytes() == b"long"
    assert os.listdir(place) == [longest]
    for attempt in (os.stat, os.mkdir, os.unlink, os.rmdir, os.mkfifo, os.listdir):
        fails(errno.ENAMETOOLONG, attempt, place / too_long)
    fails(errno.ENAMETOOLONG, os.open, place / too_long, os.O_CREAT | os.O_WRONLY)
    fails(errno.ENAMETOOLONG, os.symlink, "target", place / too_long)
    fails(errno.ENAMETOOLONG, os.link, place / longest, place / too_long)
    fails(errno.ENAMETOOLONG, os.rename, place / longest, place / too_long)
    fails(errno.ENAMETOOLONG, os.rename, place / too_long, place / "short")
    assert os.listdir(place) == [longest]
    assert os.statvfs(place).f_namemax == 255


def test_names_are_bytes(place: Path):
    names = [b" ", b"...", b"\\", b"\xff\xfe", b"new\nline", b"\x01", "é".encode(), b"-rf", b"*"]
    for name in names:
        Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_bytes(name)
    assert sorted(os.listdir(os.fsencode(place))) == sorted(names)
    for name in names:
        path = os.fsencode(place) + b"/" + name
        assert Path(os.fsdecode(path)).read_bytes() == name


def test_case_and_normal_forms_are_different_names(place: Path):
    for name in ("a", "A", "\u00e9", "e\u0301"):
        (place / name).write_text(name)
    assert len(os.listdir(place)) == 4
    assert (place / "a").read_text() == "a"


def test_a_path_has_at_most_4095_bytes(place: Path):
    directory = os.open(place, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=directory)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
    fails(errno.ENAMETOOLONG, os.stat, place / "/".join(["d" * 250] * 20))
    os.close(os.open("deep", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    assert os.listdir(directory) == ["deep"]
    os.close(directory)


# Links


def test_link_is_another_name(place: Path):
    (place / "a").write_bytes(b"x")
    os.link(place / "a", place / "b")
    assert nlink(place / "a") == nlink(place / "b") == 2
    assert os.path.samefile(place / "a", place / "b")
    with open(place / "b", "ab") as file:
        file.write(b"y")
    assert (place / "a").read_bytes() == b"xy"
    os.unlink(place / "a")
    assert nlink(place / "b") == 1
    assert (place / "b").read_bytes() == b"xy"


def test_what_cannot_be_linked(place: Path):
    (place / "file").touch()
    (place / "directory").mkdir()
    fails(errno.EEXIST, os.link, place / "file", place / "directory")
    fails(errno.EEXIST, os.link, place / "file", place / "file")
    fails(errno.EPERM, os.link, place / "directory", place / "other")
    fails(errno.ENOENT, os.link, place / "missing", place / "other")
    fails(errno.ENOENT, os.link, place / "file", place / "missing" / "other")
    fails(errno.EXDEV, os.link, place / "file", OTHER_FILESYSTEM)
    assert nlink(place / "file") == 1


def test_link_of_a_symlink_and_of_a_descriptor(place: Path):
    os.symlink("target", place / "symlink")
    os.link(place / "symlink", place / "other", follow_symlinks=False)
    assert os.readlink(place / "other") == "target"
    assert nlink(place / "other") == 2
    (place / "file").write_bytes(b"x")
    fd = os.open(place / "file", os.O_RDONLY)
    link_descriptor(fd, place / "again")
    os.close(fd)
    assert os.path.samefile(place / "file", place / "again")


def test_link_changes_ctime_and_not_mtime(place: Path):
    (place / "a").touch()
    os.utime(place / "a", ns=(1, 2))
    before = os.stat(place / "a")
    os.link(place / "a", place / "b")
    after = os.stat(place / "a")
    assert after.st_mtime_ns == before.st_mtime_ns == 2
    assert after.st_ctime_ns >= before.st_ctime_ns


# Symbolic links


@pytest.mark.parametrize("size", [1, 59, 60, 119, 120, 121, 255, 1000, 4095])
def test_symlinks_of_every_length(place: Path, size: int):
    target = ("t/" * size)[: size - 1] + "t"
    os.symlink(target, place / "symlink")
    assert os.readlink(place / "symlink") == target
    status = os.lstat(place / "symlink")
    assert (stat.S_ISLNK(status.st_mode), status.st_size) == (True, size)


def test_symlink_limits(place: Path):
    fails(errno.ENAMETOOLONG, os.symlink, "t" * 4096, place / "symlink")
    fails(errno.ENOENT, os.symlink, "", place / "symlink")
    os.symlink("a", place / "symlink")
    fails(errno.EEXIST, os.symlink, "b", place / "symlink")
    fails(errno.EINVAL, os.readlink, place)
    os.symlink("file", place / "40")
    (place / "file").write_bytes(b"x")
    for i in range(39, -1, -1):
        os.symlink(f"{i + 1}", place / f"{i}")
    assert (place / "1").read_bytes() == b"x"
    fails(errno.ELOOP, os.stat, place / "0")


# Unlink and rmdir


def test_unlink_and_rmdir_refuse_the_other_kind(place: Path):
    (place / "file").touch()
    (place / "directory").mkdir()
    fails(errno.ENOTDIR, os.rmdir, place / "file")
    fails(errno.EISDIR, os.unlink, place / "directory")
    fails(errno.ENOENT, os.unlink, place / "missing")
    fails(errno.ENOENT, os.rmdir, place / "missing")
    fails(errno.EINVAL, os.rmdir, f"{place}/directory/.")
    fails(errno.ENOTEMPTY, os.rmdir, f"{place}/directory/..")


def test_rmdir_wants_it_empty(place: Path):
    (place / "d").mkdir()
    (place / "d" / "inner").touch()
    fails(errno.ENOTEMPTY, os.rmdir, place / "d")
    os.unlink(place / "d" / "inner")
    os.rmdir(place / "d")
    fails(errno.ENOENT, os.stat, place / "d")


def test_link_counts_of_directories(place: Path):
    if nlink(place) == 1:
        pytest.fail("a filesystem that does not count directories")
    before = nlink(place)
    (place / "a").mkdir()
    (place / "b").mkdir()
    (place / "file").touch()
    assert nlink(place) == before + 2
    assert nlink(place / "a") == 2
    (place / "a" / "inner").mkdir()
    assert nlink(place / "a") == 3
    os.rename(place / "a" / "inner", place / "b" / "inner")
    assert (nlink(place / "a"), nlink(place / "b")) == (2, 3)
    os.rmdir(place / "b" / "inner")
    os.rmdir(place / "b")
    assert nlink(place) == before + 1


def test_a_directory_that_is_gone_but_open(place: Path):
    (place / "d").mkdir()
    fd = os.open(place / "d", os.O_RDONLY)
    os.rmdir(place / "d")
    assert os.fstat(fd).st_nlink == 0
    assert os.listdir(fd) == []
    fails(errno.ENOENT, os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    fails(errno.ENOENT, os.mkdir, "new", dir_fd=fd)
    os.fchmod(fd, 0o700)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o700
    (place / "d").mkdir()
    assert not os.path.samestat(os.fstat(fd), os.stat(place / "d"))
    os.close(fd)


# Unlinked, but open


def test_every_operation_on_a_file_without_a_name(place: Path):
    fd = os.open(place / "file", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(fd, b"before")
    os.setxattr(fd, "user.before", b"1")
    os.unlink(place / "file")
    assert os.listdir(place) == []
    assert (os.fstat(fd).st_nlink, os.fstat(fd).st_size) == (0, 6)
    assert os.pread(fd, 9, 0) == b"before"
    os.pwrite(fd, b"after" * 2000, 3)
    assert os.pread(fd, 8, 0) == b"befafter"
    os.ftruncate(fd, 20_000)
    os.fsync(fd)
    os.fdatasync(fd)
    with mmap.mmap(fd, 20_000) as mapped:
        assert mapped[3:8] == b"after"
        mapped[19_999] = 33
        mapped.flush()
    assert os.pread(fd, 9, 19_998) == b"\0!"
    os.fchmod(fd, 0o600)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    os.utime(fd, ns=(3, 4))
    assert os.fstat(fd).st_mtime_ns == 4
    os.setxattr(fd, "user.after", b"2")
    assert sorted(os.listxattr(fd)) == ["user.after", "user.before"]
    os.removexattr(fd, "user.before")
    assert os.getxattr(fd, "user.after") == b"2"
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    assert os.pread(again, 3, 0) == b"bef"
    os.close(fd)
    assert os.pread(again, 3, 0) == b"bef"
    fails(errno.ENOENT, link_descriptor, again, place / "back")
    os.close(again)


@pytest.mark.root
def test_owner_of_a_file_without_a_name(place: Path):
    fd = os.open(place / "file", os.O_CREAT | os.O_RDWR)
    os.unlink(place / "file")
    os.fchown(fd, 77, 88)
    assert (os.fstat(fd).st_uid, os.fstat(fd).st_gid) == (77, 88)
    os.close(fd)


def test_its_room_is_given_back(place: Path):
    """When the last descriptor is closed, and not before."""
    fd = os.open(place / "file", os.O_CREAT | os.O_RDWR)
    os.write(fd, bytes(8 << 20))
    os.fsync(fd)
    free_with = os.statvfs(place).f_bfree
    os.unlink(place / "file")
    assert os.fstat(fd).st_blocks >= (8 << 20) // 512
    os.close(fd)
    wanted = free_with + (7 << 20) // os.statvfs(place).f_frsize
    wait_until(lambda: os.statvfs(place).f_bfree >= wanted)


# Rename


def test_rename_over_a_file(place: Path):
    (place / "a").write_bytes(b"a")
    (place / "b").write_bytes(b"b")
    os.link(place / "b", place / "b2")
    ino = os.stat(place / "a").st_ino
    os.rename(place / "a", place / "b")
    assert sorted(os.listdir(place)) == ["b", "b2"]
    assert os.stat(place / "b").st_ino == ino
    assert (place / "b").read_bytes() == b"a"
    assert (place / "b2").read_bytes() == b"b"
    assert nlink(place / "b2") == 1


def test_rename_over_an_open_file(place: Path):
    (place / "a").write_bytes(b"new")
    (place / "b").write_bytes(b"old")
    old = os.open(place / "b", os.O_RDWR)
    new = os.open(place / "a", os.O_RDWR)
    os.rename(place / "a", place / "b")
    assert (os.fstat(old).st_nlink, os.fstat(new).st_nlink) == (0, 1)
    os.pwrite(old, b"OLD", 0)
    os.pwrite(new, b"NEW", 0)
    assert (os.pread(old, 9, 0), (place / "b").read_bytes()) == (b"OLD", b"NEW")
    fails(errno.ENOENT, os.stat, place / "a")
    os.close(old)
    os.close(new)


def test_rename_to_another_name_of_the_same_file_does_nothing(place: Path):
    (place / "a").write_bytes(b"x")
    os.link(place / "a", place / "b")
    os.rename(place / "a", place / "b")
    assert sorted(os.listdir(place)) == ["a", "b"]
    assert nlink(place / "a") == 2
    os.rename(place / "a", place / "a")
    assert nlink(place / "a") == 2


def test_rename_between_directories(place: Path):
    (place / "one").mkdir()
    (place / "two").mkdir()
    (place / "one" / "d").mkdir()
    (place / "one" / "d" / "file").write_bytes(b"x")
    os.rename(place / "one" / "d", place / "two" / "e")
    assert os.listdir(place / "one") == []
    assert (place / "two" / "e" / "file").read_bytes() == b"x"
    fd = os.open(place / "two" / "e", os.O_RDONLY)
    above = os.open("..", os.O_RDONLY, dir_fd=fd)
    assert os.path.samestat(os.fstat(above), os.stat(place / "two"))
    os.close(above)
    os.close(fd)


def test_rename_over_an_empty_directory(place: Path):
    for name in ("a", "b", "full"):
        (place / name).mkdir()
    (place / "full" / "inner").touch()
    (place / "a" / "file").touch()
    gone = os.open(place / "b", os.O_RDONLY)
    before = nlink(place)
    os.rename(place / "a", place / "b")
    assert os.listdir(place / "b") == ["file"]
    assert nlink(place) == before - 1
    assert os.fstat(gone).st_nlink == 0
    os.close(gone)
    with pytest.raises(OSError) as caught:
        os.rename(place / "b", place / "full")
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    assert os.listdir(place / "full") == ["inner"]


def test_what_cannot_be_renamed(place: Path):
    (place / "file").touch()
    (place / "d" / "inner").mkdir(parents=True)
    fails(errno.EISDIR, os.rename, place / "file", place / "d" / "inner")
    fails(errno.ENOTDIR, os.rename, place / "d", place / "file")
    fails(errno.ENOENT, os.rename, place / "missing", place / "file")
    fails(errno.ENOENT, os.rename, place / "file", place / "missing" / "file")
    fails(errno.EINVAL, os.rename, place / "d", place / "d" / "below")
    fails(errno.EINVAL, os.rename, place / "d", place / "d" / "inner" / "below")
    with pytest.raises(OSError) as caught:
        os.rename(place / "d" / "inner", place / "d")
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    with pytest.raises(OSError) as caught:
        os.rename(f"{place}/d/.", place / "e")
    assert caught.value.errno in (errno.EBUSY, errno.EINVAL)
    fails(errno.EXDEV, os.rename, place / "file", OTHER_FILESYSTEM)
    assert sorted(os.listdir(place)) == ["d", "file"]


def test_rename_noreplace(place: Path):
    (place / "a").write_bytes(b"a")
    (place / "b").write_bytes(b"b")
    fails(errno.EEXIST, renameat2, place / "a", place / "b", RENAME_NOREPLACE)
    fails(errno.EEXIST, renameat2, place / "a", place / "a", RENAME_NOREPLACE)
    assert (place / "b").read_bytes() == b"b"
    renameat2(place / "a", place / "c", RENAME_NOREPLACE)
    assert sorted(os.listdir(place)) == ["b", "c"]


def test_rename_exchange(place: Path):
    (place / "file").write_bytes(b"x")
    (place / "d").mkdir()
    (place / "d" / "inner").mkdir()
    (place / "sub").mkdir()
    fails(errno.ENOENT, renameat2, place / "file", place / "missing", RENAME_EXCHANGE)
    renameat2(place / "file", place / "d", RENAME_EXCHANGE)
    assert (place / "d").read_bytes() == b"x"
    assert os.listdir(place / "file") == ["inner"]
    # Across directories, a directory against a file: the link counts go with it.
    renameat2(place / "d", place / "file" / "inner", RENAME_EXCHANGE)
    assert (nlink(place / "file"), nlink(place / "d")) == (2, 2)
    assert (place / "file" / "inner").read_bytes() == b"x"
    renameat2(place / "d", place / "sub", RENAME_EXCHANGE)
    fails(errno.EINVAL, renameat2, place / "file", place / "file" / "inner", RENAME_EXCHANGE)
    (place / "file" / "deep").mkdir()
    for pair in [("file", "file/deep"), ("file/deep", "file")]:
        with pytest.raises(OSError) as caught:
            renameat2(place / pair[0], place / pair[1], RENAME_EXCHANGE)
        assert caught.value.errno in (errno.EINVAL, errno.ENOTEMPTY)
    fails(errno.EINVAL, renameat2, place / "d", place / "sub", RENAME_EXCHANGE | RENAME_NOREPLACE)


def test_rename_changes_the_times_of_both_directories(place: Path):
    (place / "one").mkdir()
    (place / "two").mkdir()
    (place / "one" / "file").touch()
    for name in ("one", "two"):
        os.utime(place / name, ns=(1, 1))
    os.rename(place / "one" / "file", place / "two" / "file")
    assert os.stat(place / "one").st_mtime_ns > 1
    assert os.stat(place / "two").st_mtime_ns > 1


@pytest.mark.root
def test_sticky_directory(place: Path):
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for uid in (1000, 1001):
        with caller(uid, uid):
            (shared / f"of-{uid}").write_bytes(b"x")
            (shared / f"d-{uid}").mkdir()
    with caller(1000, 1000):
        fails(errno.EPERM, os.unlink, shared / "of-1001")
        fails(errno.EPERM, os.rename, shared / "of-1001", shared / "mine")
        fails(errno.EPERM, os.rename, shared / "of-1000", shared / "of-1001")
        fails(errno.EPERM, os.rmdir, shared / "d-1001")
        fails(errno.EPERM, os.rename, shared / "d-1001", shared / "d-1000" / "x")
        os.rename(shared / "of-1000", shared / "still-mine")
        os.unlink(shared / "still-mine")
    os.chown(shared, 1002, 0)
    with caller(1002, 1002):  # the directory's owner may
        os.unlink(shared / "of-1001")


# Other kinds


def test_fifo(place: Path):
    os.mkfifo(place / "fifo", 0o640)
    assert stat.S_ISFIFO(os.stat(place / "fifo").st_mode)
    reader = os.open(place / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(place / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 99) == b"through"
    assert os.stat(place / "fifo").st_size == 0
    os.close(reader)
    os.close(writer)
    fails(errno.ENXIO, os.open, place / "fifo", os.O_WRONLY | os.O_NONBLOCK)


def test_socket(place: Path):
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        here = os.open(place, os.O_RDONLY)
        path = f"/proc/self/fd/{here}/socket"  # a socket's path has at most 107 bytes
        server.bind(path)
        server.listen()
        client.connect(path)
        accepted = server.accept()[0]
        client.send(b"hello")
        assert accepted.recv(9) == b"hello"
        accepted.close()
        os.close(here)
    assert stat.S_ISSOCK(os.stat(place / "socket").st_mode)
    os.unlink(place / "socket")


@pytest.mark.root
def test_device_nodes(place: Path):
    for kind, device in [(stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, os.makedev(259, 70_000))]:
        os.mknod(place / "node", kind | 0o600, device)
        status = os.stat(place / "node")
        assert (stat.S_IFMT(status.st_mode), status.st_rdev) == (kind, device)
        os.unlink(place / "node")
    place.chmod(0o777)
    with caller(1000, 1000):
        fails(errno.EPERM, os.mknod, place / "node", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(place / "plain", stat.S_IFREG | 0o640)
    (place / "plain").write_bytes(b"x")
    fails(errno.EEXIST, os.mknod, place / "plain", stat.S_IFREG | 0o640)


# Handles


@pytest.mark.root
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_open_by_handle(place: Path, make: Callable[[Path], None]):
    mount_fd = os.open(place, os.O_RDONLY)
    make(place / "a")
    handle = name_to_handle(place / "a")
    os.rename(place / "a", place / "b")
    fd = open_by_handle(mount_fd, handle, os.O_RDONLY)
    assert os.path.samestat(os.fstat(fd), os.stat(place / "b"))
    os.close(fd)
    os.rmdir(place / "b") if make is Path.mkdir else os.unlink(place / "b")

    def is_stale() -> bool:
        with may_fail(errno.ESTALE):
            os.close(open_by_handle(mount_fd, handle, os.O_RDONLY))
            return False
        return True

    wait_until(is_stale)
    fails(errno.ESTALE, open_by_handle, mount_fd, handle, os.O_RDONLY)
    for i in range(50):  # one of them gets the number again, and another generation
        (place / f"{i}").touch()
    fails(errno.ESTALE, open_by_handle, mount_fd, handle, os.O_RDONLY)
    os.close(mount_fd)


@pytest.mark.root
def test_open_by_handle_when_nothing_is_cached(place: Path):
    mount_fd = os.open(place, os.O_RDONLY)
    (place / "d").mkdir()
    (place / "d" / "file").write_bytes(b"x")
    inos = [os.stat(place / "d").st_ino, os.stat(place / "d" / "file").st_ino]
    handles = [name_to_handle(place / "d"), name_to_handle(place / "d" / "file")]
    Path("/proc/sys/vm/drop_caches").write_text("2")
    for ino, handle in zip(inos, handles, strict=True):
        fd = open_by_handle(mount_fd, handle, os.O_RDONLY)
        assert os.fstat(fd).st_ino == ino
        os.close(fd)
    os.close(mount_fd)


# The working directory and ".."


def test_dot_and_dotdot(place: Path):
    (place / "a" / "b").mkdir(parents=True)
    assert os.path.samefile(place / "a" / "b" / ".." / "..", place)
    assert os.path.samefile(f"{place}/a/.", place / "a")
    code = (
        "import os, sys; os.chdir(sys.argv[1]); os.rename('../../a', '../../c'); print(os.getcwd())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, place / "a" / "b"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(place / "c" / "b")
    fails(errno.EEXIST, os.mkdir, f"{place}/c/.")
    fails(errno.EEXIST, os.mkdir, f"{place}/c/..")
