"""Nodes of the extent tree: round trips, how much one holds, and hostile counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.errors import BugError, FormatError
from xipfs.ondisk.extent import (
    EXTENT_DTYPE,
    EXTENT_NODE,
    NR_NODE_EXTENTS,
    decode_node,
    encode_node,
)
from xipfs.units import PAGE_SIZE

SEED = 0x1234
SET_NR_ENTRIES = slice(22, 24)


def some_extents(nr_extents: int) -> np.ndarray:
    extents = np.zeros(nr_extents, EXTENT_DTYPE)
    extents["pgoff"] = np.arange(nr_extents) * 2
    extents["block"] = 1000 - np.arange(nr_extents)
    extents["nr_pages"] = 1
    return extents


@given(st.integers(0, NR_NODE_EXTENTS), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_round_trip(nr_extents: int, depth: int, generation: int):
    extents = some_extents(nr_extents)
    page = encode_node(SEED, ino=17, generation=generation, depth=depth, entries=extents)
    assert len(page) == PAGE_SIZE
    ino, found_generation, found_depth, entries = decode_node(page, SEED, "page 9")
    assert (ino, found_generation, found_depth) == (17, generation, depth)
    assert entries.tolist() == extents.tolist()
    assert not any(page[EXTENT_NODE.size_bytes + extents.nbytes :])


def test_the_entries_are_a_view():
    page = encode_node(SEED, ino=17, generation=0, depth=0, entries=some_extents(3))
    entries = decode_node(page, SEED, "page 9")[3]
    assert not entries.flags.owndata
    assert not entries.flags.writeable


def test_a_node_is_full_with_169():
    assert NR_NODE_EXTENTS == 169
    with pytest.raises(BugError, match="too many extents: ino=17 nr_entries=170"):
        encode_node(SEED, ino=17, generation=0, depth=0, entries=some_extents(170))


@given(st.integers(NR_NODE_EXTENTS + 1, 2**16 - 1))
def test_a_sealed_node_that_says_more_is_refused(nr_entries: int):
    page = bytearray(encode_node(SEED, ino=17, generation=0, depth=0, entries=some_extents(169)))
    page[SET_NR_ENTRIES] = nr_entries.to_bytes(2, "little")
    EXTENT_NODE.seal(page, SEED)
    with pytest.raises(FormatError, match=f"^page 9: {nr_entries} extents"):
        decode_node(page, SEED, "page 9")


def test_every_flipped_bit_of_the_page_is_detected():
    page = bytearray(encode_node(SEED, ino=17, generation=0, depth=0, entries=some_extents(100)))
    for bit in range(8 * PAGE_SIZE):
        page[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode_node(page, SEED, "page 9")
        page[bit // 8] ^= 1 << bit % 8
