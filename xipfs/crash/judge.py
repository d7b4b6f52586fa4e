"""The judge of xipfs: recovery, fsck, what the tree is, and life afterwards.

    mounted = judge.recover(nvram)         what mount(8) does: replay, orphans, CLEAN taken away
    outcome = judge.examine(mounted)       P7 to P10 of docs/CRASH.md; the tree is for the oracle

The first fsck looks at a mounted image, so that it finds what recovery made and no later
transaction has touched; the second one at an image that was used and unmounted.
"""

import stat

import numpy as np

from xipfs.crash.explorer import Outcome
from xipfs.crash.operations import parse_operations
from xipfs.crash.player import Clock, Player
from xipfs.crash.snapshot import Node, Tree, take_snapshot
from xipfs.errors import BugError, XipfsError
from xipfs.fs.fsck.check import ImageCheck
from xipfs.fs.fsck.report import Finding, Invariant
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.superblock import DiskSuperblock
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT

__all__ = ["FilesystemJudge"]

_SIZE_BYTES_MAX = 1 << 24
_RECOVERY_NS = 3_000_000_000
"""What the time is when a crashed image is mounted: later than in every workload."""

_USES = parse_operations(
    "mkdir /.use 755; create /.use/a 644; write /.use/a 0 5000; rename /.use/a /.use/b; "
    "fsync /.use/b"
)

_MOUNTED = Finding(Invariant.STATE, "the state: not cleanly unmounted")


class FilesystemJudge:
    """See `crash.explorer.Judge`. disk: of the images that are judged."""

    # Trees are kept for as long as the judge: equal nodes, with their contents, once.
    __slots__ = ("_bitmap_offset", "_journal", "_known", "_nr_pages")

    def __init__(self, disk: DiskSuperblock) -> None:
        end = disk.journal_block + disk.nr_journal_pages
        self._journal = range(disk.journal_block, end)
        self._bitmap_offset = disk.bitmap_block << PAGE_SHIFT
        self._nr_pages = disk.nr_pages
        self._known: dict[Node, Node] = {}

    def recover(self, nvram: NvramDevice) -> SuperBlock:
        """Mount the image. Raises: XipfsError, BugError."""
        return SuperBlock.mount(nvram, writable=True, clock=Clock(_RECOVERY_NS))

    def unread_pages(self, mounted: SuperBlock) -> set[int]:
        """Return the journal's pages, and those that are free."""
        bitmap = mounted.nvram.load(self._bitmap_offset, -(-self._nr_pages // 8))
        free = np.flatnonzero(
            np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little") == 0
        )
        return {*free.tolist(), *self._journal}

    def examine(self, mounted: SuperBlock) -> Outcome:
        """Look at it, check it, use it, unmount it and check it again."""
        nvram = mounted.nvram
        try:
            tree = take_snapshot(mounted, lambda inode: mounted.read_all(inode, _SIZE_BYTES_MAX))
        except (XipfsError, BugError) as exc:
            return Outcome(None, (f"reading the tree: {exc}",))
        tree = {path: self._known.setdefault(node, node) for path, node in tree.items()}
        problems = [f"fsck after recovery: {text}" for text in _check(nvram, is_mounted=True)]
        if ino := mounted.state.orphan_ino_head:
            problems.append(f"recovery left inode {ino} an orphan")
        if not problems:
            try:
                _use(mounted, tree)
            except (XipfsError, BugError) as exc:
                problems.append(f"use after recovery: {exc}")
            else:
                found = _check(nvram, is_mounted=False)
                problems += [f"fsck after use: {text}" for text in found]
        return Outcome(tree, tuple(problems))

    def abandon(self, mounted: SuperBlock) -> None:
        """Let go of it, without unmounting."""
        mounted.writable = False


def _use(mounted: SuperBlock, tree: Tree) -> None:
    """Make, write, rename and remove files, also those that were there, and unmount.

    Raises: XipfsError, BugError for whatever does not work.
    """
    clock = mounted.clock
    assert isinstance(clock, Clock)
    player = Player(mounted, clock)
    for number, operation in enumerate(_USES):
        player.perform(number, operation)
    kinds = {stat.S_IFMT(node.mode): path for path, node in sorted(tree.items()) if path != "/"}
    file = kinds.get(stat.S_IFREG)
    if file is not None:
        [append, unlink] = parse_operations(f"append {file} 5000; unlink {file}")
        player.perform(len(_USES), append)
        player.perform(len(_USES) + 1, unlink)
    player.close()


def _check(nvram: NvramDevice, *, is_mounted: bool) -> list[str]:
    check = ImageCheck(nvram, lambda _: None)
    try:
        check.run()
    except XipfsError as exc:
        return [str(exc)]
    report = check.report()
    findings = [f for f in report.findings if not (is_mounted and f[:2] == _MOUNTED[:2])]
    return [*map(str, findings), *report.unchecked]
