"""Persistence: what of an image is durable, and what is in flight. The model of docs/CRASH.md.

    medium = Persistence(image)
    medium.apply(event)              a Store, Flush or Fence of the log
    medium.durable                   what a crash now cannot take away
    medium.in_flight                 line -> Line: what it can take or leave

Memory is written back a line of 64 bytes at a time. Between two fences each line that was stored to
goes through values, one a store; any of them may be what a crash leaves, whatever other lines have:

    durable --store--> values[0] --store--> values[1] --store--> values[2]
                                    ^ flushed: durable, or newer, after the next fence

and since only words of 8 bytes are atomic, a store of more than one may be there in part (a tear).
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from xipfs.crash.recorder import Event, Fence, Flush, Store
from xipfs.phys.nvram import CACHE_LINE_SIZE_BYTES

__all__ = ["WORD_SIZE_BYTES", "Line", "LineNumber", "Persistence", "tear"]

WORD_SIZE_BYTES = 8
_LINE = CACHE_LINE_SIZE_BYTES

LineNumber: TypeAlias = int
"""Byte offset in the image / CACHE_LINE_SIZE_BYTES."""


@dataclass(slots=True)
class Line:
    """A line in flight. values: its 64 bytes after each store, the newest last.

    nr_flushed: how many of the values were there when it was last flushed.
    """

    values: list[bytes] = field(default_factory=list)
    nr_flushed: int = 0


class Persistence:
    """An image of *image*'s bytes, all durable, from which events are counted.

    order: (line, index in its values) of all that is in flight, in the order of the stores.
    """

    __slots__ = ("durable", "in_flight", "order")

    def __init__(self, image: bytes | bytearray) -> None:
        self.durable = bytearray(image)
        self.in_flight: dict[LineNumber, Line] = {}
        self.order: list[tuple[LineNumber, int]] = []

    def apply(self, event: Event) -> list[LineNumber]:
        """Let *event* happen; marks change nothing.

        Returns: the lines whose durable bytes changed.
        """
        if isinstance(event, Store):
            self._store(event)
        elif isinstance(event, Flush):
            self._flush(event)
        elif isinstance(event, Fence):
            return self._fence()
        return []

    def durable_line(self, number: LineNumber) -> bytes:
        """Return the 64 bytes of a line that are durable."""
        return bytes(self.durable[number * _LINE : (number + 1) * _LINE])

    def newest(self) -> bytearray:
        """Return the image as programs see it: with all stores."""
        image = bytearray(self.durable)
        for number, line in self.in_flight.items():
            image[number * _LINE : (number + 1) * _LINE] = line.values[-1]
        return image

    def _store(self, store: Store) -> None:
        offset, data = store
        end = offset + len(data)
        for number in range(offset // _LINE, -(-end // _LINE)):
            start = number * _LINE
            line = self.in_flight.get(number)
            old = line.values[-1] if line else self.durable_line(number)
            low, high = max(offset, start), min(end, start + _LINE)
            new = old[: low - start] + data[low - offset : high - offset] + old[high - start :]
            if new == old:
                continue
            if line is None:
                line = self.in_flight[number] = Line()
            self.order.append((number, len(line.values)))
            line.values.append(new)

    def _flush(self, flush: Flush) -> None:
        offset, size_bytes = flush
        for number in range(offset // _LINE, -(-(offset + size_bytes) // _LINE)):
            line = self.in_flight.get(number)
            if line is not None:
                line.nr_flushed = len(line.values)

    def _fence(self) -> list[LineNumber]:
        changed = {
            number: line.nr_flushed for number, line in self.in_flight.items() if line.nr_flushed
        }
        for number, nr_flushed in changed.items():
            line = self.in_flight[number]
            self.durable[number * _LINE : (number + 1) * _LINE] = line.values[nr_flushed - 1]
            if nr_flushed == len(line.values):
                del self.in_flight[number]
            else:
                line.values = line.values[nr_flushed:]
                line.nr_flushed = 0
        if changed:
            self.order = [
                (number, index - changed.get(number, 0))
                for number, index in self.order
                if index >= changed.get(number, 0)
            ]
        return list(changed)


def tear(old: bytes, new: bytes, mask: int) -> bytes:
    """Return a line of which the words of *mask* (bit i: word i) are *new*, the others *old*."""
    return b"".join(
        (new if mask >> i & 1 else old)[i * WORD_SIZE_BYTES : (i + 1) * WORD_SIZE_BYTES]
        for i in range(_LINE // WORD_SIZE_BYTES)
    )
