"""Who calls get_user_pages, and what a page without struct page means to each.

    user               gets pages with                  a page that cannot be got is
    process_vm_readv   pins, remote                     EFAULT
    /proc/PID/mem      force, remote, page by page      EIO
    ptrace             the same                         EIO
    vmsplice           references, fast                 what GUP says: EEXIST (6.1), EFAULT
    O_DIRECT           references, fast                 what GUP says
    io_uring buffers   pins for writing, long-term      EFAULT, EEXIST; EOPNOTSUPP for files
    futex (shared)     a reference, fast; for writing   what GUP says; EFAULT for a page of no file
                       first, then for reading

write(2) and read(2) on a pipe copy through the user's mapping instead, and work with every page.

Source: mm/process_vm_access.c, fs/proc/base.c mem_rw, kernel/ptrace.c, fs/splice.c, block/bio.c,
io_uring/rsrc.c, kernel/futex/core.c, 6.1. All functions return a count or -errno.
"""

import errno

from xipfs.mm.access import copy_from_user, copy_to_user
from xipfs.mm.gup import (
    FOLL_FORCE,
    FOLL_LONGTERM,
    FOLL_PIN,
    FOLL_WRITE,
    get_user_pages,
    get_user_pages_fast,
    put_user_page,
)
from xipfs.mm.vma import Mm
from xipfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Pfn, Vaddr

__all__ = [
    "Pipe",
    "access_remote_vm",
    "direct_io",
    "futex_wake_shared",
    "io_uring_register_buffer",
    "mem_rw",
    "process_vm_rw",
    "ptrace_access",
]

_WORD_SIZE_BYTES = 8


def process_vm_rw(mm: Mm, address: Vaddr, buffer: bytearray, *, write: bool) -> int:
    """Copy between *buffer* and *mm* as process_vm_readv and process_vm_writev do."""
    flags = FOLL_PIN | (FOLL_WRITE if write else 0)
    first = address & ~PAGE_MASK
    nr_pages = (address + len(buffer) + PAGE_MASK - first) >> PAGE_SHIFT
    pages: list[Pfn] = []
    got = get_user_pages(mm, Vaddr(first), nr_pages, flags, pages)
    if got <= 0:
        return -errno.EFAULT
    size_bytes = min(len(buffer), (got << PAGE_SHIFT) - (address - first))
    for page, (start, end, offset) in zip(pages, _parts(address, size_bytes), strict=True):
        _copy_page(mm, page, offset, buffer, start, end, write=write)
    for page in pages:
        put_user_page(mm, page, flags, dirty=write)
    return size_bytes


def access_remote_vm(mm: Mm, address: Vaddr, buffer: bytearray, *, write: bool) -> int:
    """Copy by force, page by page, as far as it goes. Returns: bytes copied, perhaps 0."""
    flags = FOLL_FORCE | (FOLL_WRITE if write else 0)
    copied = 0
    for start, end, offset in _parts(address, len(buffer)):
        pages: list[Pfn] = []
        page_address = Vaddr((address + start) & ~PAGE_MASK)
        if get_user_pages(mm, page_address, 1, flags, pages) <= 0:
            break  # the kernel tries vm_ops->access now, which no area here has
        _copy_page(mm, pages[0], offset, buffer, start, end, write=write)
        put_user_page(mm, pages[0], flags, dirty=write)
        copied = end
    return copied


def mem_rw(mm: Mm, address: Vaddr, buffer: bytearray, *, write: bool) -> int:
    """Read or write /proc/PID/mem. Returns: bytes copied, or -EIO for none."""
    return access_remote_vm(mm, address, buffer, write=write) or -errno.EIO


def ptrace_access(mm: Mm, address: Vaddr, word: bytearray, *, write: bool) -> int:
    """PTRACE_PEEKDATA or POKEDATA of the eight bytes *word*. Returns: 0 or -EIO."""
    copied = access_remote_vm(mm, address, word, write=write)
    return 0 if copied == _WORD_SIZE_BYTES else -errno.EIO


def direct_io(mm: Mm, address: Vaddr, buffer: bytearray, *, write: bool) -> int:
    """O_DIRECT to or from a block device: *write* if it stores to memory, that is, reads a disk."""
    flags = FOLL_WRITE if write else 0
    pages: list[Pfn] = []
    nr_pages = len(buffer) >> PAGE_SHIFT
    got = get_user_pages_fast(mm, address, nr_pages, flags, pages)
    if got <= 0:
        return got
    for page, (start, end, offset) in zip(pages, _parts(address, got << PAGE_SHIFT), strict=True):
        _copy_page(mm, page, offset, buffer, start, end, write=write)
        put_user_page(mm, page, flags, dirty=write)
    return got << PAGE_SHIFT


