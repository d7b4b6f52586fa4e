"""Files are written, cut and synced: against plain bytes, with pages in RAM, and with crashes."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.kit.crash import StoreLog, recovered
from tests.kit.image import Extent, ImageKit
from xipfs.errors import (
    DeviceError,
    FileTooLargeError,
    FormatError,
    InvalidArgumentError,
    NoSpaceError,
    NotPermittedError,
    ReadOnlyFsError,
)
from xipfs.fs.dirwriter import insert_entry
from xipfs.fs.file import sync_all, sync_file, truncate_file, write_file
from xipfs.fs.fsck import fsck
from xipfs.fs.inode import Inode
from xipfs.fs.mkfs import mkfs
from xipfs.fs.superblock import SuperBlock
from xipfs.mm.access import access_page, access_range
from xipfs.mm.filemap_xip import xip_file_mmap, xip_file_read
from xipfs.mm.machine import Machine
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.mm.vma import Mm
from xipfs.ondisk.inode import FILE_SIZE_BYTES_MAX, INO_ROOT, InodeFlags
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SIZE, Block, Ino, Pgoff

FILE = 0o100644


class Writer:
    """An image opened for writing, the machine that serves it, and the time."""

    def __init__(self, path: Path, *, nr_tier_frames: int = 16) -> None:
        self.path = path
        self.now_ns = 1000
        self.sb = SuperBlock.open(path, writable=True, clock=self.tick)
        self.machine = Machine(self.sb.nvram, nr_tier_frames=nr_tier_frames)
        self.mm = Mm(self.machine)

    def tick(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def create(self, name: bytes = b"file") -> Inode:
        with self.sb.transaction(self.tick()) as tx:
            inode = tx.new_inode(mode=FILE, nlink=1)
            insert_entry(tx, tx.inode(INO_ROOT), name, inode.ino, FILE >> 12)
        return self.sb.iget(inode.ino)

    def write(self, inode: Inode, pos: int, data: bytes) -> int:
        return write_file(self.sb, self.machine, inode, pos, data, self.tick())

    def truncate(self, inode: Inode, size_bytes: int) -> None:
        truncate_file(self.sb, self.machine, inode, size_bytes, self.tick())

    def sync(self, inode: Inode, *, datasync: bool = False) -> None:
        sync_file(self.sb, self.machine, inode, datasync=datasync)

    def promote(self, inode: Inode, *pgoffs: int) -> None:
        promote_pages(self.machine, inode.mapping, np.array(pgoffs))

    def read(self, inode: Inode) -> bytes:
        """As the kernel's side sees it, through addresses and not through ptes."""
        size_bytes = inode.mapping.i_size_bytes
        assert inode.disk.size_bytes == size_bytes
        return xip_file_read(self.machine, inode.mapping, 0, size_bytes)

    def read_mapped(self, inode: Inode) -> bytes:
        """As a reader of the mount does, through the ptes of one area."""
        nr_pages = inode.mapping.nr_pages
        if not nr_pages:
            return b""
        if not inode.mapping.i_mmap:
            xip_file_mmap(self.mm, inode.mapping, nr_pages=4096)
        pfns = access_range(inode.mapping.i_mmap[0], Pgoff(0), nr_pages)
        runs = self.machine.physmem.runs(pfns, 0, inode.mapping.i_size_bytes)
        return bytes(self.machine.physmem.gather(runs))

    def stored(self, inode: Inode) -> bytes:
        """What NVRAM has of a file."""
        return self.sb.read_all(inode, 1 << 30)

    def close(self, *, sync: bool = True) -> None:
        if sync:
            sync_all(self.sb, self.machine)
        self.machine.close()
        self.sb.close()

    def check(self) -> None:
        self.close()
        report = fsck(self.path)
        assert not report.findings, "\n".join(map(str, report.findings))
        assert not report.unchecked


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "nvram.img"
    mkfs(path, None, now_ns=1, size_bytes=2 << 20)
    return path


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(path)
    yield writer
    if writer.sb.writable:
        writer.close(sync=False)


