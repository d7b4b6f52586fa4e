"""Opening an image: what is accepted, what is refused, and that refusing takes one clear line."""

import errno
import fcntl
import os
import stat

import pytest

from tests.kit.image import HandmadeImage, ImageKit
from xipfs.errors import (
    DeviceError,
    FormatError,
    ImageBusyError,
    NotDirError,
    ReadOnlyFsError,
)
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import INO_ROOT
from xipfs.ondisk.superblock import SUPERBLOCK, StateFlags
from xipfs.units import PAGE_SIZE, Ino


@pytest.fixture
def image() -> HandmadeImage:
    return ImageKit().build()


def opened(image: HandmadeImage, tmp_path) -> SuperBlock:
    return SuperBlock.open(image.write(tmp_path / "nvram.img"))


def test_an_empty_image_has_a_root_and_nothing_else(image, tmp_path):
    sb = opened(image, tmp_path)
    root = sb.iget(INO_ROOT)
    assert root.is_dir
    assert root.disk.nlink == 2
    assert [e.name for e in sb.dir_reader.iter_entries(root.disk, root.extents)] == [b".", b".."]
    sb.close()


def test_fields_come_back_as_they_were_put(tmp_path):
    kit = ImageKit()
    ino = kit.add_special(INO_ROOT, b"null", stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))
    kit.set_xattrs(ino, {b"user.b": b"2", b"user.a": b"1" * 5000})
    sb = opened(kit.build(), tmp_path)
    inode = sb.lookup(sb.iget(INO_ROOT), b"null")
    assert inode.disk.rdev == os.makedev(1, 3)
    assert (inode.disk.uid, inode.disk.gid) == (1000, 100)
    assert list(sb.read_xattrs(inode).items()) == [(b"user.a", b"1" * 5000), (b"user.b", b"2")]
    assert sb.read_xattrs(sb.iget(INO_ROOT)) == {}
    sb.close()


def test_inodes_are_kept_until_nobody_knows_them(image, tmp_path):
    sb = opened(image, tmp_path)
    root = sb.iget(INO_ROOT)
    root.nr_lookups = 1
    assert sb.iget(INO_ROOT) is root
    assert sb.find_inode(INO_ROOT) is root
    assert not sb.drop_unused(root)
    root.nr_lookups = 0
    assert sb.drop_unused(root)
    assert sb.find_inode(INO_ROOT) is None
    assert sb.nr_inodes_in_memory == 0
    sb.close()


@pytest.mark.parametrize("ino", [0, 2, 17, 32, 1 << 31, (1 << 64) - 1])
def test_numbers_that_no_inode_has_are_refused(image, tmp_path, ino):
    sb = opened(image, tmp_path)
    with pytest.raises(FormatError, match=f"inode {ino}"):
        sb.load_inode(Ino(ino))
    sb.close()


def test_a_free_inode_is_refused(tmp_path):
    kit = ImageKit()
    ino = kit.add_free()
    sb = opened(kit.build(), tmp_path)
    with pytest.raises(FormatError, match="free"):
        sb.iget(Ino(ino))
    sb.close()


def test_lookup_in_a_file(tmp_path):
    kit = ImageKit()
    kit.add_file(INO_ROOT, b"file")
    sb = opened(kit.build(), tmp_path)
    with pytest.raises(NotDirError):
        sb.lookup(sb.lookup(sb.iget(INO_ROOT), b"file"), b"name")
    sb.close()


def test_read_all_reads_inline_bytes_pages_and_holes(tmp_path):
    kit = ImageKit()
    kit.add_symlink(INO_ROOT, b"short", b"a" * 120)
    kit.add_symlink(INO_ROOT, b"long", b"b" * 121)
    kit.add_extents(INO_ROOT, b"hole", [], PAGE_SIZE + 1)
    sb = opened(kit.build(), tmp_path)
    root = sb.iget(INO_ROOT)
    assert sb.read_all(sb.lookup(root, b"short"), 4096) == b"a" * 120
    assert sb.read_all(sb.lookup(root, b"long"), 4096) == b"b" * 121
    assert sb.read_all(sb.lookup(root, b"hole"), 1 << 20) == bytes(PAGE_SIZE + 1)
    with pytest.raises(FormatError, match="at most 4096"):
        sb.read_all(sb.lookup(root, b"hole"), 4096)
    sb.close()


