"""What Linux does with a VM_MIXEDMAP area: how pages enter, and how a pte tells what it maps.

A case is numbered, and named by what the kernel does; it is played on every architecture and
version that it applies to. The others are in test_faults, test_fork, test_zap, test_gup and
test_accounting.
"""

import errno
from collections.abc import Callable

import numpy as np
import pytest

from tests.kit.mm import (
    BARE,
    PRIVATE_RW,
    SHARED_RW,
    ZEROS,
    World,
    archs,
    at_step,
    block_bytes,
    fault,
)
from xipfs.errors import BugError
from xipfs.mm.access import access_page, access_range, user_load, user_store
from xipfs.mm.filemap_xip import xip_file_fault
from xipfs.mm.mem_map import PAGE_ANON, PAGE_TYPED
from xipfs.mm.migrate import promote_pages
from xipfs.mm.mixedmap import (
    vm_insert_mixed,
    vm_insert_page,
    vm_insert_pfn,
    vm_normal_page,
    vmf_insert_mixed,
    vmf_insert_mixed_mkwrite,
    vmf_insert_page_mkwrite,
    vmf_insert_pfn,
)
from xipfs.mm.mmap import munmap
from xipfs.mm.pfn_valid import ListMem
from xipfs.mm.pgtable import (
    PMD_SHIFT,
    PTE_PRESENT,
    PTE_SPECIAL,
    mk_pte,
    pte_index,
    pte_pfn,
    pte_present,
    pte_special,
    pte_write,
)
from xipfs.mm.proc import vm_flag_names
from xipfs.mm.remap import remap_pfn_range
from xipfs.mm.vm_fault import FaultResult, VmFault
from xipfs.mm.vma import (
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Vma,
)
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, Pfn, Pgoff, Vaddr

SIGBUS, OOM, NOPAGE = FaultResult.SIGBUS, FaultResult.OOM, FaultResult.NOPAGE

SHARED_PFNMAP = VM_READ | VM_SHARED | VM_MAYSHARE | VM_PFNMAP
PRIVATE_PFNMAP = VM_READ | VM_WRITE | VM_MAYWRITE | VM_PFNMAP

in_2008 = archs(lambda arch: arch.is_2008)
now = archs(lambda arch: not arch.is_2008)
in_6_18 = archs(lambda arch: arch.is_6_18)
with_bit = archs(lambda arch: arch.pte_special)
without_bit = archs(lambda arch: not arch.pte_special)


def used(vma: Vma, pgoff: int) -> tuple[int, int]:
    """Return (accessed, dirty) of a page's pte."""
    address = vma.address(Pgoff(pgoff))
    leaf = vma.vm_mm.page_table.leaves[address >> PMD_SHIFT]
    index = pte_index(address)
    return leaf.accessed_bytes[index], leaf.dirty_bytes[index]


# --- Insertion ---


def test_01_vma_without_mixedmap_is_a_bug(world: World, frame: Pfn):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=VM_READ)
    for pfn in (BARE, frame):
        with pytest.raises(BugError, match="vm_insert_mixed needs VM_MIXEDMAP"):
            vm_insert_mixed(vma, vma.vm_start, pfn)
    assert world.pte(vma, 0) == 0


@now
def test_01_vma_without_mixedmap_is_sigbus_in_6_18(world: World, frame: Pfn):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=VM_READ)
    for pfn in (BARE, frame):
        for insert in (vmf_insert_mixed, vmf_insert_mixed_mkwrite):
            if world.machine.arch.is_6_18:
                assert insert(vma, vma.vm_start, pfn) == SIGBUS
            else:
                with pytest.raises(BugError, match="vmf_insert_mixed needs VM_MIXEDMAP"):
                    insert(vma, vma.vm_start, pfn)
    assert world.pte(vma, 0) == 0
    assert vmf_insert_mixed(vma, vma.vm_start, world.machine.zero_pfn) == NOPAGE, "but zeros may"


