"""Ranges are as good as pages one by one: two machines, the same work, and they agree in all.

Not in ptes and references alone: in marks, counters, rss, leaves, and what was returned.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.mm import PRIVATE_RW, World, make_extent_file, make_nvram, snapshot
from xipfs.errors import FormatError, NoDataError
from xipfs.mm.access import access_page, access_range, user_store
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.arch import ARCHS, Arch
from xipfs.mm.fault import handle_mm_fault, handle_mm_fault_range
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.mixedmap import insert_range, vm_insert_mixed, vm_insert_page
from xipfs.mm.pgtable import PTE_PRESENT
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.mm.vm_fault import VM_FAULT_ERROR, FaultResult
from xipfs.mm.vma import VM_MAYWRITE, VM_XIP_FILE, Vma
from xipfs.phys.nvram import NvramDevice
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, PFN_NONE, Pgoff, virt_to_pfn

NR_BLOCKS = 1536
NR_TIER_FRAMES = 24


@pytest.fixture(scope="module")
def nvram(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NvramDevice]:
    """A region that dirty pages can be written back to; with the bytes that it has."""
    made = make_nvram(tmp_path_factory.mktemp("vector") / "region", NR_BLOCKS, 4)
    nvram = NvramDevice.scratch(made.size_bytes)
    nvram.store_bytes(0, made.load(0, made.size_bytes))
    made.close()
    yield nvram
    nvram.close()


@dataclass(frozen=True)
class Scene:
    """A file, the part of it that is mapped, and what happens to it: (verb, pgoff, nr_pages)."""

    arch: Arch
    nr_pages: int
    extents: list[tuple[int, int, int]]
    nr_pages_before: int
    window: tuple[int, int]
    vm_flags: int
    ends_within_a_page: bool
    steps: list[tuple[str, int, int]]


@st.composite
def page_ranges(draw: st.DrawFn, start: int, end: int) -> tuple[int, int]:
    """(first, number), within [start, end): short, or long enough for several leaves."""
    borders = [page for page in (511, 512, 1023, 1024) if start <= page < end]
    places = st.integers(start, end - 1)
    first = draw(places | st.sampled_from(borders) if borders else places)
    longest = end - first
    return first, draw(st.integers(1, min(longest, 20)) | st.integers(1, longest))


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    nr_pages = draw(st.sampled_from([1, 3, 40, 512, 700, 1300]))
    extents: list[tuple[int, int, int]] = []
    end = 0
    for _ in range(draw(st.integers(0, 5))):
        if end < nr_pages:
            first, length = draw(page_ranges(end, nr_pages))
            block = draw(st.integers(1, NR_BLOCKS - 5))
            length = min(length, NR_BLOCKS - 4 - block)
            extents.append((first, block, length))
            end = first + length
    start, length = draw(page_ranges(0, nr_pages) | st.just((0, nr_pages)))
    is_private = draw(st.booleans())
    verbs = st.sampled_from(
        ["access", "access", "access", "promote", "demote", "unmap", "unmap_but_copies", "dirty"]
        + ["copy"] * is_private
    )
    steps = draw(
        st.lists(st.tuples(verbs, page_ranges(start, start + length)), min_size=1, max_size=8)
    )
    return Scene(
        arch=draw(st.sampled_from(ARCHS)),
        nr_pages=nr_pages,
        extents=extents,
        nr_pages_before=draw(st.sampled_from([0, 1, 100])),
        window=(start, length),
        vm_flags=PRIVATE_RW if is_private else VM_XIP_FILE,
        ends_within_a_page=draw(st.booleans()),
        steps=[(verb, *pages) for verb, pages in steps],
    )


def play(scene: Scene, nvram: NvramDevice, world: World, *, vector: bool) -> Iterator[object]:
    """Yield what each step returned, and all that mm knows after it."""
    mapping = make_extent_file(nvram, scene.extents, nr_pages=scene.nr_pages)
    mapping.i_size_bytes -= 100 * scene.ends_within_a_page
    world.fs.files.append(mapping)
    if scene.nr_pages_before:  # small vmas then begin in the middle of a leaf
        world.mmap(mapping, nr_pages=scene.nr_pages_before)
    start, length = scene.window
    vma = world.mmap(mapping, pgoff=start, nr_pages=length, vm_flags=scene.vm_flags)
    for verb, pgoff, nr_pages in scene.steps:
        pages = range(pgoff, pgoff + nr_pages)
        if verb == "access":
            yield (
                access_range(vma, Pgoff(pgoff), nr_pages).tolist()
                if vector
                else [access_page(vma, Pgoff(page)) for page in pages]
            )
        elif verb == "dirty":
            for pfn in [pfn for page, pfn in mapping.i_pages.items() if page in pages]:
                world.machine.mem_map.set_page_dirty(pfn)
        elif verb == "copy":
            yield user_store(world.mm, vma.address(Pgoff(pgoff)), b"copied")
        elif verb.startswith("unmap"):
            parts = [(pgoff, nr_pages)] if vector else [(page, 1) for page in pages]
            yield sum(
                unmap_mapping_range(mapping, Pgoff(first), nr, even_cows=verb == "unmap")
                for first, nr in parts
            )
        else:
            parts = [list(pages)] if vector else [[page] for page in pages]
            yield np.sum([migrate(world, mapping, verb, part) for part in parts], axis=0).tolist()
        yield snapshot(world.machine, world.mms, [mapping])


def migrate(
    world: World, mapping: AddressSpace, verb: str, pages: list[int]
) -> tuple[int, int, int]:
    if verb == "promote":
        done = promote_pages(world.machine, mapping, np.array(pages))
    else:
        done = demote_pages(world.machine, mapping, pages, DemoteReason.KSWAPD)
    return done.nr_migrated, done.nr_resident, done.nr_failed


@given(scene=scenes())
def test_ranges_do_what_pages_one_by_one_do(nvram: NvramDevice, scene: Scene):
    worlds = [World(None, scene.arch, nvram=nvram, nr_tier_frames=NR_TIER_FRAMES) for _ in range(2)]
    for by_range, by_page in zip(
        play(scene, nvram, worlds[0], vector=True),
        play(scene, nvram, worlds[1], vector=False),
        strict=True,
    ):
        assert by_range == by_page
    for world in worlds:
        world.check()
        world.close()


@given(scene=scenes())
def test_filesystem_names_the_same_frames_for_a_range(nvram: NvramDevice, scene: Scene):
    world = World(None, scene.arch, nvram=nvram, nr_tier_frames=NR_TIER_FRAMES)
    mapping = make_extent_file(nvram, scene.extents, nr_pages=scene.nr_pages)
    for verb, pgoff, nr_pages in scene.steps:
        pages = range(pgoff, pgoff + nr_pages)
        if verb == "promote":
            promote_pages(world.machine, mapping, np.array(pages))
        expected = []
        for page in pages:
            try:
                kaddr, pfn = mapping.a_ops.get_xip_mem(mapping, Pgoff(page), create=False)
            except NoDataError:
                expected.append(PFN_NONE)
                continue
            expected.append(virt_to_pfn(kaddr))
            assert pfn == (PFN_NONE if page in mapping.i_pages else virt_to_pfn(kaddr))
        pfns = mapping.a_ops.get_xip_pfns(mapping, Pgoff(pgoff), nr_pages)
        assert (pfns.dtype, pfns.tolist()) == (np.int64, expected)
    world.close()


# --- faults that fail, and faults that fill holes ---


@pytest.fixture
def announce_damage(expected_logs):
    expected_logs("a damaged extent")


hostile_files = st.lists(
    st.sampled_from(["page", "page", "page", "hole", "hole", "ram", "error"]),
    min_size=1,
    max_size=24,
)


@given(
    arch=st.sampled_from(ARCHS),
    kinds=hostile_files,
    nr_pages_past_the_end=st.integers(0, 3),
    may_fill_holes=st.booleans(),
    faults=st.lists(st.tuples(st.integers(0, 26), st.integers(1, 27)), min_size=1, max_size=4),
)
@pytest.mark.usefixtures("announce_damage")
def test_fault_on_a_range_ends_where_and_how_the_first_bad_page_would(
    nvram: NvramDevice,
    arch: Arch,
    kinds: list[str],
    nr_pages_past_the_end: int,
    may_fill_holes: bool,
    faults: list[tuple[int, int]],
):
    nr_pages = len(kinds) + nr_pages_past_the_end
    vm_flags = VM_XIP_FILE | (VM_MAYWRITE if may_fill_holes else 0)
    results = []
    for fault in (handle_mm_fault_range, one_by_one):
        world = World(None, arch, nvram=nvram, nr_blocks=NR_BLOCKS, nr_tier_frames=NR_TIER_FRAMES)
        blocks = {pgoff: 7 * pgoff + 1 for pgoff, kind in enumerate(kinds) if kind != "hole"}
        mapping = world.fs.make_file(blocks, nr_pages=len(kinds), read_only=False)
        vmas = [
            world.mmap(mapping, nr_pages=nr_pages),
            world.mmap(mapping, nr_pages=nr_pages, vm_flags=vm_flags),
        ]
        resident = [pgoff for pgoff, kind in enumerate(kinds) if kind == "ram"]
        promote_pages(world.machine, mapping, np.array(resident, np.int64))
        for pgoff, kind in enumerate(kinds):
            if kind == "error":
                world.fs.errors[mapping.id, pgoff] = FormatError("a damaged extent")
        found: list[object] = []
        for i, (pgoff, length) in enumerate(faults):
            if pgoff < nr_pages:
                vma = vmas[i % 2]
                length = min(length, nr_pages - pgoff)
                found.append(fault(vma, vma.address(Pgoff(pgoff)), length))
                found.append(snapshot(world.machine, world.mms, [mapping]))
        found.append(dict(world.fs.blocks))
        results.append(found)
        world.check()
        world.close()
    assert results[0] == results[1]


def one_by_one(vma: Vma, address: int, nr_pages: int) -> FaultResult:
    for page_address in range(address, address + nr_pages * PAGE_SIZE, PAGE_SIZE):
        if not vma.vm_mm.page_table.find_pte(page_address) & PTE_PRESENT:
            result = handle_mm_fault(vma, page_address)
            if result & VM_FAULT_ERROR:
                return result
    return FaultResult.NOPAGE


@given(
    arch=st.sampled_from(ARCHS),
    pages=st.lists(st.sampled_from(["nvram", "ram", "hole", "there"]), min_size=1, max_size=40),
    data=st.data(),
)
def test_insertion_of_a_range_is_the_insertions_of_its_pages(
    nvram: NvramDevice, arch: Arch, pages: list[str], data: st.DataObject
):
    worlds = [World(None, arch, nvram=nvram, nr_tier_frames=4) for _ in range(2)]
    frames = [world.machine.mem_map.alloc_page() for world in worlds for _ in range(2)]
    choices = {
        "nvram": st.integers(NVRAM_PFN_START, NVRAM_PFN_START + NR_BLOCKS - 1),
        "there": st.integers(NVRAM_PFN_START, NVRAM_PFN_START + NR_BLOCKS - 1),
        "ram": st.sampled_from(frames[:2]),
        "hole": st.just(PFN_NONE),
    }
    pfns = [data.draw(choices[kind]) for kind in pages]
    found = []
    for world, vector in zip(worlds, (True, False), strict=True):
        vma = world.mmap(world.fs.make_file({}, nr_pages=64))
        for pgoff, kind in enumerate(pages):
            if kind == "there":
                vm_insert_mixed(vma, vma.address(Pgoff(pgoff)), NVRAM_PFN_START)
        if vector:
            nr_inserted = insert_range(vma, vma.vm_start, np.array(pfns))
        else:
            nr_inserted = sum(
                insert_one(vma, vma.address(Pgoff(pgoff)), pfn) == 0
                for pgoff, pfn in enumerate(pfns)
            )
        assert nr_inserted == len(pages) - pages.count("there")
        state = snapshot(world.machine, world.mms, [])
        state["vmstat"].pop("xip_insert_sparse")  # the fault counts it, not the insertion
        found.append(state)
        world.close()
    assert found[0] == found[1]


def insert_one(vma: Vma, address: int, pfn: int) -> int:
    machine = vma.vm_mm.machine
    if pfn == PFN_NONE:
        return vm_insert_page(vma, address, machine.sparse_pfn)
    if pfn < machine.mem_map.nr_frames:
        return vm_insert_page(vma, address, pfn)
    return vm_insert_mixed(vma, address, pfn)
