"""Repairer: what every repair works with.

    image       the image with all repairs so far laid over it (`Overlay`)
    check       what a check of exactly that found: findings, inodes, links, used pages
    record      one inode's bytes, to be changed and put back; put_record seals them
    extents     the extents of a file as far as they can be read; set_extents puts others
    allocate    pages that nobody holds, and that nobody held before the repairs began
    did         the line for the user

A repair looks things up again where its finding points to, and changes the overlay. Whether it
sufficed is said by the next check.
"""

import stat

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import NoSpaceError, bug_on
from xipfs.fs.fsck.check import ImageCheck
from xipfs.fs.fsck.extents import check_extent_nodes
from xipfs.fs.fsck.inodes import InodeTable
from xipfs.fs.fsck.overlay import Overlay
from xipfs.fs.fsck.pages import UsedPages, check_group, check_one_owner
from xipfs.fs.fsck.report import Findings, Invariant, Repair
from xipfs.fs.pack import pack_extents
from xipfs.ondisk.extent import (
    EXTENT_DTYPE,
    NR_INLINE_EXTENTS,
    NR_NODE_EXTENTS,
    ExtentArray,
)
from xipfs.ondisk.group import GROUP_DESC, GROUP_SHIFT, NR_GROUP_PAGES
from xipfs.ondisk.inode import (
    INO_INODE_FILE,
    INODE,
    INODES_PER_PAGE,
    InodeFlags,
)
from xipfs.ondisk.record import Buffer, checksum
from xipfs.ondisk.superblock import (
    STATE,
    STATE_BLOCK,
    STATE_INODE_OFFSET,
    DiskState,
    DiskSuperblock,
    decode_state,
)
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Block

__all__ = ["InodeRecord", "Repairer", "is_directory", "is_sealed"]

InodeRecord = NDArray[np.void]
"""One inode as it stands in the image: INODE.dtype, shape (1,), the reader's own copy."""

Run = tuple[int, int]
"""(first block, nr_pages)"""


def is_directory(record: InodeRecord) -> bool:
    """Is the inode a directory?"""
    return stat.S_ISDIR(int(record["mode"][0]) & 0xFFFF)


def is_sealed(record: InodeRecord, disk: DiskSuperblock, ino: int) -> bool:
    """Is this the sealed record of inode *ino*?"""
    data = record.tobytes()
    return (int(record["magic"][0]), int(record["checksum"][0]), int(record["ino"][0])) == (
        INODE.magic,
        checksum(data, disk.seed),
        ino,
    )


