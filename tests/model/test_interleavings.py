"""Faults, writes, truncation, migration, munmap and GUP of one page, in every order.

No reader sees bytes that are not the file's, no write is lost, no reference leaks, nobody waits for
ever, and no CPU goes on using what mm has taken away. Bugs sown into the product's own code must be
found by these same checks, or they prove nothing.
"""

import itertools
from typing import Any

import numpy as np
import pytest

from tests.kit.interleave import Actor, Report, Scene, choose, explore
from tests.kit.mm import World, arch_id
from tests.kit.sow import sow
from xipfs.mm import fault, filemap_xip, fork, gup, migrate, mmap, mprotect, rmap, tlb, truncate
from xipfs.mm import vma as areas
from xipfs.mm.access import Signal, user_load, user_store
from xipfs.mm.arch import Arch, get_arch
from xipfs.mm.filemap_xip import XIP_FILE_VM_OPS, xip_file_read, xip_file_write
from xipfs.mm.fork import dup_mm
from xipfs.mm.gup import get_user_pages_fast, put_user_page
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.mmap import do_munmap
from xipfs.mm.mprotect import do_mprotect
from xipfs.mm.pgtable import pte_pfn, pte_write
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.mm.truncate import truncate_setsize
from xipfs.mm.vma import (
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    VM_XIP_FILE,
    Vma,
)
from xipfs.phys.nvram import NvramDevice
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, PAGE_SIZE, Pfn, Pgoff, Vaddr

SHARED_RW = VM_READ | VM_WRITE | VM_SHARED | VM_MAYREAD | VM_MAYWRITE | VM_MAYSHARE | VM_MIXEDMAP
PRIVATE_RW = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MIXEDMAP

OLD, WRITTEN, STORED, COPIED, FOREIGN, ZERO = b"o", b"w", b"s", b"c", b"F", b"\0"
DMA = b"d"
WRITE_AT, STORE_AT, DMA_AT, COPY_AT = 0, 64, 96, 200

BLOCK = 1
GENERIC, X86 = get_arch("generic", "2.6.28"), get_arch("x86", "6.1")
X86_2008 = get_arch("x86", "2.6.28")
"""Its fast GUP takes no interrupts, and looks no second time."""


