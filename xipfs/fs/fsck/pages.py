"""fsck of space: who holds which page, and whether the bitmaps say the same.

Every holder claims its pages as [block, block + nr_pages); all claims together, sorted by block,
show double use as neighbours that overlap, and their union is what the bitmaps must mark. Memory
grows with the claims, 40 bytes each, never with the image.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import FormatError
from xipfs.fs.fsck.overlay import ReadableImage
from xipfs.fs.fsck.report import Findings, Invariant
from xipfs.fs.fsck.volume import check_reserved, check_zero
from xipfs.fs.layout import metadata_areas
from xipfs.ondisk.group import (
    GROUP_DESC,
    GROUP_SHIFT,
    NR_GROUP_PAGES,
    DiskGroupDesc,
    GroupFlags,
    bitmap_checksum,
    decode_group_desc,
)
from xipfs.ondisk.superblock import DiskState, DiskSuperblock
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

__all__ = [
    "CLAIM_DTYPE",
    "KIND_DATA",
    "KIND_NODE",
    "KIND_UNWRITTEN",
    "KIND_XATTR",
    "PageClaims",
    "UsedPages",
    "check_bitmap",
    "check_free_counts",
    "check_group",
    "check_groups",
    "check_one_owner",
]

CLAIM_DTYPE = np.dtype(
    [
        ("ino", np.int64),
        ("pgoff", np.int64),
        ("block", np.int64),
        ("nr_pages", np.int64),
        ("kind", np.int64),
    ]
)
"""One claim. ino: of its holder; of metadata, the number of its area. pgoff: of KIND_DATA."""

KIND_DATA, KIND_UNWRITTEN, KIND_NODE, KIND_XATTR, _KIND_AREA = range(5)

_GROUPS_PER_PAGE = PAGE_SIZE // GROUP_DESC.size_bytes


class PageClaims:
    """Collects who holds which pages. All claims lie inside the image.

    A sound image has no more claims than pages: what comes after that many is dropped, and
    `check_one_owner` says so, so that a damaged image cannot fill the memory.
    """

    __slots__ = ("_nr_claims", "_nr_pages", "_parts", "overfull")

    def __init__(self, disk: DiskSuperblock) -> None:
        self._nr_pages = disk.nr_pages
        self._nr_claims = 0
        self._parts: list[NDArray[np.void]] = []
        self.overfull = False
        areas = [
            (number, 0, area.block, area.nr_pages, _KIND_AREA)
            for number, area in enumerate(metadata_areas(disk))
        ]
        self.add(np.array(areas, CLAIM_DTYPE))

    def add(self, claims: NDArray[np.void]) -> None:
        """Take *claims*: dtype CLAIM_DTYPE, any order; a copy is not made."""
        self._nr_claims += len(claims)
        if self._nr_claims > self._nr_pages:
            self.overfull = True
        elif len(claims):
            self._parts.append(claims)

    def all(self) -> NDArray[np.void]:
        """Return all claims taken, CLAIM_DTYPE, in the order they came."""
        return np.concatenate(self._parts)


class UsedPages:
    """The pages that somebody holds, as disjoint runs [start, end), sorted: int64 arrays."""

    __slots__ = ("_ends", "_starts", "nr_used_pages")

    def __init__(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._starts = starts
        self._ends = ends
        self.nr_used_pages = int((ends - starts).sum())

    def of_group(self, group: int) -> NDArray[np.bool_]:
        """Return which pages of *group* are held: bool, shape (NR_GROUP_PAGES,)."""
        first = group << GROUP_SHIFT
        low = int(np.searchsorted(self._ends, first, side="right"))
        high = int(np.searchsorted(self._starts, first + NR_GROUP_PAGES))
        # +1 where a run starts, -1 behind its end: the running sum is 1 inside.
        steps = np.zeros(NR_GROUP_PAGES + 1, np.int8)
        steps[np.maximum(self._starts[low:high] - first, 0)] += 1
        steps[np.minimum(self._ends[low:high] - first, NR_GROUP_PAGES)] -= 1
        held: NDArray[np.bool_] = np.cumsum(steps[:-1]) > 0
        return held

    def any_in_group(self, group: int) -> bool:
        """Does anybody hold a page of *group*?"""
        first = group << GROUP_SHIFT
        low = int(np.searchsorted(self._ends, first, side="right"))
        return low < len(self._starts) and bool(self._starts[low] < first + NR_GROUP_PAGES)


def check_one_owner(
    claims: PageClaims, disk: DiskSuperblock, findings: Findings
) -> UsedPages | None:
    """I14: no page has two owners. Return the pages that have any, None if that are too many."""
    if claims.overfull:
        findings.add(
            Invariant.ONE_OWNER, f"more extents than the {disk.nr_pages} pages of the image"
        )
        return None
    rows = claims.all()
    rows = rows[np.argsort(rows["block"], kind="stable")]
    starts = rows["block"]
    ends = starts + rows["nr_pages"]
    reach = np.maximum.accumulate(ends)
    for i in (np.flatnonzero(starts[1:] < reach[:-1]) + 1).tolist():
        # The first of those before that reach so far; `reach` is sorted.
        other = int(np.searchsorted(reach, starts[i], side="right"))
        end = min(int(ends[i]), int(reach[i - 1]))
        findings.add(
            Invariant.ONE_OWNER,
            f"pages [{starts[i]}, {end}) belong to {_owner(rows[other], disk)} "
            f"and to {_owner(rows[i], disk)}",
        )
    first = np.ones(len(rows), bool)
    first[1:] = starts[1:] > reach[:-1]
    last = np.append(first[1:], True)
    return UsedPages(starts[first], reach[last])


def check_groups(
    nvram: ReadableImage,
    disk: DiskSuperblock,
    state: DiskState | None,
    used: UsedPages | None,
    findings: Findings,
    progress: Callable[[int, int], None],
) -> None:
    """I26 to I28, for all groups. used: None if it is not known who holds what."""
    nr_free_pages: int | None = 0
    for start in range(0, disk.nr_groups, _GROUPS_PER_PAGE):
        page = nvram.load((disk.gdt_block << PAGE_SHIFT) + start * GROUP_DESC.size_bytes, PAGE_SIZE)
        nr_here = min(disk.nr_groups - start, _GROUPS_PER_PAGE)
        for i in range(nr_here):
            record = page[i * GROUP_DESC.size_bytes : (i + 1) * GROUP_DESC.size_bytes]
            group = start + i
            check_reserved(np.frombuffer(record, GROUP_DESC.dtype), f"group {group}", findings)
            found = check_group(nvram, disk, group, record, findings)
            if found is None:
                nr_free_pages = None  # then the sum says nothing
                continue
            desc, marked = found
            if nr_free_pages is not None:
                nr_free_pages += desc.nr_free_pages
            if marked is not None or used is None or used.any_in_group(group):
                check_bitmap(disk, group, marked, used, findings)
            nr_clear = NR_GROUP_PAGES if marked is None else int(np.count_nonzero(~marked))
            if desc.nr_free_pages != nr_clear:
                findings.add(
                    Invariant.FREE_COUNTS,
                    f"group {group}: {desc.nr_free_pages} free pages, its bitmap has {nr_clear}",
                )
        check_zero(page[nr_here * GROUP_DESC.size_bytes :], "the descriptors' last page", findings)
        progress(start + nr_here, disk.nr_groups)
    if state is not None and nr_free_pages is not None:
        check_free_counts(state, nr_free_pages, findings)


def check_group(
    nvram: ReadableImage, disk: DiskSuperblock, group: int, record: bytes, findings: Findings
) -> tuple[DiskGroupDesc, NDArray[np.bool_] | None] | None:
    """I26: return the descriptor and which pages its bitmap marks, None if all are free.

    Returns None alone for a descriptor or bitmap that cannot be believed.
    """
    try:
        desc = decode_group_desc(record, disk.seed, group)
    except FormatError as exc:
        findings.add(Invariant.GROUPS, str(exc))
        return None
    if desc.group != group or desc.flags & ~int(GroupFlags.BITMAP_UNINIT):
        findings.add(
            Invariant.GROUPS,
            f"group {group}: its place holds group {desc.group}, flags {desc.flags:#x}",
        )
        return None
    if desc.flags & GroupFlags.BITMAP_UNINIT:
        if desc.bitmap_checksum:
            findings.add(Invariant.GROUPS, f"group {group}: a checksum, but no bitmap")
        return desc, None
    bitmap = nvram.load((disk.bitmap_block + group) << PAGE_SHIFT, PAGE_SIZE)
    if (checksum := bitmap_checksum(bitmap, disk.seed)) != desc.bitmap_checksum:
        findings.add(
            Invariant.GROUPS,
            f"group {group}: damaged bitmap in page {disk.bitmap_block + group}: its checksum "
            f"says {desc.bitmap_checksum:#010x}, its bytes {checksum:#010x}",
        )
        return None
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return desc, bits.view(bool)


def check_bitmap(
    disk: DiskSuperblock,
    group: int,
    marked: NDArray[np.bool_] | None,
    used: UsedPages | None,
    findings: Findings,
) -> None:
    """I27, for one group. marked: None if its descriptor says that all its pages are free."""
    first = group << GROUP_SHIFT
    nr_pages = min(disk.nr_pages - first, NR_GROUP_PAGES)
    if marked is None:
        marked = np.zeros(NR_GROUP_PAGES, bool)
    elif not marked[nr_pages:].all():
        findings.add(
            Invariant.BITMAPS,
            f"group {group}: pages past the end of the image are not marked in use",
        )
    if used is None:
        return
    held, marked = used.of_group(group)[:nr_pages], marked[:nr_pages]
    for wrong, text in (
        (marked & ~held, "are marked in use, but nobody holds them"),
        (held & ~marked, "are held, but marked free"),
    ):
        for start, end in _runs(wrong):
            findings.add(Invariant.BITMAPS, f"pages [{first + start}, {first + end}) {text}")


def check_free_counts(state: DiskState, nr_free_pages: int, findings: Findings) -> None:
    """I28, for the sum: the state's free pages are those of all groups."""
    if state.nr_free_pages != nr_free_pages:
        findings.add(
            Invariant.FREE_COUNTS,
            f"the state: {state.nr_free_pages} free pages, the groups have {nr_free_pages}",
        )


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the runs of True as [start, end) pairs."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _owner(claim: np.void, disk: DiskSuperblock) -> str:
    if claim["kind"] == _KIND_AREA:
        return metadata_areas(disk)[int(claim["ino"])].name
    holder = f"inode {claim['ino']}" if claim["ino"] else "the inode file"
    kind = {KIND_NODE: "extent nodes of ", KIND_XATTR: "attributes of "}.get(int(claim["kind"]), "")
    return kind + holder
