"""Repairs of single inodes: their fields, attributes, unused bytes."""

import stat
from collections.abc import Iterator

import numpy as np

from xipfs.fs.fsck.extents import check_extents, collect_extents
from xipfs.fs.fsck.inodes import (
    check_link_targets,
)
from xipfs.fs.fsck.repair_extents import Extent
from xipfs.fs.fsck.repair_records import has_root_page
from xipfs.fs.fsck.repairer import InodeRecord, Repairer, is_directory
from xipfs.fs.fsck.report import Findings, Invariant
from xipfs.fs.fsck.volume import reserved_bytes
from xipfs.fs.namei import PATH_MAX
from xipfs.ondisk.dentry import DIR_INDEX_DTYPE, DIR_PAGE, DIR_SLOT_DTYPE, decode_dir_page
from xipfs.ondisk.extent import EXTENT_DTYPE, EXTENT_NODE, NR_INLINE_EXTENTS
from xipfs.ondisk.inode import (
    FILE_SIZE_BYTES_MAX,
    INODE,
    PAYLOAD_SIZE_BYTES,
    InodeFlags,
)
from xipfs.ondisk.xattr import NR_XATTR_PAGES_MAX, XATTR_RUN, decode_xattrs, encode_xattrs
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = [
    "repair_inode_fields",
    "repair_reserved_of_inodes",
    "repair_tails",
    "repair_xattrs",
]

_FLAGS_KNOWN = int(sum(InodeFlags))
_TYPES_WITH_CONTENTS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


def repair_inode_fields(repairer: Repairer) -> None:
    """I10: set fields that cannot be to what they must be; give up links to nowhere."""
    for ino in repairer.inos(Invariant.INODE_FIELDS):
        record = repairer.record(ino)
        if not record["mode"][0]:
            repairer.put_free_record(ino)
            repairer.did(Invariant.INODE_FIELDS, f"inode {ino}: free, and zero as such")
            continue
        before = record.copy()
        _set_type(repairer, record)
        _set_contents(record)
        if record["nr_xattr_pages"][0] > NR_XATTR_PAGES_MAX or (
            (record["nr_xattr_pages"][0] != 0) != (record["xattr_block"][0] != 0)
        ):
            record["xattr_block"] = record["nr_xattr_pages"] = 0
        _set_links(record)
        if stat.S_ISLNK(int(record["mode"][0])) and not _has_target(repairer, record):
            repairer.put_free_record(ino)
            repairer.did(Invariant.INODE_FIELDS, f"inode {ino}: a link to nowhere, free now")
            continue
        changed = [name for name in INODE.dtype.names or () if (record[name] != before[name]).any()]
        repairer.put_record(ino, record)
        text = "; ".join(
            f"{name} was {before[name][0]:#x}, is {record[name][0]:#x}"
            for name in changed
            if name != "payload"
        )
        repairer.did(Invariant.INODE_FIELDS, f"inode {ino}: {text or 'payload cut'}")


def _set_type(repairer: Repairer, record: InodeRecord) -> None:
    """Have the mode name a type: of a damaged one, that which the contents look like."""
    record["flags"] &= np.uint32(_FLAGS_KNOWN)
    mode = int(record["mode"][0])
    kind = stat.S_IFMT(mode)
    if mode > 0xFFFF or not (
        kind in _TYPES_WITH_CONTENTS
        or stat.S_ISCHR(mode)
        or stat.S_ISBLK(mode)
        or stat.S_ISFIFO(mode)
        or stat.S_ISSOCK(mode)
    ):
        if record["flags"][0] & InodeFlags.INLINE:
            kind = stat.S_IFLNK
        elif has_root_page(repairer, record):
            kind = stat.S_IFDIR
        else:
            kind = stat.S_IFREG
        record["mode"] = kind | (mode & 0o777)
    if kind != stat.S_IFDIR:
        record["nr_entries"] = record["parent_ino"] = 0
    if kind not in (stat.S_IFCHR, stat.S_IFBLK):
        record["rdev"] = 0


def _set_contents(record: InodeRecord) -> None:
    """Have size and extents be such as the type allows."""
    kind = stat.S_IFMT(int(record["mode"][0]))
    if kind not in _TYPES_WITH_CONTENTS:
        record["size_bytes"] = 0
        _clear_extents(record)
    if record["flags"][0] & InodeFlags.INLINE:
        if kind == stat.S_IFLNK:
            record["nr_extents"] = record["extent_depth"] = 0
        else:
            _clear_extents(record)
    if record["nr_extents"][0] > NR_INLINE_EXTENTS:
        entries = np.frombuffer(record["payload"].tobytes(), EXTENT_DTYPE)
        record["nr_extents"] = int(np.count_nonzero(entries["block"]))
    if record["size_bytes"][0] > FILE_SIZE_BYTES_MAX:
        entries = np.frombuffer(record["payload"].tobytes(), EXTENT_DTYPE)
        ends = entries["pgoff"] + entries["nr_pages"]
        known = ends[(entries["nr_pages"] > 0) & (ends > 0) & (ends <= 1 << 32)]
        end = int(known.max(initial=0))
        if record["extent_depth"][0]:
            end = FILE_SIZE_BYTES_MAX >> PAGE_SHIFT
        record["size_bytes"] = end << PAGE_SHIFT


def _clear_extents(record: InodeRecord) -> None:
    record["flags"] &= ~np.uint32(InodeFlags.INLINE)
    record["nr_extents"] = record["extent_depth"] = 0
    record["payload"] = bytes(PAYLOAD_SIZE_BYTES)


