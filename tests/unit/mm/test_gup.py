"""get_user_pages: force, pins, unsharing, populating. Special pages are in tests/conformance."""

import errno

import numpy as np
import pytest

from tests.kit.mm import PRIVATE_RW, SHARED_RW, World, archs, block_bytes, fault
from xipfs.mm.access import user_load, user_store
from xipfs.mm.arch import get_arch
from xipfs.mm.fork import dup_mm
from xipfs.mm.gup import (
    FOLL_FAST_ONLY,
    FOLL_FORCE,
    FOLL_LONGTERM,
    FOLL_PIN,
    FOLL_WRITE,
    check_vma_flags,
    get_user_pages,
    get_user_pages_fast,
    mm_populate,
    populate_vma_page_range,
    put_user_page,
)
from xipfs.mm.mem_map import GUP_PIN_COUNTING_BIAS, PG_DIRTY
from xipfs.mm.migrate import promote_pages
from xipfs.mm.mixedmap import vmf_insert_mixed
from xipfs.mm.pgtable import pte_pfn, pte_write
from xipfs.mm.vm_fault import FaultResult
from xipfs.mm.vma import (
    VM_IO,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Mm,
    Vma,
)
from xipfs.units import PAGE_SIZE, Pfn, Vaddr

PRIVATE_RO = PRIVATE_RW & ~VM_WRITE

in_2008 = pytest.mark.parametrize("arch", [get_arch("generic"), get_arch("x86", "2.6.28")])
now = pytest.mark.parametrize("arch", [get_arch("generic", "6.1"), get_arch("x86", "6.1")])


def get(vma: Vma, flags: int) -> tuple[int, list[Pfn]]:
    pages: list[Pfn] = []
    return get_user_pages(vma.vm_mm, vma.vm_start, 1, flags, pages), pages


def private(world: World, vm_flags: int = PRIVATE_RW) -> Vma:
    return world.mmap(world.fs.make_file({0: 3}), vm_flags=vm_flags)


def test_what_is_not_mapped_or_allowed_is_efault(world: World):
    vma = private(world, PRIVATE_RO)
    assert get_user_pages(world.mm, vma.vm_end, 1, 0, []) == -errno.EFAULT
    assert get(vma, FOLL_WRITE) == (-errno.EFAULT, [])
    past_end = world.mmap(world.fs.make_file({}), nr_pages=1)
    assert get(past_end, 0) == (-errno.EFAULT, [])
    world.mm.page_table.nr_leaves_max = 0
    assert get(private(world), 0) == (-errno.ENOMEM, [])


@in_2008
def test_force_of_2008_copies_and_reads_the_copy(world: World):
    vma = private(world, PRIVATE_RO)
    got, pages = get(vma, FOLL_WRITE | FOLL_FORCE)
    assert got == 1
    assert not pte_write(world.pte(vma, 0))
    assert pages == [pte_pfn(world.pte(vma, 0))]
    put_user_page(world.mm, pages[0], FOLL_WRITE, dirty=True)
    assert world.machine.mem_map.page_flags(pages[0]) & PG_DIRTY
    world.check()


@now
def test_force_goes_through_a_read_only_pte_to_our_own_copy_only(world: World):
    vma = private(world, PRIVATE_RO)
    got, pages = get(vma, FOLL_WRITE | FOLL_FORCE)
    assert got == 1
    assert not pte_write(world.pte(vma, 0))
    assert get(vma, FOLL_WRITE | FOLL_FORCE) == (1, pages), "the same once more"
    for _ in range(2):
        put_user_page(world.mm, pages[0], 0)
    writable = private(world)
    assert fault(writable, 0) == FaultResult.NOPAGE
    got, pages = get(writable, FOLL_WRITE | FOLL_FORCE)
    assert got == 1, "no force needed"
    put_user_page(world.mm, pages[0], 0)
    world.check()


@pytest.mark.parametrize("vm_flags", [VM_READ, VM_MAYREAD, VM_MAYWRITE, VM_IO | VM_READ, 0])
@archs(lambda arch: arch.name == "generic")
def test_flags_of_an_area_decide_first(world: World, vm_flags: int):
    vma = private(world, vm_flags)
    is_io = vm_flags & VM_IO
    ok = {flags: check_vma_flags(vma, flags) == 0 for flags in (0, 1, FOLL_FORCE, FOLL_FORCE | 1)}
    assert ok == {
        0: bool(vm_flags & VM_READ) and not is_io,
        FOLL_WRITE: False,
        FOLL_FORCE: bool(vm_flags & (VM_READ | VM_MAYREAD)) and not is_io,
        FOLL_FORCE | FOLL_WRITE: bool(vm_flags & VM_MAYWRITE),
    }


