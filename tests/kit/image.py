"""Images laid out by hand: what mkfs never makes can be made here, and broken, record by record.

    kit = ImageKit()
    etc = kit.add_dir(INO_ROOT, b"etc")
    ino = kit.add_file(etc, b"hosts", b"127.0.0.1 localhost\\n")
    image = kit.build()                    a sound image, in memory
    image.change_inode(ino, nlink=2)       now unsound, but sealed
    image.write(tmp_path / "nvram.img")

The layout is that of docs/FORMAT.md: superblock, state, contents in the order of the calls, inode
file, journal, group descriptors, bitmaps, free pages, replica.
"""

import itertools
import stat
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xipfs.ondisk.dentry import (
    DIR_INDEX_DTYPE,
    DIR_PAGE,
    DIR_SLOT_DTYPE,
    DiskDirPage,
    decode_dir_page,
    encode_dir_index,
    encode_dir_leaf,
    leaf_size_bytes,
    name_key,
)
from xipfs.ondisk.extent import (
    EXTENT_DTYPE,
    EXTENT_NODE,
    NR_INLINE_EXTENTS,
    NR_NODE_EXTENTS,
    ExtentArray,
    ExtentFlags,
    encode_node,
)
from xipfs.ondisk.group import (
    GROUP_DESC,
    GROUP_SHIFT,
    NR_GROUP_PAGES,
    DiskGroupDesc,
    GroupFlags,
    bitmap_checksum,
    decode_group_desc,
)
from xipfs.ondisk.inode import (
    INO_FIRST,
    INO_ROOT,
    INODE,
    INODES_PER_PAGE,
    PAYLOAD_SIZE_BYTES,
    DiskInode,
    InodeFlags,
    decode_inode,
)
from xipfs.ondisk.journal import DiskJournalHeader
from xipfs.ondisk.record import RecordFormat
from xipfs.ondisk.superblock import (
    CHECKSUM_CRC32,
    FORMAT_VERSION,
    STATE,
    STATE_BLOCK,
    STATE_INODE_OFFSET,
    SUPERBLOCK,
    Compat,
    DiskState,
    DiskSuperblock,
    StateFlags,
    decode_state,
)
from xipfs.ondisk.xattr import XATTR_RUN, encode_xattrs
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Block, Ino, bytes_to_pages

__all__ = ["Extent", "HandmadeImage", "ImageKit"]

UUID = bytes.fromhex("5ca1ab1e0ddba115ba5eba11ca11ab1e")
HASH_KEY = bytes(range(16))
CREATED_NS = 1_700_000_000_123_456_789


@dataclass(frozen=True, slots=True)
class Extent:
    """Some pages of a file. data: their bytes, a whole number of pages; None: allocated only."""

    pgoff: int
    data: bytes | None = None
    nr_pages: int = 0
    unwritten: bool = False


