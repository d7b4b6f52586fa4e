"""allocator: against a plain set of pages; where pages come from; what is refused."""

import random
from pathlib import Path

import numpy as np
import pytest

from tests.kit.image import ImageKit
from xipfs.errors import BugError, FormatError, NoSpaceError
from xipfs.fs.allocator import Allocator
from xipfs.fs.mkfs import mkfs
from xipfs.fs.superblock import read_superblock
from xipfs.ondisk.group import NR_GROUP_PAGES, GroupFlags, decode_group_desc
from xipfs.ondisk.superblock import STATE, DiskState, DiskSuperblock, decode_state
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Block


class Region:
    """An image and its allocator, with the changes stored without any journal."""

    def __init__(self, path: Path) -> None:
        self.nvram = NvramDevice.open(path, writable=True)
        self.disk: DiskSuperblock = read_superblock(self.nvram)
        self.state: DiskState = decode_state(
            self.nvram.load(PAGE_SIZE, STATE.size_bytes), self.disk.seed
        )
        self.nr_free = self.state.nr_free_pages
        self.open()

    def open(self) -> None:
        self.allocator = Allocator(self.nvram, self.disk, self.nr_free)

    def commit(self, taken, freed) -> None:
        change = self.allocator.prepare(taken, freed)
        for block, page in change.new_pages:
            self.nvram.store_bytes(block << PAGE_SHIFT, page)
        for offset, data in change.records:
            self.nvram.store_bytes(offset, data)
        self.nr_free += change.nr_freed_pages
        self.allocator.publish(change, freed)

    def take(self, nr_pages: int, near: int = 0) -> list[tuple[Block, int]]:
        runs = self.allocator.take(nr_pages, Block(near))
        self.commit(runs, [])
        return runs

    def free_pages(self) -> set[int]:
        """Return the free pages, straight from the bitmaps, whose seals hold."""
        pages: set[int] = set()
        for group in range(self.disk.nr_groups):
            offset = (self.disk.gdt_block << PAGE_SHIFT) + group * 32
            desc = decode_group_desc(self.nvram.load(offset, 32), self.disk.seed, group)
            bitmap = bytes(PAGE_SIZE)
            if not desc.flags & GroupFlags.BITMAP_UNINIT:
                block = self.disk.bitmap_block + group
                bitmap = self.nvram.load(block << PAGE_SHIFT, PAGE_SIZE)
            bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
            found = np.flatnonzero(bits == 0)
            assert len(found) == desc.nr_free_pages
            pages |= set((found + group * NR_GROUP_PAGES).tolist())
        return pages


@pytest.fixture
def region(tmp_path: Path):
    region = Region(ImageKit().build().write(tmp_path / "nvram.img"))
    yield region
    region.nvram.close()


@pytest.fixture
def large(tmp_path: Path):
    """Four groups, of which the second and third were never written to."""
    path = tmp_path / "large.img"
    mkfs(path, None, now_ns=1, size_bytes=4 * NR_GROUP_PAGES * PAGE_SIZE)
    region = Region(path)
    yield region
    region.nvram.close()


def pages_of(runs) -> set[int]:
    return {page for block, nr_pages in runs for page in range(block, block + nr_pages)}


def test_random_calls_against_a_set(region: Region):
    rng = random.Random(5)
    free = region.free_pages()
    held: list[tuple[Block, int]] = []
    for step in range(400):
        taken, freed = [], []
        for _ in range(rng.randrange(4)):
            nr_pages = rng.choice([1, 1, 2, 5, 20])
            if nr_pages <= region.allocator.nr_free_pages - region.allocator.nr_reserved_pages:
                taken += region.allocator.take(nr_pages, Block(rng.choice([0, rng.randrange(256)])))
        for _ in range(rng.randrange(4)):
            if held:
                block, nr_pages = held.pop(rng.randrange(len(held)))
                cut = rng.randrange(nr_pages + 1)
                freed += [(block + cut, nr_pages - cut)] if cut < nr_pages else []
                held += [(block, cut)] if cut else []
        assert pages_of(taken) <= free, "what is freed now cannot be had yet"
        assert len(pages_of(taken)) == sum(nr_pages for _, nr_pages in taken)
        if rng.random() < 0.2:
            region.allocator.give_back(taken)
            held += freed
        else:
            region.commit(taken, freed)
            held += taken
            free = free - pages_of(taken) | pages_of(freed)
        assert region.free_pages() == free
        assert region.allocator.nr_free_pages == region.nr_free == len(free)
        if step % 50 == 0:
            region.open()


def test_a_file_goes_on_where_it_ends(region: Region):
    [(first, _)] = region.take(1)
    [(other, _)] = region.take(1, first + 50)
    assert other == first + 50
    assert region.take(3, first + 1) == [(first + 1, 3)]
    assert region.take(60, first + 4) == [(first + 4, 46), (first + 51, 14)]


def test_without_a_place_in_mind_the_lowest_run_that_is_long_enough(region: Region):
    first = min(region.free_pages())
    region.take(10)
    region.commit([], [(Block(first + 2), 1), (Block(first + 5), 3)])
    assert region.take(2) == [(first + 5, 2)]
    assert region.take(1) == [(first + 2, 1)]
    assert region.take(1) == [(first + 7, 1)]
    assert region.take(1) == [(first + 10, 1)]


