"""fsck of inodes: the inode file, every record in it, and what one inode holds by itself.

The inode file is read a MiB at a time, and numpy looks at all records of such a part at once. Of
inodes in use and free ones a few fields are remembered (`InodeTable`), of all others nothing.
"""

import stat
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import FormatError
from xipfs.fs.fsck.extents import BLOCK_FIRST, check_extents, collect_extents
from xipfs.fs.fsck.overlay import ReadableImage
from xipfs.fs.fsck.pages import (
    CLAIM_DTYPE,
    KIND_DATA,
    KIND_XATTR,
    PageClaims,
)
from xipfs.fs.fsck.report import Findings, Invariant
from xipfs.fs.namei import PATH_MAX
from xipfs.ondisk.extent import EXTENT_DTYPE, NR_INLINE_EXTENTS
from xipfs.ondisk.inode import (
    FILE_SIZE_BYTES_MAX,
    INO_FIRST,
    INO_INODE_FILE,
    INO_MAX,
    INO_ROOT,
    INODE,
    INODES_PER_PAGE,
    PAYLOAD_SIZE_BYTES,
    InodeFlags,
    decode_inode,
)
from xipfs.ondisk.record import checksum
from xipfs.ondisk.superblock import (
    STATE_BLOCK,
    STATE_INODE_OFFSET,
    Compat,
    DiskState,
    DiskSuperblock,
)
from xipfs.ondisk.xattr import (
    NR_XATTR_PAGES_MAX,
    XATTR_VALUE_SIZE_BYTES_MAX,
    decode_xattrs,
    encode_xattrs,
)
from xipfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

__all__ = [
    "InodeTable",
    "check_acl_feature",
    "check_inode_fields",
    "check_inode_file",
    "check_inode_records",
    "check_link_targets",
    "check_lists",
    "check_nr_inodes",
    "check_nr_pages",
    "check_tails",
    "check_unused_payload",
    "check_xattrs",
    "scan_inodes",
]

_CHUNK_PAGES = 256

_TABLE_FIELDS = (
    "ino",
    "generation",
    "flags",
    "mode",
    "nlink",
    "size_bytes",
    "nr_entries",
    "parent_ino",
    "next_ino",
)
_TABLE_DTYPE = np.dtype([(name, np.int64) for name in _TABLE_FIELDS])
_FREE_DTYPE = np.dtype([("ino", np.int64), ("next_ino", np.int64)])

_ACL_NAMES = (b"system.posix_acl_access", b"system.posix_acl_default")
_TYPES = (
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
)
_FLAGS_KNOWN = int(sum(InodeFlags))
_BODY_OFFSET = 8
"""Where a record goes on behind its magic and checksum."""


