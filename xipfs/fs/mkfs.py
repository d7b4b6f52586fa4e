"""mkfs: builds an image from a stream of entries, in one pass and from the front to the back.

    block 0 and 1   superblock and state: written last
    from block 2    contents of files, as they come from the source
    then            extent nodes, directory pages, attribute runs, the inode file
    then            journal, group descriptors, bitmaps
    then            free pages: a hole in the image file
    last block      the superblock's replica

Only blocks 0, 1 and the last are fixed, so a source may be a pipe: nothing must be known before
the first byte of contents is written. Metadata waits for the end, because its seals start from the
uuid, and a reproducible uuid is made from all metadata.

    mkfs("system.img", walk_tree("/usr/lib/python3"), now_ns=...)      fs.source
    mkfs("system.img", read_tar(sys.stdin.buffer, "-"), now_ns=...)    fs.tarsource
    mkfs("empty.img", None, size_bytes=4 << 30, now_ns=...)

See: `fs.builder` for the tree, `fs.pack` for its pages, `fs.newimage` for the file.
"""

import errno
import hashlib
import os
import stat
import uuid as uuid_module
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import (
    DeviceError,
    InvalidArgumentError,
    NoSpaceError,
    NotPermittedError,
    XipfsError,
)
from xipfs.fs.builder import ImageBuilder
from xipfs.fs.hotarea import HotArea
from xipfs.fs.newimage import NewImage
from xipfs.fs.pack import pack_groups
from xipfs.fs.pagewriter import PageWriter
from xipfs.fs.source import Entry
from xipfs.ondisk.group import GROUP_DESC, GROUP_SHIFT
from xipfs.ondisk.inode import DiskInode
from xipfs.ondisk.journal import DiskJournalHeader
from xipfs.ondisk.record import checksum_seed, format_uuid
from xipfs.ondisk.superblock import (
    CHECKSUM_CRC32,
    FORMAT_VERSION,
    STATE_BLOCK,
    STATE_INODE_OFFSET,
    SUPERBLOCK,
    Compat,
    DiskState,
    DiskSuperblock,
    StateFlags,
)
from xipfs.units import PAGE_SHIFT, Block, Ino, bytes_to_pages, format_size

__all__ = ["MkfsProgress", "MkfsStatistics", "mkfs"]

IMAGE_SIZE_BYTES_MIN = 1 << 20
"""What an image has at least where its size is left to mkfs."""

NR_JOURNAL_PAGES_MIN = 16
NR_JOURNAL_PAGES_MAX = 16384

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True, slots=True)
class MkfsStatistics:
    """What mkfs made. data_bytes: contents of regular files, without their holes.

    nr_inodes: in use; the counts behind it add up to it. nr_others: devices, fifos and sockets.
    """

    uuid: str
    size_bytes: int
    nr_pages: int
    nr_free_pages: int
    nr_journal_pages: int
    nr_inodes: int
    nr_files: int
    nr_directories: int
    nr_symlinks: int
    nr_others: int
    data_bytes: int
    created_ns: int


class MkfsProgress(NamedTuple):
    """How far mkfs is."""

    nr_inodes: int
    data_bytes: int


def mkfs(
    image: str | os.PathLike[str],
    source: Iterable[Entry] | None,
    *,
    now_ns: int,
    size_bytes: int | None = None,
    label: bytes = b"",
    reproducible: bool = False,
    force: bool = False,
    progress: Callable[[MkfsProgress], None] | None = None,
    hot: Mapping[int, NDArray[np.int64]] | None = None,
) -> MkfsStatistics:
    """Make the file *image* from what *source* yields; an empty filesystem if there is none.

    size_bytes: of the image, in whole pages; None for that of the contents and some room.
    reproducible: make the uuid from the metadata, so that the same entries, the same now_ns and
    options make the same bytes; else by chance. force: replace an image that exists.
    hot: inode -> its hot pages, int64, sorted, none twice: they are laid together.
    Raises: SourceError; NoSpaceError when image or disk are too small; ImageBusyError,
            InvalidArgumentError, IsDirError, NoEntryError, NotPermittedError for a bad *image*;
            DeviceError. After any of them all files are as before.
    """
    if len(label) > SUPERBLOCK.dtype["label"].itemsize:
        raise InvalidArgumentError(f"a label of {len(label)} bytes, 64 may be")
    if source is None:
        source = [Entry(b"", stat.S_IFDIR | 0o755, os.geteuid(), os.getegid(), now_ns)]
    try:
        with NewImage.create(image, force=force) as new:
            nr_pages = None
            if size_bytes is not None:
                nr_pages = size_bytes >> PAGE_SHIFT
                os.ftruncate(new.fd, nr_pages << PAGE_SHIFT)  # a disk that cannot: say so now
            statistics = _write_image(
                new.fd,
                source,
                nr_pages=nr_pages,
                label=label,
                now_ns=now_ns,
                reproducible=reproducible,
                progress=progress,
                hot=hot or {},
            )
            new.commit()
            return statistics
    except NoSpaceError as exc:
        raise NoSpaceError(f"{image}: {exc}") from exc
    except OSError as exc:
        raise _image_error(image, exc) from exc


