"""The adapter, without a mount: what pyfuse3 is told, and that it is told nothing but FUSEError."""

import errno
import stat
from types import SimpleNamespace

import pytest

from xipfs.errors import BugError, DeviceError, FormatError, NoDataError, StaleError
from xipfs.fuse.mount import Mount
from xipfs.fuse.operations import StatFs
from xipfs.fuse.options import MountOptions
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SIZE

pytestmark = pytest.mark.fuse

DAY_S = 86400


@pytest.fixture
def pyfuse3():
    import pyfuse3

    return pyfuse3


@pytest.fixture
def adapter(mount: Mount):
    from xipfs.fuse.adapter import Adapter

    return Adapter(mount)


async def error_of(pyfuse3, call) -> str:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await call
    return errno.errorcode[caught.value.errno]


async def test_a_name_that_is_there(adapter):
    entry = await adapter.lookup(INO_ROOT, b"big", None)
    assert entry.st_ino > INO_ROOT
    assert entry.st_mode == stat.S_IFREG | 0o644
    assert entry.st_size == 8 * PAGE_SIZE
    assert entry.st_blocks == 8 * PAGE_SIZE // 512
    assert entry.entry_timeout == entry.attr_timeout == DAY_S


async def test_a_name_that_is_not_there_is_an_answer_to_be_kept(adapter):
    """Inode 0, not ENOENT: the kernel remembers only the first."""
    entry = await adapter.lookup(INO_ROOT, b"missing", None)
    assert entry.st_ino == 0
    assert entry.entry_timeout == DAY_S


@pytest.mark.parametrize("error", [RuntimeError("planted"), BugError("planted"), KeyError(3)])
async def test_bugs_are_eio_and_logged(adapter, mount, pyfuse3, expected_logs, error):
    def broken(*_):
        raise error

    mount.operations.getattr = broken
    mount.operations.lookup = broken
    mount.operations.release = broken
    expected_logs("a bug in xipfs: the client gets EIO")
    assert await error_of(pyfuse3, adapter.getattr(INO_ROOT, None)) == "EIO"
    assert await error_of(pyfuse3, adapter.lookup(INO_ROOT, b"x", None)) == "EIO"
    assert await error_of(pyfuse3, adapter.release(7)) == "EIO"


@pytest.mark.parametrize(
    ("error", "code", "logged"),
    [
        (FormatError("damaged"), "EUCLEAN", True),
        (DeviceError("gone"), "EIO", True),
        (NoDataError("none"), "ENODATA", False),
        (StaleError("who?"), "ESTALE", False),
    ],
)
async def test_errors_are_their_errno(adapter, mount, pyfuse3, expected_logs, error, code, logged):
    """What only the owner of the image can mend is logged."""

    def broken(*_):
        raise error

    mount.operations.getattr = broken
    if logged:
        expected_logs(str(error))
    assert await error_of(pyfuse3, adapter.getattr(INO_ROOT, None)) == code


async def test_what_does_not_fit_the_reply_is_a_bug_too(adapter, mount, pyfuse3, expected_logs):
    """The conversion stood outside of the try once: the OverflowError ended the mount."""
    mount.operations.statfs = lambda: StatFs(1, 1 << 64, 1, 1, 1)
    expected_logs("a bug in xipfs: the client gets EIO")
    assert await error_of(pyfuse3, adapter.statfs(None)) == "EIO"


async def test_forget_never_raises(adapter, mount, expected_logs):
    """It has no reply, so a bug in it is logged and the other inodes are forgotten."""
    first = await adapter.lookup(INO_ROOT, b"big", None)
    second = await adapter.lookup(INO_ROOT, b"empty", None)
    forget = mount.operations.forget

    def broken(ino, nr_lookups):
        if ino == first.st_ino:
            raise RuntimeError("planted")
        forget(ino, nr_lookups)

    mount.operations.forget = broken
    expected_logs(f"forget of inode {first.st_ino} failed")
    await adapter.forget([(first.st_ino, 1), (second.st_ino, 1), (999, 4)])
    assert mount.sb.find_inode(first.st_ino) is not None
    assert mount.sb.find_inode(second.st_ino) is None


async def test_flush_is_refused(adapter, pyfuse3):
    assert await error_of(pyfuse3, adapter.flush(3)) == "ENOSYS"


@pytest.mark.parametrize(
    ("cache", "direct_io"), [("none", True), ("sampled", False), ("full", False)]
)
async def test_files_are_opened_as_cache_says(image, cache, direct_io):
    from xipfs.fuse.adapter import Adapter
    from xipfs.fuse.options import CacheMode

    mount = Mount.open(image, MountOptions(ram_bytes=0, cache=CacheMode(cache)))
    adapter = Adapter(mount)
    entry = await adapter.lookup(INO_ROOT, b"big", None)
    opened = await adapter.open(entry.st_ino, 0, SimpleNamespace(pid=1, uid=0))
    assert bool(opened.direct_io) is direct_io
    assert opened.keep_cache
    data = await adapter.read(opened.fh, 5, 10)
    assert bytes(data) == b"0" * 10
    assert isinstance(data, memoryview), "no copy where the bytes lie in one piece"
    await adapter.release(opened.fh)
    del data
    mount.close()


async def test_statfs(adapter, mount, image):
    facts = await adapter.statfs(None)
    assert facts.f_bsize == facts.f_frsize == PAGE_SIZE
    assert facts.f_blocks == image.stat().st_size // PAGE_SIZE
    assert facts.f_bavail <= facts.f_bfree < facts.f_blocks
    assert facts.f_files - facts.f_ffree == mount.sb.state.nr_inodes
    assert facts.f_namemax == 255
