"""Every request on damaged images: an errno is fine; a bug, or mm's books in disorder, is not.

The damage is that of `tests.fuzz.test_image`: bytes overwritten anywhere, and fields changed in
records that are sealed again. The requests are made of the adapter, as the kernel would, and epochs
run in between, so that pages of damaged files migrate too.
"""

import errno
import os
import stat
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.test_image import apply, overwrites, resealed
from tests.kit.image import HandmadeImage
from tests.kit.readers import Bugs
from tests.kit.sample import make_sample
from xipfs.errors import DeviceError, FormatError
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import CacheMode, MountOptions
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SIZE

pytestmark = pytest.mark.fuse

OPTIONS = MountOptions(ro=True, ram_bytes=8 * PAGE_SIZE, cache=CacheMode.NONE)
NR_INODES_MAX = 200

EXPECTED = {
    errno.EUCLEAN,
    errno.EIO,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EINVAL,
    errno.ENODATA,
    errno.ENOMEM,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def log_watch() -> None:
    """In place of the watch of all other tests: here errors in the log are what is expected."""


class Kernel:
    """Asks for everything that there is, forgets it all again."""

    def __init__(self, mount: Mount) -> None:
        import pyfuse3

        from xipfs.fuse.adapter import Adapter

        self.mount = mount
        self.adapter = Adapter(mount)
        self.fuse_error = pyfuse3.FUSEError

    def ask(self, request: Coroutine[Any, Any, Any]) -> Any:
        """The answer; None for an errno, which must be one that damage explains."""
        try:
            request.send(None)
        except StopIteration as exc:
            return exc.value
        except self.fuse_error as exc:
            number = exc.errno
        else:
            raise AssertionError("a handler awaits")
        assert number in EXPECTED, errno.errorcode[number]
        return None

    def explore(self) -> None:
        waiting, seen = [INO_ROOT], set()
        while waiting and len(seen) < NR_INODES_MAX:
            ino = waiting.pop()
            if ino in seen:
                continue
            seen.add(ino)
            found = self.ask(self.adapter.getattr(ino, None))
            if found is None:
                continue
            self.ask_about(ino, found.st_mode)
            if stat.S_ISDIR(found.st_mode):
                waiting += self.look_up_all(ino)
        self.mount.run_epoch()
        self.check()
        self.ask(self.adapter.statfs(None))
        for ino in seen:
            inode = self.mount.sb.find_inode(ino)
            if inode is not None:
                self.ask(self.adapter.forget([(ino, inode.nr_lookups)]))
        self.mount.run_epoch()
        self.check()

    def look_up_all(self, ino: int) -> list[int]:
        names: list[bytes] = []

        def emit(name: bytes, inode: Any, position: int) -> bool:
            names.append(name)
            return len(names) < NR_INODES_MAX

        fh = self.ask(self.adapter.opendir(ino, None))
        if fh is not None:
            with suppress(FormatError, DeviceError):
                self.mount.dispatch(self.mount.operations.readdir, fh, 0, emit)
            self.ask(self.adapter.releasedir(fh))
        self.ask(self.adapter.lookup(ino, b"no such name", None))
        entries = [self.ask(self.adapter.lookup(ino, name, None)) for name in names]
        return [entry.st_ino for entry in entries if entry is not None and entry.st_ino]

    def ask_about(self, ino: int, mode: int) -> None:
        for name in self.ask(self.adapter.listxattr(ino, None)) or ():
            self.ask(self.adapter.getxattr(ino, name, None))
        for name in (b"user.xipfs.tiers", b"user.xipfs.extents", b"user.none"):
            self.ask(self.adapter.getxattr(ino, name, None))
        self.ask(self.adapter.readlink(ino, None))
        fh = self.ask(self.adapter.open(ino, os.O_RDONLY, SimpleNamespace(pid=1, uid=0)))
        if fh is None:
            return
        assert stat.S_ISREG(mode) or not self.mount.sb.find_inode(ino).mapping.i_mmap
        size_bytes = self.mount.sb.find_inode(ino).disk.size_bytes
        for offset in (0, 3 * PAGE_SIZE, max(size_bytes - 5000, 0), 1 << 62):
            for wanted in (1, PAGE_SIZE, 5 * PAGE_SIZE):
                data = self.ask(self.adapter.read(fh.fh, offset, wanted))
                if data is not None and stat.S_ISREG(mode):
                    assert len(data) == max(min(wanted, size_bytes - offset), 0)
            self.mount.run_epoch()
        self.ask(self.adapter.release(fh.fh))

    def check(self) -> None:
        self.mount.mm.check_invariants()
        self.mount.machine.mem_map.check_invariants()


def serve(image: HandmadeImage, place: Path) -> None:
    with suppress(FormatError, DeviceError), Bugs() as bugs:
        mount = Mount.open(image.write(place / "nvram.img"), OPTIONS)
        try:
            Kernel(mount).explore()
        finally:
            mount.close()
        assert bugs.found == []


@given(st.lists(resealed(), min_size=1, max_size=3))
def test_requests_on_resealed_images(place: Path, damage: Any):
    image = make_sample().image
    apply(image, damage)
    serve(image, place)


@given(st.lists(overwrites(), min_size=1, max_size=6))
def test_requests_on_overwritten_images(place: Path, damage: Any):
    image = make_sample().image
    end = len(image.data)
    for offset, data in damage:
        image.data[offset : offset + len(data)] = data
    del image.data[end:]
    serve(image, place)


def test_the_sample_is_served_whole(place: Path):
    """Undamaged, the exploration meets everything: so the tests above look where it matters."""
    sample = make_sample()
    path = sample.image.write(place / "whole.img")
    mount = Mount.open(path, OPTIONS)
    with Bugs() as bugs:
        Kernel(mount).explore()
    vmstat = mount.machine.vmstat
    assert vmstat.pgfault >= 20
    assert vmstat.pgpromote_success >= 3
    assert vmstat.pgmigrate_fail == 0
    assert mount.operations.nr_handles == 0
    mount.close()
    assert bugs.found == []
