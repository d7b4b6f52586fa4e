"""migrate: what moves, what cannot, in which order, and what is counted."""

from pathlib import Path

import numpy as np
import pytest

from tests.kit.mm import ARCH_KINDS, World, block_bytes, run_python, snapshot
from xipfs.errors import BugError, DeviceError, FormatError
from xipfs.mm.access import access_page, access_range
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.migrate import DemoteReason, MigrateStatistics, demote_pages, promote_pages
from xipfs.units import NVRAM_PFN_START, Pfn, Pgoff

KSWAPD = DemoteReason.KSWAPD


def promote(world: World, mapping: AddressSpace, *pgoffs: int) -> tuple[int, int, int]:
    """Return (migrated, resident, failed)."""
    statistics = promote_pages(world.machine, mapping, np.array(pgoffs, np.int64))
    return (statistics.nr_migrated, statistics.nr_resident, statistics.nr_failed)


def demote(world: World, mapping: AddressSpace, *pgoffs: int) -> tuple[int, int, int]:
    statistics = demote_pages(world.machine, mapping, pgoffs, KSWAPD)
    return (statistics.nr_migrated, statistics.nr_resident, statistics.nr_failed)


def linear_file(world: World, nr_pages: int = 20) -> AddressSpace:
    return world.fs.make_file({pgoff: pgoff + 1 for pgoff in range(nr_pages)})


def test_page_moves_with_its_bytes_and_is_found_there(world: World):
    mapping = linear_file(world)
    vma = world.mmap(mapping)
    access_range(vma, Pgoff(0), 20)
    assert promote(world, mapping, 2, 3, 7) == (3, 0, 0)
    assert sorted(mapping.i_pages) == [2, 3, 7]
    for pgoff in (2, 3, 7):
        assert world.pte(vma, pgoff) == 0, "unmapped, to be faulted"
        assert world.page(mapping.i_pages[pgoff]) == block_bytes(pgoff + 1)
        assert access_page(vma, Pgoff(pgoff)) == mapping.i_pages[pgoff]
    world.check()
    assert demote(world, mapping, 2, 3, 7) == (3, 0, 0)
    assert mapping.i_pages == {}
    assert access_page(vma, Pgoff(7)) == NVRAM_PFN_START + 8
    assert world.machine.mem_map.nr_free == 8
    world.check()


def test_file_and_tier_are_counted(world: World):
    mapping = linear_file(world)
    assert promote(world, mapping, *range(10)) == (8, 0, 2)
    assert promote(world, mapping, 0, 9) == (0, 1, 1)
    assert demote(world, mapping, 0, 1, 9) == (2, 1, 0)
    demote_pages(world.machine, mapping, [2], DemoteReason.DIRECT)
    counters = world.machine.vmstat.as_dict()
    assert {name: counters[name] for name in counters if name.startswith("pg")} == {
        "pgfault": 0,
        "pgpromote_candidate": 0,
        "pgpromote_candidate_nrl": 0,
        "pgpromote_success": 8,
        "pgdemote_kswapd": 2,
        "pgdemote_direct": 1,
        "pgdemote_proactive": 0,
        "pgdemote": 3,
        "pgmigrate_success": 11,
        "pgmigrate_fail": 3,
    }
    assert counters["xip_shadow_hit"] == 3


def test_statistics_add_up():
    assert MigrateStatistics(1, 2, 3) + MigrateStatistics(10, 20, 30) == MigrateStatistics(
        11, 22, 33
    )
    assert MigrateStatistics() == MigrateStatistics(0, 0, 0)


def test_frames_are_enough_for_the_first_pages_only(world: World):
    mapping = linear_file(world)
    access_range(world.mmap(mapping), Pgoff(0), 20)
    assert promote(world, mapping, *range(3, 15)) == (8, 0, 4)
    assert sorted(mapping.i_pages) == list(range(3, 11))
    assert promote(world, mapping, 15) == (0, 0, 1)
    assert world.machine.vmstat.xip_zap == 8, "what cannot move stays mapped"
    world.check()


