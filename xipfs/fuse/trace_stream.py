"""How a recorder reads the access log along: the request `trace` makes a stream of its connection.

    {"ok": true, "answer": {"clock_ns": .., "time_ns": ..}}     the log's clock now, and the wall's
    {"nr_ranges": 3, "nr_lost": 0}                              then, again and again, a header
    <3 int64 page><3 int64 nr_pages><3 int64 time_ns>           and the columns, little endian
    <3 int32 client><3 uint8 kind><3 uint8 tier>

A header of no ranges comes now and then, so that a recorder that has gone is noticed. The recorder
has the work: the daemon only copies from its ring to the socket.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from xipfs.fuse.client import answer_of, connect
from xipfs.tiering.access_log import AccessRanges

__all__ = ["encode_ranges", "follow_mount", "read_ranges"]

_COLUMNS = (
    ("page", "<i8"),
    ("nr_pages", "<i8"),
    ("time_ns", "<i8"),
    ("client", "<i4"),
    ("kind", "<u1"),
    ("tier", "<u1"),
)


def encode_ranges(ranges: AccessRanges) -> bytes:
    """Return a header and its columns."""
    header = {"nr_ranges": len(ranges.page), "nr_lost": ranges.nr_lost}
    columns = [getattr(ranges, name).astype(dtype).tobytes() for name, dtype in _COLUMNS]
    return b"".join([json.dumps(header).encode(), b"\n", *columns])


def read_ranges(stream: BinaryIO) -> AccessRanges | None:
    """Return what comes next, None at the end: also where the daemon died amid a header."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    nr_ranges = header["nr_ranges"]
    columns: dict[str, Any] = {}
    for name, dtype in _COLUMNS:
        size_bytes = nr_ranges * np.dtype(dtype).itemsize
        data = stream.read(size_bytes)
        if len(data) < size_bytes:
            return None
        columns[name] = np.frombuffer(data, dtype)
    return AccessRanges(**columns, next_position=0, nr_lost=header["nr_lost"])


def follow_mount(
    mountpoint: str | os.PathLike[str],
) -> tuple[dict[str, int], Iterator[AccessRanges]]:
    """Return the clocks, and what is accessed on a mount from now on, until its daemon ends.

    Raises: ControlError.
    """
    connection = connect(mountpoint)
    stream = connection.makefile("rb")
    try:
        connection.sendall(b'{"request": "trace"}\n')
        clocks = answer_of(mountpoint, stream.readline())
    except BaseException:
        stream.close()
        raise
    finally:
        connection.close()  # the stream keeps it open
    return clocks, _iter_ranges(stream)


def _iter_ranges(stream: BinaryIO) -> Iterator[AccessRanges]:
    with stream, contextlib.suppress(OSError):  # the daemon was killed
        while (ranges := read_ranges(stream)) is not None:
            yield ranges
