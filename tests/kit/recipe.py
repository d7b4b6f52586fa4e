"""Damaged images as lines of text, so that what breaks a reader can be kept, sent and replayed.

    tiny | inode16.size_bytes=0x80000000 | dir2[1].ino=1 | @0x4000^08 | swap 5 9 | size 0x9000

A recipe names a sound image to start from (`SEEDS`) and what is done to it, in this order:

    RECORD.FIELD=N       a field of a record or head          } sealed again: what an attacker does,
    RECORD[I].FIELD=N    a field of its entry number I        } and only distrust helps against
    RECORD+BYTE:HEX      any bytes of it                      }
    @BYTE:HEX            bytes of the image                   } as they come: what bad media do,
    @BYTE^HEX            bits to flip                         } and checksums find
    @BYTE*NR:HEX         NR times these bytes                 }
    copy A B, swap A B   whole pages: misdirected writes
    size N               the file is cut, or made longer by a hole

Records are named by what they are and where: super, state, journal0, group0, bitmap0 (sealed in
group0), inode17, and by their page node40, dir41, xattr42; jrec0 and so on of the journal's ring.
"""

import copy
import functools
import os
import random
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tests.kit.image import Extent, HandmadeImage, ImageKit
from tests.kit.sample import make_sample
from xipfs.ondisk.dentry import DIR_INDEX_DTYPE, DIR_PAGE, DIR_SLOT_DTYPE
from xipfs.ondisk.extent import EXTENT_DTYPE, EXTENT_NODE
from xipfs.ondisk.group import GROUP_DESC, bitmap_checksum
from xipfs.ondisk.inode import INO_ROOT, INODE
from xipfs.ondisk.journal import JOURNAL_HEADER, JOURNAL_RECORD, JournalRecordKind
from xipfs.ondisk.record import RecordFormat
from xipfs.ondisk.superblock import STATE, SUPERBLOCK
from xipfs.ondisk.xattr import XATTR_ENTRY_DTYPE, XATTR_RUN
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["SEEDS", "Damaged", "Record", "bake", "invent", "records_of", "sweep"]

FILE_SIZE_BYTES_MAX = 1 << 30
"""Holes cost nothing: an image may be that large, and its readers need some time for it."""


class Record(NamedTuple):
    """One sealed record. kind: None for a bitmap, whose seal stands in its group's descriptor.

    entries: (dtype, offset, number) of what follows a head in the same record.
    """

    name: str
    kind: RecordFormat | None
    offset: int
    size_bytes: int
    entries: tuple[tuple[np.dtype, int, int], ...] = ()

    def places(self) -> list[tuple[np.dtype, int]]:
        """(dtype, offset in the record) of the record or head, and of each entry."""
        if self.kind is None:
            return []
        places = [(self.kind.dtype, 0)]
        for dtype, offset, nr_entries in self.entries:
            places += [(dtype, offset + i * dtype.itemsize) for i in range(nr_entries)]
        return places


def records_of(image: HandmadeImage) -> list[Record]:
    """Every record of a sound image that has a checksum, but for the replica."""
    disk = image.disk
    found = [
        Record("super", SUPERBLOCK, 0, PAGE_SIZE),
        Record("state", STATE, PAGE_SIZE, STATE.size_bytes),
        Record("journal0", JOURNAL_HEADER, disk.journal_block << PAGE_SHIFT, 64),
        Record("group0", GROUP_DESC, disk.gdt_block << PAGE_SHIFT, GROUP_DESC.size_bytes),
        Record("bitmap0", None, disk.bitmap_block << PAGE_SHIFT, PAGE_SIZE),
    ]
    for ino in (0, INO_ROOT, *range(16, image.state.ino_end)):
        inode = image.inode(ino)
        payload = ((EXTENT_DTYPE, 136, inode.nr_extents),)
        offset = image.inode_offset(ino)
        found.append(Record(f"inode{ino}", INODE, offset, INODE.size_bytes, payload))
        if inode.nr_xattr_pages:
            entries = ((XATTR_ENTRY_DTYPE, XATTR_RUN.size_bytes, 1),)
            found.append(_page("xattr", XATTR_RUN, inode.xattr_block, entries))
        if stat.S_ISDIR(inode.mode):
            for pgoff in range(inode.size_bytes >> PAGE_SHIFT):
                page = image.dir_page(ino, pgoff)
                dtype = DIR_INDEX_DTYPE if page.level else DIR_SLOT_DTYPE
                entries = ((dtype, DIR_PAGE.size_bytes, len(page.entries)),)
                found.append(_page("dir", DIR_PAGE, image.dir_block(ino, pgoff), entries))
        elif inode.extent_depth:
            found += _nodes(image, inode.extents["block"].tolist())
    return found + list(_journal_records(image))


