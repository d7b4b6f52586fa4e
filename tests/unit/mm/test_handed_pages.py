"""fault: pages that ->fault hands over, hooks of shared ones, and anonymous pages used in place."""

from collections.abc import Callable

import pytest

from tests.kit.mm import PRIVATE_RW, SHARED_RW, World, at_step, block_bytes, fault
from xipfs.errors import BugError
from xipfs.mm.access import user_load, user_store
from xipfs.mm.arch import get_arch
from xipfs.mm.fault import finish_fault, handle_mm_fault_range
from xipfs.mm.fork import dup_mm
from xipfs.mm.mem_map import PAGE_ANON_EXCLUSIVE, PG_DIRTY
from xipfs.mm.mmap import exit_mmap
from xipfs.mm.pgtable import PMD_SHIFT, PTE_RW, pte_index, pte_pfn, pte_write
from xipfs.mm.vm_fault import (
    FAULT_FLAG_UNSHARE,
    FAULT_FLAG_WRITE,
    FaultResult,
    VmFault,
    VmOperations,
)
from xipfs.mm.vma import VM_READ, VM_SHARED, VM_XIP_FILE, Mm, Vma
from xipfs.units import PAGE_SIZE, Pfn, Pgoff

OOM, SIGBUS, NOPAGE, DONE = (
    FaultResult.OOM,
    FaultResult.SIGBUS,
    FaultResult.NOPAGE,
    FaultResult.DONE,
)
WRITE = FAULT_FLAG_WRITE


class Handing(VmOperations):
    """Hands the same page over at each fault, as the page cache does."""

    def __init__(self, world: World) -> None:
        self.mem_map = world.machine.mem_map
        self.page = Pfn(self.mem_map.alloc_page())
        world.machine.physmem.frame(self.page)[:] = block_bytes(9)
        self.result = FaultResult.DONE
        self.asked = 0

    def fault(self, vmf: VmFault) -> FaultResult:
        if not self.result:
            self.mem_map.get_page(self.page)
            vmf.page = self.page
        return self.result

    def answer(self, result: FaultResult) -> Callable[[VmFault], FaultResult]:
        def mkwrite(vmf: VmFault) -> FaultResult:
            self.asked += 1
            return result

        return mkwrite


@pytest.fixture
def vm_ops(world: World) -> Handing:
    return Handing(world)


def mmap(world: World, vm_ops: VmOperations, vm_flags: int, nr_pages: int = 2) -> Vma:
    mapping = world.fs.make_file({}, nr_pages=nr_pages, read_only=False)
    return world.mmap(mapping, vm_flags=vm_flags, vm_ops=vm_ops)


def dirty(vma: Vma, pgoff: int) -> bool:
    address = vma.address(Pgoff(pgoff))
    leaf = vma.vm_mm.page_table.leaves[address >> PMD_SHIFT]
    return bool(leaf.dirty_bytes[pte_index(address)])


def test_page_handed_over_is_mapped_with_its_reference(world: World, vm_ops: Handing):
    vma = mmap(world, vm_ops, VM_XIP_FILE)
    assert fault(vma, 1) == DONE
    assert world.counts(vm_ops.page) == (2, 1, 1, 0)
    world.check(pins=[vm_ops.page])


def test_fault_that_hands_nothing_over_is_a_bug(world: World):
    class Silent(VmOperations):
        def fault(self, vmf: VmFault) -> FaultResult:
            return DONE

    with pytest.raises(BugError, match="neither mapped a page nor returned one"):
        fault(mmap(world, Silent(), VM_XIP_FILE), 0)
    assert fault(mmap(world, VmOperations(), VM_XIP_FILE), 0) == SIGBUS, "the default"


def test_private_write_copies_it_at_once(world: World, vm_ops: Handing):
    vma = mmap(world, vm_ops, PRIVATE_RW)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    assert world.machine.vmstat.pgfault == 1
    assert user_load(world.mm, vma.vm_start, PAGE_SIZE) == b"mine" + block_bytes(9)[4:]
    assert world.counts(vm_ops.page) == (1, 0, 0, 1)
    world.check(pins=[vm_ops.page])


def test_private_write_without_a_frame_is_oom(world: World, vm_ops: Handing):
    vma = mmap(world, vm_ops, PRIVATE_RW)
    fault(vma, 1)
    mem_map = world.machine.mem_map
    taken = [mem_map.alloc_page() for _ in range(mem_map.nr_free)]
    assert fault(vma, 0, WRITE) == OOM
    assert fault(vma, 1, WRITE) == OOM, "a copy of what is mapped"
    world.check(pins=[vm_ops.page, *taken])
    bare = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RW)
    assert fault(bare, 0) == NOPAGE
    assert fault(bare, 0, WRITE) == OOM, "nor of a page without struct page"
    vm_ops.mem_map.put_page(taken[0])
    vm_ops.result = SIGBUS
    assert fault(vma, 0, WRITE) == SIGBUS
    world.check(pins=[vm_ops.page, *taken[1:]])


def test_shared_write_is_dirty_at_once(world: World, vm_ops: Handing):
    vma = mmap(world, vm_ops, SHARED_RW)
    assert fault(vma, 0, WRITE) == DONE
    assert pte_write(world.pte(vma, 0))
    assert dirty(vma, 0)
    assert world.machine.mem_map.page_flags(vm_ops.page) & PG_DIRTY
    vm_ops.result = OOM
    assert fault(vma, 1, WRITE) == OOM
    vm_ops.result = DONE
    world.check(pins=[vm_ops.page])


