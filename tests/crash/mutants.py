"""Mutants: bugs that a filesystem for NVRAM can have, each as a patch of the product.

The kinds are those of the bugs that Chipmunk (EuroSys '23) found in NOVA, PMFS, WineFS and others:
missing flushes and fences, wrong order, updates in place, two steps where one is needed, recovery
that does too little or too much, and what only a tiered filesystem can get wrong.

Nobody who looks for them knows them: see test_mutants.py.
"""

import stat
from collections.abc import Callable

import pytest

from xipfs.errors import XipfsError
from xipfs.fs import attributes, file, namespace, superblock
from xipfs.fs.allocator import Allocator
from xipfs.fs.dirwriter import insert_entry, make_directory, remove_entry, replace_entry
from xipfs.fs.journal import Journal
from xipfs.fs.orphans import cut_inode
from xipfs.fs.transaction import Transaction
from xipfs.mm import migrate
from xipfs.mm.truncate import truncate_setsize
from xipfs.ondisk.group import GROUP_DESC
from xipfs.ondisk.inode import InodeFlags
from xipfs.ondisk.journal import JOURNAL_RECORD, JournalRecordKind, journal_record_size_bytes
from xipfs.ondisk.superblock import STATE_BLOCK
from xipfs.ondisk.xattr import encode_xattrs
from xipfs.phys.nvram import NvramDevice
from xipfs.phys.physmem import PhysMem
from xipfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Block, Pgoff, bytes_to_pages

__all__ = ["MUTANTS"]

Patch = pytest.MonkeyPatch
MUTANTS: dict[str, Callable[[Patch], None]] = {}


