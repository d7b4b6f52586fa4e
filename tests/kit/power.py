"""What a loss of power could take: stores that no fence has made durable.

    power = PowerLoss(nvram)
    ...                             stores, flushes and fences of the product
    power.unsafe_lines()            numbers of cache lines that may hold an old content

A line is safe when it was flushed after its last store, and a fence came after that.
"""

from xipfs.phys.nvram import CACHE_LINE_SIZE_BYTES, NvramDevice

__all__ = ["PowerLoss"]


class PowerLoss:
    """Watches *nvram* from now on, as its observer."""

    def __init__(self, nvram: NvramDevice) -> None:
        self._stored: set[int] = set()
        self._flushed: set[int] = set()
        nvram.observer = self

    def unsafe_lines(self) -> set[int]:
        return self._stored | self._flushed

    def on_store(self, offset: int, size_bytes: int) -> None:
        lines = _lines(offset, size_bytes)
        self._flushed -= lines
        self._stored |= lines

    def on_flush(self, offset: int, size_bytes: int) -> None:
        lines = _lines(offset, size_bytes) & self._stored
        self._stored -= lines
        self._flushed |= lines

    def on_fence(self) -> None:
        self._flushed.clear()


def _lines(offset: int, size_bytes: int) -> set[int]:
    first = offset // CACHE_LINE_SIZE_BYTES
    return set(range(first, -(-(offset + size_bytes) // CACHE_LINE_SIZE_BYTES)))
