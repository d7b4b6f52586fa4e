"""docs/FORMAT.md is the only prose copy of the image layout: it says what the code says.

The document names each record, enumeration and constant of `xipfs.ondisk`, and nothing else: what
is missing on either side fails. Under a line like

    `INODE` in [inode.py](../xipfs/ondisk/inode.py): 256 bytes, magic `XINO`

stand a byte picture, which is compared with the one `draw` makes of the dtype, and a table of the
fields, which tiles the record from its first byte to its last. To accept a changed layout, copy
the picture and the rows from the failure's text.
"""

import enum
import importlib
import pkgutil
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import xipfs.ondisk
from xipfs import units
from xipfs.ondisk import superblock
from xipfs.ondisk.record import RecordFormat

DOCUMENT = Path(__file__).parents[2] / "docs" / "FORMAT.md"

TITLE = re.compile(
    r"^`(?P<name>\w+)` in \[(?P<module>\w+)\.py\]\([^)]*\)"
    r"(?:: (?P<size>\d+) bytes(?:, magic `(?P<magic>\w+)`)?)?$"
)
RECORD_COLUMNS = ["offset", "bytes", "dtype", "field", "meaning", "valid values"]

# How large each record is, once more and by hand: a layout changes in three places.
SIZES_BYTES = {
    "SUPERBLOCK": 4096,
    "STATE": 256,
    "INODE": 256,
    "EXTENT_DTYPE": 24,
    "EXTENT_NODE": 40,
    "DIR_PAGE": 32,
    "DIR_SLOT_DTYPE": 24,
    "DIR_INDEX_DTYPE": 16,
    "XATTR_RUN": 32,
    "XATTR_ENTRY_DTYPE": 8,
    "GROUP_DESC": 32,
    "JOURNAL_HEADER": 64,
    "JOURNAL_RECORD": 40,
}


class Section(NamedTuple):
    """What the document says of one record or enumeration."""

    name: str
    module: str
    size_bytes: int | None
    magic: str | None
    picture: str
    columns: list[str]
    rows: list[list[str]]