def test_what_is_no_page_fails_and_the_rest_moves(world: World):
    mapping = world.fs.make_file({0: 5, 1: 6, 4: 7, 5: 3, 8: 9}, nr_pages=10)
    access_range(world.mmap(mapping), Pgoff(0), 10)
    assert promote(world, mapping, 0, 1, 2, 3, 4, 5, 9, 10, 11, 1 << 40) == (4, 0, 6)
    assert sorted(mapping.i_pages) == [0, 1, 4, 5]
    assert [world.page(mapping.i_pages[pgoff]) for pgoff in (0, 1, 4, 5)] == [
        block_bytes(block) for block in (5, 6, 7, 3)
    ]
    assert world.machine.vmstat.xip_zap == 4, "the sparse page stays mapped at holes"
    world.check()


def test_last_page_moves_even_if_the_file_ends_in_it(world: World):
    mapping = world.fs.make_file({0: 5}, size_bytes=1)
    assert promote(world, mapping, 0) == (1, 0, 0)
    assert world.page(mapping.i_pages[0]) == block_bytes(5)


def test_block_past_the_end_of_the_file_is_no_page_of_it(world: World):
    """Space may be reserved there: nobody can map it, so nobody needs it in RAM."""
    mapping = world.fs.make_file({0: 5, 1: 6, 2: 7}, size_bytes=4097)
    assert promote(world, mapping, 0, 1, 2) == (2, 0, 1)
    assert sorted(mapping.i_pages) == [0, 1]


def test_nothing_is_asked_nothing_moves(world: World):
    mapping = linear_file(world)
    assert promote(world, mapping) == (0, 0, 0)
    assert demote(world, mapping) == (0, 0, 0)
    assert set(world.machine.vmstat.as_dict().values()) == {0}


@pytest.mark.parametrize("pgoffs", [(1, 1), (2, 1)])
def test_pages_to_promote_are_sorted_and_none_twice(world: World, pgoffs: tuple[int, ...]):
    """A page named twice would have taken two frames, and one of them for ever."""
    with pytest.raises(BugError, match="pages to promote: not sorted"):
        promote(world, linear_file(world), *pgoffs)
    assert world.machine.mem_map.nr_free == 8


def test_all_of_a_file_can_be_demoted_by_its_own_table(world: World):
    mapping = linear_file(world)
    promote(world, mapping, 2, 3, 5)
    assert demote_pages(world.machine, mapping, mapping.i_pages, KSWAPD).nr_migrated == 3
    assert demote(world, mapping, 2, 2) == (0, 2, 0)


def test_scattered_pages_are_demoted_in_any_order(world: World):
    mapping = linear_file(world)
    vma = world.mmap(mapping)
    promote(world, mapping, *range(2, 10))
    access_range(vma, Pgoff(0), 20)
    assert demote(world, mapping, 9, 4, 5, 2, 3) == (5, 0, 0)
    assert sorted(mapping.i_pages) == [6, 7, 8]
    assert [pgoff for pgoff in range(20) if not world.pte(vma, pgoff)] == [2, 3, 4, 5, 9]
    world.check()


# --- order of the steps ---


def test_ptes_are_gone_before_the_copy_begins(world: World, monkeypatch: pytest.MonkeyPatch):
    """Otherwise a store through the pte between copy and switch would be lost."""
    mapping = linear_file(world)
    vmas = [world.mmap(mapping), world.mmap(mapping, mm=world.make_mm())]
    for vma in vmas:
        access_range(vma, Pgoff(0), 20)
    physmem = world.machine.physmem
    copy_to_frames = type(physmem).copy_to_frames
    seen = []

    def watch(self: object, pfn: Pfn, frames: list[Pfn]) -> None:
        seen.append([world.pte(vma, pgoff) for vma in vmas for pgoff in (4, 5, 6)])
        assert mapping.i_pages == {}, "switched before the copy"
        copy_to_frames(physmem, pfn, frames)

    monkeypatch.setattr(type(physmem), "copy_to_frames", watch)
    promote(world, mapping, 4, 5, 6)
    assert seen == [[0] * 6]


