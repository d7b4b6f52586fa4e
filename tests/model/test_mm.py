"""Random work of several processes on files in two tiers, beside plain dicts that know better.

`Machine` does each operation twice: on `xipfs.mm`, and on `PlainMemory` (tests/kit/plain.py), which
was written from the specification. Answers must be equal, and after each operation

    every reference is accounted for, no frame is in two places, every pte is reachable by offset
    exactly those ptes are present that should be, and lead to the right frames
    each frame holds the bytes that it should, in the tier where it should be
    rss is the pages with struct page, heat the accesses; who holds a page sees what is written

A daemon moves pages between the tiers at random meanwhile; nobody may notice but by faults.
"""

import errno
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.kit.mm import World, block_bytes, iter_ptes
from tests.kit.operations import OPERATIONS, nr_examples
from tests.kit.plain import File, Page, PlainMemory, Process
from tests.kit.sow import sow
from xipfs.errors import DeviceError, NoSpaceError
from xipfs.mm import fault, filemap_xip, fork, gup, migrate, rmap, truncate
from xipfs.mm.access import access_page, access_range, user_load, user_store
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.arch import Arch, get_arch
from xipfs.mm.filemap_xip import XIP_FILE_VM_OPS, xip_file_read, xip_file_write
from xipfs.mm.fork import dup_mm
from xipfs.mm.gup import (
    FOLL_PIN,
    FOLL_WRITE,
    get_user_pages,
    get_user_pages_fast,
    put_user_page,
)
from xipfs.mm.madvise import Advice, do_madvise
from xipfs.mm.migrate import DemoteReason, MigrateStatistics, demote_pages, promote_pages
from xipfs.mm.mlock import do_mlock
from xipfs.mm.mmap import do_mmap, do_munmap, exit_mmap
from xipfs.mm.mprotect import do_mprotect
from xipfs.mm.mremap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, do_mremap
from xipfs.mm.msync import do_msync
from xipfs.mm.pgtable import PMD_SHIFT, pte_index, pte_pfn
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.mm.truncate import truncate_setsize
from xipfs.mm.vma import VM_MIXEDMAP, VM_READ, VM_WRITE, Mm, Vma
from xipfs.phys.nvram import NvramDevice
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, PAGE_SIZE, Pfn, Pgoff, Vaddr

NR_BLOCKS = 48
NR_FREE_BLOCKS = 6
NR_TIER_FRAMES = 14
NR_PROCESSES_MAX = 4
NR_PINS_MAX = 8
NR_EXAMPLES = 40
NR_STEPS = 80

FILES: list[tuple[dict[int, int], int, bool]] = [  # {pgoff: block}, size in bytes, writable
    ({0: 1, 1: 2, 3: 5}, 5 << PAGE_SHIFT, True),  # with a hole inside and one at the end
    ({0: 6, 3: 7, 4: 8}, (4 << PAGE_SHIFT) + 100, True),  # ends within a page
    ({pgoff: 9 + pgoff * 5 % 8 for pgoff in range(8)}, 9 << PAGE_SHIFT, False),
    (  # over three leaves, with something on both sides of each border
        {pgoff: 20 + pgoff - 508 for pgoff in range(508, 516)}
        | {pgoff: 28 + pgoff - 1022 for pgoff in range(1022, 1027)},
        1100 << PAGE_SHIFT,
        True,
    ),
]
PROTS = {"none": 0, "r": VM_READ, "rw": VM_READ | VM_WRITE}
ARCHES = [get_arch("generic", "2.6.28"), get_arch("x86", "2.6.28"), get_arch("x86", "6.1")]

# A few pages that all meet on, of each kind: (file, pgoff).
MEETING_PLACES = [
    *[(0, 0)] * 5,
    *[(0, 1)] * 3,
    *[(0, 2), (0, 2), (0, 2), (0, 3), (1, 3), (1, 3), (1, 4), (2, 0), (2, 8)],
    *[(3, 511), (3, 512), (3, 1023)],
]

whos = st.integers(0, NR_PROCESSES_MAX - 1)
pages = st.sampled_from(MEETING_PLACES)
nths = st.integers(0, 2)
lengths = st.sampled_from([1, 1, 2, 3, 6])
prots = st.sampled_from(["r", "rw", "rw", "rw", "none"])
offsets = st.sampled_from([0, 99, 2000, PAGE_SIZE - 2])
moves = st.tuples(st.booleans(), pages, st.integers(1, 4))

