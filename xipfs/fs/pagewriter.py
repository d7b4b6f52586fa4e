"""PageWriter: appends pages to a file, many small pieces by one system call.

block = writer.append(data)     data stands on pages of its own from page `block` on
writer.seek(block)              go on there; what is passed over stays a hole
writer.flush()
"""

import os
from collections.abc import Callable

from xipfs.ondisk.record import Buffer
from xipfs.phys.nvram import IOV_MAX
from xipfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Block

__all__ = ["PageWriter"]

_BATCH_SIZE_BYTES = 1 << 20
_ZEROS = memoryview(bytes(PAGE_SIZE))


class PageWriter:
    """Writes to *fd* from page 0 on.

    next_block: the page that the next `append` takes. after_write: called whenever something was
    written, about once in _BATCH_SIZE_BYTES.
    """

    __slots__ = ("_fd", "_waiting", "_waiting_bytes", "after_write", "next_block")

    def __init__(self, fd: int) -> None:
        self.next_block = Block(0)
        self.after_write: Callable[[], None] | None = None
        self._fd = fd
        self._waiting: list[Buffer] = []
        self._waiting_bytes = 0

    def append(self, data: Buffer) -> Block:
        """Put *data* on the next pages, the last one filled up with zeros; return the first.

        *data* must not change until it is written. Raises: OSError.
        """
        block = self.next_block
        nr_pages = (len(data) + PAGE_MASK) >> PAGE_SHIFT
        self.next_block = Block(block + nr_pages)
        self._waiting.append(data)
        padding = (nr_pages << PAGE_SHIFT) - len(data)
        if padding:
            self._waiting.append(_ZEROS[:padding])
        self._waiting_bytes += nr_pages << PAGE_SHIFT
        if self._waiting_bytes >= _BATCH_SIZE_BYTES or len(self._waiting) > IOV_MAX - 2:
            self.flush()
        return block

    def write_at(self, block: Block, data: Buffer) -> None:
        """Put *data* on the pages from *block* on, which were passed by `seek`. Raises: OSError."""
        waiting = [data]
        offset = block << PAGE_SHIFT
        while waiting:
            written = os.pwritev(self._fd, waiting, offset)
            offset += written
            waiting = _behind(waiting, written)

    def seek(self, block: Block) -> None:
        """Go on at page *block*. Raises: OSError."""
        self.flush()
        self.next_block = block

    def flush(self) -> None:
        """Write what waits. Raises: OSError."""
        if not self._waiting:
            return
        offset = (self.next_block << PAGE_SHIFT) - self._waiting_bytes
        waiting = self._waiting
        while waiting:
            written = os.pwritev(self._fd, waiting, offset)
            offset += written
            waiting = _behind(waiting, written)
        self._waiting = []
        self._waiting_bytes = 0
        if self.after_write is not None:
            self.after_write()


def _behind(buffers: list[Buffer], nr_bytes: int) -> list[Buffer]:
    """Return what is left of *buffers* behind their first *nr_bytes*."""
    for i, buffer in enumerate(buffers):
        if nr_bytes < len(buffer):
            return [memoryview(buffer)[nr_bytes:], *buffers[i + 1 :]]
        nr_bytes -= len(buffer)
    return []
