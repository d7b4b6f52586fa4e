"""Group descriptors and the checksum of a bitmap page."""

import binascii

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.errors import BugError, FormatError
from xipfs.ondisk.group import (
    NR_GROUP_PAGES,
    DiskGroupDesc,
    GroupFlags,
    bitmap_checksum,
    decode_group_desc,
)
from xipfs.units import PAGE_SIZE

SEED = 0x1234


def test_round_trip():
    desc = DiskGroupDesc(
        group=3, flags=GroupFlags.BITMAP_UNINIT, nr_free_pages=NR_GROUP_PAGES, bitmap_checksum=0
    )
    assert decode_group_desc(desc.encode(SEED), SEED, 3) == desc


def test_damage_names_the_group():
    record = bytearray(DiskGroupDesc(3, 0, 1, 2).encode(SEED))
    record[16] ^= 1
    with pytest.raises(FormatError, match=r"^group 3: damaged group descriptor"):
        decode_group_desc(record, SEED, 3)


def test_the_descriptor_of_another_group_is_refused():
    with pytest.raises(FormatError, match=r"^group 4: its place holds group 3"):
        decode_group_desc(DiskGroupDesc(3, 0, 1, 2).encode(SEED), SEED, 4)


def test_a_bitmap_page_covers_its_group():
    assert NR_GROUP_PAGES == 8 * PAGE_SIZE


@given(st.integers(0, NR_GROUP_PAGES - 1))
def test_every_page_taken_or_freed_changes_the_checksum(page: int):
    bitmap = bytearray(PAGE_SIZE)
    before = bitmap_checksum(bitmap, SEED)
    bitmap[page // 8] |= 1 << page % 8
    assert bitmap_checksum(bitmap, SEED) != before


def test_the_checksum_is_the_documents():
    assert bitmap_checksum(b"\xa5" * PAGE_SIZE, SEED) == binascii.crc32(b"\xa5" * PAGE_SIZE, SEED)


def test_a_bitmap_is_one_page():
    with pytest.raises(BugError, match="one page: size_bytes=4095"):
        bitmap_checksum(bytes(PAGE_SIZE - 1), SEED)
