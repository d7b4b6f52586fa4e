"""What an image says of itself: superblock, state and journal, in words and figures."""

import os
from dataclasses import dataclass
from enum import IntFlag

from xipfs.fs.superblock import read_superblock
from xipfs.ondisk.journal import decode_journal_header
from xipfs.ondisk.record import format_uuid
from xipfs.ondisk.superblock import STATE, STATE_BLOCK, Compat, StateFlags, decode_state
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, STRUCT_PAGE_SIZE_BYTES

__all__ = ["ImageInfo", "flag_names", "read_info"]


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image. Times in ns since 1970, 0: never.

    allocated_bytes: what the file takes on its disk, free pages being holes in it;
    struct_page_saved_bytes: what Linux would spend on struct pages for a region of this size.
    """

    image: str
    format_version: int
    uuid: str
    label: str
    created_ns: int
    compat: list[str]
    ro_compat: list[str]
    incompat: list[str]
    state: list[str]
    size_bytes: int
    allocated_bytes: int
    page_size_bytes: int
    nr_pages: int
    nr_used_pages: int
    nr_free_pages: int
    nr_groups: int
    nr_journal_pages: int
    journal_sequence: int
    nr_inodes: int
    mount_count: int
    mounted_ns: int
    written_ns: int
    struct_page_saved_bytes: int


def read_info(path: str | os.PathLike[str]) -> ImageInfo:
    """Return what the image at *path* says of itself, also one that must be replayed first.

    Raises: FormatError, DeviceError, ImageBusyError.
    """
    nvram = NvramDevice.open(path)
    try:
        disk = read_superblock(nvram)
        state = decode_state(nvram.load(STATE_BLOCK << PAGE_SHIFT, STATE.size_bytes), disk.seed)
        journal = decode_journal_header(
            nvram.load(disk.journal_block << PAGE_SHIFT, PAGE_SIZE), disk.seed
        )
        return ImageInfo(
            image=os.fspath(path),
            format_version=disk.version,
            uuid=format_uuid(disk.uuid),
            label=disk.label.rstrip(b"\0").decode(errors="backslashreplace"),
            created_ns=disk.created_ns,
            compat=flag_names(Compat, disk.compat),
            ro_compat=flag_names(None, disk.ro_compat),
            incompat=flag_names(None, disk.incompat),
            state=flag_names(StateFlags, state.flags),
            size_bytes=disk.nr_pages << PAGE_SHIFT,
            allocated_bytes=os.stat(path).st_blocks * 512,
            page_size_bytes=PAGE_SIZE,
            nr_pages=disk.nr_pages,
            nr_used_pages=disk.nr_pages - state.nr_free_pages,
            nr_free_pages=state.nr_free_pages,
            nr_groups=disk.nr_groups,
            nr_journal_pages=disk.nr_journal_pages,
            journal_sequence=journal.sequence,
            nr_inodes=state.nr_inodes,
            mount_count=state.mount_count,
            mounted_ns=state.mounted_ns,
            written_ns=state.written_ns,
            struct_page_saved_bytes=disk.nr_pages * STRUCT_PAGE_SIZE_BYTES,
        )
    finally:
        nvram.close()


def flag_names(flags: type[IntFlag] | None, value: int) -> list[str]:
    """Return the names of the bits in *value*, unknown ones in hexadecimal.

    >>> flag_names(StateFlags, 5)
    ['CLEAN', '0x4']
    """
    known = [flag for flag in flags or () if value & flag]
    names = [str(flag.name) for flag in known]
    unknown = value & ~int(sum(known))
    return [*names, *([f"{unknown:#x}"] if unknown else [])]
