"""Random work on several files and two mms, against plain dicts that know what should be.

The model knows which page holds which bytes, which pages are in RAM, which are mapped where and how
often each was accessed. After each step all references, rmap entries and ptes must be explained by
it, and the bytes behind each pte must be the file's.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.kit.mm import (
    ARCH_KINDS,
    ZEROS,
    DictFs,
    World,
    block_bytes,
    iter_ptes,
    make_nvram,
)
from xipfs.mm.access import access_page, access_range
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.arch import Arch
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.mmap import munmap
from xipfs.mm.pgtable import PMD_SHIFT, pte_index, pte_pfn
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.mm.vma import VM_MAYWRITE, VM_SHARED, VM_XIP_FILE, Vma
from xipfs.phys.nvram import NvramDevice
from xipfs.units import NVRAM_PFN_START, Pgoff

NR_BLOCKS = 128
NR_ZERO_BLOCKS = 14
NR_TIER_FRAMES = 6

LAYOUTS: list[tuple[dict[int, int], int]] = [
    ({0: 1, 1: 2, 3: 5}, 5),  # small, with a hole inside and one at the end
    ({pgoff: 9 + (pgoff * 5) % 32 for pgoff in range(32)}, 32),  # no two pages are neighbours
    (  # over three leaves, with something on both sides of each border
        {pgoff: 50 + pgoff for pgoff in range(4)}
        | {pgoff: pgoff - 508 + 60 for pgoff in range(508, 516)}
        | {pgoff: pgoff - 1020 + 80 for pgoff in range(1020, 1028)},
        1100,
    ),
    ({0: 100, 3: 101}, 16),  # on a writable filesystem, whose holes a fault may fill
]
WRITABLE = 3

files = st.integers(0, len(LAYOUTS) - 1)
places = st.integers(0, 1 << 16) | st.sampled_from([506, 510, 511, 512, 1022, 1023, 1024])
lengths = st.integers(1, 24)


@dataclass(eq=False)
class MappedVma:
    """What the model knows of a vma."""

    vma: Vma
    file: int
    pages: range
    fills_holes: bool
    mapped: set[int] = field(default_factory=set)
    nr_accesses: Counter[int] = field(default_factory=Counter)


class MixedMap(RuleBasedStateMachine):
    """One machine, two mms, four files."""

    vmas = Bundle("vmas")
    pins = Bundle("pins")

    def __init__(self, nvram: NvramDevice, arch: Arch) -> None:
        super().__init__()
        self.world = World(
            None,
            arch,
            nvram=nvram,
            nr_blocks=NR_BLOCKS,
            nr_zero_blocks=NR_ZERO_BLOCKS,
            nr_tier_frames=NR_TIER_FRAMES,
        )
        self.world.make_mm()
        self.fs: DictFs = self.world.fs
        self.files: list[AddressSpace] = [
            self.fs.make_file(blocks, nr_pages=nr_pages, read_only=i != WRITABLE)
            for i, (blocks, nr_pages) in enumerate(LAYOUTS)
        ]
        # The model.
        self.contents: dict[tuple[int, int], bytes] = {
            (file, pgoff): block_bytes(block)
            for file, (blocks, _) in enumerate(LAYOUTS)
            for pgoff, block in blocks.items()
        }
        self.in_ram: set[tuple[int, int]] = set()
        self.pinned: list[int] = []
        self.maps: list[MappedVma] = []

    # --- rules ---

    @initialize(target=vmas)
    def mmap_all(self) -> MultipleResults[MappedVma]:
        """Something to work on from the first step: each file whole, one of them in two ways."""
        wholes = [(file, range(nr_pages)) for file, (_, nr_pages) in enumerate(LAYOUTS)]
        return multiple(
            *(self._mmap(file % 2, file, pages, fills_holes=False) for file, pages in wholes),
            self._mmap(0, WRITABLE, range(LAYOUTS[WRITABLE][1]), fills_holes=True),
        )

    @rule(
        target=vmas,
        mm=st.integers(0, 1),
        file=files,
        place=places,
        length=lengths,
        fills_holes=st.booleans(),
    )
    def mmap(self, mm: int, file: int, place: int, length: int, fills_holes: bool) -> MappedVma:
        pages = within(LAYOUTS[file][1], place, length)
        return self._mmap(mm, file, pages, fills_holes=fills_holes)

    @rule(of=consumes(vmas))
    def munmap(self, of: MappedVma) -> None:
        munmap(of.vma)
        self.maps.remove(of)

    @rule(of=vmas, place=places)
    def access_page(self, of: MappedVma, place: int) -> None:
        page = of.pages[place % len(of.pages)]
        self._access(of, range(page, page + 1), by_page=True)

    @rule(of=vmas, place=places, length=lengths)
    def access_range(self, of: MappedVma, place: int, length: int) -> None:
        chosen = within(len(of.pages), place, length)
        self._access(of, of.pages[chosen.start : chosen.stop], by_page=False)

    @rule(file=files, place=places, length=lengths, stride=st.sampled_from([1, 1, 2, 5]))
    def promote(self, file: int, place: int, length: int, stride: int) -> None:
        start = place % (LAYOUTS[file][1] + 2)
        pages = list(range(start, start + length * stride, stride))
        absent = [page for page in pages if (file, page) not in self.in_ram]
        nr_free = NR_TIER_FRAMES - len(self.in_ram)
        moving = [page for page in absent if (file, page) in self.contents][:nr_free]
        done = promote_pages(self.world.machine, self.files[file], np.array(pages))
        assert done.nr_migrated == len(moving)
        assert done.nr_resident == len(pages) - len(absent)
        assert done.nr_failed == len(absent) - len(moving)
        self.in_ram.update((file, page) for page in moving)
        self._unmapped(file, moving)

    @rule(file=files, place=places, length=lengths)
    def demote(self, file: int, place: int, length: int) -> None:
        pages = within(LAYOUTS[file][1], place, length)
        resident = [page for page in pages if (file, page) in self.in_ram]
        busy = [page for page in resident if self.files[file].i_pages[page] in self.pinned]
        done = demote_pages(self.world.machine, self.files[file], pages, DemoteReason.KSWAPD)
        assert done.nr_migrated == len(resident) - len(busy)
        assert done.nr_resident == len(pages) - len(resident)
        assert done.nr_failed == len(busy)
        self.in_ram.difference_update((file, page) for page in resident if page not in busy)
        self._unmapped(file, resident)

    @rule(file=files, place=places, length=lengths)
    def unmap_mapping_range(self, file: int, place: int, length: int) -> None:
        pages = within(LAYOUTS[file][1], place, length)
        nr_mapped = sum(len(of.mapped.intersection(pages)) for of in self._maps_of(file))
        start = Pgoff(pages.start)
        nr_zapped = unmap_mapping_range(self.files[file], start, len(pages), even_cows=True)
        assert nr_zapped == nr_mapped
        self._unmapped(file, pages)

    @rule(target=pins, place=places)
    def pin(self, place: int) -> int | None:
        """Somebody holds a page in RAM: it cannot leave."""
        if not self.in_ram:
            return None
        file, page = sorted(self.in_ram)[place % len(self.in_ram)]
        frame = self.files[file].i_pages[page]
        self.world.machine.mem_map.get_page(frame)
        self.pinned.append(frame)
        return frame

    @rule(frame=consumes(pins))
    def unpin(self, frame: int | None) -> None:
        if frame is not None:
            self.world.machine.mem_map.put_page(frame)
            self.pinned.remove(frame)

    # --- what must always hold ---

    @invariant()
    def every_reference_is_accounted_for(self) -> None:
        self.world.check(self.pinned)
        assert self.world.machine.mem_map.nr_free == NR_TIER_FRAMES - len(self.in_ram)

    @invariant()
    def pages_are_in_ram_as_the_model_says(self) -> None:
        assert self.in_ram == {
            (i, page) for i, mapping in enumerate(self.files) for page in mapping.i_pages
        }

    @invariant()
    def exactly_these_ptes_are_present_and_lead_to_the_bytes_of_the_file(self) -> None:
        found: dict[Vma, set[int]] = {of.vma: set() for of in self.maps}
        for mm in self.world.mms:
            for vma, pgoff, pte in iter_ptes(mm):
                found[vma].add(pgoff)
                file = self.files.index(vma.vm_file)
                assert self._frame_is_right(file, pgoff, pte_pfn(pte))
        for of in self.maps:
            assert found[of.vma] == of.mapped

    @invariant()
    def rss_is_the_pages_that_have_a_struct_page(self) -> None:
        rss = dict.fromkeys(self.world.mms, 0)
        for of in self.maps:
            rss[of.vma.vm_mm] += sum(
                (of.file, page) in self.in_ram or (of.file, page) not in self.contents
                for page in of.mapped
            )
        assert [mm.rss_file for mm in self.world.mms] == list(rss.values())

    @invariant()
    def heat_is_what_was_accessed(self) -> None:
        nr_hot = dict.fromkeys(self.world.mms, 0)
        for of in self.maps:
            nr_hot[of.vma.vm_mm] += len(of.nr_accesses)
            for page, nr_accesses in of.nr_accesses.items():
                address = of.vma.address(Pgoff(page))
                leaf = of.vma.vm_mm.page_table.leaves[address >> PMD_SHIFT]
                index = pte_index(address)
                assert (leaf.heat[index], leaf.accessed[index]) == (min(nr_accesses, 255), 1)
        for mm, nr_pages in nr_hot.items():
            leaves = mm.page_table.leaves.values()
            assert sum(int(np.count_nonzero(leaf.heat)) for leaf in leaves) == nr_pages

    def teardown(self) -> None:
        for frame in self.pinned:
            self.world.machine.mem_map.put_page(frame)
        for of in self.maps:
            munmap(of.vma)
        for mapping in self.files:
            demote_pages(self.world.machine, mapping, mapping.i_pages, DemoteReason.DIRECT)
        assert self.world.machine.mem_map.nr_free == NR_TIER_FRAMES, "something leaked"
        assert not any(mm.page_table.leaves for mm in self.world.mms)
        self.world.close()

    # --- helpers ---

    def _mmap(self, mm: int, file: int, pages: range, *, fills_holes: bool) -> MappedVma:
        vma = self.world.mmap(
            self.files[file],
            pgoff=pages.start,
            nr_pages=len(pages),
            vm_flags=VM_XIP_FILE | (VM_SHARED | VM_MAYWRITE if fills_holes else 0),
            mm=self.world.mms[mm],
        )
        self.maps.append(MappedVma(vma, file, pages, fills_holes and file == WRITABLE))
        return self.maps[-1]

    def _access(self, of: MappedVma, pages: range, *, by_page: bool) -> None:
        vmstat = self.world.machine.vmstat
        before = vmstat.pgfault
        if by_page:
            pfns = [int(access_page(of.vma, Pgoff(pages.start)))]
        else:
            pfns = access_range(of.vma, Pgoff(pages.start), len(pages)).tolist()
        missing = set(pages) - of.mapped
        assert vmstat.pgfault - before == len(missing)
        filled = [page for page in missing if (of.file, page) not in self.contents]
        if of.fills_holes and filled:
            self.contents.update({(of.file, page): ZEROS for page in filled})
            self._unmapped(of.file, filled)
        of.mapped.update(pages)
        of.nr_accesses.update(pages)
        for page, pfn in zip(pages, pfns, strict=True):
            assert self._frame_is_right(of.file, page, pfn)
            assert self.world.page(pfn) == self.contents.get((of.file, page), ZEROS)

    def _frame_is_right(self, file: int, page: int, pfn: int) -> bool:
        key = (file, page)
        if key not in self.contents:
            return pfn == self.world.machine.sparse_pfn
        if key in self.in_ram:
            return pfn == self.files[file].i_pages[page]
        block = self.fs.blocks[self.files[file].id, page]
        return pfn == NVRAM_PFN_START + block

    def _unmapped(self, file: int, pages: "list[int] | range") -> None:
        for of in self._maps_of(file):
            of.mapped.difference_update(pages)

    def _maps_of(self, file: int) -> Iterator[MappedVma]:
        return (of for of in self.maps if of.file == file)


def within(nr_pages: int, place: int, length: int) -> range:
    """Return a range of *length* pages or less, from *place* on, within nr_pages."""
    start = place % nr_pages
    return range(start, min(start + length, nr_pages))


@pytest.fixture(scope="module")
def nvram(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NvramDevice]:
    nvram = make_nvram(tmp_path_factory.mktemp("model") / "region", NR_BLOCKS, NR_ZERO_BLOCKS)
    yield nvram
    nvram.close()


@pytest.mark.parametrize("arch", ARCH_KINDS.values(), ids=ARCH_KINDS)
def test_mm_does_what_plain_dicts_say(nvram: NvramDevice, arch: Arch):
    run_state_machine_as_test(lambda: MixedMap(nvram, arch))