def _set_links(record: InodeRecord) -> None:
    """Have ORPHAN, nlink and next_ino agree; names are counted later (I24)."""
    is_orphan = bool(record["flags"][0] & InodeFlags.ORPHAN)
    if is_orphan and record["nlink"][0] and not stat.S_ISREG(int(record["mode"][0])):
        record["flags"] &= ~np.uint32(InodeFlags.ORPHAN)
        is_orphan = False
    if not is_orphan:
        record["next_ino"] = 0
        if not record["nlink"][0]:
            record["nlink"] = 1


def _has_target(repairer: Repairer, record: InodeRecord) -> bool:
    """Does a symbolic link point to something that a path can be?"""
    size_bytes = int(record["size_bytes"][0])
    if not 0 < size_bytes < PATH_MAX:
        return False
    if record["flags"][0] & InodeFlags.INLINE:
        return (
            size_bytes <= PAYLOAD_SIZE_BYTES
            and b"\0" not in record["payload"].tobytes()[:size_bytes]
        )
    findings = Findings(None)
    rows, _, _ = collect_extents(repairer.image, repairer.disk, record, findings)
    rows = rows[check_extents(repairer.disk, record, rows, findings)]
    findings = Findings(None)
    check_link_targets(repairer.image, record, rows, findings)
    return not findings.found


def repair_xattrs(repairer: Repairer) -> None:
    """I15: drop attributes that cannot be read; they are sealed all together."""
    for ino in repairer.inos(Invariant.XATTRS):
        record = repairer.record(ino)
        nr_pages = min(int(record["nr_xattr_pages"][0]), int(record["nr_pages"][0]))
        record["nr_pages"] -= np.uint64(nr_pages)
        record["xattr_block"] = record["nr_xattr_pages"] = 0
        repairer.put_record(ino, record)
        repairer.did(Invariant.XATTRS, f"inode {ino}: its attributes are lost")


def repair_reserved_of_inodes(repairer: Repairer) -> None:
    """I30, for what inodes hold: zero what is reserved, and seal it again."""
    seed = repairer.disk.seed
    for ino in repairer.inos(Invariant.RESERVED):
        record = repairer.record(ino)
        _cut_payload(record)
        repairer.put_record(ino, record)
        entries, nodes = repairer.extents(record)
        for block in nodes:
            page = bytearray(repairer.load_page(block))
            _zero_reserved(page, EXTENT_NODE.dtype, 0, 1)
            EXTENT_NODE.seal(page, seed)
            repairer.put_page(block, page)
        if is_directory(record):
            for block in _blocks(entries.tolist()):
                _clear_dir_page(repairer, block)
        if record["nr_xattr_pages"][0]:
            offset = int(record["xattr_block"][0]) << PAGE_SHIFT
            size_bytes = int(record["nr_xattr_pages"][0]) << PAGE_SHIFT
            generation = int(record["generation"][0])
            run = repairer.image.load(offset, size_bytes)
            xattrs = decode_xattrs(run, seed, ino, generation)
            clean = bytearray(encode_xattrs(xattrs, seed, ino, generation).ljust(size_bytes, b"\0"))
            XATTR_RUN.seal(clean, seed)
            repairer.image.store(offset, clean)
        repairer.did(Invariant.RESERVED, f"inode {ino}: reserved bytes made zero")


def _cut_payload(record: InodeRecord) -> None:
    if record["flags"][0] & InodeFlags.INLINE:
        nr_used_bytes = min(int(record["size_bytes"][0]), PAYLOAD_SIZE_BYTES)
    else:
        nr_used_bytes = int(record["nr_extents"][0]) * EXTENT_DTYPE.itemsize
    record["payload"] = record["payload"].tobytes()[:nr_used_bytes]


def _clear_dir_page(repairer: Repairer, block: int) -> None:
    page = bytearray(repairer.load_page(block))
    decoded = decode_dir_page(page, repairer.disk.seed, f"page {block}")
    entry_dtype = DIR_INDEX_DTYPE if decoded.level else DIR_SLOT_DTYPE
    nr_entries = len(decoded.entries)
    del decoded
    _zero_reserved(page, DIR_PAGE.dtype, 0, 1)
    _zero_reserved(page, entry_dtype, DIR_PAGE.size_bytes, nr_entries)
    DIR_PAGE.seal(page, repairer.disk.seed)
    repairer.put_page(block, page)


def _zero_reserved(page: bytearray, dtype: np.dtype[np.void], offset: int, number: int) -> None:
    found = np.frombuffer(page, np.uint8, number * dtype.itemsize, offset)
    found.reshape(number, dtype.itemsize)[:, reserved_bytes(dtype)] = 0


def _blocks(extents: list[Extent]) -> Iterator[int]:
    for _, block, nr_pages, _ in extents:
        yield from range(block, block + nr_pages)


def repair_tails(repairer: Repairer) -> None:
    """I31: zero the last page of a file behind its end."""
    for ino in repairer.inos(Invariant.TAILS):
        record = repairer.record(ino)
        entries, _ = repairer.extents(record)
        last, start = divmod(int(record["size_bytes"][0]), PAGE_SIZE)
        for pgoff, block, nr_pages, _ in entries.tolist():
            if pgoff <= last < pgoff + nr_pages:
                offset = (block + last - pgoff) << PAGE_SHIFT
                repairer.image.store(offset + start, bytes(PAGE_SIZE - start))
        repairer.did(Invariant.TAILS, f"inode {ino}: made zero behind its end")