# --- what to do next, chosen by hypothesis

Place = tuple[int, int]
F = TypeVar("F", bound=Callable[..., None])
REST = "rest"
RULES: dict[str, dict[str, st.SearchStrategy[Any]]] = {REST: {}}
CHOICES = [REST]


class Step(NamedTuple):
    """An operation: a method of Machine and what it is called with."""

    name: str
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"


def rule(weight: int = 1, **arguments: st.SearchStrategy[Any]) -> Callable[[F], F]:
    """Mark a method as an operation, as hypothesis.stateful does, but to be chosen by weight.

    There each run leaves about half of the rules out, and most bugs take three or four to meet.
    """

    def add(method: F) -> F:
        RULES[method.__name__] = arguments
        CHOICES.extend([method.__name__] * weight)
        return method

    return add


@st.composite
def steps(draw: st.DrawFn) -> Step:
    name = draw(st.sampled_from(CHOICES))
    return Step(name, {key: draw(values) for key, values in RULES[name].items()})


# Long enough to get somewhere, and yet short in the end: the shrinker turns steps into rests.
many = st.lists(steps(), min_size=NR_STEPS, max_size=NR_STEPS).map(
    lambda steps: [step for step in steps if step.name != REST]
)


class OpenFile:
    """A file of the world, as mmap sees it."""

    def __init__(self, mapping: AddressSpace) -> None:
        self.f_mapping = mapping
        self.may_write = not mapping.read_only

    def mmap(self, vma: Vma) -> int:
        vma.vm_ops = XIP_FILE_VM_OPS
        vma.vm_flags |= VM_MIXEDMAP
        return 0