def pattern(seed: int, size_bytes: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def put(model: bytearray, pos: int, data: bytes) -> None:
    if pos > len(model):
        model.extend(bytes(pos - len(model)))
    model[pos : pos + len(data)] = data


@pytest.mark.parametrize("seed", range(6))
def test_random_calls_against_plain_bytes(path: Path, seed: int):
    """Several files, some pages in RAM, some read through ptes; mounted again now and then."""
    rng = random.Random(seed)
    writer = Writer(path)
    inos = [writer.create(b"%d" % i).ino for i in range(3)]
    models: dict[Ino, bytearray] = {ino: bytearray() for ino in inos}
    for _ in range(250):
        inode = writer.sb.iget(rng.choice(inos))
        model = models[inode.ino]
        choice = rng.randrange(10)
        size_bytes = rng.choice([1, 50, 4096, 8192, 5000, 30000])
        pos = rng.choice([0, len(model), len(model), rng.randrange(len(model) + 20000)])
        if rng.random() < 0.4:
            pos &= -4096
        if choice < 5:
            data = rng.randbytes(rng.randrange(size_bytes) + 1)
            assert writer.write(inode, pos, data) == len(data)
            put(model, pos, data)
            assert inode.disk.mtime_ns == inode.disk.ctime_ns == writer.now_ns
        elif choice == 5:
            size_bytes = rng.choice([0, pos, rng.randrange(len(model) + 1)])
            size_bytes = min(size_bytes, 300_000)
            writer.truncate(inode, size_bytes)
            put(model, size_bytes, b"")
            del model[size_bytes:]
        elif choice == 6 and inode.mapping.nr_pages:
            some = rng.sample(range(inode.mapping.nr_pages), min(4, inode.mapping.nr_pages))
            writer.promote(inode, *sorted(some))
        elif choice == 7:
            resident = sorted(inode.mapping.i_pages)[:3]
            demote_pages(writer.machine, inode.mapping, resident, DemoteReason.KSWAPD)
        elif choice == 8:
            writer.sync(inode, datasync=rng.random() < 0.5)
            assert writer.stored(inode) == model
        elif rng.random() < 0.1:
            writer.check()
            writer = Writer(path)
            continue
        assert writer.read(inode) == model
        assert writer.read_mapped(inode) == model
    writer.mm.check_invariants()
    writer.check()
    writer = Writer(path)
    assert {ino: writer.stored(writer.sb.iget(ino)) for ino in inos} == models
    writer.close()


def test_a_file_that_grows_lies_in_one_piece(writer: Writer):
    inode = writer.create()
    for i in range(100):
        writer.write(inode, i * 1000, pattern(i, 1000))
    assert len(inode.disk.extents) == 1
    assert inode.disk.nr_pages == 25
    writer.check()


def test_many_pages_are_one_transaction_and_one_store(writer: Writer):
    inode = writer.create()
    with StoreLog(writer.sb.nvram) as log:
        writer.write(inode, 0, pattern(1, 1 << 20))
    sizes = [len(data) for kind, _, data in log.events if kind == "store"]
    assert sizes[0] == 1 << 20
    assert len(sizes) <= 9
    assert [kind for kind, _, _ in log.events].count("fence") == 4
    writer.check()


def test_the_smallest_journal_is_enough_for_the_most_scattered_write(path: Path):
    """2 MiB of which every second page is free."""
    writer = Writer(path)
    inode, other = writer.create(), writer.create(b"other")
    nr_pages = writer.sb.allocator.nr_free_pages - 80
    assert writer.sb.disk.nr_journal_pages == 32
    with writer.sb.transaction(5) as tx:
        runs = tx.allocate(nr_pages)
    pages = [block + i for block, n in runs for i in range(n)]
    with writer.sb.transaction(5) as tx:
        for page in pages[::2]:
            tx.free(Block(page), 1)
    data = pattern(1, nr_pages // 2 - 20 << 12)
    assert writer.write(inode, 0, data) == len(data)
    assert inode.disk.extent_depth
    with writer.sb.transaction(6) as tx:
        for page in pages[1::2]:
            tx.free(Block(page), 1)
    assert writer.read(inode) == data
    writer.truncate(inode, 1)
    writer.write(other, 0, data)
    writer.check()


def test_bytes_over_bytes_take_no_transaction(writer: Writer):
    inode = writer.create()
    writer.write(inode, 0, pattern(1, 50000))
    with StoreLog(writer.sb.nvram) as log:
        writer.write(inode, 5000, pattern(2, 30000))
    assert [kind for kind, _, _ in log.events] == ["store", "flush"]
    assert writer.sb.load_inode(inode.ino).mtime_ns < inode.disk.mtime_ns
    writer.sync(inode, datasync=True)
    assert inode.times_dirty
    writer.sync(inode)
    assert writer.sb.load_inode(inode.ino) == inode.disk
    writer.check()


def test_times_in_memory_come_along_with_whatever_changes_the_inode(writer: Writer):
    inode = writer.create()
    writer.write(inode, 0, b"abc")
    writer.write(inode, 0, b"xyz")
    mtime_ns = inode.disk.mtime_ns
    with writer.sb.transaction(writer.tick()) as tx:
        tx.put_inode(tx.inode(inode.ino)._replace(uid=7))
    assert not inode.times_dirty
    assert writer.sb.load_inode(inode.ino).mtime_ns == mtime_ns
    writer.write(inode, 0, b"123")
    mtime_ns = inode.disk.mtime_ns
    assert writer.sb.drop_unused(inode)
    assert writer.sb.iget(inode.ino).disk.mtime_ns == mtime_ns
    writer.check()


def test_times_that_cannot_be_written_are_told_to_the_log(
    writer: Writer, monkeypatch, expected_logs: Callable[[str], None]
):
    inode = writer.create()
    writer.write(inode, 0, b"abc")
    writer.write(inode, 0, b"xyz")
    expected_logs("its times were lost: worn out")

    def worn_out(*_: object) -> None:
        raise DeviceError("worn out")

    with monkeypatch.context() as patch:
        patch.setattr(NvramDevice, "store_bytes", worn_out)
        assert writer.sb.drop_unused(inode)


def test_a_page_in_ram_becomes_dirty_and_reaches_nvram_with_fsync(writer: Writer):
    inode = writer.create()
    old = pattern(1, 3 * PAGE_SIZE)
    writer.write(inode, 0, old)
    writer.promote(inode, 1)
    writer.write(inode, PAGE_SIZE - 10, b"x" * (PAGE_SIZE + 20))
    new = old[: PAGE_SIZE - 10] + b"x" * (PAGE_SIZE + 20) + old[2 * PAGE_SIZE + 10 :]
    assert writer.read(inode) == new
    assert writer.stored(inode)[PAGE_SIZE : 2 * PAGE_SIZE] == old[PAGE_SIZE : 2 * PAGE_SIZE]
    writer.sync(inode)
    assert writer.stored(inode) == new
    writer.check()


def test_bytes_appended_to_a_page_in_ram_are_in_both(writer: Writer):
    inode = writer.create()
    writer.write(inode, 0, b"a" * 100)
    writer.promote(inode, 0)
    writer.write(inode, 50, b"b" * 100)
    assert writer.read(inode) == b"a" * 50 + b"b" * 100
    assert writer.stored(inode) == b"a" * 100 + b"b" * 50, "the size exposes what is there"
    demote_pages(writer.machine, inode.mapping, [0], DemoteReason.KSWAPD)
    assert writer.stored(inode) == b"a" * 50 + b"b" * 100
    writer.check()


def test_a_hole_that_was_read_is_seen_when_it_is_filled(writer: Writer):
    inode = writer.create()
    writer.truncate(inode, 10 * PAGE_SIZE)
    assert writer.read_mapped(inode) == bytes(10 * PAGE_SIZE)
    vma = inode.mapping.i_mmap[0]
    sparse = writer.machine.sparse_pfn
    assert access_page(vma, Pgoff(4)) == sparse
    writer.write(inode, 4 * PAGE_SIZE + 9, b"here")
    assert access_page(vma, Pgoff(4)) != sparse
    assert access_page(vma, Pgoff(5)) == sparse
    assert writer.read_mapped(inode)[4 * PAGE_SIZE :][:20] == bytes(9) + b"here" + bytes(7)
    assert inode.disk.nr_pages == 1
    writer.check()


def test_a_page_that_get_xip_mem_creates_is_zero_and_durable(writer: Writer):
    other = writer.create(b"other")
    writer.write(other, 0, b"secret" * 2000)
    writer.truncate(other, 0)
    inode = writer.create()
    writer.truncate(inode, 3 * PAGE_SIZE)
    a_ops = inode.mapping.a_ops
    _, pfn = a_ops.get_xip_mem(inode.mapping, Pgoff(1), create=True)
    assert a_ops.get_xip_mem(inode.mapping, Pgoff(1), create=False)[1] == pfn
    assert writer.read(inode) == bytes(3 * PAGE_SIZE)
    writer.check()


def test_frames_of_a_cut_file_go_and_do_not_come_back(writer: Writer):
    inode = writer.create()
    writer.write(inode, 0, pattern(1, 4 * PAGE_SIZE))
    writer.promote(inode, 0, 1, 2, 3)
    writer.write(inode, 0, pattern(2, 4 * PAGE_SIZE))
    nr_free = writer.machine.mem_map.nr_free
    writer.truncate(inode, PAGE_SIZE + 100)
    assert sorted(inode.mapping.i_pages) == [0, 1]
    assert writer.machine.mem_map.nr_free == nr_free + 2
    other = writer.create(b"other")
    writer.write(other, 0, pattern(3, 8 * PAGE_SIZE))
    sync_all(writer.sb, writer.machine)
    assert writer.stored(other) == pattern(3, 8 * PAGE_SIZE)
    writer.truncate(inode, 4 * PAGE_SIZE)
    assert writer.read(inode) == pattern(2, PAGE_SIZE + 100) + bytes(3 * PAGE_SIZE - 100)
    writer.check()


def test_cutting_a_scattered_file_takes_several_transactions(path: Path):
    writer = Writer(path)
    inode, other = writer.create(), writer.create(b"other")
    for i in range(150):
        writer.write(inode, i * PAGE_SIZE, b"a")
        writer.write(other, i * PAGE_SIZE, b"b")
    assert inode.disk.nr_pages > 150, "with nodes of its tree"
    nr_free = writer.sb.state.nr_free_pages
    with StoreLog(writer.sb.nvram) as log:
        writer.truncate(inode, PAGE_SIZE // 2)
    assert not writer.sb.state.orphan_ino_head
    assert inode.disk.nr_pages <= 2, "one, and perhaps the last node"
    assert writer.sb.state.nr_free_pages >= nr_free + 149
    writer.check()
    stored_states = list(log.states())
    for state in stored_states[:: max(len(stored_states) // 40, 1)]:
        recovered(state, path)
        again = Writer(path)
        found = again.sb.iget(inode.ino)
        is_cut = found.disk.size_bytes == PAGE_SIZE // 2
        assert is_cut or found.disk.size_bytes == 149 * PAGE_SIZE + 1
        assert (found.disk.nr_pages <= 2) is is_cut
        again.close()


def test_unwritten_extents_are_written_to(tmp_path: Path):
    kit = ImageKit(nr_journal_pages=16)
    old, there = b"old bytes".ljust(3 * PAGE_SIZE, b"x"), b"there".ljust(2 * PAGE_SIZE, b"y")
    extents = [Extent(2, old, unwritten=True), Extent(5, there)]
    ino = kit.add_extents(INO_ROOT, b"file", extents, size_bytes=7 * PAGE_SIZE)
    writer = Writer(kit.build().write(tmp_path / "nvram.img"))
    inode = writer.sb.iget(Ino(ino))
    model = bytearray(writer.read(inode))
    assert not any(model[: 5 * PAGE_SIZE])
    for pos in (PAGE_SIZE + 5, 2 * PAGE_SIZE - 1):
        writer.write(inode, pos, b"!" * PAGE_SIZE)
        put(model, pos, b"!" * PAGE_SIZE)
        assert writer.read(inode) == model
    nr_pages = inode.disk.nr_pages
    assert inode.extents.find_block(Pgoff(4)) is None
    inode.mapping.a_ops.get_xip_mem(inode.mapping, Pgoff(4), create=True)
    assert inode.disk.nr_pages == nr_pages, "it had a page"
    assert writer.read(inode) == model
    writer.check()


def test_a_full_image_takes_what_fits_and_can_be_emptied(writer: Writer):
    inode = writer.create()
    nr_free = writer.sb.allocator.nr_free_pages
    data = pattern(1, 4 << 20)
    written = writer.write(inode, 0, data)
    assert 0 < written < len(data)
    with pytest.raises(NoSpaceError):
        writer.write(inode, written, b"x" * PAGE_SIZE)
    assert writer.sb.allocator.nr_free_pages <= writer.sb.allocator.nr_reserved_pages
    assert writer.read(inode) == data[:written]
    writer.write(inode, 0, b"over what is there")
    writer.truncate(inode, 10)
    assert writer.read(inode) == b"over what "
    assert writer.sb.allocator.nr_free_pages == nr_free - 1
    writer.write(inode, 10, data[:100000])
    writer.check()


def test_a_full_disk_of_the_host(writer: Writer, monkeypatch):
    inode = writer.create()
    writer.write(inode, 0, b"before")
    monkeypatch.setattr(writer.sb.nvram, "_reserved", {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", full)
        with pytest.raises(NoSpaceError, match="No space left on device"):
            writer.write(inode, PAGE_SIZE, b"x")
    assert writer.read(inode) == b"before"
    writer.write(inode, PAGE_SIZE, b"after")
    writer.check()


@pytest.mark.parametrize("datasync", [False, True])
def test_a_page_that_cannot_be_written_back_fails_the_sync(
    writer: Writer, monkeypatch, expected_logs: Callable[[str], None], datasync: bool
):
    inode = writer.create()
    writer.write(inode, 0, b"a" * PAGE_SIZE)
    writer.promote(inode, 0)
    writer.write(inode, 0, b"b")
    expected_logs("stays in RAM: worn out")

    def worn_out(*_: object) -> None:
        raise DeviceError("worn out")

    with monkeypatch.context() as patch:
        patch.setattr(NvramDevice, "store_bytes", worn_out)
        with pytest.raises(DeviceError, match="1 pages could not be written back"):
            writer.sync(inode, datasync=datasync)
    writer.sync(inode, datasync=datasync)
    assert writer.stored(inode)[0] == ord("b")


def test_what_is_refused(writer: Writer, path: Path):
    inode = writer.create()
    with pytest.raises(FileTooLargeError):
        writer.write(inode, FILE_SIZE_BYTES_MAX, b"x")
    assert writer.write(inode, FILE_SIZE_BYTES_MAX, b"") == 0
    with pytest.raises(FileTooLargeError):
        writer.truncate(inode, FILE_SIZE_BYTES_MAX + 1)
    with pytest.raises(InvalidArgumentError):
        writer.truncate(inode, -1)
    with pytest.raises(InvalidArgumentError):
        writer.write(inode, -1, b"x")
    assert writer.write(inode, FILE_SIZE_BYTES_MAX - 1, b"xy") == 1
    writer.truncate(inode, 0)
    with writer.sb.transaction(5) as tx:
        tx.put_inode(tx.inode(inode.ino)._replace(flags=int(InodeFlags.IMMUTABLE)))
    with pytest.raises(NotPermittedError):
        writer.write(inode, 0, b"x")
    with writer.sb.transaction(5) as tx:
        flags = int(InodeFlags.INLINE)
        tx.put_inode(tx.inode(inode.ino)._replace(flags=flags, size_bytes=1, payload=b"x"))
    with pytest.raises(FormatError, match="with its bytes in the inode"):
        writer.truncate(inode, 0)
    writer.close(sync=False)
    reader = SuperBlock.open(path)
    with pytest.raises(ReadOnlyFsError):
        write_file(reader, writer.machine, reader.iget(inode.ino), 0, b"x", 1)
    reader.close()


Step = Callable[[Writer, Inode], None]

STEPS: dict[str, Step] = {
    "append within a page": lambda w, f: w.write(f, 6000, b"n" * 500) and None,
    "append over the page's end": lambda w, f: w.write(f, 6000, b"n" * 9000) and None,
    "behind a gap": lambda w, f: w.write(f, 50000, b"n" * 100) and None,
    "a hole filled": lambda w, f: w.write(f, 70000, b"n" * 5000) and None,
    "over the end of RAM": lambda w, f: w.write(f, 4000, b"n" * 4000) and None,
    "cut within a page": lambda w, f: w.truncate(f, 5000),
    "cut to nothing": lambda w, f: w.truncate(f, 0),
    "longer": lambda w, f: w.truncate(f, 100_000),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("in_ram", [False, True])
def test_killed_at_any_store(path: Path, name: str, in_ram: bool):
    """Sizes and extents are as before or after, bytes old, new or zero; never another file's."""
    writer = Writer(path)
    other = writer.create(b"other")
    writer.write(other, 0, b"SECRET!!" * 20000)
    writer.truncate(other, 0)
    inode = writer.create()
    writer.write(inode, 0, b"o" * 6000)
    if name == "a hole filled":
        writer.truncate(inode, 80000)
    if in_ram:
        writer.promote(inode, 0, 1)
        writer.write(inode, 100, b"O" * 200)
        writer.sync(inode)
    before = writer.read(inode)
    with StoreLog(writer.sb.nvram) as log:
        STEPS[name](writer, inode)
    after = writer.read(inode)
    with StoreLog(writer.sb.nvram) as synced:
        writer.sync(inode)
    writer.check()
    states = [*log.states(), *log.torn_states(7, 40)]
    sizes = set()
    for state in states:
        recovered(state, path)
        again = SuperBlock.open(path)
        found = again.read_all(again.iget(inode.ino), 1 << 20)
        sizes.add(len(found))
        for old, new, byte in zip(
            before.ljust(len(found), b"\0"), after.ljust(len(found), b"\0"), found, strict=False
        ):
            assert byte in (old, new)
        again.close()
    assert sizes == {len(before), len(after)}
    *_, image = synced.states()
    recovered(image, path)
    again = SuperBlock.open(path)
    assert again.read_all(again.iget(inode.ino), 1 << 20) == after
    again.close()