def test_02_address_outside_of_the_vma_is_efault(world: World, vma: Vma, frame: Pfn):
    for insert, pfn in ((vm_insert_mixed, BARE), (vm_insert_mixed, frame), (vm_insert_page, frame)):
        for address in (vma.vm_end, vma.vm_start - PAGE_SIZE):
            assert insert(vma, Vaddr(address), pfn) == -errno.EFAULT
    assert not world.mm.page_table.leaves
    assert world.counts(frame) == (1, 0, 0, 0)
    assert vm_insert_mixed(vma, Vaddr(vma.vm_end - PAGE_SIZE), BARE) == 0


@now
def test_02_address_outside_of_the_vma_is_sigbus(world: World, vma: Vma, frame: Pfn):
    for address in (vma.vm_end, Vaddr(vma.vm_start - PAGE_SIZE)):
        for pfn in (BARE, frame):
            assert vmf_insert_mixed(vma, address, pfn) == SIGBUS
            assert vmf_insert_mixed_mkwrite(vma, address, pfn) == SIGBUS
        assert vmf_insert_pfn(vma, address, BARE) == SIGBUS
        assert vmf_insert_page_mkwrite(vma, address, frame, write=True) == SIGBUS
    assert not world.mm.page_table.leaves
    assert vmf_insert_mixed(vma, Vaddr(vma.vm_end - PAGE_SIZE), BARE) == NOPAGE


@pytest.mark.parametrize("insert", [vm_insert_mixed, vm_insert_pfn])
def test_03_page_without_struct_page_is_mapped_and_not_counted(
    world: World, vma: Vma, insert: Callable[[Vma, Vaddr, Pfn], int]
):
    assert insert(vma, vma.vm_start, BARE) == 0
    pte = world.pte(vma, 0)
    assert (pte_present(pte), pte_pfn(pte)) == (True, BARE)
    assert pte_special(pte) is world.machine.arch.pte_special
    assert world.mm.rss_file == 0
    world.check()


@without_bit
def test_04_page_with_struct_page_is_counted_without_a_special_bit(
    world: World, vma: Vma, frame: Pfn
):
    assert vm_insert_mixed(vma, vma.vm_start, frame) == 0
    assert (pte_pfn(world.pte(vma, 0)), pte_special(world.pte(vma, 0))) == (frame, False)
    assert world.counts(frame) == (2, 1, 1, 0)
    world.check(pins=[frame])


@with_bit
def test_05_page_with_struct_page_is_special_and_not_counted_with_the_bit(
    world: World, vma: Vma, frame: Pfn
):
    assert vm_insert_mixed(vma, vma.vm_start, frame) == 0
    assert (pte_pfn(world.pte(vma, 0)), pte_special(world.pte(vma, 0))) == (frame, True)
    assert world.counts(frame) == (1, 0, 0, 0)
    world.check(pins=[frame])


def test_06_no_insertion_overwrites_a_pte_not_even_with_itself(world: World, vma: Vma, frame: Pfn):
    vm_insert_mixed(vma, vma.address(Pgoff(0)), BARE)
    vm_insert_page(vma, vma.address(Pgoff(1)), frame)
    before = world.counts(frame)
    for pgoff in (0, 1):
        pte = world.pte(vma, pgoff)
        address = vma.address(Pgoff(pgoff))
        for insert, pfn in (
            (vm_insert_mixed, BARE),
            (vm_insert_mixed, Pfn(BARE + 1)),
            (vm_insert_mixed, frame),
            (vm_insert_pfn, BARE),
            (vm_insert_page, frame),
            (vm_insert_page, world.machine.sparse_pfn),
        ):
            assert insert(vma, address, pfn) == -errno.EBUSY
            assert world.pte(vma, pgoff) == pte
        for pfn in (BARE, Pfn(BARE + 1), frame):
            assert vmf_insert_mixed(vma, address, pfn) == NOPAGE, "a fault is content"
            assert world.pte(vma, pgoff) == pte
    assert world.counts(frame) == before
    world.check(pins=[frame])


