"""Fixtures: the made tree (`tests.kit.tree`) and its image, for a conftest.py to import."""

from pathlib import Path

import pytest

from tests.kit.tree import make_tree
from xipfs.fs.mkfs import MkfsStatistics, mkfs
from xipfs.fs.source import walk_tree

__all__ = ["NOW_NS", "made", "made_image", "made_tree"]

NOW_NS = 1_700_000_000_123_456_789


@pytest.fixture(scope="session")
def made_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with every kind of entry. Nobody writes to it."""
    tree = tmp_path_factory.mktemp("made") / "tree"
    make_tree(tree)
    return tree


@pytest.fixture(scope="session")
def made(made_tree: Path) -> tuple[Path, MkfsStatistics]:
    """The image of the tree, and what mkfs said of it. Nobody writes to it."""
    image = made_tree.with_name("tree.img")
    return image, mkfs(image, walk_tree(made_tree), now_ns=NOW_NS)


@pytest.fixture(scope="session")
def made_image(made: tuple[Path, MkfsStatistics]) -> Path:
    """The image of the tree. Nobody writes to it."""
    return made[0]