class Machine:
    """One machine, two tiers, four files, up to four processes, twice.

    A rule says who does it, to which page of a file, and which of the places where that is mapped.
    """

    def __init__(self, arch: Arch) -> None:
        self.nvram = NvramDevice.scratch(NR_BLOCKS << PAGE_SHIFT)
        for block in range(NR_BLOCKS - NR_FREE_BLOCKS):
            self.nvram.store_bytes(block << PAGE_SHIFT, block_bytes(block))
        self.world = World(
            None,
            arch,
            nvram=self.nvram,
            nr_blocks=NR_BLOCKS,
            nr_zero_blocks=NR_FREE_BLOCKS,
            nr_tier_frames=NR_TIER_FRAMES,
        )
        self.plain = PlainMemory(
            is_2008=arch.is_2008, nr_frames=NR_TIER_FRAMES, nr_blocks=NR_FREE_BLOCKS
        )
        self.files: list[tuple[AddressSpace, File]] = []
        for blocks, size_bytes, writable in FILES:
            mapping = self.world.fs.make_file(blocks, size_bytes=size_bytes, read_only=not writable)
            contents = {pgoff: block_bytes(block) for pgoff, block in blocks.items()}
            file = self.plain.file(contents, size_bytes=size_bytes, writable=writable)
            self.files.append((mapping, file))
        mapping, file = self.files[1]
        mapping.fsync, file.has_fsync = (lambda: 0), True
        mms = [self.world.mm, self.world.make_mm()]
        self.processes = [(mm, self.plain.process()) for mm in mms]
        self.pinned: list[tuple[Pfn, int]] = []  # frame and flags, in the order of plain.pins
        self.nr_writes = 0
        self._map_all()

    def _map_all(self) -> None:
        """Something to work on from the first step: each file whole, in one way and another."""
        for who in range(2):
            for which, (mapping, _) in enumerate(self.files):
                shared = which % 2 == who
                self._map(who, which, 0, mapping.nr_pages + 1, shared=shared, prot="rw")

    # --- rules: programs

    @rule(who=whos, page=pages, nth=nths, offset=offsets, size_bytes=st.integers(1, 3))
    def load(self, who: int, page: Place, nth: int, offset: int, size_bytes: int) -> None:
        mm, process, first, _ = self._pages(who, page, nth, 1)
        address = Vaddr((first << PAGE_SHIFT) + offset)
        found = user_load(mm, address, size_bytes)
        assert found == self.plain.load(process, address, size_bytes)

    @rule(6, who=whos, page=pages, nth=nths, offset=offsets)
    def store(self, who: int, page: Place, nth: int, offset: int) -> None:
        mm, process, first, _ = self._pages(who, page, nth, 1)
        address = Vaddr((first << PAGE_SHIFT) + offset)
        data = self._fresh_bytes()
        assert user_store(mm, address, data) == self.plain.store(process, address, data)

    @rule(who=whos, page=pages, nth=nths, length=lengths, by_page=st.booleans())
    def access(self, who: int, page: Place, nth: int, length: int, by_page: bool) -> None:
        """What the mount does: by the vma, without a look at its permissions."""
        mm, process, first, length = self._pages(who, page, nth, 1 if by_page else length)
        vma = mm.find_vma(Vaddr(first << PAGE_SHIFT))
        if vma is None or process.space[first].prot == "none":
            return
        pgoff = vma.pgoff(Vaddr(first << PAGE_SHIFT))
        signal = self.plain.access(process, first, length)
        try:
            pfns = [access_page(vma, pgoff)] if by_page else access_range(vma, pgoff, length)
        except DeviceError:
            assert signal
        else:
            assert not signal
            pages = [process.ptes[number] for number in range(first, first + length)]
            assert [self.world.page(int(pfn)) for pfn in pfns] == [p.content for p in pages]

    @rule(
        4,
        who=whos,
        page=pages,
        nth=nths,
        length=st.integers(1, 3),
        write=st.booleans(),
        is_pin=st.booleans(),
        fast=st.booleans(),
    )
    def get_user_pages(
        self,
        who: int,
        page: Place,
        nth: int,
        length: int,
        write: bool,
        is_pin: bool,
        fast: bool,
    ) -> None:
        if len(self.pinned) >= NR_PINS_MAX:
            return
        mm, process, first, length = self._pages(who, page, nth, length)
        flags = (FOLL_WRITE if write else 0) | (FOLL_PIN if is_pin else 0)
        get = get_user_pages_fast if fast else get_user_pages
        pages: list[Pfn] = []
        got = get(mm, Vaddr(first << PAGE_SHIFT), length, flags, pages)
        expected = self.plain.get_user_pages(process, first, length, write=write, is_pin=is_pin)
        assert (got, len(pages)) == (expected[0], len(expected[1]))
        self.pinned += [(page, flags) for page in pages]

    @rule(which=st.integers(0, NR_PINS_MAX - 1))
    def device_writes(self, which: int) -> None:
        if not self.pinned:
            return
        which %= len(self.pinned)
        pin = self.plain.pins[which]
        if pin.write:
            frame = self.world.machine.physmem.frame(self.pinned[which][0])
            data = self._fresh_bytes()
            frame[: len(data)] = data
            pin.page.content[: len(data)] = data

    @rule(which=st.integers(0, NR_PINS_MAX - 1))
    def put_user_page(self, which: int) -> None:
        if not self.pinned:
            return
        page, flags = self.pinned.pop(which % len(self.pinned))
        pin = self.plain.pins.pop(which % len(self.plain.pins))
        put_user_page(self.world.mm, page, flags, dirty=pin.write)

    # --- rules: system calls

    @rule(
        who=whos,
        page=pages,
        length=st.integers(1, 12),
        shared=st.booleans(),
        prot=prots,
    )
    def mmap(self, who: int, page: Place, length: int, shared: bool, prot: str) -> None:
        self._map(who % len(self.processes), *page, length, shared=shared, prot=prot)

    @rule(who=whos, page=pages, nth=nths, length=lengths)
    def munmap(self, who: int, page: Place, nth: int, length: int) -> None:
        mm, process, first, length = self._pages(who, page, nth, length, clip=False)
        assert do_munmap(mm, Vaddr(first << PAGE_SHIFT), length) == 0
        self.plain.munmap(process, first, length)

    @rule(who=whos, page=pages, nth=nths, length=lengths, prot=prots)
    def mprotect(self, who: int, page: Place, nth: int, length: int, prot: str) -> None:
        mm, process, first, length = self._pages(who, page, nth, length, clip=False)
        result = do_mprotect(mm, Vaddr(first << PAGE_SHIFT), length, PROTS[prot])
        assert result == self.plain.mprotect(process, first, length, prot)

    @rule(who=whos, page=pages, nth=nths, length=lengths)
    def dontneed(self, who: int, page: Place, nth: int, length: int) -> None:
        mm, process, first, length = self._pages(who, page, nth, length, clip=False)
        result = do_madvise(mm, Vaddr(first << PAGE_SHIFT), length, Advice.DONTNEED)
        assert result == self.plain.dontneed(process, first, length)

    @rule(who=whos, page=pages, nth=nths, length=lengths)
    def mlock(self, who: int, page: Place, nth: int, length: int) -> None:
        mm, process, first, length = self._pages(who, page, nth, length, clip=False)
        result = do_mlock(mm, Vaddr(first << PAGE_SHIFT), length)
        assert result == self.plain.mlock(process, first, length)

    @rule(who=whos, page=pages, nth=nths, length=lengths)
    def msync(self, who: int, page: Place, nth: int, length: int) -> None:
        mm, process, first, length = self._pages(who, page, nth, length, clip=False)
        result = do_msync(mm, Vaddr(first << PAGE_SHIFT), length)
        assert result == self.plain.msync(process, first, length)

    @rule(
        who=whos,
        page=pages,
        nth=nths,
        length=lengths,
        new_length=lengths,
        how=st.sampled_from(["move", "grow", "shrink", "dontunmap", "dup"]),
    )
    def mremap(
        self, who: int, page: Place, nth: int, length: int, new_length: int, how: str
    ) -> None:
        mm, process, first, length = self._pages(who, page, nth, length)
        if first not in process.space:
            return
        flags = {"move": MREMAP_MAYMOVE | MREMAP_FIXED, "shrink": 0}.get(how, MREMAP_MAYMOVE)
        target = None
        if how == "move":  # to where something was reserved
            target = Vaddr(do_mmap(mm, None, nr_pages=new_length, prot=0, shared=False))
        elif how == "shrink":
            new_length = min(length, new_length)
        elif how == "grow":
            new_length += length
        elif how == "dontunmap":
            flags, new_length = flags | MREMAP_DONTUNMAP, length
        else:
            length = 0
        result = do_mremap(mm, Vaddr(first << PAGE_SHIFT), length, new_length, flags, target)
        if how == "dup" and not process.space[first].shared:
            assert result == -errno.EINVAL
            return
        assert result > 0
        if length > new_length:
            self.plain.munmap(process, first + new_length, length - new_length)
            length = new_length
        keep = how == "dontunmap"
        to = result >> PAGE_SHIFT
        self.plain.move(process, first, length, to, new_length, keep=keep)

    @rule(2, who=whos)
    def fork(self, who: int) -> None:
        mm, parent = self.processes[who % len(self.processes)]
        if len(self.processes) == NR_PROCESSES_MAX or self.plain.nr_free_frames < len(self.pinned):
            return  # pinned copies are copied
        child_mm = dup_mm(mm)
        assert isinstance(child_mm, Mm)
        self.world.mms.append(child_mm)
        child = self.plain.fork(parent)
        self.processes.append((child_mm, child))
        if self.world.machine.arch.is_2008:  # some are left to faults: which, is of no interest
            there = {vma.address(pgoff) >> PAGE_SHIFT for vma, pgoff, _ in iter_ptes(child_mm)}
            for number, page in list(child.ptes.items()):
                if number not in there and not page.is_copy:
                    del child.ptes[number]

    @rule(who=whos)
    def exit(self, who: int) -> None:
        if len(self.processes) == 1:
            return
        mm, process = self.processes.pop(who % len(self.processes))
        exit_mmap(mm)
        self.world.mms.remove(mm)
        self.plain.exit(process)

    # --- rules: files

    @rule(2, page=pages, offset=offsets)
    def file_write(self, page: Place, offset: int) -> None:
        mapping, file, pgoff = self._file(page)
        if not file.writable:
            return
        pos, data = (pgoff << PAGE_SHIFT) + offset, self._fresh_bytes()
        try:
            written = xip_file_write(self.world.machine, mapping, pos, data)
        except NoSpaceError:
            written = -errno.ENOSPC
        assert written == self.plain.write(file, pos, data)

    @rule(page=pages, offset=offsets)
    def file_read(self, page: Place, offset: int) -> None:
        mapping, file, pgoff = self._file(page)
        pos = (pgoff << PAGE_SHIFT) + offset
        found = xip_file_read(self.world.machine, mapping, pos, 5000)
        assert found == self.plain.read(file, pos, 5000)

    @rule(page=pages, offset=st.sampled_from([100, 3000, PAGE_SIZE]))
    def file_truncate(self, page: Place, offset: int) -> None:
        mapping, file, pgoff = self._file(page)
        if not file.writable:
            return
        size_bytes = (pgoff << PAGE_SHIFT) + offset
        truncate_setsize(self.world.machine, mapping, size_bytes)
        self.plain.truncate(file, size_bytes)
        fs = self.world.fs
        for key in [key for key in fs.blocks if key[0] == mapping.id]:
            if key[1] >= mapping.nr_pages:  # what a filesystem does then
                block = fs.blocks.pop(key)
                self.nvram.store_bytes(block << PAGE_SHIFT, bytes(PAGE_SIZE))
                fs.free_blocks.append(block)

    @rule(page=pages, length=st.integers(1, 12), even_cows=st.booleans())
    def unmap_mapping_range(self, page: Place, length: int, even_cows: bool) -> None:
        mapping, file, pgoff = self._file(page)
        nr_zapped = unmap_mapping_range(mapping, Pgoff(pgoff), length, even_cows=even_cows)
        pgoffs = range(pgoff, pgoff + length)
        assert nr_zapped == self.plain.unmap(file, pgoffs, even_cows=even_cows)

    # --- rules: tiers

    @rule(3, page=pages, length=lengths, stride=st.sampled_from([1, 1, 2, 3]))
    def promote(self, page: Place, length: int, stride: int) -> None:
        self._promote(page, length, stride)

    @rule(3, page=pages, length=lengths)
    def demote(self, page: Place, length: int) -> None:
        self._demote(page, length)

    @rule(3, plan=st.lists(moves, min_size=1, max_size=6))
    def daemon_migrates(self, plan: list[tuple[bool, Place, int]]) -> None:
        for is_promotion, page, length in plan:
            if is_promotion:
                self._promote(page, length, 1)
            else:
                self._demote(page, length)

    def _promote(self, page: Place, length: int, stride: int) -> None:
        mapping, file, pgoff = self._file(page)
        pgoffs = list(range(pgoff, pgoff + length * stride, stride))
        done = promote_pages(self.world.machine, mapping, np.array(pgoffs))
        assert done == MigrateStatistics(*self.plain.promote(file, pgoffs))

    def _demote(self, page: Place, length: int) -> None:
        mapping, file, pgoff = self._file(page)
        pgoffs = list(range(pgoff, pgoff + length))
        done = demote_pages(self.world.machine, mapping, pgoffs, DemoteReason.KSWAPD)
        assert done == MigrateStatistics(*self.plain.demote(file, pgoffs))

    # --- what must always hold

    def check(self) -> None:
        self.check_that_all_is_accounted_for()
        self.check_that_pages_are_where_they_should_be_and_hold_what_they_should()
        self.check_that_these_ptes_are_there_and_lead_to_these_pages()
        self.check_that_heat_is_what_was_accessed()

    def check_that_all_is_accounted_for(self) -> None:
        pins = [
            frame
            for (frame, _), pin in zip(self.pinned, self.plain.pins, strict=True)
            for _ in range(1024 if pin.is_pin else 1)  # GUP_PIN_COUNTING_BIAS
        ]
        self.world.check(pins)
        assert self.world.machine.mem_map.nr_free == self.plain.nr_free_frames

    def check_that_pages_are_where_they_should_be_and_hold_what_they_should(self) -> None:
        for mapping, file in self.files:
            assert mapping.i_size_bytes == file.size_bytes
            assert set(mapping.i_pages) == {n for n, page in file.pages.items() if page.in_ram}
            for pgoff, page in file.pages.items():
                self._check_bytes(self._frame(mapping, pgoff, page), page)
        assert not any(self.world.page(self.world.machine.sparse_pfn)), "holes are not zero"

    def check_that_these_ptes_are_there_and_lead_to_these_pages(self) -> None:
        copies: dict[int, Page] = {}
        mappings = {file: mapping for mapping, file in self.files}
        for mm, process in self.processes:
            found = {vma.address(n) >> PAGE_SHIFT: pte_pfn(pte) for vma, n, pte in iter_ptes(mm)}
            assert found.keys() == process.ptes.keys()
            for number, page in process.ptes.items():
                if page.is_copy:
                    assert copies.setdefault(found[number], page) is page
                    self._check_bytes(found[number], page)
                else:
                    at = process.space[number]
                    assert found[number] == self._frame(mappings[at.file], at.pgoff, page)
            nr_copies = sum(page.is_copy for page in process.ptes.values())
            nr_file = sum(page.in_ram for page in process.ptes.values()) - nr_copies
            assert (mm.rss_file, mm.rss_anon) == (nr_file, nr_copies)
        for (frame, _), pin in zip(self.pinned, self.plain.pins, strict=True):
            self._check_bytes(frame, pin.page)

    def _check_bytes(self, frame: int, page: Page) -> None:
        """Say where they differ: to show both pages, as pytest would, takes it minutes."""
        found = self.world.page(frame)
        if found != page.content:
            at = next(i for i in range(PAGE_SIZE) if found[i] != page.content[i])
            raise AssertionError(
                f"frame {frame:#x}, byte {at}: {found[at]}, not {page.content[at]}"
            )

    def check_that_heat_is_what_was_accessed(self) -> None:
        for mm, process in self.processes:
            leaves = mm.page_table.leaves
            for number, heat in process.heat.items():
                address = Vaddr(number << PAGE_SHIFT)
                leaf = leaves.get(address >> PMD_SHIFT)
                assert (0 if leaf is None else leaf.heat[pte_index(address)]) == min(heat, 255)
            nr_hot = sum(int(np.count_nonzero(leaf.heat)) for leaf in leaves.values())
            assert nr_hot == sum(heat > 0 for heat in process.heat.values())

    def close(self) -> None:
        for page, flags in self.pinned:
            put_user_page(self.world.mm, page, flags)
        for mm, _ in self.processes:
            exit_mmap(mm)
            assert not mm.page_table.leaves
        for mapping, _ in self.files:
            demote_pages(self.world.machine, mapping, mapping.i_pages, DemoteReason.DIRECT)
        assert self.world.machine.mem_map.nr_free == NR_TIER_FRAMES, "something leaked"
        self.world.close()
        self.nvram.close()

    # --- choices

    def _fresh_bytes(self) -> bytes:
        """Bytes that nobody wrote before, and no page had."""
        self.nr_writes += 1
        return (0xA00000 + self.nr_writes).to_bytes(3, "big")

    def _pages(
        self, who: int, page: Place, nth: int, length: int, *, clip: bool = True
    ) -> tuple[Mm, Process, int, int]:
        """Where a process has that page mapped, for the nth time: first page number, length.

        Some other place if it has not. The range ends with its vma if clipped.
        """
        mm, process = self.processes[who % len(self.processes)]
        if not mm.vmas:
            return mm, process, 1 << 20, length
        mapping, pgoff = self.files[page[0]][0], Pgoff(page[1])
        there = [
            vma.address(pgoff) >> PAGE_SHIFT
            for vma in mm.vmas.values()
            if vma.vm_file is mapping and 0 <= pgoff - vma.vm_pgoff < vma.nr_pages
        ]
        first = there[nth % len(there)] if there else min(process.space) + page[1] % 4
        vma = mm.find_vma(Vaddr(first << PAGE_SHIFT))
        if clip and vma is not None:
            length = min(length, (vma.vm_end >> PAGE_SHIFT) - first)
        return mm, process, first, length

    def _file(self, page: Place) -> tuple[AddressSpace, File, int]:
        return *self.files[page[0]], page[1]

    def _map(
        self, who: int, which: int, pgoff: int, nr_pages: int, *, shared: bool, prot: str
    ) -> None:
        mm, process = self.processes[who]
        mapping, file = self.files[which]
        address = do_mmap(
            mm,
            OpenFile(mapping),
            nr_pages=nr_pages,
            prot=PROTS[prot],
            shared=shared,
            pgoff=Pgoff(pgoff),
        )
        if shared and prot == "rw" and not file.writable:
            assert address == -errno.EACCES
            return
        assert address > 0
        pgoffs = range(pgoff, pgoff + nr_pages)
        self.plain.map(process, address >> PAGE_SHIFT, file, pgoffs, shared, prot)

    def _frame(self, mapping: AddressSpace, pgoff: int, page: Page) -> int:
        if page is self.plain.sparse:
            return self.world.machine.sparse_pfn
        if page.in_ram:
            return mapping.i_pages[pgoff]
        return NVRAM_PFN_START + self.world.fs.blocks[mapping.id, pgoff]


