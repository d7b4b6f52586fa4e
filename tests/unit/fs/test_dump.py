"""Records field by field, sound and damaged."""

import json

import pytest

from tests.kit.sample import make_sample
from xipfs.errors import FormatError
from xipfs.fs.dump import dump_inode, dump_volume
from xipfs.ondisk.inode import INODE
from xipfs.ondisk.superblock import STATE, SUPERBLOCK
from xipfs.phys.nvram import NvramDevice
from xipfs.units import Ino


@pytest.fixture
def opened(tmp_path):
    """Image -> NvramDevice, closed at the end."""
    devices = []

    def opened(image) -> NvramDevice:
        devices.append(NvramDevice.open(image.write(tmp_path / "nvram.img")))
        return devices[-1]

    yield opened
    for device in devices:
        device.close()


def test_a_volume_has_all_fields_and_no_problem(opened):
    facts = dump_volume(opened(make_sample().image))
    assert list(facts["superblock"]) == list(SUPERBLOCK.dtype.names)
    assert list(facts["state"]) == list(STATE.dtype.names)
    assert set(INODE.dtype.names) - set(facts["inode_file"]) == {"payload"}
    assert facts["replica"] == "equal"
    assert facts["superblock"]["label"] == "by hand"
    assert facts["superblock"]["compat"] == ["ACL"]
    assert len(facts["journal_headers"]) == 1
    assert facts["groups"]["nr_unused_groups"] == 0
    assert facts["groups"]["used"][0]["nr_free_pages"] == facts["state"]["nr_free_pages"]
    assert "problem" not in json.dumps(facts)


def test_damage_stands_beside_the_fields(opened):
    sample = make_sample()
    image = sample.image
    image.data[300] ^= 1
    image.data[4096 + 100] ^= 1
    image.data[(image.disk.gdt_block << 12) + 12] ^= 1
    image.data[(image.disk.journal_block << 12) + 9] ^= 1
    facts = dump_volume(opened(image))
    assert facts["superblock"]["nr_pages"] == 256
    for damaged in (
        facts["superblock"],
        facts["state"],
        facts["groups"]["used"][0],
        facts["journal_headers"][0],
    ):
        assert "checksum" in damaged["problem"]
    assert "problem" not in facts["replica"]


def test_without_any_superblock_nothing_is_found(opened):
    image = make_sample().image
    image.data[300] ^= 1
    image.replica[300] ^= 1
    with pytest.raises(FormatError):
        dump_volume(opened(image))


def test_areas_outside_of_the_image(opened):
    image = make_sample().image
    image.change_superblock(journal_block=1 << 60, gdt_block=(1 << 64) - 1)
    facts = dump_volume(opened(image))
    assert "cut short" in facts["journal_headers"]["problem"]
    assert "cut short" in facts["groups"]["problem"]


def test_more_groups_than_the_image_has_room_for(opened):
    image = make_sample().image
    image.change_superblock(nr_groups=1 << 63)
    groups = dump_volume(opened(image))["groups"]
    assert (groups["nr_unused_groups"], len(groups["used"])) == (0, 1)


def test_inodes_of_every_kind(opened):
    sample = make_sample()
    nvram = opened(sample.image)
    tree = dump_inode(nvram, Ino(sample.tree))
    assert [e["pgoff"] for e in tree["extents"]] == [2 * i for i in range(12)]
    assert [n["depth"] for n in tree["nodes"]] == [1, 0, 0, 0, 1, 0]
    sparse = dump_inode(nvram, Ino(sample.sparse))
    assert [e["flags"] for e in sparse["extents"]] == [[], ["UNWRITTEN"], [], ["UNWRITTEN"]]
    hosts = dump_inode(nvram, Ino(sample.hosts))
    assert hosts["xattrs"] == {"user.comment": "made by hand", "user.empty": ""}
    short = dump_inode(nvram, Ino(sample.short))
    assert short["record"]["payload"] == "etc/hosts"
    assert short["record"]["flags"] == ["INLINE"]
    etc = dump_inode(nvram, Ino(sample.etc))
    names = {e["name"] for page in etc["pages"] for e in page["entries"] if "name" in e}
    assert len(names) == sample.image.inode(sample.etc).nr_entries
    assert [page["pgoff"] for page in etc["pages"]] == list(range(len(etc["pages"])))
    assert dump_inode(nvram, Ino(0))["record"]["size_bytes"] == 4 * 4096
    assert dump_inode(nvram, Ino(sample.free[0]))["record"]["next_ino"] == sample.free[1]
    json.dumps([tree, sparse, hosts, short, etc])


def test_an_inode_in_parts_damaged(opened):
    sample = make_sample()
    image = sample.image
    image.page(image.dir_block(sample.etc, 2))[50] ^= 1
    image.page(image.inode(sample.etc).xattr_block)[50] ^= 1
    image.page(image.node_block(sample.tree))[50] ^= 1
    image.data[image.inode_offset(sample.empty) + 50] ^= 1
    image.change_inode(sample.fifo, nr_extents=6)
    nvram = opened(image)
    etc = dump_inode(nvram, Ino(sample.etc))
    assert "checksum" in etc["pages"][2]["problem"]
    assert "checksum" in etc["xattrs"]["problem"]
    assert etc["pages"][3]["entries"]
    assert "checksum" in dump_inode(nvram, Ino(sample.tree))["nodes"]["problem"]
    empty = dump_inode(nvram, Ino(sample.empty))
    assert "checksum" in empty["record"]["problem"]
    assert empty["record"]["ino"] == sample.empty
    assert "6 extents" in dump_inode(nvram, Ino(sample.fifo))["record"]["problem"]


def test_inodes_that_are_not_there(opened):
    nvram = opened(make_sample().image)
    with pytest.raises(FormatError, match="no such page"):
        dump_inode(nvram, Ino(1 << 20))
    assert "no inode" in dump_inode(nvram, Ino(5))["record"]["problem"]
