"""NvramDevice: one image file as a byte-addressable device. All its bytes are reached through here.

Two ways to read, because touching a mapping of a file that has shrunk is SIGBUS, which would kill
the process:

    load, load_into   copies by preadv(2): never a signal; a file cut short is DeviceError
    view              the mapped bytes themselves, for a system call to read (writev(2) answers
                      EFAULT where a touch of ours would be SIGBUS); never touched in Python

and one to write, for the same reason by pwrite(2): `store_bytes`. What was stored is durable for
sure once its cache lines were flushed and a fence came after that:

    store_bytes, store8      may reach the medium at any time, in any order, or not at all
    flush                    these lines are on their way
    fence                    all that was flushed before is durable

The host keeps an image's pages when we die, so by default flush and fence only count, and tell
`observer`, which can then say what a loss of power at any moment would have left. With
`fence_syncs`, a fence is fdatasync(2), and the image survives the host, too.

A sparse image has no blocks of its disk where nothing was stored. They are reserved, a piece at a
time, before the first store into it: a full disk is NoSpaceError, and nothing was stored then.

One writer or many readers hold the image at a time, by flock(2).
"""

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import (
    DeviceError,
    FormatError,
    ImageBusyError,
    NoSpaceError,
    ReadOnlyFsError,
    bug_on,
)
from xipfs.phys.wear import Wear
from xipfs.units import PAGE_SIZE

__all__ = ["CACHE_LINE_SIZE_BYTES", "IOV_MAX", "NvramDevice", "NvramObserver"]

IOV_MAX = 1024
"""Most buffers that one preadv or writev takes (UIO_MAXIOV of Linux)."""

CACHE_LINE_SIZE_BYTES = 64

