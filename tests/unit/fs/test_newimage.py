"""NewImage: with unnamed files, and on filesystems that have none. Most of it is in test_mkfs."""

import errno
import os
import subprocess
import sys

import pytest

from xipfs.errors import InvalidArgumentError
from xipfs.fs.newimage import TEMPORARY_PREFIX, NewImage


@pytest.fixture(params=["O_TMPFILE", "a temporary name"])
def way(request, monkeypatch):
    """Both ways to write a file that is not there yet."""
    if request.param != "O_TMPFILE":
        real = os.open

        def open_named(path, flags, *args, **options):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not supported")
            return real(path, flags, *args, **options)

        monkeypatch.setattr(os, "open", open_named)
    return request.param


def test_it_has_its_name_only_after_commit(way, tmp_path):
    path = tmp_path / "a.img"
    with NewImage.create(path, force=False) as image:
        os.write(image.fd, b"new")
        expected = [] if way == "O_TMPFILE" else [TEMPORARY_PREFIX]
        assert [name[: len(TEMPORARY_PREFIX)] for name in os.listdir(tmp_path)] == expected
        image.commit()
        assert os.listdir(tmp_path) == ["a.img"]
    assert path.read_bytes() == b"new"
    assert path.stat().st_nlink == 1


@pytest.mark.parametrize("fails", [False, True])
def test_without_commit_nothing_is_left(way, tmp_path, fails):
    try:
        with NewImage.create(tmp_path / "a.img", force=False) as image:
            os.write(image.fd, b"new")
            if fails:
                raise InterruptedError
    except InterruptedError:
        pass
    assert os.listdir(tmp_path) == []


def test_an_old_one_is_replaced_at_commit(way, tmp_path):
    path = tmp_path / "a.img"
    path.write_bytes(b"old")
    path.chmod(0o604)
    with NewImage.create(path, force=True) as image:
        os.write(image.fd, b"new")
        assert path.read_bytes() == b"old"
        image.commit()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o604
    assert os.listdir(tmp_path) == ["a.img"]


def test_one_that_appeared_is_left_alone(way, tmp_path):
    path = tmp_path / "a.img"
    with NewImage.create(path, force=True) as image:
        path.write_bytes(b"mine")
        with pytest.raises(InvalidArgumentError, match="meanwhile"):
            image.commit()
    assert path.read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["a.img"]


def test_the_mode_follows_the_umask(way, tmp_path):
    old = os.umask(0o027)
    try:
        with NewImage.create(tmp_path / "a.img", force=False) as image:
            image.commit()
    finally:
        os.umask(old)
    assert (tmp_path / "a.img").stat().st_mode & 0o777 == 0o640


def test_the_longest_name(way, tmp_path):
    with NewImage.create(tmp_path / ("n" * 255), force=False) as image:
        image.commit()
    assert os.listdir(tmp_path) == ["n" * 255]


def test_everything_is_closed(way, tmp_path):
    before = os.listdir("/proc/self/fd")
    (tmp_path / "a.img").touch()
    with NewImage.create(tmp_path / "a.img", force=False) as image:
        image.commit()
    for path in (tmp_path, tmp_path / "none" / "b.img"):
        with pytest.raises(Exception, match="directory"):
            NewImage.create(path, force=False)
    (tmp_path / "a.img").write_bytes(b"x")
    with pytest.raises(InvalidArgumentError, match="exists"):
        NewImage.create(tmp_path / "a.img", force=False)
    assert os.listdir("/proc/self/fd") == before


def test_a_killed_writer_leaves_nothing(tmp_path):
    program = (
        "import os, signal, sys; from xipfs.fs.newimage import NewImage\n"
        "with NewImage.create(sys.argv[1], force=False) as image:\n"
        "    os.write(image.fd, b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.img")], check=False)
    assert done.returncode == -9
    assert os.listdir(tmp_path) == []
