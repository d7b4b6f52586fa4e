"""rmap: every vma is found by offset; what is taken away, and what stays."""

import numpy as np
import pytest

from tests.kit.mm import World, block_bytes
from xipfs.mm.access import access_page, access_range
from xipfs.mm.migrate import promote_pages
from xipfs.mm.mmap import munmap
from xipfs.mm.rmap import unmap_mapping_range, zap_page_range
from xipfs.mm.vma import Vma
from xipfs.units import PAGE_SIZE, Pgoff, Vaddr


def mapped(world: World, vma: Vma) -> list[int]:
    """Return the file pages of *vma* that have a pte."""
    return [pgoff for pgoff in range(vma.vm_pgoff, vma.pgoff(vma.vm_end)) if world.pte(vma, pgoff)]


def test_every_vma_of_every_mm_is_reached_at_its_own_address(world: World):
    mapping = world.fs.make_file({pgoff: pgoff for pgoff in range(16)}, nr_pages=20)
    other = world.fs.make_file({pgoff: 20 + pgoff for pgoff in range(16)})
    child = world.make_mm()
    vmas = [
        world.mmap(mapping),
        world.mmap(mapping, pgoff=6),
        world.mmap(mapping, pgoff=0, nr_pages=7),
        world.mmap(mapping, pgoff=9, nr_pages=4, mm=child),
        world.mmap(mapping, pgoff=12, nr_pages=4, mm=child),
    ]
    bystander = world.mmap(other)
    for vma in [*vmas, bystander]:
        access_range(vma, vma.vm_pgoff, (vma.vm_end - vma.vm_start) // PAGE_SIZE)
    assert unmap_mapping_range(mapping, Pgoff(6), 4, even_cows=True) == 4 + 4 + 1 + 1 + 0
    assert world.machine.vmstat.xip_zap == 10
    assert [mapped(world, vma) for vma in vmas] == [
        [*range(6), *range(10, 20)],
        [*range(10, 20)],
        [*range(6)],
        [10, 11, 12],
        [12, 13, 14, 15],
    ]
    assert mapped(world, bystander) == list(range(16))
    assert unmap_mapping_range(mapping, Pgoff(6), 4, even_cows=True) == 0
    world.check()


@pytest.mark.parametrize("touched", [[0, 511, 512, 1023, 1024, 3000], list(range(0, 4096, 100))])
def test_range_over_many_leaves_touched_here_and_there(world: World, touched: list[int]):
    mapping = world.fs.make_file({}, nr_pages=4096)
    vma = world.mmap(mapping)
    for pgoff in touched:
        access_page(vma, Pgoff(pgoff))
    expected = [pgoff for pgoff in touched if not 512 <= pgoff < 3001]
    assert unmap_mapping_range(mapping, Pgoff(512), 3001 - 512, even_cows=True) == len(
        touched
    ) - len(expected)
    assert mapped(world, vma) == expected
    world.check()


def test_zap_touches_its_range_only(world: World):
    vma = world.mmap(world.fs.make_file({}, nr_pages=8))
    access_range(vma, Pgoff(0), 8)
    assert zap_page_range(vma, vma.address(Pgoff(3)), vma.address(Pgoff(5))) == 2
    assert mapped(world, vma) == [0, 1, 2, 5, 6, 7]
    assert world.mm.rss_file == 6
    world.check()


def test_huge_map_is_unmapped_in_the_time_of_its_leaves(world: World):
    """A loop over 2^40 leaves would not end."""
    mapping = world.fs.make_file({0: 3}, nr_pages=1 << 42)
    vma = world.mmap(mapping)
    access_page(vma, Pgoff(0))
    access_page(vma, Pgoff((1 << 42) - 1))
    assert unmap_mapping_range(mapping, Pgoff(0), 1 << 42, even_cows=True) == 2
    munmap(vma)
    assert not world.mm.page_table.leaves


def test_munmap_gives_everything_back(world: World):
    mapping = world.fs.make_file({pgoff: pgoff for pgoff in range(8)}, nr_pages=1200)
    promote_pages(world.machine, mapping, np.array([2, 3]))
    vma = world.mmap(mapping)
    access_range(vma, Pgoff(0), 1200)
    assert len(world.mm.page_table.leaves) == 3
    munmap(vma)
    assert (world.mm.rss_file, dict(world.mm.page_table.leaves)) == (0, {})
    assert (list(world.mm.vmas), mapping.i_mmap) == ([], [])
    assert sorted(mapping.i_pages) == [2, 3], "pages stay in RAM without being mapped"
    world.check()


def test_munmap_leaves_the_neighbours_of_its_leaf_alone(world: World):
    files = [world.fs.make_file({0: block, 1: block + 1}) for block in (10, 20, 30)]
    vmas = [world.mmap(mapping) for mapping in files]
    for vma in vmas:
        access_range(vma, Pgoff(0), 2)
    munmap(vmas[1])
    assert world.page(access_page(vmas[0], Pgoff(1))) == block_bytes(11)
    assert world.page(access_page(vmas[2], Pgoff(0))) == block_bytes(30)
    assert world.machine.vmstat.pgfault == 6
    world.check()


def test_neighbours_heat_outlives_a_munmap(world: World):
    """A leaf without ptes was dropped, though it told the heat of pages that had just moved."""
    hot = world.fs.make_file({0: 10})
    vmas = [world.mmap(hot), world.mmap(world.fs.make_file({0: 20}))]
    for vma in vmas:
        for _ in range(3):
            access_page(vma, Pgoff(0))
    promote_pages(world.machine, hot, np.array([0]))
    munmap(vmas[1])
    (leaf,) = world.mm.page_table.leaves.values()
    assert (leaf.nr_present, leaf.heat[leaf.heat > 0].tolist()) == (0, [3])
    munmap(vmas[0])
    assert not world.mm.page_table.leaves


def test_new_tenant_of_a_range_starts_cold(world: World):
    neighbour = world.mmap(world.fs.make_file({0: 20}))
    vma = world.mmap(world.fs.make_file({0: 10}))
    for _ in range(9):
        access_page(neighbour, Pgoff(0))
        access_page(vma, Pgoff(0))
    munmap(vma)
    tenant = world.mmap(world.fs.make_file({0: 11}))
    assert tenant.vm_start == vma.vm_start
    assert world.page(access_page(tenant, Pgoff(0))) == block_bytes(11)
    (leaf,) = world.mm.page_table.leaves.values()
    assert sorted(leaf.heat[leaf.heat > 0].tolist()) == [1, 9]


def test_nothing_is_mapped_before_the_first_access(world: World):
    mapping = world.fs.make_file({0: 1}, nr_pages=600)
    vma = world.mmap(mapping)
    assert unmap_mapping_range(mapping, Pgoff(0), 600, even_cows=True) == 0
    assert zap_page_range(vma, vma.vm_start, Vaddr(vma.vm_end)) == 0
    munmap(vma)
    world.check()
