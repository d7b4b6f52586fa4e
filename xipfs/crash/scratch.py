"""ScratchImage: one region in memory on which crash states are made, judged and taken back.

    scratch = ScratchImage(image)
    scratch.rebase(medium.durable, changed_lines)     a fence made more durable
    scratch.put(changes)                              a state: what is durable, and these lines
    scratch.key()                                     two states of equal bytes have equal keys
    ...                                               recovery and all that follows store, too
    scratch.reset()                                   all pages that anybody stored to, as before

    with scratch.recording() as events: ...           what recovery does, as a log

Only pages that were stored to are looked at, so a state costs what it changes, not what it is.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from xipfs.crash.persistence import LineNumber
from xipfs.crash.recorder import Event, Recorder
from xipfs.phys.nvram import CACHE_LINE_SIZE_BYTES, NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["ScratchImage"]

_LINE_SHIFT = CACHE_LINE_SIZE_BYTES.bit_length() - 1


class ScratchImage:
    """A region with the bytes of *image*. nvram: what to work on; `close` it here only."""

    __slots__ = ("_base", "_digests", "_key", "_touched", "nvram")

    def __init__(self, image: bytes | bytearray) -> None:
        self._base = bytearray(image)
        self._touched: set[int] = set()
        self.nvram = NvramDevice.scratch(len(image))
        self.nvram.store_bytes(0, self._base)
        self.nvram.observer = self
        view = memoryview(self._base)
        self._digests = [
            _digest(page, view[page << PAGE_SHIFT : (page + 1) << PAGE_SHIFT])
            for page in range(len(image) >> PAGE_SHIFT)
        ]
        self._key = 0
        for digest in self._digests:
            self._key ^= digest

    def rebase(self, image: bytearray, lines: Iterable[LineNumber]) -> None:
        """Take *image*, which differs from that before in *lines* only, as what `reset` gives."""
        self.reset()
        base = memoryview(self._base)
        for page in {line >> (PAGE_SHIFT - _LINE_SHIFT) for line in lines}:
            span = slice(page << PAGE_SHIFT, (page + 1) << PAGE_SHIFT)
            base[span] = image[span]
            self.nvram.store_bytes(span.start, base[span])
            digest = _digest(page, base[span])
            self._key ^= self._digests[page] ^ digest
            self._digests[page] = digest
        self._touched.clear()

    def put(self, changes: Iterable[tuple[int, bytes]]) -> None:
        """Store *changes*: (byte offset, bytes)."""
        for offset, data in changes:
            self.nvram.store_bytes(offset, data)

    def key(self, but: Collection[int] = ()) -> int:
        """Return what stands for the bytes of the region; pages *but* count as they were."""
        key = self._key
        view = self.nvram.view
        for page in self._touched:
            if page not in but:
                key ^= self._digests[page] ^ _digest(page, view(page << PAGE_SHIFT, PAGE_SIZE))
        return key

    def reset(self) -> None:
        """Take back what was stored since `rebase`."""
        base = memoryview(self._base)
        touched, self._touched = self._touched, set()
        for page in touched:
            start = page << PAGE_SHIFT
            self.nvram.store_bytes(start, base[start : start + PAGE_SIZE])
        self._touched.clear()

    @contextmanager
    def recording(self) -> Iterator[list[Event]]:
        """Log what reaches the region meanwhile."""
        recorder = Recorder(self.nvram, then=self)
        try:
            yield recorder.events
        finally:
            self.nvram.observer = self

    def on_store(self, offset: int, size_bytes: int) -> None:
        """See `NvramObserver`."""
        first = offset >> PAGE_SHIFT
        last = (offset + size_bytes - 1) >> PAGE_SHIFT
        if first == last:
            self._touched.add(first)
        else:
            self._touched.update(range(first, last + 1))

    def on_flush(self, offset: int, size_bytes: int) -> None:
        """See `NvramObserver`: a scratch image does not outlive the process."""

    def on_fence(self) -> None:
        """See `NvramObserver`."""

    def close(self) -> None:
        """Give the memory back."""
        self.nvram.observer = None
        self.nvram.close()


def _digest(page: int, data: memoryview) -> int:
    digest = hashlib.blake2b(data, digest_size=8, salt=page.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little")
