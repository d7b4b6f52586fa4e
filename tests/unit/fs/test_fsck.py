"""fsck finds every broken invariant by its number, and nothing in a sound image.

Each case breaks one thing in the sample image, seals the record again where it has a seal, and
names what must be found: exactly these numbers, the first of them for the thing itself.
"""

import fcntl
import os
import re
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.kit.image import HandmadeImage, ImageKit
from tests.kit.sample import Sample, make_sample
from xipfs.errors import DeviceError, FormatError, ImageBusyError
from xipfs.fs.fsck import NR_FINDINGS_MAX, FsckReport, Invariant, fsck
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import walk_tree
from xipfs.ondisk.dentry import DIR_PAGE, DIR_SLOT_DTYPE, name_key
from xipfs.ondisk.extent import EXTENT_DTYPE, EXTENT_NODE
from xipfs.ondisk.group import GROUP_DESC, NR_GROUP_PAGES
from xipfs.ondisk.inode import INO_ROOT, INODE, InodeFlags
from xipfs.ondisk.journal import JOURNAL_HEADER, JOURNAL_RECORD, DiskJournalHeader
from xipfs.ondisk.superblock import StateFlags
from xipfs.ondisk.xattr import XATTR_ENTRY_DTYPE, XATTR_RUN
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

I = Invariant  # noqa: E741
CASES: list[tuple[str, tuple[Invariant, ...], Callable[[Sample], object]]] = []


def breaks(*expected: Invariant):
    """Register a function that breaks the sample so that just these are found."""

    def register(function: Callable[[Sample], object]) -> Callable[[Sample], object]:
        CASES.append((function.__name__, expected, function))
        return function

    return register


def check(image: HandmadeImage, tmp_path: Path) -> FsckReport:
    return fsck(image.write(tmp_path / "nvram.img"))


def numbers(report: FsckReport) -> list[str]:
    return sorted({str(finding.invariant) for finding in report.findings})


# I1 to I5


@breaks(I.SUPERBLOCK)
def a_flipped_superblock(s):
    s.image.data[300] ^= 4


@breaks(I.SUPERBLOCK)
def a_superblock_overwritten(s):
    s.image.data[:PAGE_SIZE] = bytes(PAGE_SIZE)


@breaks(I.SUPERBLOCK, I.REPLICA)
def two_flipped_superblocks(s):
    s.image.data[300] ^= 4
    s.image.replica[300] ^= 4


@breaks(I.REPLICA)
def a_flipped_replica(s):
    s.image.replica[4095] ^= 4


@breaks(I.REPLICA)
def a_replica_of_other_contents(s):
    s.image.replica[:] = s.image.disk._replace(label=b"another").encode()


@breaks(I.FEATURES)
def a_newer_version(s):
    s.image.change_superblock(version=2)


@breaks(I.FEATURES)
def another_checksum_type(s):
    s.image.change_superblock(checksum_type=2)


@breaks(I.FEATURES)
def an_unknown_compat_feature(s):
    s.image.change_superblock(compat=1 << 63 | 1)


@breaks(I.FEATURES)
def an_unknown_ro_compat_feature(s):
    s.image.change_superblock(ro_compat=2)


@breaks(I.FEATURES)
def an_unknown_incompat_feature(s):
    s.image.change_superblock(incompat=4)


@breaks(I.LAYOUT)
def other_page_sizes(s):
    s.image.change_superblock(page_shift=13, group_shift=14)


@breaks(I.LAYOUT)
def too_many_groups(s):
    s.image.change_superblock(nr_groups=2)


@breaks(I.LAYOUT)
def a_journal_without_a_ring(s):
    s.image.change_superblock(nr_journal_pages=1)


@breaks(I.LAYOUT)
def a_journal_over_the_descriptors(s):
    s.image.change_superblock(nr_journal_pages=4)


@breaks(I.LAYOUT)
def bitmaps_behind_the_end(s):
    s.image.change_superblock(bitmap_block=1 << 60)


@breaks(I.LAYOUT)
def descriptors_over_the_state(s):
    s.image.change_superblock(gdt_block=1)


# I6, I7


def store_journal(s, offset, data):
    start = (s.image.disk.journal_block << PAGE_SHIFT) + offset
    s.image.data[start : start + len(data)] = data


@breaks(I.JOURNAL)
def no_journal_header(s):
    store_journal(s, 0, bytes(64))


@breaks(I.JOURNAL)
def a_flipped_journal_header(s):
    store_journal(s, 9, b"\1")


@breaks(I.JOURNAL)
def a_torn_header_without_a_transaction(s):
    store_journal(s, 64, b"XJNL")


@breaks(I.JOURNAL)
def a_head_between_records(s):
    store_journal(s, 0, DiskJournalHeader(sequence=1, head=12).encode(s.image.seed))


@breaks(I.JOURNAL)
def a_head_outside_of_the_ring(s):
    store_journal(s, 0, DiskJournalHeader(sequence=1, head=2 * PAGE_SIZE).encode(s.image.seed))


@breaks(I.JOURNAL)
def a_sequence_that_leaves_no_room(s):
    store_journal(s, 0, DiskJournalHeader(sequence=(1 << 64) - 1, head=0).encode(s.image.seed))


def seal_transaction(s, sequence, head, data=b"12345678"):
    """One DATA record, where replay starts."""
    record = bytearray(
        JOURNAL_RECORD.encode(
            s.image.seed, sequence=sequence, kind=1, size_bytes=len(data), target=8192
        )
        + data
    )
    JOURNAL_RECORD.seal(record, s.image.seed)
    ring = bytearray(2 * PAGE_SIZE)
    for i, byte in enumerate(record):
        ring[(head + i) % len(ring)] = byte
    store_journal(s, PAGE_SIZE, ring)


@breaks(I.JOURNAL, I.STATE)
def a_transaction_to_replay(s):
    s.image.change_state(flags=0)
    seal_transaction(s, sequence=1, head=0)


@breaks(I.JOURNAL, I.STATE)
def a_transaction_behind_a_torn_state(s):
    s.image.data[PAGE_SIZE + 30] ^= 1
    seal_transaction(s, sequence=1, head=0)


@breaks()
def the_transaction_that_said_clean_and_a_torn_header(s):
    """The crash came between the last two steps of an unmount."""
    store_journal(s, 64, b"XJNL torn")
    seal_transaction(s, sequence=1, head=0)


