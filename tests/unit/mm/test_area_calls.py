"""Corners of mm that system calls reach seldom: migration, remapping, ranges, smaps, madvise."""

import errno

import numpy as np
import pytest

from tests.kit.mm import (
    BARE,
    PRIVATE_RW,
    SHARED_RW,
    World,
    archs,
    fault,
)
from xipfs.errors import BugError, OutOfFramesError
from xipfs.mm.access import access_page, user_store
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.arch import get_arch
from xipfs.mm.fork import dup_mm
from xipfs.mm.madvise import Advice, do_madvise
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.mixedmap import (
    insert_range,
    vm_insert_mixed,
    vm_insert_page,
    vm_insert_pfn,
    vm_normal_page,
    vm_normal_pages,
)
from xipfs.mm.mmap import do_mmap
from xipfs.mm.mprotect import do_mprotect
from xipfs.mm.mremap import MREMAP_DONTUNMAP, MREMAP_MAYMOVE, do_mremap, expand_to_file
from xipfs.mm.pgtable import PTE_PRESENT, PTE_SPECIAL, mk_pte, pte_pfn, pte_write
from xipfs.mm.proc import mincore, smaps
from xipfs.mm.remap import remap_pfn_range
from xipfs.mm.rmap import unmap_frame, zap_page_range
from xipfs.mm.vm_fault import FaultResult, VmOperations
from xipfs.mm.vma import (
    VM_IO,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Vma,
)
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, Pfn, Pgoff, Vaddr

PRIVATE_PFNMAP = VM_READ | VM_WRITE | VM_MAYWRITE | VM_PFNMAP

no_bit_now = archs(lambda arch: arch.name == "generic" and not arch.is_2008)
pat = pytest.mark.parametrize("arch", [get_arch("x86", "6.1")])


class ReadOnlyFile:
    may_write = False

    def __init__(self, mapping: AddressSpace) -> None:
        self.f_mapping = mapping

    def mmap(self, vma: Vma) -> int:
        return 0


def remapped(world: World) -> Vma:
    vma = world.mmap(world.fs.make_file({}, nr_pages=2), vm_flags=PRIVATE_PFNMAP)
    assert remap_pfn_range(vma, vma.vm_start, Pfn(NVRAM_PFN_START + 20), 2) == 0
    return vma


def test_file_opened_read_only_is_not_mapped_to_be_written(world: World):
    file = ReadOnlyFile(world.fs.make_file({0: 3}))
    prot = VM_READ | VM_WRITE
    assert do_mmap(world.mm, file, nr_pages=1, prot=prot, shared=True) == -errno.EACCES
    assert do_mmap(world.mm, file, nr_pages=1, prot=prot, shared=False) > 0
    address = do_mmap(world.mm, file, nr_pages=1, prot=VM_READ, shared=True)
    vma = world.mm.find_vma(Vaddr(address))
    assert vma is not None
    assert not vma.vm_flags & (VM_MAYWRITE | VM_SHARED)


@pat
def test_fork_fails_where_the_memory_type_cannot_be_read_any_more(world: World):
    vma = remapped(world)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    assert dup_mm(world.mm) == -errno.ENOMEM
    world.check()


def test_fork_without_memory_gives_all_back(world: World):
    vma = remapped(world)
    world.mm.page_table.nr_leaves_max = 0
    assert dup_mm(world.mm) == -errno.ENOMEM
    assert vma.vm_file.i_mmap == [vma]
    world.check()


def test_remapping_ends_without_memory(world: World):
    vma = world.mmap(world.fs.make_file({}, nr_pages=2), vm_flags=VM_READ | VM_SHARED)
    world.mm.page_table.nr_leaves_max = 0
    assert remap_pfn_range(vma, vma.vm_start, BARE, 2) == -errno.ENOMEM


def test_pfnmap_is_not_remapped_twice_without_unmapping(world: World):
    vma = remapped(world)
    flags = MREMAP_MAYMOVE | MREMAP_DONTUNMAP
    assert do_mremap(world.mm, vma.vm_start, 2, 2, flags) == -errno.EINVAL


@pytest.mark.parametrize("nr_pages", [1, 2])
def test_area_stays_where_its_pages_moved_away(world: World, nr_pages: int):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}), vm_flags=PRIVATE_RW)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    flags = MREMAP_MAYMOVE | MREMAP_DONTUNMAP
    address = do_mremap(world.mm, vma.vm_start, nr_pages, nr_pages, flags)
    assert address > 0
    assert vma.anon_vma is (nr_pages == 1), "all of it moved, or a part"
    assert (world.pte(vma, 0), world.mm.rss_anon) == (0, 1)
    world.check()


