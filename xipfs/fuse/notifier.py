"""Notifier: a thread that has the kernel drop ranges of files from its page cache, or take them in.

A thread of its own, because the kernel makes the caller wait for pages that are being read, and
those reads are answered by the thread that serves the mount. So it is never called from a handler.

pyfuse3 can only drop whole files; a range is one raw message on the session's descriptor:

    out_header   u32 length   i32 FUSE_NOTIFY_INVAL_INODE = 2   u64 0
    body         u64 inode    i64 offset    i64 length, in bytes

and another puts bytes into the cache, as if the kernel had read them:

    out_header   u32 length   i32 FUSE_NOTIFY_STORE = 4         u64 0
    body         u64 inode    u64 offset    u32 size    u32 0   and the bytes

Source: include/uapi/linux/fuse.h, fuse_notify_inval_inode_out, fuse_notify_store_out.
"""

import contextlib
import errno
import logging
import os
import queue
import struct
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from xipfs.tiering.sampler import DropRange
from xipfs.units import PAGE_SHIFT, Ino

__all__ = ["Notifier", "StoreRange", "find_session_fd"]

_log = logging.getLogger(__name__)

_DROP = struct.Struct("<IiQQqq")
_STORE = struct.Struct("<IiQQQII")
_FUSE_NOTIFY_INVAL_INODE = 2
_FUSE_NOTIFY_STORE = 4

_HOLD_S = 1.0
"""Longer than the kernel takes from our reply until it has dropped the pages itself."""

# The inode is not in the kernel any more; the request it waited for went away; unmounted.
_HARMLESS = {errno.ENOENT, errno.EINTR, errno.ENODEV, errno.ENOTCONN, errno.EBADF}


class StoreRange(NamedTuple):
    """Bytes of file *mapping_id* from page *pgoff* on, to be put into the kernel's cache.

    data: whole pages, but for the last one of the file.
    """

    mapping_id: int
    pgoff: int
    data: bytes


class Notifier:
    """Drops and stores ranges on the FUSE session of descriptor *fd*, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: queue.SimpleQueue[Sequence[DropRange | StoreRange] | None] = (
            queue.SimpleQueue()
        )
        self._stopping = False
        self._lock = threading.Lock()
        self._current: int | None = None
        self._held: dict[int, float] = {}
        # A daemon thread: should the kernel never let go of it, the process can still end.
        self._thread = threading.Thread(target=self._run, name="xipfs-notifier", daemon=True)
        self._thread.start()

    def hold(self, ino: Ino) -> bool:
        """Leave file *ino* alone for a while; return whether it is just being seen to.

        For a file that is emptied by open(2): the kernel writes dirty pages to us before it drops
        them, and would write what the file held to the file that is empty.
        """
        now_s = time.monotonic()
        with self._lock:
            self._held = {held: end_s for held, end_s in self._held.items() if end_s > now_s}
            self._held[ino] = now_s + _HOLD_S
            return self._current == ino

    @property
    def idle(self) -> bool:
        """Has it done all it was told? Otherwise telling it more only makes a queue."""
        return self._queue.empty()

    def send(self, ranges: Sequence[DropRange | StoreRange]) -> None:
        """Have *ranges* dropped or stored, soon and in this order; returns at once."""
        if ranges:
            self._queue.put(ranges)

    def stop(self) -> None:
        """Skip what is waiting and let the thread end; returns at once, see `join`."""
        self._stopping = True
        self._queue.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; return whether it did."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (ranges := self._queue.get()) is not None:
            for range_ in ranges:
                if self._stopping:
                    return
                if not self._begin(range_.mapping_id):
                    continue
                try:
                    os.writev(self._fd, _message(range_))
                except OSError as exc:
                    if exc.errno not in _HARMLESS:
                        _log.warning("%s: %s", _describe(range_), exc.strerror)
                finally:
                    self._current = None

    def _begin(self, ino: int) -> bool:
        """Note which file is seen to; return whether it may be."""
        with self._lock:
            if self._held.get(ino, 0) > time.monotonic():
                return False
            self._current = ino
            return True


def _message(range_: DropRange | StoreRange) -> tuple[bytes, ...]:
    offset = range_.pgoff << PAGE_SHIFT
    if isinstance(range_, StoreRange):
        size_bytes = len(range_.data)
        length = _STORE.size + size_bytes
        head = _STORE.pack(length, _FUSE_NOTIFY_STORE, 0, range_.mapping_id, offset, size_bytes, 0)
        return head, range_.data
    size_bytes = range_.nr_pages << PAGE_SHIFT
    return (
        _DROP.pack(_DROP.size, _FUSE_NOTIFY_INVAL_INODE, 0, range_.mapping_id, offset, size_bytes),
    )


def _describe(range_: DropRange | StoreRange) -> str:
    what = "storing" if isinstance(range_, StoreRange) else "dropping"
    return f"{what} pages of inode {range_.mapping_id}"


def find_session_fd() -> int | None:
    """Return the descriptor of this process's FUSE session: the one open on /dev/fuse."""
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{entry}") == "/dev/fuse":
                return int(entry)
    return None