class OnePage:
    """A file of one page, mapped by three processes, and what can happen to it.

    start: nvram, ram (promoted), dirty (promoted and written to), hole.
    """

    def __init__(self, arch: Arch, start: str, actors: tuple[str, ...]) -> None:
        nvram = NvramDevice.scratch(6 << PAGE_SHIFT)
        self.world = world = World(None, arch, nr_blocks=6, nr_zero_blocks=4, nvram=nvram)
        nvram.store_bytes(BLOCK << PAGE_SHIFT, OLD * PAGE_SIZE)
        world._owns_nvram = True
        blocks = {} if start == "hole" else {0: BLOCK}
        self.file = world.fs.make_file(blocks, nr_pages=1, read_only=False)
        self.reader = self._mmap(VM_XIP_FILE)
        self.second = self._mmap(VM_XIP_FILE)
        self.shared = self._mmap(SHARED_RW)
        self.private = self._mmap(PRIVATE_RW)
        self.machine = world.machine
        self.is_truncated = False
        self.freed: Pfn | None = None
        self.was_dirty = start == "dirty"
        if start in ("ram", "dirty"):
            promote_pages(self.machine, self.file, np.array([0]))
            user_load(self.reader.vm_mm, self.reader.vm_start, 1)
        if start != "hole":
            for vma in (self.shared, self.private):
                user_load(vma.vm_mm, vma.vm_start, 1)
        if start == "dirty":
            xip_file_write(self.machine, self.file, 32, WRITTEN)
        self.notes: dict[str, Any] = {}
        self.actors = actors

    def scene(self) -> Scene:
        self.made = Scene(
            self.world,
            [
                Actor(name, getattr(self, name), getattr(self, f"before_{name}", None))
                for name in self.actors
            ],
            self.check,
            self.scribble,
            self.notes,
            self.is_foreign,
        )
        return self.made

    # What may happen

    def read(self) -> None:
        self._look("read", self.reader)

    def read_too(self) -> None:
        self._look("read_too", self.second)

    def write(self) -> None:
        self.notes["write"] = "begun"
        xip_file_write(self.machine, self.file, WRITE_AT, WRITTEN)
        self.notes["write"] = "done"

    def store(self) -> None:
        self.notes["store"] = "begun"
        signal = user_store(self.shared.vm_mm, Vaddr(self.shared.vm_start + STORE_AT), STORED)
        may_be_killed = {"unmap", "protect"} & set(self.actors)
        assert signal is None or self.is_truncated or may_be_killed, signal
        self.notes["store"] = "killed" if signal else "done"

    def before_look_again(self) -> None:
        if self.file.i_pages or self.world.fs.blocks:
            user_load(self.second.vm_mm, self.second.vm_start, 1)

    def look_again(self) -> None:
        """A CPU that knows the page's place already."""
        self._look("look_again", self.second)

    def before_store_again(self) -> None:
        if self.file.i_pages or self.world.fs.blocks:
            user_store(self.shared.vm_mm, Vaddr(self.shared.vm_start + STORE_AT), OLD)

    def store_again(self) -> None:
        """A CPU that has written to the page already."""
        self.store()

    def copy(self) -> None:
        """Write to a private mapping: the rest of the page must be the file's."""
        mm, start = self.private.vm_mm, self.private.vm_start
        signal = user_store(mm, Vaddr(start + COPY_AT), COPIED)
        if signal is not None:
            assert self.is_truncated, signal
            return
        found = user_load(mm, start, PAGE_SIZE)
        if isinstance(found, Signal):
            assert self.is_truncated, found
            return
        # A truncation takes private copies, too; then there is nothing to see.
        assert found[COPY_AT : COPY_AT + 1] == COPIED
        self._check_bytes(found[:COPY_AT] + found[COPY_AT + 1 :])
        self.notes["copy"] = "done"

    def before_look_private(self) -> None:
        user_load(self.private.vm_mm, self.private.vm_start, 1)

    def look_private(self) -> None:
        """Another thread of the process that has the private mapping."""
        is_copied = self.notes.get("copy") == "done"
        found = user_load(self.private.vm_mm, Vaddr(self.private.vm_start + COPY_AT), 1)
        assert found == COPIED or not is_copied or self.is_truncated, "the copy is not seen"

    def read_private(self) -> None:
        """The same, on a CPU that knows nothing yet."""
        self.look_private()

    def before_copy_again(self) -> None:
        user_store(self.private.vm_mm, Vaddr(self.private.vm_start + COPY_AT), COPIED)

    def copy_again(self) -> None:
        """A thread that has written to its private copy already."""
        self.copy()

    def fork(self) -> None:
        child = dup_mm(self.private.vm_mm)
        assert not isinstance(child, int), "no memory"
        self.world.mms.append(child)
        seen = user_load(child, self.private.vm_start, COPY_AT + 1)
        filemap_xip.atomic_step("the child looks again")
        again = user_load(child, self.private.vm_start, COPY_AT + 1)
        assert again == seen or self.is_truncated, "the parent's write"

    def protect(self) -> None:
        """Afterwards nobody can write."""
        error = do_mprotect(self.shared.vm_mm, self.shared.vm_start, 1, VM_READ)
        assert error == 0 or "unmap" in self.actors, error
        for mm, _, pte in self.made.tlb.translations():
            assert mm is not self.shared.vm_mm or not pte_write(pte), "a CPU may still write"

    def promote(self) -> None:
        promote_pages(self.machine, self.file, np.array([0]))

    def demote(self) -> None:
        demote_pages(self.machine, self.file, [0], DemoteReason.KSWAPD)

    def daemon(self) -> None:
        """Two moves, whichever way the dice fall: also there and back."""
        for _ in range(2):
            if choose(2):
                self.promote()
            else:
                self.demote()

    def zap(self) -> None:
        """Unmap by offset: afterwards no CPU reaches the page where it was (case 55)."""
        with self.file.i_rwsem.write(), self.file.invalidate():
            unmap_mapping_range(self.file, Pgoff(0), 1, even_cows=False)
            block = self.world.fs.blocks.get((self.file.id, 0))
            places = {self.file.i_pages.get(0), block and NVRAM_PFN_START + block}
            for _, _, pte in self.made.tlb.translations():
                assert pte_pfn(pte) not in places, "a CPU still reaches the page"

    def truncate(self) -> None:
        self.is_truncated = True
        self.notes["truncate"] = "begun"
        truncate_setsize(self.machine, self.file, 0)
        block = self.world.fs.blocks.pop((self.file.id, 0), None)
        if block is not None:  # somebody else's now
            self.freed = Pfn(NVRAM_PFN_START + block)
            self.machine.physmem.store(self.freed << PAGE_SHIFT, FOREIGN * PAGE_SIZE)

    def unmap(self) -> None:
        assert do_munmap(self.shared.vm_mm, self.shared.vm_start, 1) == 0

    def gup_fast(self) -> None:
        seen = self._gup_fast(self.reader)
        assert COPIED not in seen, "somebody else's private copy"

    def gup_private(self) -> None:
        self._gup_fast(self.private)

    def dma(self) -> None:
        """A device writes to the page of a shared mapping."""
        pages: list[Pfn] = []
        mm = self.shared.vm_mm
        flags = gup.FOLL_FAST_ONLY | gup.FOLL_WRITE | gup.FOLL_PIN
        if get_user_pages_fast(mm, self.shared.vm_start, 1, flags, pages) == 1:
            filemap_xip.atomic_step("the device writes")
            self.machine.physmem.frame(pages[0])[DMA_AT : DMA_AT + 1] = DMA
            put_user_page(mm, pages[0], flags, dirty=True)
            self.notes["dma"] = "done"

    # What must hold

    def is_foreign(self, pfn: Pfn) -> bool:
        if self.machine.is_nvram(pfn):
            return pfn == self.freed
        return self.machine.mem_map.page_count(pfn) == 0

    def scribble(self) -> None:
        for pfn in self.machine.mem_map._free:
            frame = self.machine.physmem.frame(Pfn(pfn))
            if frame[0] != FOREIGN[0] or frame[PAGE_SIZE - 1] != FOREIGN[0]:
                frame[:] = FOREIGN * PAGE_SIZE

    def check(self) -> None:
        for lock in (self.file.i_rwsem, self.machine.xip_sparse_mutex):
            assert not lock.is_write_locked
        self.world.check()
        if not self.is_truncated:
            content = xip_file_read(self.machine, self.file, 0, PAGE_SIZE)
            self._check_bytes(content)
            if self.notes.get("write") == "done":
                assert content[WRITE_AT : WRITE_AT + 1] == WRITTEN, "a write was lost"
            if self.notes.get("store") == "done":
                assert content[STORE_AT : STORE_AT + 1] == STORED, "a store was lost"
            if self.notes.get("dma") == "done":
                assert content[DMA_AT : DMA_AT + 1] == DMA, "what a device wrote was lost"
            if self.was_dirty:
                assert content[32:33] == WRITTEN, "a dirty page was lost"
        for vma in (self.reader, self.second, self.shared):
            if vma.vm_start not in vma.vm_mm.vmas:
                continue
            found = user_load(vma.vm_mm, vma.vm_start, PAGE_SIZE)
            if self.is_truncated and not self.file.nr_pages:
                assert isinstance(found, Signal), "a page past the end is mapped"
            else:
                content = xip_file_read(self.machine, self.file, 0, PAGE_SIZE)
                assert isinstance(found, bytes), found
                assert found.startswith(content), "a pte leads elsewhere"
        self.world.check()

    def _gup_fast(self, vma: Vma) -> bytes:
        pages: list[Pfn] = []
        mm = vma.vm_mm
        if get_user_pages_fast(mm, vma.vm_start, 1, gup.FOLL_FAST_ONLY, pages) != 1:
            return b""
        filemap_xip.atomic_step("the page is used")
        seen = bytes(self.machine.physmem.frame(pages[0]))
        assert FOREIGN not in seen, "a page was freed under its reference"
        put_user_page(mm, pages[0], 0)
        return seen

    def _look(self, name: str, vma: Vma) -> None:
        found = user_load(vma.vm_mm, vma.vm_start, PAGE_SIZE)
        if isinstance(found, Signal):
            assert self.is_truncated, found
        else:
            self._check_bytes(found)
        self.notes[name] = True

    def _check_bytes(self, found: bytes) -> None:
        assert FOREIGN not in found, "foreign bytes"
        assert not set(found) - set(OLD + WRITTEN + STORED + DMA + ZERO), "bytes of nobody"

    def _mmap(self, vm_flags: int) -> Vma:
        mm = self.world.make_mm()
        return mm.mmap(
            self.file, nr_pages=1, pgoff=Pgoff(0), vm_flags=vm_flags, vm_ops=XIP_FILE_VM_OPS
        )