def test_shared_area_is_mapped_a_second_time(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}), vm_flags=SHARED_RW)
    access_page(vma, Pgoff(0))
    address = do_mremap(world.mm, vma.vm_start, 0, 2, MREMAP_MAYMOVE)
    assert address not in (0, vma.vm_start)
    assert world.pte(vma, 0)
    assert len(vma.vm_file.i_mmap) == 2
    world.check()


def test_mprotect_none_keeps_all_read_only_and_spares_the_neighbours(world: World):
    vmas = [
        world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_RW | VM_MAYWRITE) for _ in range(3)
    ]
    for vma in vmas:
        access_page(vma, Pgoff(0))
    before = [world.pte(vma, 0) for vma in vmas]
    middle = vmas[1]
    middle.vm_flags &= ~VM_SHARED
    for prot in (0, VM_WRITE, 0):
        assert do_mprotect(world.mm, middle.vm_start, 1, prot) == 0
        assert not pte_write(world.pte(middle, 0))
    assert [world.pte(vmas[i], 0) for i in (0, 2)] == [before[0], before[2]]


@pytest.mark.parametrize("is_dirty", [False, True])
def test_mprotect_makes_shared_ptes_writable_that_mkwrite_was_asked_for(
    world: World, is_dirty: bool
):
    vm_ops = VmOperations()
    vm_ops.page_mkwrite = vm_ops.fault
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_RW, vm_ops=vm_ops)
    assert vm_insert_mixed(vma, vma.vm_start, BARE) == 0
    (leaf,) = world.mm.page_table.leaves.values()
    leaf.dirty[leaf.ptes != 0] = is_dirty
    assert do_mprotect(world.mm, vma.vm_start, 1, VM_READ) == 0
    assert do_mprotect(world.mm, vma.vm_start, 1, VM_READ | VM_WRITE) == 0
    assert pte_write(world.pte(vma, 0)) is is_dirty


def test_madvise_refuses_by_area(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=VM_READ | VM_IO)

    def advise(advice: Advice) -> int:
        return do_madvise(world.mm, vma.vm_start, 1, advice)

    assert advise(Advice.DOFORK) == -errno.EINVAL
    assert advise(Advice.POPULATE_READ) == -errno.EINVAL
    vma.vm_flags = VM_READ | VM_LOCKED
    for advice in (Advice.DONTNEED, Advice.REMOVE, Advice.COLD):
        assert advise(advice) == -errno.EINVAL
    vma.vm_flags = SHARED_RW
    assert advise(Advice.REMOVE) == -errno.EOPNOTSUPP
    assert advise(Advice.MERGEABLE) == 0
    assert vma.vm_flags == SHARED_RW, "passed over"
    vma.vm_flags = PRIVATE_RW
    assert advise(Advice.REMOVE) == -errno.EACCES
    assert advise(Advice.RANDOM) == advise(Advice.RANDOM) == 0
    assert advise(Advice.COLLAPSE) == -errno.EINVAL
    assert advise(Advice.FREE) == -errno.EINVAL
    assert advise(Advice.WILLNEED) == 0
    assert not world.mm.page_table.leaves


@pytest.mark.parametrize("arch", [get_arch("um", "6.1")])
def test_madvise_populates_up_to_what_fails(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}), nr_pages=3, vm_flags=PRIVATE_RW)
    for advice in (Advice.POPULATE_READ, Advice.POPULATE_WRITE):
        assert do_madvise(world.mm, vma.vm_start, 3, advice) == -errno.EFAULT
        assert do_madvise(world.mm, vma.vm_start, 2, advice) == 0
    assert do_madvise(world.mm, vma.vm_start, 4, Advice.POPULATE_READ) == -errno.EFAULT
    assert do_madvise(world.mm, Vaddr(vma.vm_end), 1, Advice.POPULATE_READ) == -errno.ENOMEM
    before = Vaddr(vma.vm_start - PAGE_SIZE)
    assert do_madvise(world.mm, before, 2, Advice.POPULATE_READ) == -errno.ENOMEM
    assert do_madvise(world.mm, before, 2, Advice.RANDOM) == -errno.ENOMEM
    assert do_madvise(world.mm, vma.vm_start, 1, Advice.MERGEABLE) == -errno.EINVAL
    assert world.mm.rss_anon == 2
    world.check()


