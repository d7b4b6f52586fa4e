"""Programs write and read two files while a daemon moves their pages at random.

The model is a bytearray for each file. After each step every way to read says what it says, each
reference is accounted for, counters add up, and a clean page is in NVRAM, durably.
"""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.kit.mm import ARCH_KINDS, SHARED_RW, World, block_bytes
from xipfs.mm.access import user_load, user_store
from xipfs.mm.arch import Arch
from xipfs.mm.filemap_xip import xip_file_read, xip_file_write
from xipfs.mm.mem_map import PG_DIRTY
from xipfs.mm.memory_hotplug import resize_tier
from xipfs.mm.migrate import DemoteReason, demote_pages, exchange_pages, promote_pages
from xipfs.mm.page_writeback import writeback_pages
from xipfs.mm.pgtable import PMD_SHIFT, pte_index
from xipfs.mm.vma import Vma
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Pgoff, Vaddr

NR_FILES, NR_PAGES, NR_FRAMES_MAX = 2, 24, 20

files = st.integers(0, NR_FILES - 1)
pages = st.integers(0, NR_PAGES - 1)
page_sets = st.sets(pages, min_size=1, max_size=NR_PAGES)
reasons = st.sampled_from(DemoteReason)


class MigratingDaemon(RuleBasedStateMachine):
    """Two files, a process that maps both, a tier of at most twenty frames."""

    pins = Bundle("pins")

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        nr_blocks = NR_FILES * NR_PAGES + 1
        nvram = NvramDevice.scratch(nr_blocks << PAGE_SHIFT)
        self.world = World(None, arch, nr_tier_frames=NR_FRAMES_MAX, nvram=nvram)
        self.world._owns_nvram = True
        self.machine = self.world.machine
        # No neighbours in the file are neighbours in NVRAM, except some.
        self.blocks = [1 + (page * 7) % (nr_blocks - 1) for page in range(nr_blocks - 1)]
        self.contents = []
        for file in range(NR_FILES):
            blocks = self.blocks[file * NR_PAGES :][:NR_PAGES]
            for block in blocks:
                nvram.store_bytes(block << PAGE_SHIFT, block_bytes(block))
            self.world.fs.make_file(dict(enumerate(blocks)), read_only=False)
            self.contents.append(bytearray(b"".join(map(block_bytes, blocks))))
        self.files = self.world.fs.files
        self.vmas = [self.world.mmap(file, vm_flags=SHARED_RW) for file in self.files]
        self.pinned: list[int] = []

    # --- programs ---

    @rule(file=files, page=pages, offset=st.integers(0, PAGE_SIZE - 1), data=st.binary(max_size=9))
    def store(self, file: int, page: int, offset: int, data: bytes) -> None:
        at = min((page << PAGE_SHIFT) + offset, len(self.contents[file]) - len(data))
        vma = self.vmas[file]
        assert user_store(vma.vm_mm, Vaddr(vma.vm_start + at), data) is None
        self.contents[file][at : at + len(data)] = data

    @rule(file=files, page=pages, offset=st.integers(0, PAGE_SIZE - 1), data=st.binary(max_size=9))
    def write(self, file: int, page: int, offset: int, data: bytes) -> None:
        at = min((page << PAGE_SHIFT) + offset, len(self.contents[file]) - len(data))
        assert xip_file_write(self.machine, self.files[file], at, data) == len(data)
        self.contents[file][at : at + len(data)] = data

    @rule(file=files, page=pages)
    def load(self, file: int, page: int) -> None:
        vma = self.vmas[file]
        found = user_load(vma.vm_mm, vma.address(Pgoff(page)), PAGE_SIZE)
        assert found == self.contents[file][page << PAGE_SHIFT :][:PAGE_SIZE]

    @rule(target=pins, file=files, page=pages)
    def pin(self, file: int, page: int) -> int | None:
        frame = self.files[file].i_pages.get(page)
        if frame is not None:
            self.machine.mem_map.get_page(frame)
            self.pinned.append(frame)
        return frame

    @rule(frame=consumes(pins))
    def unpin(self, frame: int | None) -> None:
        if frame is not None:
            self.machine.mem_map.put_page(frame)
            self.pinned.remove(frame)

    # --- the daemon ---

    @rule(file=files, of=page_sets)
    def promote(self, file: int, of: set[int]) -> None:
        mapping = self.files[file]
        nr_absent = sum(page not in mapping.i_pages for page in of)
        expected = min(nr_absent, self.machine.mem_map.nr_free)
        assert promote_pages(self.machine, mapping, np.array(sorted(of))).nr_migrated == expected

    @rule(file=files, of=page_sets, reason=reasons)
    def demote(self, file: int, of: set[int], reason: DemoteReason) -> None:
        mapping = self.files[file]
        leaving = [p for p in of if mapping.i_pages.get(p, -1) not in (-1, *self.pinned)]
        done = demote_pages(self.machine, mapping, of, reason)
        assert done.nr_migrated == len(leaving)
        assert not set(leaving).intersection(mapping.i_pages)

    @rule(files=st.tuples(files, files), out=page_sets, into=page_sets, reason=reasons)
    def exchange(
        self, files: tuple[int, int], out: set[int], into: set[int], reason: DemoteReason
    ) -> None:
        one, other = (self.files[file] for file in files)
        pairs = list(zip(sorted(out), sorted(into, reverse=True), strict=False))
        possible = [
            (p, q)
            for p, q in pairs
            if one.i_pages.get(p, -1) not in (-1, *self.pinned) and q not in other.i_pages
        ]
        frames = [one.i_pages[p] for p, _ in possible]
        nr_free = self.machine.mem_map.nr_free
        done = exchange_pages(
            self.machine,
            (one, np.array([p for p, _ in pairs])),
            (other, np.array([q for _, q in pairs])),
            reason,
        )
        assert (done.nr_migrated, done.nr_failed) == (
            2 * len(possible),
            2 * (len(pairs) - len(possible)),
        )
        assert [other.i_pages[q] for _, q in possible] == frames
        assert self.machine.mem_map.nr_free == nr_free

    @rule(file=files, of=page_sets)
    def write_back(self, file: int, of: set[int]) -> None:
        dirty = {page for page in of if self._is_dirty(file, page)}
        done = writeback_pages(self.machine, self.files[file], of)
        assert done == (len(dirty), len(of) - len(dirty), 0)

    @rule(nr_frames=st.integers(0, NR_FRAMES_MAX), victims=page_sets)
    def resize(self, nr_frames: int, victims: set[int]) -> None:
        missing = resize_tier(
            self.machine, nr_frames, [(mapping, sorted(victims)) for mapping in self.files]
        )
        assert self.machine.nr_tier_frames == nr_frames + missing

    # --- what must always hold ---

    @invariant()
    def everything_is_accounted_for(self) -> None:
        self.world.check(self.pinned)
        nr_resident = sum(len(mapping.i_pages) for mapping in self.files)
        assert self.machine.mem_map.nr_free + nr_resident == self.machine.nr_tier_frames

    @invariant()
    def files_are_what_was_written(self) -> None:
        for mapping, content in zip(self.files, self.contents, strict=True):
            assert xip_file_read(self.machine, mapping, 0, len(content)) == content

    @invariant()
    def clean_pages_have_a_shadow(self) -> None:
        nvram = self.machine.physmem.nvram
        for file, content in enumerate(self.contents):
            for page in self.files[file].i_pages:
                if not self._is_dirty(file, page):
                    home = self.blocks[file * NR_PAGES + page] << PAGE_SHIFT
                    expected = content[page << PAGE_SHIFT :][:PAGE_SIZE]
                    assert nvram.load(home, PAGE_SIZE) == expected

    def teardown(self) -> None:
        self.world.close()

    def _is_dirty(self, file: int, page: int) -> bool:
        frame = self.files[file].i_pages.get(page)
        if frame is None:
            return False
        flags = self.machine.mem_map.page_flags(frame)
        return bool(flags & PG_DIRTY) or _pte_is_dirty(self.vmas[file], page)


def _pte_is_dirty(vma: Vma, page: int) -> bool:
    address = vma.address(Pgoff(page))
    leaf = vma.vm_mm.page_table.leaves.get(address >> PMD_SHIFT)
    return leaf is not None and bool(leaf.dirty_bytes[pte_index(address)])


@pytest.mark.parametrize("arch", ARCH_KINDS.values(), ids=ARCH_KINDS)
def test_files_are_what_was_written_wherever_their_pages_are(arch: Arch):
    run_state_machine_as_test(lambda: MigratingDaemon(arch))
