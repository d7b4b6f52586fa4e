"""Allocator: which pages of the image are free. Its state is in the image's groups, read when used.

    runs = allocator.take(8, near)             [(block, nr_pages), ...]: nobody else gets them now
    allocator.give_back(runs)                  if they are not needed after all
    change = allocator.prepare(taken, freed)   what their transaction must store
    allocator.publish(change, freed)           once that is done

Of a group that was looked into, memory holds the bitmap and the runs of free pages, sorted, in
which a page is found by bisection; of others a count at most. Pages that a transaction frees are in
no run before `publish`, so nobody can take them before its step 4.

Where from: the run that *near* lies in, so that a file grows in one piece; else the first run
behind it that is long enough, in its group and some of the next; else the longest of what there is.
Without *near*, from the lowest group that may have some, so that a sparse image stays small.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from xipfs.errors import FormatError, NoSpaceError, bug_on
from xipfs.ondisk.group import (
    GROUP_DESC,
    GROUP_SHIFT,
    NR_GROUP_PAGES,
    DiskGroupDesc,
    GroupFlags,
    bitmap_checksum,
    decode_group_desc,
)
from xipfs.ondisk.journal import JOURNAL_RECORD, merged_ranges
from xipfs.ondisk.superblock import STATE_BLOCK, DiskSuperblock
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Block

__all__ = ["Allocator", "AllocatorChange", "BlockRun"]

BlockRun = tuple[Block, int]
"""(first page, nr_pages) of the image."""

_NR_GROUPS_TRIED = 8
"""Groups in which one long run is looked for before several shorter ones are taken."""
_NR_GROUPS_IN_MEMORY = 256
_GROUPS_PER_PAGE = PAGE_SIZE // GROUP_DESC.size_bytes


class AllocatorChange(NamedTuple):
    """What a transaction stores for the pages that it takes and frees.

    records: (offset, bytes); new_pages: bitmaps that were never written; bitmaps: by group, see
    `_Group.bits`; nr_freed_pages: by how many the count of free pages grows, perhaps below zero.
    """

    records: list[tuple[int, bytes]]
    new_pages: list[tuple[Block, bytes]]
    bitmaps: dict[int, int]
    nr_freed_pages: int


class _Group:
    """A group that was looked into.

    bits: its bitmap in the image, as an integer. is_new: that page was never written. starts, ends:
    runs of free pages that nobody has taken, as pages of the group, sorted, not touching; nr_pages:
    in all of them.
    """

    __slots__ = ("bits", "ends", "is_new", "nr_pages", "starts")

    def __init__(self, bitmap: bytes, *, is_new: bool) -> None:
        self.bits = int.from_bytes(bitmap, "little")
        self.is_new = is_new
        self.nr_pages = NR_GROUP_PAGES - self.bits.bit_count()
        used = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
        edges = np.flatnonzero(np.diff(used, prepend=np.uint8(1), append=np.uint8(1)))
        self.starts: list[int] = edges[::2].tolist()
        self.ends: list[int] = edges[1::2].tolist()

    def find(self, near: int | None, nr_pages: int) -> int | None:
        """Return the number of the run to take *nr_pages* from, None if none is long enough."""
        starts, ends = self.starts, self.ends
        first = 0
        if near is not None:
            first = bisect_right(ends, near)
            if first < len(starts) and starts[first] <= near:
                return first  # to go on where a file ends comes before all else
        for i in range(first, len(starts)):
            if ends[i] - starts[i] >= nr_pages:
                return i
        for i in range(first):
            if ends[i] - starts[i] >= nr_pages:
                return i
        return None

    def longest_first(self) -> list[int]:
        """Return the starts of all runs."""
        runs = sorted(zip(self.starts, self.ends, strict=True), key=lambda run: run[0] - run[1])
        return [start for start, _ in runs]

    def take(self, i: int, near: int | None, nr_pages: int) -> tuple[int, int]:
        """Take up to *nr_pages* of run *i*, from *near* if it is inside; return (first, number)."""
        start, end = self.starts[i], self.ends[i]
        first = near if near is not None and start <= near < end else start
        stop = min(first + nr_pages, end)
        self.nr_pages -= stop - first
        if first > start:
            self.ends[i] = first
            if stop < end:
                self.starts.insert(i + 1, stop)
                self.ends.insert(i + 1, end)
        elif stop < end:
            self.starts[i] = stop
        else:
            del self.starts[i], self.ends[i]
        return first, stop - first

    def give(self, start: int, end: int) -> None:
        """Add a run of free pages. Bug: some of them are in another."""
        starts, ends = self.starts, self.ends
        i = bisect_left(starts, start)
        if (i and ends[i - 1] > start) or (i < len(starts) and starts[i] < end):
            bug_on(True, "freed twice", start=start, end=end)
        self.nr_pages += end - start
        joins_left = i > 0 and ends[i - 1] == start
        joins_right = i < len(starts) and starts[i] == end
        if joins_left and joins_right:
            ends[i - 1] = ends[i]
            del starts[i], ends[i]
        elif joins_left:
            ends[i - 1] = end
        elif joins_right:
            starts[i] = start
        else:
            starts.insert(i, start)
            ends.insert(i, end)


class Allocator:
    """The free pages of one image.

    nr_free_pages: of the image, less what is taken; begins with the state's count.
    nr_reserved_pages: of those, kept for operations that will free some.
    """

    __slots__ = (
        "_areas",
        "_counts",
        "_disk",
        "_groups",
        "_lowest_group",
        "_nvram",
        "_seed",
        "nr_free_pages",
        "nr_reserved_pages",
    )

    def __init__(self, nvram: NvramDevice, disk: DiskSuperblock, nr_free_pages: int) -> None:
        self._nvram = nvram
        self._disk = disk
        self._seed = disk.seed
        nr_gdt_pages = -(-disk.nr_groups // _GROUPS_PER_PAGE)
        self._areas = [  # [start, end) of what belongs to no file
            (0, STATE_BLOCK + 1),
            (disk.journal_block, disk.journal_block + disk.nr_journal_pages),
            (disk.gdt_block, disk.gdt_block + nr_gdt_pages),
            (disk.bitmap_block, disk.bitmap_block + disk.nr_groups),
            (disk.nr_pages - 1, disk.nr_pages),
        ]
        self._groups: dict[int, _Group] = {}
        self._counts: dict[int, int] = {}
        self._lowest_group = 0
        self.nr_free_pages = nr_free_pages
        # What a removal may need is a page or two: an extent cut in two, a node that splits.
        self.nr_reserved_pages = min(64, disk.nr_pages >> 6)

    def take(
        self, nr_pages: int, near: Block = Block(0), *, use_reserve: bool = False
    ) -> list[BlockRun]:
        """Take *nr_pages* (at least one) for the caller, in as few runs as can be found quickly.

        near: the page that the first one best is. use_reserve: by an operation that frees pages.
        Raises: NoSpaceError, DeviceError, FormatError: nothing is taken then.
        """
        bug_on(nr_pages < 1, "no pages asked for", nr_pages=nr_pages)
        nr_usable_pages = self.nr_free_pages - (0 if use_reserve else self.nr_reserved_pages)
        if nr_pages > nr_usable_pages:
            raise NoSpaceError(
                f"{self._nvram.path}: {nr_pages} pages wanted, {max(nr_usable_pages, 0)} are free"
            )
        runs: list[BlockRun] = []
        try:
            self._take_from(near, nr_pages, runs)
        except BaseException:
            self.give_back(runs)
            raise
        return runs

    def give_back(self, runs: Iterable[BlockRun]) -> None:
        """Undo `take`: these pages, all or some of what it gave, can be taken again."""
        for number, start, end in _by_group(runs):
            self._group(number).give(start, end)
            self.nr_free_pages += end - start
            self._lowest_group = min(self._lowest_group, number)

    def check_of_file(self, block: int, nr_pages: int) -> None:
        """Raise FormatError if a file says that it holds pages that no file can hold.

        Whoever stores into pages, or frees them, because an extent says so asks first: a damaged
        image must not be damaged further.
        """
        end = block + nr_pages
        for area_start, area_end in self._areas:
            if block < area_end and end > area_start:
                raise FormatError(
                    f"{self._nvram.path}: a file holds pages [{block}, {end}), where metadata is: "
                    f"run xipfs fsck"
                )

    def prepare(self, taken: Sequence[BlockRun], freed: Sequence[BlockRun]) -> AllocatorChange:
        """Return what the image must say when *taken* are in use and *freed* are not.

        taken: from `take`. freed: in use in the image, or among *taken*.
        Raises: FormatError where pages are freed that are free; DeviceError.
        """
        for block, nr_pages in freed:
            self.check_of_file(block, nr_pages)
        bitmaps: dict[int, int] = {}
        spans: dict[int, list[tuple[int, int]]] = {}  # bytes of bitmaps that change
        nr_freed_pages = 0
        for is_freed, runs in ((False, taken), (True, freed)):
            for number, start, end in _by_group(runs):
                if number not in bitmaps:
                    bitmaps[number] = self._group(number).bits
                    spans[number] = []
                mask = (1 << end - start) - 1 << start
                if not is_freed:
                    bitmaps[number] |= mask
                    nr_freed_pages -= end - start
                elif bitmaps[number] & mask == mask:
                    bitmaps[number] ^= mask
                    nr_freed_pages += end - start
                else:
                    first = number << GROUP_SHIFT
                    raise FormatError(
                        f"{self._nvram.path}: pages [{first + start}, {first + end}) are held, "
                        f"but marked free: run xipfs fsck"
                    )
                spans[number].append((start >> 3, (end - 1 >> 3) + 1))
        records: list[tuple[int, bytes]] = []
        new_pages: list[tuple[Block, bytes]] = []
        for number, bits in bitmaps.items():
            bitmap = bits.to_bytes(PAGE_SIZE, "little")
            block = Block(self._disk.bitmap_block + number)
            if self._group(number).is_new:
                new_pages.append((block, bitmap))
            else:
                offset = block << PAGE_SHIFT
                merged = merged_ranges(spans[number], JOURNAL_RECORD.size_bytes)
                records += [(offset + start, bitmap[start:end]) for start, end in merged]
            desc = DiskGroupDesc(
                group=number,
                flags=0,
                nr_free_pages=NR_GROUP_PAGES - bits.bit_count(),
                bitmap_checksum=bitmap_checksum(bitmap, self._seed),
            )
            records.append((self._desc_offset(number), desc.encode(self._seed)))
        return AllocatorChange(records, new_pages, bitmaps, nr_freed_pages)

    def publish(self, change: AllocatorChange, freed: Iterable[BlockRun]) -> None:
        """Take note that the image says what `prepare` returned: *freed* can be taken now."""
        for number, bits in change.bitmaps.items():
            group = self._group(number)
            group.bits = bits
            group.is_new = False
        self.give_back(freed)
        while len(self._groups) > _NR_GROUPS_IN_MEMORY:
            number = next(iter(self._groups))
            self._counts[number] = self._groups.pop(number).nr_pages

    def _take_from(self, near: Block, nr_pages: int, runs: list[BlockRun]) -> None:
        """Add runs of *nr_pages* in all to *runs*, and count them off."""
        number = self._lowest_group
        goal: int | None = None
        if near:
            number, goal = near >> GROUP_SHIFT, near & (NR_GROUP_PAGES - 1)
        for nr_tried, other in enumerate(self._groups_from(number)):
            if nr_tried == _NR_GROUPS_TRIED:
                break
            group = self._group(other)
            here = goal if other == number else None
            while nr_pages and (i := group.find(here, nr_pages)) is not None:
                nr_pages -= self._take_run(other, i, here, nr_pages, runs)
            if not nr_pages:
                if not near and not nr_tried:
                    self._lowest_group = other
                return
        for other in self._groups_from(number):
            group = self._group(other)
            for start in group.longest_first():
                i = bisect_left(group.starts, start)
                nr_pages -= self._take_run(other, i, None, nr_pages, runs)
                if not nr_pages:
                    return
        raise NoSpaceError(
            f"{self._nvram.path}: no page is free where {self.nr_free_pages} should be: "
            f"run xipfs fsck"
        )

    def _take_run(
        self, number: int, i: int, near: int | None, nr_pages: int, runs: list[BlockRun]
    ) -> int:
        """Take up to *nr_pages* of run *i* of a group; return how many."""
        first, nr_taken = self._groups[number].take(i, near, nr_pages)
        runs.append((Block((number << GROUP_SHIFT) + first), nr_taken))
        self.nr_free_pages -= nr_taken
        return nr_taken

    def _groups_from(self, number: int) -> Iterator[int]:
        """Yield the groups that may have pages to take, from *number* on and around."""
        nr_groups = self._disk.nr_groups
        for i in range(nr_groups):
            other = (number + i) % nr_groups
            if self._count(other):
                yield other

    def _count(self, number: int) -> int:
        """Return how many pages of a group can be taken; not checked where it was not looked into.

        Raises: DeviceError.
        """
        group = self._groups.get(number)
        if group is not None:
            return group.nr_pages
        count = self._counts.get(number)
        if count is None:
            first = number - number % _GROUPS_PER_PAGE
            nr_here = min(_GROUPS_PER_PAGE, self._disk.nr_groups - first)
            page = self._nvram.load(self._desc_offset(first), nr_here * GROUP_DESC.size_bytes)
            counts = np.frombuffer(page, GROUP_DESC.dtype)["nr_free_pages"].tolist()
            for other, found in enumerate(counts, first):
                self._counts.setdefault(other, found)
            count = self._counts[number]
        return count

    def _group(self, number: int) -> _Group:
        """Return a group, checked. Raises: FormatError, DeviceError."""
        group = self._groups.get(number)
        if group is not None:
            return group
        if not 0 <= number < self._disk.nr_groups:
            raise FormatError(f"{self._nvram.path}: a page of group {number}: run xipfs fsck")
        record = self._nvram.load(self._desc_offset(number), GROUP_DESC.size_bytes)
        desc = decode_group_desc(record, self._seed, number)
        is_new = bool(desc.flags & GroupFlags.BITMAP_UNINIT)
        if is_new:
            bitmap = bytes(PAGE_SIZE)
        else:
            block = self._disk.bitmap_block + number
            bitmap = self._nvram.load(block << PAGE_SHIFT, PAGE_SIZE)
            if bitmap_checksum(bitmap, self._seed) != desc.bitmap_checksum:
                raise FormatError(
                    f"{self._nvram.path}: group {number}: damaged bitmap in page {block}: "
                    f"run xipfs fsck"
                )
        group = self._groups[number] = _Group(bitmap, is_new=is_new)
        return group

    def _desc_offset(self, number: int) -> int:
        return (self._disk.gdt_block << PAGE_SHIFT) + number * GROUP_DESC.size_bytes


def _by_group(runs: Iterable[BlockRun]) -> Iterator[tuple[int, int, int]]:
    """Cut *runs* at the ends of groups: yield (group, first page of it, end)."""
    for block, nr_pages in runs:
        end = block + nr_pages
        while block < end:
            number = block >> GROUP_SHIFT
            first = number << GROUP_SHIFT
            stop = min(end, first + NR_GROUP_PAGES)
            yield number, block - first, stop - first
            block = Block(stop)