def test_mincore_and_smaps(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4})
    promote_pages(world.machine, mapping, np.array([1]))
    vma = world.mmap(mapping)
    assert not mincore(world.mm, vma.vm_end)
    assert [mincore(world.mm, vma.address(Pgoff(pgoff))) for pgoff in range(2)] == [False, True]
    access_page(vma, Pgoff(0))
    assert mincore(world.mm, vma.vm_start)
    empty = world.mm.mmap(None, nr_pages=1, pgoff=Pgoff(0), vm_flags=0, vm_ops=VmOperations())
    assert not mincore(world.mm, empty.vm_start)
    private = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RW | VM_LOCKED)
    assert user_store(world.mm, private.vm_start, b"mine") is None
    found = smaps(private)
    sizes = (found.anonymous_bytes, found.locked_bytes, found.private_dirty_bytes)
    assert sizes == (PAGE_SIZE,) * 3
    child = dup_mm(world.mm)
    found = smaps(private)
    assert (found.shared_dirty_bytes, found.private_dirty_bytes) == (PAGE_SIZE, 0)
    assert not isinstance(child, int)
    remapped_rss = smaps(remapped(world)).rss_bytes
    assert remapped_rss == (2 * PAGE_SIZE if world.machine.arch.is_2008 else 0)


def test_range_without_memory_or_with_a_bare_pfn_out_of_range(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}))
    assert vm_insert_pfn(vma, vma.vm_end, BARE) == -errno.EFAULT
    world.mm.page_table.nr_leaves_max = 0
    assert insert_range(vma, vma.vm_start, np.array([BARE])) == -errno.ENOMEM


@archs(lambda arch: True)
@pytest.mark.parametrize(
    "vm_flags", [PRIVATE_RW, PRIVATE_PFNMAP, VM_READ | VM_SHARED | VM_PFNMAP, VM_READ]
)
def test_normal_pages_of_a_range_are_those_of_each(world: World, vm_flags: int):
    vma = world.mmap(world.fs.make_file({}, nr_pages=4), vm_flags=vm_flags)
    zero = world.machine.zero_pfn
    if vm_flags & VM_PFNMAP:
        vma.vm_pgoff = Pgoff(zero - 1)
    pages = [zero, world.machine.sparse_pfn, Pfn(3)]
    if vm_flags & (VM_PFNMAP | PRIVATE_RW) != VM_READ:
        pages.append(BARE if vm_flags == PRIVATE_RW else Pfn(4))
    has_bit = world.machine.arch.pte_special
    ptes = [
        mk_pte(page, PTE_PRESENT | (PTE_SPECIAL if has_bit and page == BARE else 0))
        for page in pages
    ]
    pgoffs = [vma.vm_pgoff + i for i in range(len(pages))]
    expected = [
        vm_normal_page(vma, vma.address(Pgoff(pgoff)), pte) is not None
        for pgoff, pte in zip(pgoffs, ptes, strict=True)
    ]
    found = vm_normal_pages(vma, np.array(pgoffs), np.array(ptes, np.uint64))
    assert found.tolist() == expected


@pytest.mark.parametrize("arch", [get_arch("x86", "6.18")])
def test_file_may_know_the_page_of_a_special_pte(world: World):
    vm_ops = VmOperations()
    vm_ops.find_normal_page = lambda vma, address: Pfn(3)
    vma = world.mmap(world.fs.make_file({0: 3}), vm_ops=vm_ops)
    assert vm_normal_page(vma, vma.vm_start, mk_pte(BARE, PTE_PRESENT | PTE_SPECIAL)) == 3


def test_pages_of_no_file_are_checked_too(world: World):
    vma = world.mm.mmap(
        None, nr_pages=1, pgoff=Pgoff(0), vm_flags=PRIVATE_RW, vm_ops=VmOperations()
    )
    frame = world.machine.mem_map.alloc_page()
    assert vm_insert_page(vma, vma.vm_start, frame) == 0
    world.check(pins=[frame])
    world.mm.rss_file = 0
    with pytest.raises(BugError, match="C6: rss is wrong"):
        world.check(pins=[frame])


def test_frame_is_unmapped_where_it_is_mapped_only(world: World):
    mapping = world.fs.make_file({}, nr_pages=3)
    first, part = world.mmap(mapping), world.mmap(mapping, pgoff=1)
    access_page(first, Pgoff(0))
    access_page(part, Pgoff(1))
    assert unmap_frame(mapping, Pgoff(0), world.machine.sparse_pfn) == 1
    assert unmap_frame(mapping, Pgoff(1), Pfn(3)) == 0
    assert world.pte(part, 1)
    world.check()


