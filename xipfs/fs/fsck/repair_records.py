"""Repair of inodes whose records are damaged: kept, made from their pages, or given up."""

import stat

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import FormatError
from xipfs.fs.fsck.extents import BLOCK_FIRST, check_extents, collect_extents
from xipfs.fs.fsck.inodes import (
    check_inode_fields,
    check_link_targets,
    check_nr_pages,
    check_unused_payload,
    check_xattrs,
)
from xipfs.fs.fsck.pages import KIND_DATA, PageClaims, check_group
from xipfs.fs.fsck.repair_extents import Extent, merged
from xipfs.fs.fsck.repairer import InodeRecord, Repairer, is_directory, is_sealed
from xipfs.fs.fsck.report import Findings, Invariant
from xipfs.ondisk.dentry import DIR_PAGE, decode_dir_page
from xipfs.ondisk.group import GROUP_DESC, GROUP_SHIFT
from xipfs.ondisk.inode import (
    INO_FIRST,
    INO_ROOT,
    INODE,
    InodeFlags,
)
from xipfs.units import PAGE_SHIFT, Ino, bytes_to_pages

__all__ = ["has_root_page", "repair_inode_records"]


def repair_inode_records(repairer: Repairer) -> None:
    """I9: keep a damaged inode of which all else holds, give up the others.

    A directory that is given up comes back if pages of its are found that nobody holds: they say
    whose they are. An inode behind ino_end that is sound raises ino_end.
    """
    disk, state = repairer.disk, repairer.state()
    ino_end = state.ino_end
    lost: list[int] = []
    for ino in repairer.inos(Invariant.INODE_RECORD):
        record = repairer.record(ino)
        if ino >= state.ino_end and is_sealed(record, disk, ino):
            ino_end = max(ino_end, Ino(ino + 1))
            repairer.did(Invariant.INODE_RECORD, f"inode {ino}: sound, inodes end behind it now")
        elif ino >= state.ino_end or (ino < INO_FIRST and ino != INO_ROOT):
            repairer.clear_record(ino)
            repairer.did(Invariant.INODE_RECORD, f"inode {ino}: made zero, as none can be there")
        elif _is_plausible(repairer, ino, record):
            record["mode"] &= np.uint32(0xFFFF & ~(stat.S_ISUID | stat.S_ISGID))
            repairer.put_record(ino, record)
            repairer.did(
                Invariant.INODE_RECORD,
                f"inode {ino}: kept and sealed again, as all else it says holds; "
                f"setuid and setgid are off",
            )
        else:
            lost.append(ino)
    if ino_end != state.ino_end:
        repairer.put_state(state._replace(ino_end=ino_end))
    pages = _find_directory_pages(repairer, set(lost)) if lost else {}
    for ino in lost:
        if ino in pages:
            _put_directory(repairer, ino, *pages[ino])
            repairer.did(
                Invariant.INODE_RECORD,
                f"inode {ino}: a directory again, from {len(pages[ino][1])} pages of it",
            )
        else:
            repairer.put_free_record(ino)
            repairer.did(Invariant.INODE_RECORD, f"inode {ino}: damaged, free now")


def _is_plausible(repairer: Repairer, ino: int, record: InodeRecord) -> bool:
    """Could this be the inode, but for its checksum?

    It must hold pages that nobody else does, and end where its last one does.
    """
    disk, image = repairer.disk, repairer.image
    if not record["mode"][0] or record["ino"][0] != ino:
        return False
    findings = Findings(None)
    check_inode_fields(record, record[:0], findings)
    check_unused_payload(record, findings)
    if findings.found:
        return False
    rows, nodes, sound = collect_extents(image, disk, record, findings)
    check_extents(disk, record, rows, findings)
    nr_pages = int(rows["nr_pages"].sum()) + len(nodes) + int(record["nr_xattr_pages"][0])
    check_nr_pages(record, np.array([nr_pages]), findings)
    if findings.found or not sound.all():
        return False
    is_inline = bool(record["flags"][0] & InodeFlags.INLINE)
    written = rows[rows["kind"] == KIND_DATA]
    end = int((written["pgoff"] + written["nr_pages"]).max(initial=0))
    if not is_inline and bytes_to_pages(int(record["size_bytes"][0])) != end:
        return False
    check_link_targets(image, record, rows, findings)
    check_xattrs(image, disk, record, PageClaims(disk), findings)
    runs = [*rows[["block", "nr_pages"]].tolist(), *nodes[["block", "nr_pages"]].tolist()]
    if record["nr_xattr_pages"][0]:
        runs.append((int(record["xattr_block"][0]), int(record["nr_xattr_pages"][0])))
    if findings.found or not all(_is_leaked(repairer, *run) for run in runs):
        return False
    return not is_directory(record) or has_root_page(repairer, record)