def test_07_no_memory_for_a_page_table_is_enomem(world: World, vma: Vma, frame: Pfn):
    world.mm.page_table.nr_leaves_max = 0
    address = vma.vm_start
    for insert, pfn in (
        (vm_insert_mixed, BARE),
        (vm_insert_mixed, frame),
        (vm_insert_page, frame),
        (vm_insert_pfn, BARE),
    ):
        assert insert(vma, address, pfn) == -errno.ENOMEM
    for vmf_insert, pfn in (
        (vmf_insert_mixed, BARE),
        (vmf_insert_mixed, frame),
        (vmf_insert_mixed_mkwrite, BARE),
        (vmf_insert_pfn, BARE),
    ):
        assert vmf_insert(vma, address, pfn) == OOM
    assert vmf_insert_page_mkwrite(vma, address, frame, write=False) == OOM
    assert fault(vma, 0) == OOM
    assert world.counts(frame) == (1, 0, 0, 0)
    assert not world.mm.page_table.leaves
    world.check(pins=[frame])


@pytest.mark.parametrize("insert", [vm_insert_pfn, vmf_insert_pfn])
def test_08_bare_pfn_needs_pfnmap_or_mixedmap_and_not_both(
    world: World, insert: Callable[[Vma, Vaddr, Pfn], int]
):
    mapping = world.fs.make_file({0: 3})
    neither = world.mmap(mapping, vm_flags=VM_READ)
    with pytest.raises(BugError, match="vm_insert_pfn needs VM_PFNMAP or VM_MIXEDMAP"):
        insert(neither, neither.vm_start, BARE)
    both = world.mmap(mapping, vm_flags=VM_READ | VM_PFNMAP | VM_MIXEDMAP)
    with pytest.raises(BugError, match="VM_PFNMAP and VM_MIXEDMAP"):
        insert(both, both.vm_start, BARE)
    assert not world.mm.page_table.leaves


@pytest.mark.parametrize("insert", [vm_insert_pfn, vmf_insert_pfn])
def test_09_bare_pfn_in_a_private_pfnmap_or_with_a_struct_page_in_a_mixed_map_is_a_bug(
    world: World, vma: Vma, frame: Pfn, insert: Callable[[Vma, Vaddr, Pfn], int]
):
    private = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_PFNMAP)
    with pytest.raises(BugError, match="vm_insert_pfn: private"):
        insert(private, private.vm_start, BARE)
    with pytest.raises(BugError, match="vm_insert_pfn of a pfn with struct page"):
        insert(vma, vma.vm_start, frame)
    shared = world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_PFNMAP)
    assert insert(shared, shared.vm_start, frame) in (0, NOPAGE), "such as /dev/mem does"
    assert world.counts(frame) == (1, 0, 0, 0)
    world.check(pins=[frame])


def test_10_page_path_counts_and_refuses_in_its_order(world: World, vma: Vma, frame: Pfn):
    mem_map = world.machine.mem_map
    free = Pfn(8)
    assert mem_map.page_count(free) == 0
    assert vm_insert_page(vma, vma.vm_end, free) == -errno.EFAULT, "range before references"
    assert vm_insert_page(vma, vma.vm_start, free) == -errno.EINVAL
    assert vm_insert_page(vma, vma.vm_start, frame) == 0
    assert world.counts(frame) == (2, 1, 1, 0)
    assert not pte_special(world.pte(vma, 0))
    assert vm_insert_page(vma, vma.vm_start, free) == -errno.EINVAL, "references before busy"
    assert vm_insert_page(vma, vma.vm_start, frame) == -errno.EBUSY
    assert world.counts(frame) == (2, 1, 1, 0)
    world.check(pins=[frame])


@pytest.mark.parametrize("flag", [PAGE_ANON, PAGE_TYPED])
def test_10_page_path_refuses_anonymous_and_typed_pages_before_it_looks_at_the_pte(
    world: World, vma: Vma, frame: Pfn, flag: int
):
    vm_insert_mixed(vma, vma.vm_start, BARE)
    world.machine.mem_map.set_page_flags(frame, flag)
    assert vm_insert_page(vma, vma.vm_start, frame) == -errno.EINVAL
    world.mm.page_table.nr_leaves_max = 1
    far = world.mmap(world.fs.make_file({}, nr_pages=512))
    assert vm_insert_page(far, far.vm_start, frame) == -errno.EINVAL, "and before it takes memory"
    assert world.counts(frame) == (1, 0, 0, 0)


