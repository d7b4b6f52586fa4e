"""Mount: one image with everything that serves it, wired; and the one door to it.

    mount = Mount.open("image.img", MountOptions())
    inode = mount.dispatch(mount.operations.lookup, INO_ROOT, b"etc")
    mount.run_epoch()
    mount.close()

No pyfuse3 here: `server` puts a mount behind FUSE, tests and the demo also use it as it is.

Every operation and every epoch passes `dispatch`, which holds the lock. The core never takes it,
never waits, and never calls into the kernel's side of FUSE.
"""

import contextlib
import itertools
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import numpy as np

from xipfs.errors import FormatError, MountError, ReadOnlyFsError, StaleError, XipfsError
from xipfs.fs.file import sync_all, sync_file
from xipfs.fs.superblock import SuperBlock, damage_line
from xipfs.fuse.notifier import StoreRange
from xipfs.fuse.operations import Operations
from xipfs.fuse.options import CacheMode, MountOptions, Promoted, Sync
from xipfs.fuse.view import RegionMap, region_map
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.arch import get_arch
from xipfs.mm.machine import Machine
from xipfs.mm.vma import Mm
from xipfs.ondisk.inode import INO_ROOT
from xipfs.ondisk.superblock import StateFlags
from xipfs.phys.cost import CostAccount
from xipfs.phys.physmem import Run
from xipfs.policy.contract import PageIds, Policy, no_pages, page_id, page_id_parts
from xipfs.policy.pageset import page_set
from xipfs.policy.profile import read_profile
from xipfs.policy.registry import load_policy
from xipfs.tiering.access_log import AccessLog
from xipfs.tiering.budget import Budget
from xipfs.tiering.daemon import TieringDaemon
from xipfs.tiering.mover import Mover, resident_pages
from xipfs.tiering.sampler import COST_RATIO, RETURN_NS, CacheSampler, DropRange, drop_ranges
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Ino

