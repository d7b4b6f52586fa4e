"""What people look at: a file's tiers and extents, the region as a map."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xipfs.fs.extent import iter_extents
from xipfs.fs.inode import Inode
from xipfs.fs.superblock import SuperBlock
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.machine import Machine
from xipfs.mm.pgtable import PMD_SHIFT, PTRS_PER_PTE
from xipfs.mm.vma import Mm
from xipfs.ondisk.extent import ExtentFlags
from xipfs.policy.contract import PGOFF_BITS, PageIds
from xipfs.policy.pageset import is_in
from xipfs.tiering.mover import page_heat
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, PFN_NONE, Ino, Pgoff, Vaddr

__all__ = [
    "NR_LISTED_EXTENTS_MAX",
    "RegionMap",
    "extents_json",
    "hottest_files",
    "region_map",
    "tier_runs",
    "tiers_json",
]

_TIER_NAMES = ("ram", "nvram", "hole")

NR_LISTED_EXTENTS_MAX = 512
"""An attribute's value ends at 64 KiB."""


class RegionMap(NamedTuple):
    """The NVRAM region cut into cells of nr_cell_pages pages; all arrays of shape (nr_cells,).

    nr_mapped: int64, pages mapped by bare pfn. nr_ram: int64, pages whose bytes are in RAM now.
    heat: int64, accesses of late (tiering.daemon cools them), summed over the cell.
    """

    nr_cell_pages: int
    nr_mapped: NDArray[np.int64]
    nr_ram: NDArray[np.int64]
    heat: NDArray[np.int64]


def tiers_json(sb: SuperBlock, inode: Inode) -> dict[str, int]:
    """Return how many pages of a file are in RAM, in NVRAM, and in no memory at all."""
    nr_pages = inode.mapping.nr_pages
    nr_nvram = sum(
        max(0, min(nr_extent_pages, nr_pages - pgoff))
        for pgoff, _, nr_extent_pages, flags in iter_extents(sb.nvram, sb.seed, inode.disk)
        if not flags & ExtentFlags.UNWRITTEN
    )
    nr_ram = len(inode.mapping.i_pages)
    return {
        "pages": nr_pages,
        "ram": nr_ram,
        "nvram": nr_nvram - nr_ram,
        "hole": nr_pages - nr_nvram,
    }


def extents_json(sb: SuperBlock, inode: Inode) -> dict[str, Any]:
    """Return a file's extents: [pgoff, first pfn, pages], with "unwritten" where it applies."""
    extents: list[list[Any]] = []
    nr_extents = 0
    for pgoff, block, nr_pages, flags in iter_extents(sb.nvram, sb.seed, inode.disk):
        nr_extents += 1
        if len(extents) < NR_LISTED_EXTENTS_MAX:
            extent: list[Any] = [pgoff, NVRAM_PFN_START + block, nr_pages]
            extents.append([*extent, "unwritten"] if flags & ExtentFlags.UNWRITTEN else extent)
    return {"nr_extents": nr_extents, "extents": extents}


def tier_runs(
    mapping: AddressSpace, pinned: PageIds, start: int, end: int
) -> list[tuple[int, int, str, bool, int]]:
    """Return the pages [start, end) of a file, not empty, as runs of pages that are alike.

    A run is (first page, number, "ram" | "nvram" | "hole", is it pinned?, heat of each page).
    Raises: FormatError, DeviceError.
    """
    pfns = mapping.a_ops.get_xip_pfns(mapping, Pgoff(start), end - start)
    tiers = np.where(pfns == PFN_NONE, 2, np.where(pfns < NVRAM_PFN_START, 0, 1))
    pages = (mapping.id << PGOFF_BITS) + np.arange(start, end)
    is_pinned = is_in(pages, pinned)
    heat = page_heat(mapping, start, end - start)
    alike = np.stack([tiers, is_pinned, heat])
    breaks = np.flatnonzero((alike[:, 1:] != alike[:, :-1]).any(axis=0)) + 1
    starts = [0, *breaks.tolist()]
    return [
        (start + i, j - i, _TIER_NAMES[tiers[i]], bool(is_pinned[i]), int(heat[i]))
        for i, j in zip(starts, [*starts[1:], end - start], strict=True)
    ]


def hottest_files(mm: Mm, sb: SuperBlock, nr_files: int) -> list[dict[str, int]]:
    """Return files with heat or pages in RAM, the hottest first: ino, heat, and `tiers_json`.

    Raises: FormatError, DeviceError (a damaged image).
    """
    owners = mm.machine.mem_map.mapping
    heat_by_file: Counter[int] = Counter(dict.fromkeys(np.unique(owners[owners >= 0]).tolist(), 0))
    for number, leaf in mm.page_table.leaves.items():
        hot = np.flatnonzero(leaf.heat)
        while len(hot):
            vma = mm.find_vma(Vaddr((number << PMD_SHIFT) + (int(hot[0]) << PAGE_SHIFT)))
            end = PTRS_PER_PTE
            if vma is not None:
                end = min((vma.vm_end >> PAGE_SHIFT) - number * PTRS_PER_PTE, PTRS_PER_PTE)
                if vma.vm_file is not None:
                    heat_by_file[vma.vm_file.id] += int(leaf.heat[hot[0] : end].sum(dtype=np.int64))
            hot = hot[hot >= end]
    return [
        {"ino": ino, "heat": heat, **tiers_json(sb, inode)}
        for ino, heat in heat_by_file.most_common(nr_files)
        if (inode := sb.find_inode(Ino(ino))) is not None
    ]


def region_map(mm: Mm, sb: SuperBlock, nr_cells: int) -> RegionMap:
    """Return what is mapped, promoted and hot, by place in the image; for touched leaves only."""
    machine = mm.machine
    nr_cells = max(1, min(nr_cells, machine.nr_nvram_frames))
    nr_cell_pages = -(-machine.nr_nvram_frames // nr_cells)
    nr_cells = -(-machine.nr_nvram_frames // nr_cell_pages)
    frame_blocks = _frame_blocks(machine, sb)
    nr_mapped = np.zeros(nr_cells, np.int64)
    heat = np.zeros(nr_cells, np.int64)
    for leaf in mm.page_table.leaves.values():
        present = np.flatnonzero(leaf.ptes)
        pfns = (leaf.ptes[present] >> PAGE_SHIFT).astype(np.int64)
        is_ram = pfns < NVRAM_PFN_START
        blocks = pfns - NVRAM_PFN_START
        blocks[is_ram] = frame_blocks[pfns[is_ram]]
        known = blocks >= 0
        cells = blocks[known] // nr_cell_pages
        np.add.at(heat, cells, leaf.heat[present][known])
        np.add.at(nr_mapped, cells[~is_ram[known]], 1)
    nr_ram = np.bincount(
        frame_blocks[frame_blocks >= 0] // nr_cell_pages, minlength=nr_cells
    ).astype(np.int64)
    return RegionMap(nr_cell_pages, nr_mapped, nr_ram, heat)


def _frame_blocks(machine: Machine, sb: SuperBlock) -> NDArray[np.int64]:
    """Return for each RAM frame the image page that it shadows, -1 for none; int64."""
    mem_map = machine.mem_map
    blocks = np.full(mem_map.nr_frames, -1, np.int64)
    for frame in np.flatnonzero(mem_map.mapping >= 0).tolist():
        inode = sb.find_inode(mem_map.mapping[frame])
        block = inode.extents.find_block(mem_map.index[frame]) if inode is not None else None
        if block is not None:
            blocks[frame] = block
    return blocks
