"""TLBs: what a CPU remembers it uses, until a flush; a flush waits for whom it must reach."""

from collections.abc import Iterator

import pytest

from tests.kit.mm import World
from xipfs.mm.access import user_load
from xipfs.mm.arch import get_arch
from xipfs.mm.lock import Scheduler, set_scheduler
from xipfs.mm.mmap import munmap
from xipfs.mm.pgtable import Leaf
from xipfs.mm.tlb import MmuGather, flush_tlb_mm, flush_tlb_page, flush_tlb_range
from xipfs.units import PAGE_SIZE, Vaddr


class Cpu(Scheduler):
    """Remembers one translation, and what it was told."""

    def __init__(self) -> None:
        self.remembered = None
        self.forgotten: list[tuple[int, int]] = []
        self.waited: list[str] = []
        self.free_leaves: list[Leaf] = []

    def forget_leaf(self, leaf):
        self.free_leaves.append(leaf)

    def remembered_translation(self, mm, address, *, write):
        return self.remembered

    def forget_translations(self, mm, start, end):
        self.forgotten.append((start, end))

    def wait_for(self, what, condition):
        self.waited.append(what)


@pytest.fixture
def cpu() -> Iterator[Cpu]:
    cpu = Cpu()
    set_scheduler(cpu)
    yield cpu
    set_scheduler(None)


@pytest.fixture(params=["generic-2.6.28", "x86-2.6.28", "x86-6.1"])
def world(request, tmp_path) -> Iterator[World]:
    world = World(tmp_path / "region", get_arch(*request.param.split("-")))
    yield world
    world.close()


def test_what_a_cpu_remembers_it_uses(world: World, cpu: Cpu):
    """Whatever the page table says by now."""
    vma = world.mmap(world.fs.make_file({0: 3, 1: 4}))
    own = user_load(world.mm, vma.vm_start, 64)
    other = user_load(world.mm, Vaddr(vma.vm_start + PAGE_SIZE), 64)
    assert own != other
    cpu.remembered = world.mm.page_table.find_pte(Vaddr(vma.vm_start + PAGE_SIZE)) >> 12
    assert user_load(world.mm, vma.vm_start, 64) == other
    cpu.remembered = None
    assert user_load(world.mm, vma.vm_start, 64) == own


def test_a_flush_reaches_all_of_its_range(world: World, cpu: Cpu):
    flush_tlb_page(world.mm, Vaddr(0x5123))
    flush_tlb_range(world.mm, Vaddr(0x1000), Vaddr(0x3000))
    flush_tlb_mm(world.mm)
    assert cpu.forgotten == [(0x5000, 0x6000), (0x1000, 0x3000), (0, 1 << 64)]


def test_a_flush_waits_for_cpus_that_take_no_interrupts(world: World, cpu: Cpu):
    """Where it is an interrupt: x86 of 2.6.28, whose fast GUP takes none."""
    world.mm.nr_lockless_walks = 1
    flush_tlb_page(world.mm, Vaddr(0x1000))
    world.mm.nr_lockless_walks = 0
    is_x86_2008 = world.machine.arch == get_arch("x86", "2.6.28")
    assert cpu.waited == ["walks without locks"] * is_x86_2008
    assert len(cpu.forgotten) == 1


def test_who_is_not_alone_flushes_everything(world: World, cpu: Cpu):
    """Another may have cleared what we came for, and not have told the CPUs yet."""
    with MmuGather(world.mm) as outer:
        outer.cleared(Vaddr(0x1000), Vaddr(0x2000))
        with MmuGather(world.mm):
            pass
        assert cpu.forgotten == [(0, 1 << 64)]
    assert cpu.forgotten[1:] == [(0x1000, 0x2000)]
    assert world.mm.tlb_flush_pending == 0


def test_who_took_nothing_flushes_nothing(world: World, cpu: Cpu):
    with MmuGather(world.mm):
        pass
    assert cpu.forgotten == []


def test_a_leaf_is_free_when_no_area_shares_it(world: World, cpu: Cpu):
    first, second = (world.mmap(world.fs.make_file({0: block})) for block in (3, 4))
    for vma in (first, second):
        user_load(world.mm, vma.vm_start, 1)
    [leaf] = world.mm.page_table.leaves.values()
    munmap(first)
    assert cpu.free_leaves == []
    munmap(second)
    assert cpu.free_leaves == [leaf]
    assert not world.mm.page_table.leaves