def test_a_damaged_superblock_names_the_sound_replica(image, tmp_path):
    image.data[200] ^= 1
    with pytest.raises(FormatError, match=r"damaged superblock.*replica in page 255 is sound"):
        opened(image, tmp_path)


def test_two_damaged_superblocks(image, tmp_path):
    image.data[200] ^= 1
    image.replica[200] ^= 1
    with pytest.raises(FormatError, match="damaged superblock") as failure:
        opened(image, tmp_path)
    assert "replica" not in str(failure.value)


def test_foreign_bytes_are_no_superblock(tmp_path):
    path = tmp_path / "nvram.img"
    path.write_bytes(b"\x7fELF" * PAGE_SIZE)
    with pytest.raises(FormatError, match=f"{path}: page 0: .*no superblock"):
        SuperBlock.open(path)


@pytest.mark.parametrize("size_bytes", [0, 1, PAGE_SIZE - 1])
def test_less_than_a_page(tmp_path, size_bytes):
    path = tmp_path / "nvram.img"
    path.write_bytes(bytes(size_bytes))
    with pytest.raises(FormatError, match="less than one page"):
        SuperBlock.open(path)


def test_an_image_cut_short(image, tmp_path):
    path = image.write(tmp_path / "nvram.img")
    os.truncate(path, 255 * PAGE_SIZE)
    with pytest.raises(FormatError, match="cut short"):
        SuperBlock.open(path)


def test_a_newer_image_is_told_apart_from_a_damaged_one(image, tmp_path):
    image.change_superblock(version=2)
    with pytest.raises(FormatError, match=r"version 2.*use a newer xipfs"):
        opened(image, tmp_path)


def test_incompatible_features_are_refused_others_are_not(image, tmp_path):
    image.change_superblock(compat=1 << 40, ro_compat=1 << 40)
    opened(image, tmp_path).close()
    image.change_superblock(incompat=1 << 40)
    with pytest.raises(FormatError, match="features 0x10000000000"):
        opened(image, tmp_path)


def test_an_image_not_unmounted_is_refused(image, tmp_path):
    image.change_state(flags=0)
    with pytest.raises(FormatError, match="journal must be replayed"):
        opened(image, tmp_path)


def written(image, tmp_path) -> SuperBlock:
    path = image.write(tmp_path / "nvram.img")
    return SuperBlock.open(path, writable=True, clock=lambda: 77)


def test_a_writer_takes_clean_away_and_puts_it_back(image, tmp_path):
    sb = written(image, tmp_path)
    path = sb.nvram.path
    assert (sb.state.flags, sb.state.mounted_ns, sb.state.mount_count) == (0, 77, 1)
    dead = path.read_bytes()
    sb.close()
    sb = SuperBlock.open(path)
    assert (sb.state.flags, sb.state.mounted_ns, sb.state.mount_count) == (1, 77, 1)
    sb.close()
    path.write_bytes(dead)
    with pytest.raises(FormatError, match="must be replayed: mount it once with -o rw"):
        SuperBlock.open(path)
    sb = SuperBlock.open(path, writable=True, clock=lambda: 78)
    assert sb.state.mount_count == 2
    sb.close()
    SuperBlock.open(path).close()


def test_a_torn_state_is_replayed(image, tmp_path):
    """The journal has the state, whatever of it has reached its place."""
    sb = written(image, tmp_path)
    path = sb.nvram.path
    sb.nvram.close()
    data = bytearray(path.read_bytes())
    data[PAGE_SIZE + 16] ^= 1
    second_header = image.disk.journal_block * PAGE_SIZE + 64
    assert any(data[second_header : second_header + 64])
    data[second_header : second_header + 64] = bytes(64)
    path.write_bytes(data)
    sb = SuperBlock.open(path, writable=True, clock=lambda: 78)
    assert sb.state.mount_count == 2
    sb.close()


def test_a_damaged_state_without_a_transaction(image, tmp_path):
    image.data[PAGE_SIZE + 20] ^= 1
    path = image.write(tmp_path / "nvram.img")
    with pytest.raises(FormatError, match="page 1: damaged state record"):
        SuperBlock.open(path, writable=True, clock=lambda: 1)


def test_what_a_writer_refuses(image, tmp_path):
    image.change_state(flags=int(StateFlags.CLEAN | StateFlags.ERROR))
    with pytest.raises(FormatError, match="found damaged earlier: run xipfs fsck"):
        written(image, tmp_path)
    image.change_state(flags=int(StateFlags.CLEAN))
    image.change_superblock(ro_compat=1 << 40)
    with pytest.raises(ReadOnlyFsError, match=r"features 0x10000000000 .* mount it read-only"):
        written(image, tmp_path)
    opened(image, tmp_path).close()


