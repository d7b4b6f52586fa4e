"""Overlay: an image with changes laid over it in memory, so that a repair can be checked first.

    overlay = Overlay(nvram)
    overlay.store(offset, data)         nothing reaches the image
    overlay.load(offset, size_bytes)    but whoever reads through the overlay sees it
    overlay.pages                       {block: bytes of the page}, for fs.fsck.writeout

All checks read through `ReadableImage`, which is an NvramDevice or this.
"""

from pathlib import Path
from typing import Protocol

from xipfs.ondisk.record import Buffer
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["Overlay", "ReadableImage"]


class ReadableImage(Protocol):
    """What checks need of an image."""

    @property
    def path(self) -> Path:
        """Where it is, for messages."""

    @property
    def size_bytes(self) -> int:
        """Bytes of its file."""

    def load(self, offset: int, size_bytes: int) -> bytes:
        """Return a copy of [offset, offset + size_bytes). Raises: DeviceError."""


class Overlay:
    """*image*, and the pages of it that were changed. pages: block -> its new bytes, whole."""

    __slots__ = ("_image", "pages", "path", "size_bytes")

    def __init__(self, image: ReadableImage) -> None:
        self._image = image
        self.path = image.path
        self.size_bytes = image.size_bytes
        self.pages: dict[int, bytearray] = {}

    def load(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the image as they will be. Raises: DeviceError."""
        data = self._image.load(offset, size_bytes)
        first, end = offset >> PAGE_SHIFT, -(-(offset + size_bytes) >> PAGE_SHIFT)
        changed = [block for block in range(first, end) if block in self.pages]
        if not changed:
            return data
        patched = bytearray(data)
        for block in changed:
            start = max(offset, block << PAGE_SHIFT)
            stop = min(offset + size_bytes, (block + 1) << PAGE_SHIFT)
            page_start = start - (block << PAGE_SHIFT)
            patched[start - offset : stop - offset] = self.pages[block][
                page_start : page_start + stop - start
            ]
        return bytes(patched)

    def store(self, offset: int, data: Buffer) -> None:
        """Lay *data* over the bytes from *offset* on. Raises: DeviceError."""
        view = memoryview(data)
        while view:
            block, start = offset >> PAGE_SHIFT, offset & (PAGE_SIZE - 1)
            size_bytes = min(len(view), PAGE_SIZE - start)
            page = self.pages.get(block)
            if page is None:
                page = bytearray(self._image.load(block << PAGE_SHIFT, PAGE_SIZE))
                self.pages[block] = page
            page[start : start + size_bytes] = view[:size_bytes]
            offset += size_bytes
            view = view[size_bytes:]