@dataclass(slots=True)
class Draft:
    """One inode until `build`: the fields of its record, and for directories their entries."""

    fields: dict[str, Any]
    entries: list[tuple[bytes, int]] = field(default_factory=list)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class ImageKit:
    """Collects files; `build` makes the image.

    fanout: entries that a node of an extent tree, a leaf or an index of a directory takes at most,
    small numbers to get deep trees from few entries; None: as many as fit a page.
    """

    def __init__(
        self, *, nr_pages: int = 256, nr_journal_pages: int = 3, fanout: int | None = None
    ) -> None:
        self.nr_pages = nr_pages
        self.nr_journal_pages = nr_journal_pages
        self.fanout = fanout
        self.seed = zlib.crc32(UUID)
        self.pages = bytearray(2 * PAGE_SIZE)
        self.drafts: dict[int, Draft] = {}
        self.free: list[int] = []
        self.orphans: list[int] = []
        self.ino_end = int(INO_FIRST)
        self.drafts[INO_ROOT] = self._draft(
            INO_ROOT, mode=stat.S_IFDIR | 0o755, nlink=2, parent_ino=INO_ROOT
        )

    def add_dir(self, parent: int, name: bytes, mode: int = 0o755) -> int:
        ino = self._add(parent, name, mode=stat.S_IFDIR | mode, nlink=2, parent_ino=parent)
        self.drafts[parent].fields["nlink"] += 1
        return ino

    def add_file(self, parent: int, name: bytes, data: bytes = b"", **fields: Any) -> int:
        """A regular file with *data* in one extent; fields: of its record, instead of ours."""
        extents = [Extent(0, data.ljust(bytes_to_pages(len(data)) * PAGE_SIZE, b"\0"))]
        return self.add_extents(parent, name, extents if data else [], len(data), **fields)

    def add_extents(
        self,
        parent: int,
        name: bytes,
        extents: Sequence[Extent],
        size_bytes: int,
        *,
        depth: int | None = None,
        **fields: Any,
    ) -> int:
        """A regular file with these extents; depth: of the tree, as deep as needed if None."""
        mode = {"mode": stat.S_IFREG | 0o644, "nlink": 1, "size_bytes": size_bytes}
        ino = self._add(parent, name, **(mode | fields))
        rows = []
        for extent in extents:
            nr_pages = extent.nr_pages or len(extent.data or b"") // PAGE_SIZE
            block = self.put(extent.data or bytes(nr_pages * PAGE_SIZE))
            flags = ExtentFlags.UNWRITTEN if extent.unwritten else 0
            rows.append((extent.pgoff, block, nr_pages, flags))
        self._set_extents(ino, np.array(rows, EXTENT_DTYPE), depth)
        return ino

    def add_symlink(self, parent: int, name: bytes, target: bytes) -> int:
        ino = self._add(parent, name, mode=stat.S_IFLNK | 0o777, nlink=1, size_bytes=len(target))
        fields = self.drafts[ino].fields
        if len(target) <= PAYLOAD_SIZE_BYTES:
            fields |= {"flags": int(InodeFlags.INLINE), "payload": target}
        else:
            block = self.put(target)
            self._set_extents(ino, np.array([(0, block, 1, 0)], EXTENT_DTYPE), None)
        return ino

    def add_special(self, parent: int, name: bytes, mode: int, rdev: int = 0) -> int:
        return self._add(parent, name, mode=mode, nlink=1, rdev=rdev)

    def add_orphan(self, data: bytes = b"x") -> int:
        """A file without a name, on the orphan list."""
        ino = self.add_file(INO_ROOT, b"orphan", data, nlink=0, flags=int(InodeFlags.ORPHAN))
        self.drafts[INO_ROOT].entries.remove((b"orphan", ino))
        self.orphans.append(ino)
        return ino

    def add_free(self) -> int:
        """An inode that was used once, on the free list."""
        ino = self._take_ino()
        self.free.append(ino)
        return ino

    def link(self, parent: int, name: bytes, ino: int) -> None:
        """Give *ino* another name."""
        self.drafts[parent].entries.append((name, ino))
        self.drafts[ino].fields["nlink"] += 1

    def set_xattrs(self, ino: int, xattrs: dict[bytes, bytes]) -> None:
        self.drafts[ino].xattrs = xattrs

    def put(self, data: bytes) -> int:
        """Store *data* in the next free pages; return the first."""
        block = len(self.pages) >> PAGE_SHIFT
        self.pages += data.ljust(bytes_to_pages(len(data)) * PAGE_SIZE, b"\0")
        return block

    def build(self) -> "HandmadeImage":
        """Return the image, sound as far as the calls were."""
        for ino, draft in self.drafts.items():
            if stat.S_ISDIR(draft.fields["mode"]):
                self._put_directory(ino, draft)
            self._put_xattrs(ino, draft)
        inode_file, nr_inode_pages = self._put_inode_file()
        journal = self.put(
            DiskJournalHeader(sequence=1, head=0)
            .encode(self.seed)
            .ljust(self.nr_journal_pages * PAGE_SIZE, b"\0")
        )
        nr_groups = -(-self.nr_pages // NR_GROUP_PAGES)
        gdt = self.put(bytes(nr_groups * GROUP_DESC.size_bytes))
        bitmap = self.put(bytes(nr_groups * PAGE_SIZE))
        nr_used = len(self.pages) >> PAGE_SHIFT
        assert nr_used < self.nr_pages, f"{nr_used} pages do not fit {self.nr_pages}"
        acls = any(n.startswith(b"system.") for d in self.drafts.values() for n in d.xattrs)
        superblock = DiskSuperblock(
            version=FORMAT_VERSION,
            checksum_type=CHECKSUM_CRC32,
            compat=int(Compat.ACL) if acls else 0,
            ro_compat=0,
            incompat=0,
            uuid=UUID,
            hash_key=HASH_KEY,
            label=b"by hand".ljust(64, b"\0"),
            created_ns=CREATED_NS,
            page_shift=PAGE_SHIFT,
            group_shift=GROUP_SHIFT,
            nr_pages=self.nr_pages,
            nr_groups=nr_groups,
            gdt_block=Block(gdt),
            bitmap_block=Block(bitmap),
            journal_block=Block(journal),
            nr_journal_pages=self.nr_journal_pages,
        )
        state = DiskState(
            flags=int(StateFlags.CLEAN),
            nr_free_pages=self.nr_pages - nr_used - 1,
            nr_inodes=len(self.drafts),
            ino_end=Ino(self.ino_end),
            free_ino_head=Ino(self.free[0] if self.free else 0),
            orphan_ino_head=Ino(self.orphans[0] if self.orphans else 0),
            mounted_ns=0,
            written_ns=CREATED_NS,
            mount_count=0,
        )
        self._put_bitmaps(superblock, nr_used)
        encoded = superblock.encode()
        self.pages[:PAGE_SIZE] = encoded
        page = state.encode(self.seed).ljust(STATE_INODE_OFFSET, b"\0")
        page += self._inode_of_inode_file(inode_file, nr_inode_pages)
        self.pages[PAGE_SIZE : PAGE_SIZE + len(page)] = page
        # The free pages in between would be zeros; they are a hole in the file (`write`).
        return HandmadeImage(self.pages, encoded, superblock)

    def _take_ino(self) -> int:
        ino = self.ino_end
        self.ino_end += 1
        return ino

    def _draft(self, ino: int, **fields: Any) -> Draft:
        times = dict.fromkeys(("atime_ns", "mtime_ns", "ctime_ns", "btime_ns"), CREATED_NS)
        return Draft({"ino": ino, "generation": 1, "uid": 1000, "gid": 100} | times | fields)

    def _add(self, parent: int, name: bytes, **fields: Any) -> int:
        ino = self._take_ino()
        self.drafts[ino] = self._draft(ino, **fields)
        self.drafts[parent].entries.append((name, ino))
        return ino

    def _set_extents(self, ino: int, rows: ExtentArray, depth: int | None) -> None:
        """Put *rows* into the inode, by way of a tree of nodes where there are too many."""
        fields = self.drafts[ino].fields
        fields["nr_pages"] = int(rows["nr_pages"].sum())
        fanout = self.fanout or NR_NODE_EXTENTS
        level = 0
        while len(rows) > NR_INLINE_EXTENTS or (depth is not None and level < depth):
            parts = [rows[i : i + fanout] for i in range(0, len(rows), fanout)]
            above = []
            for part in parts:
                node = encode_node(
                    self.seed,
                    ino=ino,
                    generation=fields["generation"],
                    depth=level,
                    entries=part,
                )
                above.append((int(part["pgoff"][0]), self.put(node), 0, 0))
            rows = np.array(above, EXTENT_DTYPE)
            fields["nr_pages"] += len(above)
            level += 1
        fields |= {"extent_depth": level, "nr_extents": len(rows), "payload": rows.tobytes()}

    def _put_directory(self, ino: int, draft: Draft) -> None:
        pages = self._directory_pages(ino, draft)
        draft.fields |= {
            "nr_entries": len(draft.entries),
            "size_bytes": len(pages) * PAGE_SIZE,
        }
        block = self.put(b"".join(pages))
        self._set_extents(ino, np.array([(0, block, len(pages), 0)], EXTENT_DTYPE), None)

    def _directory_pages(self, ino: int, draft: Draft) -> list[bytes]:
        """Return the pages of a directory: the root first, then the leaves, then indexes."""
        owner = {"ino": ino, "generation": draft.fields["generation"]}
        slots = []
        keys: set[int] = set()
        for name, entry_ino in draft.entries:
            key = name_key(name, HASH_KEY)
            while key in keys:
                key += 1
            keys.add(key)
            slots.append((key, entry_ino, self.drafts[entry_ino].fields["mode"] >> 12, name))
        slots.sort()
        leaves: list[list[tuple[int, int, int, bytes]]] = [[]]
        for slot in slots:
            sizes = sum(len(s[3]) for s in leaves[-1]) + len(slot[3])
            if (
                leaf_size_bytes(sizes, len(leaves[-1]) + 1) > PAGE_SIZE
                or len(leaves[-1]) == self.fanout
            ):
                leaves.append([])
            leaves[-1].append(slot)
        if len(leaves) == 1:
            return [encode_dir_leaf(self.seed, slots=leaves[0], **owner)]
        pages = [b""] + [encode_dir_leaf(self.seed, slots=leaf, **owner) for leaf in leaves]
        index = [(leaf[0][0], pgoff) for pgoff, leaf in enumerate(leaves, 1)]
        fanout = self.fanout or 254
        level = 1
        while len(index) > fanout:
            above = []
            for i in range(0, len(index), fanout):
                part = index[i : i + fanout]
                above.append((part[0][0], len(pages)))
                pages.append(encode_dir_index(self.seed, level=level, entries=part, **owner))
            index = above
            level += 1
        pages[0] = encode_dir_index(self.seed, level=level, entries=index, **owner)
        return pages

    def _put_xattrs(self, ino: int, draft: Draft) -> None:
        if draft.xattrs:
            run = encode_xattrs(draft.xattrs, self.seed, ino, draft.fields["generation"])
            nr_pages = len(run) >> PAGE_SHIFT
            draft.fields |= {"xattr_block": self.put(run), "nr_xattr_pages": nr_pages}
            draft.fields["nr_pages"] = draft.fields.get("nr_pages", 0) + nr_pages

    def _put_inode_file(self) -> tuple[int, int]:
        nr_pages = -(-self.ino_end // INODES_PER_PAGE)
        records = bytearray(nr_pages * PAGE_SIZE)
        for ino, next_ino in itertools.pairwise([*self.free, 0]):
            self._store_inode(records, {"ino": ino, "generation": 3, "next_ino": next_ino})
        for ino, next_ino in itertools.pairwise([*self.orphans, 0]):
            self.drafts[ino].fields["next_ino"] = next_ino
        for draft in self.drafts.values():
            self._store_inode(records, draft.fields)
        return self.put(bytes(records)), nr_pages

    def _store_inode(self, records: bytearray, fields: dict[str, Any]) -> None:
        start = fields["ino"] * INODE.size_bytes
        payload = fields.get("payload", b"").ljust(PAYLOAD_SIZE_BYTES, b"\0")
        records[start : start + INODE.size_bytes] = INODE.encode(
            self.seed, **(fields | {"payload": payload})
        )

    def _inode_of_inode_file(self, block: int, nr_pages: int) -> bytes:
        extents = np.array([(0, block, nr_pages, 0)], EXTENT_DTYPE)
        return INODE.encode(
            self.seed,
            ino=0,
            size_bytes=nr_pages * PAGE_SIZE,
            nr_pages=nr_pages,
            nr_extents=1,
            payload=extents.tobytes().ljust(PAYLOAD_SIZE_BYTES, b"\0"),
        )

    def _put_bitmaps(self, superblock: DiskSuperblock, nr_used: int) -> None:
        nr_groups = superblock.nr_groups
        for group in range(nr_groups):
            used = np.zeros(NR_GROUP_PAGES, bool)
            start = group << GROUP_SHIFT
            used[: max(nr_used - start, 0)] = True
            used[max(self.nr_pages - 1 - start, 0) :] = True
            bitmap = np.packbits(used, bitorder="little").tobytes()
            flags = 0 if used.any() else GroupFlags.BITMAP_UNINIT
            record = DiskGroupDesc(
                group=group,
                flags=int(flags),
                nr_free_pages=int(NR_GROUP_PAGES - used.sum()),
                bitmap_checksum=0 if flags else bitmap_checksum(bitmap, self.seed),
            ).encode(self.seed)
            self._store(superblock.gdt_block, group * GROUP_DESC.size_bytes, record)
            if not flags:
                self._store(superblock.bitmap_block + group, 0, bitmap)

    def _store(self, block: int, offset: int, data: bytes) -> None:
        start = (block << PAGE_SHIFT) + offset
        self.pages[start : start + len(data)] = data


class HandmadeImage:
    """An image in memory, to be broken: each `change_*` seals what it changed.

    data: all pages up to the first free one; `replica` stands in the last page of the file.
    """

    def __init__(self, data: bytearray, replica: bytes, disk: DiskSuperblock) -> None:
        self.data = data
        self.replica = bytearray(replica)
        self.disk = disk
        self.seed = disk.seed

    def write(self, path: Path) -> Path:
        """Write the image file, sparse where its pages are free; return *path*."""
        with path.open("wb") as file:
            file.write(self.data)
            file.seek((self.disk.nr_pages - 1) << PAGE_SHIFT)
            file.write(self.replica)
        return path

    def page(self, block: int) -> memoryview:
        """The bytes of one page, to write to."""
        return memoryview(self.data)[block << PAGE_SHIFT : (block + 1) << PAGE_SHIFT]

    # Superblock and state

    def change_superblock(self, **fields: Any) -> None:
        """Both copies."""
        self.disk = self.disk._replace(**fields)
        self.data[:PAGE_SIZE] = self.replica[:] = self.disk.encode()

    def change_state(self, **fields: Any) -> None:
        self.data[PAGE_SIZE : PAGE_SIZE + STATE.size_bytes] = self.state._replace(**fields).encode(
            self.seed
        )

    @property
    def state(self) -> DiskState:
        return decode_state(self.page(STATE_BLOCK)[: STATE.size_bytes], self.seed)

    # Inodes

    def inode_offset(self, ino: int) -> int:
        """Byte of the image where inode *ino* stands (0: the inode file)."""
        if ino == 0:
            return PAGE_SIZE + STATE_INODE_OFFSET
        return (self.inode_file_block() << PAGE_SHIFT) + ino * INODE.size_bytes

    def inode_file_block(self) -> int:
        return int(self.inode(0).extents["block"][0])

    def inode(self, ino: int) -> DiskInode:
        start = self.inode_offset(ino)
        return decode_inode(self.data[start : start + INODE.size_bytes], self.seed, Ino(ino))

    def change_inode(self, ino: int, /, **fields: Any) -> None:
        start = self.inode_offset(ino)
        record = self.inode(ino)._replace(**fields)
        self.data[start : start + INODE.size_bytes] = record.encode(self.seed)

    def change_extent(self, ino: int, number: int, /, **fields: int) -> None:
        """One extent or index entry in the payload of *ino*."""
        inode = self.inode(ino)
        payload = bytearray(inode.payload)
        _change_entry(payload, EXTENT_DTYPE, number * EXTENT_DTYPE.itemsize, fields)
        self.change_inode(ino, payload=bytes(payload))

    # Pages that are sealed as a whole

    def change_page(
        self,
        block: int,
        kind: RecordFormat,
        change: Callable[[memoryview], object] | None = None,
        /,
        **fields: int,
    ) -> None:
        """Change head fields of a page, or anything in it by *change*, and seal it again."""
        page = self.page(block)
        _change_entry(page, kind.dtype, 0, fields)
        if change:
            change(page)
        kind.seal(page, self.seed)

    def node_block(self, ino: int, number: int = 0) -> int:
        """The page of the node that index entry *number* in the payload of *ino* names."""
        return int(self.inode(ino).extents["block"][number])

    def change_node(self, block: int, number: int | None = None, /, **fields: int) -> None:
        """The head of an extent node, or its entry *number*."""
        if number is None:
            self.change_page(block, EXTENT_NODE, **fields)
        else:
            start = EXTENT_NODE.size_bytes + number * EXTENT_DTYPE.itemsize
            self.change_page(
                block, EXTENT_NODE, lambda page: _change_entry(page, EXTENT_DTYPE, start, fields)
            )

    # Directories

    def dir_block(self, ino: int, pgoff: int = 0) -> int:
        """The image page of page *pgoff* of a directory, which the kit puts into one extent."""
        return int(self.inode(ino).extents["block"][0]) + pgoff

    def dir_page(self, ino: int, pgoff: int = 0) -> DiskDirPage:
        return decode_dir_page(self.page(self.dir_block(ino, pgoff)), self.seed, "page")

    def find_slot(self, ino: int, name: bytes) -> tuple[int, int]:
        """Return (pgoff, slot) of the entry *name*."""
        for pgoff in range(self.inode(ino).size_bytes >> PAGE_SHIFT):
            page = self.dir_page(ino, pgoff)
            for slot in range(len(page.entries) if page.level == 0 else 0):
                if page.name(slot) == name:
                    return pgoff, slot
        raise KeyError(name)

    def change_entry(self, ino: int, name: bytes, /, **fields: int) -> None:
        """The slot of *name* in directory *ino*."""
        pgoff, slot = self.find_slot(ino, name)
        start = DIR_PAGE.size_bytes + slot * DIR_SLOT_DTYPE.itemsize
        self.change_page(
            self.dir_block(ino, pgoff),
            DIR_PAGE,
            lambda page: _change_entry(page, DIR_SLOT_DTYPE, start, fields),
        )

    def change_name(self, ino: int, name: bytes, new_name: bytes) -> None:
        """The bytes of a name in place, of the same size; its key stays."""
        pgoff, slot = self.find_slot(ino, name)
        start = int(self.dir_page(ino, pgoff).entries["name_offset"][slot])

        def change(page: memoryview) -> None:
            page[start : start + len(new_name)] = new_name

        self.change_page(self.dir_block(ino, pgoff), DIR_PAGE, change)

    def change_index(self, ino: int, pgoff: int, number: int, /, **fields: int) -> None:
        """Entry *number* of the index in page *pgoff* of directory *ino*."""
        start = DIR_PAGE.size_bytes + number * DIR_INDEX_DTYPE.itemsize
        self.change_page(
            self.dir_block(ino, pgoff),
            DIR_PAGE,
            lambda page: _change_entry(page, DIR_INDEX_DTYPE, start, fields),
        )

    def change_dir_page(self, ino: int, pgoff: int = 0, /, **fields: int) -> None:
        """The head of a directory page."""
        self.change_page(self.dir_block(ino, pgoff), DIR_PAGE, **fields)

    # Attributes

    def change_xattr_run(
        self, ino: int, change: Callable[[memoryview], object] | None = None, /, **fields: int
    ) -> None:
        inode = self.inode(ino)
        start = inode.xattr_block << PAGE_SHIFT
        end = start + (inode.nr_xattr_pages << PAGE_SHIFT)
        run = memoryview(self.data)[start:end]
        _change_entry(run, XATTR_RUN.dtype, 0, fields)
        if change:
            change(run)
        XATTR_RUN.seal(run, self.seed)

    # Groups

    def group(self, group: int) -> DiskGroupDesc:
        start = (self.disk.gdt_block << PAGE_SHIFT) + group * GROUP_DESC.size_bytes
        return decode_group_desc(self.data[start : start + GROUP_DESC.size_bytes], self.seed, group)

    def change_group(self, group: int, /, **fields: int) -> None:
        start = (self.disk.gdt_block << PAGE_SHIFT) + group * GROUP_DESC.size_bytes
        record = self.group(group)._replace(**fields).encode(self.seed)
        self.data[start : start + GROUP_DESC.size_bytes] = record

    def mark(self, block: int, *, used: bool) -> None:
        """Set or clear the bit of one page, keeping checksum and counts in step."""
        group, bit = divmod(block, NR_GROUP_PAGES)
        bitmap = self.page(self.disk.bitmap_block + group)
        mask = 1 << bit % 8
        assert bool(bitmap[bit // 8] & mask) != used, f"page {block} is so already"
        bitmap[bit // 8] ^= mask
        step = -1 if used else 1
        self.change_group(
            group,
            bitmap_checksum=bitmap_checksum(bitmap, self.seed),
            nr_free_pages=self.group(group).nr_free_pages + step,
        )
        self.change_state(nr_free_pages=self.state.nr_free_pages + step)


def _change_entry(
    buf: bytearray | memoryview, dtype: np.dtype[np.void], offset: int, fields: dict[str, int]
) -> None:
    entry = np.frombuffer(buf, dtype, 1, offset)
    for name, value in fields.items():
        entry[name] = value


# A superblock page is exactly one page: `replica` and page 0 are written whole.
assert SUPERBLOCK.size_bytes == PAGE_SIZE
