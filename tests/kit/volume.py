"""A small image opened for writing, that is checked by fsck whenever a test wants it.

    with Volume(tmp_path / "nvram.img") as volume:
        mknod(volume.sb, volume.root, b"a", 0o100644, OWNER, volume.tick())
        volume.check()                  unmounted, checked, mounted again
        volume.tree()                   what a walk finds

Leaving the `with` block checks once more.
"""

import stat
from pathlib import Path
from types import TracebackType

from xipfs.fs.contents import list_directory
from xipfs.fs.fsck import fsck
from xipfs.fs.inode import Inode
from xipfs.fs.mkfs import mkfs
from xipfs.fs.namei import path_lookup
from xipfs.fs.namespace import Owner
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import INO_ROOT

__all__ = ["OWNER", "Volume", "read_tree"]

OWNER = Owner(1000, 100)
START_NS = 1_700_000_000_000_000_000


def read_tree(sb: SuperBlock, directory: Inode | None = None) -> dict[bytes, object]:
    """Return {name: (ino, nlink)} of files and {name: {..}} of directories."""
    directory = directory or sb.iget(INO_ROOT)
    tree: dict[bytes, object] = {}
    for entry in list_directory(sb, directory):
        inode = sb.iget(entry.ino)
        assert entry.d_type == inode.disk.mode >> 12
        if stat.S_ISDIR(inode.disk.mode):
            tree[entry.name] = read_tree(sb, inode)
        else:
            tree[entry.name] = (int(inode.ino), inode.disk.nlink)
    return tree


class Volume:
    """An image made by mkfs without any files, writable. sb: open until the `with` block ends."""

    def __init__(self, path: Path, size_bytes: int = 1 << 20) -> None:
        mkfs(path, None, now_ns=START_NS, size_bytes=size_bytes, reproducible=True)
        self._start(path)

    @classmethod
    def of(cls, path: Path) -> "Volume":
        """Return one of an image that is there."""
        volume = cls.__new__(cls)
        volume._start(path)
        return volume

    def _start(self, path: Path) -> None:
        self.path = path
        self.now_ns = START_NS
        self._open()

    def _open(self) -> None:
        self.sb = SuperBlock.open(self.path, writable=True, clock=self.tick)

    def tick(self) -> int:
        """Return the time, later by a microsecond each time."""
        self.now_ns += 1000
        return self.now_ns

    @property
    def root(self) -> Inode:
        return self.sb.iget(INO_ROOT)

    def find(self, path: bytes) -> Inode:
        return path_lookup(self.sb, path, follow=False)

    def tree(self) -> dict[bytes, object]:
        return read_tree(self.sb)

    def check(self) -> None:
        """Unmount, let fsck look, mount again; what is in memory agrees with the image."""
        for inode in list(self.sb._inodes.values()):
            assert inode.disk == self.sb.load_inode(inode.ino)
        self.sb.close()
        report = fsck(self.path)
        assert not report.findings
        assert not report.unchecked
        self._open()

    def __enter__(self) -> "Volume":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.check()
        self.sb.close()
