"""What a damage to an image leaves alone, and whether a repair did, too.

    before = files(path)
    inos = untouched(image, damaged_bytes)       inodes that hold no byte that differs
    ...                                          repair
    assert_kept(before, files(path), inos)

Inodes are compared by their numbers: a repair may give them other names, in /lost+found.
"""

import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.kit.image import HandmadeImage
from xipfs.fs.contents import iter_contents
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.extent import EXTENT_DTYPE, EXTENT_NODE
from xipfs.ondisk.inode import INO_ROOT, INODE
from xipfs.units import PAGE_SHIFT

__all__ = ["File", "assert_kept", "files", "untouched"]


class File(NamedTuple):
    """All of an inode that a user can see, but its names and times."""

    mode: int
    uid: int
    gid: int
    rdev: int
    data: bytes | None
    xattrs: dict[bytes, bytes]


def files(path: Path) -> dict[int, File]:
    """Return all that is reached from the root, by inode. Directories have no data."""
    found: dict[int, File] = {}
    sb = SuperBlock.open(path)
    try:
        waiting = [INO_ROOT]
        while waiting:
            ino = waiting.pop()
            if ino in found:
                continue
            inode = sb.iget(ino)
            disk = inode.disk
            data = None
            if inode.is_dir:
                entries = sb.dir_reader.iter_entries(disk, inode.extents)
                waiting += [entry.ino for entry in entries]
            elif stat.S_ISLNK(disk.mode):
                data = sb.read_all(inode, 4096)
            elif inode.is_regular:
                data = b"".join(iter_contents(sb, inode))
            xattrs = sb.read_xattrs(inode)
            found[ino] = File(disk.mode, disk.uid, disk.gid, disk.rdev, data, xattrs)
    finally:
        sb.close()
    return found


def owners(image: HandmadeImage) -> dict[int, int]:
    """Return who holds which page: {block: ino}."""
    held: dict[int, int] = {}
    for ino in (INO_ROOT, *range(16, image.state.ino_end)):
        inode = image.inode(ino)
        blocks = set(range(inode.xattr_block, inode.xattr_block + inode.nr_xattr_pages))
        waiting = [(inode.extents, inode.extent_depth)]
        while waiting:
            entries, depth = waiting.pop()
            for block, nr_pages in entries[["block", "nr_pages"]].tolist():
                blocks.update(range(block, block + max(nr_pages, 1)))
                if depth:
                    nr_entries = int(
                        np.frombuffer(image.page(block), EXTENT_NODE.dtype, 1)["nr_entries"][0]
                    )
                    below = np.frombuffer(
                        image.page(block), EXTENT_DTYPE, nr_entries, EXTENT_NODE.size_bytes
                    )
                    waiting.append((below, depth - 1))
        held |= dict.fromkeys(blocks, int(ino))
    return held


def untouched(before: HandmadeImage, after: bytes) -> set[int]:
    """Return the inodes none of whose bytes differ in *after*."""
    old = bytes(before.data)
    differ = np.flatnonzero(
        np.frombuffer(old, np.uint8) != np.frombuffer(after[: len(old)], np.uint8)
    )
    held = owners(before)
    touched = {held.get(block) for block in set((differ >> PAGE_SHIFT).tolist())}
    start = before.inode_file_block() << PAGE_SHIFT
    inos = set(((differ - start) // INODE.size_bytes).tolist())
    return {INO_ROOT, *range(16, before.state.ino_end)} - touched - inos


def assert_kept(before: dict[int, File], after: dict[int, File], inos: set[int]) -> None:
    for ino in sorted(inos & before.keys()):
        assert after.get(ino) == before[ino], f"inode {ino}"