def read_table(lines: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return the column names and the rows of a markdown table that starts at lines[0]."""
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|\n").split("|")])
    assert len(table) >= 2, f"no table at {lines[:1]}"
    return table[0], table[2:]


def read_sections(text: str) -> dict[str, Section]:
    """Find all titles in the document, with the picture and the table that follow each."""
    lines = text.splitlines()
    sections = {}
    for number, line in enumerate(lines):
        title = TITLE.match(line)
        if not title:
            continue
        at = number + 1
        picture = []
        while not lines[at].startswith("|"):
            if lines[at].startswith("```"):
                end = lines.index("```", at + 1)
                picture = lines[at + 1 : end]
                at = end
            at += 1
        columns, rows = read_table(lines[at:])
        assert title["name"] not in sections, f"{title['name']} is described twice"
        sections[title["name"]] = Section(
            title["name"],
            title["module"],
            int(title["size"]) if title["size"] else None,
            title["magic"],
            "\n".join(picture),
            columns,
            rows,
        )
    return sections


def read_constants(text: str) -> dict[str, int]:
    """Return the table of fixed numbers; values are decimal or like 2^31 - 1."""
    lines = text.splitlines()
    columns, rows = read_table(lines[lines.index("| constant | value | meaning |") :])
    assert columns == ["constant", "value", "meaning"]
    constants = {}
    for name, value, _ in rows:
        number = re.fullmatch(r"(\d+)|2\^(\d+)(?: - (\d+))?", value)
        assert number, f"{name}: cannot read {value!r}"
        constants[name.strip("`")] = (
            int(number[1]) if number[1] else (1 << int(number[2])) - int(number[3] or 0)
        )
    return constants


def public_objects() -> dict[str, tuple[str, object]]:
    """Return name -> (module, object) of all that the modules of xipfs.ondisk export."""
    objects = {}
    for info in pkgutil.iter_modules(xipfs.ondisk.__path__):
        module = importlib.import_module(f"xipfs.ondisk.{info.name}")
        for name in module.__all__:
            objects[name] = (info.name, getattr(module, name))
    return objects


def dtype_of(value: object) -> np.dtype | None:
    if isinstance(value, RecordFormat):
        return value.dtype
    return value if isinstance(value, np.dtype) else None


def is_enum(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, enum.IntEnum | enum.IntFlag)


def is_constant(value: object) -> bool:
    return isinstance(value, int)


def tiles(dtype: np.dtype) -> list[tuple[int, int, str, str]]:
    """Return (offset, bytes, dtype, field) of each field and of each reserved gap."""
    rows = []
    end = 0
    fields = sorted((offset, fmt, name) for name, (fmt, offset) in dtype.fields.items())
    for offset, fmt, name in fields:
        if offset > end:
            rows.append((end, offset - end, "", ""))
        text = fmt.str.replace("|", "") if fmt.kind == "V" else f"<{fmt.str[1:]}"
        rows.append((offset, fmt.itemsize, text, name))
        end = offset + fmt.itemsize
    if end < dtype.itemsize:
        rows.append((end, dtype.itemsize - end, "", ""))
    return rows


def draw(dtype: np.dtype) -> str:
    """Picture a record, eight bytes a line; longer fields take one line and say their size."""
    lines = ["     " + "".join(f"{n:>4}    " for n in range(8)).rstrip()]
    row = ""
    for offset, size_bytes, _, name in tiles(dtype):
        label = name or "-"
        if offset % 8 == 0:
            row = f"{offset:>4} |"
        left = 8 - offset % 8
        if size_bytes > left:
            row += f" {label} ({size_bytes} bytes)".ljust(8 * left - 1) + "|"
        else:
            row += f" {label}"[: 8 * size_bytes - 1].ljust(8 * size_bytes - 1) + "|"
        end = offset + size_bytes
        if size_bytes >= left or end == dtype.itemsize:
            lines.append(row)
    return "\n".join(lines)


TEXT = DOCUMENT.read_text()
SECTIONS = read_sections(TEXT)
OBJECTS = public_objects()
RECORDS = sorted(name for name, (_, value) in OBJECTS.items() if dtype_of(value) is not None)
ENUMS = sorted(name for name, (_, value) in OBJECTS.items() if is_enum(value))


def test_the_document_names_what_the_code_has_and_nothing_else():
    assert set(SECTIONS) == {*RECORDS, *ENUMS}


@pytest.mark.parametrize("name", [*RECORDS, *ENUMS])
def test_each_is_in_the_module_that_the_document_links(name):
    assert SECTIONS[name].module == OBJECTS[name][0]


@pytest.mark.parametrize("name", RECORDS)
def test_fields(name):
    dtype = dtype_of(OBJECTS[name][1])
    section = SECTIONS[name]
    assert section.columns == RECORD_COLUMNS
    expected = [
        [str(offset), str(size_bytes), f"`{fmt}`" if fmt else "", field or "reserved"]
        for offset, size_bytes, fmt, field in tiles(dtype)
    ]
    # The reserved rows carry their word in the column of the meaning.
    found = [[*row[:3], row[3] or row[4]] for row in section.rows]
    assert found == expected


@pytest.mark.parametrize("name", RECORDS)
def test_sizes(name):
    dtype = dtype_of(OBJECTS[name][1])
    assert dtype.itemsize == SIZES_BYTES[name] == SECTIONS[name].size_bytes


def test_the_list_of_sizes_is_complete():
    assert sorted(SIZES_BYTES) == RECORDS


@pytest.mark.parametrize("name", RECORDS)
def test_magics(name):
    value = OBJECTS[name][1]
    section = SECTIONS[name]
    if not isinstance(value, RecordFormat):
        assert section.magic is None
        return
    assert section.magic.encode() == value.magic.to_bytes(4, "little")
    assert section.rows[0][5] == f"`{section.magic}`"


def test_every_magic_is_used_once():
    magics = [value.magic for _, value in OBJECTS.values() if isinstance(value, RecordFormat)]
    assert len(set(magics)) == len(magics)


@pytest.mark.parametrize("name", RECORDS)
def test_pictures(name):
    expected = draw(dtype_of(OBJECTS[name][1]))
    assert SECTIONS[name].picture == expected, f"the picture of {name} should be:\n{expected}"


@pytest.mark.parametrize("name", RECORDS)
def test_all_integers_are_little_endian_and_aligned(name):
    dtype = dtype_of(OBJECTS[name][1])
    for field, (fmt, offset) in dtype.fields.items():
        if fmt.kind == "V":
            continue
        assert fmt.newbyteorder("<") == fmt, field
        assert offset % fmt.itemsize == 0, field


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_starts_with_magic_and_checksum(name):
    value = OBJECTS[name][1]
    if isinstance(value, RecordFormat):
        assert tiles(value.dtype)[:2] == [(0, 4, "<u4", "magic"), (4, 4, "<u4", "checksum")]


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations(name):
    section = SECTIONS[name]
    assert section.columns == ["value", "name", "meaning"]
    found = {row[1]: int(row[0]) for row in section.rows}
    assert found == {member.name: member.value for member in OBJECTS[name][1]}
    assert all(row[2] for row in section.rows)


def test_fixed_numbers():
    code = {name: value for name, (_, value) in OBJECTS.items() if is_constant(value)}
    code |= {"PAGE_SHIFT": units.PAGE_SHIFT, "PAGE_SIZE": units.PAGE_SIZE}
    assert read_constants(TEXT) == code


def test_every_feature_is_known_to_the_code_that_names_it():
    assert set(superblock.COMPAT_KNOWN) == set(superblock.Compat)


def test_the_version_is_the_newest_of_the_history():
    lines = TEXT.splitlines()
    _, rows = read_table(lines[lines.index("| version | change |") :])
    versions = [int(row[0]) for row in rows]
    assert versions == sorted(set(versions))
    assert versions[-1] == superblock.FORMAT_VERSION


def test_the_superblocks_version_row_says_the_version():
    row = next(row for row in SECTIONS["SUPERBLOCK"].rows if row[3] == "version")
    assert row[5] == str(superblock.FORMAT_VERSION)


def test_the_reader_sees_what_the_document_says():
    """A mistake in the document is one in what the tests above compare: each edit is seen."""
    for old, new in (
        ("| 16 | 4 | `<u4` | generation |", "| 20 | 4 | `<u4` | generation |"),
        ("| 16 | 4 | `<u4` | generation |", "| 16 | 4 | `<i4` | generation |"),
        ("| 16 | 4 | `<u4` | generation |", "| 16 | 4 | `<u4` | version |"),
        ("256 bytes, magic `XINO`", "128 bytes, magic `XINO`"),
        ("| 2 | ORPHAN |", "| 3 | ORPHAN |"),
        (" - (3896 bytes)", " - (3895 bytes)"),
    ):
        assert old in TEXT
        assert read_sections(TEXT.replace(old, new)) != SECTIONS