def test_10_page_path_maps_one_page_many_times(world: World, vma: Vma, frame: Pfn):
    for pgoff in range(4):
        assert vm_insert_page(vma, vma.address(Pgoff(pgoff)), frame) == 0
    assert world.counts(frame) == (5, 4, 4, 0)
    world.check(pins=[frame])


@now
def test_10_zero_page_enters_by_the_page_path_where_nobody_could_write_to_it(world: World):
    zero = world.machine.zero_pfn
    is_6_18 = world.machine.arch.is_6_18
    has_bit = world.machine.arch.pte_special
    shared = world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_RW)
    private = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RW)
    before = world.counts(zero)
    assert vm_insert_page(shared, shared.vm_start, zero) == (-errno.EINVAL if is_6_18 else 0)
    assert vm_insert_page(private, private.vm_start, zero) == 0
    assert pte_special(world.pte(private, 0)) is (is_6_18 and has_bit)
    if is_6_18:
        assert world.counts(zero) == before
        assert vm_normal_page(private, private.vm_start, world.pte(private, 0)) is None
    else:
        assert world.counts(zero) == (before[0] + 2, 2, 2, 0)


@now
def test_11_page_path_makes_an_area_mixed_under_mmap_lock_only(world: World, frame: Pfn):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=VM_READ)
    with pytest.raises(BugError, match="vm_insert_page in a fault"):
        vm_insert_page(vma, vma.vm_start, frame)
    with world.mm.mmap_lock.read(), pytest.raises(BugError, match="vm_insert_page in a fault"):
        vm_insert_page(vma, vma.vm_start, frame)
    assert "mm" not in vm_flag_names(vma.vm_flags)
    with world.mm.mmap_lock.write():
        assert vm_insert_page(vma, vma.vm_start, frame) == 0
        pfnmap = world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_PFNMAP)
        with pytest.raises(BugError, match="vm_insert_page into VM_PFNMAP"):
            vm_insert_page(pfnmap, pfnmap.vm_start, frame)
    assert "mm" in vm_flag_names(vma.vm_flags)
    world.check(pins=[frame])


@in_2008
def test_11_page_path_of_2008_asks_for_no_lock_and_makes_nothing_mixed(world: World, frame: Pfn):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=VM_READ)
    assert vm_insert_page(vma, vma.vm_start, frame) == 0
    assert not vma.vm_flags & VM_MIXEDMAP
    world.check(pins=[frame])


@now
@pytest.mark.parametrize("vm_flags", [SHARED_RW, SHARED_RW & ~VM_WRITE], ids=["rw", "ro"])
def test_12_mkwrite_upgrades_the_pte_of_the_same_pfn(world: World, vm_flags: int):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=vm_flags)
    vma.vm_page_prot = PTE_PRESENT  # as for a file that wants to see first writes
    assert vmf_insert_mixed(vma, vma.vm_start, BARE) == NOPAGE
    pte = world.pte(vma, 0)
    assert (pte_write(pte), used(vma, 0)) == (False, (0, 0))
    for _ in range(2):
        assert vmf_insert_mixed_mkwrite(vma, vma.vm_start, BARE) == NOPAGE
        pte = world.pte(vma, 0)
        assert (pte_pfn(pte), used(vma, 0)) == (BARE, (1, 1))
        assert pte_write(pte) is bool(vm_flags & VM_WRITE)
        assert pte_special(pte) is world.machine.arch.pte_special
    assert world.machine.vmstat.xip_insert_pfn == 1


@now
def test_12_mkwrite_inserts_a_dirty_writable_pte_where_none_is(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_RW)
    vma.vm_page_prot = PTE_PRESENT
    assert vmf_insert_mixed_mkwrite(vma, vma.vm_start, BARE) == NOPAGE
    assert pte_write(world.pte(vma, 0))
    assert used(vma, 0)[1] == 1


