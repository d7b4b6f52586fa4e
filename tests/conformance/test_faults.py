"""Faults on memory files, case by case: the file's pages, holes, and private and shared writes."""

import errno
import os
from collections.abc import Callable, Iterator

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
    make_extent_file,
)
from xipfs.errors import DeviceError, FormatError, NoDataError
from xipfs.mm.access import access_page, access_range, user_load, user_store
from xipfs.mm.fadvise import xip_file_fadvise
from xipfs.mm.fault import finish_fault
from xipfs.mm.filemap_xip import xip_file_fault, xip_file_read, xip_file_write
from xipfs.mm.migrate import promote_pages
from xipfs.mm.mixedmap import vm_insert_mixed, vm_normal_page
from xipfs.mm.pgtable import pte_pfn, pte_special, pte_write
from xipfs.mm.vm_fault import (
    FAULT_FLAG_MKWRITE,
    FAULT_FLAG_WRITE,
    FaultResult,
    VmFault,
    VmOperations,
)
from xipfs.mm.vma import VM_MAYWRITE, VM_MIXEDMAP, VM_READ, VM_SHARED, VM_XIP_FILE
from xipfs.phys.nvram import NvramDevice
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, PAGE_SIZE, Pfn, Pgoff, Vaddr, virt_to_pfn

SIGBUS, OOM, NOPAGE, DONE = (
    FaultResult.SIGBUS,
    FaultResult.OOM,
    FaultResult.NOPAGE,
    FaultResult.DONE,
)

VM_FILLS_HOLES = VM_XIP_FILE | VM_SHARED | VM_MAYWRITE
PRIVATE_RO = VM_READ | VM_MAYWRITE | VM_MIXEDMAP
"""MAP_PRIVATE: may be written, but is not shared."""

in_2008 = archs(lambda arch: arch.is_2008)
now = archs(lambda arch: not arch.is_2008)


@pytest.fixture
def writable(world: World) -> Iterator[World]:
    """The same, over a region that takes stores: 64 blocks, each with its own bytes."""
    nvram = NvramDevice.scratch(64 << PAGE_SHIFT)
    for block in range(60):
        nvram.store_bytes(block << PAGE_SHIFT, block_bytes(block))
    writable = World(None, world.machine.arch, nvram=nvram)
    yield writable
    writable.close()
    nvram.close()


class Hooked(VmOperations):
    """A memory file that is asked before its shared pages become writable, and says *answer*."""

    def __init__(self, *hooks: str, answer: FaultResult = DONE) -> None:
        self.answer = answer
        self.calls: list[tuple[str, int]] = []
        for hook in hooks:
            setattr(self, hook, lambda vmf, hook=hook: self._asked(hook, vmf))

    def fault(self, vmf: VmFault) -> FaultResult:
        return xip_file_fault(vmf)

    def _asked(self, hook: str, vmf: VmFault) -> FaultResult:
        assert vmf.flags == FAULT_FLAG_WRITE | FAULT_FLAG_MKWRITE
        self.calls.append((hook, int(vmf.pgoff)))
        return self.answer


# --- Files ---


@pytest.mark.parametrize(
    ("size_bytes", "nr_pages"), [(0, 0), (1, 1), (4095, 1), (4096, 1), (4097, 2), (8192, 2)]
)
def test_22_last_page_maps_even_in_part_and_the_next_one_is_sigbus(
    world: World, size_bytes: int, nr_pages: int
):
    mapping = world.fs.make_file({0: 3, 1: 4, 2: 5}, size_bytes=size_bytes)
    vma = world.mmap(mapping, nr_pages=3)
    results = [fault(vma, pgoff) for pgoff in range(3)]
    assert results == [NOPAGE] * nr_pages + [SIGBUS] * (3 - nr_pages)
    assert [bool(world.pte(vma, pgoff)) for pgoff in range(3)] == [
        pgoff < nr_pages for pgoff in range(3)
    ]
    with pytest.raises(DeviceError, match="SIGBUS"):
        access_page(vma, Pgoff(2))