@breaks(I.STATE)
def a_torn_header_of_an_image_that_is_not_clean(s):
    s.image.change_state(flags=0)
    store_journal(s, 64, b"XJNL torn")


@breaks(I.JOURNAL, I.STATE)
def a_transaction_around_the_end_of_the_ring_and_a_torn_header(s):
    s.image.change_state(flags=0)
    store_journal(s, 0, DiskJournalHeader(sequence=7, head=2 * PAGE_SIZE - 8).encode(s.image.seed))
    store_journal(s, 64, b"XJNL torn")
    seal_transaction(s, sequence=7, head=2 * PAGE_SIZE - 8, data=bytes(5000))


@breaks(I.STATE)
def transactions_of_long_ago_are_none(s):
    s.image.change_state(flags=0)
    store_journal(s, 64, DiskJournalHeader(sequence=9, head=0).encode(s.image.seed))
    seal_transaction(s, sequence=8, head=0)


@breaks(I.STATE)
def a_record_that_is_not_sealed_is_none(s):
    s.image.change_state(flags=0)
    seal_transaction(s, sequence=1, head=0)
    store_journal(s, PAGE_SIZE + 41, b"0")


@breaks(I.STATE)
def a_record_larger_than_the_ring_is_none(s):
    s.image.change_state(flags=0)
    seal_transaction(s, sequence=1, head=0)
    store_journal(s, PAGE_SIZE + 20, b"\xff\xff\xff\xff")


@breaks(I.STATE)
def a_flipped_state(s):
    s.image.data[PAGE_SIZE + 30] ^= 1


@breaks(I.STATE)
def a_state_not_clean(s):
    s.image.change_state(flags=0)


@breaks(I.STATE)
def a_state_with_an_error(s):
    s.image.change_state(flags=int(StateFlags.CLEAN | StateFlags.ERROR))


@breaks(I.STATE)
def unknown_state_flags(s):
    s.image.change_state(flags=int(StateFlags.CLEAN) | 4)


@breaks(I.STATE)
def no_ino_end(s):
    s.image.change_state(ino_end=0)


# I8 to I10


@breaks(I.INODE_FILE)
def a_flipped_inode_of_the_inode_file(s):
    s.image.data[PAGE_SIZE + 256 + 100] ^= 1


@breaks(I.INODE_FILE)
def an_inode_file_that_is_a_directory(s):
    s.image.change_inode(0, mode=stat.S_IFDIR | 0o755, nlink=2)


@breaks(I.INODE_FILE, I.EXTENTS)
def an_inode_file_too_small(s):
    s.image.change_inode(0, size_bytes=s.image.inode(0).size_bytes - PAGE_SIZE)


@breaks(I.INODE_FILE, I.EXTENTS)
def an_inode_file_whose_extents_are_not_in_the_image(s):
    s.image.change_extent(0, 0, block=1 << 40)


@breaks(I.INODE_FILE, I.EXTENT_NODES)
def an_inode_file_whose_tree_is_damaged(s):
    s.image.change_inode(0, extent_depth=1)


@breaks(I.EXTENTS, I.NR_PAGES)
def an_inode_file_with_pages_twice(s):
    """The first place counts: no inode is looked at twice."""
    first, nr_pages = s.image.inode_file_block(), s.image.inode(0).nr_pages
    extents = np.array([(0, first, nr_pages, 0), (1, 200, 1, 0)], EXTENT_DTYPE)
    s.image.change_inode(0, nr_extents=2, payload=extents.tobytes().ljust(120, b"\0"))
    s.image.mark(200, used=True)


def test_an_inode_file_of_more_pages_than_the_image(tmp_path):
    """Its extents show a hole of the image many times: fsck read it all, for hours."""
    nr_pages = 1 << 14
    image = ImageKit(nr_pages=nr_pages).build()
    inode = image.inode(0)
    hole = nr_pages // 2
    rows = [tuple(inode.extents[0].tolist())]
    rows += [(inode.nr_pages + i * 6000, hole, 6000, 0) for i in range(3)]
    image.change_inode(
        0,
        nr_extents=len(rows),
        payload=np.array(rows, EXTENT_DTYPE).tobytes().ljust(120, b"\0"),
        size_bytes=inode.size_bytes + 3 * 6000 * PAGE_SIZE,
    )
    report = check(image, tmp_path)
    assert any(
        finding.invariant is I.INODE_FILE and "its extents overlap" in finding.text
        for finding in report.findings
    )
    assert any("inode file" in text for text in report.unchecked)


@breaks(I.INODE_FILE, I.NR_PAGES, I.BITMAPS, I.DIR_ENTRIES, I.CONNECTED, I.NLINK)
def an_inode_file_with_a_hole(s):
    """The second of its pages is a hole, and with it all inodes that stood there."""
    first, nr_pages = s.image.inode_file_block(), s.image.inode(0).nr_pages
    extents = np.array([(0, first, 1, 0), (2, first + 2, nr_pages - 2, 0)], EXTENT_DTYPE)
    s.image.change_inode(0, nr_extents=2, payload=extents.tobytes().ljust(120, b"\0"))


@breaks(I.INODE_RECORD, I.DIR_ENTRIES)
def a_flipped_inode(s):
    s.image.data[s.image.inode_offset(s.empty) + 70] ^= 1


@breaks(I.INODE_RECORD, I.DIR_ENTRIES)
def an_inode_of_another_magic(s):
    s.image.data[s.image.inode_offset(s.empty)] ^= 1


@breaks(I.INODE_RECORD, I.DIR_ENTRIES)
def an_inode_never_written(s):
    start = s.image.inode_offset(s.empty)
    s.image.data[start : start + 256] = bytes(256)


@breaks(I.INODE_RECORD, I.DIR_ENTRIES)
def an_inode_in_the_place_of_another(s):
    start, other = s.image.inode_offset(s.empty), s.image.inode_offset(s.fifo)
    s.image.data[start : start + 256] = s.image.data[other : other + 256]


@breaks(I.INODE_RECORD)
def an_inode_in_a_reserved_place(s):
    start = (s.image.inode_file_block() << PAGE_SHIFT) + 2 * 256
    s.image.data[start : start + 256] = s.image.inode(s.empty)._replace(ino=2).encode(s.image.seed)


@breaks(I.INODE_RECORD)
def an_inode_from_ino_end_on(s):
    ino = s.image.state.ino_end
    start = (s.image.inode_file_block() << PAGE_SHIFT) + ino * 256
    s.image.data[start : start + 256] = (
        s.image.inode(s.empty)._replace(ino=ino).encode(s.image.seed)
    )


