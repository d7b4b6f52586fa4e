"""PageWriter: pages appended to a file in few system calls."""

import os

import pytest

from xipfs.fs.pagewriter import PageWriter
from xipfs.phys.nvram import IOV_MAX
from xipfs.units import PAGE_SIZE


@pytest.fixture
def file(tmp_path):
    """A file open for writing, and for looking into it."""
    with (tmp_path / "f").open("w+b") as file:
        yield file


def page(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // PAGE_SIZE) * PAGE_SIZE, b"\0")


def test_every_piece_stands_on_pages_of_its_own(file):
    writer = PageWriter(file.fileno())
    pieces = [b"a", b"b" * PAGE_SIZE, bytearray(b"c" * (PAGE_SIZE + 1)), memoryview(b"d")]
    assert [writer.append(piece) for piece in pieces] == [0, 1, 2, 4]
    assert writer.append(b"") == 5  # nothing takes no page
    assert writer.next_block == 5
    writer.flush()
    assert file.read() == b"".join(page(bytes(piece)) for piece in pieces)


def test_nothing_is_written_before_it_pays(file):
    calls = []
    writer = PageWriter(file.fileno())
    writer.after_write = lambda: calls.append(writer.next_block)
    writer.append(b"a")
    assert os.fstat(file.fileno()).st_size == 0
    writer.append(bytes(1 << 20))
    assert calls == [257]
    writer.flush()
    assert calls == [257]


def test_seek_leaves_a_hole(file):
    writer = PageWriter(file.fileno())
    writer.append(b"a")
    writer.seek(3)
    writer.append(b"b")
    writer.seek(1)
    writer.append(b"c")
    writer.flush()
    assert file.read() == page(b"a") + page(b"c") + page(b"") + bytes(PAGE_SIZE) + page(b"b")


def test_more_pieces_than_one_call_takes(file):
    pieces = [b"%d" % i for i in range(3 * IOV_MAX)]
    writer = PageWriter(file.fileno())
    for piece in pieces:
        writer.append(piece)
    writer.flush()
    assert file.read() == b"".join(page(piece) for piece in pieces)


@pytest.mark.parametrize("limit", [1, 100, PAGE_SIZE, 5000])
def test_short_writes_are_continued(file, monkeypatch, limit):
    real = os.pwritev

    def pwritev(fd, buffers, offset):
        data = b"".join(buffers)[:limit]
        return real(fd, [data], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    pieces = [b"ab", b"c" * 4095, b"d" * PAGE_SIZE, b"e"]
    writer = PageWriter(file.fileno())
    for piece in pieces:
        writer.append(piece)
    writer.flush()
    assert file.read() == b"".join(page(piece) for piece in pieces)