@in_6_18
def test_12_mkwrite_of_a_counted_page_upgrades_and_counts_nothing_twice(world: World, frame: Pfn):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_RW)
    vma.vm_page_prot = PTE_PRESENT
    assert vmf_insert_page_mkwrite(vma, vma.vm_start, frame, write=False) == NOPAGE
    assert not pte_write(world.pte(vma, 0))
    assert vmf_insert_page_mkwrite(vma, vma.vm_start, frame, write=True) == NOPAGE
    assert pte_write(world.pte(vma, 0))
    assert used(vma, 0) == (1, 0), "young, and not dirtied here"
    assert world.counts(frame) == (2, 1, 1, 0)
    world.check(pins=[frame])


@archs(lambda arch: arch.version == "6.1" and not arch.pte_special)
def test_12_mkwrite_of_6_1_does_not_reach_the_page_path(world: World, frame: Pfn):
    """A page that pfn_valid knows became writable: 6.1 has no mkwrite in insert_page yet."""
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_RW)
    vma.vm_page_prot = PTE_PRESENT
    for _ in range(2):
        assert vmf_insert_mixed_mkwrite(vma, vma.vm_start, frame) == NOPAGE
        assert not pte_write(world.pte(vma, 0))
    assert world.counts(frame) == (2, 1, 1, 0)


@now
def test_13_mkwrite_over_another_pfn_changes_nothing_and_warns(
    world: World, expected_logs: Callable[[str], None]
):
    expected_logs(f"mkwrite of pfn {BARE + 1:#x} where {BARE:#x} is mapped")
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_RW)
    vmf_insert_mixed(vma, vma.vm_start, BARE)
    pte = world.pte(vma, 0)
    assert vmf_insert_mixed_mkwrite(vma, vma.vm_start, Pfn(BARE + 1)) == NOPAGE
    assert (world.pte(vma, 0), used(vma, 0)) == (pte, (0, 0))


@now
def test_13_mkwrite_over_the_zero_page_changes_nothing_silently(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RW)
    assert vmf_insert_mixed(vma, vma.vm_start, world.machine.zero_pfn) == NOPAGE
    pte = world.pte(vma, 0)
    assert vmf_insert_mixed_mkwrite(vma, vma.vm_start, BARE) == NOPAGE
    assert world.pte(vma, 0) == pte


@in_6_18
def test_13_mkwrite_of_a_counted_page_over_another_is_sigbus(
    world: World, frame: Pfn, expected_logs: Callable[[str], None]
):
    expected_logs(f"mkwrite of pfn {frame:#x} where {BARE:#x} is mapped")
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}), vm_flags=SHARED_RW)
    vmf_insert_mixed(vma, vma.vm_start, BARE)
    pte = world.pte(vma, 0)
    assert vmf_insert_page_mkwrite(vma, vma.vm_start, frame, write=True) == SIGBUS
    assert world.pte(vma, 0) == pte
    assert vmf_insert_page_mkwrite(vma, vma.vm_start, frame, write=False) == NOPAGE
    assert world.counts(frame) == (1, 0, 0, 0)


@now
def test_14_zero_page_is_never_inserted_for_writing(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RW)
    result = vmf_insert_mixed_mkwrite(vma, vma.vm_start, world.machine.zero_pfn)
    if world.machine.arch.is_6_18:
        assert (result, world.pte(vma, 0)) == (SIGBUS, 0)
    else:
        assert result == NOPAGE, "6.1 does not ask"
        assert pte_pfn(world.pte(vma, 0)) == world.machine.zero_pfn


@in_6_18
def test_14_zero_page_is_not_inserted_where_a_write_could_reach_it(world: World):
    zero = world.machine.zero_pfn
    shared = world.mmap(world.fs.make_file({0: 3}), vm_flags=SHARED_RW)
    assert vmf_insert_mixed(shared, shared.vm_start, zero) == SIGBUS
    readable = world.mmap(world.fs.make_file({0: 3}))
    assert vmf_insert_mixed(readable, readable.vm_start, zero) == NOPAGE


