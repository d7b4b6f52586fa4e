"""InjectAdapter: READs that really take the time that the cost model gives them (`-o inject`).

The request takes what it takes anyway, and the modelled time on top. Nothing is subtracted: a
request through FUSE takes 25 to 60 us and a page of any memory but flash under one, so that the
tiers would look alike. As it is, a page in NVRAM takes longer than one in RAM by what the model
says.

How it waits, by what is left:

    under 50 us     looks at the clock (in the vdso, no system call); nobody else is served
    under 2 ms      lets others be served, and looks at the clock: a sleep may last a millisecond
                    too long, since epoll_wait(2) takes whole ones
    longer          sleeps

No timer slack, no nanosleep(2), no CPU governor: works under any seccomp filter that FUSE does.
"""

import time

import pyfuse3
import trio

from xipfs.fuse.adapter import Adapter, fuse_error

__all__ = ["InjectAdapter", "wait_until"]

BUSY_WAIT_NS = 50_000
SLEEP_SLACK_NS = 2_000_000


class InjectAdapter(Adapter):
    """As its parent, but slow."""

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Return the bytes that the ptes name, after the time that they take."""
        try:
            runs = self._dispatch(self._read, fh, off, size)
            start_ns = time.perf_counter_ns()
            cost_ns = self._mount.cost.read_ns(runs)
            if cost_ns < BUSY_WAIT_NS:
                await wait_until(start_ns + cost_ns)
                return self._read_bytes(runs)
            # Others are served while we wait, and an epoch may give the frames to other pages.
            data = bytes(self._mount.machine.physmem.gather(runs))
            await wait_until(start_ns + cost_ns)
            return data
        except Exception as exc:
            raise fuse_error(exc) from None


async def wait_until(deadline_ns: int) -> None:
    """Return at *deadline_ns* of time.perf_counter_ns, never before.

    Awaits nothing if that is less than BUSY_WAIT_NS away.
    """
    while (left_ns := deadline_ns - time.perf_counter_ns()) >= BUSY_WAIT_NS:
        if left_ns > SLEEP_SLACK_NS:
            await trio.sleep((left_ns - SLEEP_SLACK_NS) / 1e9)
        else:
            await trio.lowlevel.checkpoint()
    while time.perf_counter_ns() < deadline_ns:
        pass
