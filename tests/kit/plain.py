"""Plain memory: what processes see of files in two tiers, in dicts. Slow, to be right by reading.

It shares nothing with `xipfs.mm`, and is asked the same: by tests/model/test_mm.py.

    memory = PlainMemory(is_2008=False, nr_frames=8, nr_blocks=4)
    file = memory.file({0: b"...", 3: b"..."}, size_bytes=20480, writable=True)
    a = memory.process()
    memory.map(a, 512, file, range(5), True, "rw")
    memory.store(a, 512 * 4096, b"x")               None, or the signal
    memory.promote(file, [0, 1, 2])                 (1, 0, 2): one moved, two are holes

    Page       bytes; a page of a file, in NVRAM or in RAM, or a private copy, in RAM
    File       {pgoff: Page}; no entry: a hole
    Process    space {page number: Mapped}, what is mapped; ptes {page number: Page}, what is there

There are no vmas, references, flags of ptes or dirty bits: a page that moves keeps its bytes.
"""

import errno
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["File", "Mapped", "Page", "Pin", "PlainMemory", "Process"]

PAGE_SIZE = 4096
PTRS_PER_PTE = 512

MAPERR, ACCERR = ("SIGSEGV", 1), ("SIGSEGV", 2)
SIGBUS, OOM = ("SIGBUS", 2), ("SIGKILL", 0)
Signal = tuple[str, int]


@dataclass(eq=False)
class Page:
    """is_copy: a private copy. exclusive: of one process that nobody may share."""

    content: bytearray
    in_ram: bool = False
    is_copy: bool = False
    exclusive: bool = False


