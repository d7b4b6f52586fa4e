"""Repair of the inode file: where its pages are."""

import numpy as np

from xipfs.fs.fsck.extents import BLOCK_FIRST
from xipfs.fs.fsck.repair_extents import Extent, merged
from xipfs.fs.fsck.repairer import InodeRecord, Repairer, is_sealed
from xipfs.fs.fsck.report import Invariant
from xipfs.fs.layout import metadata_areas
from xipfs.ondisk.inode import (
    INO_INODE_FILE,
    INODE,
    INODES_PER_PAGE,
)
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Ino, bytes_to_pages

__all__ = ["grow_inode_file", "repair_inode_file"]

_CHUNK_PAGES = 256
_NR_HOLE_PAGES_MAX = 256
"""A page of the inode file behind a larger hole than this is believed to be none."""


def repair_inode_file(repairer: Repairer) -> None:
    """I8: find the pages of the inode file, and make its own inode say so.

    What the old inode says stays. A page that it does not give, but that some page of the image
    can be, full of inodes of the right numbers, is that page. What is still a hole is made, with
    free inodes, once it is known which pages are free. Behind the last page no inode can be, and
    ino_end comes down to there.
    """
    state = repairer.check.state
    record = repairer.record(int(INO_INODE_FILE))
    blocks = _mapped_blocks(repairer, record)
    nr_mapped = len(blocks)
    nr_wanted = bytes_to_pages(state.ino_end * INODE.size_bytes) if state else 1
    if max(blocks, default=-1) + 1 < nr_wanted or len(blocks) < max(blocks) + 1:
        for pgoff, block in _find_inode_pages(repairer, set(blocks.values())).items():
            blocks.setdefault(pgoff, block)
    nr_found = len(blocks) - nr_mapped
    end = 0
    for pgoff in sorted(blocks):
        if pgoff > end + _NR_HOLE_PAGES_MAX:
            break
        end = pgoff + 1
    blocks = {pgoff: block for pgoff, block in blocks.items() if pgoff < end}
    holes = sorted(set(range(max(end, 1))) - blocks.keys())
    if repairer.check.used is None:
        holes = []
    for pgoff in holes:
        blocks[pgoff] = repairer.allocate_run(1)
        repairer.put_page(blocks[pgoff], bytes(PAGE_SIZE))
    generation = record["generation"][0]
    record = np.zeros(1, INODE.dtype)
    record["generation"] = generation
    record["size_bytes"] = (max(blocks, default=-1) + 1) << PAGE_SHIFT
    extents: list[Extent] = [(pgoff, block, 1, 0) for pgoff, block in sorted(blocks.items())]
    repairer.set_extents(record, merged(extents))
    repairer.put_record(int(INO_INODE_FILE), record)
    if state is not None and end and end * INODES_PER_PAGE < state.ino_end:
        repairer.put_state(state._replace(ino_end=Ino(end * INODES_PER_PAGE)))
    repairer.did(
        Invariant.INODE_FILE,
        f"the inode file: {nr_mapped} pages stay, {nr_found} were found, {len(holes)} made",
    )


def grow_inode_file(repairer: Repairer) -> None:
    """Give the inode file one page more. Raises: NoSpaceError."""
    record = repairer.record(int(INO_INODE_FILE))
    entries, _ = repairer.extents(record)
    end = int(record["size_bytes"][0]) >> PAGE_SHIFT
    block = repairer.allocate_run(1)
    repairer.set_extents(record, merged([*entries.tolist(), (end, block, 1, 0)]))
    record["size_bytes"] = (end + 1) << PAGE_SHIFT
    repairer.put_page(block, bytes(PAGE_SIZE))
    repairer.put_record(int(INO_INODE_FILE), record)
    if repairer.check.inode_file is not None:
        repairer.check.inode_file.append((end, block, 1))


def _mapped_blocks(repairer: Repairer, record: InodeRecord) -> dict[int, int]:
    """Return which page of the inode file is which page of the image, by its own inode."""
    disk = repairer.disk
    if not is_sealed(record, disk, int(INO_INODE_FILE)):
        return {}
    entries, _ = repairer.extents(record)
    blocks: dict[int, int] = {}
    areas = metadata_areas(disk)
    for pgoff, block, nr_pages, flags in entries.tolist():
        in_image = block >= BLOCK_FIRST and block + nr_pages <= disk.nr_pages - 1
        in_file = pgoff >= 0 and pgoff + nr_pages <= bytes_to_pages(1 << 31) * INODE.size_bytes
        in_area = any(
            block < area.block + area.nr_pages and area.block < block + nr_pages for area in areas
        )
        if flags or in_area or not in_image or not in_file:
            continue
        for i in range(nr_pages):
            blocks.setdefault(pgoff + i, block + i)
    return blocks


def _find_inode_pages(repairer: Repairer, known: set[int]) -> dict[int, int]:
    """Search the whole image for pages of inodes; return {pgoff: block}, of several the fullest."""
    disk = repairer.disk
    not_them = set(known)
    for area in metadata_areas(disk):
        not_them.update(range(area.block, area.block + area.nr_pages))
    found: dict[int, tuple[int, int]] = {}  # pgoff -> (sealed inodes, -block)
    for start in range(BLOCK_FIRST, disk.nr_pages - 1, _CHUNK_PAGES):
        nr_pages = min(_CHUNK_PAGES, disk.nr_pages - 1 - start)
        data = repairer.image.load(start << PAGE_SHIFT, nr_pages << PAGE_SHIFT)
        records = np.frombuffer(data, INODE.dtype).reshape(nr_pages, INODES_PER_PAGE)
        for i in np.flatnonzero((records["magic"] == INODE.magic).any(axis=1)).tolist():
            if start + i in not_them:
                continue
            pgoffs = [
                int(records["ino"][i, number]) // INODES_PER_PAGE
                for number in range(INODES_PER_PAGE)
                if int(records["ino"][i, number]) % INODES_PER_PAGE == number
                and is_sealed(records[i, number : number + 1], disk, int(records["ino"][i, number]))
            ]
            if pgoffs and len(set(pgoffs)) == 1:
                here = (len(pgoffs), -(start + i))
                found[pgoffs[0]] = max(found.get(pgoffs[0], here), here)
    return {pgoff: -block for pgoff, (_, block) in found.items()}
