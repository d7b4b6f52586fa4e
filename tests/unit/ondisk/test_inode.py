"""Inode records: round trips with extents and inline bytes, and what decode_inode refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.errors import FormatError
from xipfs.ondisk.extent import EXTENT_DTYPE, NR_INLINE_EXTENTS
from xipfs.ondisk.inode import (
    INODE,
    INODES_PER_PAGE,
    PAYLOAD_SIZE_BYTES,
    DiskInode,
    InodeFlags,
    decode_inode,
)
from xipfs.units import PAGE_SIZE

SEED = 0x1234

FILE = DiskInode(
    ino=17,
    generation=2,
    flags=0,
    mode=0o100644,
    nlink=1,
    uid=1000,
    gid=100,
    size_bytes=5000,
    nr_pages=2,
    atime_ns=-(2**63),
    mtime_ns=2**63 - 1,
    ctime_ns=0,
    btime_ns=1_700_000_000_123_456_789,
    rdev=0,
    nr_entries=0,
    parent_ino=0,
    next_ino=0,
    xattr_block=0,
    nr_xattr_pages=0,
    extent_depth=0,
    nr_extents=0,
    payload=bytes(PAYLOAD_SIZE_BYTES),
)


def test_round_trip():
    assert decode_inode(FILE.encode(SEED), SEED, 17) == FILE


def test_a_page_holds_a_whole_number_of_inodes():
    assert INODES_PER_PAGE * INODE.size_bytes == PAGE_SIZE


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**32 - 1),
            st.integers(2, 2**47),
            st.integers(1, 2**32 - 1),
            st.integers(0, 1),
        ),
        max_size=NR_INLINE_EXTENTS,
    )
)
def test_extents_come_back_from_the_payload(rows: list[tuple[int, int, int, int]]):
    payload = np.array(rows, EXTENT_DTYPE).tobytes()
    record = FILE._replace(nr_extents=len(rows), payload=payload).encode(SEED)
    extents = decode_inode(record, SEED, 17).extents
    assert extents.dtype == EXTENT_DTYPE
    assert extents.tolist() == rows
    assert not extents.flags.writeable


@given(st.binary(max_size=PAYLOAD_SIZE_BYTES))
def test_inline_bytes_come_back_with_their_zeros(target: bytes):
    link = FILE._replace(
        mode=0o120777, flags=InodeFlags.INLINE, size_bytes=len(target), payload=target
    )
    found = decode_inode(link.encode(SEED), SEED, 17)
    assert found.payload[: found.size_bytes] == target
    assert not any(found.payload[found.size_bytes :])


@pytest.mark.parametrize("ino", [0, 16, 18, 1 << 31])
def test_the_inode_of_another_place_is_refused(ino: int):
    with pytest.raises(FormatError, match=f"^inode {ino}: its place holds inode 17"):
        decode_inode(FILE.encode(SEED), SEED, ino)


@given(st.integers(NR_INLINE_EXTENTS + 1, 2**16 - 1))
def test_more_extents_than_the_payload_holds_are_refused(nr_extents: int):
    with pytest.raises(FormatError, match=f"{nr_extents} extents, at most 5"):
        decode_inode(FILE._replace(nr_extents=nr_extents).encode(SEED), SEED, 17)


@given(st.integers(PAYLOAD_SIZE_BYTES + 1, 2**64 - 1))
def test_more_inline_bytes_than_the_payload_holds_are_refused(size_bytes: int):
    inode = FILE._replace(flags=InodeFlags.INLINE, size_bytes=size_bytes)
    with pytest.raises(FormatError, match=f"{size_bytes} bytes inline, at most 120"):
        decode_inode(inode.encode(SEED), SEED, 17)


def test_a_place_never_used_is_no_inode():
    with pytest.raises(FormatError, match="this is no inode: magic 0x00000000"):
        decode_inode(bytes(INODE.size_bytes), SEED, 17)


def test_a_free_inode_keeps_its_generation():
    nothing = dict.fromkeys(DiskInode._fields, 0) | {"payload": bytes(PAYLOAD_SIZE_BYTES)}
    free = DiskInode(**nothing | {"ino": 17, "generation": 9, "next_ino": 18})
    found = decode_inode(free.encode(SEED), SEED, 17)
    assert (found.mode, found.generation, found.next_ino) == (0, 9, 18)
