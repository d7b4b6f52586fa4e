"""A small world for tests of phys and mm: a region, files in dicts, machines.

    world = World(tmp_path / "region")
    mapping = world.fs.make_file({0: 3, 1: 4, 5: 9}, nr_pages=8)     pages 2, 3, 4, 6, 7 are holes
    vma = world.mmap(mapping)
    world.page(access_page(vma, Pgoff(5))) == block_bytes(9)

Every page of the region has contents of its own, so bytes tell where they come from.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from xipfs.errors import NoDataError, NoSpaceError, ReadOnlyFsError, XipfsError
from xipfs.fs.extent import ExtentMap
from xipfs.fs.xip import XipOperations
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.arch import ARCH_DEFAULT, ARCHS, Arch, get_arch
from xipfs.mm.check import check_invariants
from xipfs.mm.fault import handle_mm_fault
from xipfs.mm.filemap_xip import XIP_FILE_VM_OPS, xip_file_mmap
from xipfs.mm.lock import Scheduler, set_scheduler
from xipfs.mm.machine import Machine
from xipfs.mm.pgtable import PMD_SHIFT
from xipfs.mm.vm_fault import FaultResult, VmOperations
from xipfs.mm.vma import (
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MIXEDMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    VM_XIP_FILE,
    Mm,
    Vma,
)
from xipfs.ondisk.extent import EXTENT_DTYPE
from xipfs.ondisk.inode import DiskInode
from xipfs.phys.nvram import NvramDevice
from xipfs.units import (
    NVRAM_PFN_START,
    PAGE_SHIFT,
    PAGE_SIZE,
    PFN_NONE,
    Ino,
    Kaddr,
    Paddr,
    Pfn,
    Pgoff,
    pfn_to_kaddr,
    virt_to_pfn,
)

__all__ = [
    "ARCH_KINDS",
    "BARE",
    "PRIVATE_RW",
    "SHARED_RW",
    "ZEROS",
    "DictFs",
    "World",
    "arch_id",
    "archs",
    "at_step",
    "block_bytes",
    "fault",
    "iter_ptes",
    "make_extent_file",
    "make_nvram",
    "run_python",
    "snapshot",
]

ARCH_KINDS = {"bare": ARCH_DEFAULT, "special": get_arch("x86", "6.18")}
"""Without and with a pte special bit: all that mixed maps notice of an architecture."""

ZEROS = bytes(PAGE_SIZE)

PRIVATE_RW = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MIXEDMAP
SHARED_RW = PRIVATE_RW | VM_SHARED | VM_MAYSHARE

BARE = Pfn(NVRAM_PFN_START + 7)
"""A frame without struct page, which holds block_bytes(7)."""

_NR_WORDS = PAGE_SIZE // 8


def block_bytes(block: int) -> bytes:
    """Return what page *block* of a region holds: no two words of any two pages are equal."""
    words = (1 << 56) + (block << 16) + np.arange(_NR_WORDS)
    return words.astype("<u8").tobytes()


def arch_id(arch: Arch) -> str:
    return f"{arch.name}-{arch.version}"


def archs(applies: Callable[[Arch], bool]) -> pytest.MarkDecorator:
    """Mark a test, or a module, that applies to some architectures only."""
    return pytest.mark.parametrize("arch", list(filter(applies, ARCHS)), ids=arch_id)


def fault(vma: Vma, pgoff: int, flags: int = 0) -> FaultResult:
    return handle_mm_fault(vma, vma.address(Pgoff(pgoff)), flags)


@contextmanager
def at_step(what: str, act: Callable[[], object]) -> Iterator[None]:
    """Let another party act() once, where mm is about to do the step *what*; it must come there."""
    steps = _OneInterruption(what, act)
    set_scheduler(steps)
    try:
        yield
    finally:
        set_scheduler(None)
    assert steps.act is None, f"no step {what!r}"


class _OneInterruption(Scheduler):
    def __init__(self, what: str, act: Callable[[], object]) -> None:
        self.what = what
        self.act: Callable[[], object] | None = act

    def step(self, what: str) -> None:
        act = self.act
        if act is not None and what == self.what:
            self.act = None
            act()


def make_nvram(path: Path, nr_pages: int, nr_zero_pages: int = 0) -> NvramDevice:
    """Return a device of nr_pages pages; the last nr_zero_pages are zeros, the rest block_bytes."""
    blocks = np.arange(nr_pages - nr_zero_pages)
    words = (1 << 56) + (blocks[:, np.newaxis] << 16) + np.arange(_NR_WORDS)
    with path.open("wb") as file:
        file.write(words.astype("<u8").tobytes())
        file.truncate(nr_pages << PAGE_SHIFT)
    return NvramDevice.open(path)


class DictFs:
    """AddressSpaceOperations over a dict: (file id, pgoff) -> block; what is not there is a hole.

    free_blocks: pages of zeros that filling a hole takes; NoSpaceError when there is none left.
    errors: (file id, pgoff) -> what to raise instead of an answer.
    nr_calls: how often each operation was called.
    """

    def __init__(self, free_blocks: Iterable[int] = ()) -> None:
        self.blocks: dict[tuple[int, int], int] = {}
        self.files: list[AddressSpace] = []
        self.free_blocks = list(free_blocks)
        self.errors: dict[tuple[int, int], XipfsError] = {}
        self.nr_calls: Counter[str] = Counter()

    def make_file(
        self,
        blocks: Mapping[int, int],
        *,
        nr_pages: int | None = None,
        size_bytes: int | None = None,
        read_only: bool = True,
    ) -> AddressSpace:
        """Return a new file of *blocks*; it ends behind the last one unless told otherwise."""
        if size_bytes is None:
            if nr_pages is None:
                nr_pages = max(blocks, default=-1) + 1
            size_bytes = nr_pages << PAGE_SHIFT
        ident = 16 + len(self.files)
        mapping = AddressSpace(ident, self, i_size_bytes=size_bytes, read_only=read_only)
        self.files.append(mapping)
        self.blocks.update({(ident, pgoff): block for pgoff, block in blocks.items()})
        return mapping

    def get_xip_mem(
        self, mapping: AddressSpace, pgoff: Pgoff, *, create: bool
    ) -> tuple[Kaddr, Pfn]:
        self.nr_calls["get_xip_mem"] += 1
        return self._find(mapping, pgoff, create=create)

    def get_xip_pfns(self, mapping: AddressSpace, pgoff: Pgoff, nr_pages: int) -> Any:
        self.nr_calls["get_xip_pfns"] += 1
        pfns = np.full(nr_pages, PFN_NONE, np.int64)
        for page in range(nr_pages):
            try:
                kaddr, _ = self._find(mapping, Pgoff(pgoff + page), create=False)
            except NoDataError:
                continue
            pfns[page] = virt_to_pfn(kaddr)
        return pfns

    def get_nvram_pfns(self, mapping: AddressSpace, pgoffs: Sequence[int]) -> list[int]:
        self.nr_calls["get_nvram_pfns"] += 1
        pfns = []
        for key in ((mapping.id, pgoff) for pgoff in pgoffs):
            if key in self.errors:
                raise self.errors[key]
            block = self.blocks.get(key)
            pfns.append(PFN_NONE if block is None else NVRAM_PFN_START + block)
        return pfns

    def _find(self, mapping: AddressSpace, pgoff: Pgoff, *, create: bool) -> tuple[Kaddr, Pfn]:
        frame = mapping.i_pages.get(pgoff)
        if frame is not None:
            return pfn_to_kaddr(frame), Pfn(PFN_NONE)
        key = (mapping.id, int(pgoff))
        if key in self.errors:
            raise self.errors[key]
        if key not in self.blocks:
            if not create:
                raise NoDataError(f"a hole: {key}")
            if not self.free_blocks:
                raise NoSpaceError(f"no block for {key}")
            self.blocks[key] = self.free_blocks.pop()
        pfn = Pfn(NVRAM_PFN_START + self.blocks[key])
        return pfn_to_kaddr(pfn), pfn


def make_extent_file(
    nvram: NvramDevice, extents: Sequence[tuple[int, int, int]], *, nr_pages: int, ino: int = 20
) -> AddressSpace:
    """Return a file over the real get_xip_mem: *extents* of (pgoff, block, nr_pages), at most 5."""
    entries = np.array([(*extent, 0) for extent in extents], EXTENT_DTYPE)
    fields: dict[str, Any] = dict.fromkeys(DiskInode._fields, 0)
    fields.update(ino=Ino(ino), nr_extents=len(entries), payload=entries.tobytes())
    inode = _Extents(ExtentMap(nvram, 0, DiskInode(**fields)))
    a_ops = XipOperations({Ino(ino): inode}.__getitem__, _refuse)
    return AddressSpace(ino, a_ops, i_size_bytes=nr_pages << PAGE_SHIFT, read_only=True)


def _refuse() -> NoReturn:
    raise ReadOnlyFsError("mounted read-only")


class _Extents:
    """As much of an inode as XipOperations looks at."""

    def __init__(self, extents: ExtentMap) -> None:
        self.extents = extents


class World:
    """A region of nr_blocks pages, the last nr_zero_blocks free and zero; a machine; one mm.

    nvram: a device to share with other worlds, instead of one at *path* of our own.
    """

    def __init__(
        self,
        path: Path | None,
        arch: Arch = ARCH_DEFAULT,
        *,
        nr_blocks: int = 64,
        nr_zero_blocks: int = 4,
        nr_tier_frames: int = 8,
        nvram: NvramDevice | None = None,
    ) -> None:
        self._owns_nvram = nvram is None
        if nvram is None:
            assert path is not None
            nvram = make_nvram(path, nr_blocks, nr_zero_blocks)
        self.machine = Machine(nvram, nr_tier_frames=nr_tier_frames, arch=arch)
        self.fs = DictFs(range(nr_blocks - nr_zero_blocks, nr_blocks))
        self.mms: list[Mm] = []
        self.mm = self.make_mm()

    def make_mm(self) -> Mm:
        self.mms.append(Mm(self.machine))
        return self.mms[-1]

    def mmap(
        self,
        mapping: AddressSpace,
        *,
        pgoff: int = 0,
        nr_pages: int | None = None,
        vm_flags: int = VM_XIP_FILE,
        vm_ops: VmOperations = XIP_FILE_VM_OPS,
        mm: Mm | None = None,
    ) -> Vma:
        """Map *mapping* from *pgoff* to its end, unless told otherwise, into the first mm."""
        if nr_pages is None:
            nr_pages = mapping.nr_pages - pgoff
        mm = mm if mm is not None else self.mm
        if vm_ops is XIP_FILE_VM_OPS:
            return xip_file_mmap(
                mm, mapping, nr_pages=nr_pages, pgoff=Pgoff(pgoff), vm_flags=vm_flags
            )
        vma = mm.mmap(
            mapping, nr_pages=nr_pages, pgoff=Pgoff(pgoff), vm_flags=vm_flags, vm_ops=vm_ops
        )
        vma.set_page_prot()
        return vma

    def counts(self, frame: Pfn, mm: Mm | None = None) -> tuple[int, int, int, int]:
        """Return (references, ptes) of *frame* and (file, anonymous) rss of the first mm."""
        mem_map = self.machine.mem_map
        mm = mm if mm is not None else self.mm
        return (
            mem_map.page_count(frame),
            mem_map.page_mapcount(frame),
            mm.rss_file,
            mm.rss_anon,
        )

    def page(self, pfn: int) -> bytes:
        """Return the bytes of frame *pfn*, of either kind."""
        return bytes(self.machine.physmem.view(Paddr(pfn << PAGE_SHIFT), PAGE_SIZE))

    def pte(self, vma: Vma, pgoff: int) -> int:
        return vma.vm_mm.page_table.find_pte(vma.address(Pgoff(pgoff)))

    def check(self, pins: Iterable[int] = ()) -> None:
        """See `xipfs.mm.check`."""
        check_invariants(self.machine, self.mms, self.fs.files, pins)

    def close(self) -> None:
        """Give all back; BufferError tells of a view that somebody kept."""
        self.machine.close()
        if self._owns_nvram:
            self.machine.physmem.nvram.close()


def iter_ptes(mm: Mm) -> Iterator[tuple[Vma, Pgoff, int]]:
    """Yield (vma, pgoff, pte) of every present pte."""
    for number, leaf in mm.page_table.leaves.items():
        for index in np.flatnonzero(leaf.ptes).tolist():
            address = (number << PMD_SHIFT) + (index << PAGE_SHIFT)
            vma = mm.find_vma(address)
            assert vma is not None, f"a pte in no vma: {address:#x}"
            yield vma, vma.pgoff(address), leaf.words[index]


def snapshot(machine: Machine, mms: Sequence[Mm], files: Sequence[AddressSpace]) -> dict[str, Any]:
    """Return all that mm knows, as values to compare."""
    mem_map = machine.mem_map
    return {
        "refcount": mem_map.refcount.tolist(),
        "mapcount": mem_map.mapcount.tolist(),
        "mapping": mem_map.mapping.tolist(),
        "index": mem_map.index.tolist(),
        "flags": mem_map.flags.tolist(),
        "vmstat": asdict(machine.vmstat),
        "i_pages": [dict(mapping.i_pages) for mapping in files],
        "rss": [(mm.rss_file, mm.rss_anon) for mm in mms],
        "leaves": [
            {
                number: (
                    leaf.ptes.tolist(),
                    leaf.accessed.tolist(),
                    leaf.dirty.tolist(),
                    leaf.heat.tolist(),
                    leaf.nr_present,
                )
                for number, leaf in mm.page_table.leaves.items()
            }
            for mm in mms
        ],
    }


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run *script* in a Python of its own that can import what we can."""
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"PYTHONPATH": root},
    )
