"""Notifier: a thread that tells the kernel to drop ranges of files from its page cache.

A thread of its own, because the kernel makes the caller wait for pages that are being read, and
those reads are answered by the thread that serves the mount. So it is never called from a handler.

pyfuse3 can only drop whole files; a range is one raw message on the session's descriptor:

    out_header   u32 length   i32 FUSE_NOTIFY_INVAL_INODE = 2   u64 0
    body         u64 inode    i64 offset    i64 length, in bytes

Source: include/uapi/linux/fuse.h, fuse_notify_inval_inode_out.
"""

import contextlib
import errno
import logging
import os
import queue
import struct
import threading

from xipfs.tiering.sampler import DropRange
from xipfs.units import PAGE_SHIFT

__all__ = ["Notifier", "find_session_fd"]

_log = logging.getLogger(__name__)

_MESSAGE = struct.Struct("<IiQQqq")
_FUSE_NOTIFY_INVAL_INODE = 2

# The inode is not in the kernel any more; the request it waited for went away; unmounted.
_HARMLESS = {errno.ENOENT, errno.EINTR, errno.ENODEV, errno.ENOTCONN, errno.EBADF}


class Notifier:
    """Drops ranges on the FUSE session of descriptor *fd*, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: queue.SimpleQueue[list[DropRange] | None] = queue.SimpleQueue()
        self._stopping = False
        # A daemon thread: should the kernel never let go of it, the process can still end.
        self._thread = threading.Thread(target=self._run, name="xipfs-notifier", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Has it done all it was told? Otherwise telling it more only makes a queue."""
        return self._queue.empty()

    def drop(self, ranges: list[DropRange]) -> None:
        """Have *ranges* dropped, soon; returns at once."""
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
            for mapping_id, pgoff, nr_pages in ranges:
                if self._stopping:
                    return
                message = _MESSAGE.pack(
                    _MESSAGE.size,
                    _FUSE_NOTIFY_INVAL_INODE,
                    0,
                    mapping_id,
                    pgoff << PAGE_SHIFT,
                    nr_pages << PAGE_SHIFT,
                )
                try:
                    os.write(self._fd, message)
                except OSError as exc:
                    if exc.errno not in _HARMLESS:
                        _log.warning("dropping pages of inode %d: %s", mapping_id, exc.strerror)


def find_session_fd() -> int | None:
    """Return the descriptor of this process's FUSE session: the one open on /dev/fuse."""
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{entry}") == "/dev/fuse":
                return int(entry)
    return None