def _page(
    what: str, kind: RecordFormat, block: int, entries: tuple[tuple[np.dtype, int, int], ...]
) -> Record:
    return Record(f"{what}{block}", kind, block << PAGE_SHIFT, PAGE_SIZE, entries)


def _nodes(image: HandmadeImage, waiting: list[int]) -> Iterator[Record]:
    while waiting:
        block = waiting.pop()
        page = image.page(block)
        depth, nr_entries = np.frombuffer(page, EXTENT_NODE.dtype, 1)[0][["depth", "nr_entries"]]
        entries = ((EXTENT_DTYPE, EXTENT_NODE.size_bytes, int(nr_entries)),)
        yield _page("node", EXTENT_NODE, block, entries)
        if depth:
            below = np.frombuffer(page, EXTENT_DTYPE, nr_entries, EXTENT_NODE.size_bytes)
            waiting += below["block"].tolist()


def _journal_records(image: HandmadeImage) -> Iterator[Record]:
    offset = (image.disk.journal_block + 1) << PAGE_SHIFT
    number = 0
    while True:
        head = np.frombuffer(image.data, JOURNAL_RECORD.dtype, 1, offset)[0]
        if head["magic"] != JOURNAL_RECORD.magic:
            return
        size_bytes = JOURNAL_RECORD.size_bytes + int(head["size_bytes"])
        yield Record(f"jrec{number}", JOURNAL_RECORD, offset, size_bytes)
        offset += (size_bytes + 7) & ~7
        number += 1


# Sound images to start from


def _tiny() -> HandmadeImage:
    """A file, a directory with a file, a link, attributes: readers are done with it soonest."""
    kit = ImageKit(nr_pages=64)
    hosts = kit.add_file(INO_ROOT, b"hosts", b"127.0.0.1\n")
    kit.set_xattrs(hosts, {b"user.comment": b"by hand"})
    etc = kit.add_dir(INO_ROOT, b"etc")
    kit.add_extents(etc, b"sparse", [Extent(1, b"\xbb" * PAGE_SIZE)], 3 * PAGE_SIZE)
    kit.add_symlink(INO_ROOT, b"link", b"etc/sparse")
    return kit.build()


def _dirty() -> HandmadeImage:
    """The same with two transactions in its journal that wait to be replayed."""
    image = _tiny()
    inode = image.inode(16)
    log = []
    for sequence, mode in enumerate((0o100600, 0o100640), 1):
        record = inode._replace(mode=mode).encode(image.seed)
        state = image.state._replace(flags=0, written_ns=sequence).encode(image.seed)
        stores = [(image.inode_offset(16), record), (PAGE_SIZE, state)]
        for target, data in stores:
            log.append(_journal_record(image.seed, sequence, JournalRecordKind.DATA, target, data))
        commit = JournalRecordKind.COMMIT
        log.append(_journal_record(image.seed, sequence, commit, len(stores), b""))
    start = (image.disk.journal_block + 1) << PAGE_SHIFT
    ring = b"".join(log)
    image.data[start : start + len(ring)] = ring
    image.change_state(flags=0)
    return image


def _journal_record(seed: int, sequence: int, kind: int, target: int, data: bytes) -> bytes:
    head = JOURNAL_RECORD.encode(
        0, sequence=sequence, kind=int(kind), size_bytes=len(data), target=target
    )
    record = bytearray(head + data)
    JOURNAL_RECORD.seal(record, seed)
    return bytes(record) + bytes(-len(record) % 8)


SEEDS: dict[str, Callable[[], HandmadeImage]] = {
    "tiny": _tiny,
    "dirty": _dirty,
    "sample": lambda: make_sample().image,
}


@dataclass(frozen=True, slots=True)
class _Seed:
    image: HandmadeImage
    records: dict[str, Record]
    names: tuple[str, ...]
    numbers: tuple[int, ...]


@functools.cache
def _seed(name: str) -> _Seed:
    image = SEEDS[name]()
    records = {record.name: record for record in records_of(image)}
    disk = image.disk
    numbers = set(range(8)) | {disk.nr_pages, disk.nr_pages - 1, disk.nr_pages - 2}
    numbers |= {disk.journal_block, disk.gdt_block, disk.bitmap_block, image.inode_file_block()}
    numbers |= {record.offset >> PAGE_SHIFT for record in records.values()}
    numbers |= set(range(14, image.state.ino_end + 2))
    return _Seed(image, records, tuple(records), tuple(sorted(numbers)))


