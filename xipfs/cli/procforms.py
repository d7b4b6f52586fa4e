"""What `xipfs stat --as` writes: facts about the mount's areas in the forms of /proc/PID.

    smaps     as /proc/PID/smaps, with the fields that the model has
    pagemap   as /proc/PID/pagemap, /proc/kpagecount and the reference counts, joined and in runs

Each renderer takes areas as `xipfs.fuse.client.iter_areas` yields them, and yields lines.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from xipfs.fs.contents import printable
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["join_runs", "render_pagemap", "render_smaps"]

_KIB = 1024
_PATH_COLUMN = 73  # seq_pad of show_map_vma: m->size_width + sizeof(void *) * 6

_SMAPS_FIELDS = {
    "Rss": "rss_bytes",
    "Pss": "pss_bytes",
    "Shared_Clean": "shared_clean_bytes",
    "Shared_Dirty": "shared_dirty_bytes",
    "Private_Clean": "private_clean_bytes",
    "Private_Dirty": "private_dirty_bytes",
    "Referenced": "referenced_bytes",
    "Anonymous": "anonymous_bytes",
    "Locked": "locked_bytes",
}


def render_smaps(areas: Iterable[dict[str, Any]], root: str, dev: int) -> Iterator[str]:
    """Write each area as /proc/PID/smaps does. root: the mountpoint; dev: its st_dev.

    Source: fs/proc/task_mmu.c show_map_vma and show_smap, 6.1.
    """
    for area in areas:
        offset = area["pgoff"] << PAGE_SHIFT
        head = f"{area['start']:08x}-{area['end']:08x} {area['perm']} {offset:08x} "
        head += f"{os.major(dev):02x}:{os.minor(dev):02x} {area['ino']} "
        yield head.ljust(_PATH_COLUMN) + _name(area, root)
        yield _field("Size", area["size_bytes"])
        yield _field("KernelPageSize", PAGE_SIZE)
        yield _field("MMUPageSize", PAGE_SIZE)
        yield from (_field(name, area[key]) for name, key in _SMAPS_FIELDS.items())
        yield "VmFlags: " + "".join(f"{flag} " for flag in area["vm_flags"])


def render_pagemap(areas: Iterable[dict[str, Any]], root: str) -> Iterator[str]:
    """Write a table of runs of pages for each area; a dash stands where the kernel has nothing."""
    start = None
    for area in areas:
        if area["start"] != start:  # else further runs of the same
            nr_pages = (area["end"] - area["start"]) >> PAGE_SHIFT
            yield f"{_name(area, root)}: {nr_pages} pages at {area['start']:08x}"
            yield "   pgoff    pages present tier          pfn kpagecount refcount heat"
        start = area["start"]
        for run in area["runs"]:
            present = "yes" if run["present"] else "no"
            yield (
                f"{run['pgoff']:>8} {run['nr_pages']:>8} {present:<7} {run['tier'] or '-':<5}"
                f"{_figure(run['pfn']):>12} {_figure(run['kpagecount']):>10}"
                f" {_figure(run['refcount']):>8} {run['heat']:>4}"
            )


def join_runs(areas: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return *areas* with all runs of each in one."""
    joined: list[dict[str, Any]] = []
    for area in areas:
        if joined and joined[-1]["start"] == area["start"]:
            joined[-1]["runs"] += area["runs"]
        else:
            joined.append(area)
    return joined


def _field(name: str, size_bytes: int) -> str:
    return f"{name + ':':<16}{size_bytes // _KIB:8} kB"


def _figure(value: int | None) -> str:
    return "-" if value is None else str(value)


def _name(area: dict[str, Any], root: str) -> str:
    if area["path"] is None:
        return f"inode {area['ino']}"
    return printable(os.fsencode(root.rstrip("/") + area["path"]))
