"""Exchange, write-back and fences of two files that share one frame, in every order of steps.

No reader sees foreign bytes, no write is lost, nobody waits for ever, and no loss of power at any
moment would cost what a write-back has promised, or a page that has left RAM.
"""

import itertools
from typing import Any

import numpy as np
import pytest

from tests.kit.interleave import Actor, Report, Scene, explore
from tests.kit.mm import SHARED_RW, World
from tests.kit.power import PowerLoss
from tests.model.test_interleavings import sow
from xipfs.mm import gup, migrate, page_writeback, rmap
from xipfs.mm.access import user_load, user_store
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.arch import Arch, get_arch
from xipfs.mm.filemap_xip import XIP_FILE_VM_OPS, xip_file_read, xip_file_write
from xipfs.mm.gup import get_user_pages_fast, put_user_page
from xipfs.mm.lock import atomic_step
from xipfs.mm.memory_hotplug import resize_tier
from xipfs.mm.migrate import DemoteReason, demote_pages, exchange_pages, promote_pages
from xipfs.mm.page_writeback import writeback_pages
from xipfs.mm.pgtable import PTE_NONE, pte_pfn
from xipfs.mm.vma import VM_XIP_FILE, Vma
from xipfs.phys.nvram import NvramDevice
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, PAGE_SIZE, Pfn, Pgoff, Vaddr

IN_RAM, IN_NVRAM, WRITTEN, STORED, DMA, FOREIGN = b"r", b"n", b"w", b"s", b"d", b"F"
WRITE_AT, STORE_AT, DMA_AT, START_AT = 0, 64, 96, 32

ONE_PAGE = np.array([0], np.int64)
GENERIC, X86 = get_arch("generic", "2.6.28"), get_arch("x86", "6.1")