def play(arch: Arch, nr_tries: int, **options: Any) -> None:
    @settings(max_examples=nr_tries, **options)
    @given(many)
    def try_steps(steps: list[Step]) -> None:
        machine = Machine(arch)
        for step in steps:
            getattr(machine, step.name)(**step.arguments)
            machine.check()
            OPERATIONS["processes, files and tiers"] += 1
        machine.close()

    try_steps()


@pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: f"{arch.name}-{arch.version}")
def test_mm_does_what_plain_dicts_say(arch: Arch):
    play(arch, nr_examples(NR_EXAMPLES, 4200))


GENERIC, _, X86 = ARCHES
SEEDED_BUGS: dict[str, tuple[Arch, tuple[Any, str, str, str]]] = {
    "demotion without write back": (
        GENERIC,
        (migrate, "_isolate_pages", "if dirty:", "if False:"),
    ),
    "demotion of pages that somebody holds": (
        GENERIC,
        (
            migrate,
            "_isolate_pages",
            "if mem_map.page_count(pfn := i_pages[pgoff]) == 1",
            "if (pfn := i_pages[pgoff]) is not None",
        ),
    ),
    "zap that forgets a dirty pte": (GENERIC, (rmap, "_zap_pte", "if dirty:", "if False:")),
    "zap of many that forgets dirty ptes": (
        X86,
        (rmap, "_zap_ptes", "mem_map.flags[pages[dirty]] |= PG_DIRTY", "pass"),
    ),
    "zap that takes copies without even_cows": (
        X86,
        (rmap, "_should_zap_page", "return not machine.mem_map.page_anon(page)", "return True"),
    ),
    "fork that forgets a mapcount": (
        X86,
        (fork, "_copy_present_pte", "mem_map.page_add_file_rmap(page)", "pass"),
    ),
    "fork that leaves the parent's pte writable": (
        GENERIC,
        (fork, "_copy_present_pte", "source.words[index] = pte", "pass"),
    ),
    "fork that shares a pinned page": (
        X86,
        (fork, "_is_pinned", "mem_map.page_maybe", "False and mem_map.page_maybe"),
    ),
    "truncation that keeps a tail": (
        GENERIC,
        (truncate, "truncate_setsize", "if size_bytes < mapping.i_size_bytes:", "if False:"),
    ),
    "truncation that spares private copies": (
        X86,
        (truncate, "truncate_setsize", "even_cows=True", "even_cows=False"),
    ),
    "private copy that is shared (2.6.28)": (
        GENERIC,
        (fault, "_can_reuse_anon", "page_mapcount(page) == 1", "page_mapcount(page) > 0"),
    ),
    "private copy that is shared": (
        X86,
        (fault, "_can_reuse_anon", "page_count(page) == 1", "page_count(page) > 0"),
    ),
    "a filled hole that others still see": (
        GENERIC,
        (filemap_xip, "_fill_hole", "_xip_unmap(machine, mapping, pgoff)", "pass"),
    ),
    "a pin that does not unshare": (
        X86,
        (gup, "_must_unshare", "!= FOLL_PIN or", "!= FOLL_PIN or True or"),
    ),
}
"""Bug: where it is found, and as `sow` takes it."""

RARELY_FOUND = {
    "fork that shares a pinned page",
    "a filled hole that others still see",
}
"""It takes four or more steps to meet, and so more than the share of every run, mostly."""


def find(name: str, nr_tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arch, bug = SEEDED_BUGS[name]
    sow(monkeypatch, bug)
    phases = [Phase.generate]
    with pytest.raises(AssertionError):  # BugError is one
        play(arch, nr_tries, phases=phases, print_blob=False, report_multiple_bugs=False)


@pytest.mark.parametrize("name", [name for name in SEEDED_BUGS if name not in RARELY_FOUND])
def test_a_seeded_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    find(name, NR_EXAMPLES, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(RARELY_FOUND))
def test_a_seeded_bug_is_found_in_the_end(name: str, monkeypatch: pytest.MonkeyPatch):
    find(name, 1000, monkeypatch)
