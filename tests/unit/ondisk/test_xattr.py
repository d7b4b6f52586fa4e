"""Runs of attributes: round trips, whose they are, and sealed runs that lie about their sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.errors import FormatError
from xipfs.ondisk.xattr import (
    XATTR_RUN,
    XATTR_VALUE_SIZE_BYTES_MAX,
    decode_xattrs,
    encode_xattrs,
)
from xipfs.units import PAGE_SIZE

SEED = 0x1234

xattr_sets = st.dictionaries(
    st.binary(min_size=1, max_size=255), st.binary(max_size=300), min_size=1, max_size=12
)


@given(xattr_sets)
def test_round_trip_in_whole_pages_and_in_order(xattrs: dict[bytes, bytes]):
    run = encode_xattrs(xattrs, SEED, 17, 2)
    assert len(run) % PAGE_SIZE == 0
    found = decode_xattrs(run, SEED, 17, 2)
    assert found == xattrs
    assert list(found) == sorted(xattrs)


@given(xattr_sets)
def test_the_order_of_setting_does_not_show(xattrs: dict[bytes, bytes]):
    backwards = {name: xattrs[name] for name in reversed(list(xattrs))}
    assert encode_xattrs(xattrs, SEED, 17, 2) == encode_xattrs(backwards, SEED, 17, 2)


def test_the_gap_in_an_entry_is_zero_whatever_was_in_memory_before():
    """np.array leaves the gaps of a structured dtype as it finds them; they reached the image."""
    for _ in range(100):
        dirty = np.full(8, 0xEE, np.uint8)
        del dirty
        assert encode_xattrs({b"user.x": b"1"}, SEED, 17, 2)[33:36] == bytes(3)


@pytest.mark.parametrize("size_bytes", [0, 1, 4040, 4047, 4048, 4049, XATTR_VALUE_SIZE_BYTES_MAX])
def test_values_up_to_the_largest(size_bytes: int):
    xattrs = {b"user.x": bytes([7]) * size_bytes}
    run = encode_xattrs(xattrs, SEED, 17, 2)
    # Head, entry and name of 6 bytes come before the value.
    assert len(run) == -(-(32 + 8 + 6 + size_bytes) // PAGE_SIZE) * PAGE_SIZE
    assert decode_xattrs(run, SEED, 17, 2) == xattrs


@pytest.mark.parametrize("owner", [(18, 2), (17, 3)])
def test_the_run_of_another_inode_is_refused(owner: tuple[int, int]):
    run = encode_xattrs({b"user.x": b"1"}, SEED, *owner)
    with pytest.raises(FormatError, match=r"^attributes of inode 17: the run belongs to inode"):
        decode_xattrs(run, SEED, 17, 2)


def edited(edits: dict[int, bytes]) -> bytearray:
    run = bytearray(encode_xattrs({b"user.a": b"1", b"user.b": b"2"}, SEED, 17, 2))
    for offset, value in edits.items():
        run[offset : offset + len(value)] = value
    XATTR_RUN.seal(run, SEED)
    return run


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({20: b"\xff\xff\xff\xff"}, "passes the end"),  # nr_entries
        ({24: b"\x01\x10"}, "4097 bytes in a run of 4096"),  # size_bytes
        ({24: b"\xff" * 8}, "bytes in a run of 4096"),
        ({24: b"\x00" * 8}, "entry at byte 32 passes the end 0"),
        ({36: b"\xff\xff\xff\xff"}, "entry at byte 32 passes the end"),  # value_size_bytes
        ({32: b"\xff"}, "entry at byte 32 passes the end"),  # name_size_bytes
        ({32: b"\x00"}, "name b'' at byte 32 follows b''"),
        ({40: b"user.b"}, "name b'user.b' at byte 48 follows b'user.b'"),
        ({40: b"user.c"}, "name b'user.b' at byte 48 follows b'user.c'"),
    ],
)
def test_a_sealed_run_that_lies_is_refused(edits: dict[int, bytes], message: str):
    with pytest.raises(FormatError, match=message):
        decode_xattrs(edited(edits), SEED, 17, 2)


@given(
    st.dictionaries(
        st.integers(20, 80) | st.integers(20, PAGE_SIZE - 1), st.binary(max_size=4), max_size=8
    )
)
def test_any_sealed_run_is_refused_or_read_inside_its_bounds(edits: dict[int, bytes]):
    run = edited({offset: v[: PAGE_SIZE - offset] for offset, v in edits.items()})
    try:
        xattrs = decode_xattrs(run, SEED, 17, 2)
    except FormatError as exc:
        assert "\n" not in str(exc)  # noqa: PT017 (both outcomes are allowed)
    else:
        assert all(name + value in bytes(run) for name, value in xattrs.items())


def test_every_flipped_bit_of_the_run_is_detected():
    run = edited({})
    for bit in range(8 * len(run)):
        run[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode_xattrs(run, SEED, 17, 2)
        run[bit // 8] ^= 1 << bit % 8
