"""FilemapEvents: what the kernel's page cache answers without us, from its own tracepoints.

    events = FilemapEvents.open("0:57")         the device of the mount; TracingError tells why not
    events.watch(0.04)                          let reads be traced for so long; waits
    told = events.take()
    events.close()

Source: include/trace/events/filemap.h, Linux 6.12 and later, as <tracefs>/events/filemap shows it:

    mm_filemap_get_pages   read(2) asks for pages [index, last_index], there or not: in `watch` only
    mm_filemap_map_pages   a fault maps those of [index, last_index] that are there: always
    mm_filemap_fault       a fault on a page that is not: always

A traced read costs a program 0.4 us, of 1.4 that it takes, so reads are traced a small part of the
time: a sample of all, each as likely as the other. Faults are few, and all of them are told.

The events go to a tracing instance of our own, filtered by device, and are read as the ring buffer
has them: pages of a head (u64 time, u64 length) and events (u32 type and time delta, then the
fields, at the offsets that the event's `format` file gives).
"""

import contextlib
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import TracingError
from xipfs.policy.contract import PGOFF_BITS, PageIds, no_pages
from xipfs.units import PAGE_SIZE

__all__ = ["NOTHING_TOLD", "TRACEFS", "EventFormat", "FilemapEvents", "Told", "decode_ring_page"]

TRACEFS = Path("/sys/kernel/tracing")

_INSTANCE_PREFIX = "xipfs-"
_BUFFER_KIB = 512
"""Of each CPU: 11,000 reads. What does not fit is not told."""

_EVENTS = ("mm_filemap_get_pages", "mm_filemap_fault", "mm_filemap_map_pages")
_GET_PAGES, *_ALWAYS = _EVENTS

_NR_READ_PAGES_MAX = 512
"""Of an event that names more pages, the first: 2 MiB, more than one read gets at a time."""

_HEAD_SIZE_BYTES = 16
_LENGTH_MASK = (1 << 27) - 1  # the bits above tell of lost events
_TYPE_MASK, _ID_MASK = (1 << 5) - 1, (1 << 16) - 1
_NR_DATA_WORDS_MAX, _PADDING = 28, 29


class Told(NamedTuple):
    """What the kernel told, as page ids; in their order, but by CPU.

    reads: answered from its cache, or not. faults: were not there when they were touched.
    mapped: were there, and were mapped since a neighbour was touched.
    """

    reads: PageIds
    faults: PageIds
    mapped: PageIds


NOTHING_TOLD = Told(no_pages(), no_pages(), no_pages())


class EventFormat(NamedTuple):
    """An event's number and the byte offsets of its fields; without a last one, the first."""

    id: int
    i_ino: int
    first_index: int
    last_index: int


