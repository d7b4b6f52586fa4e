"""InodeTable: the inode file in the making.

    ino = table.new_ino()
    table.put(inode)
    table[ino]["nlink"] += 1            in place
    for records in table.chunks(): ...  to seal and write

256 bytes an inode, and nothing else: what mkfs keeps in memory for each file beside its name.
"""

import stat
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import SourceError
from xipfs.ondisk.inode import INO_FIRST, INO_MAX, INODE, INODES_PER_PAGE, DiskInode
from xipfs.units import Ino

__all__ = ["BLANK_INODE", "GENERATION_FIRST", "InodeTable"]

GENERATION_FIRST = 1
BLANK_INODE = DiskInode._make([0] * len(DiskInode._fields))._replace(payload=b"")


class InodeTable:
    """The records of the inode file, unsealed, in chunks so that growing copies nothing.

    ino_end: one more than the highest number given out. nr_inodes: in use.
    """

    _NR_CHUNK_INODES = 4096

    def __init__(self) -> None:
        self.ino_end = INO_FIRST
        self.nr_inodes = 0
        self._chunks = [self._new_chunk()]

    def new_ino(self) -> Ino:
        """Return the next number. Raises: SourceError when there is none."""
        ino = self.ino_end
        if ino > INO_MAX:
            raise SourceError(f"more than {INO_MAX} files")
        if ino == len(self._chunks) * self._NR_CHUNK_INODES:
            self._chunks.append(self._new_chunk())
        self.ino_end = Ino(ino + 1)
        return ino

    def put(self, inode: DiskInode) -> None:
        """Store a new inode, in use."""
        self._store(inode)
        self.nr_inodes += 1

    def free(self, ino: Ino, next_ino: Ino) -> None:
        """Make a free inode of one in use, in the free list before *next_ino*."""
        self._store(BLANK_INODE._replace(ino=ino, generation=GENERATION_FIRST, next_ino=next_ino))
        self.nr_inodes -= 1

    def _store(self, inode: DiskInode) -> None:
        chunk, row = divmod(inode.ino, self._NR_CHUNK_INODES)
        self._chunks[chunk][row] = (INODE.magic, 0, *inode)

    def __getitem__(self, ino: Ino) -> np.void:
        """Return the record of *ino*, to be changed in place."""
        chunk, row = divmod(ino, self._NR_CHUNK_INODES)
        record: np.void = self._chunks[chunk][row]
        return record

    def d_type(self, ino: Ino) -> int:
        """Return the kind of *ino* as a directory entry has it."""
        return int(self[ino]["mode"]) >> 12

    def count_kinds(self) -> dict[int, int]:
        """Return how many inodes are in use, by S_IFMT of their mode."""
        kinds: Counter[int] = Counter()
        for records in self.chunks():
            modes = records["mode"][records["mode"] != 0]
            kinds.update(stat.S_IFMT(mode) for mode in modes.tolist())
        return dict(kinds)

    def chunks(self) -> Iterator[NDArray[np.void]]:
        """Yield all records, dtype INODE.dtype, whole pages of them; views."""
        nr_inodes = -(-self.ino_end // INODES_PER_PAGE) * INODES_PER_PAGE
        for start, chunk in zip(
            range(0, nr_inodes, self._NR_CHUNK_INODES), self._chunks, strict=True
        ):
            yield chunk[: nr_inodes - start]

    def _new_chunk(self) -> NDArray[np.void]:
        return np.zeros(self._NR_CHUNK_INODES, INODE.dtype)