def _is_leaked(repairer: Repairer, block: int, nr_pages: int) -> bool:
    """Is every one of these pages marked in use, and held by nobody?"""
    end = block + nr_pages
    while block < end:
        group = block >> GROUP_SHIFT
        here = min(end, (group + 1) << GROUP_SHIFT)
        first = group << GROUP_SHIFT
        if not _leaked_pages(repairer, group)[block - first : here - first].all():
            return False
        block = here
    return True


def _leaked_pages(repairer: Repairer, group: int) -> NDArray[np.bool_]:
    """Return which pages of a group are marked in use and held by nobody; all, without a bitmap."""
    disk, used = repairer.disk, repairer.check.used
    offset = (disk.gdt_block << PAGE_SHIFT) + group * GROUP_DESC.size_bytes
    desc = repairer.image.load(offset, GROUP_DESC.size_bytes)
    found = check_group(repairer.image, disk, group, desc, Findings(None))
    nr_pages = min(disk.nr_pages - (group << GROUP_SHIFT), 1 << GROUP_SHIFT)
    leaked = np.arange(1 << GROUP_SHIFT) < nr_pages
    if used is not None:
        leaked &= ~used.of_group(group)
    if found is not None:
        leaked &= False if found[1] is None else found[1]
    return leaked


def has_root_page(repairer: Repairer, record: InodeRecord) -> bool:
    """Is the first page of the directory sealed as its own?"""
    entries, _ = repairer.extents(record)
    first = [block for pgoff, block, _, _ in entries.tolist() if pgoff == 0]
    if not first or not BLOCK_FIRST <= first[0] < repairer.disk.nr_pages - 1:
        return False
    try:
        page = decode_dir_page(repairer.load_page(first[0]), repairer.disk.seed, "")
    except FormatError:
        return False
    return bool(page.ino == record["ino"][0] and page.generation == record["generation"][0])


def _find_directory_pages(repairer: Repairer, inos: set[int]) -> dict[int, tuple[int, list[int]]]:
    """Search what nobody holds for pages of directories *inos*: {ino: (generation, blocks)}."""
    found: dict[int, dict[int, list[int]]] = {}
    for group in range(repairer.disk.nr_groups):
        first = group << GROUP_SHIFT
        for block in (first + np.flatnonzero(_leaked_pages(repairer, group))).tolist():
            data = repairer.load_page(block)
            if not data.startswith(DIR_PAGE.magic.to_bytes(4, "little")):
                continue
            try:
                page = decode_dir_page(data, repairer.disk.seed, "")
            except FormatError:
                continue
            if page.ino in inos:
                found.setdefault(page.ino, {}).setdefault(page.generation, []).append(block)
    return {
        ino: (max(generations), generations[max(generations)]) for ino, generations in found.items()
    }


def _put_directory(repairer: Repairer, ino: int, generation: int, blocks: list[int]) -> None:
    """Make *ino* a directory of these pages, in any order: I17 will put them in theirs."""
    record = np.zeros(1, INODE.dtype)
    record["ino"] = ino
    record["generation"] = generation
    record["mode"] = stat.S_IFDIR | (0o755 if ino == INO_ROOT else 0o700)
    record["nlink"] = 2
    record["size_bytes"] = len(blocks) << PAGE_SHIFT
    for name in ("atime_ns", "mtime_ns", "ctime_ns", "btime_ns"):
        record[name] = repairer.now_ns
    record["parent_ino"] = INO_ROOT
    extents: list[Extent] = [(pgoff, block, 1, 0) for pgoff, block in enumerate(blocks)]
    repairer.set_extents(record, merged(extents))
    repairer.put_record(ino, record)
