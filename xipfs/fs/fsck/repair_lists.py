"""Repair of what is said of all inodes together: the free and the orphan list, their number."""

import numpy as np

from xipfs.fs.fsck.repairer import Repairer
from xipfs.fs.fsck.report import Invariant
from xipfs.ondisk.inode import (
    InodeFlags,
)
from xipfs.units import Ino

__all__ = ["repair_lists", "repair_nr_inodes"]


def repair_lists(repairer: Repairer) -> None:
    """I25: chain both lists anew, by the numbers of their inodes."""
    table, state = repairer.table, repairer.state()
    is_orphan = (table.rows["flags"] & int(InodeFlags.ORPHAN)) != 0
    heads = []
    for members in (table.free, table.rows[is_orphan]):
        inos = members["ino"].tolist()
        for ino, next_ino, found in zip(inos, [*inos[1:], 0], members["next_ino"], strict=False):
            if next_ino != found:
                record = repairer.record(ino)
                record["next_ino"] = next_ino
                repairer.put_record(ino, record)
        heads.append(Ino(inos[0] if inos else 0))
    repairer.put_state(state._replace(free_ino_head=heads[0], orphan_ino_head=heads[1]))
    repairer.did(
        Invariant.LISTS,
        f"chained anew: {len(table.free)} free inodes, {np.count_nonzero(is_orphan)} orphans",
    )


def repair_nr_inodes(repairer: Repairer) -> None:
    """I29: count the inodes in use."""
    nr_inodes = len(repairer.table.rows)
    repairer.put_state(repairer.state()._replace(nr_inodes=nr_inodes))
    repairer.did(Invariant.NR_INODES, f"the state: {nr_inodes} inodes in use")
