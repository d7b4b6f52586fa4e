"""AddressSpace: sizes in pages, and its invariants, broken and noticed."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.kit.mm import DictFs, World
from xipfs.errors import BugError
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.migrate import promote_pages
from xipfs.units import Pfn


@pytest.mark.parametrize(("size_bytes", "nr_pages"), [(0, 0), (1, 1), (4096, 1), (4097, 2)])
def test_last_page_counts_even_in_part(size_bytes: int, nr_pages: int):
    mapping = AddressSpace(16, DictFs(), i_size_bytes=size_bytes, read_only=True)
    assert mapping.nr_pages == nr_pages
    assert (mapping.i_pages, mapping.i_mmap) == ({}, [])


def two_pages_in_a_frame(mapping: AddressSpace, world: World) -> None:
    mapping.i_pages[1] = mapping.i_pages[0]


def frame_of_another_page(mapping: AddressSpace, world: World) -> None:
    world.machine.mem_map.index[mapping.i_pages[0]] = 7


def frame_of_another_file(mapping: AddressSpace, world: World) -> None:
    world.machine.mem_map.mapping[mapping.i_pages[0]] = 7


def frame_without_a_reference(mapping: AddressSpace, world: World) -> None:
    world.machine.mem_map.refcount[mapping.i_pages[0]] = 0


def frame_that_was_freed(mapping: AddressSpace, world: World) -> None:
    world.machine.mem_map.put_page(Pfn(mapping.i_pages[0]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (two_pages_in_a_frame, "a frame holds two pages"),
        (frame_of_another_page, "I2: another page"),
        (frame_of_another_file, "I2: another page"),
        (frame_without_a_reference, "I2: a free frame"),
        (frame_that_was_freed, "I2: another page"),
    ],
)
def test_damage_is_noticed(
    world: World, damage: Callable[[AddressSpace, World], None], message: str
):
    mapping = world.fs.make_file({0: 1, 1: 2, 2: 3})
    promote_pages(world.machine, mapping, np.array([0, 2]))
    mapping.check_invariants(world.machine.mem_map)
    damage(mapping, world)
    with pytest.raises(BugError, match=message):
        mapping.check_invariants(world.machine.mem_map)
