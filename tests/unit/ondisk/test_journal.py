"""The journal's two headers: at every moment of an update one of them is sound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.errors import FormatError
from xipfs.ondisk.journal import (
    JOURNAL_HEADER,
    NR_JOURNAL_HEADERS,
    DiskJournalHeader,
    decode_journal_header,
)
from xipfs.units import PAGE_SIZE

SEED = 0x1234
OLD = DiskJournalHeader(sequence=6, head=4096)
NEW = DiskJournalHeader(sequence=7, head=64)


def page_of(*headers: DiskJournalHeader | None) -> bytearray:
    """The first page of a journal with these in its places."""
    page = bytearray(PAGE_SIZE)
    for number, header in enumerate(headers):
        if header:
            start = number * JOURNAL_HEADER.size_bytes
            page[start : start + JOURNAL_HEADER.size_bytes] = header.encode(SEED)
    return page


def test_round_trip():
    assert decode_journal_header(page_of(OLD), SEED) == OLD


@pytest.mark.parametrize("headers", [(OLD, NEW), (NEW, OLD), (None, NEW), (NEW, None)])
def test_the_newest_sound_header_counts(headers: tuple[DiskJournalHeader | None, ...]):
    assert len(headers) == NR_JOURNAL_HEADERS
    assert decode_journal_header(page_of(*headers), SEED) == NEW


@given(st.sets(st.integers(0, 7)), st.sampled_from([0, 1]))
def test_a_torn_update_leaves_the_old_header_or_the_new(words: set[int], place: int):
    """Any subset of the eight words of a header may have reached the medium."""
    oldest = DiskJournalHeader(sequence=5, head=128)
    before = page_of(oldest, OLD) if place == 0 else page_of(OLD, oldest)
    after = page_of(NEW, OLD) if place == 0 else page_of(OLD, NEW)
    torn = bytearray(before)
    for word in words:
        start = place * JOURNAL_HEADER.size_bytes + 8 * word
        torn[start : start + 8] = after[start : start + 8]
    expected = NEW if torn == after else OLD
    assert decode_journal_header(torn, SEED) == expected


def test_a_journal_without_a_header_is_refused():
    with pytest.raises(FormatError, match=r"journal header 0: .*journal header 1: "):
        decode_journal_header(page_of(), SEED)


def test_the_journal_of_another_image_is_refused():
    with pytest.raises(FormatError, match="damaged journal header"):
        decode_journal_header(page_of(OLD, NEW), SEED + 1)
