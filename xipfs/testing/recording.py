"""What reaches the image of a test's mount: recorded to a file, and stopped by a fault.

A fault is one of

    kill-at-fence=N     SIGKILL to itself at its Nth fence: power is lost there, but for the host
    fail-stores-at=N    from its Nth store on, none works (EIO), as of a medium that has failed
"""

import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from xipfs.crash.recorder import Event, Fence, Flush, Store
from xipfs.errors import InvalidArgumentError
from xipfs.phys.nvram import NvramDevice

__all__ = ["FAULTS", "Watcher", "check_fault", "read_events"]

FAULTS = ("kill-at-fence", "fail-stores-at")

_EVENT = struct.Struct("<cqq")
"""Kind (S, L for a flush of lines, F), offset, size; a store's bytes follow."""


class Watcher:
    """Observes *nvram*: logs to *log*, and kills the process at its fence number *nr_fences*."""

    def __init__(self, nvram: NvramDevice, log: BinaryIO | None, nr_fences: float) -> None:
        self._load = nvram.load
        self._log = log
        self._nr_fences = nr_fences
        nvram.observer = self

    def on_store(self, offset: int, size_bytes: int) -> None:
        """See `NvramObserver`."""
        if self._log is not None:
            self._log.write(_EVENT.pack(b"S", offset, size_bytes) + self._load(offset, size_bytes))

    def on_flush(self, offset: int, size_bytes: int) -> None:
        """See `NvramObserver`."""
        if self._log is not None:
            self._log.write(_EVENT.pack(b"L", offset, size_bytes))

    def on_fence(self) -> None:
        """See `NvramObserver`."""
        if self._log is not None:
            self._log.write(_EVENT.pack(b"F", 0, 0))
        self._nr_fences -= 1
        if self._nr_fences <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def check_fault(text: str) -> tuple[str, int]:
    """Return name and number of a fault. Raises: InvalidArgumentError."""
    name, _, number = text.partition("=")
    if name not in FAULTS or not number.isdecimal() or int(number) < 1:
        raise InvalidArgumentError(f"{text}: no fault: {', '.join(f'{f}=N' for f in FAULTS)}")
    return name, int(number)


def read_events(path: Path) -> Iterator[Event]:
    """Yield what a daemon has recorded; what it was about to write when it died is left out."""
    data = path.read_bytes()
    position = 0
    while position + _EVENT.size <= len(data):
        kind, offset, size_bytes = _EVENT.unpack_from(data, position)
        position += _EVENT.size
        if kind == b"F":
            yield Fence()
        elif kind == b"L":
            yield Flush(offset, size_bytes)
        else:
            stored = data[position : position + size_bytes]
            if len(stored) < size_bytes:
                return
            position += size_bytes
            yield Store(offset, stored)
