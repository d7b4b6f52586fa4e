"""Extended attributes: all of one inode in one run of pages, sealed as a whole.

    head | entry | name | value | padding to 8 | entry | name | value | ...

Entries are sorted by name. Names are whole ("user.comment"), ACLs are attributes like any other
(`system.posix_acl_access`). An update writes a new run and swaps the inode's pointer.
"""

import numpy as np

from xipfs.errors import FormatError
from xipfs.ondisk.record import Buffer, RecordFormat, fields_dtype
from xipfs.units import PAGE_SIZE, bytes_to_pages

__all__ = [
    "NR_XATTR_PAGES_MAX",
    "XATTR_ENTRY_DTYPE",
    "XATTR_RUN",
    "XATTR_VALUE_SIZE_BYTES_MAX",
    "decode_xattrs",
    "encode_xattrs",
]

XATTR_VALUE_SIZE_BYTES_MAX = 65536
"""XATTR_SIZE_MAX of Linux."""
NR_XATTR_PAGES_MAX = 256
"""1 MiB: bounds what one damaged inode can make a reader read."""

XATTR_RUN = RecordFormat(
    "attribute run",
    int.from_bytes(b"XATT", "little"),
    fields_dtype(
        32,
        [
            (0, "<u4", "magic"),
            (4, "<u4", "checksum"),
            (8, "<u8", "ino"),
            (16, "<u4", "generation"),
            (20, "<u4", "nr_entries"),
            (24, "<u8", "size_bytes"),
        ],
    ),
)

XATTR_ENTRY_DTYPE = fields_dtype(8, [(0, "<u1", "name_size_bytes"), (4, "<u4", "value_size_bytes")])


def decode_xattrs(run: Buffer, seed: int, ino: int, generation: int) -> dict[bytes, bytes]:
    """Check one run (a whole number of pages) and return its attributes, sorted by name.

    Raises: FormatError on damage, on a run of another inode, on entries that pass the end or stand
    out of order.
    """
    where = f"attributes of inode {ino}"
    run_ino, run_generation, nr_entries, size_bytes = XATTR_RUN.decode(run, seed, where)
    if (run_ino, run_generation) != (ino, generation):
        raise FormatError(f"{where}: the run belongs to inode {run_ino}, {run_generation}")
    if size_bytes > len(run):
        raise FormatError(f"{where}: {size_bytes} bytes in a run of {len(run)}")
    xattrs: dict[bytes, bytes] = {}
    offset = XATTR_RUN.size_bytes
    previous = b""
    for _ in range(nr_entries):
        if offset + XATTR_ENTRY_DTYPE.itemsize > size_bytes:
            raise FormatError(f"{where}: entry at byte {offset} passes the end {size_bytes}")
        name_size, value_size = np.frombuffer(run, XATTR_ENTRY_DTYPE, 1, offset)[0].item()
        name_start = offset + XATTR_ENTRY_DTYPE.itemsize
        value_start = name_start + name_size
        end = value_start + value_size
        if end > size_bytes:
            raise FormatError(f"{where}: entry at byte {offset} passes the end {size_bytes}")
        name = bytes(run[name_start:value_start])
        if name <= previous:
            raise FormatError(f"{where}: name {name!r} at byte {offset} follows {previous!r}")
        xattrs[name] = bytes(run[value_start:end])
        previous = name
        offset = _align8(end)
    return xattrs


def encode_xattrs(xattrs: dict[bytes, bytes], seed: int, ino: int, generation: int) -> bytes:
    """Return the sealed run, a whole number of pages, for at least one attribute."""
    body = bytearray()
    for name in sorted(xattrs):
        value = xattrs[name]
        entry = np.zeros(1, XATTR_ENTRY_DTYPE)  # np.array would leave its gaps as they come
        entry["name_size_bytes"], entry["value_size_bytes"] = len(name), len(value)
        body += entry.tobytes() + name + value
        body += bytes(_align8(len(body)) - len(body))
    size_bytes = XATTR_RUN.size_bytes + len(body)
    run = bytearray(bytes_to_pages(size_bytes) * PAGE_SIZE)
    head = XATTR_RUN.encode(
        seed, ino=ino, generation=generation, nr_entries=len(xattrs), size_bytes=size_bytes
    )
    run[:size_bytes] = head + body
    XATTR_RUN.seal(run, seed)
    return bytes(run)


def _align8(offset: int) -> int:
    return (offset + 7) & ~7