@breaks(I.INODE_FIELDS, I.DIR_ENTRIES)
def a_mode_without_a_type(s):
    s.image.change_inode(s.empty, mode=0o644)


@breaks(I.INODE_FIELDS, I.DIR_ENTRIES)
def a_mode_too_large(s):
    s.image.change_inode(s.empty, mode=stat.S_IFREG | 0o200644)


@breaks(I.INODE_FIELDS)
def unknown_inode_flags(s):
    s.image.change_inode(s.empty, flags=1 << 31)


@breaks()
def inode_flags_that_nobody_sets_yet(s):
    s.image.change_inode(s.empty, flags=int(InodeFlags.IMMUTABLE | InodeFlags.APPEND))


@breaks(I.INODE_FIELDS)
def a_file_too_large(s):
    s.image.change_inode(s.empty, size_bytes=(1 << 44) + 1)


@breaks(I.INODE_FIELDS, I.BITMAPS)
def more_extents_than_an_inode_holds(s):
    s.image.change_inode(s.hard, nr_extents=6)


@breaks(I.INODE_FIELDS)
def a_fifo_with_contents(s):
    s.image.change_inode(s.fifo, size_bytes=1)


@breaks(I.INODE_FIELDS)
def a_file_with_a_device_number(s):
    s.image.change_inode(s.empty, rdev=259)


@breaks(I.INODE_FIELDS)
def a_file_with_entries(s):
    s.image.change_inode(s.empty, nr_entries=1)


@breaks(I.INODE_FIELDS)
def a_file_with_a_parent(s):
    s.image.change_inode(s.empty, parent_ino=1)


@breaks(I.INODE_FIELDS)
def a_link_to_nothing(s):
    s.image.change_inode(s.short, size_bytes=0, payload=bytes(120))


@breaks(I.INODE_FIELDS)
def a_link_longer_than_a_path(s):
    s.image.change_inode(s.long, size_bytes=PAGE_SIZE)


@breaks(I.INODE_FIELDS)
def a_nul_in_a_short_link(s):
    s.image.change_inode(s.short, payload=b"etc\0hosts".ljust(120, b"\0"))


@breaks(I.INODE_FIELDS)
def a_nul_in_a_long_link(s):
    s.image.page(int(s.image.inode(s.long).extents["block"][0]))[100] = 0


@breaks(I.INODE_FIELDS)
def a_link_that_is_a_hole(s):
    s.image.change_extent(s.long, 0, flags=1)


@breaks(I.INODE_FIELDS)
def an_inline_file(s):
    s.image.change_inode(s.empty, flags=int(InodeFlags.INLINE))


@breaks(I.INODE_FIELDS)
def inline_bytes_beside_extents(s):
    s.image.change_inode(s.short, nr_extents=1)


@breaks(I.INODE_FIELDS)
def more_inline_bytes_than_fit(s):
    s.image.change_inode(s.short, size_bytes=121)


@breaks(I.INODE_FIELDS, I.NR_PAGES)
def attributes_without_pages(s):
    s.image.change_inode(s.empty, nr_xattr_pages=257)


@breaks(I.INODE_FIELDS)
def attributes_without_a_number(s):
    s.image.change_inode(s.empty, xattr_block=100)


@breaks(I.INODE_FIELDS, I.NLINK)
def nlink_0_and_no_orphan(s):
    s.image.change_inode(s.empty, nlink=0)


@breaks(I.INODE_FIELDS)
def next_ino_in_no_list(s):
    s.image.change_inode(s.empty, next_ino=16)


@breaks(I.INODE_FIELDS)
def a_free_inode_with_a_size(s):
    s.image.change_inode(s.free[0], size_bytes=1)


# I11 to I14


def change_tree(s, way, entry=None, **fields):
    """Change the node that the numbers in *way* lead to, or its entry."""
    block = s.image.node_block(s.tree, way[0])
    for number in way[1:]:
        start = EXTENT_NODE.size_bytes + number * EXTENT_DTYPE.itemsize
        block = int(np.frombuffer(s.image.page(block), EXTENT_DTYPE, 1, start)["block"][0])
    s.image.change_node(block, entry, **fields)


@breaks(I.EXTENTS, I.BITMAPS)
def an_extent_outside_of_the_image(s):
    s.image.change_extent(s.sparse, 0, block=1 << 40)


@breaks(I.EXTENTS, I.BITMAPS)
def an_extent_whose_end_wraps_around(s):
    s.image.change_extent(s.sparse, 0, block=(1 << 63) - 1)


@breaks(I.EXTENTS, I.BITMAPS)
def an_extent_in_the_superblock(s):
    s.image.change_extent(s.sparse, 0, block=0)


@breaks(I.EXTENTS, I.BITMAPS)
def an_extent_in_the_replica(s):
    s.image.change_extent(s.sparse, 0, block=255)


@breaks(I.EXTENTS, I.NR_PAGES, I.BITMAPS)
def an_empty_extent(s):
    s.image.change_extent(s.sparse, 0, nr_pages=0)


@breaks(I.EXTENTS)
def an_extent_before_the_file(s):
    s.image.change_extent(s.sparse, 0, pgoff=-1)


@breaks(I.EXTENTS)
def an_extent_out_of_order(s):
    s.image.change_extent(s.sparse, 0, pgoff=5)


@breaks(I.EXTENTS)
def an_extent_over_the_next_one(s):
    s.image.change_extent(s.sparse, 2, pgoff=3)


@breaks(I.EXTENTS)
def an_extent_behind_the_end_of_the_file(s):
    s.image.change_extent(s.sparse, 3, flags=0)


@breaks(I.EXTENTS)
def unknown_extent_flags(s):
    s.image.change_extent(s.sparse, 1, flags=3)


@breaks(I.EXTENTS)
def an_extent_over_that_in_the_next_leaf(s):
    change_tree(s, [0, 0], 2, nr_pages=3, block=200)
    s.image.change_inode(s.tree, nr_pages=s.image.inode(s.tree).nr_pages + 2)
    for block in (200, 201, 202):
        s.image.mark(block, used=True)
    s.image.mark(6, used=False)


@breaks(I.EXTENT_NODES, I.BITMAPS)
def a_flipped_node(s):
    s.image.page(s.image.node_block(s.tree))[50] ^= 1


