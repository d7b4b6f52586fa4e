"""Repairs of space: the bitmaps, their descriptors and counts are made from who holds what."""

import numpy as np

from xipfs.errors import bug_on
from xipfs.fs.fsck.pages import check_group
from xipfs.fs.fsck.repairer import Repairer
from xipfs.fs.fsck.report import Findings, Invariant
from xipfs.ondisk.group import (
    GROUP_DESC,
    GROUP_SHIFT,
    NR_GROUP_PAGES,
    DiskGroupDesc,
    GroupFlags,
    bitmap_checksum,
)
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["repair_groups"]


def repair_groups(repairer: Repairer) -> None:
    """I26 to I28, and I30 of the descriptors: mark what is held, and count what is not."""
    disk, image = repairer.disk, repairer.image
    used = repairer.check.used
    if used is None:
        bug_on(True, "bitmaps without knowing who holds what")
        return
    gdt_offset = disk.gdt_block << PAGE_SHIFT
    nr_free_pages = nr_groups = 0
    for group in range(disk.nr_groups):
        offset = gdt_offset + group * GROUP_DESC.size_bytes
        record = image.load(offset, GROUP_DESC.size_bytes)
        first = group << GROUP_SHIFT
        held = used.of_group(group)
        held[max(disk.nr_pages - first, 0) :] = True
        nr_here = NR_GROUP_PAGES - int(np.count_nonzero(held))
        nr_free_pages += nr_here
        found = check_group(image, disk, group, record, Findings(None))
        uninit = not held.any() and (found is None or found[1] is None)
        bitmap = np.packbits(held, bitorder="little").tobytes()
        desc = DiskGroupDesc(
            group=group,
            flags=int(GroupFlags.BITMAP_UNINIT) if uninit else 0,
            nr_free_pages=nr_here,
            bitmap_checksum=0 if uninit else bitmap_checksum(bitmap, disk.seed),
        ).encode(disk.seed)
        if desc == record and (uninit or bitmap == repairer.load_page(disk.bitmap_block + group)):
            continue
        nr_groups += 1
        image.store(offset, desc)
        if not uninit:
            repairer.put_page(disk.bitmap_block + group, bitmap)
    end = disk.nr_groups * GROUP_DESC.size_bytes
    rest_bytes = -end % PAGE_SIZE
    if any(image.load(gdt_offset + end, rest_bytes)):
        image.store(gdt_offset + end, bytes(rest_bytes))
        repairer.did(Invariant.RESERVED, "the descriptors' last page: made zero behind them")
    if nr_groups:
        repairer.did(Invariant.BITMAPS, f"{nr_groups} groups: marked anew from who holds what")
    state = repairer.state()
    if state.nr_free_pages != nr_free_pages:
        repairer.put_state(state._replace(nr_free_pages=nr_free_pages))
        repairer.did(Invariant.FREE_COUNTS, f"the state: {nr_free_pages} free pages")
