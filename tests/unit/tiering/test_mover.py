"""Mover: pages by id, across files; pins; room that the coldest pages make."""

import numpy as np
import pytest

from tests.kit.mm import World
from xipfs.mm.access import access_page
from xipfs.mm.mem_map import PG_DIRTY
from xipfs.mm.migrate import DemoteReason
from xipfs.policy.contract import page_id
from xipfs.tiering.mover import Mover, dirty_pages, page_heat, resident_pages
from xipfs.units import Pgoff

NR_FRAMES = 4


class MoverWorld(World):
    """Two files of 6 pages, mapped, and 4 frames for them."""

    def __init__(self, path) -> None:
        super().__init__(path, nr_blocks=32, nr_tier_frames=NR_FRAMES)
        self.a = self.fs.make_file({i: i for i in range(6)})
        self.b = self.fs.make_file({i: 6 + i for i in range(6)})
        self.vmas = {file.id: self.mmap(file) for file in self.fs.files}
        self.files = {file.id: file for file in self.fs.files}
        self.emptied: list[int] = []
        self.mover = Mover(
            self.machine, self.files.get, lambda mapping: self.emptied.append(mapping.id)
        )

    def read(self, file, pgoff, times=1) -> None:
        for _ in range(times):
            access_page(self.vmas[file.id], Pgoff(pgoff))

    @property
    def resident(self) -> list[int]:
        return resident_pages(self.machine).tolist()


def ids(*pages) -> np.ndarray:
    return np.array(sorted(page_id(file.id, pgoff) for file, pgoff in pages), np.int64)


@pytest.fixture
def world(tmp_path):
    world = MoverWorld(tmp_path / "region")
    yield world
    world.check()
    world.close()


def test_pages_of_several_files(world):
    pages = ids((world.a, 1), (world.b, 0), (world.a, 5))
    moved = world.mover.promote(pages)
    assert (moved.nr_migrated, moved.nr_resident, moved.nr_failed) == (3, 0, 0)
    assert world.resident == pages.tolist()
    moved = world.mover.demote(ids((world.a, 1), (world.a, 2), (world.b, 0)), DemoteReason.DIRECT)
    assert (moved.nr_migrated, moved.nr_resident, moved.nr_failed) == (2, 1, 0)
    assert world.emptied == [world.b.id]


def test_what_exists(world):
    pages = np.array([page_id(world.a.id, 5), page_id(world.a.id, 6), page_id(99, 0), -1])
    assert world.mover.exists(pages).tolist() == [True, False, False, False]


def test_a_pinned_page_stays(world):
    pages = ids((world.a, 0), (world.a, 1), (world.a, 2))
    world.mover.promote(pages[:2])
    world.mover.pin(pages)
    assert world.mover.pinned.tolist() == pages[:2].tolist(), "only what is in RAM can be pinned"
    moved = world.mover.demote(pages[:2], DemoteReason.KSWAPD)
    assert (moved.nr_migrated, moved.nr_failed) == (0, 2)
    world.mover.unpin(pages[:1])
    assert world.mover.demote(pages[:2], DemoteReason.KSWAPD).nr_migrated == 1
    assert world.resident == pages[1:2].tolist()


def test_the_coldest_make_room(world):
    pages = ids((world.a, 0), (world.a, 1), (world.b, 2), (world.b, 3))
    world.mover.promote(pages)
    for page, times in ((0, 3), (1, 1)):
        world.read(world.a, page, times)
    for page, times in ((2, 2), (3, 9)):
        world.read(world.b, page, times)
    world.mover.make_room(2, spared=ids((world.a, 1)))
    assert world.resident == ids((world.a, 1), (world.b, 3)).tolist()
    world.mover.make_room(2, spared=ids())
    assert len(world.resident) == 2, "there is room enough"


def test_pinned_pages_make_no_room(world):
    pages = ids((world.a, 0), (world.a, 1), (world.a, 2), (world.a, 3))
    world.mover.promote(pages)
    world.mover.pin(pages[1:])
    world.mover.make_room(3, spared=ids())
    assert world.resident == pages[1:].tolist()


def test_heat(world):
    world.read(world.a, 2, 5)
    world.read(world.b, 0, 1)
    assert page_heat(world.a, 1, 3).tolist() == [0, 5, 0]
    assert world.mover.heat(ids((world.a, 2), (world.a, 5), (world.b, 0))).tolist() == [5, 0, 1]


def test_heat_of_a_file_that_nobody_mapped(world):
    file = world.fs.make_file({0: 20})
    assert page_heat(file, 0, 3).tolist() == [0, 0, 0]


def pairs(*found) -> np.ndarray:
    return np.array([[page_id(a.id, i), page_id(b.id, j)] for (a, i), (b, j) in found], np.int64)


def test_pages_of_several_files_change_places(world):
    world.mover.promote(ids((world.a, 0), (world.a, 1), (world.b, 0), (world.b, 1)))
    world.mover.pin(ids((world.b, 1)))
    moved = world.mover.exchange(
        pairs(
            ((world.a, 0), (world.b, 3)),
            ((world.a, 1), (world.a, 5)),
            ((world.b, 0), (world.a, 4)),
            ((world.b, 1), (world.a, 3)),
        )
    )
    assert (moved.nr_migrated, moved.nr_failed) == (6, 2)
    assert world.resident == ids((world.b, 3), (world.a, 5), (world.a, 4), (world.b, 1)).tolist()
    assert world.machine.vmstat.xip_exchange == 3


def test_the_coldest_leave_a_tier_that_shrinks(world):
    world.mover.promote(ids((world.a, 0), (world.a, 1), (world.a, 2), (world.a, 3)))
    for page in (0, 2):
        world.read(world.a, page)
    assert [world.mover.resize(2, 1), world.mover.resize(2, 9), world.mover.resize(2, 9)] == [
        1,
        1,
        0,
    ]
    assert world.resident == ids((world.a, 0), (world.a, 2)).tolist()


def test_dirty_pages(world):
    world.mover.promote(ids((world.a, 0), (world.a, 1)))
    assert dirty_pages(world.machine).tolist() == []
    world.machine.mem_map.set_page_dirty(world.a.i_pages[1])
    assert dirty_pages(world.machine).tolist() == ids((world.a, 1)).tolist()
    world.machine.mem_map.clear_page_flags(world.a.i_pages[1], PG_DIRTY)
