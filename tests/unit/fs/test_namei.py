"""Paths as Linux reads them, with the image's root at both ends of the world."""

import pytest

from tests.kit.image import ImageKit
from xipfs.errors import (
    FormatError,
    NameTooLongError,
    NoEntryError,
    NotDirError,
    SymlinkLoopError,
)
from xipfs.fs.namei import path_lookup
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import INO_ROOT


@pytest.fixture
def tree(tmp_path):
    """(SuperBlock, name -> inode number)"""
    kit = ImageKit()
    inos = {"root": int(INO_ROOT)}
    inos["usr"] = kit.add_dir(INO_ROOT, b"usr")
    inos["bin"] = kit.add_dir(inos["usr"], b"bin")
    inos["sh"] = kit.add_file(inos["bin"], b"sh", b"#!")
    inos["colon"] = kit.add_file(INO_ROOT, b"a:\xff")
    links = {
        "to-bin": b"usr/bin",
        "to-sh": b"/usr/bin/sh",
        "up": b"../../..",
        "loop": b"loop",
        "dangling": b"nowhere",
        "slash": b"usr/bin/",
        "long": b"/usr/" * 40 + b"bin",
        "empty": b"",
    }
    for name, target in links.items():
        inos[name] = kit.add_symlink(INO_ROOT, name.encode(), target)
    inos["again"] = kit.add_symlink(inos["bin"], b"again", b"../bin/sh")
    for i in range(41):
        target = b"chain-%d" % (i + 1) if i < 40 else b"usr"
        inos[f"chain-{i}"] = kit.add_symlink(INO_ROOT, b"chain-%d" % i, target)
    sb = SuperBlock.open(kit.build().write(tmp_path / "nvram.img"))
    yield sb, inos
    sb.close()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"", "root"),
        (b"/", "root"),
        (b"..", "root"),
        (b"/../..", "root"),
        (b"usr", "usr"),
        (b"/usr//bin/./sh", "sh"),
        (b"usr/", "usr"),
        (b"usr/.", "usr"),
        (b"usr/bin/..", "usr"),
        (b"usr/../usr/bin/../../usr", "usr"),
        (b"a:\xff", "colon"),
        (b"to-bin", "bin"),
        (b"to-bin/sh", "sh"),
        (b"to-bin/..", "usr"),
        (b"to-sh", "sh"),
        (b"up", "root"),
        (b"slash/sh", "sh"),
        (b"usr/bin/again", "sh"),
        (b"chain-1", "usr"),
    ],
)
def test_paths(tree, path, name):
    sb, inos = tree
    assert path_lookup(sb, path).ino == inos[name]


@pytest.mark.parametrize(
    ("path", "name"),
    [(b"to-bin", "to-bin"), (b"to-bin/", "bin"), (b"loop", "loop"), (b"to-bin/again", "again")],
)
def test_a_last_link_need_not_be_followed(tree, path, name):
    sb, inos = tree
    assert path_lookup(sb, path, follow=False).ino == inos[name]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"nowhere", NoEntryError),
        (b"usr/nowhere/sh", NoEntryError),
        (b"dangling", NoEntryError),
        (b"usr/bin/sh/", NotDirError),
        (b"usr/bin/sh/.", NotDirError),
        (b"usr/bin/sh/..", NotDirError),
        (b"usr/bin/sh/x", NotDirError),
        (b"to-sh/", NotDirError),
        (b"loop", SymlinkLoopError),
        (b"chain-0", SymlinkLoopError),
        (b"a" * 256, NameTooLongError),
        (b"empty", FormatError),
    ],
)
def test_paths_that_lead_nowhere(tree, path, error):
    sb, _ = tree
    with pytest.raises(error):
        path_lookup(sb, path)


def test_the_message_has_the_path_as_it_was_given(tree):
    sb, _ = tree
    with pytest.raises(NoEntryError, match="'/usr/x': no such file or directory in the image"):
        path_lookup(sb, b"/usr/x")
