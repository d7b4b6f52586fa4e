"""The mount's mm in parts: areas and runs, and the paths of files."""

import json

import pytest

from tests.kit.image import ImageKit
from tests.unit.fuse.test_view import first_block, open_file, promote, read
from xipfs.fuse import maps
from xipfs.fuse.maps import pagemap_part, path_of, smaps_part
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import MountOptions
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import NVRAM_PFN_START, PAGE_SIZE, Ino, Vaddr

START = Vaddr(0)


def all_parts(part, mount: Mount, ino=None) -> list[dict]:
    """All parts, as a client gets them one by one."""
    parts, address = [], 0
    while address is not None:
        parts.append(part(mount.mm, mount.sb, Vaddr(address), ino))
        assert parts[-1]["next"] is None or parts[-1]["next"] > address
        address = parts[-1]["next"]
    return parts


def test_nothing_was_read(mount: Mount):
    for part in (smaps_part, pagemap_part):
        assert part(mount.mm, mount.sb, START, None) == {"areas": [], "next": None}
        assert part(mount.mm, mount.sb, START, Ino(4000)) == {"areas": [], "next": None}


def test_smaps_of_two_files(mount: Mount):
    big, fh = open_file(mount, b"big")
    read(mount, fh, 0, 8)
    promote(mount, big, 2, 3)
    read(mount, fh, 0, 8)
    sparse, _ = open_file(mount, b"sparse")
    first, second = smaps_part(mount.mm, mount.sb, START, None)["areas"]
    assert (first["ino"], first["path"], first["perm"]) == (big.ino, "/big", "r--s")
    assert first["end"] - first["start"] == first["size_bytes"] == 8 * PAGE_SIZE
    assert first["vm_flags"] == ["rd", "mr", "ms", "mm"]
    # Pages without struct page count in Rss, as in 2.6.28, and nowhere else.
    assert first["rss_bytes"] == 8 * PAGE_SIZE
    counted = ("pss_bytes", "private_clean_bytes", "referenced_bytes")
    assert [first[name] for name in counted] == [2 * PAGE_SIZE] * 3
    assert (second["ino"], second["rss_bytes"]) == (sparse.ino, 0)
    of_one = smaps_part(mount.mm, mount.sb, START, sparse.ino)
    assert of_one == {"areas": [second], "next": None}
    json.dumps(first)


def test_pagemap_of_a_file(mount: Mount):
    inode, fh = open_file(mount, b"sparse")
    read(mount, fh, 0, 6)
    (area,) = pagemap_part(mount.mm, mount.sb, START, inode.ino)["areas"]
    json.dumps(area)
    tiers = [(run["pgoff"], run["nr_pages"], run["tier"]) for run in area["runs"]]
    assert tiers == [(0, 1, "hole"), (1, 1, "nvram"), (2, 3, "hole"), (5, 1, "nvram"), (6, 2, None)]
    assert area["runs"][1]["pfn"] == NVRAM_PFN_START + first_block(inode)


@pytest.mark.parametrize("nr_runs_max", [1, 2, 3, 7])
@pytest.mark.parametrize("nr_pages_max", [1, 3, 100])
def test_the_parts_are_the_whole(mount: Mount, monkeypatch, nr_runs_max: int, nr_pages_max: int):
    for name in (b"big", b"sparse"):
        _, fh = open_file(mount, name)
        read(mount, fh, 1, 6)
    read(mount, fh, 2, 1)
    (whole,) = all_parts(pagemap_part, mount)
    (whole_smaps,) = all_parts(smaps_part, mount)
    monkeypatch.setattr(maps, "NR_RUNS_MAX", nr_runs_max)
    monkeypatch.setattr(maps, "NR_PAGES_MAX", nr_pages_max)
    parts = all_parts(pagemap_part, mount)
    assert len(parts) > 1
    for part in parts:
        told = [run for area in part["areas"] for run in area["runs"]]
        assert 0 < len(told) <= nr_runs_max
        assert sum(run["nr_pages"] for run in told) <= nr_pages_max
    assert pages_of(parts) == pages_of([whole])
    monkeypatch.setattr(maps, "NR_AREAS_MAX", 1)
    told = [area for part in all_parts(smaps_part, mount) for area in part["areas"]]
    assert told == whole_smaps["areas"]
    assert pages_of(all_parts(pagemap_part, mount)) == pages_of([whole])