ACTORS = (
    "read",
    "read_too",
    "look_again",
    "write",
    "store",
    "store_again",
    "copy",
    "promote",
    "demote",
    "daemon",
    "truncate",
    "unmap",
    "zap",
    "gup_fast",
    "dma",
)
STARTS = ("nvram", "ram", "dirty", "hole")
PAIRS = [
    *itertools.combinations(ACTORS, 2),
    ("copy", "look_private"),
    *itertools.product(("fork", "look_private"), ("copy_again", "demote", "truncate", "zap")),
    *itertools.product(("protect",), ("store", "store_again", "unmap", "demote", "dma")),
]
TRIPLES = [
    ("read", "read_too", "write"),
    ("read", "write", "promote"),
    ("read", "store", "promote"),
    ("read", "truncate", "promote"),
    ("read", "demote", "gup_fast"),
    ("store", "demote", "gup_fast"),
    ("copy", "promote", "write"),
    ("copy", "demote", "gup_fast"),
    ("copy", "demote", "truncate"),
    ("unmap", "store", "promote"),
    ("copy", "demote", "gup_private"),
    ("copy", "read_private", "gup_private"),
    ("unmap", "zap", "look_private"),
    ("unmap", "zap", "store_again"),
    ("unmap", "dma", "daemon"),
]