def _write_image(
    fd: int,
    source: Iterable[Entry],
    *,
    nr_pages: int | None,
    label: bytes,
    now_ns: int,
    reproducible: bool,
    progress: Callable[[MkfsProgress], None] | None,
    hot: Mapping[int, NDArray[np.int64]],
) -> MkfsStatistics:
    writer = PageWriter(fd)
    hot_area = HotArea(Block(STATE_BLOCK + 1), hot)
    writer.seek(hot_area.end)
    builder = ImageBuilder(writer, now_ns, hot_area if hot else None)
    inodes = builder.inodes

    def after_write() -> None:
        if nr_pages is not None and writer.next_block > nr_pages:
            raise _too_small(nr_pages, f"more than {format_size(writer.next_block << PAGE_SHIFT)}")
        if progress is not None:
            progress(MkfsProgress(inodes.nr_inodes, builder.data_bytes))

    writer.after_write = after_write
    for entry in source:
        builder.add(entry)

    facts = b"%d %d %s" % (nr_pages or 0, now_ns, label)
    uuid = _make_uuid(builder.digest() + facts if reproducible else None)
    hash_key = hashlib.sha256(b"hash_key" + uuid).digest()[:16]
    seed = checksum_seed(uuid)

    inode_file = builder.write_metadata(seed, hash_key)
    layout = _lay_out(writer.next_block, nr_pages)
    _write_journal(writer, seed, layout)
    free_runs = [*builder.free_runs, *hot_area.free_runs()]
    nr_free_pages = _write_groups(writer, seed, layout, free_runs)
    superblock = DiskSuperblock(
        version=FORMAT_VERSION,
        checksum_type=CHECKSUM_CRC32,
        compat=Compat.ACL if builder.has_acls else 0,
        ro_compat=0,
        incompat=0,
        uuid=uuid,
        hash_key=hash_key,
        label=label,
        created_ns=now_ns,
        page_shift=PAGE_SHIFT,
        group_shift=GROUP_SHIFT,
        nr_pages=layout.nr_pages,
        nr_groups=layout.nr_groups,
        gdt_block=layout.gdt_block,
        bitmap_block=layout.bitmap_block,
        journal_block=layout.journal_block,
        nr_journal_pages=layout.nr_journal_pages,
    )
    state = DiskState(
        flags=StateFlags.CLEAN,
        nr_free_pages=nr_free_pages,
        nr_inodes=inodes.nr_inodes,
        ino_end=inodes.ino_end,
        free_ino_head=builder.free_ino_head,
        orphan_ino_head=Ino(0),
        mounted_ns=0,
        written_ns=now_ns,
        mount_count=0,
    )
    _write_fixed_blocks(writer, superblock, state, inode_file)
    return _statistics(superblock, state, builder)


def _statistics(
    superblock: DiskSuperblock, state: DiskState, builder: ImageBuilder
) -> MkfsStatistics:
    kinds = builder.inodes.count_kinds()
    nr_files, nr_directories, nr_symlinks = (
        kinds.pop(kind, 0) for kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
    )
    return MkfsStatistics(
        uuid=format_uuid(superblock.uuid),
        size_bytes=superblock.nr_pages << PAGE_SHIFT,
        nr_pages=superblock.nr_pages,
        nr_free_pages=state.nr_free_pages,
        nr_journal_pages=superblock.nr_journal_pages,
        nr_inodes=state.nr_inodes,
        nr_files=nr_files,
        nr_directories=nr_directories,
        nr_symlinks=nr_symlinks,
        nr_others=sum(kinds.values()),
        data_bytes=builder.data_bytes,
        created_ns=superblock.created_ns,
    )


def _make_uuid(facts: bytes | None) -> bytes:
    """Return the uuid that stands for *facts*, or a new one if there are none."""
    if facts is None:
        return uuid_module.uuid4().bytes
    return uuid_module.UUID(bytes=hashlib.sha256(facts).digest()[:16], version=5).bytes


