"""The records of an image, field by field, damaged or not: for the curious and for bug reports.

Records become dicts of what stands there, before any check: `problem` says what a check finds. They
go to JSON as they are; bytes are text in which everything unprintable is a backslash and a code.

    dump_volume(nvram)          superblocks, state, inode file, journal, groups
    dump_inode(nvram, ino)      its record, extents, nodes, attributes; of a directory: its pages
"""

import stat
from collections.abc import Callable
from enum import IntFlag
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from xipfs.errors import FormatError, XipfsError
from xipfs.fs.contents import printable
from xipfs.fs.extent import ExtentMap, iter_extents, iter_nodes
from xipfs.fs.info import flag_names
from xipfs.fs.superblock import read_superblock
from xipfs.ondisk.dentry import DIR_PAGE, decode_dir_page
from xipfs.ondisk.extent import ExtentFlags
from xipfs.ondisk.group import GROUP_DESC, GROUP_SHIFT, GroupFlags
from xipfs.ondisk.inode import (
    INO_INODE_FILE,
    INODE,
    INODES_PER_PAGE,
    DiskInode,
    InodeFlags,
    decode_inode,
)
from xipfs.ondisk.journal import JOURNAL_HEADER, NR_JOURNAL_HEADERS
from xipfs.ondisk.record import Buffer, RecordFormat
from xipfs.ondisk.superblock import (
    STATE,
    STATE_BLOCK,
    STATE_INODE_OFFSET,
    SUPERBLOCK,
    Compat,
    DiskSuperblock,
    StateFlags,
)
from xipfs.ondisk.xattr import NR_XATTR_PAGES_MAX, decode_xattrs
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Ino, Pgoff

__all__ = ["Dump", "dump_inode", "dump_volume"]

Dump: TypeAlias = dict[str, Any]
"""Field name -> int, str, list or Dump, in the order of the image; ready for JSON."""

_FLAGS: dict[str, dict[str, type[IntFlag] | None]] = {
    "state record": {"flags": StateFlags},
    "superblock": {"compat": Compat, "ro_compat": None, "incompat": None},
    "inode": {"flags": InodeFlags},
    "group descriptor": {"flags": GroupFlags},
}


def dump_volume(nvram: NvramDevice) -> Dump:
    """Return what stands once in an image. Groups that were never used are only counted.

    Raises: FormatError if no superblock says where things are; DeviceError.
    """
    page = nvram.load(0, PAGE_SIZE)
    superblock = _record(SUPERBLOCK, page, 0, "page 0")
    last_block = (nvram.size_bytes >> PAGE_SHIFT) - 1
    replica = nvram.load(last_block << PAGE_SHIFT, PAGE_SIZE)
    try:
        disk = DiskSuperblock(*SUPERBLOCK.decode(page, 0, "page 0"))
    except FormatError:
        disk = DiskSuperblock(*SUPERBLOCK.decode(replica, 0, f"page {last_block}"))
    state_page = nvram.load(STATE_BLOCK << PAGE_SHIFT, PAGE_SIZE)
    return {
        "superblock": superblock,
        "replica": "equal" if replica == page else _record(SUPERBLOCK, replica, 0, "replica"),
        "state": _record(STATE, state_page[: STATE.size_bytes], disk.seed, "page 1"),
        "inode_file": _inode_record(state_page[STATE_INODE_OFFSET:], disk.seed, INO_INODE_FILE),
        "journal_headers": _tolerant(partial(_journal_headers, nvram, disk)),
        "groups": _tolerant(partial(_groups, nvram, disk)),
    }


def dump_inode(nvram: NvramDevice, ino: Ino) -> Dump:
    """Return inode *ino* (0: the inode file) and all that it holds but its contents.

    Raises: FormatError if it cannot be found; DeviceError.
    """
    disk = read_superblock(nvram)
    offset = (STATE_BLOCK << PAGE_SHIFT) + STATE_INODE_OFFSET
    if ino != INO_INODE_FILE:
        inode_file = decode_inode(nvram.load(offset, INODE.size_bytes), disk.seed, INO_INODE_FILE)
        page, index = divmod(ino, INODES_PER_PAGE)
        block = ExtentMap(nvram, disk.seed, inode_file).find_block(Pgoff(page))
        if block is None:
            raise FormatError(f"inode {ino}: the inode file has no such page")
        offset = (block << PAGE_SHIFT) + index * INODE.size_bytes
    record = nvram.load(offset, INODE.size_bytes)
    dump: Dump = {"image_offset": offset, "record": _inode_record(record, disk.seed, ino)}
    try:
        inode = decode_inode(record, disk.seed, ino)
    except FormatError:
        return dump  # the record has the problem in it
    if not inode.flags & InodeFlags.INLINE:
        dump["extents"] = _tolerant(partial(_extents, nvram, disk, inode))
        dump["nodes"] = _tolerant(partial(_nodes, nvram, disk, inode))
    if inode.nr_xattr_pages:
        dump["xattrs"] = _tolerant(partial(_xattrs, nvram, disk, inode))
    if stat.S_ISDIR(inode.mode):
        dump["pages"] = _tolerant(partial(_directory_pages, nvram, disk, inode))
    return dump