_PIECE_SHIFT = 20
"""Blocks of the host's disk are reserved 1 MiB at a time."""
_PIECES_SHIFT = 9
_PIECES_MASK = (1 << _PIECES_SHIFT) - 1
"""Which pieces are reserved is noted as bits, 512 to an integer."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class NvramObserver(Protocol):
    """Is told of each store, flush and fence, after it is done; sizes and offsets in bytes."""

    def on_store(self, offset: int, size_bytes: int) -> None:
        """Bytes of the region have changed."""

    def on_flush(self, offset: int, size_bytes: int) -> None:
        """The lines that hold these bytes were flushed."""

    def on_fence(self) -> None:
        """What was flushed is durable."""


class NvramDevice:
    """The image at *path*, open and locked; `close` gives both back.

    size_bytes: of the file when it was opened; a later change of the file does not change it.
    nr_flushed_lines, nr_fences: counted since then.
    fence_syncs: a fence waits for the host's disk.
    metadata_runs: pages [start, end) that no file may have: noted by whoever reads the superblock,
    for all who read extents, and not looked at here.
    observer: is told of what reaches the device; None for nobody.
    wear: where stores are counted by block, if anybody wants to know.
    """

    __slots__ = (
        "_bytes",
        "_fd",
        "_mmap",
        "_nr_synced_lines",
        "_reserved",
        "fence_syncs",
        "metadata_runs",
        "nr_fences",
        "nr_flushed_lines",
        "observer",
        "path",
        "size_bytes",
        "wear",
    )

    def __init__(self, path: Path, fd: int, size_bytes: int, *, reserves: bool = False) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.nr_flushed_lines = 0
        self.nr_fences = 0
        self.metadata_runs: tuple[tuple[int, int], ...] = ()
        self.observer: NvramObserver | None = None
        self.wear: Wear | None = None
        self.fence_syncs = False
        self._nr_synced_lines = 0
        # Bits of the pieces whose blocks are there; None where nothing needs to be reserved.
        self._reserved: dict[int, int] | None = {} if reserves else None
        self._fd = fd
        self._mmap = mmap.mmap(fd, size_bytes, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._mmap, np.uint8).data

    @classmethod
    def scratch(cls, size_bytes: int) -> "NvramDevice":
        """Return a region of zeros that may be written and ends with the process."""
        name = "xipfs-scratch"
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(fd, size_bytes)
        return cls(Path(name), fd, size_bytes)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool = False) -> "NvramDevice":
        """Open an image for reading, or as its only user for writing.

        Raises: DeviceError when it cannot be opened or is no regular file; ReadOnlyFsError when it
        may only be read; FormatError when it is empty; ImageBusyError when a writer, or for
        writing anybody, holds it.
        """
        path = Path(path)
        mode = os.O_RDWR if writable else os.O_RDONLY
        try:
            fd = os.open(path, mode | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as exc:
            if writable and exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise ReadOnlyFsError(f"{path}: may not be written: {exc.strerror}") from exc
            raise DeviceError(f"{path}: {exc.strerror}") from exc
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise DeviceError(f"{path}: not a regular file: an image is one")
            if status.st_size < PAGE_SIZE:
                raise FormatError(
                    f"{path}: no xipfs image: {status.st_size} bytes, less than one page"
                )
            _lock(path, fd, writable=writable)
            return cls(path, fd, status.st_size, reserves=writable)
        except OSError as exc:
            os.close(fd)
            raise DeviceError(f"{path}: {exc.strerror}") from exc
        except BaseException:
            os.close(fd)
            raise

    def load(self, offset: int, size_bytes: int) -> bytes:
        """Return a copy of [offset, offset + size_bytes).

        Raises: DeviceError when the bytes are not all there.
        """
        if offset + size_bytes > self.size_bytes:  # perhaps too far for pread(2) to ask for
            self._raise_cut_short(max(offset, self.size_bytes))
        try:
            data = os.pread(self._fd, size_bytes, offset)
        except OSError as exc:
            raise DeviceError(f"{self.path}: {exc.strerror} at byte {offset:#x}") from exc
        if len(data) != size_bytes:
            self._raise_cut_short(offset + len(data))
        return data

    def load_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill *buffers* (at most IOV_MAX) in turn with the bytes from *offset* on.

        Raises: DeviceError when the bytes are not all there; the buffers' contents are then void.
        """
        if offset < 0:  # -1 is preadv2's "go on"
            bug_on(True, "load before the image", offset=offset)
        wanted = sum(map(len, buffers))
        try:
            found = os.preadv(self._fd, buffers, offset)
        except OSError as exc:
            raise DeviceError(f"{self.path}: {exc.strerror} at byte {offset:#x}") from exc
        if found != wanted:
            self._raise_cut_short(offset + found)

    def reserve(self, offset: int, size_bytes: int) -> None:
        """Have the host give its disk's blocks to these bytes, so that storing there cannot fail.

        Raises: NoSpaceError when the disk is full; DeviceError. Nothing has changed then.
        """
        reserved = self._reserved
        if reserved is None or not size_bytes:
            return
        first, last = offset >> _PIECE_SHIFT, offset + size_bytes - 1 >> _PIECE_SHIFT
        for piece in range(first, last + 1):
            if not reserved.get(piece >> _PIECES_SHIFT, 0) >> (piece & _PIECES_MASK) & 1:
                self._reserve_piece(piece)
                bit = 1 << (piece & _PIECES_MASK)
                reserved[piece >> _PIECES_SHIFT] = reserved.get(piece >> _PIECES_SHIFT, 0) | bit

    def _reserve_piece(self, piece: int) -> None:
        start = piece << _PIECE_SHIFT
        try:
            os.posix_fallocate(self._fd, start, min(1 << _PIECE_SHIFT, self.size_bytes - start))
        except OSError as exc:
            kind = NoSpaceError if exc.errno in _NO_SPACE else DeviceError
            raise kind(f"{self.path}: {exc.strerror} at byte {start:#x}") from exc

    def store_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write *data* to the bytes from *offset* on, all of which exist.

        Raises: DeviceError, NoSpaceError. An image that was opened for reading refuses.
        """
        if offset < 0 or offset + len(data) > self.size_bytes:
            bug_on(True, "store outside of the image", offset=offset, size_bytes=len(data))
        self.reserve(offset, len(data))
        try:
            written = os.pwrite(self._fd, data, offset)
        except OSError as exc:
            raise DeviceError(f"{self.path}: {exc.strerror} at byte {offset:#x}") from exc
        if self.wear is not None:
            self.wear.record(offset, written)
        if written != len(data):
            raise DeviceError(f"{self.path}: no room for byte {offset + written:#x}")
        if self.observer is not None:
            self.observer.on_store(offset, len(data))

    def store8(self, offset: int, data: bytes) -> None:
        """Write one aligned word of 8 bytes, which is there wholly or not at all, ever after.

        Raises: as `store_bytes`.
        """
        bug_on(offset % 8 != 0 or len(data) != 8, "store8: not a word", offset=offset, data=data)
        self.store_bytes(offset, data)

    def flush(self, offset: int, size_bytes: int) -> None:
        """Send the lines of [offset, offset + size_bytes) to the medium (CLWB)."""
        first = offset // CACHE_LINE_SIZE_BYTES
        self.nr_flushed_lines += -(-(offset + size_bytes) // CACHE_LINE_SIZE_BYTES) - first
        if self.observer is not None:
            self.observer.on_flush(offset, size_bytes)

    def fence(self) -> None:
        """Let what was flushed be durable before anything that is stored later (SFENCE).

        Raises: DeviceError when the host's disk failed.
        """
        self.nr_fences += 1
        if self.fence_syncs and self._nr_synced_lines != self.nr_flushed_lines:
            try:
                os.fdatasync(self._fd)
            except OSError as exc:
                raise DeviceError(f"{self.path}: {exc.strerror} at a fence") from exc
            self._nr_synced_lines = self.nr_flushed_lines
        if self.observer is not None:
            self.observer.on_fence()

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """Return the mapped bytes [offset, offset + size_bytes), read-only, valid until `close`."""
        return self._bytes[offset : offset + size_bytes]

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """The whole region as an array: dtype uint8, shape (size_bytes,); a read-only view."""
        return np.frombuffer(self._mmap, np.uint8)

    def close(self) -> None:
        """Give the lock and the mapping back. Raises: BufferError while somebody holds a view."""
        self._bytes.release()
        self._mmap.close()
        os.close(self._fd)

    def _raise_cut_short(self, offset: int) -> NoReturn:
        raise DeviceError(
            f"{self.path}: cut short: no byte at {offset:#x}, "
            f"the image had {self.size_bytes:#x} when it was opened"
        )


def _lock(path: Path, fd: int, *, writable: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        text = "in use: unmount it" if writable else "in use by a writer: unmount it"
        raise ImageBusyError(f"{path}: {text} or wait until mkfs is done") from None