__all__ = ["Mount"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_PREFETCH_SLICE_PAGES = 256

NR_RAM_FRAMES_MAX = 1 << 28
"""1 TiB: a mistyped ram= is an error, not an attempt."""


class Mount:
    """An image being served. Make one with `open`.

    options.ro: whether it is read-only, by wish or by need.
    """

    def __init__(self, sb: SuperBlock, options: MountOptions) -> None:
        if options.promoted is Promoted.PUSH and not options.ro:
            # A page could be pushed over what a program has written to it meanwhile.
            raise MountError("promoted=push: for read-only mounts alone: add ro")
        nr_tier_frames = options.ram_bytes // PAGE_SIZE
        if nr_tier_frames > NR_RAM_FRAMES_MAX:
            raise MountError(f"ram={options.ram_bytes}: at most {NR_RAM_FRAMES_MAX * PAGE_SIZE}")
        policy = load_policy(options.policy)
        profile = read_profile(Path(options.prefetch)) if options.prefetch else no_pages()
        self.to_prefetch = profile[:nr_tier_frames]
        self.sb = sb
        self.options = options
        self.machine = Machine(
            sb.nvram,
            nr_tier_frames=nr_tier_frames,
            nr_tier_frames_max=_host_memory_bytes() // PAGE_SIZE,
            arch=get_arch(options.arch),
        )
        self._view = self.machine.physmem.view
        self.cost = CostAccount(options.cost, self.machine.vmstat)
        sb.nvram.wear = self.cost.wear
        self.mm = Mm(self.machine)
        self.log = AccessLog()
        self.operations = Operations(sb, self.mm, self.log)
        self.operations.pages_gone = self._unpin
        self.mover = Mover(self.machine, self._find_mapping, self._mapping_emptied)
        self._sampler = _sampler(options)
        self.tiering = TieringDaemon(
            self.mm,
            self.mover,
            self.log,
            policy,
            policy_name=options.policy,
            sampler=self._sampler,
            budget=Budget(options.budget_pages, options.rate_bytes_per_s, time.monotonic_ns()),
            epoch_ns=options.epoch_ms * 1_000_000,
            tier_facts=self.cost.tier_facts,
            files_change=sb.writable,
        )
        self.policy_changed: Callable[[], object] = lambda: None
        """Called when another policy takes over; the server sets it."""
        self.events_missing = ""
        """Why the kernel does not tell what its page cache answers; the server sets it."""
        self._lock = threading.Lock()
        self._started_s = time.monotonic()

    @classmethod
    def open(cls, image: str | os.PathLike[str], options: MountOptions) -> "Mount":
        """Open *image* and make all that serves it.

        Raises: what SuperBlock.open raises; FormatError, DeviceError for an unusable root
                directory; PolicyError; MountError.
        """
        sb = _open_image(image, options)
        try:
            if sb.state.flags & StateFlags.ERROR:
                raise FormatError("found damaged earlier")
            options = replace(options, ro=not sb.writable)
            if not stat.S_ISDIR(sb.load_inode(INO_ROOT).mode):
                raise FormatError(f"inode {INO_ROOT}: the root is no directory")
            return cls(sb, options)
        except FormatError as exc:
            sb.close()
            raise FormatError(damage_line(image, exc)) from exc
        except BaseException:
            sb.close()
            raise

    def dispatch(self, operation: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call *operation* under the lock: the one way in for everything that touches the core."""
        with self._lock:
            return operation(*args)

    def read_bytes(self, runs: list[Run]) -> memoryview:
        """Return the bytes of *runs* as one buffer for a system call: a view where there is one.

        Valid until the next call, and until the lock is taken for something else.
        """
        if len(runs) == 1:
            paddr, size_bytes = runs[0]
            return self._view(paddr, size_bytes)
        return self.machine.physmem.gather(runs)

    def run_epoch(self) -> list[DropRange]:
        """Do one epoch at once. The server does the same in slices."""
        return self.dispatch(self.tiering.run_epoch)

    def promoted_ranges(self, pages: PageIds) -> Sequence[DropRange | StoreRange]:
        """Return what the kernel shall do about its copies of *pages* (sorted), now promoted.

        The bytes are copies: valid without the lock.
        """
        if self.options.promoted is Promoted.PUSH:
            if self._sampler is not None:
                self._sampler.cache(pages)
            return [stored for span in drop_ranges(pages) for stored in self._copies(*span)]
        if self.options.promoted is Promoted.DROP:
            if self._sampler is not None:
                return self._sampler.drop(pages, self.log.clock())
            return drop_ranges(pages)
        return []

    def _copies(self, mapping_id: int, pgoff: int, nr_pages: int) -> Iterator[StoreRange]:
        """Yield the bytes of pages in a row, as far as they are in RAM."""
        mapping = self._find_mapping(mapping_id)
        if mapping is None:
            return
        frames = [mapping.i_pages.get(i) for i in range(pgoff, pgoff + nr_pages)]
        for is_in_ram, group in itertools.groupby(
            enumerate(frames), lambda pair: pair[1] is not None
        ):
            if is_in_ram:
                found = [(i, frame) for i, frame in group if frame is not None]
                first = pgoff + found[0][0]
                data = b"".join(self.machine.physmem.frame(frame) for _, frame in found)
                rest_bytes = mapping.i_size_bytes - (first << PAGE_SHIFT)
                yield StoreRange(mapping_id, first, data[:rest_bytes])

    def region_map(self, nr_cells: int) -> RegionMap:
        """Return the map of the region; takes the lock."""
        return self.dispatch(region_map, self.mm, self.sb, nr_cells)

    def set_policy(self, text: str, policy: Policy) -> None:
        """Let *policy*, which was made from *text*, decide from now on; takes the lock."""
        self.dispatch(self.tiering.set_policy, text, policy)
        self.policy_changed()

    def prefetch_some(self) -> bool:
        """Promote a slice of the profile's pages, the hottest first; return whether more waits.

        A page that does not exist, or is no longer wanted there, is passed over.
        """
        pages, self.to_prefetch = np.split(self.to_prefetch, [_PREFETCH_SLICE_PAGES])
        inodes = []
        for ino in page_set(page_id_parts(pages)[0]).tolist():
            with contextlib.suppress(XipfsError):
                inodes.append(self.sb.iget(Ino(ino)))
        self.machine.vmstat.pgpromote_candidate_nrl += len(pages)
        self.mover.promote(np.sort(pages[self.mover.exists(pages)]))
        for inode in inodes:
            self.sb.drop_unused(inode)
        if not self.machine.mem_map.nr_free:
            self.to_prefetch = no_pages()
        return len(self.to_prefetch) > 0

    def find_file(self, ino: int) -> AddressSpace:
        """Return the pages of a file that somebody has looked up. Raises: StaleError."""
        mapping = self._find_mapping(ino)
        if mapping is None:
            raise StaleError(f"inode {ino}: no regular file that was looked up")
        return mapping

    def statistics(self) -> dict[str, Any]:
        """Return every figure of this mount, by stable names with units; takes the lock."""
        return self.dispatch(self._statistics)

    def write_back(self) -> Iterator[None]:
        """Write back what is dirty in RAM, file by file, with a pause where others may work."""
        for inode in self.sb.inodes() if self.sb.writable else []:
            if inode.mapping.i_pages or inode.times_dirty:
                try:
                    sync_file(self.sb, self.machine, inode)
                except XipfsError as exc:
                    _log.error("%s", exc)
                yield

    def close(self) -> None:
        """Free what has no name, write back what is in RAM alone, and give everything back.

        What fails is logged: the next mount finds what a crash would have left.
        """
        try:
            if self.sb.writable:
                self.operations.end_orphans()
                sync_all(self.sb, self.machine)
        except XipfsError as exc:
            _log.error("%s", exc)
        finally:
            self.machine.close()
            self.sb.close()

    def _unpin(self, ino: Ino, first: int) -> None:
        """Let go of pins on pages of a file from page *first* on, which are not in RAM any more."""
        pinned = self.mover.pinned
        gone = (pinned >= page_id(ino, first)) & (pinned < page_id(ino + 1, 0))
        if gone.any():
            self.mover.unpin(pinned[gone])

    def _statistics(self) -> dict[str, Any]:
        machine, options = self.machine, self.options
        vmstat = machine.vmstat.as_dict()
        tiering = self.tiering
        nr_resident = len(resident_pages(machine))
        return {
            "image": str(Path(self.sb.nvram.path).absolute()),
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "cache": str(options.cache),
            "arch": f"{machine.arch.name}-{machine.arch.version}",
            "policy": tiering.policy_name,
            "epoch_ms": options.epoch_ms,
            "epochs": tiering.nr_epochs,
            "policy_errors": tiering.nr_policy_errors,
            "plan_refused": tiering.nr_plan_refused,
            "pinned_pages": len(self.mover.pinned),
            "policies": {name: found.as_dict() for name, found in tiering.policies.items()},
            "ranges_dropped": tiering.nr_ranges_dropped,
            "reads_told": tiering.nr_reads_told,
            "sees_reads": self._sampler is not None and self._sampler.sees_reads,
            "events_missing": self.events_missing,
            "access_ranges_lost": self.log.nr_dropped_ranges,
            "ram_frames": machine.nr_tier_frames,
            "ram_free_frames": machine.mem_map.nr_free,
            "watermarks": machine.watermarks._asdict(),
            "ram_pages": nr_resident,
            "nvram_pages": self.sb.disk.nr_pages,
            "nvram_used_pages": self.sb.disk.nr_pages - self.sb.state.nr_free_pages,
            "rss_file_pages": self.mm.rss_file,
            "struct_pages": machine.mem_map.nr_frames,
            "struct_page_bytes": machine.mem_map.size_bytes,
            "struct_page_saved_bytes": machine.struct_page_saved_bytes,
            "inodes_in_memory": self.sb.nr_inodes_in_memory,
            "open_handles": self.operations.nr_handles,
            "vmas": len(self.mm.vmas),
            "page_table_leaves": len(self.mm.page_table.leaves),
            "page_size_bytes": 1 << PAGE_SHIFT,
            "cost": {**self.cost.facts(), "inject": options.inject},
            "vmstat": vmstat,
            "vmstat_complaints": machine.vmstat.check_sums(nr_resident, has_policy=True),
        }

    def _find_mapping(self, mapping_id: int) -> AddressSpace | None:
        inode = self.sb.find_inode(Ino(mapping_id))
        # Of directories and symbolic links nobody maps a page.
        return inode.mapping if inode is not None and inode.is_regular else None

    def _mapping_emptied(self, mapping: AddressSpace) -> None:
        inode = self.sb.find_inode(Ino(mapping.id))
        if inode is not None:
            self.sb.drop_unused(inode)


def _open_image(image: str | os.PathLike[str], options: MountOptions) -> SuperBlock:
    """Open *image* to write, or to read where that is the wish, or all that can be done."""
    if options.ro:
        return SuperBlock.open(image)
    try:
        sb = SuperBlock.open(image, writable=True, clock=time.time_ns)
    except ReadOnlyFsError:
        if options.rw:
            raise
        return SuperBlock.open(image)
    sb.nvram.fence_syncs = options.sync is Sync.FULL
    return sb


def _sampler(options: MountOptions) -> CacheSampler | None:
    if options.cache is not CacheMode.SAMPLED:
        return None
    return CacheSampler(nr_returns_max=round(COST_RATIO * options.epoch_ms * 1e6 / RETURN_NS))


def _host_memory_bytes() -> int:
    """Return how much memory there is: the RAM tier can be resized up to that."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
