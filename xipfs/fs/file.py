"""Contents of regular files: write, truncate, fsync.

    write_file(sb, machine, inode, pos, data, now_ns)       -> bytes written
    truncate_file(sb, machine, inode, size_bytes, now_ns)   both ways
    sync_file(sb, machine, inode, datasync=False)           what was written is durable
    sync_all(sb, machine)                                   of all files

Where the bytes of a write go:

    page of the file                  bytes go                            durable
    there, below the file's end       to the page, in NVRAM or RAM        with fsync
    there, behind the file's end      into the journal, with the size     at once
    none                              to a new page, filled up with       at once
                                      zeros, before an extent names it

So neither a size nor an extent is in the image before the bytes that it lets everybody see, and
nobody ever sees what another file left in a page. What is behind the end in a file's last page
stays zero, also in a crash: such bytes of a write, a page at most, are in its transaction, and so
are the zeros when a file is cut.

When a file is cut its blocks are free with the transaction, and its frames in RAM go directly
after it, before anybody can have the blocks.
"""

from typing import TYPE_CHECKING

from xipfs.errors import (
    DeviceError,
    FileTooLargeError,
    FormatError,
    InvalidArgumentError,
    NoSpaceError,
    NotPermittedError,
    ReadOnlyFsError,
    XipfsError,
)
from xipfs.fs.extentwriter import insert_extent, mark_written
from xipfs.fs.inode import Inode
from xipfs.fs.orphans import cut_inode
from xipfs.fs.transaction import Transaction
from xipfs.mm.filemap_xip import xip_file_write_range, xip_hole_filled
from xipfs.mm.machine import Machine
from xipfs.mm.page_writeback import find_dirty_pages, writeback_pages
from xipfs.mm.truncate import truncate_setsize
from xipfs.ondisk.inode import FILE_SIZE_BYTES_MAX, InodeFlags
from xipfs.units import (
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    Block,
    Pgoff,
    bytes_to_pages,
    pfn_to_kaddr,
)

if TYPE_CHECKING:
    from xipfs.fs.superblock import SuperBlock

__all__ = ["sync_all", "sync_file", "truncate_file", "write_file"]

_NR_WRITE_PAGES_MAX = 256
"""Pages of one transaction: 1 MiB, as much as FUSE sends at a time."""

_IMMUTABLE = int(InodeFlags.IMMUTABLE)  # operators of IntFlag are slow


def write_file(
    sb: "SuperBlock",
    machine: Machine,
    inode: Inode,
    pos: int,
    data: bytes | memoryview,
    now_ns: int,
) -> int:
    """Write *data* at byte *pos* of a regular file; return how many bytes, fewer at a full image.

    Raises: NoSpaceError, FileTooLargeError, ReadOnlyFsError, NotPermittedError, FormatError,
            DeviceError when not one byte could be written.
    """
    _check_writable(sb, inode)
    if pos < 0:
        raise InvalidArgumentError(f"inode {inode.ino}: written at byte {pos}")
    if data and pos >= FILE_SIZE_BYTES_MAX:
        raise FileTooLargeError(f"inode {inode.ino}: {FILE_SIZE_BYTES_MAX} bytes may be")
    view = memoryview(data)[: FILE_SIZE_BYTES_MAX - pos]
    nr_pages_max = _NR_WRITE_PAGES_MAX
    done = 0
    while done < len(view):
        at = pos + done
        part = view[done : done + (nr_pages_max << PAGE_SHIFT) - (at & PAGE_MASK)]
        try:
            _write(sb, machine, inode, at, part, now_ns)
        except NoSpaceError:
            # Perhaps less of it has room.
            if nr_pages_max > 1:
                nr_pages_max //= 2
                continue
            if done:
                break
            raise
        except XipfsError:
            if done:
                break
            raise
        done += len(part)
    return done


