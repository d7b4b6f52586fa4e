"""Directory pages: keys of names, leaves and indexes, and pages that are sealed and still lie."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.errors import BugError, FormatError
from xipfs.ondisk.dentry import (
    DIR_PAGE,
    DIR_SLOT_DTYPE,
    KEY_MAX,
    NAME_SIZE_BYTES_MAX,
    NR_INDEX_ENTRIES,
    SEQUENCE_BITS,
    decode_dir_page,
    encode_dir_index,
    encode_dir_leaf,
    leaf_size_bytes,
    name_key,
)
from xipfs.units import PAGE_SIZE

SEED = 0x1234
HASH_KEY = bytes(range(16))
SEQUENCE_MASK = (1 << SEQUENCE_BITS) - 1

names = st.binary(min_size=1, max_size=NAME_SIZE_BYTES_MAX)
keys = st.integers(SEQUENCE_MASK + 1, KEY_MAX)
slot_lists = st.lists(
    st.tuples(keys, st.integers(1, 2**31 - 1), st.integers(0, 15), names), max_size=60
).filter(lambda slots: leaf_size_bytes(sum(len(s[3]) for s in slots), len(slots)) <= PAGE_SIZE)


@given(names)
def test_a_name_has_room_for_its_collisions(name: bytes):
    key = name_key(name, HASH_KEY)
    assert key & SEQUENCE_MASK == 0
    assert SEQUENCE_MASK < key <= KEY_MAX - SEQUENCE_MASK


@given(names)
def test_the_key_is_the_documents(name: bytes):
    digest = hashlib.blake2b(name, digest_size=7, key=HASH_KEY).digest()
    assert name_key(name, HASH_KEY) == int.from_bytes(digest, "little") * 128


def test_the_key_is_pinned():
    """Another hash is another format."""
    assert name_key(b"etc", HASH_KEY) == 0x649BC4BA651C1600


def test_a_hash_of_zero_counts_as_one(monkeypatch: pytest.MonkeyPatch):
    class ZeroHash:
        def __init__(self, name: bytes, *, digest_size: int, key: bytes) -> None:
            self.size_bytes = digest_size

        def digest(self) -> bytes:
            return bytes(self.size_bytes)

    monkeypatch.setattr(hashlib, "blake2b", ZeroHash)
    assert name_key(b"etc", HASH_KEY) == 1 << SEQUENCE_BITS


@given(slot_lists, st.integers(0, 2**32 - 1))
def test_leaf_round_trip(slots: list[tuple[int, int, int, bytes]], generation: int):
    slots.sort()
    leaf = encode_dir_leaf(SEED, ino=7, generation=generation, slots=slots)
    assert len(leaf) == PAGE_SIZE
    page = decode_dir_page(leaf, SEED, "here")
    assert (page.ino, page.generation, page.level) == (7, generation, 0)
    found = [
        (key, ino, d_type, page.name(number))
        for number, (key, ino, _, _, d_type) in enumerate(page.entries.tolist())
    ]
    assert found == slots
    slot_bytes = np.frombuffer(leaf, "u1", page.entries.nbytes, DIR_PAGE.size_bytes)
    assert not slot_bytes.reshape(-1, DIR_SLOT_DTYPE.itemsize)[:, 20:].any()
    assert not any(leaf[DIR_PAGE.size_bytes + page.entries.nbytes : page.names_start])


@given(st.lists(st.tuples(keys, st.integers(1, 2**32)), min_size=1, max_size=NR_INDEX_ENTRIES))
def test_index_round_trip(entries: list[tuple[int, int]]):
    index = encode_dir_index(SEED, ino=7, generation=1, level=2, entries=entries)
    page = decode_dir_page(index, SEED, "here")
    assert (page.ino, page.generation, page.level) == (7, 1, 2)
    assert page.entries.tolist() == entries


def slots_that_fill_a_leaf(spare_bytes: int) -> list[tuple[int, int, int, bytes]]:
    slots = [(key, 1, 8, b"n" * 255) for key in range(128, 142)]
    left = PAGE_SIZE - leaf_size_bytes(14 * 255, 14) - DIR_SLOT_DTYPE.itemsize
    return [*slots, (142, 1, 8, b"n" * (left - spare_bytes))]


def test_a_leaf_may_be_full_to_the_last_byte():
    leaf = encode_dir_leaf(SEED, ino=7, generation=0, slots=slots_that_fill_a_leaf(0))
    page = decode_dir_page(leaf, SEED, "here")
    assert page.names_start == DIR_PAGE.size_bytes + 15 * DIR_SLOT_DTYPE.itemsize
    assert page.name(14) == slots_that_fill_a_leaf(0)[14][3]


def test_a_byte_too_much_is_a_bug():
    with pytest.raises(BugError, match="a leaf too full: ino=7 size_bytes=4097"):
        encode_dir_leaf(SEED, ino=7, generation=0, slots=slots_that_fill_a_leaf(-1))
    entries = [(key, 1) for key in range(NR_INDEX_ENTRIES + 1)]
    with pytest.raises(BugError, match="an index too full: ino=7 nr_entries=255"):
        encode_dir_index(SEED, ino=7, generation=0, level=1, entries=entries)


def test_an_empty_leaf_is_a_directory_without_names_and_an_empty_index_is_damage():
    leaf = encode_dir_leaf(SEED, ino=7, generation=0, slots=[])
    assert len(decode_dir_page(leaf, SEED, "here").entries) == 0
    index = encode_dir_index(SEED, ino=7, generation=0, level=1, entries=[])
    with pytest.raises(FormatError, match=r"^here: an index of nothing"):
        decode_dir_page(index, SEED, "here")


def read_all(page: bytes | bytearray) -> None:
    """Decode a page and read every name of it."""
    found = decode_dir_page(page, SEED, "here")
    for number in range(len(found.entries) if found.level == 0 else 0):
        name = found.name(number)
        assert 1 <= len(name) <= NAME_SIZE_BYTES_MAX
        assert name in bytes(page[found.names_start :])


EDITS = st.lists(
    st.tuples(st.integers(8, PAGE_SIZE - 1) | st.integers(8, 128), st.integers(0, 255)), max_size=12
)


@given(slot_lists, EDITS)
def test_a_sealed_page_that_lies_is_refused_or_read_inside_its_bounds(slots, edits):
    page = bytearray(encode_dir_leaf(SEED, ino=7, generation=0, slots=sorted(slots)))
    for offset, value in edits:
        page[offset] = value
    DIR_PAGE.seal(page, SEED)
    try:
        read_all(page)
    except FormatError as exc:
        assert "\n" not in str(exc)  # noqa: PT017 (both outcomes are allowed)


@given(st.binary(min_size=32, max_size=128))
def test_a_sealed_page_of_noise_is_refused_or_read_inside_its_bounds(noise: bytes):
    page = bytearray((noise * PAGE_SIZE)[:PAGE_SIZE])
    DIR_PAGE.seal(page, SEED)
    try:
        read_all(page)
    except FormatError as exc:
        assert "\n" not in str(exc)  # noqa: PT017


@pytest.mark.parametrize("names_start", [0, 31, 32 + 23, 4097, 65535])
def test_names_that_start_in_the_slots_or_behind_the_page_are_refused(names_start: int):
    page = bytearray(encode_dir_leaf(SEED, ino=7, generation=0, slots=[(128, 1, 8, b"etc")]))
    page[24:26] = names_start.to_bytes(2, "little")
    DIR_PAGE.seal(page, SEED)
    with pytest.raises(FormatError, match=f"names start at {names_start}"):
        decode_dir_page(page, SEED, "here")


@pytest.mark.parametrize(
    ("name_offset", "name_size_bytes"), [(0, 3), (4092, 3), (4094, 3), (65535, 255), (4093, 0)]
)
def test_a_name_outside_of_the_names_is_refused(name_offset: int, name_size_bytes: int):
    page = bytearray(encode_dir_leaf(SEED, ino=7, generation=0, slots=[(128, 1, 8, b"etc")]))
    page[32 + 16 : 32 + 19] = name_offset.to_bytes(2, "little") + bytes([name_size_bytes])
    DIR_PAGE.seal(page, SEED)
    with pytest.raises(FormatError, match=f"^directory 7: slot 0 has its name at .{name_offset},"):
        decode_dir_page(page, SEED, "here").name(0)


@pytest.mark.parametrize(("level", "nr_entries_max"), [(0, 169), (1, 254)])
def test_more_entries_than_a_page_holds_are_refused(level: int, nr_entries_max: int):
    page = bytearray(PAGE_SIZE)
    page[20:22] = level.to_bytes(2, "little")
    page[24:26] = PAGE_SIZE.to_bytes(2, "little")
    for nr_entries in (nr_entries_max + 1, 65535):
        page[22:24] = nr_entries.to_bytes(2, "little")
        DIR_PAGE.seal(page, SEED)
        with pytest.raises(FormatError, match=f"^here: {nr_entries} entries end at byte"):
            decode_dir_page(page, SEED, "here")


def test_every_flipped_bit_of_the_page_is_detected():
    page = bytearray(
        encode_dir_leaf(SEED, ino=7, generation=0, slots=[(128, 1, 8, b"etc"), (256, 2, 8, b"usr")])
    )
    for bit in range(8 * PAGE_SIZE):
        page[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode_dir_page(page, SEED, "here")
        page[bit // 8] ^= 1 << bit % 8