class FilemapEvents:
    """The events of one mount. Make one with `open`."""

    __slots__ = ("_fds", "_formats", "_instance")

    def __init__(self, instance: Path) -> None:
        self._instance = instance
        self._formats = [_read_format(instance, name) for name in _EVENTS]
        self._fds = [
            os.open(cpu / "trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            for cpu in sorted((instance / "per_cpu").iterdir())
        ]

    @classmethod
    def open(cls, device: str, tracefs: Path = TRACEFS) -> "FilemapEvents":
        """Make an instance that tells of the filesystem on *device* ("major:minor").

        Raises: TracingError, which says what is missing.
        """
        try:
            has_events = bool(os.listdir(tracefs))
            has_event = (tracefs / "events" / "filemap" / _GET_PAGES).exists()
        except OSError as exc:  # Path.exists, too, raises what root alone may see
            raise TracingError(f"{tracefs}: {exc.strerror}") from None
        if not has_events:
            raise TracingError(f"no tracefs: mount -t tracefs nodev {tracefs}")
        if not has_event:
            raise TracingError(f"this kernel has no event {_GET_PAGES}: Linux 6.12 has")
        instance = tracefs / "instances" / f"{_INSTANCE_PREFIX}{os.getpid()}"
        major, minor = map(int, device.split(":"))
        try:
            _remove_abandoned(instance.parent)
            instance.mkdir()
            (instance / "buffer_size_kb").write_text(f"{_BUFFER_KIB}\n")
            (instance / "options" / "overwrite").write_text("0\n")
            for name in _EVENTS:
                event = instance / "events" / "filemap" / name
                (event / "filter").write_text(f"s_dev == {major << 20 | minor}\n")
            for name in _ALWAYS:
                _enable(instance, name, on=True)
            return cls(instance)
        except (OSError, ValueError) as exc:
            with contextlib.suppress(OSError):
                instance.rmdir()
            raise TracingError(f"{instance}: {exc}") from None

    def watch(self, duration_s: float) -> None:
        """Have reads told for so long. Waits: for the kernel, some 10 ms more."""
        _enable(self._instance, _GET_PAGES, on=True)
        try:
            time.sleep(duration_s)
        finally:
            _enable(self._instance, _GET_PAGES, on=False)

    def take(self) -> Told:
        """Return what was told since the last time."""
        told: list[list[PageIds]] = [[no_pages()] for _ in self._formats]
        for fd in self._fds:
            while page := _read_page(fd):
                for pages, event in zip(told, self._formats, strict=True):
                    pages.append(decode_ring_page(page, event))
        return Told._make(map(np.concatenate, told))

    def close(self) -> None:
        """Take the instance away."""
        for fd in self._fds:
            os.close(fd)
        with contextlib.suppress(OSError):
            self._instance.rmdir()


def decode_ring_page(page: bytes, event: EventFormat) -> PageIds:
    """Return the page ids that the events of one kind name, in their order.

    One read(2) of many pages asks again and again, for what is left of them: each time only the
    pages up to the next time count.
    """
    words = np.frombuffer(page, np.uint32)
    starts = _event_starts(words)
    starts = starts[(words[starts] & _ID_MASK) == event.id]
    ino, index, last = (
        words[starts + offset // 4].astype(np.int64)
        for offset in (event.i_ino, event.first_index, event.last_index)
    )
    goes_on = (ino[1:] == ino[:-1]) & (last[1:] == last[:-1]) & (index[1:] > index[:-1])
    last[:-1] = np.where(goes_on, index[1:] - 1, last[:-1])
    nr_pages = np.clip(last - index + 1, 0, _NR_READ_PAGES_MAX)
    before = np.cumsum(nr_pages) - nr_pages
    offsets = np.arange(int(nr_pages.sum())) - np.repeat(before, nr_pages)
    pages: PageIds = np.repeat(ino << PGOFF_BITS | index, nr_pages) + offsets
    return pages


def _event_starts(words: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return where in *words* the fields of each event begin, as indexes.

    Events of one size follow each other but for a time now and then, so runs are taken at once.
    """
    end = (_HEAD_SIZE_BYTES + int(words[2] & _LENGTH_MASK)) // 4
    found = []
    at = _HEAD_SIZE_BYTES // 4
    while at < end:
        type_len = int(words[at] & _TYPE_MASK)
        if type_len > _NR_DATA_WORDS_MAX:
            if type_len == _PADDING:
                break
            at += 2  # a time: its lower bits, then the upper
        elif type_len == 0:
            found.append(np.array([at + 2], np.int64))
            at += 1 + int(words[at + 1]) // 4
        else:
            same = words[at : end : type_len + 1] & _TYPE_MASK == type_len
            nr_same = len(same) if same.all() else int(np.argmin(same))
            found.append(at + 1 + np.arange(nr_same, dtype=np.int64) * (type_len + 1))
            at += nr_same * (type_len + 1)
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _read_page(fd: int) -> bytes:
    try:
        return os.read(fd, PAGE_SIZE)
    except BlockingIOError:
        return b""


def _read_format(instance: Path, name: str) -> EventFormat:
    """Raises: ValueError when the event is not made as expected."""
    text = (instance / "events" / "filemap" / name / "format").read_text()
    number = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
    offsets = dict(re.findall(r"(\w+);\s+offset:(\d+);", text))
    if number is None or not {"i_ino", "index"} <= offsets.keys():
        raise ValueError(f"event {name}: its format is not as expected")
    index = int(offsets["index"])
    last_index = int(offsets.get("last_index", index))
    return EventFormat(int(number[1]), int(offsets["i_ino"]), index, last_index)


def _enable(instance: Path, name: str, *, on: bool) -> None:
    (instance / "events" / "filemap" / name / "enable").write_text(f"{on:d}\n")


def _remove_abandoned(instances: Path) -> None:
    """Take away what daemons that were killed have left: it would cost all programs time."""
    for instance in instances.glob(f"{_INSTANCE_PREFIX}*"):
        if not Path("/proc", instance.name.removeprefix(_INSTANCE_PREFIX)).exists():
            with contextlib.suppress(OSError):
                instance.rmdir()
