"""Listing directories: each entry once, whatever changes meanwhile."""

import os
import random
import stat
from pathlib import Path

import pytest

from tests.kit.syscalls import Dirent, getdents


def fill(place: Path, count: int) -> set[bytes]:
    names = {b"%d-%s" % (i, b"n" * (i * 7 % 90)) for i in range(count)}
    for name in names:
        os.close(os.open(os.path.join(os.fsencode(place), name), os.O_CREAT | os.O_WRONLY))
    return names


def rest(fd: int, size_bytes: int = 1024) -> list[Dirent]:
    found = []
    while some := getdents(fd, size_bytes):
        found += some
    return found


@pytest.mark.parametrize("count", [0, 1, 3, 400])
def test_every_entry_once_with_dots(place: Path, count: int):
    names = fill(place, count)
    fd = os.open(place, os.O_RDONLY)
    found = rest(fd)
    assert sorted(entry.name for entry in found) == sorted(names | {b".", b".."})
    assert getdents(fd) == []
    os.lseek(fd, 0, os.SEEK_SET)
    assert [entry.name for entry in rest(fd, 65536)] == [entry.name for entry in found]
    assert len({entry.offset for entry in found}) == len(found)
    os.close(fd)


def test_entries_tell_inode_and_kind(place: Path):
    (place / "file").touch()
    (place / "directory").mkdir()
    os.symlink("x", place / "symlink")
    os.mkfifo(place / "fifo")
    fd = os.open(place, os.O_RDONLY)
    for entry in rest(fd):
        if entry.name == b"..":
            continue
        status = os.lstat(os.path.join(os.fsencode(place), entry.name))
        assert (entry.ino, entry.d_type) == (status.st_ino, stat.S_IFMT(status.st_mode) >> 12)
    os.close(fd)


def test_dotdot_is_the_directory_above(place: Path):
    (place / "a").mkdir()
    fd = os.open(place / "a", os.O_RDONLY)
    inos = {entry.name: entry.ino for entry in rest(fd)}
    assert inos == {b".": os.stat(place / "a").st_ino, b"..": os.stat(place).st_ino}
    (place / "b").mkdir()
    os.rename(place / "a", place / "b" / "a")
    os.lseek(fd, 0, os.SEEK_SET)
    inos = {entry.name: entry.ino for entry in rest(fd)}
    assert inos[b".."] == os.stat(place / "b").st_ino
    os.close(fd)


def test_telldir_and_seekdir(place: Path):
    fill(place, 300)
    fd = os.open(place, os.O_RDONLY)
    found = rest(fd)
    rng = random.Random(3)
    for i in rng.sample(range(len(found)), 60):
        os.lseek(fd, found[i].offset, os.SEEK_SET)
        some = getdents(fd)
        assert [e.name for e in some] == [e.name for e in found[i + 1 : i + 1 + len(some)]]
        assert some or i == len(found) - 1
    os.close(fd)


def test_offsets_survive_changes(place: Path):
    """What stays is listed exactly once, though others come and go between two calls."""
    stay = fill(place, 500)
    come_and_go = {b"other-%d" % i for i in range(500)}
    directory = os.fsencode(place)
    there: set[bytes] = set()
    rng = random.Random(4)
    fd = os.open(place, os.O_RDONLY)
    found: list[bytes] = []
    while some := getdents(fd):
        found += [entry.name for entry in some]
        for name in rng.sample(sorted(come_and_go), 40):
            path = os.path.join(directory, name)
            if name in there:
                os.unlink(path)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            there ^= {name}
    os.close(fd)
    assert sorted(set(found) & stay) == sorted(stay)
    assert len([name for name in found if name in stay]) == len(stay)
    assert set(found) <= stay | come_and_go | {b".", b".."}


def test_delete_while_listing(place: Path):
    """rm -r: unlink what was listed, list on, until nothing is left."""
    names = fill(place, 700)
    directory = os.fsencode(place)
    fd = os.open(place, os.O_RDONLY)
    removed = []
    while some := getdents(fd):
        for entry in some:
            if entry.name not in (b".", b".."):
                os.unlink(os.path.join(directory, entry.name))
                removed.append(entry.name)
    os.close(fd)
    assert sorted(removed) == sorted(names)
    assert os.listdir(place) == []


def test_rename_while_listing(place: Path):
    names = fill(place, 300)
    directory = os.fsencode(place)
    fd = os.open(place, os.O_RDONLY)
    seen = set()
    while some := getdents(fd):
        for entry in some:
            if entry.name in names and entry.name not in seen:
                seen.add(entry.name)
                path = os.path.join(directory, entry.name)
                os.rename(path, os.path.join(directory, b"renamed-" + entry.name[:50]))
    os.close(fd)
    assert seen == names
    assert sorted(os.listdir(directory)) == sorted(b"renamed-" + name[:50] for name in names)


def test_a_second_listing_sees_what_changed(place: Path):
    fd = os.open(place, os.O_RDONLY)
    assert len(rest(fd)) == 2
    (place / "new").touch()
    os.lseek(fd, 0, os.SEEK_SET)
    assert {entry.name for entry in rest(fd)} == {b".", b"..", b"new"}
    (place / "new").unlink()
    os.lseek(fd, 0, os.SEEK_SET)
    assert len(rest(fd)) == 2
    os.close(fd)


def test_two_thousand_entries(place: Path):
    names = fill(place, 2000)
    assert {os.fsencode(name) for name in os.listdir(place)} == names
    rng = random.Random(5)
    for name in rng.sample(sorted(names), 100):
        assert stat.S_ISREG(os.stat(os.path.join(os.fsencode(place), name)).st_mode)
    for name in sorted(names)[::2]:
        os.unlink(os.path.join(os.fsencode(place), name))
    assert {os.fsencode(name) for name in os.listdir(place)} == set(sorted(names)[1::2])


def test_times_of_a_directory(place: Path):
    """They change when an entry is made, renamed or taken away, and not by a look or a write."""

    def changed() -> bool:
        now_ns = os.stat(place).st_mtime_ns
        os.utime(place, ns=(1, 1))
        return now_ns != 1

    changed()
    (place / "a").touch()
    assert changed()
    os.listdir(place)
    (place / "a").write_bytes(b"x")
    assert not changed()
    os.rename(place / "a", place / "b")
    assert changed()
    os.link(place / "b", place / "c")
    assert changed()
    os.chmod(place / "b", 0o600)
    assert not changed()
    os.unlink(place / "b")
    assert changed()
    (place / "d").mkdir()
    assert changed()
    os.rmdir(place / "d")
    assert changed()
