"""page_writeback: what is dirty, when it is clean again, what is durable."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.kit.mm import SHARED_RW, World, at_step
from tests.kit.power import PowerLoss
from xipfs.errors import DeviceError
from xipfs.mm.access import user_load, user_store
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.filemap_xip import xip_file_read, xip_file_write
from xipfs.mm.mem_map import PG_DIRTY, PG_WRITEBACK
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.page_writeback import find_dirty_pages, writeback_pages
from xipfs.mm.pgtable import PMD_SHIFT, pte_index, pte_write
from xipfs.mm.vma import Vma
from xipfs.units import PAGE_SIZE, Pfn, Pgoff, Vaddr


@pytest.fixture
def mapping(writable: World) -> AddressSpace:
    """Twelve pages, the first eight of them in RAM."""
    blocks = {pgoff: 10 + pgoff for pgoff in range(12)}
    mapping = writable.fs.make_file(blocks, read_only=False)
    promote_pages(writable.machine, mapping, np.arange(8))
    return mapping


def is_dirty(world: World, mapping: AddressSpace, pgoff: int) -> bool:
    return bool(world.machine.mem_map.page_flags(mapping.i_pages[pgoff]) & PG_DIRTY)


def pte_is_dirty(vma: Vma, pgoff: int) -> bool:
    address = vma.address(Pgoff(pgoff))
    return bool(vma.vm_mm.page_table.leaves[address >> PMD_SHIFT].dirty_bytes[pte_index(address)])


def store(vma: Vma, pgoff: int, data: bytes) -> None:
    assert user_store(vma.vm_mm, vma.address(Pgoff(pgoff)), data) is None


def test_written_page_stays_in_ram_and_is_a_shadow_again(writable: World, mapping: AddressSpace):
    xip_file_write(writable.machine, mapping, 3 * PAGE_SIZE, b"written")
    frame = mapping.i_pages[3]
    assert writeback_pages(writable.machine, mapping, [0, 3, 9]) == (1, 2, 0)
    assert mapping.i_pages[3] == frame
    assert not is_dirty(writable, mapping, 3)
    assert writable.machine.physmem.nvram.load(13 * PAGE_SIZE, 7) == b"written"
    assert writeback_pages(writable.machine, mapping, [3]) == (0, 1, 0)
    demote_pages(writable.machine, mapping, [3], DemoteReason.KSWAPD)
    vmstat = writable.machine.vmstat
    assert (vmstat.xip_writeback, vmstat.xip_shadow_hit) == (1, 1)
    writable.check()


def test_store_through_a_pte_is_found_and_the_next_one_faults(
    writable: World, mapping: AddressSpace
):
    vma = writable.mmap(mapping, vm_flags=SHARED_RW)
    store(vma, 2, b"one")
    assert pte_is_dirty(vma, 2)
    assert pte_write(writable.pte(vma, 2))
    assert writeback_pages(writable.machine, mapping, range(8)) == (1, 7, 0)
    assert not pte_is_dirty(vma, 2)
    assert not pte_write(writable.pte(vma, 2))
    nr_faults = writable.machine.vmstat.pgfault
    assert user_load(vma.vm_mm, vma.address(Pgoff(2)), 3) == b"one"
    assert writable.machine.vmstat.pgfault == nr_faults, "reading goes on"
    store(vma, 2, b"two")
    assert writable.machine.vmstat.pgfault == nr_faults + 1
    assert writeback_pages(writable.machine, mapping, [2]) == (1, 0, 0)
    assert writable.machine.physmem.nvram.load(12 * PAGE_SIZE, 3) == b"two"
    writable.check()


@pytest.mark.parametrize("step", ["copy", "fence"])
def test_store_during_the_write_back_leaves_the_page_dirty(
    writable: World, mapping: AddressSpace, step: str
):
    vma = writable.mmap(mapping, vm_flags=SHARED_RW)
    store(vma, 2, b"one")
    with at_step(f"write back: {step}", lambda: store(vma, 2, b"two")):
        writeback_pages(writable.machine, mapping, [2])
    assert pte_is_dirty(vma, 2) or is_dirty(writable, mapping, 2)
    demote_pages(writable.machine, mapping, [2], DemoteReason.KSWAPD)
    assert xip_file_read(writable.machine, mapping, 2 * PAGE_SIZE, 3) == b"two"


def test_page_is_under_write_back_until_the_fence(writable: World, mapping: AddressSpace):
    xip_file_write(writable.machine, mapping, 0, b"written")
    mem_map = writable.machine.mem_map
    seen = []

    def look() -> None:
        seen.append(mem_map.page_flags(mapping.i_pages[0]) & (PG_DIRTY | PG_WRITEBACK))

    with at_step("write back: fence", look):
        writeback_pages(writable.machine, mapping, [0])
    assert seen == [PG_WRITEBACK]
    assert mem_map.page_flags(mapping.i_pages[0]) == 0


def test_batch_is_fenced_once_and_all_of_it_flushed_before(writable: World, mapping: AddressSpace):
    nvram = writable.machine.physmem.nvram
    power = PowerLoss(nvram)
    for pgoff in range(6):
        xip_file_write(writable.machine, mapping, pgoff * PAGE_SIZE, b"written")
    nr_fences = nvram.nr_fences
    assert writeback_pages(writable.machine, mapping, range(6)) == (6, 0, 0)
    assert nvram.nr_fences == nr_fences + 1
    assert nvram.nr_flushed_lines == 6 * 64
    assert not power.unsafe_lines()


def test_dirty_pages_are_demoted_with_one_fence(writable: World, mapping: AddressSpace):
    nvram = writable.machine.physmem.nvram
    power = PowerLoss(nvram)
    for pgoff in (1, 2, 6):
        xip_file_write(writable.machine, mapping, pgoff * PAGE_SIZE, b"written")
    assert (
        demote_pages(writable.machine, mapping, range(8), DemoteReason.PROACTIVE).nr_migrated == 8
    )
    assert (nvram.nr_fences, nvram.nr_flushed_lines) == (1, 3 * 64)
    assert not power.unsafe_lines()
    vmstat = writable.machine.vmstat
    assert (vmstat.pgdemote_proactive, vmstat.xip_writeback, vmstat.xip_shadow_hit) == (8, 3, 5)
    writable.check()


def test_clean_pages_need_no_fence(writable: World, mapping: AddressSpace):
    demote_pages(writable.machine, mapping, range(8), DemoteReason.KSWAPD)
    writeback_pages(writable.machine, mapping, range(8))
    assert writable.machine.physmem.nvram.nr_fences == 0


def test_page_that_cannot_be_written_stays_dirty_and_in_ram(
    writable: World,
    mapping: AddressSpace,
    monkeypatch: pytest.MonkeyPatch,
    expected_logs: Callable[[str], None],
):
    expected_logs("page 1 of file 16 stays in RAM: worn out")
    for pgoff in (1, 2):
        xip_file_write(writable.machine, mapping, pgoff * PAGE_SIZE, b"written")
    physmem = writable.machine.physmem
    copy = type(physmem).copy_from_frame

    def fail_one(self: object, frame: Pfn, pfn: Pfn) -> None:
        if frame == mapping.i_pages.get(1):
            raise DeviceError("worn out")
        copy(physmem, frame, pfn)

    with monkeypatch.context() as patch:
        patch.setattr(type(physmem), "copy_from_frame", fail_one)
        assert writeback_pages(writable.machine, mapping, [1, 2]) == (1, 0, 1)
        assert is_dirty(writable, mapping, 1)
        demote_pages(writable.machine, mapping, [1, 2], DemoteReason.KSWAPD)
    assert sorted(mapping.i_pages) == [0, 1, 3, 4, 5, 6, 7]
    assert writable.machine.vmstat.xip_writeback_fail == 2
    writable.check()
    assert writeback_pages(writable.machine, mapping, [1]) == (1, 0, 0)


def test_page_without_a_home_stays_dirty(
    writable: World, mapping: AddressSpace, expected_logs: Callable[[str], None]
):
    expected_logs("no page of NVRAM keeps page 1 of file 16")
    xip_file_write(writable.machine, mapping, PAGE_SIZE, b"written")
    block = writable.fs.blocks.pop((mapping.id, 1))
    assert writeback_pages(writable.machine, mapping, [1]) == (0, 0, 1)
    writable.fs.blocks[mapping.id, 1] = block
    assert writeback_pages(writable.machine, mapping, [1]) == (1, 0, 0)


def test_private_copies_are_nobody_elses_dirt(writable: World, mapping: AddressSpace):
    vma = writable.mmap(mapping, vm_flags=SHARED_RW & ~(1 << 3 | 1 << 7))
    demote_pages(writable.machine, mapping, [0, 1], DemoteReason.KSWAPD)
    assert user_store(vma.vm_mm, Vaddr(vma.address(Pgoff(2))), b"mine") is None
    assert writeback_pages(writable.machine, mapping, range(8)) == (0, 8, 0)
    assert user_load(vma.vm_mm, vma.address(Pgoff(2)), 4) == b"mine"
    assert pte_write(writable.pte(vma, 2))


def test_dirty_pages_are_found_by_their_flags_or_not_told_apart(
    writable: World, mapping: AddressSpace
):
    machine = writable.machine
    assert find_dirty_pages(machine, mapping) == []
    xip_file_write(machine, mapping, 3 * PAGE_SIZE, b"written")
    xip_file_write(machine, mapping, 10 * PAGE_SIZE, b"in NVRAM")
    assert find_dirty_pages(machine, mapping) == [3]
    vma = writable.mmap(mapping)
    assert find_dirty_pages(machine, mapping) == [3], "nobody can store through it"
    writable.mmap(mapping, vm_flags=SHARED_RW)
    assert sorted(find_dirty_pages(machine, mapping)) == list(range(8))
    assert vma in mapping.i_mmap
    assert find_dirty_pages(machine, writable.fs.make_file({})) == []