def test_several_runs_where_there_is_no_long_one_the_longest_first(region: Region):
    pages = sorted(region.free_pages())
    region.allocator.nr_reserved_pages = 0
    region.take(len(pages))
    region.commit([], [(Block(p), n) for p, n in ((pages[1], 1), (pages[5], 3), (pages[10], 2))])
    assert region.take(4) == [(pages[5], 3), (pages[10], 1)]


def test_the_last_pages_are_for_those_who_free_some(region: Region):
    allocator = region.allocator
    assert allocator.nr_reserved_pages == 4
    region.take(allocator.nr_free_pages - 4)
    with pytest.raises(NoSpaceError, match="1 pages wanted, 0 are free"):
        allocator.take(1)
    assert sum(n for _, n in allocator.take(4, use_reserve=True)) == 4
    with pytest.raises(NoSpaceError):
        allocator.take(1, use_reserve=True)


def test_a_bitmap_that_was_never_written_is_a_new_page(large: Region):
    near = NR_GROUP_PAGES + 100
    runs = large.allocator.take(3, Block(near))
    change = large.allocator.prepare(runs, [])
    assert runs == [(near, 3)]
    [(block, page)] = change.new_pages
    assert block == large.disk.bitmap_block + 1
    assert page[12:14] == bytes([0x70, 0])
    assert len(change.records) == 1
    large.commit(runs, [])
    assert near not in large.free_pages()
    more = large.allocator.take(1, Block(near))
    assert not large.allocator.prepare(more, []).new_pages, "it was written"


def test_more_than_a_group(large: Region):
    runs = large.take(2 * NR_GROUP_PAGES + 5)
    assert sum(n for _, n in runs) == 2 * NR_GROUP_PAGES + 5
    assert len(runs) == 3
    large.commit([], runs)
    assert large.allocator.nr_free_pages == large.state.nr_free_pages


def test_groups_leave_memory_and_come_back(large: Region, monkeypatch):
    monkeypatch.setattr("xipfs.fs.allocator._NR_GROUPS_IN_MEMORY", 1)
    held = [run for group in range(4) for run in large.take(5, group * NR_GROUP_PAGES + 2000)]
    assert len(held) == 4
    assert len(large.allocator._groups) == 1
    large.commit([], held)
    assert large.allocator.nr_free_pages == len(large.free_pages()) == large.state.nr_free_pages


def test_little_is_read_to_find_a_page(large: Region):
    loads = []
    load = large.nvram.load
    large.allocator._nvram = type("Counting", (), {"path": large.nvram.path})()
    large.allocator._nvram.load = lambda *where: loads.append(where) or load(*where)
    large.allocator.take(1)
    assert len(loads) == 3, "a page of descriptors, one of them again, its bitmap"
    large.allocator.take(1)
    assert len(loads) == 3


def test_what_is_logged_is_little(region: Region):
    runs = region.allocator.take(9)
    change = region.allocator.prepare(runs, [])
    assert sum(len(data) for _, data in change.records) <= 35


def test_pages_that_are_free_cannot_be_freed(region: Region):
    [(block, _)] = region.take(2)
    with pytest.raises(FormatError, match=r"are held, but marked free: run xipfs fsck"):
        region.allocator.prepare([], [(Block(block + 1), 2)])
    with pytest.raises(FormatError, match="run xipfs fsck"):
        region.allocator.prepare([], [(Block(1 << 40), 1)])
    with pytest.raises(BugError, match="freed twice"):
        region.allocator.give_back([(Block(block + 2), 1)])


def test_a_damaged_bitmap_is_not_believed(tmp_path: Path):
    handmade = ImageKit().build()
    handmade.page(handmade.disk.bitmap_block)[20] ^= 1
    region = Region(handmade.write(tmp_path / "nvram.img"))
    free = region.allocator.nr_free_pages
    with pytest.raises(FormatError, match=r"group 0: damaged bitmap in page \d+: run xipfs fsck"):
        region.allocator.take(1)
    assert region.allocator.nr_free_pages == free
    region.nvram.close()


def test_a_count_that_is_too_high_ends(tmp_path: Path):
    handmade = ImageKit().build()
    region = Region(handmade.write(tmp_path / "nvram.img"))
    region.allocator.nr_free_pages += 100
    free = region.allocator.nr_free_pages
    with pytest.raises(NoSpaceError, match="run xipfs fsck"):
        region.allocator.take(free, use_reserve=True)
    assert region.allocator.nr_free_pages == free
    assert len(pages_of(region.take(free - 104))) == free - 104
    region.nvram.close()


def test_pages_of_metadata_are_no_file_s(region: Region):
    disk, check = region.disk, region.allocator.check_of_file
    [(first, _)] = region.take(1)
    check(first, 1)
    for block in (
        0,
        1,
        disk.journal_block + 1,
        disk.gdt_block,
        disk.bitmap_block,
        disk.nr_pages - 1,
    ):
        with pytest.raises(FormatError, match="where metadata is: run xipfs fsck"):
            check(block, 1)
        with pytest.raises(FormatError, match="where metadata is"):
            region.allocator.prepare([], [(Block(block - 1), 3)])
    with pytest.raises(FormatError, match="where metadata is"):
        check(2, disk.nr_pages)
