"""Sizes in and out, pages and pfns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.units import (
    NVRAM_PFN_START,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    Pfn,
    bytes_to_pages,
    format_size,
    parse_size,
    pfn_to_kaddr,
    virt_to_pfn,
)


@given(st.integers(0, 2**63))
def test_pages_hold_the_bytes_and_no_page_is_too_many(size_bytes: int):
    nr_pages = bytes_to_pages(size_bytes)
    assert (nr_pages - 1) * PAGE_SIZE < size_bytes <= nr_pages * PAGE_SIZE or nr_pages == 0
    assert (nr_pages == 0) == (size_bytes == 0)


@given(st.integers(0, NVRAM_PFN_START * 2), st.integers(0, PAGE_MASK))
def test_every_byte_of_a_frame_is_in_it(pfn: int, offset: int):
    kaddr = pfn_to_kaddr(Pfn(pfn))
    assert kaddr == pfn << PAGE_SHIFT
    assert virt_to_pfn(kaddr + offset) == pfn


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        (" 64M ", 64 << 20),
        ("64m", 64 << 20),
        ("64MB", 64 << 20),
        ("64 MiB", 64 << 20),
        ("1.5G", 3 << 29),
        (".5k", 512),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
    ],
)
def test_parse_size(text: str, size_bytes: int):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", " ", "M", "four", "-1", "-1.5K", "1.3", "1.0e400", "0x10", "5E", "1K1", "nan", "."]
)
def test_what_is_no_size_is_a_value_error_that_quotes_it(text: str):
    with pytest.raises(ValueError, match=r"^not a ") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@given(st.text(alphabet="0123456789.eE+-_kKmMgGiIbB ", max_size=12) | st.text(max_size=6))
def test_any_text_is_a_size_or_a_value_error(text: str):
    try:
        size_bytes = parse_size(text)
    except ValueError as exc:
        assert str(exc).startswith("not a ")  # noqa: PT017 (both outcomes are allowed)
    else:
        assert type(size_bytes) is int
        assert size_bytes >= 0


@given(st.integers(0, 1023), st.integers(0, 5))
def test_a_size_that_was_written_can_be_read(amount: int, unit: int):
    size_bytes = amount << 10 * unit
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(st.integers(0, 2**59))
def test_a_size_is_written_in_one_to_four_digits(size_bytes: int):
    amount, unit = format_size(size_bytes).split()
    assert unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    assert 1 <= sum(c.isdigit() for c in amount) <= 5  # 0.001 would be five, 1024 is four
    assert float(amount) <= 1024
