"""Random operations on names against a plain model, and every state that a crash in one leaves.

The model is a tree of plain objects that knows Linux's rules; it shares no line with the code.
"""

import errno
import random
import stat
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.kit.crash import StoreLog, recovered
from tests.kit.image import ImageKit
from tests.kit.operations import OPERATIONS, nr_examples
from tests.kit.volume import OWNER, Volume, read_tree
from xipfs.errors import XipfsError
from xipfs.fs.inode import Inode
from xipfs.fs.mkfs import mkfs
from xipfs.fs.namespace import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    link,
    mkdir,
    mknod,
    rename,
    rmdir,
    symlink,
    unlink,
)
from xipfs.fs.orphans import release_orphan
from xipfs.fs.source import walk_tree
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import INO_ROOT
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SIZE

NAMES = [b"a", b"b", b"c", b"d" * 255]


@dataclass(eq=False)
class Node:
    """A file or directory. names: of a directory."""

    is_dir: bool
    names: dict[bytes, "Node"] = field(default_factory=dict)
    ino: int = 0


class Model:
    """What names there should be. Each operation returns 0 or an errno."""

    def __init__(self) -> None:
        self.root = Node(True)

    def dirs(self) -> list[tuple[bytes, Node]]:
        """Return all directories with a path of each, sorted."""
        found, waiting = [], [(b"", self.root)]
        while waiting:
            path, node = waiting.pop()
            found.append((path, node))
            waiting += [(path + b"/" + name, n) for name, n in node.names.items() if n.is_dir]
        return sorted(found, key=lambda row: row[0])

    def files(self) -> list[bytes]:
        return sorted(
            path + b"/" + name
            for path, node in self.dirs()
            for name, child in node.names.items()
            if not child.is_dir
        )

    def make(self, parent: Node, name: bytes, node: Node) -> int:
        if name in parent.names:
            return errno.EEXIST
        parent.names[name] = node
        return 0

    def unlink(self, parent: Node, name: bytes) -> int:
        node = parent.names.get(name)
        if node is None:
            return errno.ENOENT
        if node.is_dir:
            return errno.EISDIR
        del parent.names[name]
        return 0

    def rmdir(self, parent: Node, name: bytes) -> int:
        node = parent.names.get(name)
        if node is None:
            return errno.ENOENT
        if not node.is_dir:
            return errno.ENOTDIR
        if node.names:
            return errno.ENOTEMPTY
        del parent.names[name]
        return 0

    def rename(self, old: Node, name: bytes, new: Node, new_name: bytes, flags: int) -> int:
        node, target = old.names.get(name), new.names.get(new_name)
        if node is None or (target is None and flags == RENAME_EXCHANGE):
            return errno.ENOENT
        if target is not None and flags == RENAME_NOREPLACE:
            return errno.EEXIST
        if target is node:
            return 0
        if self._holds(node, new):
            return errno.EINVAL
        if flags == RENAME_EXCHANGE:
            assert target is not None
            if self._holds(target, old):
                return errno.EINVAL
            old.names[name], new.names[new_name] = target, node
            return 0
        if target is not None:
            if target.is_dir != node.is_dir:
                return errno.EISDIR if target.is_dir else errno.ENOTDIR
            if target.names:
                return errno.ENOTEMPTY
        new.names[new_name] = node
        del old.names[name]
        return 0

    def _holds(self, node: Node, other: Node) -> bool:
        return node is other or any(self._holds(child, other) for child in node.names.values())

    def tree(self) -> dict[bytes, object]:
        """Return what `read_tree` should find."""
        nlink: dict[Node, int] = {}
        for _, node in self.dirs():
            for child in node.names.values():
                nlink[child] = nlink.get(child, 0) + 1

        def shown(node: Node) -> dict[bytes, object]:
            return {
                name: shown(child) if child.is_dir else (child.ino, nlink[child])
                for name, child in node.names.items()
            }

        return shown(self.root)