def test_23_filesystem_that_fails_is_oom_and_one_that_cannot_allocate_sigbus(
    world: World, expected_logs: Callable[[str], None]
):
    expected_logs("a damaged extent")
    mapping = world.fs.make_file({0: 3}, nr_pages=3, read_only=False)
    vma = world.mmap(mapping, vm_flags=VM_FILLS_HOLES)
    world.fs.errors[mapping.id, 0] = FormatError("a damaged extent")
    assert fault(vma, 0) == OOM
    world.fs.free_blocks.clear()
    assert fault(vma, 1) == SIGBUS
    world.fs.errors[mapping.id, 1] = NoDataError("still none, though asked to make one")
    assert fault(vma, 1) == SIGBUS
    assert not world.mm.page_table.leaves
    world.check()


@pytest.mark.parametrize("vm_flags", [VM_XIP_FILE, PRIVATE_RO], ids=["readonly", "private"])
def test_24_hole_is_the_sparse_page_counted_and_nothing_is_allocated(world: World, vm_flags: int):
    mapping = world.fs.make_file({1: 3}, nr_pages=3, read_only=False)
    vma = world.mmap(mapping, vm_flags=vm_flags)
    sparse = world.machine.sparse_pfn
    assert fault(vma, 0) == NOPAGE
    assert world.counts(sparse) == (2, 1, 1, 0)
    assert not pte_special(world.pte(vma, 0))
    assert vm_normal_page(vma, vma.vm_start, world.pte(vma, 0)) == sparse
    assert access_page(vma, Pgoff(2)) == sparse
    assert world.counts(sparse) == (3, 2, 2, 0)
    assert world.page(sparse) == ZEROS
    assert len(world.fs.free_blocks) == 4
    assert world.machine.vmstat.xip_insert_sparse == 2
    world.check()


def test_25_hole_in_a_shared_map_that_may_be_written_is_filled_by_a_mere_read(world: World):
    mapping = world.fs.make_file({1: 3}, nr_pages=3, read_only=False)
    vma = world.mmap(mapping, vm_flags=VM_FILLS_HOLES)
    pfn = access_page(vma, Pgoff(0))
    assert world.machine.is_nvram(pfn)
    assert world.page(pfn) == ZEROS
    assert pte_special(world.pte(vma, 0)) is world.machine.arch.pte_special
    assert (len(world.fs.free_blocks), world.mm.rss_file) == (3, 0)
    assert world.machine.vmstat.xip_insert_sparse == 0
    world.check()


def test_25_nothing_is_filled_on_a_read_only_filesystem(world: World):
    vma = world.mmap(world.fs.make_file({}, nr_pages=1), vm_flags=VM_FILLS_HOLES)
    assert access_page(vma, Pgoff(0)) == world.machine.sparse_pfn
    assert len(world.fs.free_blocks) == 4


def test_26_who_read_zeros_from_the_sparse_page_sees_the_block_that_replaced_it(world: World):
    """The sparse page stayed mapped in the others, and they would have read zeros for ever."""
    mapping = world.fs.make_file({}, nr_pages=3, read_only=False)
    readers = [
        world.mmap(mapping),
        world.mmap(mapping, vm_flags=PRIVATE_RO, mm=world.make_mm()),
    ]
    for reader in readers:
        access_range(reader, Pgoff(0), 3)
    assert [mm.rss_file for mm in world.mms] == [3, 3]
    writer = world.mmap(mapping, vm_flags=VM_FILLS_HOLES, mm=world.make_mm())
    pfn = access_page(writer, Pgoff(1))
    for reader in readers:
        assert world.pte(reader, 1) == 0
        assert pte_pfn(world.pte(reader, 0)) == world.machine.sparse_pfn, "other holes stay"
        assert access_page(reader, Pgoff(1)) == pfn
    assert [mm.rss_file for mm in world.mms] == [2, 2, 0]
    world.check()


def test_26_write_into_a_hole_takes_the_sparse_page_from_who_mapped_it(writable: World):
    world = writable
    mapping = world.fs.make_file({}, nr_pages=2, read_only=False)
    readers = [world.mmap(mapping), world.mmap(mapping, mm=world.make_mm())]
    for reader in readers:
        assert user_load(reader.vm_mm, reader.vm_start, 2 * PAGE_SIZE) == ZEROS * 2
    sparse = world.machine.sparse_pfn
    assert world.counts(sparse) == (5, 4, 2, 0)
    assert xip_file_write(world.machine, mapping, 10, b"data of B") == 9
    assert [world.pte(reader, 0) for reader in readers] == [0, 0]
    assert world.counts(sparse) == (3, 2, 1, 0)
    for reader in readers:
        assert user_load(reader.vm_mm, Vaddr(reader.vm_start + 10), 9) == b"data of B"
    world.check()