@breaks(I.EXTENT_NODES, I.BITMAPS)
def a_node_of_another_inode(s):
    change_tree(s, [0, 1], ino=99)


@breaks(I.EXTENT_NODES, I.BITMAPS)
def a_node_of_another_generation(s):
    change_tree(s, [0, 1], generation=99)


@breaks(I.EXTENT_NODES, I.BITMAPS)
def a_node_of_another_depth(s):
    change_tree(s, [0, 1], depth=1)


@breaks(I.EXTENT_NODES, I.BITMAPS)
def a_node_without_entries(s):
    change_tree(s, [0, 1], nr_entries=0)


@breaks(I.EXTENT_NODES, I.BITMAPS)
def a_node_that_holds_too_much(s):
    change_tree(s, [0, 1], nr_entries=170)


@breaks(I.EXTENT_NODES, I.BITMAPS)
def a_node_outside_of_the_image(s):
    s.image.change_extent(s.tree, 0, block=-1)


@breaks(I.EXTENT_NODES, I.BITMAPS)
def a_node_named_twice(s):
    first = int(s.image.inode(s.tree).extents["block"][0])
    s.image.change_extent(s.tree, 1, block=first)


@breaks(I.EXTENT_NODES)
def nodes_out_of_order(s):
    change_tree(s, [0], 1, pgoff=0)


@breaks(I.EXTENT_NODES)
def a_node_behind_its_bound(s):
    change_tree(s, [0], 2, pgoff=20)


@breaks(I.EXTENT_NODES)
def an_index_entry_with_pages(s):
    change_tree(s, [0], 1, nr_pages=1)


@breaks(I.EXTENT_NODES, I.BITMAPS)
def a_tree_too_deep(s):
    s.image.change_inode(s.tree, extent_depth=5)


@breaks(I.EXTENT_NODES)
def a_tree_without_a_top(s):
    s.image.change_inode(s.empty, extent_depth=1)


@breaks(I.NR_PAGES)
def too_many_pages(s):
    s.image.change_inode(s.sparse, nr_pages=6)


@breaks(I.NR_PAGES)
def too_few_pages_in_a_tree(s):
    s.image.change_inode(s.tree, nr_pages=12)


@breaks(I.NR_PAGES)
def attributes_not_counted(s):
    s.image.change_inode(s.hosts, nr_pages=1)


@breaks(I.ONE_OWNER, I.BITMAPS)
def a_page_of_two_files(s):
    block = int(s.image.inode(s.hard).extents["block"][0])
    s.image.change_extent(s.sparse, 0, block=block)


@breaks(I.ONE_OWNER, I.BITMAPS)
def a_file_in_the_journal(s):
    s.image.change_extent(s.sparse, 0, block=s.image.disk.journal_block + 1)


@breaks(I.ONE_OWNER)
def a_file_over_many_others(s):
    s.image.change_extent(s.sparse, 3, block=3, nr_pages=30)
    s.image.change_inode(s.sparse, nr_pages=34)


# I15, I16


@breaks(I.XATTRS)
def a_flipped_attribute(s):
    s.image.page(s.image.inode(s.hosts).xattr_block)[60] ^= 1


@breaks(I.XATTRS)
def attributes_of_another_inode(s):
    s.image.change_xattr_run(s.hosts, ino=99)


@breaks(I.XATTRS)
def attributes_of_another_generation(s):
    s.image.change_xattr_run(s.hosts, generation=99)


@breaks(I.XATTRS)
def attributes_behind_their_run(s):
    s.image.change_xattr_run(s.hosts, size_bytes=PAGE_SIZE + 1)


@breaks(I.XATTRS)
def attributes_that_pass_the_end(s):
    s.image.change_xattr_run(s.hosts, nr_entries=3)


@breaks(I.XATTRS)
def a_run_without_attributes(s):
    s.image.change_xattr_run(s.hosts, nr_entries=0)


@breaks(I.XATTRS)
def attributes_out_of_order(s):
    """The second name, user.empty, becomes user.Empty, which stands before user.comment."""

    def change(run):
        at = bytes(run).index(b"user.empty") + 5
        run[at : at + 1] = b"E"

    s.image.change_xattr_run(s.hosts, change)


@breaks(I.XATTRS)
def a_nul_in_the_name_of_an_attribute(s):
    def change(run):
        run[bytes(run).index(b"user.comment") + 5] = 0

    s.image.change_xattr_run(s.hosts, change)


@breaks(I.XATTRS, I.BITMAPS)
def attributes_outside_of_the_image(s):
    s.image.change_inode(s.hosts, xattr_block=(1 << 64) - 1)


@breaks(I.ACL_FEATURE)
def acls_without_the_feature(s):
    s.image.change_superblock(compat=0)


# I17 to I21


def level_1_page(s):
    """A page of etc whose children are leaves."""
    for pgoff in range(s.image.inode(s.etc).size_bytes >> PAGE_SHIFT):
        if s.image.dir_page(s.etc, pgoff).level == 1:
            return pgoff
    raise AssertionError


def leaf_with_several(s):
    """(pgoff, names) of a leaf of etc."""
    for pgoff in range(s.image.inode(s.etc).size_bytes >> PAGE_SHIFT):
        page = s.image.dir_page(s.etc, pgoff)
        if page.level == 0 and len(page.entries) == 3:
            return pgoff, [page.name(slot) for slot in range(3)]
    raise AssertionError


@breaks(I.DIR_PAGES)
def a_directory_larger_than_its_pages(s):
    s.image.change_inode(s.sub, size_bytes=2 * PAGE_SIZE)


@breaks(I.DIR_PAGES, I.EXTENTS)
def a_directory_smaller_than_its_pages(s):
    s.image.change_inode(s.sub, size_bytes=0)


@breaks(I.DIR_PAGES, I.BITMAPS)
def a_directory_without_pages(s):
    s.image.change_inode(s.sub, size_bytes=0, nr_extents=0, nr_pages=0, payload=bytes(120))


@breaks(I.DIR_PAGES)
def a_directory_whose_page_is_unwritten(s):
    s.image.change_extent(s.sub, 0, flags=1)


@breaks(I.DIR_PAGES, I.CONNECTED)
def a_flipped_leaf(s):
    pgoff, names = leaf_with_several(s)
    assert all(name.endswith(b".conf") for name in names)
    s.image.page(s.image.dir_block(s.etc, pgoff))[34] ^= 1