class Player:
    """Plays each operation on the model and on a volume, and compares."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.model = Model()
        self.open: list[Inode] = []  # unlinked, and still in use

    def play(self, what: str, i: int, name: bytes, j: int, new_name: bytes, flags: int) -> None:
        OPERATIONS["names"] += 1
        sb, now_ns = self.volume.sb, self.volume.tick()
        dirs = self.model.dirs()
        (path, node), (new_path, new_node) = dirs[i % len(dirs)], dirs[j % len(dirs)]
        directory, new_directory = self.volume.find(path), self.volume.find(new_path)
        made: Inode | None = None
        expected = error = 0
        try:
            if what == "mknod":
                new = Node(False)
                expected = self.model.make(node, name, new)
                made = mknod(sb, directory, name, stat.S_IFREG | 0o644, OWNER, now_ns)
            elif what == "symlink":
                new = Node(False)
                expected = self.model.make(node, name, new)
                made = symlink(sb, directory, name, new_name * 2, OWNER, now_ns)
            elif what == "mkdir":
                new = Node(True)
                expected = self.model.make(node, name, new)
                made = mkdir(sb, directory, name, 0o755, OWNER, now_ns)
            elif what == "link":
                files = self.model.files()
                if not files:
                    return
                linked = files[j % len(files)]
                parent, _, base = linked.rpartition(b"/")
                old = dict(dirs)[parent].names[base]
                expected = self.model.make(node, name, old)
                link(sb, self.volume.find(linked), directory, name, now_ns)
            elif what == "unlink":
                expected = self.model.unlink(node, name)
                self._remember(unlink(sb, directory, name, now_ns))
            elif what == "rmdir":
                expected = self.model.rmdir(node, name)
                self._remember(rmdir(sb, directory, name, now_ns))
            elif what == "rename":
                expected = self.model.rename(node, name, new_node, new_name, flags)
                places = directory, name, new_directory, new_name
                self._remember(rename(sb, *places, flags, now_ns))
            elif what == "close" and self.open:
                release_orphan(sb, self.open.pop(i % len(self.open)).ino, now_ns)
            elif what == "forget":
                kept = [inode.ino for inode in self.open]
                for inode in list(sb._inodes.values()):
                    if inode.ino not in kept:
                        sb.drop_unused(inode)
        except XipfsError as exc:
            error = exc.errno
        assert error == expected, (what, path, name, new_path, new_name, flags)
        if made is not None:
            new.ino = int(made.ino)

    def compare(self) -> None:
        assert self.volume.tree() == self.model.tree()
        assert self.volume.sb.state.nr_inodes == len(self._inos()) + len(self.open)

    def check(self) -> None:
        """Compare, let fsck look, compare with what is in the image."""
        self.compare()
        self.volume.check()
        self.open.clear()
        self.compare()

    def _inos(self) -> set[Node]:
        return {child for _, node in self.model.dirs() for child in node.names.values()} | {
            self.model.root
        }

    def _remember(self, orphan: Inode | None) -> None:
        if orphan is not None:
            self.open.append(orphan)


KINDS = ["mknod", "symlink", "mkdir", "mkdir", "link", "unlink", "rmdir", "rename", "rename"]
FLAGS = [0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]
steps = st.tuples(
    st.sampled_from([*KINDS, "close", "forget"]),
    st.integers(0, 9),
    st.sampled_from(NAMES),
    st.integers(0, 9),
    st.sampled_from(NAMES),
    st.sampled_from(FLAGS),
)


def random_step(rng: random.Random) -> tuple[str, int, bytes, int, bytes, int]:
    names = rng.choice(NAMES), rng.choice(NAMES)
    dirs = rng.randrange(10), rng.randrange(10)
    what = rng.choice([*KINDS, "close", "forget"])
    return what, dirs[0], names[0], dirs[1], names[1], rng.choice(FLAGS)


@given(steps=st.lists(steps, min_size=10, max_size=40))
@settings(max_examples=nr_examples(60, 3000))
def test_any_operations_give_what_the_model_gives(tmp_path_factory, steps):
    with Volume(tmp_path_factory.mktemp("names") / "nvram.img") as volume:
        player = Player(volume)
        for step in steps:
            player.play(*step)
        player.check()


def test_thousands_of_operations_in_one_image(tmp_path):
    rng = random.Random(11)
    with Volume(tmp_path / "nvram.img") as volume:
        player = Player(volume)
        for n in range(3000):
            player.play(*random_step(rng))
            if n % 250 == 0:
                player.check()
        player.check()
        free = volume.sb.state
    assert free.nr_inodes < 200


@pytest.mark.parametrize("seed", range(2))
def test_a_crash_in_any_operation_leaves_it_done_or_not(tmp_path, seed):
    """At each store of a daemon that is killed, and at moments by chance of a loss of power.

    The first operations are only played, to get somewhere.
    """
    rng = random.Random(seed)
    nr_states = 0
    with Volume(tmp_path / "nvram.img") as volume:
        player = Player(volume)
        for n in range(80):
            step = random_step(rng)
            if n < 30:
                player.play(*step)
                continue
            before = player.model.tree()
            with StoreLog(volume.sb.nvram) as log:
                player.play(*step)
            allowed = [before, player.model.tree()]
            states = [*log.states(), *log.torn_states(seed, 4)]
            for state in set(states):
                nr_states += 1
                assert tree_after_recovery(state, tmp_path / "crash.img") in allowed, step
        player.check()
    assert nr_states > 100


def tree_after_recovery(image: bytes, path: Path) -> dict[bytes, object]:
    recovered(image, path)
    sb = SuperBlock.open(path)
    try:
        return read_tree(sb)
    finally:
        sb.close()


def test_a_crash_while_a_directory_grows_and_shrinks(tmp_path):
    """A leaf is split, its root moves to new pages, and all of it goes back again."""
    with Volume(tmp_path / "nvram.img") as volume:
        names = [b"%03d" % n + b"n" * 240 for n in range(18)]
        tree: dict[bytes, object] = {}
        grown = 0
        for name in names * 2:
            pages = volume.root.disk.nr_pages
            before = dict(tree)
            with StoreLog(volume.sb.nvram) as log:
                if name not in tree:
                    mode = stat.S_IFREG | 0o600
                    inode = mknod(volume.sb, volume.root, name, mode, OWNER, volume.tick())
                    tree[name] = (int(inode.ino), 1)
                    volume.sb.drop_unused(inode)
                else:
                    assert unlink(volume.sb, volume.root, name, volume.tick()) is None
                    del tree[name]
            if volume.root.disk.nr_pages == pages:
                continue
            grown += 1
            for state in log.states():
                assert tree_after_recovery(state, tmp_path / "crash.img") in (before, tree)
        assert grown >= 2
        assert volume.root.disk.nr_pages == 1


def test_a_directory_that_mkfs_made(tmp_path):
    """Its leaves are full, and its index names the lowest keys as they were then."""
    source = tmp_path / "tree"
    source.mkdir()
    names = [b"file %d" % n for n in range(700)]
    for name in names:
        (source / name.decode()).touch()
    path = tmp_path / "nvram.img"
    mkfs(path, walk_tree(source), now_ns=5, size_bytes=2 << 20)
    rng = random.Random(2)
    with Volume.of(path) as volume:
        assert volume.root.disk.size_bytes > 4 * PAGE_SIZE
        play_names(volume, names, [b"new %d" % n for n in range(700)], rng)
        assert volume.root.disk.size_bytes == PAGE_SIZE


@pytest.mark.parametrize("fanout", [2, 3])
def test_a_directory_whose_pages_are_nearly_empty(tmp_path, fanout):
    """Nothing in the format asks for full pages, and another writer may leave such."""
    kit = ImageKit(nr_pages=512, nr_journal_pages=20, fanout=fanout)
    names = [b"%d" % n for n in range(40)]
    for name in names:
        kit.add_file(INO_ROOT, name)
    path = kit.build().write(tmp_path / "nvram.img")
    with Volume.of(path) as volume:
        play_names(volume, names, [b"new %d" % n for n in range(40)], random.Random(fanout))


@pytest.mark.parametrize("nr_names", [6000, pytest.param(200_000, marks=pytest.mark.long)], ids=str)
def test_a_large_directory_costs_no_more_for_each_name(tmp_path, monkeypatch, nr_names):
    """Counted in bytes loaded and lines flushed, for each of the last names that came."""
    with Volume(tmp_path / "nvram.img", 256 << 20) as volume:
        sb, root = volume.sb, volume.root
        inode = mknod(sb, root, b"first", stat.S_IFREG | 0o600, OWNER, volume.tick())
        for n in range(nr_names):
            link(sb, inode, root, b"name %d" % n, volume.tick())
        loaded: list[int] = []
        load = NvramDevice.load

        def count(nvram: NvramDevice, offset: int, size_bytes: int) -> bytes:
            loaded.append(size_bytes)
            return load(nvram, offset, size_bytes)

        monkeypatch.setattr(NvramDevice, "load", count)
        nr_flushed = sb.nvram.nr_flushed_lines
        for n in range(100):
            link(sb, inode, root, b"one more %d" % n, volume.tick())
        assert sum(loaded) < 100 * 4 * PAGE_SIZE
        assert sb.nvram.nr_flushed_lines - nr_flushed < 100 * 80
        loaded.clear()
        sb.dir_reader.lookup(root.disk, root.extents, b"name 4711")
        assert sum(loaded) <= 3 * PAGE_SIZE
        monkeypatch.undo()


def play_names(volume: Volume, names: list[bytes], new_names: list[bytes], rng: random.Random):
    """Exchange all *names* of the root for *new_names* in some order, then remove them."""
    rng.shuffle(names)
    left = set(names)
    for n, (name, new_name) in enumerate(zip(names, new_names, strict=True)):
        if n % 2:
            rename(volume.sb, volume.root, name, volume.root, new_name, 0, volume.tick())
        else:
            mode = stat.S_IFREG | 0o600
            mknod(volume.sb, volume.root, new_name, mode, OWNER, volume.tick())
            volume.sb.drop_unused(volume.find(new_name))
            assert unlink(volume.sb, volume.root, name, volume.tick()) is None
        left ^= {name, new_name}
        if n % (len(names) // 8) == 0:
            assert set(volume.tree()) == left
            volume.check()
    for name in sorted(left, key=lambda _: rng.random()):
        assert unlink(volume.sb, volume.root, name, volume.tick()) is None
    volume.check()
    assert volume.tree() == {}