class InodeTable:
    """What is remembered of all inodes.

    rows: those in use, fields of their records as int64, sorted by ino; free: ino and next_ino of
    the free ones, sorted by ino; nr_damaged: records below ino_end that could not be read.
    """

    __slots__ = ("_inos", "free", "nr_damaged", "rows")

    def __init__(self, rows: NDArray[np.void], free: NDArray[np.void]) -> None:
        self.rows = rows
        self._inos = rows["ino"].copy()  # in one piece: searchsorted would copy it at each call
        self.free = free
        self.nr_damaged = 0

    @property
    def is_dir(self) -> NDArray[np.bool_]:
        """Which rows are directories."""
        is_dir: NDArray[np.bool_] = (self.rows["mode"] & 0o170000) == stat.S_IFDIR
        return is_dir

    def find(self, inos: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each of *inos*, -1 for one that is not in use."""
        if not len(self.rows):
            return np.full(len(inos), -1)
        index = np.minimum(np.searchsorted(self._inos, inos), len(self._inos) - 1)
        found: NDArray[np.int64] = np.where(self._inos[index] == inos, index, -1)
        return found


def check_inode_file(
    nvram: ReadableImage,
    disk: DiskSuperblock,
    state: DiskState | None,
    claims: PageClaims,
    findings: Findings,
) -> list[tuple[int, int, int]] | None:
    """I8: return the extents of the inode file as (pgoff, block, nr_pages), None without one."""
    offset = (STATE_BLOCK << PAGE_SHIFT) + STATE_INODE_OFFSET
    data = nvram.load(offset, INODE.size_bytes)
    try:
        inode = decode_inode(data, disk.seed, INO_INODE_FILE)
    except FormatError as exc:
        findings.add(Invariant.INODE_FILE, str(exc))
        return None
    allowed = {"magic", "checksum", "size_bytes", "nr_pages", "payload", "generation"}
    allowed |= {"extent_depth", "nr_extents"}
    record = np.frombuffer(data, INODE.dtype)
    odd = [name for name in INODE.dtype.names or () if name not in allowed and record[name].any()]
    if odd:
        findings.add(Invariant.INODE_FILE, f"the inode file has {', '.join(odd)}")
    rows, sound = _check_what_inodes_hold(nvram, disk, record, claims, findings)
    check_unused_payload(record, findings)
    if not sound.all():
        findings.add(Invariant.INODE_FILE, "the inode file: some of its pages cannot be found")
        return None
    usable = rows[rows["kind"] == KIND_DATA]
    runs = []
    end, first_hole = 0, None
    for pgoff, block, nr_pages in usable[["pgoff", "block", "nr_pages"]].tolist():
        if pgoff < end or pgoff > INO_MAX // INODES_PER_PAGE:
            continue  # overlaps, or is behind the last inode there can be: I11 has said so
        if pgoff > end and first_hole is None:
            first_hole = end
        runs.append((pgoff, block, nr_pages))
        end = pgoff + nr_pages
    if (nr_pages := sum(nr for _, _, nr in runs)) > disk.nr_pages:
        # To read the same pages again and again could take any time.
        findings.add(
            Invariant.INODE_FILE,
            f"the inode file has {nr_pages} pages, the image {disk.nr_pages}: its extents overlap",
        )
        return None
    nr_sound_pages = min(end if first_hole is None else first_hole, inode.size_bytes >> PAGE_SHIFT)
    nr_needed_pages = -(-state.ino_end // INODES_PER_PAGE) if state else 1
    if nr_sound_pages < nr_needed_pages:
        findings.add(
            Invariant.INODE_FILE,
            f"the inode file ends, or has a hole, at page {nr_sound_pages}: "
            f"ino_end asks for {nr_needed_pages} pages",
        )
    return runs


def scan_inodes(
    nvram: ReadableImage,
    disk: DiskSuperblock,
    state: DiskState | None,
    inode_file: list[tuple[int, int, int]],
    claims: PageClaims,
    findings: Findings,
    progress: Callable[[int, int], None],
) -> InodeTable:
    """I9 to I13, I15, I16, I30, I31: look at all inodes, claim their pages, remember them."""
    tables, frees = [np.empty(0, _TABLE_DTYPE)], [np.empty(0, _FREE_DTYPE)]
    nr_pages = sum(nr for _, _, nr in inode_file)
    nr_done_pages = 0
    has_acl = False
    for pgoff, data in _chunks(nvram, inode_file):
        records = np.frombuffer(data, INODE.dtype)
        records = records[check_inode_records(disk, state, records, data, pgoff, findings)]
        used = records[records["mode"] != 0]
        free = records[records["mode"] == 0]
        check_inode_fields(used, free, findings)
        check_unused_payload(used, findings)
        rows, _ = _check_what_inodes_hold(nvram, disk, used, claims, findings)
        has_acl |= check_xattrs(nvram, disk, used, claims, findings)
        check_link_targets(nvram, used, rows, findings)
        check_tails(nvram, used, rows, findings)
        tables.append(_columns(used, _TABLE_DTYPE))
        frees.append(_columns(free, _FREE_DTYPE))
        nr_done_pages += len(data) >> PAGE_SHIFT
        progress(nr_done_pages, nr_pages)
    check_acl_feature(disk, has_acl, findings)
    table = InodeTable(np.concatenate(tables), np.concatenate(frees))
    if state is not None:
        nr_expected = state.ino_end - INO_FIRST + 1  # the root stands below INO_FIRST
        table.nr_damaged = nr_expected - len(table.rows) - len(table.free)
    return table


def check_inode_records(
    disk: DiskSuperblock,
    state: DiskState | None,
    records: NDArray[np.void],
    data: bytes,
    pgoff: int,
    findings: Findings,
) -> NDArray[np.bool_]:
    """I9: return which records can be believed."""
    inos = np.arange(len(records)) + pgoff * INODES_PER_PAGE
    written = np.frombuffer(data, np.uint64).reshape(len(records), -1).any(axis=1)
    expected = (inos == INO_ROOT) | (inos >= INO_FIRST)
    if state is not None:
        expected &= inos < state.ino_end
        missing = expected & ~written
        findings.add_inodes(Invariant.INODE_RECORD, missing, inos, "all zero, below ino_end")
    findings.add_inodes(
        Invariant.INODE_RECORD,
        written & ~expected,
        inos,
        "reserved, or not below ino_end: not zero",
    )
    sound: NDArray[np.bool_] = written & expected
    checksums = np.zeros(len(records), np.uint32)
    view = memoryview(data)
    for i in np.flatnonzero(sound).tolist():
        start = i * INODE.size_bytes
        checksums[i] = checksum(view[start : start + INODE.size_bytes], disk.seed)
    sealed = (records["magic"] == INODE.magic) & (records["checksum"] == checksums)
    for i in np.flatnonzero(sound & ~sealed).tolist():
        findings.add(
            Invariant.INODE_RECORD,
            f"inode {inos[i]}: damaged: its checksum says {records['checksum'][i]:#010x}, "
            f"its bytes {checksums[i]:#010x}",
            int(inos[i]),
        )
    sound &= sealed
    for i in np.flatnonzero(sound & (records["ino"] != inos)).tolist():
        findings.add(
            Invariant.INODE_RECORD,
            f"inode {inos[i]}: its place holds inode {records['ino'][i]}",
            int(inos[i]),
        )
    sound &= records["ino"] == inos
    return sound


def check_inode_fields(used: NDArray[np.void], free: NDArray[np.void], findings: Findings) -> None:
    """I10: what one record says by itself makes sense."""
    kind = used["mode"] & 0o170000
    is_dir, is_link = kind == stat.S_IFDIR, kind == stat.S_IFLNK
    is_device = (kind == stat.S_IFCHR) | (kind == stat.S_IFBLK)
    is_special = is_device | (kind == stat.S_IFIFO) | (kind == stat.S_IFSOCK)
    is_inline = (used["flags"] & InodeFlags.INLINE) != 0
    is_orphan = (used["flags"] & InodeFlags.ORPHAN) != 0
    has_extents = (used["nr_extents"] != 0) | (used["extent_depth"] != 0)
    size_bytes = used["size_bytes"]
    has_xattrs = used["xattr_block"] != 0
    for wrong, text in (
        (~np.isin(kind, _TYPES) | (used["mode"] > 0o177777), "a mode of no type that Linux has"),
        ((used["flags"] | _FLAGS_KNOWN) != _FLAGS_KNOWN, "unknown flags"),
        (size_bytes > FILE_SIZE_BYTES_MAX, "larger than a file can be"),
        (used["nr_extents"] > NR_INLINE_EXTENTS, "more extents than fit"),
        (is_special & (has_extents | (size_bytes != 0)), "a special file with contents"),
        (~is_device & (used["rdev"] != 0), "a device number, but no device"),
        (
            ~is_dir & ((used["nr_entries"] != 0) | (used["parent_ino"] != 0)),
            "nr_entries or parent_ino, but no directory",
        ),
        (
            is_link & ((size_bytes == 0) | (size_bytes >= PATH_MAX)),
            f"a symbolic link must have 1 to {PATH_MAX - 1} bytes",
        ),
        (is_inline & ~is_link, "inline bytes, but no symbolic link"),
        (is_inline & has_extents, "inline bytes and extents"),
        (is_inline & (size_bytes > PAYLOAD_SIZE_BYTES), "more inline bytes than fit"),
        (
            (has_xattrs != (used["nr_xattr_pages"] != 0))
            | (used["nr_xattr_pages"] > NR_XATTR_PAGES_MAX),
            "an impossible number of pages of attributes",
        ),
        (~is_orphan & (used["nlink"] == 0), "nlink 0, but no orphan"),
        (
            is_orphan & (used["nlink"] != 0) & (kind != stat.S_IFREG),
            "an orphan with links that is no file to be cut",
        ),
        (~is_orphan & (used["next_ino"] != 0), "next_ino, but in no list"),
    ):
        findings.add_inodes(Invariant.INODE_FIELDS, wrong, used["ino"], text)
    rest = free.copy()
    for name in ("magic", "checksum", "ino", "generation", "next_ino"):
        rest[name] = 0
    nonzero = rest.view(np.uint8).reshape(len(rest), INODE.size_bytes) != 0
    leftover: NDArray[np.bool_] = nonzero.any(axis=1)
    findings.add_inodes(Invariant.INODE_FIELDS, leftover, free["ino"], "free, but not all zero")


def check_link_targets(
    nvram: ReadableImage, records: NDArray[np.void], rows: NDArray[np.void], findings: Findings
) -> None:
    """I10, for symbolic links: no NUL in what they point to, which a hole would be full of.

    rows: EXTENT_ROW_DTYPE, the extents of *records*.
    """
    is_link = (records["mode"] & 0o170000) == stat.S_IFLNK
    readable = (records["size_bytes"] > 0) & (records["size_bytes"] < PATH_MAX)
    for i in np.flatnonzero(is_link & readable).tolist():
        size_bytes = int(records["size_bytes"][i])
        if records["flags"][i] & InodeFlags.INLINE:
            target = bytes(records["payload"][i])[:size_bytes]
        else:
            first = int(np.searchsorted(rows["index"], i))
            row = rows[first] if first < len(rows) else None
            target = bytes(size_bytes)
            if row is not None and (row["index"], row["pgoff"], row["kind"]) == (i, 0, KIND_DATA):
                target = nvram.load(int(row["block"]) << PAGE_SHIFT, size_bytes)
        if b"\0" in target:
            ino = int(records["ino"][i])
            findings.add(Invariant.INODE_FIELDS, f"inode {ino}: a symbolic link to a NUL", ino)


def check_unused_payload(records: NDArray[np.void], findings: Findings) -> None:
    """I30, for inodes: their payload is zero behind what is used."""
    inline = (records["flags"] & InodeFlags.INLINE) != 0
    used_bytes = np.where(
        inline, records["size_bytes"], records["nr_extents"] * np.uint64(EXTENT_DTYPE.itemsize)
    )
    payloads = np.frombuffer(np.ascontiguousarray(records["payload"]).tobytes(), np.uint8).reshape(
        -1, PAYLOAD_SIZE_BYTES
    )
    unused = np.arange(PAYLOAD_SIZE_BYTES, dtype=np.uint64) >= used_bytes[:, None]
    wrong = ((payloads != 0) & unused).any(axis=1)
    findings.add_inodes(
        Invariant.RESERVED, wrong, records["ino"], "its payload is not zero behind its end"
    )


def check_nr_pages(
    records: NDArray[np.void], nr_pages: NDArray[np.int64], findings: Findings
) -> None:
    """I13: records say as many pages as were found, int64, -1 where that is not known."""
    wrong = (nr_pages >= 0) & (records["nr_pages"] != nr_pages.astype(np.uint64))
    for i in np.flatnonzero(wrong).tolist():
        findings.add(
            Invariant.NR_PAGES,
            f"inode {records['ino'][i]}: {records['nr_pages'][i]} pages, it holds {nr_pages[i]}",
            int(records["ino"][i]),
        )


def check_xattrs(
    nvram: ReadableImage,
    disk: DiskSuperblock,
    records: NDArray[np.void],
    claims: PageClaims,
    findings: Findings,
) -> bool:
    """I15: read all attributes; return whether there are ACLs among them."""
    has_acl = False
    blocks, nr_pages = records["xattr_block"], records["nr_xattr_pages"]
    readable = (nr_pages > 0) & (nr_pages <= NR_XATTR_PAGES_MAX)
    in_image = (blocks >= BLOCK_FIRST) & (blocks < disk.nr_pages)
    in_image &= blocks + nr_pages.astype(np.uint64) < disk.nr_pages
    findings.add_inodes(
        Invariant.XATTRS, readable & ~in_image, records["ino"], "attributes outside of the image"
    )
    mine = np.flatnonzero(readable & in_image)
    new_claims = np.zeros(len(mine), CLAIM_DTYPE)
    new_claims["ino"] = records["ino"][mine]
    new_claims["block"] = blocks[mine]
    new_claims["nr_pages"] = nr_pages[mine]
    new_claims["kind"] = KIND_XATTR
    claims.add(new_claims)
    for i in mine.tolist():
        ino, generation = int(records["ino"][i]), int(records["generation"][i])
        run = nvram.load(int(blocks[i]) << PAGE_SHIFT, int(nr_pages[i]) << PAGE_SHIFT)
        try:
            xattrs = decode_xattrs(run, disk.seed, ino, generation)
        except FormatError as exc:
            findings.add(Invariant.XATTRS, str(exc), ino)
            continue
        if not xattrs or any(
            b"\0" in name or len(value) > XATTR_VALUE_SIZE_BYTES_MAX
            for name, value in xattrs.items()
        ):
            text = f"inode {ino}: attributes none, too long, or with a NUL"
            findings.add(Invariant.XATTRS, text, ino)
            continue
        has_acl |= any(name in xattrs for name in _ACL_NAMES)
        # Only one run can hold these attributes with zeros in all gaps: that which we would write.
        expected = encode_xattrs(xattrs, disk.seed, ino, generation).ljust(len(run), b"\0")
        if run[_BODY_OFFSET:] != expected[_BODY_OFFSET:]:
            findings.add(
                Invariant.RESERVED,
                f"inode {ino}: bytes between or behind its attributes are not zero",
                ino,
            )
    return has_acl


def check_acl_feature(disk: DiskSuperblock, has_acl: bool, findings: Findings) -> None:
    """I16: a mount asks the kernel to enforce ACLs only if the superblock says there are any."""
    if has_acl and not disk.compat & Compat.ACL:
        findings.add(Invariant.ACL_FEATURE, "some inode has an ACL, but the feature ACL is off")


def check_tails(
    nvram: ReadableImage, records: NDArray[np.void], rows: NDArray[np.void], findings: Findings
) -> None:
    """I31: a map of a file shows its last page whole, so that is zero behind size_bytes."""
    size_bytes = np.minimum(records["size_bytes"], FILE_SIZE_BYTES_MAX).astype(np.int64)
    size_bytes = size_bytes[rows["index"]]
    last_page = size_bytes >> PAGE_SHIFT
    holds_tail = (
        (size_bytes & PAGE_MASK != 0)
        & (rows["pgoff"] <= last_page)
        & (last_page < rows["pgoff"] + rows["nr_pages"])
        & (rows["kind"] == KIND_DATA)
    )
    blocks = rows["block"] + last_page - rows["pgoff"]
    for i in np.flatnonzero(holds_tail).tolist():
        start = int(size_bytes[i]) & PAGE_MASK
        tail = nvram.load((int(blocks[i]) << PAGE_SHIFT) + start, PAGE_SIZE - start)
        if tail.count(0) != len(tail):
            ino = int(records["ino"][rows["index"][i]])
            text = f"inode {ino}: page {blocks[i]} is not zero from byte {start} on"
            findings.add(Invariant.TAILS, text, ino)


def check_lists(state: DiskState, table: InodeTable, findings: Findings) -> None:
    """I25: both lists hold all that they should, once, and end."""
    orphans = table.rows[(table.rows["flags"] & int(InodeFlags.ORPHAN)) != 0]
    for name, head, members in (
        ("free list", state.free_ino_head, table.free),
        ("orphan list", state.orphan_ino_head, orphans),
    ):
        next_ino = dict(members[["ino", "next_ino"]].tolist())
        ino = int(head)
        while ino:
            following = next_ino.pop(ino, None)
            if following is None:
                findings.add(
                    Invariant.LISTS, f"the {name} comes to inode {ino}, again or for nothing"
                )
                break
            ino = following
        for ino in next_ino:
            findings.add(Invariant.LISTS, f"inode {ino}: not on the {name}")


def check_nr_inodes(state: DiskState, table: InodeTable, findings: Findings) -> None:
    """I29: the state's nr_inodes are those in use."""
    if state.nr_inodes != len(table.rows):
        findings.add(
            Invariant.NR_INODES,
            f"the state: {state.nr_inodes} inodes in use, {len(table.rows)} were found",
        )


def _check_what_inodes_hold(
    nvram: ReadableImage,
    disk: DiskSuperblock,
    records: NDArray[np.void],
    claims: PageClaims,
    findings: Findings,
) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """I11 to I13: check and claim extents and nodes.

    Returns the extents that lie in the image (EXTENT_ROW_DTYPE), and of which *records* these are
    all.
    """
    rows, nodes, sound = collect_extents(nvram, disk, records, findings)
    in_image = check_extents(disk, records, rows, findings)
    nr_pages = records["nr_xattr_pages"].astype(np.int64)
    for found in (rows, nodes):
        np.add.at(nr_pages, found["index"], found["nr_pages"])
    nr_pages[~sound] = -1
    check_nr_pages(records, nr_pages, findings)
    sound[rows["index"][~in_image]] = False
    rows = rows[in_image]
    for found in (rows, nodes):
        new_claims = np.empty(len(found), CLAIM_DTYPE)
        new_claims["ino"] = records["ino"][found["index"]]
        for name in ("pgoff", "block", "nr_pages", "kind"):
            new_claims[name] = found[name]
        claims.add(new_claims)
    return rows, sound


def _chunks(
    nvram: ReadableImage, inode_file: list[tuple[int, int, int]]
) -> Iterator[tuple[int, bytes]]:
    """Yield (pgoff, bytes) of the inode file, about a MiB at a time."""
    for pgoff, block, nr_pages in inode_file:
        for start in range(0, nr_pages, _CHUNK_PAGES):
            nr_here = min(nr_pages - start, _CHUNK_PAGES)
            yield (
                pgoff + start,
                nvram.load((block + start) << PAGE_SHIFT, nr_here << PAGE_SHIFT),
            )


def _columns(records: NDArray[np.void], dtype: np.dtype[np.void]) -> NDArray[np.void]:
    columns = np.empty(len(records), dtype)
    for name in dtype.names or ():
        columns[name] = records[name]
    return columns