def test_a_damaged_state(image, tmp_path):
    image.data[PAGE_SIZE + 20] ^= 1
    with pytest.raises(FormatError, match="page 1: damaged state record"):
        opened(image, tmp_path)


def test_the_error_flag_does_not_keep_from_reading(image, tmp_path):
    image.change_state(flags=int(StateFlags.CLEAN | StateFlags.ERROR))
    opened(image, tmp_path).close()


def test_a_directory_and_a_missing_file_are_no_images(tmp_path):
    with pytest.raises(DeviceError, match="not a regular file"):
        SuperBlock.open(tmp_path)
    with pytest.raises(DeviceError, match="No such file"):
        SuperBlock.open(tmp_path / "missing")


def test_an_image_that_a_writer_holds(image, tmp_path):
    path = image.write(tmp_path / "nvram.img")
    with path.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(ImageBusyError) as failure:
            SuperBlock.open(path)
    assert failure.value.errno == errno.EBUSY
    readers = [SuperBlock.open(path), SuperBlock.open(path)]
    for reader in readers:
        reader.close()


def test_a_failed_open_leaves_the_image_unlocked(image, tmp_path):
    image.data[8] ^= 1
    path = image.write(tmp_path / "nvram.img")
    with pytest.raises(FormatError):
        SuperBlock.open(path)
    with path.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("block", [254, 256, 1 << 51, (1 << 64) - 1])
def test_attributes_outside_of_the_image(tmp_path, block):
    """A block number near 2^64 once ended in OverflowError from pread(2)."""
    kit = ImageKit()
    ino = kit.add_file(INO_ROOT, b"file")
    kit.set_xattrs(ino, {b"user.a": b"1" * PAGE_SIZE})
    image = kit.build()
    image.change_inode(ino, xattr_block=block)
    sb = opened(image, tmp_path)
    with pytest.raises(FormatError, match="attributes"):
        sb.read_xattrs(sb.iget(Ino(ino)))
    sb.close()


def test_attributes_in_the_journal(tmp_path):
    """The ring may hold anything, also a sealed run of attributes."""
    kit = ImageKit()
    ino = kit.add_file(INO_ROOT, b"file")
    kit.set_xattrs(ino, {b"user.a": b"1"})
    image = kit.build()
    ring = image.disk.journal_block + 1
    image.page(ring)[:] = image.page(image.inode(ino).xattr_block)
    image.change_inode(ino, xattr_block=ring)
    sb = opened(image, tmp_path)
    with pytest.raises(FormatError, match="in its metadata"):
        sb.read_xattrs(sb.iget(Ino(ino)))
    sb.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nr_groups": 1 << 63}, "9223372036854775808 groups, 256 pages"),
        ({"nr_groups": 0}, "0 groups"),
        ({"group_shift": 3}, r"groups of 2\^3 pages"),
        ({"nr_journal_pages": 1}, "1 pages of journal"),
        ({"nr_journal_pages": 1 << 62}, "the journal of .* runs into"),
        ({"gdt_block": 1}, "at page 1 runs into"),
        ({"bitmap_block": 1 << 60}, "of 256"),
        ({"journal_block": 0}, "runs into"),
    ],
)
def test_layouts_that_cannot_be(image, tmp_path, fields, message):
    """`xipfs dump` went through all groups that a superblock claimed, 2^63 of them."""
    image.change_superblock(**fields)
    with pytest.raises(FormatError, match=f"page 0: .*{message}.*: run xipfs fsck"):
        opened(image, tmp_path)


def test_too_many_pages_of_attributes(tmp_path):
    kit = ImageKit(nr_pages=1024)
    ino = kit.add_file(INO_ROOT, b"file")
    kit.set_xattrs(ino, {b"user.a": b"1"})
    image = kit.build()
    image.change_inode(ino, nr_xattr_pages=257)
    sb = opened(image, tmp_path)
    with pytest.raises(FormatError, match="257 pages of attributes"):
        sb.read_xattrs(sb.iget(Ino(ino)))
    sb.close()


def test_the_kit_seals_as_the_code_does(image):
    assert image.data[:PAGE_SIZE] == image.replica
    assert SUPERBLOCK.decode(image.replica, 0, "replica")