def run(arch: Arch, start: str, actors: tuple[str, ...]) -> Report:
    return explore(lambda: OnePage(arch, start, actors).scene())


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("arch", [GENERIC, X86], ids=arch_id)
def test_any_two_in_every_order(arch: Arch, start: str):
    total = Report()
    for actors in PAIRS:
        total += run(arch, start, actors)
    print(total)
    assert total.nr_orders >= len(PAIRS)


@pytest.mark.parametrize("start", STARTS)
def test_fast_gup_without_interrupts_beside_any_other(start: str):
    for actors in PAIRS:
        if {"gup_fast", "dma"} & set(actors):
            print(actors, run(X86_2008, start, actors))


@pytest.mark.parametrize("arch", [GENERIC, X86], ids=arch_id)
def test_55_munmap_and_unmapping_by_offset_in_every_order(arch: Arch):
    """Whoever unmapped by offset, no CPU reaches the page: also one that munmap left to flush."""
    for start in ("nvram", "ram", "dirty"):
        for actors in (("unmap", "zap", "store_again"), ("unmap", "zap", "look_again")):
            print(start, actors, run(arch, start, actors))


@pytest.mark.parametrize("actors", TRIPLES, ids="-".join)
@pytest.mark.parametrize("arch", [GENERIC, X86, X86_2008], ids=arch_id)
def test_three_in_every_order(arch: Arch, actors: tuple[str, ...]):
    for start in ("ram", "hole") if "demote" not in actors else ("dirty",):
        print(start, run(arch, start, actors))