def _record(record_format: RecordFormat, buf: Buffer, seed: int, where: str) -> Dump:
    """Return all fields of a record or of the head of a page."""
    values = np.frombuffer(buf, record_format.dtype, 1)[0].item()
    dump: Dump = {}
    flags = _FLAGS.get(record_format.name, {})
    for name, value in zip(record_format.dtype.names or (), values, strict=True):
        if name in ("magic", "checksum"):
            value = f"{value:#010x}"
        elif name in flags:
            value = flag_names(flags[name], value)
        elif name in ("uuid", "hash_key"):
            value = value.hex()
        elif isinstance(value, bytes):
            value = printable(value.rstrip(b"\0"))
        dump[name] = value
    try:
        record_format.decode(buf, seed, where)
    except FormatError as exc:
        dump["problem"] = str(exc)
    return dump


def _inode_record(buf: Buffer, seed: int, ino: Ino) -> Dump:
    """Return an inode; its payload is there only where it is a file's bytes."""
    record = buf[: INODE.size_bytes]
    dump = _record(INODE, record, seed, f"inode {ino}")
    dump["mode"] = f"{dump['mode']:#o}"
    if "INLINE" not in dump["flags"]:
        del dump["payload"]
    try:
        decode_inode(record, seed, ino)
    except FormatError as exc:
        dump["problem"] = str(exc)
    return dump


def _journal_headers(nvram: NvramDevice, disk: DiskSuperblock) -> list[Dump]:
    page = nvram.load(disk.journal_block << PAGE_SHIFT, PAGE_SIZE)
    size_bytes = JOURNAL_HEADER.size_bytes
    records = [page[n * size_bytes : (n + 1) * size_bytes] for n in range(NR_JOURNAL_HEADERS)]
    return [
        _record(JOURNAL_HEADER, record, disk.seed, f"journal header {number}")
        for number, record in enumerate(records)
        if any(record)
    ]


def _groups(nvram: NvramDevice, disk: DiskSuperblock) -> Dump:
    used, nr_unused = [], 0
    # So many the image has, whatever its superblock says.
    nr_groups = min(disk.nr_groups, -(-nvram.size_bytes >> PAGE_SHIFT + GROUP_SHIFT))
    for group in range(nr_groups):
        offset = (disk.gdt_block << PAGE_SHIFT) + group * GROUP_DESC.size_bytes
        record = nvram.load(offset, GROUP_DESC.size_bytes)
        dump = _record(GROUP_DESC, record, disk.seed, f"group {group}")
        dump["bitmap_checksum"] = f"{dump['bitmap_checksum']:#010x}"
        if dump["flags"] == ["BITMAP_UNINIT"] and "problem" not in dump:
            nr_unused += 1
        else:
            used.append(dump)
    return {"nr_unused_groups": nr_unused, "used": used}


def _extents(nvram: NvramDevice, disk: DiskSuperblock, inode: DiskInode) -> list[Dump]:
    return [
        {
            "pgoff": pgoff,
            "block": block,
            "nr_pages": nr_pages,
            "flags": flag_names(ExtentFlags, flags),
        }
        for pgoff, block, nr_pages, flags in iter_extents(nvram, disk.seed, inode)
    ]


def _nodes(nvram: NvramDevice, disk: DiskSuperblock, inode: DiskInode) -> list[Dump]:
    return [
        {"block": block, "depth": depth, "nr_entries": len(entries)}
        for block, depth, entries in iter_nodes(nvram, disk.seed, inode)
    ]


def _xattrs(nvram: NvramDevice, disk: DiskSuperblock, inode: DiskInode) -> Dump:
    nr_pages = min(inode.nr_xattr_pages, NR_XATTR_PAGES_MAX)
    run = nvram.load(inode.xattr_block << PAGE_SHIFT, nr_pages << PAGE_SHIFT)
    xattrs = decode_xattrs(run, disk.seed, inode.ino, inode.generation)
    return {printable(name): printable(value) for name, value in xattrs.items()}


def _directory_pages(nvram: NvramDevice, disk: DiskSuperblock, inode: DiskInode) -> list[Dump]:
    """Return all pages of a directory as they lie in the file, without going by its tree."""
    dumps: list[Dump] = []
    for pgoff, block, nr_pages, _ in iter_extents(nvram, disk.seed, inode):
        for i in range(nr_pages):
            data = nvram.load((block + i) << PAGE_SHIFT, PAGE_SIZE)
            where = f"directory page {pgoff + i} of inode {inode.ino}"
            dump: Dump = {"pgoff": pgoff + i, "block": block + i}
            dump |= _record(DIR_PAGE, data, disk.seed, where)
            if "problem" not in dump:
                dump["entries"] = _tolerant(partial(_entries, data, disk.seed, where))
            dumps.append(dump)
        if len(dumps) > disk.nr_pages:
            raise FormatError(f"inode {inode.ino}: more pages than the image has")
    return dumps


def _entries(data: bytes, seed: int, where: str) -> list[Dump]:
    page = decode_dir_page(data, seed, where)
    if page.level:
        return [{"key": f"{key:#x}", "pgoff": pgoff} for key, pgoff in page.entries.tolist()]
    return [
        {
            "key": f"{key:#x}",
            "ino": ino,
            "d_type": d_type,
            "name": printable(data[start : start + size_bytes]),
        }
        for key, ino, start, size_bytes, d_type in page.entries.tolist()
    ]


def _tolerant(dump: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return what *dump* does, or why it cannot: one bad page must not hide all others."""
    try:
        return dump()
    except XipfsError as exc:
        return {"problem": str(exc)}