def mutant(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
    MUTANTS[apply.__name__] = apply
    return apply


class Muffler:
    """Makes flushes or fences do nothing for a while."""

    def __init__(self, patch: Patch, name: str) -> None:
        self.left = 0.0
        call = getattr(NvramDevice, name)

        def muffled(nvram: NvramDevice, *args: int) -> None:
            if self.left:
                self.left -= 1
            else:
                call(nvram, *args)

        patch.setattr(NvramDevice, name, muffled)


def before(patch: Patch, owner: object, name: str, do: Callable[[], None]) -> None:
    """Call *do* before each call of a function."""
    call = getattr(owner, name)

    def wrapped(*args, **options):
        do()
        return call(*args, **options)

    patch.setattr(owner, name, wrapped)


def muffle_in(patch: Patch, owner: object, name: str, what: str, *, nr: float) -> None:
    """Let *nr* flushes or fences (*what*) from the start of a function on do nothing."""
    muffler = Muffler(patch, what)
    call = getattr(owner, name)

    def wrapped(*args, **options):
        muffler.left = nr
        try:
            return call(*args, **options)
        finally:
            muffler.left = 0

    patch.setattr(owner, name, wrapped)


ALL = float("inf")

# Flushes and fences that are missing


@mutant
def records_not_flushed(patch: Patch) -> None:
    muffle_in(patch, Journal, "_store_ring", "flush", nr=ALL)


@mutant
def records_not_fenced(patch: Patch) -> None:
    """Targets are stored while records are in flight."""
    muffler = Muffler(patch, "fence")
    call = Journal._store_ring

    def store_ring(journal, position, log):
        call(journal, position, log)
        muffler.left = 1

    patch.setattr(Journal, "_store_ring", store_ring)


@mutant
def targets_not_flushed(patch: Patch) -> None:
    muffle_in(patch, Journal, "_store_targets", "flush", nr=ALL)


@mutant
def targets_not_fenced(patch: Patch) -> None:
    muffle_in(patch, Journal, "_store_targets", "fence", nr=1)


@mutant
def header_not_flushed(patch: Patch) -> None:
    muffle_in(patch, Journal, "_write_header", "flush", nr=1)


@mutant
def new_pages_not_flushed(patch: Patch) -> None:
    muffler = Muffler(patch, "flush")

    def start() -> None:
        muffler.left = ALL

    def stop() -> None:
        muffler.left = 0

    before(patch, Transaction, "commit", start)
    before(patch, Journal, "commit", stop)


@mutant
def new_pages_not_fenced(patch: Patch) -> None:
    """Step 1 has no fence of its own: what becomes reachable may come after its transaction."""
    muffle_in(patch, Journal, "commit", "fence", nr=1)


@mutant
def written_pages_not_flushed(patch: Patch) -> None:
    muffle_in(patch, file, "_store_pages", "flush", nr=ALL)


@mutant
def overwrite_not_flushed(patch: Patch) -> None:
    """What was written in place is not on its way when fsync fences."""
    muffle_in(patch, file, "xip_file_write_range", "flush", nr=ALL)


@mutant
def write_back_not_flushed(patch: Patch) -> None:
    muffle_in(patch, PhysMem, "copy_from_frame", "flush", nr=ALL)


@mutant
def replay_not_flushed(patch: Patch) -> None:
    muffler = Muffler(patch, "flush")

    def start() -> None:
        muffler.left = ALL

    def stop() -> None:
        muffler.left = 0

    before(patch, Journal, "replay", start)
    before(patch, Journal, "_write_header", stop)


@mutant
def replay_not_fenced(patch: Patch) -> None:
    """The header says that nothing is to be replayed, before what was replayed is durable."""
    muffle_in(patch, Journal, "replay", "fence", nr=1)


# Wrong order


@mutant
def header_before_targets(patch: Patch) -> None:
    store_targets, write_header = Journal._store_targets, Journal._write_header
    waiting = []

    def store_header_and_targets(journal, sequence):
        write_header(journal, sequence)
        while waiting:
            store_targets(journal, waiting.pop())

    patch.setattr(Journal, "_store_targets", lambda _, records: waiting.append(records))
    patch.setattr(Journal, "_write_header", store_header_and_targets)


@mutant
def targets_before_records(patch: Patch) -> None:
    """An undo log's order, for a redo log."""
    commit = Journal.commit

    def commit_late(journal, records):
        journal._store_targets(records)
        commit(journal, records)

    patch.setattr(Journal, "commit", commit_late)


@mutant
def size_before_data(patch: Patch) -> None:
    """A file has its extents and its size before the bytes are in their pages."""
    store_pages, commit = file._store_pages, Transaction.commit
    waiting = []

    def commit_and_store(tx):
        commit(tx)
        while waiting:
            args = waiting.pop()
            store_pages(*args)
            args[0].nvram.fence()

    patch.setattr(file, "_store_pages", lambda *args: waiting.append(args))
    patch.setattr(Transaction, "commit", commit_and_store)


def split(patch: Patch, *, allocator_first: bool) -> None:
    """Commit what the allocator says in a transaction of its own."""
    commit, prepare = Journal.commit, Allocator.prepare
    offsets: set[int] = set()

    def prepare_and_note(*args):
        change = prepare(*args)
        offsets.update(offset for offset, _ in change.records)
        return change

    def commit_in_two(journal, records):
        space = [record for record in records if record[0] in offsets]
        others = [record for record in records if record[0] not in offsets]
        for part in (space, others) if allocator_first else (others, space):
            if part:
                commit(journal, part)

    patch.setattr(Allocator, "prepare", prepare_and_note)
    patch.setattr(Journal, "commit", commit_in_two)


@mutant
def allocator_before_extent(patch: Patch) -> None:
    split(patch, allocator_first=True)


@mutant
def extent_before_allocator(patch: Patch) -> None:
    split(patch, allocator_first=False)


@mutant
def size_before_cut(patch: Patch) -> None:
    """A file is cut in two transactions, and the first makes no orphan of it."""

    def truncate(sb, machine, inode, size_bytes, now_ns):
        with sb.transaction(now_ns) as tx:
            tx.put_inode(tx.inode(inode.ino)._replace(size_bytes=size_bytes, mtime_ns=now_ns))
        truncate_setsize(machine, inode.mapping, size_bytes)
        with sb.transaction(now_ns) as tx:
            cut_inode(tx, tx.inode(inode.ino), bytes_to_pages(size_bytes))

    patch.setattr("xipfs.crash.player.truncate_file", truncate)


# Updates in place


@mutant
def header_in_place(patch: Patch) -> None:
    write_header = Journal._write_header

    def write_the_same(journal, sequence):
        write_header(journal, sequence)
        journal._next_slot = 0

    patch.setattr(Journal, "_write_header", write_the_same)


@mutant
def state_in_place(patch: Patch) -> None:
    """Counts and lists are stored where they belong, without the journal."""
    store = Transaction.store

    def store_now(tx, offset, data):
        if offset == STATE_BLOCK << PAGE_SHIFT:
            tx.sb.nvram.store_bytes(offset, data)
            tx.sb.nvram.flush(offset, len(data))
        else:
            store(tx, offset, data)

    patch.setattr(Transaction, "store", store_now)


@mutant
def group_in_place(patch: Patch) -> None:
    prepare = Allocator.prepare

    def prepare_and_store(allocator, *args):
        change = prepare(allocator, *args)
        for offset, data in change.records:
            if len(data) == GROUP_DESC.size_bytes:
                allocator._nvram.store_bytes(offset, data)
                allocator._nvram.flush(offset, len(data))
        return change

    patch.setattr(Allocator, "prepare", prepare_and_store)


@mutant
def attributes_in_place(patch: Patch) -> None:
    """A run of attributes is overwritten if the new one has as many pages."""
    store_xattrs = attributes.store_xattrs

    def store(tx, inode, xattrs):
        run = encode_xattrs(xattrs, tx.sb.seed, inode.ino, inode.generation) if xattrs else b""
        if len(run) >> PAGE_SHIFT != inode.nr_xattr_pages or not run:
            return store_xattrs(tx, inode, xattrs)
        for n in range(inode.nr_xattr_pages):
            page = run[n << PAGE_SHIFT : (n + 1) << PAGE_SHIFT]
            tx.new_page(Block(inode.xattr_block + n), page)
        return inode

    patch.setattr(attributes, "store_xattrs", store)


@mutant
def tail_in_place(patch: Patch) -> None:
    """What is appended in a file's last page is stored there before the size tells of it."""

    def store_tail(tx, inode, pos, data):
        while data:
            block = inode.extents.find_block(Pgoff(pos >> PAGE_SHIFT))
            part = bytes(data[: PAGE_SIZE - (pos & PAGE_MASK)])
            offset = (block << PAGE_SHIFT) + (pos & PAGE_MASK)
            tx.sb.nvram.store_bytes(offset, part)
            tx.sb.nvram.flush(offset, len(part))
            pos += len(part)
            data = data[len(part) :]

    patch.setattr(file, "_log_tail", store_tail)


# Two steps where one is needed


@mutant
def rename_adds_then_removes(patch: Patch) -> None:
    rename = namespace.rename

    def rename_in_two(sb, directory, name, new_directory, new_name, flags, now_ns):
        try:
            sb.lookup(new_directory, new_name)
            is_plain = False
        except XipfsError:
            is_plain = not sb.lookup(directory, name).is_dir
        if not is_plain:
            return rename(sb, directory, name, new_directory, new_name, flags, now_ns)
        inode = sb.lookup(directory, name)
        with sb.transaction(now_ns) as tx:
            insert_entry(tx, new_directory.disk, new_name, inode.ino, inode.disk.mode >> 12)
        with sb.transaction(now_ns) as tx:
            remove_entry(tx, directory.disk, name)
            tx.put_inode(tx.inode(inode.ino)._replace(ctime_ns=now_ns))
        return None

    patch.setattr("xipfs.crash.player.rename", rename_in_two)


@mutant
def rename_unlinks_the_target_first(patch: Patch) -> None:
    """As NOVA did: for a moment neither the old file nor the new one has the name."""
    rename, unlink = namespace.rename, namespace.unlink

    def unlink_and_rename(sb, directory, name, new_directory, new_name, flags, now_ns):
        orphan = None
        if not flags:
            try:
                old, new = sb.lookup(directory, name), sb.lookup(new_directory, new_name)
            except XipfsError:
                old = new = sb.iget(1)
            if old is not new and not old.is_dir and not new.is_dir:
                orphan = unlink(sb, new_directory, new_name, now_ns)
        return rename(sb, directory, name, new_directory, new_name, flags, now_ns) or orphan

    patch.setattr("xipfs.crash.player.rename", unlink_and_rename)


@mutant
def exchange_one_after_the_other(patch: Patch) -> None:
    rename = namespace.rename

    def exchange(sb, directory, name, new_directory, new_name, flags, now_ns):
        if flags != namespace.RENAME_EXCHANGE:
            return rename(sb, directory, name, new_directory, new_name, flags, now_ns)
        one, other = sb.lookup(directory, name), sb.lookup(new_directory, new_name)
        for where, what, inode in ((directory, name, other), (new_directory, new_name, one)):
            with sb.transaction(now_ns) as tx:
                replace_entry(tx, where.disk, what, inode.ino, inode.disk.mode >> 12)
        return None

    patch.setattr("xipfs.crash.player.rename", exchange)


@mutant
def link_is_counted_later(patch: Patch) -> None:
    """As NOVA did: the name is there before the inode's link count."""

    def link(sb, inode, directory, name, now_ns):
        with sb.transaction(now_ns) as tx:
            insert_entry(tx, directory.disk, name, inode.ino, inode.disk.mode >> 12)
        with sb.transaction(now_ns) as tx:
            namespace._add_link(tx, inode.ino)

    patch.setattr("xipfs.crash.player.link", link)


@mutant
def inode_before_name(patch: Patch) -> None:
    """A file is made in two transactions; between them it belongs to nobody."""

    def mknod(sb, directory, name, mode, owner, now_ns, *, rdev=0):
        with sb.transaction(now_ns) as tx:
            is_device = stat.S_ISCHR(mode)
            inode = tx.new_inode(mode=mode, nlink=1, rdev=rdev if is_device else 0)
        with sb.transaction(now_ns) as tx:
            insert_entry(tx, directory.disk, name, inode.ino, mode >> 12)

    patch.setattr("xipfs.crash.player.mknod", mknod)


@mutant
def parent_is_counted_later(patch: Patch) -> None:
    def mkdir(sb, directory, name, mode, owner, now_ns):
        with sb.transaction(now_ns) as tx:
            inode = tx.new_inode(mode=stat.S_IFDIR | mode, nlink=2, parent_ino=directory.ino)
            insert_entry(tx, directory.disk, name, inode.ino, inode.mode >> 12)
            make_directory(tx, inode)
        with sb.transaction(now_ns) as tx:
            namespace._add_link(tx, directory.ino)

    patch.setattr("xipfs.crash.player.mkdir", mkdir)


@mutant
def every_record_by_itself(patch: Patch) -> None:
    """Each change of bytes is atomic, the operation is not."""
    commit = Journal.commit

    def commit_each(journal, records):
        for record in records:
            commit(journal, [record])

    patch.setattr(Journal, "commit", commit_each)


# Recovery


@mutant
def dirty_images_look_clean(patch: Patch) -> None:
    """Nothing is replayed."""
    patch.setattr(superblock, "_is_clean", lambda nvram, disk: True)


@mutant
def replay_without_commit(patch: Patch) -> None:
    """A transaction of which some records are there is taken for whole."""

    def read_transaction(journal):
        ranges = []
        position = journal._head
        while True:
            head = journal._load_ring(position, JOURNAL_RECORD.size_bytes)
            magic, crc, sequence, kind, size_bytes, target = JOURNAL_RECORD.unpack(head)
            is_whole = (magic, sequence) == (JOURNAL_RECORD.magic, journal._sequence)
            if not is_whole or crc != journal._checksum(head, position, size_bytes):
                return (ranges, position) if ranges else None
            start = position + JOURNAL_RECORD.size_bytes
            position += journal_record_size_bytes(size_bytes)
            position %= journal._ring_size_bytes
            if kind == JournalRecordKind.COMMIT:
                return ranges, position
            ranges.append((target, start, size_bytes))

    patch.setattr(Journal, "_read_transaction", read_transaction)


@mutant
def replay_without_checksums(patch: Patch) -> None:
    patch.setattr(Journal, "_checksum", lambda _, head, *rest: JOURNAL_RECORD.unpack(head)[1])


@mutant
def replay_stops_at_the_first_record(patch: Patch) -> None:
    read_transaction = Journal._read_transaction

    def read_less(journal):
        found = read_transaction(journal)
        return found and (found[0][:1], found[1])

    patch.setattr(Journal, "_read_transaction", read_less)


@mutant
def replay_adds_up(patch: Patch) -> None:
    """Not idempotent: it goes on behind what it has replayed without saying so in the header."""
    write_header = Journal._write_header
    replay = Journal.replay

    def replay_and_forget(journal):
        patched = pytest.MonkeyPatch()
        patched.setattr(Journal, "_write_header", lambda *_: None)
        found = replay(journal)
        patched.undo()
        write_header(journal, journal._sequence)
        return found and 0

    patch.setattr(Journal, "replay", replay_and_forget)


@mutant
def orphans_not_finished(patch: Patch) -> None:
    patch.setattr(superblock, "finish_orphans", lambda *_: 0)


@mutant
def orphan_not_listed(patch: Patch) -> None:
    def drop_link(tx, ino):
        inode = tx.inode(ino)
        tx.put_inode(inode._replace(nlink=inode.nlink - 1, ctime_ns=tx.now_ns))

    def release(sb, ino, now_ns):
        with sb.transaction(now_ns) as tx:
            namespace.release_orphan.__globals__["drop_inode"](tx, tx.inode(ino))

    patch.setattr(namespace, "_drop_link", drop_link)
    patch.setattr("xipfs.crash.player.release_orphan", release)


# Pages and frames


@mutant
def hole_filled_without_zeros(patch: Patch) -> None:
    """Of a page that a write covers in part, the rest is what a former file left there."""

    def store_pages(sb, block, nr_pages, start, data):
        low, high = max(start, 0), min(start + (nr_pages << PAGE_SHIFT), len(data))
        if low < high:
            offset = (block << PAGE_SHIFT) + low - start
            sb.nvram.store_bytes(offset, data[low:high])
            sb.nvram.flush(offset, high - low)

    patch.setattr(file, "_store_pages", store_pages)


@mutant
def tail_not_zeroed(patch: Patch) -> None:
    """A file is cut inside of a page, and what is behind comes back when it grows."""
    store = Transaction.store

    def store_no_zeros(tx, offset, data):
        if data.count(0) < len(data) or len(data) < 64:
            store(tx, offset, data)

    patch.setattr(Transaction, "store", store_no_zeros)


@mutant
def removed_pages_not_freed(patch: Patch) -> None:
    patch.setattr(Transaction, "free", lambda *_: None)


@mutant
def fsync_forgets_ram(patch: Patch) -> None:
    patch.setattr(file, "_write_back", lambda *_: None)


@mutant
def demotion_drops_dirty_pages(patch: Patch) -> None:
    def write_back(machine, mapping, pages):
        return {pgoff for pgoff, _ in pages}

    patch.setattr(migrate, "write_back_frames", write_back)


@mutant
def frames_kept_across_a_cut(patch: Patch) -> None:
    """The pages of a file that was cut stay in RAM, and show when it grows."""

    def set_size(machine, mapping, size_bytes):
        mapping.i_size_bytes = size_bytes

    patch.setattr(file, "truncate_setsize", set_size)


@mutant
def writes_to_ram_are_not_dirty(patch: Patch) -> None:
    muffled = "xipfs.mm.mem_map.MemMap.set_page_dirty"
    patch.setattr(muffled, lambda *_: None)


# Names and numbers


@mutant
def moved_directory_keeps_its_parent(patch: Patch) -> None:
    def touch_moved(tx, ino, old_parent, new_parent, **options):
        tx.put_inode(tx.inode(ino)._replace(ctime_ns=tx.now_ns))

    patch.setattr(namespace, "_touch_moved", touch_moved)


@mutant
def orphan_flag_left(patch: Patch) -> None:
    """A file that leaves the orphan list still says that it is in there."""
    free_inode = Transaction.free_inode

    def free(tx, ino):
        free_inode(tx, ino)
        inode = tx._inodes[ino]
        tx._inodes[ino] = inode._replace(flags=inode.flags | InodeFlags.ORPHAN)

    patch.setattr(Transaction, "free_inode", free)
