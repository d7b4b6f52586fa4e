"""Directory pages: a B-tree over the directory's own pages, ordered by the key of the name.

A directory is a file of pages. Page 0 is the root: a leaf (level 0) while all entries fit, else an
index of pages one level lower. Every entry has a key, unique in its directory:

    key = hash(name) << 7 | sequence        hash: 56 bits, never 0; sequence: 0..127

hash is BLAKE2b of the name with the superblock's hash_key, so nobody can choose colliding names;
the sequence tells apart the rare names that collide all the same. A key never changes while its
entry lives: it is also the position that readdir hands out, which is why inserting and removing
other entries moves nobody's position.

    leaf   head | slot 0 | slot 1 | ...  -> free ->  | name 1 | name 0 |      slots sorted by key
    index  head | (key, pgoff) | (key, pgoff) | ...                           lowest key of each

"." and ".." are not stored: an inode knows its parent.
"""

import hashlib
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import FormatError, bug_on
from xipfs.ondisk.record import Buffer, RecordFormat, fields_dtype
from xipfs.units import PAGE_SIZE, Ino

__all__ = [
    "DIR_INDEX_DTYPE",
    "DIR_PAGE",
    "DIR_SLOT_DTYPE",
    "KEY_MAX",
    "NAME_SIZE_BYTES_MAX",
    "NR_INDEX_ENTRIES",
    "SEQUENCE_BITS",
    "DiskDirPage",
    "SlotArray",
    "decode_dir_page",
    "encode_dir_index",
    "encode_dir_leaf",
    "leaf_size_bytes",
    "name_key",
]

NAME_SIZE_BYTES_MAX = 255
SEQUENCE_BITS = 7
KEY_MAX = (1 << 63) - 1

DIR_PAGE = RecordFormat(
    "directory page",
    int.from_bytes(b"XDIR", "little"),
    fields_dtype(
        32,
        [
            (0, "<u4", "magic"),
            (4, "<u4", "checksum"),
            (8, "<u8", "ino"),
            (16, "<u4", "generation"),
            (20, "<u2", "level"),
            (22, "<u2", "nr_entries"),
            (24, "<u2", "names_start"),
        ],
    ),
)

DIR_SLOT_DTYPE = fields_dtype(
    24,
    [
        (0, "<i8", "key"),
        (8, "<u8", "ino"),
        (16, "<u2", "name_offset"),
        (18, "<u1", "name_size_bytes"),
        (19, "<u1", "d_type"),
    ],
)

DIR_INDEX_DTYPE = fields_dtype(16, [(0, "<i8", "key"), (8, "<u8", "pgoff")])

NR_INDEX_ENTRIES = (PAGE_SIZE - DIR_PAGE.size_bytes) // DIR_INDEX_DTYPE.itemsize

SlotArray: TypeAlias = NDArray[np.void]
"""dtype DIR_SLOT_DTYPE, shape (nr_entries,), sorted by key."""


class DiskDirPage(NamedTuple):
    """One checked directory page; `entries` is a view of `page`.

    entries: DIR_SLOT_DTYPE where level is 0, else DIR_INDEX_DTYPE; sorted by key.
    """

    ino: Ino
    generation: int
    level: int
    names_start: int
    entries: NDArray[np.void]
    page: Buffer

    def name(self, slot: int) -> bytes:
        """Return the name of leaf entry number *slot*, a copy.

        Raises: FormatError on a name that lies outside the page's names.
        """
        entry = self.entries[slot]
        start = int(entry["name_offset"])
        end = start + int(entry["name_size_bytes"])
        if not self.names_start <= start < end <= PAGE_SIZE:
            raise FormatError(
                f"directory {self.ino}: slot {slot} has its name at [{start}, {end}), "
                f"names start at {self.names_start}"
            )
        return bytes(self.page[start:end])


def name_key(name: bytes, hash_key: bytes) -> int:
    """Return the lowest key that *name* may have; the highest is `| (1 << SEQUENCE_BITS) - 1`.

    >>> name_key(b"etc", bytes(16)) & 127
    0
    """
    digest = hashlib.blake2b(name, digest_size=7, key=hash_key).digest()
    return (int.from_bytes(digest, "little") or 1) << SEQUENCE_BITS


def leaf_size_bytes(name_sizes_bytes: int, nr_entries: int) -> int:
    """Return how much of a leaf *nr_entries* fill whose names have so many bytes in all."""
    return DIR_PAGE.size_bytes + nr_entries * DIR_SLOT_DTYPE.itemsize + name_sizes_bytes


def decode_dir_page(page: Buffer, seed: int, where: str) -> DiskDirPage:
    """Check one directory page: head, checksum, and that its entries stay inside.

    Names are checked when they are read (`DiskDirPage.name`). Raises: FormatError.
    """
    ino, generation, level, nr_entries, names_start = DIR_PAGE.decode(page, seed, where)
    dtype = DIR_INDEX_DTYPE if level else DIR_SLOT_DTYPE
    end = DIR_PAGE.size_bytes + nr_entries * dtype.itemsize
    if end > PAGE_SIZE or (level == 0 and not end <= names_start <= PAGE_SIZE):
        raise FormatError(
            f"{where}: {nr_entries} entries end at byte {end}, names start at {names_start}"
        )
    if level and not nr_entries:
        raise FormatError(f"{where}: an index of nothing")
    entries = np.frombuffer(page, dtype, nr_entries, DIR_PAGE.size_bytes)
    return DiskDirPage(ino, generation, level, names_start, entries, page)


def encode_dir_leaf(
    seed: int, *, ino: int, generation: int, slots: list[tuple[int, int, int, bytes]]
) -> bytes:
    """Return the sealed page of one leaf. *slots*: (key, ino, d_type, name), sorted by key.

    Bug: they do not fit one page (`leaf_size_bytes`).
    """
    size_bytes = leaf_size_bytes(sum(len(name) for *_, name in slots), len(slots))
    bug_on(size_bytes > PAGE_SIZE, "a leaf too full", ino=ino, size_bytes=size_bytes)
    page = bytearray(PAGE_SIZE)
    array = np.zeros(len(slots), DIR_SLOT_DTYPE)
    names_start = PAGE_SIZE
    rows = []
    for key, entry_ino, d_type, name in slots:
        names_start -= len(name)
        page[names_start : names_start + len(name)] = name
        rows.append((key, entry_ino, names_start, len(name), d_type))
    array[:] = rows
    return _seal_dir_page(
        page,
        seed,
        array,
        ino=ino,
        generation=generation,
        level=0,
        nr_entries=len(slots),
        names_start=names_start,
    )


def encode_dir_index(
    seed: int, *, ino: int, generation: int, level: int, entries: list[tuple[int, int]]
) -> bytes:
    """Return the sealed page of one index. *entries*: (lowest key below, pgoff), sorted by key."""
    bug_on(len(entries) > NR_INDEX_ENTRIES, "an index too full", ino=ino, nr_entries=len(entries))
    array = np.array(entries, DIR_INDEX_DTYPE)
    return _seal_dir_page(
        bytearray(PAGE_SIZE),
        seed,
        array,
        ino=ino,
        generation=generation,
        level=level,
        nr_entries=len(entries),
        names_start=PAGE_SIZE,
    )


def _seal_dir_page(
    page: bytearray, seed: int, entries: NDArray[np.void], /, **head_fields: int
) -> bytes:
    head = DIR_PAGE.encode(seed, **head_fields)
    page[: len(head)] = head
    page[len(head) : len(head) + entries.nbytes] = entries.tobytes()
    DIR_PAGE.seal(page, seed)
    return bytes(page)
