"""The oracle: which trees a crash may leave, by the promises of docs/CRASH.md.

    history = History(tree)                the tree that was mounted
    history.end(operation, tree, ino)      an operation returned, and this is the tree since
    complaints(found, history.allowed())   after a crash between operations
    complaints(found, history.allowed(operation, after, ino))      .. inside one

An operation on names or attributes is there as a whole or not at all, and for certain once it has
returned (P1, P2). What was written over bytes that a file had is in flight until fsync: each of
their words is as it was or as it is now, and so are the times (P4, P5). So for each file its
versions since the last fsync are kept, and a word must be that of one of them; words past the end
of all older ones have but one value, the new one (P3), and never that of another file (P6).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xipfs.crash.operations import Operation, shorten
from xipfs.crash.persistence import WORD_SIZE_BYTES
from xipfs.crash.snapshot import Node, Tree

__all__ = ["Expected", "History", "Version", "complaints"]

_NR_COMPLAINTS_MAX = 5

_WRITES = ("write", "append")


class Version(NamedTuple):
    """What a file was since its last fsync, and may be after a crash, in part."""

    content: bytes
    mtime_ns: int
    ctime_ns: int


Versions: TypeAlias = dict[int, tuple[Version, ...]]
"""Inode -> its older versions."""


class Expected(NamedTuple):
    """A tree that a crash may leave, and what its files may show of older versions."""

    tree: Tree
    versions: Versions


class History:
    """The tree now, and what of it is not durable yet."""

    __slots__ = ("_tree", "_versions")

    def __init__(self, tree: Tree, versions: Versions | None = None) -> None:
        self._tree = tree
        self._versions: Versions = versions or {}

    def end(self, operation: Operation, tree: Tree, ino: int, *, has_failed: bool = False) -> None:
        """Note that *operation* on inode *ino* has returned, and left *tree*."""
        if has_failed and operation.name not in _WRITES:
            return  # it has made nothing durable; a write may have got half-way
        old, new = _find(self._tree, ino), _find(tree, ino)
        versions = dict(self._versions)
        if old is not None and new is not None:
            older = versions.get(old.ino, ())
            if operation.name in _WRITES:
                older = (*older, Version(old.content, old.mtime_ns, old.ctime_ns))
                if new.size_bytes != old.size_bytes:
                    older = _with_times(older, new)
            elif operation.name == "fsync":
                older = ()
            elif operation.name == "truncate":
                cut = (v._replace(content=v.content[: new.size_bytes]) for v in older)
                older = _with_times(cut, new)
            elif new != old:  # a rename of a file to another name of its own changes nothing
                older = _with_times(older, new)
            versions[old.ino] = older
        inodes = {node.ino for node in tree.values()}
        self._versions = {ino: kept for ino, kept in versions.items() if kept and ino in inodes}
        self._tree = tree

    def allowed(
        self, operation: Operation | None = None, after: Tree | None = None, ino: int = 0
    ) -> list[Expected]:
        """Return what a crash may leave now.

        Or inside *operation* on inode *ino*, which would leave *after*.
        """
        now = Expected(self._tree, self._versions)
        if operation is None or after is None:
            return [now]
        if operation.name == "fsync":
            return [now]
        done = History(self._tree, self._versions)
        done.end(operation, after, ino)
        old, new = _find(self._tree, ino), _find(after, ino)
        if operation.name in _WRITES and old is not None and new is not None:
            # The bytes may be there before anything else tells of them.
            version = Version(new.content, old.mtime_ns, old.ctime_ns)
            older = (*self._versions.get(old.ino, ()), version)
            now = Expected(self._tree, {**self._versions, old.ino: older})
        return [now, Expected(after, done._versions)]


def _with_times(versions: Iterable[Version], node: Node) -> tuple[Version, ...]:
    """Return *versions* of a file whose times have become durable by a transaction."""
    return tuple(Version(v.content, node.mtime_ns, node.ctime_ns) for v in versions)


def complaints(found: Tree, allowed: Iterable[Expected]) -> list[str]:
    """Return what is wrong with *found*, nothing if it is one of *allowed*, else the least."""
    least: list[str] | None = None
    for expected in allowed:
        lines = _differences(found, expected)
        if not lines:
            return []
        if least is None or len(lines) < len(least):
            least = lines
    return [shorten(line) for line in (least or ["nothing is allowed here"])[:_NR_COMPLAINTS_MAX]]


def _differences(found: Tree, expected: Expected) -> list[str]:
    tree, versions = expected
    if found == tree:
        return []
    lines = [f"{path}: is gone" for path in sorted(tree.keys() - found.keys())]
    lines += [f"{path}: should not be there" for path in sorted(found.keys() - tree.keys())]
    for path in sorted(tree.keys() & found.keys()):
        is_, should = found[path], tree[path]
        if is_ == should:
            continue
        older = versions.get(should.ino, ())
        times = {(v.mtime_ns, v.ctime_ns) for v in older}
        if (is_.mtime_ns, is_.ctime_ns) in times:
            should = should._replace(mtime_ns=is_.mtime_ns, ctime_ns=is_.ctime_ns)
        lines += [
            f"{path}: {name} is {_shown(got)}, should be {_shown(wanted)}"
            for name, got, wanted in zip(Node._fields, is_, should, strict=True)
            if got != wanted and name not in ("content", "entries")
        ]
        contents = (should.content, *(v.content for v in older))
        if is_.content != should.content and (wrong := _wrong_byte(is_.content, contents)) >= 0:
            shown = _shown(is_.content[wrong : wrong + 8])
            lines.append(f"{path}: at byte {wrong} {shown}, which was never there")
    return lines


def _wrong_byte(found: bytes, contents: Sequence[bytes]) -> int:
    """Return where the first word of *found* is that none of *contents* has; -1: nowhere."""
    words = _words(found)
    known = np.zeros(len(words), bool)
    for content in contents:
        common = _words(content[: len(found)])
        known[: len(common)] |= words[: len(common)] == common
    # A word in which a file once ended is two: what was there, and what was added to it.
    for end in {len(content) for content in contents}:
        word = end // WORD_SIZE_BYTES
        if end % WORD_SIZE_BYTES and word < len(known):
            start, stop = word * WORD_SIZE_BYTES, (word + 1) * WORD_SIZE_BYTES
            known[word] |= any(found[start:end] == c[start:end] for c in contents) and any(
                found[end:stop] == c[end:stop] for c in contents if len(c) > end
            )
    return -1 if known.all() else int(np.argmin(known)) * WORD_SIZE_BYTES


def _words(content: bytes) -> NDArray[np.uint64]:
    """Return the aligned words of a file, the last one filled up with zeros."""
    nr_words = -(-len(content) // WORD_SIZE_BYTES)
    return np.frombuffer(content.ljust(nr_words * WORD_SIZE_BYTES, b"\0"), np.uint64)


def _find(tree: Tree, ino: int) -> Node | None:
    """Return inode *ino* by any of its names; its path may be that of another by now."""
    return next((node for node in tree.values() if node.ino == ino), None)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
