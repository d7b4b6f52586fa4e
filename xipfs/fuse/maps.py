"""The mount's mm as /proc tells of a process: its areas, as smaps has them, and their pages.

An answer is a part: what lies from an address on, until it is large enough, and "next", where to go
on, None at the end. Between two parts requests are served and pages may move, as in /proc.
"""

import os
from collections.abc import Iterator
from typing import Any

from xipfs.errors import bug_on
from xipfs.fs.inode import Inode
from xipfs.fs.superblock import SuperBlock
from xipfs.mm.proc import pagemap_runs, smaps, vm_flag_names
from xipfs.mm.vma import Mm, Vma
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SHIFT, Ino, Pgoff, Vaddr

__all__ = ["NR_AREAS_MAX", "NR_PAGES_MAX", "NR_RUNS_MAX", "pagemap_part", "path_of", "smaps_part"]

NR_AREAS_MAX = 256
NR_RUNS_MAX = 4096
NR_PAGES_MAX = 1 << 18
"""Of one part: areas, runs, and pages looked at; smaps looks at an area as a whole."""


def smaps_part(mm: Mm, sb: SuperBlock, address: Vaddr, ino: Ino | None) -> dict[str, Any]:
    """Return the areas that begin at *address* or behind it; only those of file *ino* if given."""
    areas: list[dict[str, Any]] = []
    nr_pages = 0
    for vma in _iter_vmas(mm, sb, address, ino):
        if vma.vm_start < address:
            continue
        if len(areas) == NR_AREAS_MAX or nr_pages > NR_PAGES_MAX:
            return {"areas": areas, "next": vma.vm_start}
        nr_pages += vma.nr_pages
        sums = smaps(vma)
        areas.append(
            _area(sb, vma)
            | {
                "perm": sums.perm,
                "vm_flags": vm_flag_names(vma.vm_flags),
                "size_bytes": sums.size_bytes,
                "rss_bytes": sums.rss_bytes,
                "pss_bytes": int(sums.pss_bytes),
                "shared_clean_bytes": sums.shared_clean_bytes,
                "shared_dirty_bytes": sums.shared_dirty_bytes,
                "private_clean_bytes": sums.private_clean_bytes,
                "private_dirty_bytes": sums.private_dirty_bytes,
                "referenced_bytes": sums.referenced_bytes,
                "anonymous_bytes": sums.anonymous_bytes,
                "locked_bytes": sums.locked_bytes,
            }
        )
    return {"areas": areas, "next": None}


def pagemap_part(mm: Mm, sb: SuperBlock, address: Vaddr, ino: Ino | None) -> dict[str, Any]:
    """Return areas, as in `smaps_part`, each with "runs" of pages from *address* on.

    A run is a dict with the names of `xipfs.mm.proc.PagemapRun`.
    """
    areas: list[dict[str, Any]] = []
    nr_runs_left, nr_pages_left = NR_RUNS_MAX, NR_PAGES_MAX
    for vma in _iter_vmas(mm, sb, address, ino):
        start = max(vma.vm_start, address)
        if len(areas) == NR_AREAS_MAX or not nr_runs_left or not nr_pages_left:
            return {"areas": areas, "next": start}
        end = min(vma.vm_end, start + (nr_pages_left << PAGE_SHIFT))
        runs = pagemap_runs(vma, Vaddr(start), Vaddr(end), nr_runs_left)
        end = vma.address(Pgoff(runs[-1].pgoff + runs[-1].nr_pages))
        nr_runs_left -= len(runs)
        nr_pages_left -= (end - start) >> PAGE_SHIFT
        areas.append(_area(sb, vma) | {"runs": [run._asdict() for run in runs]})
        if end < vma.vm_end:
            return {"areas": areas, "next": end}
    return {"areas": areas, "next": None}


def path_of(sb: SuperBlock, inode: Inode) -> str | None:
    """Return a path in the mount by which *inode* was looked up; None if that is not known.

    Of many names (hard links) it is the last one that was looked up.
    """
    names: list[bytes] = []
    while inode.ino != INO_ROOT:
        if inode.dentry is None or len(names) > _NR_NAMES_MAX:
            return None
        directory, name = inode.dentry
        names.append(name)
        parent = sb.find_inode(directory)
        if parent is None:
            return None
        inode = parent
    return os.fsdecode(b"/" + b"/".join(reversed(names)))


_NR_NAMES_MAX = 4096
"""A damaged image can have directories in a circle."""


def _iter_vmas(mm: Mm, sb: SuperBlock, address: Vaddr, ino: Ino | None) -> Iterator[Vma]:
    """Yield the areas of the mount, or of one file, that end behind *address*, in order."""
    if ino is not None:
        inode = sb.find_inode(ino)
        yield from (vma for vma in (inode.mapping.i_mmap if inode else []) if vma.vm_end > address)
        return
    first = mm.find_vma(address)
    if first is not None and first.vm_start < address:
        yield first
    for start in mm.vmas.irange(address):
        yield mm.vmas[start]


def _area(sb: SuperBlock, vma: Vma) -> dict[str, Any]:
    mapping = vma.vm_file
    bug_on(mapping is None, "an area of the mount without a file", vma=vma)
    assert mapping is not None
    inode = sb.find_inode(Ino(mapping.id))
    return {
        "start": vma.vm_start,
        "end": vma.vm_end,
        "pgoff": vma.vm_pgoff,
        "ino": mapping.id,
        "path": path_of(sb, inode) if inode is not None else None,
    }