class TwoFiles:
    """A tier of one frame, with the page of one file in it, perhaps dirty; another in NVRAM."""

    def __init__(self, arch: Arch, is_dirty: bool, actors: tuple[str, ...]) -> None:
        nvram = NvramDevice.scratch(4 << PAGE_SHIFT)
        self.world = World(None, arch, nr_blocks=4, nr_zero_blocks=1, nr_tier_frames=1, nvram=nvram)
        self.world._owns_nvram = True
        self.machine = self.world.machine
        self.first, self.second = (
            self.world.fs.make_file({0: block}, read_only=False) for block in (1, 2)
        )
        for block, content in ((1, IN_RAM), (2, IN_NVRAM)):
            nvram.store_bytes(block << PAGE_SHIFT, content * PAGE_SIZE)
        promote_pages(self.machine, self.first, ONE_PAGE)
        self.vmas = {
            (mapping, vm_flags): self._mmap(mapping, vm_flags)
            for mapping in (self.first, self.second)
            for vm_flags in (VM_XIP_FILE, SHARED_RW)
        }
        for vma in self.vmas.values():
            user_load(vma.vm_mm, vma.vm_start, 1)
        self.is_dirty = is_dirty
        if is_dirty:
            xip_file_write(self.machine, self.first, START_AT, WRITTEN)
        self.power = PowerLoss(nvram)
        self.actors = actors
        self.notes: dict[str, Any] = {}

    def scene(self) -> Scene:
        actors = [Actor(name, getattr(self, name)) for name in self.actors]
        return Scene(self.world, actors, self.check, self.after_each_step, self.notes)

    # What may happen

    def exchange(self) -> None:
        self._exchange(self.first, self.second)

    def exchange_back(self) -> None:
        self._exchange(self.second, self.first)

    def promote(self) -> None:
        promote_pages(self.machine, self.second, ONE_PAGE)

    def demote(self) -> None:
        demote_pages(self.machine, self.first, [0], DemoteReason.KSWAPD)

    def write_back(self) -> None:
        writeback_pages(self.machine, self.first, [0])
        if self._only_the_tiers_write():
            assert not self.power.unsafe_lines(), "written back, and not durable"

    write_back_too = write_back

    def shrink(self) -> None:
        resize_tier(self.machine, 0, [(self.first, [0]), (self.second, [0])])

    def read(self) -> None:
        self._load(self.first, IN_RAM)

    def read_other(self) -> None:
        self._load(self.second, IN_NVRAM)

    def pread(self) -> None:
        self._check(xip_file_read(self.machine, self.first, 0, PAGE_SIZE), IN_RAM)

    def write(self) -> None:
        xip_file_write(self.machine, self.first, WRITE_AT, WRITTEN)
        self.notes["write"] = "done"

    def store(self) -> None:
        vma = self.vmas[self.first, SHARED_RW]
        assert user_store(vma.vm_mm, Vaddr(vma.vm_start + STORE_AT), STORED) is None
        self.notes["store"] = "done"

    def dma(self) -> None:
        vma = self.vmas[self.first, SHARED_RW]
        pages: list[Pfn] = []
        flags = gup.FOLL_FAST_ONLY | gup.FOLL_WRITE | gup.FOLL_PIN
        if get_user_pages_fast(vma.vm_mm, vma.vm_start, 1, flags, pages) == 1:
            atomic_step("the device writes")
            self.machine.physmem.frame(pages[0])[DMA_AT : DMA_AT + 1] = DMA
            atomic_step("the device is done")
            put_user_page(vma.vm_mm, pages[0], flags, dirty=True)
            self.notes["dma"] = "done"

    # What must hold

    def after_each_step(self) -> None:
        for pfn in self.machine.mem_map._free:
            self.machine.physmem.frame(Pfn(pfn))[:] = FOREIGN * PAGE_SIZE
        self.notes["unsafe"] = sorted(self.power.unsafe_lines())[:1]
        if self._only_the_tiers_write() and not self.first.i_pages:
            assert not self.power.unsafe_lines(), "a page left RAM before it was durable"

    def check(self) -> None:
        self.world.check()
        self._check_contents()
        # What is left in RAM goes, too: it must be dirty if NVRAM has other bytes.
        for mapping in (self.first, self.second):
            demote_pages(self.machine, mapping, [0], DemoteReason.DIRECT)
            assert not mapping.i_pages
        self._check_contents()
        self.world.check()

    def _check_contents(self) -> None:
        content = xip_file_read(self.machine, self.first, 0, PAGE_SIZE)
        self._check(content, IN_RAM)
        for name, at, byte in (
            ("write", WRITE_AT, WRITTEN),
            ("store", STORE_AT, STORED),
            ("dma", DMA_AT, DMA),
        ):
            if self.notes.get(name) == "done":
                assert content[at : at + 1] == byte, f"lost: {name}"
        if self.is_dirty:
            assert content[START_AT : START_AT + 1] == WRITTEN, "a dirty page was lost"
        self._check(xip_file_read(self.machine, self.second, 0, PAGE_SIZE), IN_NVRAM)
        for mapping in (self.first, self.second):
            content = xip_file_read(self.machine, mapping, 0, PAGE_SIZE)
            self._check_ptes(mapping)
            vma = self.vmas[mapping, VM_XIP_FILE]
            assert user_load(vma.vm_mm, vma.vm_start, PAGE_SIZE) == content

    def _check_ptes(self, mapping: AddressSpace) -> None:
        home = Pfn(NVRAM_PFN_START + self.world.fs.blocks[mapping.id, 0])
        for vm_flags in (VM_XIP_FILE, SHARED_RW):
            pte = self.world.pte(self.vmas[mapping, vm_flags], 0)
            if pte != PTE_NONE:
                assert pte_pfn(pte) == mapping.i_pages.get(0, home), "a pte leads elsewhere"

    def _only_the_tiers_write(self) -> bool:
        """Nobody stores to NVRAM himself, without a promise."""
        return not {"write", "store", "dma"}.intersection(self.actors)

    def _exchange(self, out: AddressSpace, into: AddressSpace) -> None:
        exchange_pages(self.machine, (out, ONE_PAGE), (into, ONE_PAGE), DemoteReason.KSWAPD)

    def _load(self, mapping: AddressSpace, content: bytes) -> None:
        vma = self.vmas[mapping, VM_XIP_FILE]
        found = user_load(vma.vm_mm, vma.vm_start, PAGE_SIZE)
        assert isinstance(found, bytes), found
        self._check(found, content)

    def _check(self, found: bytes, content: bytes) -> None:
        allowed = content if content == IN_NVRAM else content + WRITTEN + STORED + DMA
        assert not set(found) - set(allowed), "bytes of nobody, or of another page"

    def _mmap(self, mapping: AddressSpace, vm_flags: int) -> Vma:
        return self.world.make_mm().mmap(
            mapping, nr_pages=1, pgoff=Pgoff(0), vm_flags=vm_flags, vm_ops=XIP_FILE_VM_OPS
        )


MOVERS = ("exchange", "exchange_back", "promote", "demote", "write_back", "shrink")
USERS = ("read", "read_other", "pread", "write", "store", "dma", "write_back_too")
PAIRS = [*itertools.combinations(MOVERS, 2), *itertools.product(MOVERS, USERS)]
TRIPLES = [
    ("exchange", "exchange_back", "read_other"),
    ("exchange", "store", "read_other"),
    ("exchange", "dma", "write_back"),
    ("exchange", "pread", "demote"),
    ("write_back", "store", "demote"),
    ("write_back", "dma", "shrink"),
]