def test_27_fault_that_found_a_hole_looks_again_before_it_maps_zeros(writable: World):
    world = writable
    mapping = world.fs.make_file({}, nr_pages=1, read_only=False)
    vma = world.mmap(mapping)
    with at_step(
        "xip_file_fault: sparse",
        lambda: xip_file_write(world.machine, mapping, 0, b"faster"),
    ):
        assert fault(vma, 0) == NOPAGE
    assert world.machine.is_nvram(pte_pfn(world.pte(vma, 0)))
    assert user_load(world.mm, vma.vm_start, 6) == b"faster"
    assert world.machine.vmstat.xip_insert_sparse == 0
    world.check()


def test_27_writer_looks_again_where_a_fault_was_at_the_sparse_page(writable: World):
    """A fault maps zeros behind the first walk, in an area that the walk has passed."""
    world = writable
    mapping = world.fs.make_file({}, nr_pages=1, read_only=False)
    vma = world.mmap(mapping)

    def map_sparse_page() -> None:
        # What a fault does that took xip_sparse_mutex before the block was there.
        world.machine.xip_sparse_seq += 2
        block = world.fs.blocks.pop((mapping.id, 0))
        assert fault(vma, 0) == NOPAGE
        world.fs.blocks[mapping.id, 0] = block

    with at_step("__xip_unmap: look again", map_sparse_page):
        assert xip_file_write(world.machine, mapping, 0, b"later") == 5
    assert world.pte(vma, 0) == 0
    assert user_load(world.mm, vma.vm_start, 5) == b"later"
    world.check()


def test_28_reading_a_hole_is_zeros_and_allocates_nothing(world: World):
    mapping = world.fs.make_file({0: 3, 3: 4}, nr_pages=4, read_only=False)
    vma = world.mmap(mapping)
    physmem = world.machine.physmem
    runs = physmem.runs(access_range(vma, Pgoff(0), 4), 5, 4 * PAGE_SIZE - 10)
    expected = (block_bytes(3) + ZEROS * 2 + block_bytes(4))[5:-5]
    assert physmem.gather(runs) == expected, "and not a byte more than was asked for"
    assert len(world.fs.free_blocks) == 4


def test_28_read_by_kernel_address_is_the_same_and_ends_with_the_file(world: World):
    """2.6.28 clamped to the wrong length: 5000 bytes of a large file were 8192."""
    mapping = world.fs.make_file({0: 3, 3: 4}, size_bytes=4 * PAGE_SIZE - 7, read_only=False)
    whole = (block_bytes(3) + ZEROS * 2 + block_bytes(4))[:-7]
    for pos, size_bytes in ((0, 5000), (5, 4096), (4090, 12), (0, 1 << 20), (16300, 100)):
        found = xip_file_read(world.machine, mapping, pos, size_bytes)
        assert found == whole[pos : pos + size_bytes]
    for pos in (len(whole), len(whole) + 1, 1 << 40):
        assert xip_file_read(world.machine, mapping, pos, 10) == b""
    assert len(world.fs.free_blocks) == 4
    assert not world.mm.page_table.leaves


def test_29_what_is_written_shows_through_ptes_that_are_there(writable: World):
    world = writable
    mapping = world.fs.make_file({0: 3, 1: 4}, read_only=False)
    promote_pages(world.machine, mapping, np.array([1]))
    vma = world.mmap(mapping)
    access_range(vma, Pgoff(0), 2)
    ptes = [world.pte(vma, pgoff) for pgoff in range(2)]
    pgfault = world.machine.vmstat.pgfault
    assert xip_file_write(world.machine, mapping, PAGE_SIZE - 2, b"over") == 4
    assert user_load(world.mm, Vaddr(vma.vm_start + PAGE_SIZE - 2), 4) == b"over"
    assert [world.pte(vma, pgoff) for pgoff in range(2)] == ptes
    assert world.machine.vmstat.pgfault == pgfault
    world.check()


