"""Contents and names without a mm: parts, holes, order."""

import pytest

from tests.kit.image import Extent, ImageKit
from tests.kit.sample import make_sample
from xipfs.errors import FormatError, InvalidArgumentError, IsDirError
from xipfs.fs import contents
from xipfs.fs.contents import iter_contents, iter_data, list_directory, printable
from xipfs.fs.namei import path_lookup
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SIZE


@pytest.fixture
def open_kit(tmp_path):
    opened = []

    def open_kit(kit) -> SuperBlock:
        image = kit.build() if isinstance(kit, ImageKit) else kit
        opened.append(SuperBlock.open(image.write(tmp_path / "nvram.img")))
        return opened[-1]

    yield open_kit
    for sb in opened:
        sb.close()


A, B = b"a" * PAGE_SIZE, b"b" * PAGE_SIZE
HOLE = bytes(PAGE_SIZE)


@pytest.mark.parametrize("part_pages", [1, 2, 256])
@pytest.mark.parametrize(
    ("extents", "size_bytes", "expected"),
    [
        ([], 0, b""),
        ([], 3, bytes(3)),
        ([], 3 * PAGE_SIZE + 1, bytes(3 * PAGE_SIZE + 1)),
        ([Extent(0, A * 3)], 3 * PAGE_SIZE, A * 3),
        ([Extent(0, A * 3)], 2 * PAGE_SIZE + 7, (A * 3)[: 2 * PAGE_SIZE + 7]),
        ([Extent(2, A), Extent(4, B)], 6 * PAGE_SIZE, HOLE * 2 + A + HOLE + B + HOLE),
        ([Extent(0, A), Extent(1, B, unwritten=True)], 2 * PAGE_SIZE, A + HOLE),
        ([Extent(3 * i, A) for i in range(8)], 22 * PAGE_SIZE, (A + HOLE * 2) * 7 + A),
        ([Extent(0, A), Extent(1, B)], 5, A[:5]),
    ],
)
def test_contents(open_kit, monkeypatch, part_pages, extents, size_bytes, expected):
    monkeypatch.setattr(contents, "PART_SIZE_BYTES", part_pages * PAGE_SIZE)
    kit = ImageKit()
    kit.add_extents(INO_ROOT, b"file", extents, size_bytes)
    sb = open_kit(kit)
    inode = path_lookup(sb, b"file")
    parts = list(iter_contents(sb, inode))
    assert b"".join(parts) == expected
    assert all(0 < len(part) <= part_pages * PAGE_SIZE for part in parts)
    file = bytearray(size_bytes)
    for offset, data in iter_data(sb, inode):
        file[offset : offset + len(data)] = data
        assert any(data), "a hole came as data"
    assert file == expected


def test_a_huge_hole_comes_in_parts(open_kit):
    kit = ImageKit()
    kit.add_extents(INO_ROOT, b"file", [], 1 << 44)
    sb = open_kit(kit)
    first = next(iter_contents(sb, path_lookup(sb, b"file")))
    assert first == bytes(contents.PART_SIZE_BYTES)


def test_what_has_no_contents(open_kit):
    sb = open_kit(make_sample().image)
    with pytest.raises(IsDirError):
        next(iter_contents(sb, path_lookup(sb, b"etc")))
    for name in (b"null", b"fifo"):
        with pytest.raises(InvalidArgumentError):
            next(iter_contents(sb, path_lookup(sb, name)))
    link = path_lookup(sb, b"short", follow=False)
    assert b"".join(iter_contents(sb, link)) == b"etc/hosts"


def test_extents_out_of_order_across_leaves(open_kit):
    kit = ImageKit(fanout=3)
    ino = kit.add_extents(INO_ROOT, b"f", [Extent(i, A) for i in range(6)], 6 * PAGE_SIZE, depth=1)
    image = kit.build()
    image.change_node(image.node_block(ino, 1), 0, pgoff=1)
    sb = open_kit(image)
    with pytest.raises(FormatError, match="out of order"):
        list(iter_data(sb, path_lookup(sb, b"f")))


def test_names_come_in_byte_order(open_kit):
    kit = ImageKit(fanout=3)
    names = [b"b", b"a", b"\xff", b"B", b"\n", b"a.b", b"..."]
    for name in names:
        kit.add_file(INO_ROOT, name)
    sb = open_kit(kit)
    assert [e.name for e in list_directory(sb, sb.iget(INO_ROOT))] == sorted(names)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name.txt", "plain name.txt"),
        ("snö ☃".encode(), "snö ☃"),
        (b"new\nline", "new\\nline"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"back\\slash", "back\\\\slash"),
        ("\u202egnp.exe".encode(), "\\u202egnp.exe"),
        (b"\xed\xb3\xbf", "\\xed\\xb3\\xbf"),
    ],
)
def test_names_are_printed_in_one_line_and_cannot_disturb_it(name, text):
    assert printable(name) == text
    assert printable(name).isprintable()
