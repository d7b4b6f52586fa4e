"""MemMap: references, rmap entries and the free list; each invariant, broken and noticed."""

from collections.abc import Callable

import pytest

from xipfs.errors import BugError
from xipfs.mm.mem_map import MemMap
from xipfs.units import NVRAM_PFN_START, Pfn


@pytest.fixture
def mem_map() -> MemMap:
    return MemMap(4)


def test_every_frame_is_given_once_and_then_none(mem_map: MemMap):
    assert [mem_map.alloc_page() for _ in range(5)] == [0, 1, 2, 3, None]
    assert mem_map.nr_free == 0
    assert mem_map.refcount.tolist() == [1, 1, 1, 1]
    mem_map.check_invariants()


def test_frame_freed_last_is_given_first(mem_map: MemMap):
    for _ in range(3):
        mem_map.alloc_page()
    mem_map.put_page(Pfn(2))
    mem_map.put_page(Pfn(0))
    assert mem_map.nr_free == 3
    assert [mem_map.alloc_page() for _ in range(3)] == [0, 2, 3]


def test_last_reference_frees_the_frame_and_forgets_its_page(mem_map: MemMap):
    pfn = mem_map.alloc_page()
    assert pfn is not None
    mem_map.mapping[pfn], mem_map.index[pfn] = 16, 5
    mem_map.get_page(pfn)
    mem_map.put_page(pfn)
    assert (mem_map.page_count(pfn), mem_map.mapping[pfn], mem_map.index[pfn]) == (1, 16, 5)
    mem_map.put_page(pfn)
    assert (mem_map.page_count(pfn), mem_map.mapping[pfn], mem_map.index[pfn]) == (0, -1, 0)
    mem_map.check_invariants()


def test_rmap_entry_holds_a_reference(mem_map: MemMap):
    pfn = mem_map.alloc_page()
    assert pfn is not None
    for _ in range(2):
        mem_map.get_page(pfn)
        mem_map.page_add_file_rmap(pfn)
    assert (mem_map.page_count(pfn), mem_map.page_mapcount(pfn)) == (3, 2)
    mem_map.page_remove_rmap(pfn)
    mem_map.put_page(pfn)
    assert (mem_map.page_count(pfn), mem_map.page_mapcount(pfn)) == (2, 1)
    mem_map.put_page(pfn)
    mem_map.page_remove_rmap(pfn)
    mem_map.put_page(pfn)
    assert mem_map.nr_free == 4
    mem_map.check_invariants()


def test_only_ram_frames_have_a_struct_page(mem_map: MemMap):
    assert mem_map.nr_frames == 4
    assert mem_map.size_bytes == 4 * 64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda mem_map: mem_map.get_page(Pfn(1)), "get_page on a free frame: pfn=1"),
        (lambda mem_map: mem_map.put_page(Pfn(1)), "put_page below mapcount: pfn=1 now=-1"),
        (lambda mem_map: mem_map.page_remove_rmap(Pfn(0)), "unmapping a frame that nobody maps"),
        (lambda mem_map: mem_map.get_page(Pfn(-4)), "get_page on a free frame: pfn=-4"),
        (lambda mem_map: mem_map.put_page(Pfn(-4)), "put_page on no frame: pfn=-4"),
    ],
)
def test_unbalanced_call_is_a_bug_and_changes_nothing(
    mem_map: MemMap, call: Callable[[MemMap], None], message: str
):
    mem_map.alloc_page()
    with pytest.raises(BugError, match=message):
        call(mem_map)
    assert (mem_map.refcount.tolist(), mem_map.mapcount.tolist()) == ([1, 0, 0, 0], [0] * 4)
    mem_map.check_invariants()


def test_reference_that_a_pte_still_needs_cannot_be_dropped(mem_map: MemMap):
    pfn = mem_map.alloc_page()
    assert pfn is not None
    mem_map.get_page(pfn)
    mem_map.page_add_file_rmap(pfn)
    mem_map.put_page(pfn)
    with pytest.raises(BugError, match="put_page below mapcount: pfn=0 now=0"):
        mem_map.put_page(pfn)


@pytest.mark.parametrize("pfn", [4, NVRAM_PFN_START])
def test_no_reference_on_what_has_no_struct_page(mem_map: MemMap, pfn: int):
    for call in (mem_map.get_page, mem_map.put_page, mem_map.page_count):
        with pytest.raises(IndexError):
            call(Pfn(pfn))


def free_twice(mem_map: MemMap) -> None:
    mem_map._free.append(3)


def lose_a_free_frame(mem_map: MemMap) -> None:
    mem_map._free.remove(3)


def free_a_frame_in_use(mem_map: MemMap) -> None:
    mem_map._free.append(0)


def keep_the_page_of_a_free_frame(mem_map: MemMap) -> None:
    mem_map.mapping[2] = 16


def map_without_a_reference(mem_map: MemMap) -> None:
    mem_map.mapcount[0] = 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (free_twice, "I1: a frame is free twice"),
        (lose_a_free_frame, "I1: a free frame in use, or one in use free"),
        (free_a_frame_in_use, "I1: a free frame in use, or one in use free"),
        (keep_the_page_of_a_free_frame, "I1: a free frame in use, or one in use free"),
        (map_without_a_reference, "I2: mapcount above refcount"),
    ],
)
def test_damage_is_noticed(mem_map: MemMap, damage: Callable[[MemMap], None], message: str):
    mem_map.alloc_page()
    mem_map.check_invariants()
    damage(mem_map)
    with pytest.raises(BugError, match=message):
        mem_map.check_invariants()