class _Layout(NamedTuple):
    """Where the fixed areas behind the contents are. end: where they end."""

    nr_pages: int
    journal_block: Block
    nr_journal_pages: int
    gdt_block: Block
    bitmap_block: Block
    end: Block

    @property
    def nr_groups(self) -> int:
        """Groups of an image of nr_pages, the last one perhaps short."""
        return -(-self.nr_pages >> GROUP_SHIFT)

    @classmethod
    def of(cls, contents_end: Block, nr_pages: int) -> "_Layout":
        """Return the layout of an image of *nr_pages*, whether it fits or not."""
        # A 64th, but no more than 64 MiB; of tiny images a 16th.
        nr_journal_pages = max(
            min(nr_pages // 64, NR_JOURNAL_PAGES_MAX), min(nr_pages // 16, 64), NR_JOURNAL_PAGES_MIN
        )
        nr_groups = -(-nr_pages >> GROUP_SHIFT)
        gdt_block = contents_end + nr_journal_pages
        bitmap_block = gdt_block + bytes_to_pages(nr_groups * GROUP_DESC.size_bytes)
        return cls(
            nr_pages=nr_pages,
            journal_block=contents_end,
            nr_journal_pages=nr_journal_pages,
            gdt_block=Block(gdt_block),
            bitmap_block=Block(bitmap_block),
            end=Block(bitmap_block + nr_groups),
        )

    @classmethod
    def smallest(cls, contents_end: Block, *, nr_pages: int, nr_free_pages: int) -> "_Layout":
        """Return the layout of the smallest image of at least *nr_pages* that leaves room."""
        while True:
            layout = cls.of(contents_end, nr_pages)
            nr_needed_pages = layout.end + nr_free_pages + 1  # the replica
            if nr_needed_pages <= nr_pages:
                return layout
            nr_pages = nr_needed_pages


def _lay_out(contents_end: Block, nr_pages: int | None) -> _Layout:
    """Place the fixed areas in an image of *nr_pages*, or one as large as needed.

    Raises: NoSpaceError.
    """
    if nr_pages is None:
        return _Layout.smallest(
            contents_end,
            nr_pages=IMAGE_SIZE_BYTES_MIN >> PAGE_SHIFT,
            nr_free_pages=contents_end // 16,
        )
    layout = _Layout.of(contents_end, nr_pages)
    if layout.end >= nr_pages:
        smallest = _Layout.smallest(contents_end, nr_pages=1, nr_free_pages=0)
        raise _too_small(nr_pages, f"{smallest.nr_pages << (PAGE_SHIFT - 10)}K")
    return layout


def _write_journal(writer: PageWriter, seed: int, layout: _Layout) -> None:
    writer.seek(layout.journal_block)
    writer.append(DiskJournalHeader(sequence=1, head=0).encode(seed))


def _write_groups(
    writer: PageWriter, seed: int, layout: _Layout, free_runs: Sequence[tuple[Block, int]]
) -> int:
    """Write the group descriptors and the bitmaps that are needed; return the free pages."""
    descriptors, bitmaps = pack_groups(
        seed, nr_pages=layout.nr_pages, used_end=layout.end, free_runs=free_runs
    )
    writer.seek(layout.gdt_block)
    writer.append(descriptors.tobytes())
    for group, bitmap in bitmaps.items():
        writer.seek(Block(layout.bitmap_block + group))
        writer.append(bitmap)
    return int(descriptors["nr_free_pages"].sum())


def _write_fixed_blocks(
    writer: PageWriter, superblock: DiskSuperblock, state: DiskState, inode_file: DiskInode
) -> None:
    page = superblock.encode()
    writer.seek(Block(superblock.nr_pages - 1))
    writer.append(page)
    writer.seek(Block(0))
    writer.append(page)
    record = state.encode(superblock.seed)
    writer.append(record.ljust(STATE_INODE_OFFSET, b"\0") + inode_file.encode(superblock.seed))
    writer.flush()


def _too_small(nr_pages: int, needed: str) -> NoSpaceError:
    return NoSpaceError(
        f"{format_size(nr_pages << PAGE_SHIFT)} are too small for the contents, which need "
        f"{needed}: give a larger --size, or none"
    )


def _image_error(image: str | os.PathLike[str], exc: OSError) -> XipfsError:
    """Return what a failed system call on the image means to its maker."""
    kind: type[XipfsError] = DeviceError
    if exc.errno in _NO_SPACE:
        kind = NoSpaceError
    elif exc.errno in _NOT_PERMITTED:
        kind = NotPermittedError
    return kind(f"{os.fspath(image)}: cannot be written: {exc.strerror}; nothing was changed")