def pages_of(parts: list[dict]) -> list[tuple]:
    """Runs unrolled into (ino, pgoff, pfn, heat)."""
    return [
        (
            area["ino"],
            run["pgoff"] + i,
            run["pfn"] if run["tier"] in (None, "hole") else run["pfn"] + i,
            run["heat"],
        )
        for part in parts
        for area in part["areas"]
        for run in area["runs"]
        for i in range(run["nr_pages"])
    ]


def test_many_small_files_come_in_parts(tmp_path):
    nr_files = maps.NR_AREAS_MAX + 3
    kit = ImageKit(nr_pages=2048)
    names = [b"f%d" % i for i in range(nr_files)]
    for name in names:
        kit.add_file(INO_ROOT, name, b"x")
    mount = Mount.open(kit.build().write(tmp_path / "many.img"), MountOptions(ram_bytes=0))
    for name in names:
        _, fh = open_file(mount, name)
        read(mount, fh, 0, 1)
    for part in (smaps_part, pagemap_part):
        parts = all_parts(part, mount)
        assert [len(part["areas"]) for part in parts] == [maps.NR_AREAS_MAX, 3]
        paths = [area["path"] for part in parts for area in part["areas"]]
        assert paths == [f"/{name.decode()}" for name in names]
    mount.close()


@pytest.fixture
def tree(tmp_path):
    """A mount of a/b/c, and of the file c under a second name."""
    kit = ImageKit(nr_pages=256)
    a = kit.add_dir(INO_ROOT, b"a")
    b = kit.add_dir(a, b"b\xff")
    c = kit.add_file(b, b"c", b"x")
    kit.link(INO_ROOT, b"second", c)
    mount = Mount.open(kit.build().write(tmp_path / "tree.img"), MountOptions(ram_bytes=0))
    yield mount
    mount.close()


def look_up(mount: Mount, *names: bytes):
    inode = mount.sb.iget(INO_ROOT)
    for name in names:
        inode = mount.operations.lookup(inode.ino, name)
    return inode


def test_a_path_is_the_one_that_was_looked_up_last(tree: Mount):
    inode = look_up(tree, b"a", b"b\xff", b"c")
    assert path_of(tree.sb, inode) == "/a/b\udcff/c"
    assert look_up(tree, b"second") is inode
    assert path_of(tree.sb, inode) == "/second"
    assert path_of(tree.sb, tree.sb.iget(INO_ROOT)) == "/"


def test_a_listing_tells_names_too(tree: Mount):
    fh = tree.operations.opendir(INO_ROOT)
    tree.operations.readdir(fh, 0, lambda name, inode, position: True)
    assert path_of(tree.sb, tree.sb.find_inode(look_up(tree, b"a").ino)) == "/a"
    names = {path_of(tree.sb, inode) for inode in tree.sb._inodes.values()}
    assert names == {"/", "/a", "/second"}


def test_no_path_where_a_directory_was_forgotten_or_goes_in_a_circle(tree: Mount):
    inode = look_up(tree, b"a", b"b\xff", b"c")
    a = look_up(tree, b"a")
    tree.operations.forget(a.ino, 2)
    assert path_of(tree.sb, inode) is None
    b = tree.sb.find_inode(inode.dentry[0])
    b.dentry = (b.ino, b"itself")
    assert path_of(tree.sb, inode) is None
    loaded = tree.sb.iget(a.ino)
    assert path_of(tree.sb, loaded) is None, "nobody named it yet"
