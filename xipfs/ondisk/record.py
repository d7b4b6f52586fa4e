"""What all records of the image share: a magic, a checksum, and one numpy dtype that is the layout.

A record is `itemsize` little-endian bytes. The first word is its magic, the second its checksum:
CRC-32 (the polynomial of zlib and Ethernet) over all its other bytes in order, started with
`seed`, the CRC-32 of the image's uuid, so that records of an earlier image in the same place do
not pass. Reserved bytes are zero.

    RecordFormat.decode(buf, seed, where)   bytes -> tuple of field values, checked
    RecordFormat.encode(seed, **fields)     field values -> bytes, sealed
    RecordFormat.seal(buf, seed)            write the checksum into a record or page in place

A page that starts with a record (extent node, directory page, ...) is sealed as a whole: the
checksum covers all of `buf`, not only the head.
"""

import uuid as uuid_module
import zlib
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from xipfs.errors import BugError, FormatError, bug_on

__all__ = ["Buffer", "RecordFormat", "checksum", "checksum_seed", "fields_dtype", "format_uuid"]

Buffer: TypeAlias = bytes | bytearray | memoryview

_CHECKSUM_OFFSET = 4
_BODY_OFFSET = 8

Field = tuple[int, str, str]


def checksum_seed(uuid: bytes) -> int:
    """Return the start value of every checksum in the image with this *uuid* (16 bytes)."""
    bug_on(len(uuid) != 16, "a uuid has 16 bytes", uuid=uuid)
    return zlib.crc32(uuid)


def checksum(buf: Buffer, seed: int) -> int:
    """Return the checksum of a record or page: its magic, then all behind the checksum word."""
    view = memoryview(buf)
    return zlib.crc32(view[_BODY_OFFSET:], zlib.crc32(view[:_CHECKSUM_OFFSET], seed))


def fields_dtype(itemsize: int, fields: list[Field]) -> np.dtype[np.void]:
    """Build the dtype of one record from (offset, format, name) rows: explicit, little-endian.

    Bug: a gap-free order is not required, but offsets must rise and fields must not overlap.
    """
    end = 0
    for offset, fmt, name in fields:
        bug_on(offset < end, "fields overlap", name=name, offset=offset, end=end)
        end = offset + np.dtype(fmt).itemsize
    bug_on(end > itemsize, "fields pass the record's end", end=end, itemsize=itemsize)
    return np.dtype(
        {
            "names": [name for _, _, name in fields],
            "formats": [fmt for _, fmt, _ in fields],
            "offsets": [offset for offset, _, _ in fields],
            "itemsize": itemsize,
        }
    )


@dataclass(frozen=True, slots=True)
class RecordFormat:
    """One kind of record: its name in messages, its magic and its layout.

    dtype: its first fields are `magic` (<u4, offset 0) and `checksum` (<u4, offset 4).
    """

    name: str
    magic: int
    dtype: np.dtype[np.void]

    @property
    def size_bytes(self) -> int:
        """Bytes of the record, or of the head of a page."""
        return self.dtype.itemsize

    def decode(self, buf: Buffer, seed: int, where: str) -> tuple[Any, ...]:
        """Check *buf* (a whole record or page) and return the head's values behind the checksum.

        where: what the caller looks at, for the message: "inode 12", "directory page 3 of inode 7".
        Raises: FormatError on a wrong magic or checksum, or a *buf* cut short.
        """
        if len(buf) < self.size_bytes:
            raise FormatError(f"{where}: {len(buf)} bytes, a {self.name} has {self.size_bytes}")
        values = np.frombuffer(buf, self.dtype, 1)[0].item()
        if values[0] != self.magic:
            raise FormatError(
                f"{where}: this is no {self.name}: magic {values[0]:#010x}, "
                f"expected {self.magic:#010x}"
            )
        found = checksum(buf, seed)
        if values[1] != found:
            raise FormatError(
                f"{where}: damaged {self.name}: its checksum says {values[1]:#010x}, "
                f"its bytes {found:#010x}"
            )
        return tuple(values[2:])

    def encode(self, seed: int, /, **fields: object) -> bytes:
        """Return a sealed record; fields not named are zero.

        Bug: a value that does not fit its field.
        """
        record = np.zeros(1, self.dtype)
        for name, value in fields.items():
            # numpy would cut long bytes off in silence.
            too_long = isinstance(value, bytes) and len(value) > self.dtype[name].itemsize
            bug_on(too_long, f"{self.name}.{name} is too small", value=value)
            try:
                record[name] = value
            except (OverflowError, ValueError) as exc:
                raise BugError(f"BUG: {self.name}.{name} cannot hold {value!r}") from exc
        buf = bytearray(record.tobytes())
        self.seal(buf, seed)
        return bytes(buf)

    def seal(self, buf: bytearray | memoryview, seed: int) -> None:
        """Write magic and checksum into *buf*, a whole record or page that starts with one."""
        buf[0:4] = self.magic.to_bytes(4, "little")
        buf[4:8] = checksum(buf, seed).to_bytes(4, "little")


def format_uuid(uuid: bytes) -> str:
    """Write a uuid as people do: 8-4-4-4-12 hexadecimal digits."""
    return str(uuid_module.UUID(bytes=uuid))