def io_uring_register_buffer(mm: Mm, address: Vaddr, nr_pages: int, pinned: list[Pfn]) -> int:
    """Pin pages for io_uring: IORING_REGISTER_BUFFERS, whose pages go to *pinned*.

    Returns: 0; -EOPNOTSUPP for pages of a file's area; what GUP says.
    """
    flags = FOLL_PIN | FOLL_WRITE | FOLL_LONGTERM
    pages: list[Pfn] = []
    got = get_user_pages(mm, address, nr_pages, flags, pages)
    error = 0
    if got < nr_pages:
        error = got if got < 0 else -errno.EFAULT
    else:
        end = Vaddr(address + (nr_pages << PAGE_SHIFT))
        if any(vma.vm_file is not None for vma in mm.vmas_between(address, end)):
            error = -errno.EOPNOTSUPP
    if error:
        for page in pages:
            put_user_page(mm, page, flags)
        return error
    pinned += pages
    return 0


def futex_wake_shared(mm: Mm, address: Vaddr) -> int:
    """FUTEX_WAKE on a shared futex that nobody waits for. Returns: 0 or -errno.

    Source: get_futex_key: a page of no file is no key, nor is an anonymous one that
    cannot be written.
    """
    pages: list[Pfn] = []
    got = get_user_pages_fast(mm, Vaddr(address & ~PAGE_MASK), 1, FOLL_WRITE, pages)
    read_only = got == -errno.EFAULT
    if read_only:
        got = get_user_pages_fast(mm, Vaddr(address & ~PAGE_MASK), 1, 0, pages)
    if got < 0:
        return got
    mem_map = mm.machine.mem_map
    page = pages[0]
    if mem_map.page_anon(page):
        is_key = not read_only  # such a page never changes
    else:
        is_key = mem_map.mapping[page] >= 0
    put_user_page(mm, page, 0)
    return 0 if is_key else -errno.EFAULT


class Pipe:
    """A pipe, which holds what was spliced into it by reference: pages, one entry a reference."""

    def __init__(self, mm: Mm) -> None:
        self._mm = mm
        self.pages: list[Pfn] = []

    def vmsplice(self, address: Vaddr, size_bytes: int) -> int:
        """Put pages of the process into the pipe. Returns: bytes, or what GUP says."""
        first = address & ~PAGE_MASK
        nr_pages = (address + size_bytes + PAGE_MASK - first) >> PAGE_SHIFT
        got = get_user_pages_fast(self._mm, Vaddr(first), nr_pages, 0, self.pages)
        if got <= 0:
            return got
        return min(size_bytes, (got << PAGE_SHIFT) - (address - first))

    def write(self, address: Vaddr, size_bytes: int) -> int:
        """Copy bytes of the process into the pipe, which drops them. Returns: bytes or -EFAULT."""
        data = copy_from_user(self._mm, address, size_bytes)
        return -errno.EFAULT if data is None else len(data)

    def read(self, address: Vaddr, data: bytes) -> int:
        """Copy *data*, as if from the pipe, to the process. Returns: bytes, or -EFAULT."""
        return len(data) if copy_to_user(self._mm, address, data) else -errno.EFAULT

    def close(self) -> None:
        """Let the pages go."""
        for page in self.pages:
            put_user_page(self._mm, page, 0)
        self.pages.clear()


def _parts(address: Vaddr, size_bytes: int) -> list[tuple[int, int, int]]:
    """Cut a range at pages: (start, end in the buffer, offset in the page) of each."""
    parts: list[tuple[int, int, int]] = []
    start = 0
    while start < size_bytes:
        offset = (address + start) & PAGE_MASK
        end = min(size_bytes, start + PAGE_SIZE - offset)
        parts.append((start, end, offset))
        start = end
    return parts


def _copy_page(
    mm: Mm, page: Pfn, offset: int, buffer: bytearray, start: int, end: int, *, write: bool
) -> None:
    frame = mm.machine.physmem.frame(page)[offset : offset + end - start]
    if write:
        frame[:] = buffer[start:end]
    else:
        buffer[start:end] = frame