def run(arch: Arch, is_dirty: bool, actors: tuple[str, ...]) -> Report:
    return explore(lambda: TwoFiles(arch, is_dirty, actors).scene())


@pytest.mark.parametrize("is_dirty", [False, True], ids=["clean", "dirty"])
@pytest.mark.parametrize("arch", [GENERIC, X86], ids=lambda arch: arch.name)
def test_any_two_in_every_order(arch: Arch, is_dirty: bool):
    total = Report()
    for actors in PAIRS:
        report = run(arch, is_dirty, actors)
        total.nr_runs += report.nr_runs
        total.nr_orders += report.nr_orders
    print(f"{total.nr_runs} runs stand for {total.nr_orders} orders")
    assert total.nr_orders > len(PAIRS)


@pytest.mark.parametrize("actors", TRIPLES, ids="-".join)
def test_three_in_every_order(actors: tuple[str, ...]):
    report = run(X86, True, actors)
    print(f"{report.nr_runs} runs stand for {report.nr_orders} orders")


@pytest.mark.long
@pytest.mark.parametrize("is_dirty", [False, True], ids=["clean", "dirty"])
@pytest.mark.parametrize("arch", [GENERIC, X86], ids=lambda arch: arch.name)
def test_any_three_in_every_order(arch: Arch, is_dirty: bool):
    for actors in itertools.combinations(MOVERS + USERS, 3):
        run(arch, is_dirty, actors)


SEEDED_BUGS: dict[str, tuple[tuple[Any, str, str, str], tuple[str, ...]]] = {
    "no fence before a frame is released": (
        (page_writeback, "write_back_frames", "machine.physmem.nvram.fence()", "pass"),
        ("demote", "read"),
    ),
    "page that leaves i_pages before it is durable": (
        (
            migrate,
            "_isolate_pages",
            "written = write_back_frames(machine, mapping, dirty)",
            "[i_pages.pop(pgoff) for pgoff, _ in dirty]; "
            "written = write_back_frames(machine, mapping, dirty); i_pages.update(dirty)",
        ),
        ("exchange", "read"),
    ),
    "dirty cleared after the copy": (
        (
            page_writeback,
            "write_back_frames",
            "mem_map.clear_page_flags(frame, PG_WRITEBACK)",
            "mem_map.clear_page_flags(frame, PG_WRITEBACK | 1)",
        ),
        ("write_back", "dma"),
    ),
    "write-back that forgets a dirty pte": (
        (rmap, "page_mkclean", "dirty |= bool(leaf.dirty_bytes[index])", "pass"),
        ("write_back", "store"),
    ),
    "write-back that does not wait for another's": (
        (
            page_writeback,
            "writeback_pages",
            "not any(mem_map.page_flags(pfn) & PG_WRITEBACK for pfn in frames.values())",
            "True",
        ),
        ("write_back", "write_back_too"),
    ),
    "exchange that does not ask whether the page is busy": (
        (
            migrate,
            "_isolate_pages",
            "if mem_map.page_count(pfn := i_pages[pgoff]) == 1",
            "if (pfn := i_pages[pgoff]) is not None",
        ),
        ("exchange", "dma"),
    ),
    "exchange that fills a frame which i_pages still names": (
        (migrate, "_isolate_pages", "del i_pages[pgoff]", "pass"),
        ("exchange", "pread"),
    ),
    "exchange that locks in the caller's order": (
        (
            migrate,
            "_moving_both",
            "sorted(set(mappings), key=lambda mapping: mapping.id)",
            "list(mappings)",
        ),
        ("exchange", "exchange_back"),
    ),
    "exchange that stops the faults of one file only": (
        (
            migrate,
            "_moving_both",
            "for mapping in files:\n            stack.enter_context(mapping.invalidate())",
            "stack.enter_context(files[0].invalidate())",
        ),
        ("exchange", "read_other"),
    ),
}


@pytest.mark.parametrize("name", SEEDED_BUGS)
def test_a_seeded_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    bug, actors = SEEDED_BUGS[name]
    sow(monkeypatch, bug)
    found: list[Exception] = []
    for arch, is_dirty in itertools.product((X86, GENERIC), (True, False)):
        try:
            run(arch, is_dirty, actors)
        except Exception as exc:
            found.append(exc)
    assert found, "the checks do not notice it"
    assert isinstance(found[0], AssertionError), "found by accident"  # BugError is one
    print(found[0])