@archs(lambda arch: arch.name == "generic")
def test_force_writes_to_a_shared_area_in_2008_only(world: World):
    vma = private(world, VM_SHARED | VM_MAYSHARE | VM_MAYWRITE | VM_READ | VM_MIXEDMAP)
    allowed = check_vma_flags(vma, FOLL_WRITE | FOLL_FORCE) == 0
    assert allowed is world.machine.arch.is_2008


@now
@pytest.mark.parametrize("fast", [False, True])
def test_pin_of_a_shared_copy_unshares_it_first(world: World, fast: bool):
    vma = private(world)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    page = pte_pfn(world.pte(vma, 0))
    child = dup_mm(world.mm)
    assert isinstance(child, Mm)
    world.mms.append(child)
    pages: list[Pfn] = []
    if fast:
        assert get_user_pages_fast(child, vma.vm_start, 1, FOLL_PIN | FOLL_FAST_ONLY, pages) == 0
        assert get_user_pages_fast(child, vma.vm_start, 1, FOLL_PIN, pages) == 1
    else:
        assert get_user_pages(child, vma.vm_start, 1, FOLL_PIN, pages) == 1
    assert pages != [page]
    assert world.machine.mem_map.page_count(pages[0]) == 1 + GUP_PIN_COUNTING_BIAS
    put_user_page(child, pages[0], FOLL_PIN)
    # One's own page is pinned where it is.
    assert get_user_pages_fast(child, vma.vm_start, 1, FOLL_PIN, pages) == 1
    assert pages[0] == pages[1]
    put_user_page(child, pages[1], FOLL_PIN)
    world.check()


@now
def test_page_pinned_is_copied_for_the_child_at_once(world: World):
    vma = private(world)
    got, pages = get(vma, FOLL_PIN | FOLL_WRITE)
    assert got == 1
    child = dup_mm(world.mm)
    assert isinstance(child, Mm)
    world.mms.append(child)
    assert pte_pfn(world.pte(vma, 0)) == pages[0]
    assert pte_write(world.pte(vma, 0)), "the parent's stays as it is"
    world.machine.physmem.frame(pages[0])[:4] = b"dma!"
    assert user_load(world.mm, vma.vm_start, 4) == b"dma!"
    assert user_load(child, vma.vm_start, PAGE_SIZE) == block_bytes(3)
    taken = [world.machine.mem_map.alloc_page() for _ in range(world.machine.mem_map.nr_free)]
    assert dup_mm(world.mm) == -errno.ENOMEM
    for page in taken:
        world.machine.mem_map.put_page(page)
    put_user_page(world.mm, pages[0], FOLL_PIN)
    world.check()


@now
def test_zero_page_can_be_got(world: World):
    vma = private(world)
    zero = world.machine.zero_pfn
    assert vmf_insert_mixed(vma, vma.vm_start, zero) == FaultResult.NOPAGE
    assert get(vma, 0) == (1, [zero])


def test_writing_marks_a_page_whose_pte_is_clean(world: World):
    """Nobody wrote through the pte, but the one who asks will write to the page."""
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_RW)
    promote_pages(world.machine, vma.vm_file, np.array([0]))
    frame = vma.vm_file.i_pages[0]
    assert get(vma, FOLL_WRITE) == (1, [frame])
    assert world.machine.mem_map.page_flags(frame) & PG_DIRTY
    world.check(pins=[frame])


def test_populating_writes_to_private_areas_and_passes_over_io(world: World):
    vma = private(world)
    other = world.mmap(world.fs.make_file({0: 4}), vm_flags=VM_IO | VM_READ)
    nr_pages = (other.vm_end - vma.vm_start) // PAGE_SIZE
    assert mm_populate(world.mm, vma.vm_start, nr_pages, ignore_errors=False) == 0
    assert world.mm.rss_anon == 1
    assert world.pte(other, 0) == 0
    hidden = private(world, 0)
    assert populate_vma_page_range(hidden, hidden.vm_start, hidden.vm_end) == -errno.EFAULT
    assert mm_populate(world.mm, hidden.vm_start, 1) == 0
    assert mm_populate(world.mm, hidden.vm_start, 1, ignore_errors=False) == -errno.EFAULT
    assert populate_vma_page_range(vma, vma.vm_start, Vaddr(vma.vm_end), flags=0) == 1
    world.check()


@now
def test_long_term_pin_of_6_1_does_not_mark_a_special_pte_as_used(world: World):
    vma = private(world)
    assert fault(vma, 0) == FaultResult.NOPAGE
    (leaf,) = world.mm.page_table.leaves.values()
    assert get(vma, FOLL_PIN | FOLL_LONGTERM) == (-errno.EEXIST, [])
    assert not leaf.accessed.any()
    assert get(vma, FOLL_PIN) == (-errno.EEXIST, [])
    assert leaf.accessed.any()