@pytest.mark.long
@pytest.mark.parametrize("first", ACTORS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("arch", [GENERIC, X86], ids=arch_id)
def test_any_three_in_every_order(arch: Arch, start: str, first: str):
    total = Report()
    for others in itertools.combinations(ACTORS[ACTORS.index(first) + 1 :], 2):
        total += run(arch, start, (first, *others))
    print(total)


SEEDED_BUGS: dict[str, tuple[Any, str, str, str]] = {
    "fault without a second look at the mapping": (
        filemap_xip,
        "xip_file_fault",
        "if mapping.invalidate_seq == seq:",
        "if True:",
    ),
    "fault amid a migration": (
        filemap_xip,
        "xip_file_fault",
        "mapping.read_invalidate_begin()",
        "mapping.invalidate_seq",
    ),
    "no second look for the sparse page": (
        filemap_xip,
        "_fault_sparse",
        "mapping.a_ops.get_xip_mem(mapping, vmf.pgoff, create=False)",
        "raise NoDataError('a hole, surely')",
    ),
    "the sparse page stays mapped": (
        filemap_xip,
        "_fill_hole",
        "_xip_unmap(machine, mapping, pgoff)",
        "pass",
    ),
    "write without i_rwsem": (
        filemap_xip,
        "xip_file_write",
        "with mapping.i_rwsem.write():",
        "if True:",
    ),
    "write that leaves its frame clean": (
        filemap_xip,
        "xip_file_write",
        "_mark_dirty(machine, kaddr)",
        "pass",
    ),
    "get_page without unless_zero": (
        gup,
        "_try_grab_page_fast",
        "if not mem_map.get_page_unless_zero(page):",
        "mem_map._refcount[page] += 1\n    if False:",
    ),
    "fast GUP without a second look at the pte": (
        gup,
        "_try_grab_page_fast",
        "not is_same or leaf.words[pte_index(address)] != pte or unshare",
        "False",
    ),
    "unmapping that lets CPUs go on": (
        rmap,
        "zap_page_range",
        "return unmap_page_range(tlb, vma, start, end, even_cows=even_cows)",
        "nr_zapped = unmap_page_range(tlb, vma, start, end, even_cows=even_cows)\n"
        "        tlb._end = 0\n        return nr_zapped",
    ),
    "unmapping that trusts others to flush": (
        tlb,
        "MmuGather.__exit__",
        "if mm.tlb_flush_pending > 1:",
        "if False:",
    ),
    "put_page before the flush": (
        tlb,
        "MmuGather.__exit__",
        "    mm = self.mm\n",
        "    mm = self.mm\n    self._free()\n    self._pages = []\n",
    ),
    "leaf freed under a walk": (tlb, "MmuGather._free", "_wait_for_walks(self.mm)", "pass"),
    "flush that waits for no interrupts": (
        tlb,
        "wait_for_interrupts",
        "_wait_for_walks(mm)",
        "pass",
    ),
    "area that leaves its file before the flush": (
        mmap,
        "munmap",
        "tlb.flush_tlbonly()",
        "pass",
    ),
    "area that leaves its file amid an unmapping by offset": (
        areas,
        "Mm.remove_vma",
        "with vma.vm_file.i_mmap_rwsem.write():",
        "if True:",
    ),
    "mprotect without flush": (
        mprotect,
        "_mprotect_fixup",
        "tlb.cleared(vma.vm_start, vma.vm_end)",
        "pass",
    ),
    "fork without flush": (fork, "dup_mm", "flush_tlb_mm(parent)", "pass"),
    "private copy without flush": (
        fault,
        "_wp_page_copy",
        "flush_tlb_page(mm, vmf.address)",
        "pass",
    ),
    "private copy that waits with its pte cleared": (
        fault,
        "_wp_page_copy",
        "wait_for_interrupts(mm)",
        "pass",
    ),
    "zap that forgets a dirty pte": (rmap, "_zap_pte", "if dirty:", "if False:"),
    "promotion that copies before it unmaps": (
        migrate,
        "_fill_frames",
        "    unmap_mapping_pages(mapping, pgoffs)\n"
        '    atomic_step("promote: copy")\n'
        "    unreadable = _copy_pages(machine, homes, frames)\n",
        "    unreadable = _copy_pages(machine, homes, frames)\n    atomic_step('x')\n"
        "    unmap_mapping_pages(mapping, pgoffs)\n",
    ),
    "demotion that does not ask whether the page is busy": (
        migrate,
        "_isolate_pages",
        "if mem_map.page_count(pfn := i_pages[pgoff]) == 1",
        "if (pfn := i_pages[pgoff]) is not None",
    ),
    "demotion that unmaps after it looked whether the page is busy": (
        migrate,
        "_isolate_pages",
        """    unmap_mapping_pages(mapping, pgoffs)
    atomic_step("demote: busy?")
    # A look after the unmapping: who reached the frame by a pte holds a reference.
    idle = {pgoff: pfn for pgoff in pgoffs if mem_map.page_count(pfn := i_pages[pgoff]) == 1}
""",
        """    count, mapcount = mem_map.page_count, mem_map.page_mapcount
    idle = {pgoff: pfn for pgoff in pgoffs if count(pfn := i_pages[pgoff]) == 1 + mapcount(pfn)}
    atomic_step("demote: unmap")
    unmap_mapping_pages(mapping, pgoffs)
""",
    ),
    "demotion without write back": (migrate, "_isolate_pages", "if dirty:", "if False:"),
    "demotion that does not stop faults": (
        migrate,
        "demote_pages",
        "with mapping.i_rwsem.write(), mapping.invalidate():",
        "with mapping.i_rwsem.write():",
    ),
    "truncation that unmaps nothing": (
        truncate,
        "truncate_setsize",
        "if start < end:",
        "if False:",
    ),
    "truncation that does not stop faults": (
        truncate,
        "truncate_setsize",
        "with mapping.invalidate():",
        "if True:",
    ),
    "private copy without a second look at the pte": (
        fault,
        "_wp_page_copy",
        "if not copied or not _pte_same(vmf):",
        "if not copied:",
    ),
    "private copy that keeps the old page's reference": (
        fault,
        "_wp_page_copy",
        "        mem_map.page_remove_rmap(old)\n        mem_map.put_page(old)\n",
        "        mem_map.page_remove_rmap(old)\n",
    ),
}


_IN_HOLES = [(GENERIC, "hole", actors) for actors in PAIRS]

HINTS: dict[str, list[tuple[Arch, str, tuple[str, ...]]]] = {
    "no second look for the sparse page": _IN_HOLES,
    "the sparse page stays mapped": _IN_HOLES,
    "get_page without unless_zero": [
        (X86, "ram", actors) for actors in PAIRS if "gup_fast" in actors
    ],
    "fast GUP without a second look at the pte": [(X86, "ram", ("copy", "demote", "gup_fast"))],
    "flush that waits for no interrupts": [
        (X86_2008, "ram", actors) for actors in PAIRS if "gup_fast" in actors
    ],
    "private copy that waits with its pte cleared": [
        (X86_2008, "ram", ("copy", "read_private", "gup_private"))
    ],
    "leaf freed under a walk": [(X86, "ram", ("unmap", "dma"))],
    "demotion that does not ask whether the page is busy": [(X86, "ram", ("demote", "dma"))],
    "demotion that unmaps after it looked whether the page is busy": [
        (X86, "ram", ("demote", "dma"))
    ],
    "area that leaves its file amid an unmapping by offset": [
        (GENERIC, "nvram", ("unmap", "zap", "look_private"))
    ],
    "fork without flush": [(GENERIC, "nvram", actors) for actors in PAIRS if "fork" in actors],
}
"""Where bugs are found that would take long otherwise."""


def first_find(name: str) -> tuple[str, Exception] | None:
    everywhere = itertools.product((GENERIC, X86, X86_2008), STARTS, [*PAIRS, *TRIPLES])
    for arch, start, actors in HINTS.get(name, everywhere):
        try:
            run(arch, start, actors)
        except Exception as exc:
            return f"{arch.name}, {start}: {actors}", exc
    return None


@pytest.mark.parametrize("name", SEEDED_BUGS)
def test_a_seeded_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    sow(monkeypatch, SEEDED_BUGS[name])
    found = first_find(name)
    assert found is not None, "the checks do not notice it"
    where, exc = found
    assert isinstance(exc, AssertionError), "found by accident"  # BugError is one
    print(where, exc)