def test_30_advice_on_a_memory_file_does_nothing():
    for name in ("NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTNEED", "NOREUSE"):
        assert xip_file_fadvise(getattr(os, f"POSIX_FADV_{name}")) == 0
    for advice in (-1, 6, 8, 1 << 20):
        assert xip_file_fadvise(advice) == -errno.EINVAL


def test_31_kernel_address_and_pfn_name_the_same_frame(world: World):
    """There is no block device below: what is not there is a hole to get_xip_mem."""
    nvram = world.machine.physmem.nvram
    mapping = make_extent_file(nvram, [(0, 9, 2), (4, 30, 3)], nr_pages=8)
    for pgoff, block in ((0, 9), (1, 10), (4, 30), (6, 32)):
        kaddr, pfn = mapping.a_ops.get_xip_mem(mapping, Pgoff(pgoff), create=False)
        assert virt_to_pfn(kaddr) == pfn == NVRAM_PFN_START + block
        assert world.page(pfn) == block_bytes(block)
    for pgoff in (2, 3, 7, 8, 1 << 40):
        with pytest.raises(NoDataError):
            mapping.a_ops.get_xip_mem(mapping, Pgoff(pgoff), create=False)


# --- Private and shared writes ---


def test_32_private_write_copies_what_the_process_sees_and_leaves_the_region_alone(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}), vm_flags=PRIVATE_RW)
    # Through its own pte, not by asking the file: here the two differ.
    vm_insert_mixed(vma, vma.vm_start, BARE)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    pte = world.pte(vma, 0)
    copy = vm_normal_page(vma, vma.vm_start, pte)
    assert copy == pte_pfn(pte)
    assert (pte_special(pte), pte_write(pte)) == (False, True)
    assert world.counts(copy) == (1, 1, 0, 1)
    assert world.machine.mem_map.page_anon(copy)
    assert world.page(copy) == b"mine" + block_bytes(7)[4:]
    assert (world.page(BARE), world.page(NVRAM_PFN_START + 3)) == (block_bytes(7), block_bytes(3))
    world.check()


def test_33_private_write_to_a_counted_page_gives_that_back(world: World):
    mapping = world.fs.make_file({0: 3, 1: 4})
    promote_pages(world.machine, mapping, np.array([0]))
    frame = mapping.i_pages[0]
    vma = world.mmap(mapping, vm_flags=PRIVATE_RW)
    access_page(vma, Pgoff(0))
    assert world.counts(frame) == (2, 1, 1, 0)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    assert world.counts(frame) == (1, 0, 0, 1)
    assert world.page(frame) == block_bytes(3)
    assert user_load(world.mm, vma.vm_start, PAGE_SIZE) == b"mine" + block_bytes(3)[4:]
    world.check()


def test_33_private_write_to_a_hole_gives_the_sparse_page_back(world: World):
    vma = world.mmap(world.fs.make_file({}, nr_pages=1, read_only=False), vm_flags=PRIVATE_RW)
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    assert world.counts(world.machine.sparse_pfn) == (1, 0, 0, 1)
    assert world.page(world.machine.sparse_pfn) == ZEROS
    assert len(world.fs.free_blocks) == 4
    world.check()


def cut_short(world: World, nr_blocks: int) -> None:
    """Let the image end before its region does, as a damaged device would."""
    os.truncate(world.machine.physmem.nvram.path, nr_blocks << PAGE_SHIFT)


def test_34_private_copy_of_what_cannot_be_read_is_zeros(
    world: World, expected_logs: Callable[[str], None]
):
    vma = world.mmap(world.fs.make_file({0: 50}), vm_flags=PRIVATE_RW)
    assert fault(vma, 0) == NOPAGE
    frame = Pfn(world.machine.mem_map.alloc_page())
    world.machine.physmem.frame(frame)[:] = b"x" * PAGE_SIZE  # nothing of this may be seen
    world.machine.mem_map.put_page(frame)
    cut_short(world, 50)
    expected_logs("a page cannot be read for its private copy: .*cut short")
    assert not fault(vma, 0, FAULT_FLAG_WRITE) & (OOM | SIGBUS)
    assert pte_pfn(world.pte(vma, 0)) == frame
    assert world.page(frame) == ZEROS
    world.check()