def test_busy_page_is_unmapped_but_stays(world: World):
    """Who got the frame through a pte is seen in its refcount only after the pte is gone."""
    mapping = linear_file(world)
    vma = world.mmap(mapping)
    promote(world, mapping, 1, 2, 3)
    access_range(vma, Pgoff(0), 5)
    frame = mapping.i_pages[2]
    world.machine.mem_map.get_page(frame)
    assert demote(world, mapping, 1, 2, 3) == (2, 0, 1)
    assert mapping.i_pages == {2: frame}
    assert world.pte(vma, 2) == 0
    assert world.machine.vmstat.pgmigrate_fail == 1
    world.check(pins=[frame])
    assert access_page(vma, Pgoff(2)) == frame
    world.machine.mem_map.put_page(frame)
    assert demote(world, mapping, 2) == (1, 0, 0)
    world.check()


# --- what cannot be read ---


def test_page_that_the_filesystem_cannot_tell_of_fails_alone(world: World):
    """Its neighbours in the request had failed with it."""
    mapping = world.fs.make_file({pgoff: pgoff % 60 for pgoff in range(200)})
    world.fs.errors[mapping.id, 3] = FormatError("a damaged extent")
    before = snapshot(world.machine, world.mms, [mapping])
    assert promote(world, mapping, 2, 3, 4) == (2, 0, 1)
    assert sorted(mapping.i_pages) == [2, 4]
    demote(world, mapping, 2, 4)
    after = snapshot(world.machine, world.mms, [mapping])
    assert (before["refcount"], before["i_pages"]) == (after["refcount"], after["i_pages"])


def test_frames_of_a_copy_that_fails_are_free_again(world: World, monkeypatch: pytest.MonkeyPatch):
    mapping = linear_file(world)
    vma = world.mmap(mapping)
    access_range(vma, Pgoff(0), 20)

    def fail(self: object, pfn: Pfn, frames: list[Pfn]) -> None:
        raise DeviceError("cut short")

    with monkeypatch.context() as patch:
        patch.setattr(type(world.machine.physmem), "copy_to_frames", fail)
        assert promote(world, mapping, 4, 5, 6) == (0, 0, 3)
    assert world.machine.mem_map.nr_free == 8
    assert access_page(vma, Pgoff(5)) == NVRAM_PFN_START + 6, "served from NVRAM as before"
    world.check()
    assert promote(world, mapping, 4, 5, 6) == (3, 0, 0)


CUT_SHORT = """
import os, sys
from pathlib import Path
import numpy as np
from tests.kit.mm import World, block_bytes
from xipfs.mm.access import access_page, access_range
from xipfs.mm.migrate import promote_pages
from xipfs.units import Pgoff

world = World(Path(sys.argv[1]))
mapping = world.fs.make_file({pgoff: pgoff for pgoff in range(20)})
vma = world.mmap(mapping)
access_range(vma, Pgoff(0), 20)
os.truncate(sys.argv[1], 6 * 4096)
for pgoffs in ([1, 2], [4, 5, 6], [10]):
    print(promote_pages(world.machine, mapping, np.array(pgoffs)))
print(world.page(access_page(vma, Pgoff(2))) == block_bytes(2))
print("alive", world.machine.mem_map.nr_free)
"""


def test_image_cut_short_under_a_promotion_fails_what_is_gone_and_kills_nobody(tmp_path: Path):
    run = run_python(CUT_SHORT, tmp_path / "region")
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        "MigrateStatistics(nr_migrated=2, nr_resident=0, nr_failed=0)",
        "MigrateStatistics(nr_migrated=2, nr_resident=0, nr_failed=1)",
        "MigrateStatistics(nr_migrated=0, nr_resident=0, nr_failed=1)",
        "True",
        "alive 4",
    ]


def test_long_run_is_copied_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    world = World(tmp_path / "region", ARCH_KINDS["bare"], nr_blocks=200, nr_tier_frames=160)
    mapping = linear_file(world, 190)
    copy_to_frames = type(world.machine.physmem).copy_to_frames
    lengths = []

    def watch(self: object, pfn: Pfn, frames: list[Pfn]) -> None:
        lengths.append(len(frames))
        copy_to_frames(world.machine.physmem, pfn, frames)

    monkeypatch.setattr(type(world.machine.physmem), "copy_to_frames", watch)
    assert promote(world, mapping, *range(10, 180)) == (160, 0, 10)
    assert lengths == [64, 64, 32]
    for pgoff in range(10, 170):
        assert world.page(mapping.i_pages[pgoff]) == block_bytes(pgoff + 1)
    world.check()
    world.close()
