"""transaction: all or nothing, in the image and in memory; what is pending is seen within it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.crash import StoreLog, recovered
from tests.kit.image import ImageKit
from xipfs.errors import BugError, DeviceError, FormatError, NoSpaceError, ReadOnlyFsError
from xipfs.fs.dirwriter import insert_entry, remove_entry
from xipfs.fs.extentwriter import insert_extent
from xipfs.fs.fsck import fsck
from xipfs.fs.journal import Journal
from xipfs.fs.mkfs import mkfs
from xipfs.fs.orphans import drop_inode, finish_orphans
from xipfs.fs.superblock import SuperBlock
from xipfs.fs.transaction import Transaction
from xipfs.ondisk.inode import INO_ROOT, InodeFlags
from xipfs.ondisk.superblock import StateFlags
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Block, Ino

FILE = 0o100644


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "nvram.img"
    mkfs(path, None, now_ns=1, size_bytes=1 << 20)
    return path


@pytest.fixture
def sb(path: Path):
    sb = opened(path)
    yield sb
    if sb.writable:
        sb.close()


def opened(path: Path) -> SuperBlock:
    return SuperBlock.open(path, writable=True, clock=lambda: 50)


def create(sb: SuperBlock, name: bytes, nr_pages: int = 1) -> Ino:
    """Make a file with its pages in one transaction."""
    with sb.transaction(sb.clock()) as tx:
        inode = tx.new_inode(mode=FILE, nlink=1, size_bytes=nr_pages << PAGE_SHIFT)
        pgoff = 0
        for block, nr_run_pages in tx.allocate(nr_pages):
            tx.new_page(block, name[:1] * PAGE_SIZE)
            inode = insert_extent(tx, inode, pgoff, block, nr_run_pages)
            pgoff += nr_run_pages
        insert_entry(tx, tx.inode(INO_ROOT), name, inode.ino, FILE >> 12)
    return inode.ino


def orphan(sb: SuperBlock) -> Ino:
    with sb.transaction(sb.clock()) as tx:
        inode = tx.new_inode(mode=FILE)
        tx.add_orphan(inode.ino)
    return inode.ino


def orphans(sb: SuperBlock) -> list[int]:
    """The orphan list, from the image."""
    found = []
    ino = sb.state.orphan_ino_head
    while ino:
        inode = sb.load_inode(ino)
        assert inode.flags & InodeFlags.ORPHAN
        found.append(int(ino))
        ino = inode.next_ino
    return found


def check(sb: SuperBlock) -> None:
    """Close; fsck has nothing to say."""
    path = sb.nvram.path
    sb.close()
    report = fsck(path)
    assert not report.findings, "\n".join(map(str, report.findings))
    assert not report.unchecked


def test_what_is_committed_is_in_memory_and_in_the_image(path: Path, sb: SuperBlock):
    ino = create(sb, b"name")
    assert sb.lookup(sb.iget(INO_ROOT), b"name").ino == ino
    assert sb.iget(INO_ROOT).disk.nr_entries == 1
    state = sb.state
    check(sb)
    again = SuperBlock.open(path)
    assert again.state == state._replace(flags=int(StateFlags.CLEAN), written_ns=50)
    assert again.read_all(again.lookup(again.iget(INO_ROOT), b"name"), 9999) == b"n" * PAGE_SIZE
    again.close()


def test_an_exception_leaves_nothing(sb: SuperBlock):
    create(sb, b"before")
    root = sb.iget(INO_ROOT)
    image = sb.nvram.load(0, sb.nvram.size_bytes)
    memory = (sb.state, root.disk, sb.allocator.nr_free_pages)

    def change_and_fail() -> None:
        with sb.transaction(60) as tx:
            inode = tx.new_inode(mode=FILE)
            tx.new_page(tx.allocate(1)[0][0], bytes(PAGE_SIZE))
            tx.free(Block(int(root.disk.extents["block"][0])), 1)
            insert_entry(tx, tx.inode(INO_ROOT), b"name", inode.ino, FILE >> 12)
            tx.add_orphan(inode.ino)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change_and_fail()
    assert sb.nvram.load(0, sb.nvram.size_bytes) == image
    assert (sb.state, root.disk, sb.allocator.nr_free_pages) == memory
    assert not sb.orphan_before
    create(sb, b"after")
    check(sb)


def test_load_sees_what_is_pending_across_pages(sb: SuperBlock):
    with sb.transaction(60) as tx:
        [(first, _)] = tx.allocate(3)
        tx.new_page(first, b"a" * PAGE_SIZE)
        tx.new_page(first, b"b" * PAGE_SIZE)
        tx.store((first + 1 << PAGE_SHIFT) - 2, b"xxyyy")
        expected = b"b" * 6 + b"xxyyy" + sb.nvram.load((first + 1 << PAGE_SHIFT) + 3, 5)
        assert tx.load((first + 1 << PAGE_SHIFT) - 8, 16) == expected
        assert sb.nvram.load(first << PAGE_SHIFT, PAGE_SIZE) == bytes(PAGE_SIZE)
        assert tx.size_bytes == sb.nvram.size_bytes
    assert sb.nvram.load((first + 1 << PAGE_SHIFT) - 8, 16) == expected


def test_only_bytes_that_differ_are_logged(sb: SuperBlock, monkeypatch: pytest.MonkeyPatch):
    with sb.transaction(60) as tx:
        [(block, _)] = tx.allocate(1)
        tx.new_page(block, bytes(PAGE_SIZE))
    logged: list[tuple[int, bytes]] = []
    commit = Journal.commit

    def spy(journal: Journal, records: list[tuple[int, bytes]]) -> None:
        logged.extend(records)
        commit(journal, records)

    monkeypatch.setattr(Journal, "commit", spy)
    page = bytearray(PAGE_SIZE)
    page[700:703] = b"new"
    page[3000] = 1
    offset = block << PAGE_SHIFT
    with sb.transaction(61) as tx:
        tx.store(offset, bytes(page))
        tx.store(offset + 100, bytes(50))
    assert logged == [(offset + 700, b"new"), (offset + 3000, b"\1")]
    with sb.transaction(62) as tx:
        tx.store(offset, bytes(page))
        tx.put_inode(tx.inode(INO_ROOT))
    assert len(logged) == 2, "nothing differs, nothing is written"


def test_pages_freed_can_be_had_when_their_transaction_is_through(sb: SuperBlock):
    ino = create(sb, b"name", nr_pages=100)
    nr_free = sb.allocator.nr_free_pages
    with sb.transaction(60) as tx:
        inode = tx.inode(ino)
        runs = [(Block(row[1]), row[2]) for row in inode.extents.tolist()]
        for block, nr_pages in runs:
            tx.free(block, nr_pages)
        tx.put_inode(inode._replace(nr_pages=0, nr_extents=0, payload=b"", size_bytes=0))
        with pytest.raises(NoSpaceError):
            tx.allocate(nr_free)
        taken = tx.allocate(5, runs[0][0])
        assert not any(block <= other < block + n for block, n in runs for other, _ in taken)
        for block, nr_pages in taken:
            tx.free(block, nr_pages)
    assert sb.allocator.nr_free_pages == nr_free + 100
    check(sb)


def test_numbers_come_back_with_another_generation(sb: SuperBlock):
    inos = [create(sb, b"%d" % i) for i in range(3)]
    first = orphan(sb)
    second = orphan(sb)
    assert [*inos, first, second] == [16, 17, 18, 19, 20]
    with sb.transaction(60) as tx:
        tx.free_inode(first)
        tx.free_inode(second)
    assert sb.state.free_ino_head == second
    with sb.transaction(61) as tx:
        found = [tx.new_inode(mode=FILE) for _ in range(3)]
        assert [(i.ino, i.generation, i.mtime_ns) for i in found] == [
            (20, 2, 61),
            (19, 2, 61),
            (21, 1, 61),
        ]
        for inode in found:
            tx.add_orphan(inode.ino)
    check(sb)


def test_an_inode_in_use_in_the_free_list_is_damage(sb: SuperBlock):
    ino = create(sb, b"name")
    sb.state = sb.state._replace(free_ino_head=ino)
    with pytest.raises(FormatError, match="in the free list"), sb.transaction(60) as tx:
        tx.new_inode(mode=FILE)
    sb.state = sb.state._replace(free_ino_head=Ino(0))


def test_the_inode_file_grows_in_pieces(sb: SuperBlock):
    before = sb.inode_file_inode
    hold = []
    for i in range(60):
        hold.append(create(sb, b"%d" % i))
        with sb.transaction(60) as tx:  # so that its pages cannot lie side by side
            tx.allocate(1)
    with sb.transaction(60) as tx:
        inodes = [tx.new_inode(mode=FILE) for _ in range(400)]
        for inode in inodes:
            tx.add_orphan(inode.ino)
    assert sb.inode_file_inode.size_bytes > before.size_bytes
    assert sb.load_inode(inodes[-1].ino) == inodes[-1]._replace(
        flags=int(InodeFlags.ORPHAN), next_ino=inodes[-2].ino, payload=bytes(120)
    )


@pytest.mark.parametrize("gone", [[0], [1], [2], [0, 1], [1, 2], [0, 2], [2, 1, 0], [1, 0, 2]])
def test_orphans_leave_the_list_in_any_order(sb: SuperBlock, gone: list[int]):
    inos = [orphan(sb) for _ in range(3)]
    assert orphans(sb) == inos[::-1]
    for number in gone:
        with sb.transaction(60) as tx:
            tx.free_inode(inos[number])
    assert orphans(sb) == [ino for i, ino in enumerate(inos) if i not in gone][::-1]
    assert set(sb.orphan_before) == set(orphans(sb))
    check(sb)


def test_orphans_come_and_go_within_one_transaction(sb: SuperBlock):
    first = orphan(sb)
    with sb.transaction(60) as tx:
        second = tx.new_inode(mode=FILE, nlink=1).ino
        tx.add_orphan(second)
        tx.remove_orphan(first)
        tx.add_orphan(first)
        tx.remove_orphan(second)
        insert_entry(tx, tx.inode(INO_ROOT), b"name", second, FILE >> 12)
        with pytest.raises(FormatError, match="an orphan, but in no list"):
            tx.remove_orphan(second)
        with pytest.raises(FormatError, match="an orphan already"):
            tx.add_orphan(first)
    assert orphans(sb) == [first]
    check(sb)


def test_the_next_mount_frees_what_nobody_names(path: Path, sb: SuperBlock):
    ino = create(sb, b"large", nr_pages=120)
    nr_free = sb.allocator.nr_free_pages
    with sb.transaction(60) as tx:
        inode = tx.new_inode(mode=FILE)
        for i in range(20):
            [(block, _)] = tx.allocate(1, Block(250 - 2 * i))
            inode = insert_extent(tx, inode, 3 * i, block, 1)
        tx.add_orphan(tx.new_inode(mode=FILE).ino)
        tx.add_orphan(inode.ino)
    check(sb)
    again = opened(path)
    assert again.state.orphan_ino_head == 0
    assert again.allocator.nr_free_pages == nr_free
    assert again.state.nr_inodes == 2
    assert again.load_inode(ino).nr_pages == 120
    check(again)


def test_an_orphan_without_its_flag_is_damage(sb: SuperBlock):
    ino = create(sb, b"name")
    sb.state = sb.state._replace(orphan_ino_head=ino)
    with pytest.raises(FormatError, match="no orphan: run xipfs fsck"):
        finish_orphans(sb, 60)


def test_only_a_writer_and_one_at_a_time(path: Path, sb: SuperBlock):
    with sb.transaction(60), pytest.raises(BugError, match="a transaction in a transaction"):
        sb.transaction(60)
    check(sb)
    reader = SuperBlock.open(path)
    with pytest.raises(ReadOnlyFsError, match="mounted read-only"):
        reader.transaction(60)
    reader.close()


def test_too_much_for_the_journal(tmp_path: Path):
    kit = ImageKit(nr_journal_pages=2)
    sb = opened(kit.build().write(tmp_path / "nvram.img"))
    ino = create(sb, b"file")
    before = sb.load_inode(ino)
    tx = sb.transaction(60)
    assert not tx.nearly_full
    tx.put_inode(before._replace(mtime_ns=60))
    assert not tx.nearly_full
    tx.store(int(before.extents["block"][0]) << PAGE_SHIFT, bytes(range(256)) * 16)
    assert tx.nearly_full
    with pytest.raises(NoSpaceError, match="its journal holds 4096"), tx:
        pass
    assert sb.load_inode(ino) == before
    assert not sb.is_aborted
    create(sb, b"small enough")
    check(sb)


def test_after_an_abort_nothing_is_written_and_the_next_mount_recovers(
    path: Path, sb: SuperBlock, monkeypatch
):
    store_bytes = NvramDevice.store_bytes

    def worn_out(nvram: NvramDevice, offset: int, data: bytes) -> None:
        if offset >> PAGE_SHIFT == 1:
            raise DeviceError("worn out")
        store_bytes(nvram, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(NvramDevice, "store_bytes", worn_out)
        with pytest.raises(DeviceError, match="worn out"):
            create(sb, b"name")
    assert sb.is_aborted
    with pytest.raises(DeviceError, match="unmount it"):
        create(sb, b"other")
    sb.close()
    with pytest.raises(FormatError, match="mount it once with -o rw"):
        SuperBlock.open(path)
    again = opened(path)
    assert again.lookup(again.iget(INO_ROOT), b"name").disk.size_bytes == PAGE_SIZE
    check(again)


Change = Callable[[Transaction], None]


def _new_file(tx: Transaction) -> None:
    inode = tx.new_inode(mode=FILE, nlink=1, size_bytes=3 * PAGE_SIZE)
    for pgoff in range(3):
        [(block, _)] = tx.allocate(1, Block(200 - 10 * pgoff))
        tx.new_page(block, b"%d" % pgoff * PAGE_SIZE)
        inode = insert_extent(tx, inode, pgoff, block, 1)
    insert_entry(tx, tx.inode(INO_ROOT), b"new", inode.ino, FILE >> 12)


def _unlink(tx: Transaction) -> None:
    inode = tx.inode(Ino(16))._replace(nlink=0)
    remove_entry(tx, tx.inode(INO_ROOT), b"old")
    drop_inode(tx, inode)


def _grow_inode_file(tx: Transaction) -> None:
    for i in range(300):
        inode = tx.new_inode(mode=FILE, nlink=1)
        insert_entry(tx, tx.inode(INO_ROOT), b"name %d" % i, inode.ino, FILE >> 12)


def _chmod(tx: Transaction) -> None:
    tx.put_inode(tx.inode(Ino(16))._replace(mode=0o100600))


def _nothing(tx: Transaction) -> None:
    tx.put_inode(tx.inode(Ino(16)))


def contents(path: Path) -> dict[bytes, tuple[int, int, bytes]]:
    """What a mount shows."""
    sb = SuperBlock.open(path)
    found = {}
    root = sb.iget(INO_ROOT)
    for entry in sb.dir_reader.iter_entries(root.disk, root.extents):
        inode = sb.iget(entry.ino)
        data = b"" if inode.is_dir else sb.read_all(inode, 1 << 20)
        found[entry.name] = (inode.disk.mode, inode.disk.nlink, data)
    sb.close()
    return found


@pytest.mark.parametrize(
    "change", [_new_file, _unlink, _grow_inode_file, _chmod, _nothing], ids=lambda c: c.__name__
)
def test_killed_at_any_store_it_is_before_or_after(path: Path, sb: SuperBlock, change: Change):
    create(sb, b"old", nr_pages=5)
    sb.close()
    before = contents(path)
    sb = opened(path)
    with StoreLog(sb.nvram) as log, sb.transaction(60) as tx:
        change(tx)
    check(sb)
    after = contents(path)
    found = []
    for state in [*log.states(), *log.torn_states(3, 60)]:
        recovered(state, path)
        found.append(contents(path))
        assert found[-1] in (before, after)
    if log.events:
        assert found[0] == before
        assert found[len([e for e in log.events if e[0] == "store"])] == after


def test_killed_while_a_mount_begins_or_ends(path: Path, sb: SuperBlock, monkeypatch):
    create(sb, b"name")
    orphan(sb)
    with StoreLog(sb.nvram) as ended:
        sb.close()
    begun: list[StoreLog] = []
    open_nvram = NvramDevice.open

    def recorded(path: Path, *, writable: bool = False) -> NvramDevice:
        nvram = open_nvram(path, writable=writable)
        begun.append(StoreLog(nvram))
        nvram.observer = begun[0]
        return nvram

    half = list(ended.states())[2]
    for image in (path.read_bytes(), half):
        path.write_bytes(image)
        with monkeypatch.context() as patch:
            begun.clear()
            patch.setattr(NvramDevice, "open", recorded)
            opened(path).close()
        logs = (ended, begun[0])
        for state in [s for log in logs for s in [*log.states(), *log.torn_states(4, 40)]]:
            recovered(state, path)
            assert set(contents(path)) == {b".", b"..", b"name"}