# From text to bytes


@dataclass(slots=True)
class Damaged:
    """An image as a recipe made it. data: up to its first free page; size_bytes: of the file."""

    data: bytearray
    replica: bytes
    size_bytes: int

    def write(self, fd: int) -> None:
        """Let the file *fd* be this image."""
        os.ftruncate(fd, 0)
        os.ftruncate(fd, self.size_bytes)
        os.pwrite(fd, memoryview(self.data)[: self.size_bytes], 0)
        nr_pages = int.from_bytes(self.replica[152:160], "little")
        if len(self.data) < nr_pages << PAGE_SHIFT <= self.size_bytes:
            os.pwrite(fd, self.replica, (nr_pages - 1) << PAGE_SHIFT)


_STEP = re.compile(
    r"(?P<record>[a-z]+\d*)(\[(?P<entry>\d+)\])?\.(?P<field>\w+)=(?P<value>\w+)"
    r"|(?P<sealed>[a-z]+\d*)\+(?P<byte>\w+):(?P<bytes>[0-9a-f]+)"
    r"|@(?P<at>\w+)(\*(?P<times>\w+))?(?P<how>[:^])(?P<hex>[0-9a-f]+)"
    r"|(?P<pages>copy|swap) (?P<from>\d+) (?P<to>\d+)"
    r"|size (?P<size>\w+)"
)


def bake(recipe: str) -> Damaged:
    """Return the image that *recipe* makes. Raises: ValueError for what is no recipe."""
    name, *steps = recipe.split(" | ")
    seed = _seed(name)
    image = seed.image
    damaged = Damaged(
        copy.copy(image.data), bytes(image.replica), image.disk.nr_pages << PAGE_SHIFT
    )
    for step in steps:
        found = _STEP.fullmatch(step)
        if found is None:
            raise ValueError(f"no step of a recipe: {step!r}")
        parts = found.groupdict()
        if parts["record"]:
            record = seed.records[parts["record"]]
            entry = 0 if parts["entry"] is None else int(parts["entry"]) + 1
            dtype, offset = record.places()[entry]
            _set_field(damaged.data, dtype, record.offset + offset, parts["field"], parts["value"])
            _seal(damaged, seed, record)
        elif parts["sealed"]:
            record = seed.records[parts["sealed"]]
            start = record.offset + int(parts["byte"], 0)
            _overwrite(damaged.data, start, bytes.fromhex(parts["bytes"]))
            _seal(damaged, seed, record)
        elif parts["at"]:
            data = bytes.fromhex(parts["hex"]) * int(parts["times"] or "1", 0)
            start = int(parts["at"], 0)
            if parts["how"] == "^":
                old = damaged.data[start : start + len(data)]
                data = bytes(a ^ b for a, b in zip(old, data, strict=False))
            _overwrite(damaged.data, start, data)
        elif parts["pages"]:
            _pages(damaged.data, parts["pages"], int(parts["from"]), int(parts["to"]))
        else:
            damaged.size_bytes = int(parts["size"], 0)
    return damaged


def _set_field(data: bytearray, dtype: np.dtype, offset: int, name: str, value: str) -> None:
    field, start = dtype.fields[name][:2]
    size_bytes = field.itemsize
    number = int(value, 0) & ((1 << size_bytes * 8) - 1)
    data[offset + start : offset + start + size_bytes] = number.to_bytes(size_bytes, "little")


def _overwrite(data: bytearray, start: int, new: bytes) -> None:
    end = min(start + len(new), len(data))
    if start < end:
        data[start:end] = new[: end - start]


def _pages(data: bytearray, how: str, a: int, b: int) -> None:
    first, second = (slice(n << PAGE_SHIFT, (n + 1) << PAGE_SHIFT) for n in (a, b))
    if max(first.stop, second.stop) <= len(data):
        old = data[second]
        data[second] = data[first]
        if how == "swap":
            data[first] = old


def _seal(damaged: Damaged, seed: _Seed, record: Record) -> None:
    crc = seed.image.seed
    whole = memoryview(damaged.data)
    buf = whole[record.offset : record.offset + record.size_bytes]
    if record.kind is None:
        group = seed.records["group0"]
        checksum = str(bitmap_checksum(buf, crc))
        _set_field(damaged.data, GROUP_DESC.dtype, group.offset, "bitmap_checksum", checksum)
        _seal(damaged, seed, group)
    elif record.kind is SUPERBLOCK:
        SUPERBLOCK.seal(buf, 0)
        damaged.replica = bytes(buf)
    else:
        record.kind.seal(buf, crc)