@pytest.mark.parametrize("result", [DONE, NOPAGE, SIGBUS])
@pytest.mark.parametrize("mapped_first", [False, True])
def test_page_mkwrite_is_asked_before_the_pte_is_writable(
    world: World, vm_ops: Handing, result: FaultResult, mapped_first: bool
):
    vm_ops.page_mkwrite = vm_ops.answer(result)
    vma = mmap(world, vm_ops, SHARED_RW)
    if mapped_first:
        assert fault(vma, 0) == DONE
    expected = result
    if result == DONE and mapped_first and world.machine.arch.is_2008:
        expected = FaultResult.WRITE
    assert fault(vma, 0, WRITE) == expected
    assert vm_ops.asked == 1
    assert pte_write(world.pte(vma, 0)) is (result == DONE)
    assert bool(world.machine.mem_map.page_flags(vm_ops.page) & PG_DIRTY) is (result == DONE)
    world.check(pins=[vm_ops.page])


def test_shared_page_without_hook_becomes_writable_and_dirty(world: World, vm_ops: Handing):
    vma = mmap(world, vm_ops, SHARED_RW)
    vma.vm_page_prot &= ~PTE_RW
    assert fault(vma, 0) == DONE
    assert not pte_write(world.pte(vma, 0))
    assert not fault(vma, 0, WRITE) & (OOM | SIGBUS | NOPAGE)
    assert pte_write(world.pte(vma, 0))
    assert world.machine.mem_map.page_flags(vm_ops.page) & PG_DIRTY
    world.check(pins=[vm_ops.page])


@pytest.mark.parametrize("flags", [0, WRITE])
def test_fault_that_comes_second_gives_its_page_back(world: World, vm_ops: Handing, flags: int):
    vma = mmap(world, vm_ops, SHARED_RW)
    with at_step("finish_fault: map", lambda: fault(vma, 0)):
        assert fault(vma, 0, flags) == NOPAGE
    assert world.counts(vm_ops.page) == (2, 1, 1, 0)
    world.check(pins=[vm_ops.page])


def test_no_memory_for_a_page_table_gives_the_page_back(world: World, vm_ops: Handing):
    vma = mmap(world, vm_ops, SHARED_RW)
    world.mm.page_table.nr_leaves_max = 0
    assert fault(vma, 0) == OOM
    page = vm_ops.page
    vm_ops.mem_map.get_page(page)
    assert finish_fault(VmFault(vma, vma.vm_start, Pgoff(0), 0), page) == OOM
    xip = world.mmap(world.fs.make_file({0: 3}))
    assert handle_mm_fault_range(xip, xip.vm_start, 1) == OOM
    world.check(pins=[page])


def test_range_of_a_file_that_hands_pages_over_goes_one_by_one(world: World, vm_ops: Handing):
    vma = mmap(world, vm_ops, VM_READ | VM_SHARED, nr_pages=3)
    assert fault(vma, 1) == DONE
    assert handle_mm_fault_range(vma, vma.vm_start, 3) == NOPAGE
    assert world.machine.vmstat.pgfault == 3
    assert world.counts(vm_ops.page) == (4, 3, 3, 0)
    world.check(pins=[vm_ops.page])


def test_write_through_a_writable_pte_marks_it(world: World, vm_ops: Handing):
    vma = mmap(world, vm_ops, SHARED_RW)
    assert fault(vma, 0) == DONE
    assert not dirty(vma, 0)
    assert fault(vma, 0, WRITE) == DONE
    assert dirty(vma, 0)


# --- anonymous pages ---

ARCH_ERAS = [get_arch("generic"), get_arch("x86", "6.1")]


@pytest.mark.parametrize("arch", ARCH_ERAS, ids=lambda arch: arch.version)
def test_copy_is_used_in_place_once_nobody_shares_it(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RW)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    page = pte_pfn(world.pte(vma, 0))
    child = dup_mm(world.mm)
    assert isinstance(child, Mm)
    assert not world.machine.mem_map.page_flags(page) & PAGE_ANON_EXCLUSIVE or (
        world.machine.arch.is_2008
    )
    exit_mmap(child)
    assert not pte_write(world.pte(vma, 0))
    assert user_store(world.mm, vma.vm_start, b"again") is None
    assert pte_pfn(world.pte(vma, 0)) == page
    world.check()


@pytest.mark.parametrize("arch", ARCH_ERAS[1:], ids=lambda arch: arch.version)
def test_unsharing_copies_a_shared_page_and_leaves_an_own_one(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RW)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    page = pte_pfn(world.pte(vma, 0))
    child = dup_mm(world.mm)
    assert isinstance(child, Mm)
    world.mms.append(child)
    assert fault(vma, 0, FAULT_FLAG_UNSHARE) == DONE
    pte = world.pte(vma, 0)
    assert pte_pfn(pte) != page
    assert not pte_write(pte), "unsharing is no write"
    assert fault(vma, 0, FAULT_FLAG_UNSHARE) == DONE
    assert world.pte(vma, 0) == pte, "our own by now"
    assert fault(vma, 0, WRITE) == DONE
    assert world.pte(vma, 0) == pte | PTE_RW
    assert user_load(world.mm, vma.vm_start, 4) == b"mine"
    world.check()