@breaks(I.DIR_PAGES)
def a_page_of_another_directory(s):
    s.image.change_dir_page(s.sub, ino=1)


@breaks(I.DIR_PAGES)
def a_page_of_another_generation(s):
    s.image.change_dir_page(s.sub, generation=9)


@breaks(I.DIR_PAGES)
def a_root_page_of_a_high_level(s):
    s.image.change_page(
        s.image.dir_block(s.sub), DIR_PAGE, lambda page: page, level=6, nr_entries=1
    )


@breaks(I.DIR_PAGES, I.CONNECTED)
def a_leaf_named_twice_and_another_not_at_all(s):
    pgoff = level_1_page(s)
    entries = s.image.dir_page(s.etc, pgoff).entries
    s.image.change_index(s.etc, pgoff, 1, pgoff=int(entries["pgoff"][0]))


@breaks(I.DIR_PAGES, I.CONNECTED)
def a_leaf_that_is_a_hole(s):
    s.image.change_index(s.etc, level_1_page(s), 1, pgoff=1 << 40)


@breaks(I.DIR_PAGES, I.CONNECTED, I.NLINK)
def a_tree_that_comes_back_to_its_root(s):
    s.image.change_index(s.etc, 0, 0, pgoff=0)


@breaks(I.DIR_KEYS)
def keys_out_of_order(s):
    """Two slots change their places."""
    pgoff, _ = leaf_with_several(s)

    def change(page):
        slots = np.frombuffer(page, DIR_SLOT_DTYPE, 2, DIR_PAGE.size_bytes)
        slots[:] = slots[::-1].copy()

    s.image.change_page(s.image.dir_block(s.etc, pgoff), DIR_PAGE, change)


@breaks(I.DIR_KEYS)
def a_key_of_another_name(s):
    _, names = leaf_with_several(s)
    key = name_key(names[1], s.image.disk.hash_key)
    s.image.change_entry(s.etc, names[1], key=key - 128)


@breaks(I.DIR_KEYS)
def a_key_below_its_index(s):
    """An index entry that says more than the lowest key below it."""
    pgoff = level_1_page(s)
    entries = s.image.dir_page(s.etc, pgoff).entries
    s.image.change_index(s.etc, pgoff, 1, key=int(entries["key"][1]) + 1)


@breaks(I.DIR_KEYS)
def an_index_out_of_order(s):
    pgoff = level_1_page(s)
    entries = s.image.dir_page(s.etc, pgoff).entries
    s.image.change_index(s.etc, pgoff, 0, key=int(entries["key"][1]))


@breaks()
def the_first_key_of_an_index_bounds_nothing(s):
    s.image.change_index(s.etc, level_1_page(s), 0, key=0)


@breaks()
def a_name_with_a_sequence(s):
    """Removing the other name of its hash leaves it as it is."""
    _, names = leaf_with_several(s)
    key = name_key(names[2], s.image.disk.hash_key)
    s.image.change_entry(s.etc, names[2], key=key + 5)


@breaks(I.DIR_NAMES, I.DIR_KEYS)
def an_impossible_name(s):
    s.image.change_name(INO_ROOT, b"hard", b"ha/d")


@breaks(I.DIR_NAMES, I.DIR_KEYS)
def a_name_without_bytes(s):
    s.image.change_entry(INO_ROOT, b"hard", name_size_bytes=0)


@breaks(I.DIR_NAMES, I.DIR_KEYS)
def a_name_behind_its_page(s):
    s.image.change_entry(INO_ROOT, b"hard", name_offset=4095)


@breaks(I.DIR_NAMES, I.DIR_KEYS)
def a_name_in_another(s):
    pgoff, names = leaf_with_several(s)
    page = s.image.dir_page(s.etc, pgoff)
    s.image.change_entry(s.etc, names[0], name_offset=int(page.entries["name_offset"][1]))


@breaks(I.DIR_NAMES, I.DIR_KEYS)
def a_name_that_comes_twice(s):
    """Of two names of one size in a leaf the second becomes the first, of the next sequence."""
    image = s.image
    for pgoff in range(image.inode(s.etc).size_bytes >> PAGE_SHIFT):
        page = image.dir_page(s.etc, pgoff)
        names = [page.name(slot) for slot in range(len(page.entries) if not page.level else 0)]
        if len(names) > 1 and len(names[0]) == len(names[1]):
            key = int(page.entries["key"][0])
            image.change_entry(s.etc, names[1], key=key + 1)
            image.change_name(s.etc, names[1], names[0])
            # For one of I18: the next leaf is not where the index says any more.
            image.change_entry(s.etc, names[0], key=key + 2)
            return
    raise AssertionError


@breaks(I.DIR_ENTRIES, I.CONNECTED)
def a_name_of_no_inode(s):
    s.image.change_entry(INO_ROOT, b"empty", ino=1 << 40)


@breaks(I.DIR_ENTRIES, I.CONNECTED)
def a_name_of_an_inode_far_away(s):
    s.image.change_entry(INO_ROOT, b"empty", ino=(1 << 64) - 1)


@breaks(I.DIR_ENTRIES, I.CONNECTED)
def a_name_of_a_free_inode(s):
    s.image.change_entry(INO_ROOT, b"empty", ino=s.free[0])


@breaks(I.DIR_ENTRIES, I.CONNECTED)
def a_name_of_the_inode_file(s):
    s.image.change_entry(INO_ROOT, b"empty", ino=0)


@breaks(I.DIR_ENTRIES)
def a_name_of_another_type(s):
    s.image.change_entry(INO_ROOT, b"empty", d_type=4)


@breaks(I.NR_ENTRIES)
def too_many_entries(s):
    s.image.change_inode(s.etc, nr_entries=100)


# I22 to I25


@breaks(I.PARENTS)
def another_parent(s):
    s.image.change_inode(s.sub, parent_ino=1)


@breaks(I.PARENTS)
def a_root_with_a_parent(s):
    s.image.change_inode(1, parent_ino=s.etc)


@breaks(I.PARENTS, I.NLINK, I.CONNECTED, I.DIR_ENTRIES)
def a_directory_with_two_names(s):
    s.image.change_entry(INO_ROOT, b"empty", ino=s.sub)


@breaks(I.PARENTS, I.NLINK, I.CONNECTED, I.DIR_ENTRIES)
def a_root_with_a_name(s):
    s.image.change_entry(INO_ROOT, b"empty", ino=1)


