"""Write-back that goes file by file, while files come and go."""

from pathlib import Path

from xipfs.fs.fsck import fsck
from xipfs.fs.mkfs import mkfs
from xipfs.fs.namespace import Owner
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import MountOptions
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SIZE, Ino

ROOT = Owner(0, 0)


def make(mount: Mount, name: bytes) -> Ino:
    """A file whose mtime is not in the image yet."""
    fh, inode = mount.operations.create(INO_ROOT, name, 0o644, 0, ROOT)
    mount.operations.write(fh, 0, b"x" * PAGE_SIZE)
    mount.operations.write(fh, 0, b"y")
    mount.operations.release(fh)
    assert inode.times_dirty
    return inode.ino


def test_a_file_that_goes_meanwhile_is_left_alone(tmp_path: Path):
    """Its record was written once more: over the one of the file that has its number now."""
    image = tmp_path / "nvram.img"
    mkfs(image, None, now_ns=0, size_bytes=4 << 20)
    mount = Mount.open(image, MountOptions(ram_bytes=0))
    make(mount, b"a")
    gone = make(mount, b"b")
    steps = mount.write_back()
    next(steps)
    mount.operations.unlink(INO_ROOT, b"b")
    mount.operations.forget(gone, 1)
    fh, taken = mount.operations.create(INO_ROOT, b"c", 0o600, 0, ROOT)
    assert taken.ino == gone
    mount.operations.release(fh)
    assert list(steps) == []
    mount.close()
    report = fsck(image)
    assert not report.findings
    mount = Mount.open(image, MountOptions(ro=True))
    assert mount.operations.lookup(INO_ROOT, b"c").disk.mode == 0o100600
    mount.close()
