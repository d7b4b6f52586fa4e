"""What holds for every record of the image: round trips, padding, no damage that goes unseen."""

import binascii
import importlib
import pkgutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xipfs.ondisk
from xipfs.errors import BugError, FormatError
from xipfs.ondisk.group import GROUP_DESC
from xipfs.ondisk.inode import INODE
from xipfs.ondisk.record import RecordFormat, checksum_seed, fields_dtype, format_uuid
from xipfs.ondisk.superblock import SUPERBLOCK

UUID = bytes(range(16))
SEED = checksum_seed(UUID)


def all_formats() -> list[RecordFormat]:
    modules = [
        importlib.import_module(f"xipfs.ondisk.{info.name}")
        for info in pkgutil.iter_modules(xipfs.ondisk.__path__)
    ]
    exported = {id(o): o for module in modules for o in map(vars(module).get, module.__all__)}
    return [o for o in exported.values() if isinstance(o, RecordFormat)]


FORMATS = all_formats()
every_format = pytest.mark.parametrize("record_format", FORMATS, ids=lambda f: f.name)


def field_values(dtype: np.dtype) -> st.SearchStrategy[object]:
    """Values that one field can hold, the edges among them."""
    if dtype.kind == "V":
        return st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize)
    info = np.iinfo(dtype)
    return st.integers(int(info.min), int(info.max))


def records(record_format: RecordFormat) -> st.SearchStrategy[tuple[object, ...]]:
    """The values of all fields behind the checksum."""
    dtype = record_format.dtype
    return st.tuples(*(field_values(dtype[name]) for name in dtype.names[2:]))


def encode(record_format: RecordFormat, values: tuple[object, ...]) -> bytes:
    names = record_format.dtype.names[2:]
    return record_format.encode(SEED, **dict(zip(names, values, strict=True)))


def example(record_format: RecordFormat) -> bytes:
    """A sealed record whose fields are all different from zero."""
    fields = {}
    for number, name in enumerate(record_format.dtype.names[2:], 1):
        dtype = record_format.dtype[name]
        fields[name] = bytes([number]) * dtype.itemsize if dtype.kind == "V" else number
    return record_format.encode(SEED, **fields)


def test_all_formats_are_found():
    assert {f.name for f in FORMATS} >= {"superblock", "inode", "journal record"}


@every_format
@given(data=st.data())
def test_round_trip(record_format: RecordFormat, data: st.DataObject):
    values = data.draw(records(record_format))
    record = encode(record_format, values)
    assert len(record) == record_format.size_bytes
    assert record_format.decode(record, SEED, "here") == values


@every_format
@given(data=st.data())
def test_what_no_field_covers_is_zero(record_format: RecordFormat, data: st.DataObject):
    record = np.frombuffer(encode(record_format, data.draw(records(record_format))), "u1")
    covered = np.zeros(record_format.size_bytes, bool)
    for dtype, offset in record_format.dtype.fields.values():
        covered[offset : offset + dtype.itemsize] = True
    assert not record[~covered].any()


@every_format
def test_every_flipped_bit_is_detected(record_format: RecordFormat):
    record = bytearray(example(record_format))
    record_format.decode(record, SEED, "here")
    for bit in range(8 * len(record)):
        record[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match=r"^here: (this is no|damaged) "):
            record_format.decode(record, SEED, "here")
        record[bit // 8] ^= 1 << bit % 8


@every_format
@given(uuid=st.binary(min_size=16, max_size=16))
def test_a_record_of_another_image_is_refused(record_format: RecordFormat, uuid: bytes):
    seed = checksum_seed(uuid)
    record = example(record_format)
    if seed != SEED:
        with pytest.raises(FormatError, match=f"damaged {record_format.name}"):
            record_format.decode(record, seed, "here")


@every_format
def test_a_record_cut_short_is_refused(record_format: RecordFormat):
    record = example(record_format)
    for size_bytes in (0, 1, 8, len(record) - 1):
        with pytest.raises(FormatError, match=f"{size_bytes} bytes"):
            record_format.decode(record[:size_bytes], SEED, "here")


@pytest.mark.parametrize("fill", [0x00, 0xFF])
@every_format
def test_a_page_of_one_byte_is_no_record(record_format: RecordFormat, fill: int):
    with pytest.raises(FormatError, match=f"this is no {record_format.name}: magic 0x{fill:02x}"):
        record_format.decode(bytes([fill]) * 4096, SEED, "here")


def test_every_format_refuses_the_records_of_all_others():
    for ours in FORMATS:
        for theirs in FORMATS:
            if ours is not theirs:
                page = bytearray(example(theirs).ljust(4096, b"\0"))
                theirs.seal(page, SEED)
                with pytest.raises(FormatError, match=f"this is no {ours.name}"):
                    ours.decode(page, SEED, "here")


@given(st.integers(8, 4095), st.integers(0, 7))
def test_the_seal_of_a_page_covers_all_of_it(byte: int, bit: int):
    page = bytearray(4096)
    GROUP_DESC.seal(page, SEED)
    GROUP_DESC.decode(page, SEED, "here")
    page[byte] ^= 1 << bit
    with pytest.raises(FormatError, match="damaged"):
        GROUP_DESC.decode(page, SEED, "here")


def test_the_bytes_of_a_record_are_these():
    """Made again without numpy: what the document says, not what the code does."""
    record = GROUP_DESC.encode(SEED, group=7, flags=1, nr_free_pages=32768, bitmap_checksum=0xABCD)
    body = struct.pack("<IIIIQ", 7, 1, 32768, 0xABCD, 0)
    crc = binascii.crc32(b"XGRP" + body, binascii.crc32(UUID))
    assert record == b"XGRP" + struct.pack("<I", crc) + body


@pytest.mark.parametrize(
    ("record_format", "field", "value"),
    [
        (INODE, "uid", -1),
        (INODE, "uid", 1 << 32),
        (INODE, "mtime_ns", 1 << 63),
        (INODE, "payload", bytes(121)),
        (INODE, "colour", 1),
        (SUPERBLOCK, "label", bytes(65)),
    ],
)
def test_a_value_that_does_not_fit_is_a_bug_and_not_cut_off(record_format, field, value):
    with pytest.raises(BugError, match=field):
        record_format.encode(SEED, **{field: value})


def test_layouts_that_overlap_are_bugs():
    with pytest.raises(BugError, match="overlap"):
        fields_dtype(16, [(0, "<u8", "first"), (4, "<u4", "second")])
    with pytest.raises(BugError, match="pass the record's end"):
        fields_dtype(4, [(0, "<u8", "first")])


def test_a_uuid_has_sixteen_bytes():
    with pytest.raises(BugError, match="16 bytes"):
        checksum_seed(bytes(15))


def test_format_uuid():
    assert format_uuid(UUID) == "00010203-0405-0607-0809-0a0b0c0d0e0f"