# Recipes that nobody wrote


def sweep(name: str) -> Iterator[str]:
    """Every field of every record and entry of a seed, set to numbers at the ends of what fits."""
    for record in _seed(name).records.values():
        for number, (dtype, _) in enumerate(record.places()):
            entry = f"[{number - 1}]" if number else ""
            for field in dtype.names:
                if field not in ("magic", "checksum", "payload", "uuid", "hash_key", "label"):
                    for value in _ENDS:
                        yield f"{name} | {record.name}{entry}.{field}={value:#x}"


_ENDS = [0, 1, 2, 3, 4, 17, 255, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
_LIMITS = [0, 1, 2, 3, 4, 5, 6, 16, 120, 121, 169, 170, 254, 255, 256, 4095, 4096, 4097]
_LIMITS += [
    (1 << n) + d for n in (15, 16, 27, 31, 32, 40, 44, 47, 51, 52, 62, 63, 64) for d in (-1, 0)
]
_NAMES = [b"/", b"\0", b".", b"..", b"a/b", b"../x", b"\x1b]0;x\x07", b"\xff", b"\n", b"hosts"]


def invent(rng: random.Random, kept: list[str]) -> str:
    """Return a recipe that *rng* makes up, often from one or two of those that were *kept*."""
    if kept and rng.random() < 0.7:
        name, *steps = rng.choice(kept).split(" | ")
        if steps and rng.random() < 0.3:
            steps.pop(rng.randrange(len(steps)))
        if rng.random() < 0.3:
            other, *more = rng.choice(kept).split(" | ")
            steps += more if other == name else []
    else:
        name, steps = rng.choice(["tiny", "tiny", "dirty", "sample"]), []
    seed = _seed(name)
    for _ in range(rng.choice((1, 1, 2, 3))):
        steps.append(_step(rng, seed))
    return " | ".join([name, *steps[-8:]])


def _step(rng: random.Random, seed: _Seed) -> str:
    luck = rng.random()
    nr_bytes = len(seed.image.data)
    if luck < 0.7:
        # First a kind of record, then one of it: there is one superblock, and many inodes.
        kind = rng.choice(sorted({name.rstrip("0123456789") for name in seed.names}))
        record = seed.records[rng.choice([n for n in seed.names if n.rstrip("0123456789") == kind])]
        if record.kind is None or luck < 0.1:
            start = rng.randrange(record.size_bytes)
            if kind == "dir" and luck < 0.07:
                return (
                    f"{record.name}+{PAGE_SIZE - rng.randrange(1, 24)}:{rng.choice(_NAMES).hex()}"
                )
            return f"{record.name}+{start}:{_bytes(rng).hex()}"
        places = record.places()
        number = rng.choice((0, rng.randrange(len(places))))
        fields = [n for n in places[number][0].names if n not in ("magic", "checksum", "payload")]
        entry = f"[{number - 1}]" if number else ""
        return f"{record.name}{entry}.{rng.choice(fields)}={_number(rng, seed):#x}"
    if luck < 0.8:
        return f"@{rng.randrange(nr_bytes):#x}^{1 << rng.randrange(8):02x}"
    if luck < 0.86:
        return f"@{rng.randrange(nr_bytes):#x}:{_bytes(rng).hex()}"
    if luck < 0.9:
        how_often = rng.choice((8, 64, PAGE_SIZE, 2 * PAGE_SIZE))
        return f"@{rng.randrange(nr_bytes):#x}*{how_often}:{rng.choice(('00', 'ff'))}"
    if luck < 0.97:
        a, b = (rng.randrange(nr_bytes >> PAGE_SHIFT) for _ in range(2))
        return f"{rng.choice(('copy', 'swap'))} {a} {b}"
    if luck < 0.99:
        return f"size {rng.randrange(1 << 20):#x}"
    return f"size {1 << rng.randrange(20, FILE_SIZE_BYTES_MAX.bit_length()):#x}"


def _bytes(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((1, 2, 4, 8, 16)))


def _number(rng: random.Random, seed: _Seed) -> int:
    """A number that means something here, or one at the end of what a field holds, or any."""
    luck = rng.random()
    if luck < 0.45:
        return rng.choice(seed.numbers)
    if luck < 0.8:
        return rng.choice(_LIMITS)
    return rng.getrandbits(rng.choice((4, 8, 16, 32, 64)))
