"""Steering: the control requests by which a user changes what a live mount does with its tiers.

    request          arguments                  answer
    policy           policy (text)              {"policy": its name}: it decides from now on
    pin, promote     ino, start, end (bytes)    {"migrated", "resident", "failed"}, in pages;
    demote                                      pinned pages are not demoted
    unpin            ino, start, end            {"unpinned": pages}
    resize           ram_bytes                  {"ram_bytes": what the RAM tier has now}
    tier_map         ino, start (page)          {"pages": of the file, "runs": [..], "next": a page,
                                                or null}; a run: [pgoff, pages, tier, pinned, heat]

A range of bytes means all pages that it touches. Pages move in slices, with requests served between
them. Who asks keeps the file open meanwhile, so that its inode stays.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import trio

from xipfs.errors import ControlError
from xipfs.fuse.mount import Mount
from xipfs.fuse.view import tier_runs
from xipfs.mm.migrate import DemoteReason, MigrateStatistics
from xipfs.policy.contract import PGOFF_BITS, PageIds
from xipfs.policy.registry import load_policy
from xipfs.units import PAGE_SIZE, bytes_to_pages, format_size

__all__ = ["Steering"]

_SLICE_PAGES = 256
_NR_MAP_PAGES = 1 << 15
"""Pages that one answer tells of: less than a line of the protocol, and a few milliseconds."""


class Steering:
    """The requests, by name, on *mount*."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self.requests: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "policy": self._policy,
            "promote": self._promote,
            "demote": self._demote,
            "pin": self._pin,
            "unpin": self._unpin,
            "resize": self._resize,
            "tier_map": self._tier_map,
        }

    async def _policy(self, request: dict[str, Any]) -> dict[str, Any]:
        text = request.get("policy")
        if not isinstance(text, str):
            raise ControlError("policy: a name, or a file")
        # It may be the user's file, and that may do anything.
        policy = await trio.to_thread.run_sync(load_policy, text, abandon_on_cancel=True)
        self._mount.set_policy(text, policy)
        return {"policy": text}

    async def _promote(self, request: dict[str, Any]) -> dict[str, int]:
        return await self._move(request, self._promote_slice)

    async def _demote(self, request: dict[str, Any]) -> dict[str, int]:
        mover = self._mount.mover
        return await self._move(request, lambda pages: mover.demote(pages, DemoteReason.PROACTIVE))

    async def _pin(self, request: dict[str, Any]) -> dict[str, int]:
        def pin(pages: PageIds) -> MigrateStatistics:
            moved = self._promote_slice(pages)
            self._mount.mover.pin(pages)
            return moved

        return await self._move(request, pin)

    async def _unpin(self, request: dict[str, Any]) -> dict[str, int]:
        mover = self._mount.mover
        nr_before = len(mover.pinned)

        def unpin(pages: PageIds) -> MigrateStatistics:
            mover.unpin(pages)
            return MigrateStatistics()

        await self._move(request, unpin)
        return {"unpinned": nr_before - len(mover.pinned)}

    async def _resize(self, request: dict[str, Any]) -> dict[str, int]:
        mount = self._mount
        nr_frames = _number(request, "ram_bytes") // PAGE_SIZE
        if nr_frames > mount.machine.nr_tier_frames_max:
            most_bytes = mount.machine.nr_tier_frames_max * PAGE_SIZE
            raise ControlError(f"at most {format_size(most_bytes)}: what this machine has")
        while mount.dispatch(mount.mover.resize, nr_frames, _SLICE_PAGES):
            await trio.lowlevel.checkpoint()
        return {"ram_bytes": mount.machine.nr_tier_frames * PAGE_SIZE}

    async def _tier_map(self, request: dict[str, Any]) -> dict[str, Any]:
        mapping = self._mount.find_file(_number(request, "ino"))
        start = min(_number(request, "start", 0), mapping.nr_pages)
        end = min(start + _NR_MAP_PAGES, mapping.nr_pages)
        pinned = self._mount.mover.pinned
        runs = self._mount.dispatch(tier_runs, mapping, pinned, start, end) if start < end else []
        return {
            "pages": mapping.nr_pages,
            "runs": runs,
            "next": end if end < mapping.nr_pages else None,
        }

    def _promote_slice(self, pages: PageIds) -> MigrateStatistics:
        mover = self._mount.mover
        mover.machine.vmstat.pgpromote_candidate_nrl += len(pages)
        mover.make_room(len(pages), spared=pages)
        return mover.promote(pages)

    async def _move(
        self, request: dict[str, Any], move: Callable[[PageIds], MigrateStatistics]
    ) -> dict[str, int]:
        """Call *move* on the pages of a request, a slice at a time."""
        mapping = self._mount.find_file(_number(request, "ino"))
        start = _number(request, "start", 0) // PAGE_SIZE
        end = min(bytes_to_pages(_number(request, "end", 1 << 62)), mapping.nr_pages)
        moved = MigrateStatistics()
        for pgoff in range(start, end, _SLICE_PAGES):
            pgoffs = np.arange(pgoff, min(pgoff + _SLICE_PAGES, end))
            moved += self._mount.dispatch(move, (mapping.id << PGOFF_BITS) + pgoffs)
            await trio.lowlevel.checkpoint()
        return {
            "migrated": moved.nr_migrated,
            "resident": moved.nr_resident,
            "failed": moved.nr_failed,
        }


def _number(request: dict[str, Any], name: str, default: int | None = None) -> int:
    value = request.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ControlError(f"{name}: a number from 0 on")
    return value