def test_15_fault_that_comes_second_finds_the_pte_and_is_content(world: World):
    """2.6.28 stopped with BUG_ON here; 3.14 knows that another fault may have been faster."""
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}, nr_pages=3))
    promote_pages(world.machine, vma.vm_file, np.array([1]))
    for pgoff in (0, 1, 2):  # in NVRAM, in RAM, and a hole
        assert fault(vma, pgoff) == NOPAGE
        pte = world.pte(vma, pgoff)
        vmf = VmFault(vma, vma.address(Pgoff(pgoff)), Pgoff(pgoff), flags=0)
        assert xip_file_fault(vmf) == NOPAGE
        assert world.pte(vma, pgoff) == pte
    assert world.machine.mem_map.page_mapcount(vma.vm_file.i_pages[1]) == 1
    assert world.machine.mem_map.page_mapcount(world.machine.sparse_pfn) == 1
    assert world.machine.vmstat.xip_insert_sparse == 1
    world.check()


@pytest.mark.parametrize(
    ("pgoff", "step"),
    [
        (0, "xip_file_fault: insert"),
        (1, "xip_file_fault: insert"),
        (2, "xip_file_fault: sparse"),
    ],
)
def test_15_two_faults_at_once_install_one_pte(world: World, pgoff: int, step: str):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}, nr_pages=3))
    promote_pages(world.machine, vma.vm_file, np.array([1]))
    results: list[FaultResult] = []
    with at_step(step, lambda: results.append(fault(vma, pgoff))):
        results.append(fault(vma, pgoff))
    assert results == [NOPAGE, NOPAGE]
    vmstat = world.machine.vmstat
    assert vmstat.xip_insert_pfn + vmstat.xip_insert_page == 1
    world.check()


# --- vm_normal_page ---


@with_bit
def test_16_special_pte_is_no_page_even_of_a_frame_with_struct_page(
    world: World, vma: Vma, frame: Pfn
):
    assert world.machine.pfn_valid(frame)
    pte = mk_pte(frame, PTE_PRESENT | PTE_SPECIAL)
    assert vm_normal_page(vma, vma.vm_start, pte) is None
    assert vm_normal_page(vma, vma.vm_start, mk_pte(frame, PTE_PRESENT)) == frame


@without_bit
def test_17_pfn_valid_tells_where_there_is_no_bit(world: World, vma: Vma, frame: Pfn):
    vm_insert_mixed(vma, vma.address(Pgoff(0)), frame)
    vm_insert_mixed(vma, vma.address(Pgoff(1)), BARE)
    assert vm_normal_page(vma, vma.vm_start, world.pte(vma, 0)) == frame
    assert vm_normal_page(vma, vma.vm_start, world.pte(vma, 1)) is None


def test_18_private_pfnmap_knows_its_pages_by_their_linear_place(world: World):
    """With a special bit that one tells; the answers are the same."""
    vma = world.mmap(world.fs.make_file({}, nr_pages=4), vm_flags=PRIVATE_PFNMAP)
    first = Pfn(NVRAM_PFN_START + 20)
    assert remap_pfn_range(vma, vma.vm_start, first, 4) == 0
    assert vma.vm_pgoff == first
    addresses = range(vma.vm_start, vma.vm_end, PAGE_SIZE)
    ptes = [world.mm.page_table.find_pte(Vaddr(address)) for address in addresses]
    assert [pte_pfn(pte) for pte in ptes] == list(range(first, first + 4))
    for address, pte in zip(addresses, ptes, strict=True):
        assert vm_normal_page(vma, Vaddr(address), pte) is None
    assert user_store(world.mm, Vaddr(vma.vm_start + PAGE_SIZE), b"mine") is None
    copy = world.mm.page_table.find_pte(Vaddr(vma.vm_start + PAGE_SIZE))
    page = vm_normal_page(vma, Vaddr(vma.vm_start + PAGE_SIZE), copy)
    assert page == pte_pfn(copy)
    assert world.counts(page) == (1, 1, 0, 1)
    assert world.page(page) == b"mine" + block_bytes(21)[4:]
    world.check()