@now
def test_34_second_look_may_find_the_page(world: World, expected_logs: Callable[[str], None]):
    vma = world.mmap(world.fs.make_file({0: 50}), vm_flags=PRIVATE_RW)
    assert fault(vma, 0) == NOPAGE
    cut_short(world, 50)
    expected_logs("a page cannot be read for its private copy")

    def repair() -> None:
        cut_short(world, 64)
        with world.machine.physmem.nvram.path.open("r+b") as image:
            image.seek(50 << PAGE_SHIFT)
            image.write(block_bytes(50))

    with at_step("wp_page_copy: copy again", repair):
        assert fault(vma, 0, FAULT_FLAG_WRITE) == DONE
    assert world.page(pte_pfn(world.pte(vma, 0))) == block_bytes(50)
    world.check()


@pytest.mark.parametrize("step", ["wp_page_copy: copy", "wp_page_copy: install"])
def test_35_copy_of_a_page_that_moved_meanwhile_is_discarded_and_the_fault_retried(
    world: World, step: str
):
    mapping = world.fs.make_file({0: 3})
    vma = world.mmap(mapping, vm_flags=PRIVATE_RW)
    assert fault(vma, 0) == NOPAGE
    mem_map = world.machine.mem_map
    nr_free = mem_map.nr_free
    with at_step(step, lambda: promote_pages(world.machine, mapping, np.array([0]))):
        assert fault(vma, 0, FAULT_FLAG_WRITE) == DONE
    assert world.pte(vma, 0) == 0
    assert mem_map.nr_free == nr_free - 1, "the promoted page's, and not the copy's"
    assert world.mm.rss_anon == 0
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    assert user_load(world.mm, vma.vm_start, PAGE_SIZE) == b"mine" + block_bytes(3)[4:]
    assert world.counts(mapping.i_pages[0]) == (1, 0, 0, 1)
    world.check()


def test_35_copy_of_a_counted_page_that_moved_gives_its_references_back(world: World):
    mapping = world.fs.make_file({0: 3})
    promote_pages(world.machine, mapping, np.array([0]))
    vma = world.mmap(mapping, vm_flags=PRIVATE_RW)
    access_page(vma, Pgoff(0))
    with at_step("wp_page_copy: install", lambda: fault(vma, 0, FAULT_FLAG_WRITE)):
        assert fault(vma, 0, FAULT_FLAG_WRITE) == DONE
    assert world.counts(mapping.i_pages[0]) == (1, 0, 0, 1)
    assert user_load(world.mm, vma.vm_start, PAGE_SIZE) == block_bytes(3)
    world.check()


@pytest.mark.parametrize("hooks", [(), ("page_mkwrite",)], ids=["no hook", "page_mkwrite"])
def test_36_shared_write_is_made_in_place_and_page_mkwrite_is_not_asked(
    writable: World, hooks: tuple[str, ...]
):
    world = writable
    vm_ops = Hooked(*hooks)
    vma = world.mmap(world.fs.make_file({0: 3}, read_only=False), vm_flags=SHARED_RW, vm_ops=vm_ops)
    assert fault(vma, 0) == NOPAGE
    assert pte_write(world.pte(vma, 0)) is not bool(hooks)
    assert user_store(world.mm, vma.vm_start, b"ours") is None
    pte = world.pte(vma, 0)
    assert (pte_pfn(pte), pte_write(pte)) == (NVRAM_PFN_START + 3, True)
    assert pte_special(pte) is world.machine.arch.pte_special
    assert world.page(NVRAM_PFN_START + 3)[:4] == b"ours"
    assert (vm_ops.calls, world.mm.rss_anon) == ([], 0)
    world.check()


@now
@pytest.mark.parametrize("hooks", [("pfn_mkwrite",), ("pfn_mkwrite", "page_mkwrite")])
def test_36_pfn_mkwrite_is_asked_first(writable: World, hooks: tuple[str, ...]):
    world = writable
    vm_ops = Hooked(*hooks)
    vma = world.mmap(
        world.fs.make_file({0: 3, 1: 4}, read_only=False), vm_flags=SHARED_RW, vm_ops=vm_ops
    )
    for data in (b"one", b"two"):
        assert user_store(world.mm, Vaddr(vma.vm_start + PAGE_SIZE), data) is None
    assert vm_ops.calls == [("pfn_mkwrite", 1)]
    assert pte_write(world.pte(vma, 1))
    assert world.page(NVRAM_PFN_START + 4)[:3] == b"two"