def truncate_file(
    sb: "SuperBlock", machine: Machine, inode: Inode, size_bytes: int, now_ns: int
) -> None:
    """Give a regular file the size *size_bytes*: what is behind goes, what is new is a hole.

    Raises: FileTooLargeError, InvalidArgumentError, ReadOnlyFsError, NotPermittedError,
            NoSpaceError, FormatError, DeviceError.
    """
    _check_writable(sb, inode)
    if size_bytes < 0:
        raise InvalidArgumentError(f"inode {inode.ino}: a size of {size_bytes} bytes")
    if size_bytes > FILE_SIZE_BYTES_MAX:
        raise FileTooLargeError(f"inode {inode.ino}: {FILE_SIZE_BYTES_MAX} bytes may be")
    end = bytes_to_pages(size_bytes)
    is_shorter = size_bytes < inode.disk.size_bytes
    done = True
    with sb.transaction(now_ns, use_reserve=is_shorter) as tx:
        disk = tx.inode(inode.ino)._replace(size_bytes=size_bytes, mtime_ns=now_ns, ctime_ns=now_ns)
        tx.put_inode(disk)
        if is_shorter:
            rest = size_bytes & PAGE_MASK
            block = inode.extents.find_block(Pgoff(size_bytes >> PAGE_SHIFT)) if rest else None
            if block is not None:
                sb.allocator.check_of_file(block, 1)
                tx.store((block << PAGE_SHIFT) + rest, bytes(PAGE_SIZE - rest))
            done = cut_inode(tx, disk, end)
    truncate_setsize(machine, inode.mapping, size_bytes)
    while not done:
        with sb.transaction(now_ns, use_reserve=True) as tx:
            done = cut_inode(tx, tx.inode(inode.ino), end)


def sync_file(sb: "SuperBlock", machine: Machine, inode: Inode, *, datasync: bool = False) -> None:
    """Make durable what was written to a file, and its times unless *datasync*.

    Raises: DeviceError when a page in RAM could not be written back; NoSpaceError, FormatError.
    """
    _write_back(machine, inode)
    if inode.times_dirty and not datasync:
        sb.write_times([inode])
    else:
        sb.nvram.fence()


def sync_all(sb: "SuperBlock", machine: Machine) -> None:
    """Make durable what was written to any file. Raises: as `sync_file`."""
    inodes = sb.inodes()
    for inode in inodes:
        _write_back(machine, inode)
    sb.write_times(inodes)
    sb.nvram.fence()


def _write_back(machine: Machine, inode: Inode) -> None:
    dirty = find_dirty_pages(machine, inode.mapping)
    if dirty:
        statistics = writeback_pages(machine, inode.mapping, dirty)
        if statistics.nr_failed:
            raise DeviceError(
                f"inode {inode.ino}: {statistics.nr_failed} pages could not be written back"
            )


def _check_writable(sb: "SuperBlock", inode: Inode) -> None:
    if not sb.writable:
        raise ReadOnlyFsError(f"inode {inode.ino}: mounted read-only")
    if inode.disk.flags & _IMMUTABLE:
        raise NotPermittedError(f"inode {inode.ino}: immutable")
    if inode.inline is not None:
        raise FormatError(f"inode {inode.ino}: a regular file with its bytes in the inode")


