"""What a crash at any moment leaves of an image: every store recorded, every state made again.

    with StoreLog(nvram) as log:
        ...                                 stores, flushes and fences of the product
    for image in log.states():              killed after the first store, the second, ...
        recovered(image, path)              opened for writing, closed, sound by fsck
    for image in log.torn_states(seed, 50):
        ...                                 power lost: lines without a fence may be old or new

A killed daemon leaves all of its stores up to some point. A loss of power leaves, of each line that
was stored to since it was last fenced, either content.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from xipfs.fs.fsck import fsck
from xipfs.fs.superblock import SuperBlock
from xipfs.phys.nvram import CACHE_LINE_SIZE_BYTES, NvramDevice

__all__ = ["StoreLog", "recovered"]

Event = tuple[str, int, bytes]
"""("store", offset, bytes), ("flush", offset, that many bytes) or ("fence", 0, b"")."""


class StoreLog:
    """Records what reaches *nvram* within the `with` block."""

    def __init__(self, nvram: NvramDevice) -> None:
        self.nvram = nvram
        self.before = nvram.load(0, nvram.size_bytes)
        self.events: list[Event] = []

    def __enter__(self) -> "StoreLog":
        self.nvram.observer = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.nvram.observer = None

    def on_store(self, offset: int, size_bytes: int) -> None:
        self.events.append(("store", offset, self.nvram.load(offset, size_bytes)))

    def on_flush(self, offset: int, size_bytes: int) -> None:
        self.events.append(("flush", offset, bytes(size_bytes)))

    def on_fence(self) -> None:
        self.events.append(("fence", 0, b""))

    def states(self) -> Iterator[bytes]:
        """Yield the image before the first store, after it, after the second, and so on."""
        image = bytearray(self.before)
        yield bytes(image)
        for kind, offset, data in self.events:
            if kind == "store":
                image[offset : offset + len(data)] = data
                yield bytes(image)

    def torn_states(self, seed: int, nr_states: int) -> Iterator[bytes]:
        """Yield images that a loss of power may leave, at moments by chance."""
        rng = random.Random(seed)
        for _ in range(nr_states):
            yield self._torn_state(rng, rng.randrange(len(self.events) + 1))

    def _torn_state(self, rng: random.Random, nr_events: int) -> bytes:
        image = bytearray(self.before)
        durable: dict[int, bytes] = {}  # of lines that are not: what they surely hold
        flushed: dict[int, bytes] = {}
        for kind, offset, data in self.events[:nr_events]:
            if kind == "fence":
                for line, content in flushed.items():
                    if image[line : line + CACHE_LINE_SIZE_BYTES] == content:
                        durable.pop(line, None)
                    else:
                        durable[line] = content
                flushed.clear()
                continue
            first = offset - offset % CACHE_LINE_SIZE_BYTES
            for line in range(first, offset + len(data), CACHE_LINE_SIZE_BYTES):
                content = bytes(image[line : line + CACHE_LINE_SIZE_BYTES])
                if kind == "store":
                    durable.setdefault(line, content)
                else:
                    flushed[line] = content
            if kind == "store":
                image[offset : offset + len(data)] = data
        for line, content in durable.items():
            if rng.random() < 0.5:
                image[line : line + CACHE_LINE_SIZE_BYTES] = content
        return bytes(image)


def recovered(image: bytes, path: Path) -> bytes:
    """Let a mount that may write recover *image*; return what it left, which fsck finds sound."""
    path.write_bytes(image)
    SuperBlock.open(path, writable=True, clock=lambda: 99).close()
    report = fsck(path)
    assert not report.findings, "\n".join(map(str, report.findings))
    assert not report.unchecked
    return path.read_bytes()
