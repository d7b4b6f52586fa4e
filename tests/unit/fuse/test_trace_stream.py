"""The stream of accesses: what goes in comes out, and it may end anywhere."""

import io

import numpy as np
import pytest
import trio

from xipfs.fuse.control import ControlServer
from xipfs.fuse.trace_stream import encode_ranges, read_ranges
from xipfs.ondisk.inode import INO_ROOT
from xipfs.policy.contract import AccessKind, Tier, page_id
from xipfs.tiering.access_log import AccessLog, access_origin
from xipfs.units import PAGE_SIZE


def recorded() -> bytes:
    log = AccessLog(clock=iter(range(1000)).__next__)
    log.record(page_id(3, 7), 2, access_origin(42, AccessKind.READ) | Tier.NVRAM)
    log.record(page_id(1, 0), 1, access_origin(43, AccessKind.WRITE) | Tier.RAM)
    return encode_ranges(log.follow(0))


def test_what_goes_in_comes_out():
    ranges = read_ranges(io.BytesIO(recorded()))
    assert ranges.page.tolist() == [page_id(3, 7), page_id(1, 0)]
    assert ranges.nr_pages.tolist() == [2, 1]
    assert ranges.time_ns.tolist() == [0, 1]
    assert ranges.client.tolist() == [42, 43]
    assert ranges.kind.tolist() == [AccessKind.READ, AccessKind.WRITE]
    assert ranges.tier.tolist() == [Tier.NVRAM, Tier.RAM]


def test_one_after_the_other():
    stream = io.BytesIO(recorded() + encode_ranges(AccessLog().follow(0)) + recorded())
    assert [len(read_ranges(stream).page) for _ in range(3)] == [2, 0, 2]
    assert read_ranges(stream) is None


def test_it_may_end_anywhere():
    data = recorded()
    for size_bytes in range(len(data)):
        assert read_ranges(io.BytesIO(data[:size_bytes])) is None


async def test_the_daemon_sends_what_is_read(mount, nursery):
    server = ControlServer(mount)
    await nursery.start(server.serve)
    inode = mount.dispatch(mount.operations.lookup, INO_ROOT, b"big")
    fh = mount.dispatch(mount.operations.open, inode.ino, 0, 4711)
    mount.dispatch(mount.operations.read, fh, 0, PAGE_SIZE)  # before: not told
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.connect(b"\0" + server.address)
    stream = trio.SocketStream(sock)
    await stream.send_all(b'{"request": "trace"}\n')
    data = await stream.receive_some()
    assert data.startswith(b'{"ok": true, "answer": {"clock_ns": ')
    mount.dispatch(mount.operations.read, fh, 2 * PAGE_SIZE, 3 * PAGE_SIZE)
    mount.run_epoch()  # takes its own, and nothing from others
    ranges = None
    received = b""
    with trio.fail_after(10):
        while ranges is None or not len(ranges.page):  # nothing is also told, now and then
            received += await stream.receive_some()
            rest = io.BytesIO(received)
            while (found := read_ranges(rest)) is not None:
                ranges = found
    assert ranges.page.tolist() == [page_id(inode.ino, 2)]
    assert (ranges.nr_pages.tolist(), ranges.client.tolist()) == ([3], [4711])
    await stream.aclose()


@pytest.mark.parametrize("nr_lost", [0, 5])
def test_what_was_lost_is_told(nr_lost, monkeypatch):
    monkeypatch.setattr("xipfs.tiering.access_log.NR_RANGES_MAX", 4)
    log = AccessLog()
    for page in np.arange(4 + nr_lost).tolist():
        log.record(page, 1)
    assert read_ranges(io.BytesIO(encode_ranges(log.follow(0)))).nr_lost == nr_lost