def _write(
    sb: "SuperBlock", machine: Machine, inode: Inode, pos: int, data: memoryview, now_ns: int
) -> None:
    """Write all of *data*, _NR_WRITE_PAGES_MAX pages at most, or raise."""
    mapping = inode.mapping
    size_bytes = inode.disk.size_bytes
    end = pos + len(data)
    first = pos >> PAGE_SHIFT
    found = inode.extents.pieces(Pgoff(first), bytes_to_pages(end) - first)
    holes = []
    for start, place, nr_pages in found:
        if place is None:
            holes.append((start, nr_pages))
        else:
            sb.allocator.check_of_file(place, nr_pages)
    if not holes and end <= size_bytes:
        xip_file_write_range(machine, mapping, pos, data)
        sb.touch(inode, now_ns)
        return
    tail_pos, tail = pos, data[:0]
    with sb.transaction(now_ns) as tx:
        disk = tx.inode(inode.ino)
        pieces = [
            piece for start, nr_pages in holes for piece in _pages_for(tx, inode, start, nr_pages)
        ]
        for pgoff, block, nr_pages, is_unwritten in pieces:
            _store_pages(sb, block, nr_pages, (pgoff << PAGE_SHIFT) - pos, data)
            if is_unwritten:
                disk = mark_written(tx, disk, pgoff, nr_pages)
            else:
                disk = insert_extent(tx, disk, pgoff, block, nr_pages)
        for start, place, nr_pages in found:
            if place is None:
                continue
            low = max(start << PAGE_SHIFT, pos)
            high = min(start + nr_pages << PAGE_SHIFT, end)
            if low < size_bytes:
                part = data[low - pos : min(high, size_bytes) - pos]
                xip_file_write_range(machine, mapping, low, part)
            if high > size_bytes:
                tail_pos = max(low, size_bytes)
                tail = data[tail_pos - pos : high - pos]
                _log_tail(tx, inode, tail_pos, tail)
        tx.put_inode(
            disk._replace(size_bytes=max(size_bytes, end), mtime_ns=now_ns, ctime_ns=now_ns)
        )
    mapping.i_size_bytes = inode.disk.size_bytes
    if tail:
        frame = mapping.i_pages.get(tail_pos >> PAGE_SHIFT)
        if frame is not None:
            # It is what everybody reads; NVRAM has the same bytes, so it is no dirtier than before.
            machine.physmem.store(pfn_to_kaddr(frame) + (tail_pos & PAGE_MASK), tail)
    end_before = bytes_to_pages(size_bytes)
    for start, nr_pages in holes:
        if start < end_before:
            xip_hole_filled(machine, mapping, Pgoff(start), min(nr_pages, end_before - start))


def _pages_for(
    tx: Transaction, inode: Inode, pgoff: int, nr_pages: int
) -> list[tuple[int, Block, int, bool]]:
    """Return pages of the image for file pages in a hole: (pgoff, block, nr_pages, is_unwritten).

    Those of unwritten extents, which have some already, and new ones.
    """
    pieces: list[tuple[int, Block, int, bool]] = []
    end = pgoff + nr_pages
    unwritten = inode.extents.find_unwritten(Pgoff(pgoff), nr_pages)
    for stop, block, nr_unwritten_pages in [*unwritten, (end, Block(0), 0)]:
        if pgoff < stop:
            near = inode.extents.goal(Pgoff(pgoff))
            for new_block, nr_new_pages in tx.allocate(stop - pgoff, near):
                pieces.append((pgoff, new_block, nr_new_pages, False))
                pgoff += nr_new_pages
        if nr_unwritten_pages:
            tx.sb.allocator.check_of_file(block, nr_unwritten_pages)
            pieces.append((pgoff, block, nr_unwritten_pages, True))
            pgoff += nr_unwritten_pages
    return pieces


def _store_pages(
    sb: "SuperBlock", block: Block, nr_pages: int, start: int, data: memoryview
) -> None:
    """Fill whole pages with the bytes of *data* from *start* on, and zeros around them; flush."""
    stop = start + (nr_pages << PAGE_SHIFT)
    part: bytes | memoryview = data[max(start, 0) : stop]
    if start < 0 or stop > len(data):
        part = bytes(max(-start, 0)) + bytes(part) + bytes(max(stop - len(data), 0))
    sb.nvram.store_bytes(block << PAGE_SHIFT, part)
    sb.nvram.flush(block << PAGE_SHIFT, len(part))


def _log_tail(tx: Transaction, inode: Inode, pos: int, data: memoryview) -> None:
    """Put bytes behind the file's end, in pages that it has, into the transaction."""
    while data:
        block = inode.extents.find_block(Pgoff(pos >> PAGE_SHIFT))
        assert block is not None, "no hole"
        part = bytes(data[: PAGE_SIZE - (pos & PAGE_MASK)])
        tx.store((block << PAGE_SHIFT) + (pos & PAGE_MASK), part)
        pos += len(part)
        data = data[len(part) :]