def test_dirty_pte_makes_its_page_dirty_before_it_goes(writable: World):
    world = writable
    mapping = world.fs.make_file({0: 3, 1: 4}, read_only=False)
    promote_pages(world.machine, mapping, np.array([0]))
    vma = world.mmap(mapping, vm_flags=SHARED_RW)
    assert user_store(world.mm, vma.vm_start, b"ours") is None
    assert zap_page_range(vma, vma.vm_start, vma.address(Pgoff(1))) == 1
    statistics = demote_pages(world.machine, mapping, [0], DemoteReason.KSWAPD)
    assert statistics.nr_migrated == 1
    assert world.page(NVRAM_PFN_START + 3)[:4] == b"ours"
    world.check()


def test_page_that_cannot_be_written_back_stays_in_ram(world: World, expected_logs):
    """The region is open for reading only."""
    expected_logs("page 0 of file 16 stays in RAM")
    mapping = world.fs.make_file({0: 3})
    promote_pages(world.machine, mapping, np.array([0]))
    frame = mapping.i_pages[0]
    world.machine.mem_map.set_page_dirty(frame)
    statistics = demote_pages(world.machine, mapping, [0], DemoteReason.KSWAPD)
    assert (statistics.nr_migrated, statistics.nr_failed) == (0, 1)
    assert mapping.i_pages == {0: frame}
    world.check()


def test_range_that_was_given_back_is_not_used_while_something_is_there(world: World):
    mapping = world.fs.make_file({0: 3})
    vma = world.mmap(mapping)
    world.mm.remove_vma(vma)
    at = vma.vm_start
    world.mm.mmap(
        mapping, nr_pages=1, pgoff=Pgoff(0), vm_flags=VM_READ, vm_ops=vma.vm_ops, address=at
    )
    other = world.mmap(mapping)
    assert other.vm_start != at
    assert pte_pfn(world.pte(other, 0)) == 0
    assert fault(other, 0)
    world.check()


def test_locked_area_is_faulted_in(world: World):
    file = ReadOnlyFile(world.fs.make_file({0: 3}))
    address = do_mmap(world.mm, file, nr_pages=1, prot=VM_READ, shared=True, lock=True)
    vma = world.mm.find_vma(Vaddr(address))
    assert vma is not None
    assert vma.vm_flags & VM_LOCKED


@pytest.mark.parametrize("arch", [get_arch("um-special", "6.1")])
def test_advice_on_merging_passes_over_special_areas(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_RW)
    assert do_madvise(world.mm, vma.vm_start, 1, Advice.MERGEABLE) == 0
    assert vma.vm_flags == SHARED_RW


@pytest.mark.parametrize("arch", [get_arch("x86", "6.1")])
def test_pte_without_read_permission_gets_no_write_bit(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RW)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    assert do_mprotect(world.mm, vma.vm_start, 1, 0) == 0
    assert not pte_write(world.pte(vma, 0))
    assert do_mprotect(world.mm, vma.vm_start, 1, VM_READ | VM_WRITE) == 0
    assert pte_write(world.pte(vma, 0))


def test_an_area_follows_its_file_and_keeps_its_ptes(world: World):
    mapping = world.fs.make_file({i: 10 + i for i in range(8)}, nr_pages=2)
    vma = world.mmap(mapping)
    neighbour = world.mmap(world.fs.make_file({0: 3}))
    assert expand_to_file(vma) is vma, "it has not grown"
    pfns = [access_page(vma, Pgoff(i)) for i in range(2)]
    mapping.i_size_bytes = 5 * PAGE_SIZE
    moved = expand_to_file(vma)
    assert mapping.i_mmap == [moved]
    assert moved is not vma
    assert moved.nr_pages == 10
    assert [world.pte(moved, i) >> 12 for i in range(2)] == pfns
    assert access_page(moved, Pgoff(4)) == NVRAM_PFN_START + 14
    assert fault(moved, 5) is FaultResult.SIGBUS
    mapping.i_size_bytes = 8 * PAGE_SIZE
    assert expand_to_file(moved) is moved, "there was room"
    mapping.i_size_bytes = 40 * PAGE_SIZE
    assert expand_to_file(moved) is moved, "nothing stands behind it"
    assert moved.nr_pages == 80, "and room for more"
    assert neighbour.nr_pages == 1
    world.check()


def test_an_area_that_can_follow_its_file_nowhere(world: World, monkeypatch):
    mapping = world.fs.make_file({0: 3}, nr_pages=1)
    vma = world.mmap(mapping)
    world.mmap(world.fs.make_file({0: 4}))
    mapping.i_size_bytes = 5 * PAGE_SIZE
    monkeypatch.setattr("xipfs.mm.vma._TASK_SIZE", 0)
    with pytest.raises(OutOfFramesError, match="no address range for 5 pages"):
        expand_to_file(vma)
    assert mapping.i_mmap == [vma]
    world.check()