@now
@pytest.mark.parametrize("answer", [NOPAGE, SIGBUS, OOM])
def test_36_what_pfn_mkwrite_answers_counts(writable: World, answer: FaultResult):
    world = writable
    vm_ops = Hooked("pfn_mkwrite", answer=answer)
    vma = world.mmap(world.fs.make_file({0: 3}, read_only=False), vm_flags=SHARED_RW, vm_ops=vm_ops)
    assert fault(vma, 0) == NOPAGE
    assert fault(vma, 0, FAULT_FLAG_WRITE) == answer
    assert not pte_write(world.pte(vma, 0))
    assert vm_ops.calls == [("pfn_mkwrite", 0)]


@now
def test_36_pte_that_changed_while_pfn_mkwrite_was_asked_stays(writable: World):
    world = writable
    mapping = world.fs.make_file({0: 3}, read_only=False)
    vma = world.mmap(mapping, vm_flags=SHARED_RW, vm_ops=Hooked("pfn_mkwrite"))
    assert fault(vma, 0) == NOPAGE
    with at_step(
        "finish_mkwrite_fault", lambda: promote_pages(world.machine, mapping, np.array([0]))
    ):
        assert fault(vma, 0, FAULT_FLAG_WRITE) == NOPAGE
    assert world.pte(vma, 0) == 0
    world.check()


@in_2008
def test_36_pfn_mkwrite_is_unknown_in_2008(writable: World):
    world = writable
    vm_ops = Hooked("pfn_mkwrite")
    vma = world.mmap(world.fs.make_file({0: 3}, read_only=False), vm_flags=SHARED_RW, vm_ops=vm_ops)
    assert fault(vma, 0) == NOPAGE
    assert fault(vma, 0, FAULT_FLAG_WRITE) == FaultResult.WRITE
    assert vm_ops.calls == []


def test_37_first_write_to_a_private_page_takes_two_faults(world: World):
    """->fault has no eye for the write: it maps the page read-only, and the second one copies."""
    vma = world.mmap(world.fs.make_file({0: 3}), vm_flags=PRIVATE_RW)
    nr_free = world.machine.mem_map.nr_free
    assert fault(vma, 0, FAULT_FLAG_WRITE) == NOPAGE
    pte = world.pte(vma, 0)
    assert (pte_pfn(pte), pte_write(pte)) == (NVRAM_PFN_START + 3, False)
    assert world.machine.mem_map.nr_free == nr_free
    assert user_store(world.mm, vma.vm_start, b"mine") is None
    assert world.machine.vmstat.pgfault == 2
    assert world.mm.rss_anon == 1
    world.check()


class Dax(VmOperations):
    """Copies within the fault, as fs/dax.c dax_fault_cow_page does."""

    def __init__(self, world: World) -> None:
        self.world = world

    def fault(self, vmf: VmFault) -> FaultResult:
        if vmf.cow_page is None:
            return xip_file_fault(vmf)
        mapping = vmf.vma.vm_file
        kaddr, _ = mapping.a_ops.get_xip_mem(mapping, vmf.pgoff, create=False)
        physmem = self.world.machine.physmem
        physmem.frame(vmf.cow_page)[:] = physmem.load(kaddr, PAGE_SIZE)
        return finish_fault(vmf, vmf.cow_page) or FaultResult.DONE_COW


@now
def test_37_dax_copies_within_the_first_fault(world: World):
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}), vm_flags=PRIVATE_RW, vm_ops=Dax(world))
    assert fault(vma, 0, FAULT_FLAG_WRITE) == FaultResult.DONE_COW
    assert pte_write(world.pte(vma, 0))
    assert user_store(world.mm, Vaddr(vma.vm_start + PAGE_SIZE), b"mine") is None
    assert world.machine.vmstat.pgfault == 2, "one for each page"
    assert user_load(world.mm, vma.vm_start, PAGE_SIZE + 4) == block_bytes(3) + b"mine"
    assert world.mm.rss_anon == 2
    world.check()
