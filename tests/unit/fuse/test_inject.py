"""InjectAdapter: reads that take the time of the cost model, and the same bytes."""

import time
from contextlib import contextmanager

import numpy as np
import pytest
import trio
import trio.testing

from xipfs.fuse.mount import Mount
from xipfs.fuse.options import MountOptions
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.ondisk.inode import INO_ROOT
from xipfs.phys.cost import CostAccount, parse_cost
from xipfs.units import PAGE_SIZE

pytestmark = pytest.mark.fuse


@contextmanager
def injecting(image, cost: str):
    """An adapter that injects, an open handle of /big, its inode."""
    from xipfs.fuse.inject import InjectAdapter

    options = MountOptions(
        ram_bytes=8 * PAGE_SIZE, policy="none", cost=parse_cost(cost), inject=True
    )
    mount = Mount.open(image, options)
    inode = mount.operations.lookup(INO_ROOT, b"big")
    yield InjectAdapter(mount), mount.operations.open(inode.ino, 0), inode
    mount.close()


async def timed_read(adapter, fh, off: int, size: int) -> tuple[bytes, int]:
    start_ns = time.perf_counter_ns()
    data = bytes(await adapter.read(fh, off, size))
    return data, time.perf_counter_ns() - start_ns


@pytest.mark.parametrize(("cost", "nr_pages"), [("dram", 1), ("optane", 8), ("nor", 1), ("nor", 8)])
async def test_a_read_takes_at_least_what_it_costs(image, cost, nr_pages):
    with injecting(image, cost) as (adapter, fh, _):
        nvram = adapter._mount.options.cost.nvram
        data, took_ns = await timed_read(adapter, fh, 0, nr_pages * PAGE_SIZE)
        assert data == b"".join(b"%d" % i * PAGE_SIZE for i in range(nr_pages))
        assert took_ns >= nr_pages * nvram.read_ns


async def test_a_short_read_awaits_nothing(image):
    """What is read is a view: nothing may run before the kernel has the bytes."""
    with injecting(image, "optane") as (adapter, fh, _), trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            done: list[str] = []

            async def other() -> None:
                done.append("other")

            nursery.start_soon(other)
            await adapter.read(fh, 0, 8 * PAGE_SIZE)
            assert done == []


async def test_others_are_served_during_a_long_read_and_its_bytes_stay(image, monkeypatch):
    """Its frame is given to another page meanwhile; the reader must not get that one's bytes."""
    monkeypatch.setattr(CostAccount, "read_ns", lambda self, runs: 50_000_000)
    with injecting(image, "nor") as (adapter, fh, inode):
        machine, mapping = adapter._mount.machine, inode.mapping
        promote_pages(machine, mapping, np.arange(6))
        frames = set(mapping.i_pages.values())
        answers: list[bytes] = []

        async def reader() -> None:
            answers.append(await adapter.read(fh, 0, 6 * PAGE_SIZE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            assert not answers
            demote_pages(machine, mapping, range(6), DemoteReason.KSWAPD)
            for frame in frames:
                machine.physmem.frame(frame)[:] = b"x" * PAGE_SIZE
        assert bytes(answers[0]) == b"".join(b"%d" % i * PAGE_SIZE for i in range(6))


async def test_errors_are_fuse_errors(image):
    import pyfuse3

    with injecting(image, "optane") as (adapter, _, _), pytest.raises(pyfuse3.FUSEError):
        await adapter.read(999, 0, PAGE_SIZE)


@pytest.mark.parametrize("wait_ns", [-1_000_000, 0, 1_000, 49_000, 60_000, 1_500_000, 3_500_000])
async def test_a_wait_never_ends_early(wait_ns):
    from xipfs.fuse.inject import wait_until

    deadline_ns = time.perf_counter_ns() + wait_ns
    await wait_until(deadline_ns)
    assert time.perf_counter_ns() >= deadline_ns
