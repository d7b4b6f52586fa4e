"""No struct page means none: what a region costs in RAM does not depend on its size."""

import gc
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.kit.mm import make_extent_file
from xipfs.mm.access import access_page, access_range
from xipfs.mm.filemap_xip import xip_file_mmap
from xipfs.mm.machine import Machine
from xipfs.mm.migrate import promote_pages
from xipfs.mm.rmap import unmap_mapping_range
from xipfs.mm.vma import Mm
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, Pgoff

NR_TIER_FRAMES = 64
NR_TOUCHED_LEAVES = 16


@dataclass(frozen=True)
class Cost:
    traced_bytes: int
    nr_leaves: int
    nr_struct_pages: int
    struct_page_saved_bytes: int


def use(path: Path, size_bytes: int) -> Cost:
    """Map a file that fills the region, touch 16 leaves, promote 64 pages; say what is held."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    gc.collect()
    tracemalloc.start()
    nvram = NvramDevice.open(path)
    machine = Machine(nvram, nr_tier_frames=NR_TIER_FRAMES)
    nr_pages = (size_bytes >> PAGE_SHIFT) - 1
    mapping = make_extent_file(nvram, [(0, 1, nr_pages)], nr_pages=nr_pages)
    mm = Mm(machine)
    vma = xip_file_mmap(mm, mapping, nr_pages=nr_pages)
    for i in range(NR_TOUCHED_LEAVES):
        start = nr_pages * i // NR_TOUCHED_LEAVES & -512
        access_page(vma, Pgoff(start))
        access_range(vma, Pgoff(start + 100), 64)
    promote_pages(machine, mapping, np.arange(64))
    access_range(vma, Pgoff(0), 64)
    unmap_mapping_range(mapping, Pgoff(nr_pages // 2), nr_pages // 2, even_cows=True)
    gc.collect()
    traced_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    machine.close()
    nvram.close()
    return Cost(
        traced_bytes,
        len(mm.page_table.leaves),
        machine.mem_map.nr_frames,
        machine.struct_page_saved_bytes,
    )


def test_64_gib_cost_what_64_mib_cost(tmp_path: Path):
    use(tmp_path / "warm", 64 << 20)  # what Python and numpy allocate once is not ours
    small = use(tmp_path / "small", 64 << 20)
    large = use(tmp_path / "large", 64 << 30)
    assert small.nr_leaves == large.nr_leaves == NR_TOUCHED_LEAVES
    assert small.nr_struct_pages == large.nr_struct_pages == NR_TIER_FRAMES + 2
    assert large.struct_page_saved_bytes == 1 << 30
    # The numbers are larger, and take some bytes more; a bit for each page would be 2 MiB.
    assert large.traced_bytes - small.traced_bytes < 4096, (small, large)