@breaks(I.CONNECTED, I.NR_ENTRIES)
def a_file_without_a_name(s):
    page = s.image.dir_page(INO_ROOT, s.image.find_slot(INO_ROOT, b"empty")[0])
    pgoff, slot = s.image.find_slot(INO_ROOT, b"empty")

    def change(buf):
        slots = np.frombuffer(buf, DIR_SLOT_DTYPE, len(page.entries), DIR_PAGE.size_bytes)
        slots[slot:-1] = slots[slot + 1 :].copy()

    s.image.change_page(
        s.image.dir_block(INO_ROOT, pgoff), DIR_PAGE, change, nr_entries=len(page.entries) - 1
    )


@breaks(I.CONNECTED, I.DIR_ENTRIES, I.PARENTS, I.NLINK)
def directories_in_a_circle(s):
    """etc is named in sub, sub in etc, and neither by the root."""
    s.image.change_entry(INO_ROOT, b"etc", ino=s.empty)
    s.image.change_entry(s.etc, b"hard", ino=s.etc)


@breaks(I.CONNECTED, I.INODE_FIELDS, I.NLINK)
def a_root_that_is_a_file(s):
    s.image.change_inode(1, mode=stat.S_IFREG | 0o755)


@breaks(I.NLINK)
def too_many_links(s):
    s.image.change_inode(s.hard, nlink=3)


@breaks(I.NLINK)
def too_many_links_of_a_directory(s):
    s.image.change_inode(s.etc, nlink=4)


@breaks()
def a_file_that_is_being_cut(s):
    """It has a name, is an orphan all the same, and extents behind its end."""
    image = s.image
    flags = int(InodeFlags.ORPHAN)
    image.change_inode(s.tree, flags=flags, next_ino=s.orphans[0], size_bytes=4096)
    image.change_state(orphan_ino_head=s.tree)


@breaks(I.CONNECTED)
def a_file_that_is_being_cut_without_a_name(s):
    s.image.change_inode(s.orphans[0], nlink=1)


@breaks(I.INODE_FIELDS)
def a_fifo_that_is_being_cut(s):
    s.image.change_inode(s.fifo, flags=int(InodeFlags.ORPHAN), next_ino=s.orphans[0])
    s.image.change_state(orphan_ino_head=s.fifo)


@breaks(I.NLINK, I.DIR_ENTRIES, I.CONNECTED)
def an_orphan_with_a_name(s):
    s.image.change_entry(INO_ROOT, b"fifo", ino=s.orphans[0])


@breaks(I.LISTS)
def a_free_list_cut_short(s):
    s.image.change_inode(s.free[0], next_ino=0)


@breaks(I.LISTS)
def a_free_list_in_a_circle(s):
    s.image.change_inode(s.free[1], next_ino=s.free[0])


@breaks(I.LISTS)
def a_free_list_with_an_inode_in_use(s):
    s.image.change_inode(s.free[1], next_ino=s.hosts)


@breaks(I.LISTS)
def a_free_list_that_starts_nowhere(s):
    s.image.change_state(free_ino_head=(1 << 64) - 1)


@breaks(I.LISTS)
def an_empty_orphan_list(s):
    s.image.change_state(orphan_ino_head=0)


@breaks(I.LISTS)
def an_orphan_list_that_starts_in_the_free_one(s):
    s.image.change_inode(s.orphans[1], next_ino=s.free[0])


# I26 to I31


def descriptor_offset(s):
    return s.image.disk.gdt_block << PAGE_SHIFT


@breaks(I.GROUPS)
def a_flipped_descriptor(s):
    s.image.data[descriptor_offset(s) + 17] ^= 1


@breaks(I.GROUPS)
def a_descriptor_of_another_group(s):
    s.image.change_group(0, group=1)


@breaks(I.GROUPS)
def unknown_group_flags(s):
    s.image.change_group(0, flags=2)


@breaks(I.GROUPS)
def a_flipped_bitmap(s):
    s.image.page(s.image.disk.bitmap_block)[0] ^= 1


@breaks(I.GROUPS, I.BITMAPS, I.FREE_COUNTS)
def a_checksum_of_no_bitmap(s):
    s.image.change_group(0, flags=1)


@breaks(I.BITMAPS)
def a_leaked_page(s):
    s.image.mark(200, used=True)


@breaks(I.BITMAPS)
def a_held_page_marked_free(s):
    s.image.mark(int(s.image.inode(s.hard).extents["block"][0]), used=False)


@breaks(I.BITMAPS)
def a_page_past_the_end_marked_free(s):
    s.image.mark(NR_GROUP_PAGES - 1, used=False)


@breaks(I.FREE_COUNTS)
def free_pages_of_a_group(s):
    s.image.change_group(0, nr_free_pages=s.image.group(0).nr_free_pages + 1)
    s.image.change_state(nr_free_pages=s.image.state.nr_free_pages + 1)


@breaks(I.FREE_COUNTS)
def free_pages_in_all(s):
    s.image.change_state(nr_free_pages=3)


@breaks(I.NR_INODES)
def inodes_in_all(s):
    s.image.change_state(nr_inodes=3)


@breaks(I.RESERVED)
def reserved_bytes_of_the_superblock(s):
    page = bytearray(s.image.disk.encode())
    page[4000] = 1
    from xipfs.ondisk.superblock import SUPERBLOCK

    SUPERBLOCK.seal(page, 0)
    s.image.data[:PAGE_SIZE] = s.image.replica[:] = page


@breaks(I.RESERVED)
def reserved_bytes_of_the_state(s):
    from xipfs.ondisk.superblock import STATE

    s.image.data[PAGE_SIZE + 200] = 1
    STATE.seal(memoryview(s.image.data)[PAGE_SIZE : PAGE_SIZE + 256], s.image.seed)


@breaks(I.RESERVED)
def the_rest_of_the_state_page(s):
    s.image.data[PAGE_SIZE + 512] = 1


@breaks(I.RESERVED)
def reserved_bytes_of_a_journal_header(s):
    record = bytearray(DiskJournalHeader(sequence=1, head=0).encode(s.image.seed))
    record[30] = 1
    JOURNAL_HEADER.seal(record, s.image.seed)
    store_journal(s, 0, record)


@breaks(I.RESERVED)
def the_rest_of_the_journals_first_page(s):
    store_journal(s, 128, b"\1")


