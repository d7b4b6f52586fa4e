"""What is in an image, read past any mm: for the commands that look into it without a mount.

    sb = SuperBlock.open("system.img")
    inode = path_lookup(sb, b"/etc/hosts")
    for part in iter_contents(sb, inode): ...          all bytes, holes as zeros
    for offset, part in iter_data(sb, inode): ...      only what is written
    for entry in list_directory(sb, directory): ...    names in byte order
    find_paths(sb, [3, 7])                             {3: b"/etc/hosts", 7: b"/bin"}

Nothing is held whole but one directory; parts are at most PART_SIZE_BYTES.
"""

import os
import stat
from collections.abc import Iterable, Iterator

from xipfs.errors import FormatError, InvalidArgumentError, IsDirError
from xipfs.fs.dentry import DirEntry
from xipfs.fs.extent import iter_extents
from xipfs.fs.inode import Inode
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.extent import ExtentFlags
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SHIFT

__all__ = [
    "PART_SIZE_BYTES",
    "find_paths",
    "iter_contents",
    "iter_data",
    "list_directory",
    "printable",
]

PART_SIZE_BYTES = 1 << 20


def iter_contents(sb: SuperBlock, inode: Inode) -> Iterator[bytes]:
    """Yield the contents of a file in order, zeros for holes.

    Raises: IsDirError, InvalidArgumentError for what has no contents; FormatError, DeviceError.
    """
    if inode.is_dir:
        raise IsDirError(f"inode {inode.ino} is a directory")
    if not (inode.is_regular or stat.S_ISLNK(inode.disk.mode)):
        raise InvalidArgumentError(f"inode {inode.ino} is a device, a fifo or a socket")
    zeros = bytes(PART_SIZE_BYTES)
    position = 0
    for offset, data in iter_data(sb, inode):
        while position < offset:
            hole = zeros[: offset - position]
            yield hole
            position += len(hole)
        yield data
        position += len(data)
    while position < inode.disk.size_bytes:
        hole = zeros[: inode.disk.size_bytes - position]
        yield hole
        position += len(hole)


def iter_data(sb: SuperBlock, inode: Inode) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of all written parts of a file, in order; between them are holes.

    Raises: FormatError, DeviceError.
    """
    size_bytes = inode.disk.size_bytes
    if inode.inline is not None:
        yield 0, inode.inline
        return
    position = 0
    for pgoff, block, nr_pages, flags in iter_extents(sb.nvram, sb.seed, inode.disk):
        start, end = pgoff << PAGE_SHIFT, (pgoff + nr_pages) << PAGE_SHIFT
        if start < position:
            raise FormatError(f"inode {inode.ino}: extents out of order at file page {pgoff}")
        position = end
        if flags & ExtentFlags.UNWRITTEN:
            continue
        image_offset = (block << PAGE_SHIFT) - start
        for offset in range(start, min(end, size_bytes), PART_SIZE_BYTES):
            part_bytes = min(PART_SIZE_BYTES, end - offset, size_bytes - offset)
            yield offset, sb.nvram.load(image_offset + offset, part_bytes)


def list_directory(sb: SuperBlock, directory: Inode) -> list[DirEntry]:
    """Return the entries of *directory* in the byte order of their names, without "." and "..".

    Raises: FormatError, DeviceError.
    """
    entries = sb.dir_reader.iter_entries(directory.disk, directory.extents)
    return sorted(entry for entry in entries if entry.name not in (b".", b".."))


def find_paths(sb: SuperBlock, inos: Iterable[int]) -> dict[int, bytes]:
    """Return a path of each inode of *inos* that has one, by walking the tree until all are found.

    Raises: FormatError, DeviceError.
    """
    missing = set(inos)
    found: dict[int, bytes] = {}
    waiting = [(INO_ROOT, b"/")]
    seen: set[int] = set()
    while waiting and missing:
        ino, path = waiting.pop()
        if ino in seen:
            continue  # a damaged tree may lead in circles
        seen.add(ino)
        directory = sb.iget(ino)
        for entry in list_directory(sb, directory):
            entry_path = os.path.join(path, entry.name)
            if entry.ino in missing:
                missing.remove(entry.ino)
                found[entry.ino] = entry_path
            if entry.d_type == stat.S_IFDIR >> 12:
                waiting.append((entry.ino, entry_path))
        sb.drop_unused(directory)
    return found


def printable(name: bytes) -> str:
    """Return *name* for a line of text: what would disturb it, as backslash and code.

    >>> printable(b"a b"), printable(b"\\xff\\n")
    ('a b', '\\\\xff\\\\n')
    """
    text = os.fsdecode(name).replace("\\", "\\\\")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