@dataclass(eq=False)
class File:
    pages: dict[int, Page]
    size_bytes: int
    writable: bool
    has_fsync: bool = False

    @property
    def nr_pages(self) -> int:
        return -(-self.size_bytes // PAGE_SIZE)


class Mapped(NamedTuple):
    """What is mapped at one page number; prot is none, r or rw."""

    file: File
    pgoff: int
    shared: bool
    prot: str


@dataclass(eq=False)
class Process:
    space: dict[int, Mapped] = field(default_factory=dict)
    ptes: dict[int, Page] = field(default_factory=dict)
    heat: Counter[int] = field(default_factory=Counter)


@dataclass(eq=False)
class Pin:
    """A page that somebody holds; `is_pin`: by FOLL_PIN, not by a mere reference."""

    page: Page
    write: bool
    is_pin: bool


class PlainMemory:
    def __init__(self, *, is_2008: bool, nr_frames: int, nr_blocks: int) -> None:
        self.is_2008 = is_2008
        self.nr_frames = nr_frames
        self.nr_free_blocks = nr_blocks
        self.sparse = Page(bytearray(PAGE_SIZE), in_ram=True)
        self.files: list[File] = []
        self.processes: list[Process] = []
        self.pins: list[Pin] = []

    # --- what there is

    def file(self, pages: dict[int, bytes], *, size_bytes: int, writable: bool) -> File:
        contents = {pgoff: Page(bytearray(content)) for pgoff, content in pages.items()}
        self.files.append(File(contents, size_bytes, writable))
        return self.files[-1]

    def process(self) -> Process:
        self.processes.append(Process())
        return self.processes[-1]

    def nr_ptes(self, page: Page) -> int:
        return sum(found is page for p in self.processes for found in p.ptes.values())

    def is_held(self, page: Page) -> bool:
        return any(pin.page is page for pin in self.pins)

    @property
    def nr_free_frames(self) -> int:
        used = {page for file in self.files for page in file.pages.values()}
        used |= {page for p in self.processes for page in p.ptes.values()}
        used |= {pin.page for pin in self.pins}
        return self.nr_frames - sum(page.in_ram for page in used - {self.sparse})

    # --- faults

    def fault(self, process: Process, number: int, *, write: bool) -> Signal | None:
        """Map what belongs at a page number that may be accessed so, or say what is in the way."""
        at = process.space[number]
        if number not in process.ptes:
            if write and not at.shared and not self.nr_free_frames:
                return OOM
            if at.pgoff >= at.file.nr_pages:
                return SIGBUS
            page = at.file.pages.get(at.pgoff)
            if page is None and at.shared and at.file.writable:  # for reading, too
                page = self.fill_hole(at.file, at.pgoff)
                if page is None:
                    return SIGBUS
            process.ptes[number] = page or self.sparse
        if write and not at.shared:
            return self.own(process, number)
        return None

    def own(self, process: Process, number: int) -> Signal | None:
        """Let a process have the page for itself: take over a copy, or make one."""
        page = process.ptes[number]
        if page.is_copy:
            alone = self.nr_ptes(page) == 1
            if page.exclusive or (alone and (self.is_2008 or not self.is_held(page))):
                page.exclusive = not self.is_2008
                return None
        return self.copy(process, number)

    def copy(self, process: Process, number: int) -> Signal | None:
        if not self.nr_free_frames:
            return OOM
        content = bytearray(process.ptes[number].content)
        process.ptes[number] = Page(content, True, True, exclusive=not self.is_2008)
        return None

    def fill_hole(self, file: File, pgoff: int) -> Page | None:
        """A page of zeros, which all see who saw the hole. None without a block for it."""
        if not self.nr_free_blocks:
            return None
        self.nr_free_blocks -= 1
        self.take_ptes(file, [pgoff], lambda page: page is self.sparse)
        file.pages[pgoff] = Page(bytearray(PAGE_SIZE))
        return file.pages[pgoff]

    def take_ptes(self, file: File, pgoffs: Iterable[int], which) -> int:
        """Unmap pages of a file wherever they are mapped. Returns: how many ptes went."""
        wanted, nr_taken = set(pgoffs), 0
        for process in self.processes:
            for number, page in list(process.ptes.items()):
                at = process.space[number]
                if at.file is file and at.pgoff in wanted and which(page):
                    del process.ptes[number]
                    nr_taken += 1
        return nr_taken

    # --- what programs do

    def reach(self, process: Process, number: int, *, write: bool) -> Page | Signal:
        at = process.space.get(number)
        if at is None:
            return MAPERR
        if at.prot == "none" or (write and at.prot != "rw"):
            return ACCERR
        if number not in process.ptes or write:
            signal = self.fault(process, number, write=write)
            if signal:
                return signal
        process.heat[number] += 1
        return process.ptes[number]

    def load(self, process: Process, address: int, size_bytes: int) -> bytes | Signal:
        found = b""
        for number, start, end in _parts(address, size_bytes):
            page = self.reach(process, number, write=False)
            if isinstance(page, tuple):
                return page
            found += page.content[start:end]
        return found

    def store(self, process: Process, address: int, data: bytes) -> Signal | None:
        done = 0
        for number, start, end in _parts(address, len(data)):
            page = self.reach(process, number, write=True)
            if isinstance(page, tuple):
                return page
            page.content[start:end] = data[done : done + end - start]
            done += end - start
        return None

    def access(self, process: Process, first: int, nr_pages: int) -> Signal | None:
        """What the mount does to read pages: leaf by leaf; a leaf that fails is not heated."""
        end = first + nr_pages
        while first < end:
            leaf = range(first, min(end, (first // PTRS_PER_PTE + 1) * PTRS_PER_PTE))
            for number in leaf:
                signal = number not in process.ptes and self.fault(process, number, write=False)
                if signal:
                    return signal
            process.heat.update(leaf)
            first = leaf.stop
        return None

    def get_user_pages(
        self, process: Process, first: int, nr_pages: int, *, write: bool, is_pin: bool
    ) -> tuple[int, list[Page]]:
        """Returns: what the kernel does, and the pages, which are held from now on."""
        pages: list[Page] = []
        for number in range(first, first + nr_pages):
            error = self.faultin_page(process, number, write=write, is_pin=is_pin)
            page = process.ptes.get(number)
            if not error and page is not None and not page.in_ram:
                error = -errno.EFAULT if self.is_2008 else -errno.EEXIST
            if error or page is None:
                return len(pages) or error, pages
            pages.append(page)
            self.pins.append(Pin(page, write, is_pin and not self.is_2008))
        return nr_pages, pages

    def faultin_page(self, process: Process, number: int, *, write: bool, is_pin: bool) -> int:
        at = process.space.get(number)
        if at is None or at.prot == "none" or (write and at.prot != "rw"):
            return -errno.EFAULT
        signal = None
        if number not in process.ptes or write:
            signal = self.fault(process, number, write=write)
        page = process.ptes.get(number)
        if not signal and is_pin and not self.is_2008 and page and page.is_copy:
            signal = self.own(process, number)  # whoever writes it later, writes it for the pin
        return {None: 0, OOM: -errno.ENOMEM, SIGBUS: -errno.EFAULT}[signal]

    def mlock(self, process: Process, first: int, nr_pages: int) -> int:
        """No page is locked, but each is faulted in, private ones for writing."""
        numbers = range(first, first + nr_pages)
        if not all(number in process.space for number in numbers):
            return -errno.ENOMEM
        for number in numbers:
            at = process.space[number]
            write = at.prot == "rw" and not at.shared
            error = self.faultin_page(process, number, write=write, is_pin=False)
            page = process.ptes.get(number)
            if self.is_2008 and not error and page and not page.in_ram:
                error = -errno.EFAULT
            if error:
                return {-errno.EFAULT: -errno.ENOMEM, -errno.ENOMEM: -errno.EAGAIN}[error]
        return 0

    # --- areas

    def map(
        self, process: Process, first: int, file: File, pgoffs: range, shared: bool, prot: str
    ) -> None:
        for number, pgoff in enumerate(pgoffs, first):
            assert number not in process.space, "mapped over another"
            process.space[number] = Mapped(file, pgoff, shared, prot)

    def munmap(self, process: Process, first: int, nr_pages: int) -> None:
        for number in range(first, first + nr_pages):
            process.space.pop(number, None)
            process.ptes.pop(number, None)
            process.heat.pop(number, None)

    def mprotect(self, process: Process, first: int, nr_pages: int, prot: str) -> int:
        for number in range(first, first + nr_pages):
            at = process.space.get(number)
            if at is None:
                return -errno.ENOMEM
            if prot == "rw" and at.shared and not at.file.writable:
                return -errno.EACCES
            process.space[number] = at._replace(prot=prot)
        return 0

    def dontneed(self, process: Process, first: int, nr_pages: int) -> int:
        numbers = range(first, first + nr_pages)
        for number in numbers:
            process.ptes.pop(number, None)
        return 0 if all(number in process.space for number in numbers) else -errno.ENOMEM

    def msync(self, process: Process, first: int, nr_pages: int) -> int:
        result = 0
        for number in range(first, first + nr_pages):
            at = process.space.get(number)
            if at is None:
                result = -errno.ENOMEM
            elif at.shared and at.file.writable and not at.file.has_fsync:
                return -errno.EINVAL
        return result

    def move(
        self, process: Process, first: int, nr_old: int, to: int, nr_new: int, *, keep: bool
    ) -> None:
        """mremap of pages of one area, from `first` to `to`; `keep`: the old place stays mapped."""
        at = process.space[first]
        pgoffs = range(at.pgoff, at.pgoff + nr_new)
        if to == first:  # there was room behind it
            self.map(process, first + nr_old, at.file, pgoffs[nr_old:], at.shared, at.prot)
            return
        old = [(process.ptes.get(n), process.heat[n]) for n in range(first, first + nr_old)]
        for number in range(first, first + nr_old):
            if keep and process.ptes.pop(number, None):
                del process.heat[number]
        if not keep:
            self.munmap(process, first, nr_old)
        self.map(process, to, at.file, pgoffs, at.shared, at.prot)
        for number, (page, heat) in enumerate(old[:nr_new], to):
            if page:
                process.ptes[number] = page
                process.heat[number] = heat

    def fork(self, parent: Process) -> Process:
        """2.6.28 leaves most pages but copies to the child's faults."""
        child = self.process()
        child.space = dict(parent.space)
        for number, page in parent.ptes.items():
            child.ptes[number] = page
            if page.exclusive and any(pin.page is page and pin.is_pin for pin in self.pins):
                child.ptes[number] = Page(bytearray(page.content), True, True, exclusive=True)
            elif page.is_copy:
                page.exclusive = False
        return child

    def exit(self, process: Process) -> None:
        self.processes.remove(process)

    # --- files

    def read(self, file: File, pos: int, size_bytes: int) -> bytes:
        size_bytes = max(0, min(size_bytes, file.size_bytes - pos))
        pages = ((file.pages.get(n, self.sparse), a, b) for n, a, b in _parts(pos, size_bytes))
        return b"".join(page.content[start:end] for page, start, end in pages)

    def write(self, file: File, pos: int, data: bytes) -> int:
        """Returns: how many bytes; -ENOSPC."""
        done = 0
        for pgoff, start, end in _parts(pos, len(data)):
            page = file.pages.get(pgoff) or self.fill_hole(file, pgoff)
            if page is None:
                return done or -errno.ENOSPC
            page.content[start:end] = data[done : done + end - start]
            done += end - start
            file.size_bytes = max(file.size_bytes, pos + done)
        return done

    def truncate(self, file: File, size_bytes: int) -> None:
        """What is cut off is gone for all, private copies of it, too."""
        if size_bytes < file.size_bytes and size_bytes % PAGE_SIZE:
            last = file.pages.get(size_bytes // PAGE_SIZE)
            if last:
                last.content[size_bytes % PAGE_SIZE :] = bytes(-size_bytes % PAGE_SIZE)
        file.size_bytes = size_bytes
        cut = [pgoff for pgoff in file.pages if pgoff >= file.nr_pages]
        for process in self.processes:
            for number in list(process.ptes):
                at = process.space[number]
                if at.file is file and at.pgoff >= file.nr_pages:
                    del process.ptes[number]
        for pgoff in cut:
            del file.pages[pgoff]
            self.nr_free_blocks += 1

    def unmap(self, file: File, pgoffs: range, *, even_cows: bool) -> int:
        """unmap_mapping_range; without even_cows 2.6.28 spares what names another file, too."""
        spares_holes = self.is_2008
        return self.take_ptes(
            file,
            pgoffs,
            lambda page: even_cows or not (page.is_copy or (page is self.sparse and spares_holes)),
        )

    # --- tiers: (moved, were there, failed)

    def promote(self, file: File, pgoffs: list[int]) -> tuple[int, int, int]:
        moved = resident = 0
        for pgoff in pgoffs:
            page = file.pages.get(pgoff)
            if page and page.in_ram:
                resident += 1
            elif page and self.nr_free_frames:
                self.take_ptes(file, [pgoff], lambda found, page=page: found is page)
                page.in_ram = True
                moved += 1
        return moved, resident, len(pgoffs) - resident - moved

    def demote(self, file: File, pgoffs: list[int]) -> tuple[int, int, int]:
        """Who is held stays, but is unmapped."""
        moved = held = 0
        for pgoff in pgoffs:
            page = file.pages.get(pgoff)
            if page and page.in_ram:
                self.take_ptes(file, [pgoff], lambda found, page=page: found is page)
                if self.is_held(page):
                    held += 1
                else:
                    page.in_ram = False
                    moved += 1
        return moved, len(pgoffs) - moved - held, held


def _parts(pos: int, size_bytes: int) -> list[tuple[int, int, int]]:
    """Cut bytes at pages: (page number, start, end in it)."""
    parts = []
    while size_bytes > 0:
        start = pos % PAGE_SIZE
        end = min(PAGE_SIZE, start + size_bytes)
        parts.append((pos // PAGE_SIZE, start, end))
        pos += end - start
        size_bytes -= end - start
    return parts