@breaks(I.RESERVED)
def the_payload_behind_the_extents(s):
    payload = s.image.inode(s.hard).payload[:24] + b"\1" + bytes(95)
    s.image.change_inode(s.hard, payload=payload)


@breaks(I.RESERVED)
def the_payload_behind_a_link(s):
    payload = s.image.inode(s.short).payload[:9] + b"\1" + bytes(110)
    s.image.change_inode(s.short, payload=payload)


@breaks(I.RESERVED)
def reserved_bytes_of_a_node(s):
    s.image.change_page(
        s.image.node_block(s.tree), EXTENT_NODE, lambda page: page.__setitem__(30, 1)
    )


@breaks(I.RESERVED)
def reserved_bytes_of_a_directory_page(s):
    s.image.change_page(s.image.dir_block(s.sub), DIR_PAGE, lambda page: page.__setitem__(27, 1))


@breaks(I.RESERVED)
def reserved_bytes_of_a_directory_slot(s):
    pgoff, _ = leaf_with_several(s)
    s.image.change_page(
        s.image.dir_block(s.etc, pgoff), DIR_PAGE, lambda page: page.__setitem__(32 + 24 + 21, 1)
    )


@breaks(I.RESERVED)
def reserved_bytes_between_attributes(s):
    start = XATTR_RUN.size_bytes
    assert XATTR_ENTRY_DTYPE.itemsize == 8
    s.image.change_xattr_run(s.hosts, lambda run: run.__setitem__(start + 2, 1))


@breaks(I.RESERVED)
def bytes_behind_the_attributes(s):
    s.image.change_xattr_run(s.hosts, lambda run: run.__setitem__(4000, 1))


@breaks(I.RESERVED)
def reserved_bytes_of_a_descriptor(s):
    start = descriptor_offset(s)
    s.image.data[start + 25] = 1
    GROUP_DESC.seal(memoryview(s.image.data)[start : start + 32], s.image.seed)


@breaks(I.RESERVED)
def the_rest_of_the_descriptors(s):
    s.image.data[descriptor_offset(s) + 32] = 1


@breaks(I.TAILS)
def bytes_behind_the_end_of_a_file(s):
    block = int(s.image.inode(s.hosts).extents["block"][0])
    s.image.page(block)[4095] = 1


@breaks(I.TAILS)
def bytes_behind_the_end_of_a_link(s):
    block = int(s.image.inode(s.long).extents["block"][0])
    s.image.page(block)[203] = 1


@breaks()
def contents_are_not_checked(s):
    block = int(s.image.inode(s.hosts).extents["block"][0])
    s.image.page(block)[0] ^= 1