class Repairer:
    """See above. fresh: blocks that were allocated; done: the lines so far, oldest first.

    A round's repairs count together, when it ends, or not at all.
    """

    __slots__ = (
        "_base",
        "_check",
        "_free_runs",
        "_nr_done_before",
        "_used_at_first",
        "done",
        "fresh",
        "image",
        "now_ns",
    )

    def __init__(self, image: Overlay, now_ns: int) -> None:
        self._base = image
        self.image = Overlay(image)
        self.now_ns = now_ns
        self._nr_done_before = 0
        self.done: list[Repair] = []
        self.fresh: set[int] = set()
        self._check: ImageCheck | None = None
        self._used_at_first: UsedPages | None = None
        self._free_runs: _FreeRuns | None = None

    def start_round(self, check: ImageCheck) -> None:
        """Go on from *check*, which was just run over the image."""
        self._check = check
        self._free_runs = None
        self._nr_done_before = len(self.done)
        if self._used_at_first is None:
            self._used_at_first = check.used

    def end_round(self) -> None:
        """Let the repairs of this round count."""
        self._base.pages |= self.image.pages
        self.image = Overlay(self._base)

    def drop_round(self) -> None:
        """Forget the repairs of this round."""
        self.image = Overlay(self._base)
        del self.done[self._nr_done_before :]

    def did(self, invariant: Invariant, text: str) -> None:
        """Note what was done."""
        self.done.append(Repair(invariant, text))

    # What the check found

    @property
    def check(self) -> ImageCheck:
        """The check of this round."""
        check = self._check
        if check is None:
            bug_on(True, "no round has started")
            raise AssertionError
        return check

    @property
    def disk(self) -> DiskSuperblock:
        """The superblock; without one no repair comes here."""
        disk = self.check.disk
        if disk is None:
            bug_on(True, "a repair without a superblock")
            raise AssertionError
        return disk

    @property
    def table(self) -> InodeTable:
        """All inodes in use and free ones."""
        table = self.check.table
        if table is None:
            bug_on(True, "a repair of inodes without an inode file")
            raise AssertionError
        return table

    def inos(self, *invariants: Invariant) -> list[int]:
        """Return the inodes that break one of *invariants*, in order."""
        return sorted(
            {
                finding.ino
                for finding in self.check.findings.found
                if finding.invariant in invariants and finding.ino is not None
            }
        )

    # The state

    def state(self) -> DiskState:
        """Return the state as it is now, with all repairs. Raises: FormatError."""
        page = self.image.load(STATE_BLOCK << PAGE_SHIFT, STATE.size_bytes)
        return decode_state(page, self.disk.seed)

    def put_state(self, state: DiskState) -> None:
        """Store *state*, as of now."""
        data = state._replace(written_ns=self.now_ns).encode(self.disk.seed)
        self.image.store(STATE_BLOCK << PAGE_SHIFT, data)

    # Inodes

    def record_offset(self, ino: int) -> int | None:
        """Return the byte of the image where *ino* stands, None if it has no place there."""
        if ino == INO_INODE_FILE:
            return (STATE_BLOCK << PAGE_SHIFT) + STATE_INODE_OFFSET
        return self._offset_in_inode_file(ino)

    def record(self, ino: int) -> InodeRecord:
        """Return the bytes of inode *ino*, sealed or not. Bug: there is no such place."""
        data = self.image.load(self._place(ino), INODE.size_bytes)
        return np.frombuffer(data, INODE.dtype).copy()

    def put_record(self, ino: int, record: InodeRecord) -> None:
        """Seal *record* and store it as inode *ino*."""
        record["ino"] = ino
        data = bytearray(record.tobytes())
        INODE.seal(data, self.disk.seed)
        self.image.store(self._place(ino), data)

    def clear_record(self, ino: int) -> None:
        """Make place number *ino* of the inode file (0 as well) one where no inode ever was."""
        offset = self._offset_in_inode_file(ino)
        if offset is not None:
            self.image.store(offset, bytes(INODE.size_bytes))

    def put_free_record(self, ino: int) -> None:
        """Make *ino* a free inode, of a generation that no handle has seen."""
        record = np.zeros(1, INODE.dtype)
        record["generation"] = self.next_generation()
        self.put_record(ino, record)

    def next_generation(self) -> int:
        """Return a generation above all that are in use."""
        generations = self.table.rows["generation"]
        return (int(generations.max(initial=0)) + 1) & 0xFFFF_FFFF

    def _offset_in_inode_file(self, ino: int) -> int | None:
        page, number = divmod(ino, INODES_PER_PAGE)
        for pgoff, block, nr_pages in self.check.inode_file or ():
            if pgoff <= page < pgoff + nr_pages:
                return ((block + page - pgoff) << PAGE_SHIFT) + number * INODE.size_bytes
        return None

    def _place(self, ino: int) -> int:
        offset = self.record_offset(ino)
        if offset is None:
            bug_on(True, "no place for an inode", ino=ino)
            raise AssertionError
        return offset

    # Extents

    def extents(self, record: InodeRecord) -> tuple[ExtentArray, list[int]]:
        """Return the extents of a file that can be read, in its order, and its tree's nodes."""
        payload = np.frombuffer(record["payload"].tobytes(), EXTENT_DTYPE)
        top = payload[: min(int(record["nr_extents"][0]), NR_INLINE_EXTENTS)]
        if record["flags"][0] & InodeFlags.INLINE:
            return top[:0], []
        if not record["extent_depth"][0]:
            return top, []
        tree = check_extent_nodes(self.image, self.disk, record[0], top, Findings(None))
        return tree.entries, tree.node_blocks

    def set_extents(self, record: InodeRecord, extents: ExtentArray) -> None:
        """Make *extents* those of the file, in a tree of fresh nodes if need be; count its pages.

        Raises: NoSpaceError; *record* is unchanged then.
        """
        nr_nodes, level = 0, len(extents)
        while level > NR_INLINE_EXTENTS:
            level = -(-level // NR_NODE_EXTENTS)
            nr_nodes += level
        first_block = self.allocate_run(nr_nodes) if nr_nodes else 0
        nodes, top, depth = pack_extents(
            self.disk.seed,
            ino=int(record["ino"][0]),
            generation=int(record["generation"][0]),
            extents=extents,
            first_block=Block(first_block),
        )
        for number, node in enumerate(nodes):
            self.put_page(first_block + number, node)
        record["flags"] &= ~np.uint32(InodeFlags.INLINE)
        record["extent_depth"] = depth
        record["nr_extents"] = len(top)
        record["payload"] = top.tobytes()
        nr_pages = int(extents["nr_pages"].sum(dtype=np.int64)) + nr_nodes
        record["nr_pages"] = nr_pages + int(record["nr_xattr_pages"][0])

    # Pages

    def load_page(self, block: int) -> bytes:
        """Return the bytes of a page."""
        return self.image.load(block << PAGE_SHIFT, PAGE_SIZE)

    def put_page(self, block: int, data: Buffer) -> None:
        """Store a whole page."""
        bug_on(len(data) != PAGE_SIZE, "not a page", block=block, size_bytes=len(data))
        self.image.store(block << PAGE_SHIFT, data)

    def allocate(self, nr_pages: int) -> list[Run]:
        """Return free pages as runs, one if there is one so long. Raises: NoSpaceError."""
        runs = self._runs().take(nr_pages)
        if runs is None:
            raise NoSpaceError(f"{self.image.path}: no {nr_pages} pages are free for a repair")
        for block, nr_run_pages in runs:
            self.fresh.update(range(block, block + nr_run_pages))
        return runs

    def allocate_run(self, nr_pages: int) -> int:
        """Return the first of *nr_pages* free neighbours. Raises: NoSpaceError."""
        runs = self.allocate(nr_pages)
        if len(runs) > 1:
            raise NoSpaceError(
                f"{self.image.path}: no {nr_pages} neighbouring pages are free for a repair"
            )
        return runs[0][0]

    def _runs(self) -> "_FreeRuns":
        if self._free_runs is None:
            used = self.check.used
            is_known = used is not None
            claims = self.check.claims
            if used is None and claims is not None:
                used = check_one_owner(claims, self.disk, Findings(None))
            self._free_runs = _FreeRuns(self, used, self._used_at_first, is_known=is_known)
        return self._free_runs


class _FreeRuns:
    """Free pages, group by group as they are asked for.

    First those that neither anybody holds, nor held at first, nor a bitmap marks; if they do not
    suffice, any that nobody holds. Without knowing who holds what, the bitmaps alone are believed.
    """

    __slots__ = ("_fresh", "_groups", "_is_known", "_repairer", "_runs", "_used", "_used_at_first")

    def __init__(
        self,
        repairer: Repairer,
        used: UsedPages | None,
        used_at_first: UsedPages | None,
        *,
        is_known: bool,
    ) -> None:
        self._repairer = repairer
        self._used = used
        self._used_at_first = used_at_first
        self._is_known = is_known
        self._runs: list[Run] = []
        nr_groups = repairer.disk.nr_groups
        # (group, whether to be strict), the next one last
        self._groups = [(group, True) for group in reversed(range(nr_groups))]
        if is_known:
            self._groups = [(group, False) for group in reversed(range(nr_groups))] + self._groups

    def take(self, nr_pages: int) -> list[Run] | None:
        """Return runs of *nr_pages* in all, None if there are too few."""
        while True:
            for number, (block, nr_run_pages) in enumerate(self._runs):
                if nr_run_pages >= nr_pages:
                    self._runs[number] = (block + nr_pages, nr_run_pages - nr_pages)
                    return [(block, nr_pages)]
            if not self._groups:
                break
            self._add_group(*self._groups.pop())
        if sum(nr for _, nr in self._runs) < nr_pages:
            return None
        taken: list[Run] = []
        while nr_pages:
            block, nr_run_pages = self._runs.pop()
            nr_here = min(nr_run_pages, nr_pages)
            if nr_here:
                taken.append((block, nr_here))
            if nr_run_pages > nr_here:
                self._runs.append((block + nr_here, nr_run_pages - nr_here))
            nr_pages -= nr_here
        return taken

    def _add_group(self, group: int, strict: bool) -> None:
        repairer = self._repairer
        disk = repairer.disk
        first = group << GROUP_SHIFT
        held = np.zeros(NR_GROUP_PAGES, bool)
        held[max(disk.nr_pages - first, 0) :] = True
        for used in (self._used, self._used_at_first if strict else None):
            if used is not None:
                held |= used.of_group(group)
        if strict:
            held |= self._marked(group)
        for block, nr_pages in self._runs:
            held[max(block - first, 0) : max(block + nr_pages - first, 0)] = True
        fresh = [block - first for block in repairer.fresh if block >> GROUP_SHIFT == group]
        held[fresh] = True
        edges = np.flatnonzero(np.diff(~held, prepend=False, append=False)).tolist()
        self._runs += [
            (first + start, end - start) for start, end in zip(edges[::2], edges[1::2], strict=True)
        ]

    def _marked(self, group: int) -> NDArray[np.bool_]:
        """Return what the bitmap marks; a damaged one all, or nothing if claims are known."""
        repairer = self._repairer
        disk = repairer.disk
        offset = (disk.gdt_block << PAGE_SHIFT) + group * GROUP_DESC.size_bytes
        record = repairer.image.load(offset, GROUP_DESC.size_bytes)
        found = check_group(repairer.image, disk, group, record, Findings(None))
        if found is None:
            return np.full(NR_GROUP_PAGES, not self._is_known)
        marked = found[1]
        return np.zeros(NR_GROUP_PAGES, bool) if marked is None else marked
