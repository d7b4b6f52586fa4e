"""Layout: where an image keeps what stands once in it, and that no file may have.

    areas = metadata_areas(disk)        superblock, state, journal, descriptors, bitmaps, replica
    layout_problems(disk)               [] if they are inside the image and apart
    metadata_runs(disk)                 the same pages as runs [start, end), for a quick look

All of it follows from the superblock, so it is known when an image is opened, whatever its size.
What lies elsewhere (the inode file, directories, nodes, attributes, files) is found by walking:
that two of those have the same page only fsck sees.
"""

import itertools
from typing import NamedTuple

from xipfs.ondisk.group import GROUP_DESC, GROUP_SHIFT
from xipfs.ondisk.superblock import STATE_BLOCK, DiskSuperblock
from xipfs.units import PAGE_SHIFT, bytes_to_pages

__all__ = ["Area", "PageRun", "layout_problems", "metadata_areas", "metadata_runs"]

NR_JOURNAL_PAGES_MIN = 2

PageRun = tuple[int, int]
"""Pages [start, end) of the image."""


class Area(NamedTuple):
    """Pages of the image that hold one kind of metadata."""

    name: str
    block: int
    nr_pages: int


def metadata_areas(disk: DiskSuperblock) -> list[Area]:
    """Return what the superblock names, and the places that are fixed."""
    nr_gdt_pages = bytes_to_pages(disk.nr_groups * GROUP_DESC.size_bytes)
    return [
        Area("the superblock", 0, 1),
        Area("the state", STATE_BLOCK, 1),
        Area("the journal", disk.journal_block, disk.nr_journal_pages),
        Area("the descriptors", disk.gdt_block, nr_gdt_pages),
        Area("the bitmaps", disk.bitmap_block, disk.nr_groups),
        Area("the replica", disk.nr_pages - 1, 1),
    ]


def layout_problems(disk: DiskSuperblock) -> list[str]:
    """Return what is wrong with where the superblock says things are, a line each."""
    problems = []
    if disk.page_shift != PAGE_SHIFT or disk.group_shift != GROUP_SHIFT:
        problems.append(f"page size 2^{disk.page_shift}, groups of 2^{disk.group_shift} pages")
    if disk.nr_groups != -(-disk.nr_pages >> GROUP_SHIFT):
        problems.append(f"{disk.nr_groups} groups, {disk.nr_pages} pages")
    if disk.nr_journal_pages < NR_JOURNAL_PAGES_MIN:
        problems.append(f"{disk.nr_journal_pages} pages of journal")
    areas = sorted(metadata_areas(disk), key=lambda area: area.block)
    for area, following in itertools.pairwise(areas):
        if area.block + area.nr_pages > following.block:
            problems.append(
                f"{area.name} of {area.nr_pages} pages at page {area.block} runs into "
                f"{following.name} at page {following.block}"
            )
    if areas[-1].block >= disk.nr_pages:
        problems.append(f"{areas[-1].name} at page {areas[-1].block} of {disk.nr_pages}")
    return problems


def metadata_runs(disk: DiskSuperblock) -> tuple[PageRun, ...]:
    """Return the pages of all areas as runs that do not touch, sorted; of a sound layout."""
    runs: list[PageRun] = []
    for _, block, nr_pages in sorted(metadata_areas(disk), key=lambda area: area.block):
        if runs and runs[-1][1] == block:
            runs[-1] = (runs[-1][0], block + nr_pages)
        else:
            runs.append((block, block + nr_pages))
    return tuple(runs)