@pytest.mark.parametrize(
    ("expected", "function"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_is_broken_is_found(tmp_path, expected, function):
    sample = make_sample()
    function(sample)
    report = check(sample.image, tmp_path)
    assert numbers(report) == sorted(str(i) for i in expected), "\n".join(map(str, report.findings))


def test_every_invariant_is_broken_by_some_case():
    first = {expected[0] for _, expected, _ in CASES if expected}
    assert set(Invariant) - first == {I.SIZE}  # below: this one is not in the image's bytes
    assert [i.number for i in Invariant] == list(range(1, 32))


def test_a_sound_image(tmp_path):
    sample = make_sample()
    report = check(sample.image, tmp_path)
    assert report.findings == report.unchecked == ()
    assert report.exit_code == 0
    assert report.nr_pages == 256
    assert report.nr_used_pages == 256 - sample.image.state.nr_free_pages
    assert report.nr_inodes == sample.image.state.nr_inodes
    assert report.nr_dirs == 3


@pytest.mark.parametrize("nr_pages", [64, NR_GROUP_PAGES + 1, 3 * NR_GROUP_PAGES])
def test_empty_images_of_any_size(tmp_path, nr_pages):
    report = check(ImageKit(nr_pages=nr_pages).build(), tmp_path)
    assert numbers(report) == []
    assert report.nr_used_pages == 9 + -(-nr_pages // NR_GROUP_PAGES)


def test_a_large_empty_image_costs_what_a_small_one_does(tmp_path):
    peaks_bytes = []
    for nr_pages in (1 << 14, 1 << 24):  # 64 MiB, 64 GiB
        path = ImageKit(nr_pages=nr_pages).build().write(tmp_path / "nvram.img")
        tracemalloc.start()
        try:
            assert numbers(fsck(path)) == []
            peaks_bytes.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks_bytes[1] - peaks_bytes[0] < 1 << 20


def test_a_file_longer_than_its_image(tmp_path):
    path = make_sample().image.write(tmp_path / "nvram.img")
    os.truncate(path, 300 * PAGE_SIZE)
    assert numbers(fsck(path)) == []


def test_a_file_cut_short(tmp_path):
    path = make_sample().image.write(tmp_path / "nvram.img")
    os.truncate(path, 255 * PAGE_SIZE)
    report = fsck(path)
    assert numbers(report) == ["I4"]
    assert report.unchecked
    assert report.exit_code == 4


def test_nothing_changes_in_the_image(tmp_path):
    sample = make_sample()
    sample.image.data[300] ^= 4
    path = sample.image.write(tmp_path / "nvram.img")
    before = path.read_bytes(), path.stat().st_mtime_ns
    fsck(path)
    assert before == (path.read_bytes(), path.stat().st_mtime_ns)


def test_unknown_features_are_no_verdict(tmp_path):
    sample = make_sample()
    sample.image.change_superblock(incompat=1)
    report = check(sample.image, tmp_path)
    assert report.exit_code == 8
    assert report.unchecked == ("the rest: a newer xipfs must do it",)


def test_a_sound_replica_is_used_for_the_rest(tmp_path):
    sample = make_sample()
    sample.image.data[300] ^= 4
    sample.image.change_inode(sample.hard, nlink=3)
    assert numbers(check(sample.image, tmp_path)) == ["I1", "I24"]


def test_what_waits_for_a_replay_is_not_judged(tmp_path):
    sample = make_sample()
    sample.image.change_state(flags=0)
    seal_transaction(sample, sequence=1, head=0)
    sample.image.change_inode(sample.hard, nlink=3)
    report = check(sample.image, tmp_path)
    assert numbers(report) == ["I6", "I7"]
    assert report.unchecked


def test_an_inode_file_that_cannot_be_read_is_said(tmp_path):
    sample = make_sample()
    sample.image.data[sample.image.inode_offset(0) + 9] ^= 1
    report = check(sample.image, tmp_path)
    assert report.unchecked == ("inodes, names, pages: the inode file cannot be read",)


def test_it_stops_after_many_findings(tmp_path):
    kit = ImageKit(nr_pages=1024)
    inos = [kit.add_file(INO_ROOT, b"%d" % i) for i in range(NR_FINDINGS_MAX + 10)]
    image = kit.build()
    for ino in inos:
        image.change_inode(ino, rdev=1)
    report = check(image, tmp_path)
    assert len(report.findings) == NR_FINDINGS_MAX
    assert report.unchecked == ("the rest: there are 1000 findings already",)
    assert report.exit_code == 4


def test_more_extents_than_pages_do_not_fill_the_memory(tmp_path):
    """A damaged image can name the same pages again and again; what is kept of it is bounded."""
    kit = ImageKit(nr_pages=64)
    inos = [kit.add_file(INO_ROOT, b"%d" % i) for i in range(20)]
    image = kit.build()
    entries = np.zeros(5, EXTENT_DTYPE)
    entries["pgoff"] = np.arange(5)
    entries["block"] = 40
    entries["nr_pages"] = 1
    for ino in inos:
        image.change_inode(
            ino, nr_extents=5, nr_pages=5, size_bytes=5 * PAGE_SIZE, payload=entries.tobytes()
        )
    report = check(image, tmp_path)
    assert [str(f) for f in report.findings] == ["I14: more extents than the 64 pages of the image"]
    assert report.unchecked == ("names, bitmaps: there are more extents than pages",)


def chain_of_directories(nr_dirs: int) -> tuple[HandmadeImage, list[int]]:
    kit = ImageKit()
    inos = [kit.add_dir(INO_ROOT, b"0")]
    for i in range(1, nr_dirs):
        inos.append(kit.add_dir(inos[-1], b"%d" % i))
    kit.add_file(inos[-1], b"file")
    return kit.build(), inos


def test_directories_of_any_depth_are_connected(tmp_path):
    image, _ = chain_of_directories(41)
    assert numbers(check(image, tmp_path)) == []


def test_of_a_circle_only_its_directories_are_named(tmp_path):
    """30 directories go round, 11 hang below them, and the root has lost its one entry."""
    image, inos = chain_of_directories(41)
    image.change_entry(INO_ROOT, b"0", ino=image.inode(INO_ROOT).ino)
    image.change_entry(inos[-1], b"file", ino=inos[0], d_type=stat.S_IFDIR >> 12)
    report = check(image, tmp_path)
    texts = [str(finding) for finding in report.findings]
    circle = [f"I23: inode {ino}: a directory in a circle of directories" for ino in inos]
    assert [text for text in texts if "circle" in text] == circle
    image.change_entry(inos[-1], b"file", ino=inos[-1] + 1, d_type=stat.S_IFREG >> 12)
    image.change_entry(inos[29], b"30", ino=inos[0])
    texts = [str(finding) for finding in check(image, tmp_path).findings]
    assert [text for text in texts if "circle" in text] == circle[:30]


def test_what_mkfs_makes_is_sound(tmp_path):
    tree = tmp_path / "tree"
    (tree / "many").mkdir(parents=True)
    for i in range(3000):
        (tree / "many" / f"a name of some length, number {i}").touch()
    with (tree / "holes").open("wb") as file:
        for i in range(1000):
            file.seek(2 * i * PAGE_SIZE)
            file.write(b"data")
    (tree / "small").write_bytes(b"x" * 5000)
    os.setxattr(tree / "small", "user.comment", b"1" * 3000)
    os.link(tree / "small", tree / "many" / "hard")
    (tree / "link").symlink_to("x" * 121)
    os.mkfifo(tree / "fifo")
    image = tmp_path / "nvram.img"
    mkfs(image, walk_tree(tree), now_ns=1, size_bytes=300 << 20)
    report = fsck(image)
    assert numbers(report) == []
    assert (report.nr_inodes, report.nr_dirs) == (3006, 2)
    mkfs(image, None, now_ns=1, force=True)
    assert numbers(fsck(image)) == []


def test_messages_name_the_place(tmp_path):
    sample = make_sample()
    image = sample.image
    image.change_inode(sample.hard, nlink=9)
    image.change_extent(sample.sparse, 0, block=int(image.inode(sample.hard).extents["block"][0]))
    assert [str(f) for f in check(image, tmp_path).findings] == [
        f"I14: pages [3, 4) belong to inode {sample.hard} and to inode {sample.sparse}",
        f"I24: inode {sample.hard}: nlink is 9, 2 were counted",
        "I27: pages [22, 23) are marked in use, but nobody holds them",
    ]


def test_progress_counts_up_to_the_total(tmp_path):
    seen = []
    fsck(make_sample().image.write(tmp_path / "nvram.img"), seen.append)
    assert [p.what for p in seen if p.done == p.total] == ["inodes", "directories", "groups"]


def test_what_is_no_image(tmp_path):
    path = tmp_path / "foreign"
    path.write_bytes(b"\x7fELF" * PAGE_SIZE)
    with pytest.raises(FormatError, match=f"{path}: no xipfs image"):
        fsck(path)
    with pytest.raises(DeviceError, match="not a regular file"):
        fsck(tmp_path)


def test_the_lock_of_a_reader_is_held(tmp_path):
    path = make_sample().image.write(tmp_path / "nvram.img")
    with path.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(ImageBusyError):
            fsck(path)
    locked = []

    def try_to_write(_):
        with path.open("rb") as writer:
            try:
                fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                locked.append(True)

    fsck(path, try_to_write)
    assert locked


def test_inode_records_tile_the_chunks(tmp_path, monkeypatch):
    """The inode file in many extents, read in many parts, is the same inode file."""
    monkeypatch.setattr("xipfs.fs.fsck.inodes._CHUNK_PAGES", 1)
    sample = make_sample()
    sample.image.change_inode(sample.fifo, rdev=1)
    assert INODE.size_bytes * 16 == PAGE_SIZE
    assert numbers(check(sample.image, tmp_path)) == ["I10"]


def test_the_document_has_the_same_rules():
    text = (Path(__file__).parents[3] / "docs" / "FSCK.md").read_text()
    rows = re.findall(r"^\| (I\d+) \| (.*?) \|", text, re.MULTILINE)
    assert rows == [(str(i), i.meaning) for i in Invariant]