def test_19_shared_pfnmap_has_no_pages_wherever_they_are(world: World, frame: Pfn):
    vma = world.mmap(world.fs.make_file({}, nr_pages=4), vm_flags=SHARED_PFNMAP)
    for pgoff in (frame, frame + 1):  # at its linear place and at another
        address = vma.address(Pgoff(pgoff))
        assert vm_insert_pfn(vma, address, frame) == 0
        assert vm_normal_page(vma, address, world.pte(vma, pgoff)) is None
    munmap(vma)
    assert world.counts(frame) == (1, 0, 0, 0)
    world.check(pins=[frame])


def test_20_pfn_valid_is_never_asked_where_there_is_a_bit(world: World, vma: Vma, frame: Pfn):
    pfn_valid = world.machine.pfn_valid
    asked = pfn_valid.nr_calls
    has_bit = world.machine.arch.pte_special
    for pte in (
        mk_pte(frame, PTE_PRESENT),
        mk_pte(BARE, PTE_PRESENT | (PTE_SPECIAL if has_bit else 0)),
    ):
        vm_normal_page(vma, vma.vm_start, pte)
    assert pfn_valid.nr_calls - asked == (0 if has_bit else 2)
    # Nor on the way of a page from the fault to the unmapping.
    asked = pfn_valid.nr_calls
    promote_pages(world.machine, vma.vm_file, np.array([1]))
    access_page(vma, Pgoff(0))
    access_range(vma, Pgoff(0), 8)
    munmap(vma)
    assert (pfn_valid.nr_calls > asked) is not has_bit
    assert pfn_valid.nr_locks == 0


def test_20_truthful_list_would_take_its_lock_at_each_pte(world: World, vma: Vma):
    """What the bit spares s390: the same pages, and no lock."""
    world.machine.pfn_valid = ListMem(world.machine.physmem.nr_ram_frames)
    for _ in range(3):
        access_range(vma, Pgoff(0), 8)
        munmap(world.mmap(vma.vm_file))
    munmap(vma)
    nr_locks = world.machine.pfn_valid.nr_locks
    assert nr_locks == (0 if world.machine.arch.pte_special else 8)


@with_bit
def test_21_ordinary_vma_has_no_special_ptes(world: World, expected_logs: Callable[[str], None]):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=VM_READ)
    pte = mk_pte(BARE, PTE_PRESENT | PTE_SPECIAL)
    if world.machine.arch.is_2008:
        with pytest.raises(BugError, match="a special pte in an ordinary vma"):
            vm_normal_page(vma, vma.vm_start, pte)
        return
    zero = mk_pte(world.machine.zero_pfn, PTE_PRESENT | PTE_SPECIAL)
    assert vm_normal_page(vma, vma.vm_start, zero) is None, "silently"
    expected_logs("bad page map")
    assert vm_normal_page(vma, vma.vm_start, pte) is None


# --- All of them ---


def test_what_a_program_reads_is_the_same_everywhere(world: World):
    mapping = world.fs.make_file({pgoff: pgoff + 20 for pgoff in range(6)}, nr_pages=8)
    vma = world.mmap(mapping)
    expected = [block_bytes(pgoff + 20) for pgoff in range(6)] + [ZEROS] * 2
    for pgoffs in ([], [1, 2, 5]):
        promote_pages(world.machine, mapping, np.array(pgoffs, np.int64))
        assert [world.page(access_page(vma, Pgoff(pgoff))) for pgoff in range(8)] == expected
        assert [world.page(pfn) for pfn in access_range(vma, Pgoff(0), 8).tolist()] == expected
        assert user_load(world.mm, vma.vm_start, 8 * PAGE_SIZE) == b"".join(expected)
        world.check()


def test_fault_names_the_page_by_offset_not_by_address(world: World):
    mapping = world.fs.make_file({pgoff: pgoff + 20 for pgoff in range(8)})
    vma = world.mmap(mapping, pgoff=4)
    assert xip_file_fault(VmFault(vma, vma.address(Pgoff(5)), Pgoff(5), flags=0)) == NOPAGE
    assert pte_pfn(world.pte(vma, 5)) == NVRAM_PFN_START + 25
