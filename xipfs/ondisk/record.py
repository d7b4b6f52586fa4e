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

import struct
import uuid as uuid_module
import zlib
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import numpy as np

from xipfs.errors import BugError, FormatError, bug_on

__all__ = ["Buffer", "RecordFormat", "checksum", "checksum_seed", "fields_dtype", "format_uuid"]

Buffer: TypeAlias = bytes | bytearray | memoryview

_CHECKSUM_OFFSET = 4
_BODY_OFFSET = 8

_STRUCT_CODES = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i8": "q"}

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
    # The same layout for the struct module, which is ten times as fast on a single record.
    _struct: struct.Struct = field(init=False, repr=False, compare=False)
    _blank: dict[str, Any] = field(init=False, repr=False, compare=False)
    _bytes_fields: list[tuple[int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dtypes = [(name, self.dtype[name]) for name in (self.dtype.names or ())[2:]]
        blank = {name: b"" if dtype.kind == "V" else 0 for name, dtype in dtypes}
        sizes = [(i, dtype.itemsize) for i, (_, dtype) in enumerate(dtypes) if dtype.kind == "V"]
        for name, value in (
            ("_struct", struct.Struct(_struct_format(self.dtype))),
            ("_blank", blank),
            ("_bytes_fields", sizes),
        ):
            object.__setattr__(self, name, value)  # frozen for all others

    @property
    def size_bytes(self) -> int:
        """Bytes of the record, or of the head of a page."""
        return self.dtype.itemsize

    def unpack(self, buf: Buffer) -> tuple[Any, ...]:
        """Return all values of a record, magic and checksum as well, which are not checked."""
        return self._struct.unpack_from(buf)

    def decode(self, buf: Buffer, seed: int, where: str) -> tuple[Any, ...]:
        """Check *buf* (a whole record or page) and return the head's values behind the checksum.

        where: what the caller looks at, for the message: "inode 12", "directory page 3 of inode 7".
        Raises: FormatError on a wrong magic or checksum, or a *buf* cut short.
        """
        if len(buf) < self.size_bytes:
            raise FormatError(f"{where}: {len(buf)} bytes, a {self.name} has {self.size_bytes}")
        values = self.unpack(buf)
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
        return values[2:]

    def encode(self, seed: int, /, **fields: object) -> bytes:
        """Return a sealed record; fields not named are zero.

        Bug: a value that does not fit its field.
        """
        values = self._blank | fields
        bug_on(len(values) != len(self._blank), f"{self.name} has no such field", fields=fields)
        return self.encode_values(seed, tuple(values.values()))

    def encode_values(self, seed: int, values: tuple[Any, ...], /) -> bytes:
        """Return a sealed record of the *values* of all its fields behind the checksum, in order.

        Bug: a value that does not fit its field.
        """
        for i, size_bytes in self._bytes_fields:  # struct would cut long ones off in silence
            if len(values[i]) > size_bytes:
                self._complain(values)
        try:
            packed = self._struct.pack(self.magic, 0, *values)
        except struct.error:
            self._complain(values)
        magic, body = packed[:_CHECKSUM_OFFSET], packed[_BODY_OFFSET:]
        crc = zlib.crc32(body, zlib.crc32(magic, seed))
        return b"".join((magic, crc.to_bytes(4, "little"), body))

    def _complain(self, values: tuple[Any, ...]) -> NoReturn:
        for name, value in zip(self._blank, values, strict=True):
            dtype = self.dtype[name]
            try:
                struct.pack(f"<{_struct_code(dtype)}", value)
                fits = not isinstance(value, bytes) or len(value) <= dtype.itemsize
            except struct.error:
                fits = False
            bug_on(not fits, f"{self.name}.{name} cannot hold {value!r}")
        raise BugError(f"BUG: {self.name} cannot hold {values!r}")

    def seal(self, buf: bytearray | memoryview, seed: int) -> None:
        """Write magic and checksum into *buf*, a whole record or page that starts with one."""
        buf[0:4] = self.magic.to_bytes(4, "little")
        buf[4:8] = checksum(buf, seed).to_bytes(4, "little")


def _struct_code(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "V":
        return f"{dtype.itemsize}s"
    return _STRUCT_CODES[dtype.str[1:]]


def _struct_format(dtype: np.dtype[np.void]) -> str:
    """Return what the struct module calls the layout of *dtype*."""
    codes, end = ["<"], 0
    for field_dtype, offset, *_ in (dtype.fields or {}).values():
        codes.append("x" * (offset - end) + _struct_code(field_dtype))
        end = offset + field_dtype.itemsize
    return "".join(codes) + "x" * (dtype.itemsize - end)


def format_uuid(uuid: bytes) -> str:
    """Write a uuid as people do: 8-4-4-4-12 hexadecimal digits."""
    return str(uuid_module.UUID(bytes=uuid))
