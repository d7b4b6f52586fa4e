"""Recorder: the log of all that reached a device, with marks where operations begin and end.

recorder = Recorder(nvram)                 from now on everything is logged
recorder.mark(MarkKind.BEGIN, 0)
...                                        Store, Store, Flush, Fence, ..
recorder.mark(MarkKind.END, 0)
recorder.events
"""

from enum import Enum
from typing import NamedTuple, TypeAlias

from xipfs.phys.nvram import NvramDevice, NvramObserver

__all__ = ["Event", "Fence", "Flush", "Mark", "MarkKind", "Recorder", "Store"]


class Store(NamedTuple):
    """Bytes that a program stored at byte *offset* of the image; only aligned words are atomic."""

    offset: int
    data: bytes


class Flush(NamedTuple):
    """The lines that hold these bytes were sent to the medium."""

    offset: int
    size_bytes: int


class Fence(NamedTuple):
    """What was flushed before is durable."""


class MarkKind(Enum):
    """BEGIN: an operation was called. END: it returned, so what it promised holds from here on."""

    BEGIN = "begin"
    END = "end"


class Mark(NamedTuple):
    """Operation *number* of the workload begins or ends here."""

    kind: MarkKind
    number: int


Event: TypeAlias = Store | Flush | Fence | Mark


class Recorder:
    """Observes *nvram* (`NvramDevice.observer`) and logs to `events`, in order.

    then: another observer, which is told of stores too.
    """

    __slots__ = ("_load", "_then", "events")

    def __init__(self, nvram: NvramDevice, then: NvramObserver | None = None) -> None:
        self.events: list[Event] = []
        self._load = nvram.load
        self._then = then
        nvram.observer = self

    def on_store(self, offset: int, size_bytes: int) -> None:
        """See `NvramObserver`."""
        self.events.append(Store(offset, self._load(offset, size_bytes)))
        if self._then is not None:
            self._then.on_store(offset, size_bytes)

    def on_flush(self, offset: int, size_bytes: int) -> None:
        """See `NvramObserver`."""
        self.events.append(Flush(offset, size_bytes))

    def on_fence(self) -> None:
        """See `NvramObserver`."""
        self.events.append(Fence())

    def mark(self, kind: MarkKind, number: int) -> None:
        """Note that operation *number* begins or ends."""
        self.events.append(Mark(kind, number))
