"""Damaged images that are written to: an error in one line is fine, anything else is a bug.

Fields are changed in records that are sealed again, as by an attacker (`test_image`), and then the
image is opened for writing, and files are made, written, cut and removed. No walk is without end,
nothing is stored where the superblocks are, and what was refused was refused whole.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.test_image import FEWER, apply, only_xipfs_errors, overwrites, resealed
from tests.kit.sample import make_sample
from xipfs.fs.file import sync_all, truncate_file, write_file
from xipfs.fs.inode import Inode
from xipfs.fs.namei import path_lookup
from xipfs.fs.namespace import Owner, mkdir, mknod, unlink
from xipfs.fs.superblock import SuperBlock
from xipfs.mm.machine import Machine
from xipfs.ondisk.inode import INO_ROOT
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SIZE

NR_STORES_MAX = 20_000
OWNER = Owner(0, 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module", autouse=True)
def bounded():
    """Let a writer store so much and no more."""
    store_bytes = NvramDevice.store_bytes

    def counted(self: NvramDevice, offset: int, data: bytes) -> None:
        stores[0] += 1
        assert stores[0] <= NR_STORES_MAX, "a writer does not come to an end"
        store_bytes(self, offset, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NvramDevice, "store_bytes", counted)
        yield


stores = [0]


def write_everything(path: Path) -> None:
    stores[0] = 0
    sb = SuperBlock.open(path, writable=True, clock=lambda: 5)
    superblock = sb.nvram.load(0, PAGE_SIZE)
    machine = Machine(sb.nvram, nr_tier_frames=4)
    try:
        root = sb.iget(INO_ROOT)
        for name in (b"tree", b"sparse", b"short", b"etc/hosts", b"long/hard"):
            inode = only_xipfs_errors(path_lookup, sb, name)
            if isinstance(inode, Inode) and inode.is_regular:
                only_xipfs_errors(write_file, sb, machine, inode, 100, b"w" * 9000, 6)
                only_xipfs_errors(write_file, sb, machine, inode, 70000, b"w" * 9000, 6)
                only_xipfs_errors(truncate_file, sb, machine, inode, 5000, 7)
        for i in range(20):
            only_xipfs_errors(mknod, sb, root, b"new %d" % i, 0o100644, OWNER, 8)
        only_xipfs_errors(mkdir, sb, root, b"newdir", 0o755, OWNER, 8)
        for name in (b"new 3", b"tree", b"sparse", b"short"):
            only_xipfs_errors(unlink, sb, root, name, 9)
        only_xipfs_errors(sync_all, sb, machine)
        assert sb.nvram.load(0, PAGE_SIZE) == superblock
    finally:
        machine.close()
        sb.close()


@given(st.lists(resealed(), min_size=1, max_size=3))
def test_resealed_images_are_written_to(place, damage):
    image = make_sample().image
    apply(image, damage)
    only_xipfs_errors(write_everything, image.write(place / "nvram.img"))


@FEWER
@given(st.lists(overwrites(), min_size=1, max_size=4))
def test_overwritten_images_are_written_to(place, damage):
    image = make_sample().image
    end = len(image.data)
    for offset, data in damage:
        image.data[offset : offset + len(data)] = data
    del image.data[end:]
    only_xipfs_errors(write_everything, image.write(place / "nvram.img"))
