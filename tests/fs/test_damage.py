"""Images that are damaged, or become so while they are served: errors by errno, never a crash."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from tests.kit.files import DirectFiles
from tests.kit.image import HandmadeImage, ImageKit
from xipfs.errors import DeviceError, FormatError, ImageBusyError, XipfsError
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import MountOptions
from xipfs.mm.migrate import promote_pages
from xipfs.ondisk.superblock import STATE_INODE_OFFSET, StateFlags
from xipfs.units import PAGE_SIZE

OPTIONS = MountOptions(ro=True, ram_bytes=8 * PAGE_SIZE)
NAMES = [b"file-%02d" % i for i in range(40)]


class Made:
    """A sound image, and the numbers of its files."""

    def __init__(self) -> None:
        kit = ImageKit()
        self.inos = {name: kit.add_file(1, name, name * 1000) for name in NAMES}
        self.directory = kit.add_dir(1, b"directory")
        kit.add_file(self.directory, b"inner", b"x")
        self.link = kit.add_symlink(1, b"link", b"./" * 200)
        kit.set_xattrs(self.inos[NAMES[0]], {b"user.a": b"b"})
        self.image: HandmadeImage = kit.build()


@pytest.fixture
def made() -> Made:
    return Made()


def refusal(kind: type[XipfsError], image: Path) -> str:
    """The message, which must be one line that names the image; nothing stays open of it."""
    nr_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(kind) as caught:
        Mount.open(image, OPTIONS)
    message = str(caught.value)
    assert message.startswith(str(image))
    assert "\n" not in message
    assert len(os.listdir("/proc/self/fd")) == nr_open
    return message


def flip(made: Made, offset: int) -> None:
    made.image.data[offset] ^= 0x10


# What is refused when it is opened


def test_empty_and_short_files(tmp_path: Path):
    for size_bytes in (0, 1, PAGE_SIZE - 1):
        image = tmp_path / "short.img"
        image.write_bytes(bytes(size_bytes))
        assert "less than one page" in refusal(FormatError, image)


@pytest.mark.parametrize("nr_pages", [1, 2, 300])
def test_foreign_files(tmp_path: Path, nr_pages: int):
    image = tmp_path / "foreign.img"
    image.write_bytes(b"\x7fELF" * (nr_pages * PAGE_SIZE // 4))
    assert "no superblock" in refusal(FormatError, image)
    image.write_bytes(bytes(nr_pages * PAGE_SIZE))
    assert "no superblock" in refusal(FormatError, image)


def test_no_file_and_no_regular_file(tmp_path: Path):
    assert "No such file" in refusal(DeviceError, tmp_path / "missing.img")
    assert "not a regular file" in refusal(DeviceError, tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refusal(DeviceError, tmp_path / "fifo")
    os.symlink("loop", tmp_path / "loop")
    refusal(DeviceError, tmp_path / "loop")


@pytest.mark.parametrize("nr_pages", [1, 2, 3, 100, 255])
def test_cut_short(made: Made, tmp_path: Path, nr_pages: int):
    image = made.image.write(tmp_path / "cut.img")
    os.truncate(image, nr_pages * PAGE_SIZE)
    assert "cut short" in refusal(FormatError, image)


def test_longer_than_it_says_is_fine(made: Made, tmp_path: Path):
    """A copy through a tool that pads."""
    image = made.image.write(tmp_path / "long.img")
    os.truncate(image, 300 * PAGE_SIZE + 17)
    Mount.open(image, OPTIONS).close()


def test_newer(made: Made, tmp_path: Path):
    made.image.change_superblock(version=2)
    message = refusal(FormatError, made.image.write(tmp_path / "newer.img"))
    assert "version 2" in message


def test_features_we_do_not_know(made: Made, tmp_path: Path):
    unknown = 1 << 31
    made.image.change_superblock(incompat=unknown)
    refusal(FormatError, made.image.write(tmp_path / "incompat.img"))
    # Who only reads need not know the others.
    made.image.change_superblock(incompat=0, compat=unknown, ro_compat=unknown)
    Mount.open(made.image.write(tmp_path / "compat.img"), OPTIONS).close()


def test_not_cleanly_unmounted(made: Made, tmp_path: Path):
    made.image.change_state(flags=made.image.state.flags & ~StateFlags.CLEAN)
    assert "journal" in refusal(FormatError, made.image.write(tmp_path / "dirty.img"))


@pytest.mark.parametrize("offset", [0, 8, 16, 100, 4000, PAGE_SIZE, PAGE_SIZE + 40])
def test_flips_in_superblock_and_state(made: Made, tmp_path: Path, offset: int):
    flip(made, offset)
    refusal(FormatError, made.image.write(tmp_path / "flipped.img"))


def test_a_bad_superblock_with_a_sound_replica(made: Made, tmp_path: Path):
    flip(made, 100)
    message = refusal(FormatError, made.image.write(tmp_path / "flipped.img"))
    assert "the replica in page 255 is sound" in message


def test_a_root_that_is_none(made: Made, tmp_path: Path):
    made.image.change_inode(1, mode=stat.S_IFREG | 0o755)
    assert "the root is no directory" in refusal(
        FormatError, made.image.write(tmp_path / "root.img")
    )


@pytest.mark.parametrize("offset", [100, PAGE_SIZE + 40, PAGE_SIZE + STATE_INODE_OFFSET + 40])
def test_a_refusal_says_what_to_run(made: Made, tmp_path: Path, offset: int):
    flip(made, offset)
    image = made.image.write(tmp_path / "damaged.img")
    assert refusal(FormatError, image).endswith(f": run xipfs fsck {image}")


def test_what_was_found_damaged_is_not_mounted(made: Made, tmp_path: Path):
    made.image.change_state(flags=int(StateFlags.CLEAN | StateFlags.ERROR))
    image = made.image.write(tmp_path / "error.img")
    assert refusal(FormatError, image) == f"{image}: found damaged earlier: run xipfs fsck {image}"


def test_a_damaged_root(made: Made, tmp_path: Path):
    flip(made, made.image.inode_offset(1) + 30)
    assert "inode 1" in refusal(FormatError, made.image.write(tmp_path / "root.img"))


def test_in_use_by_a_writer(made: Made, tmp_path: Path):
    image = made.image.write(tmp_path / "busy.img")
    with image.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert "in use by a writer" in refusal(ImageBusyError, image)
    first, second = Mount.open(image, OPTIONS), Mount.open(image, OPTIONS)
    with image.open("r+b") as writer, pytest.raises(BlockingIOError):
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
    first.close()
    second.close()
    with image.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)


# What is found out later


@pytest.fixture
def serve(made: Made, tmp_path: Path):
    """serve() -> the image as it is now, behind the door of direct calls."""
    mounts = []

    def serve() -> DirectFiles:
        image = made.image.write(tmp_path / f"{len(mounts)}.img")
        mounts.append(Mount.open(image, OPTIONS))
        return DirectFiles(mounts[-1])

    yield serve
    for mount in mounts:
        mount.close()


def error_of(call, *arguments) -> str:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    return errno.errorcode[caught.value.errno]


def read_start(files: DirectFiles, name: bytes) -> bytes:
    opened = files.open(name)
    data = files.read(opened, 0, 100)
    files.close(opened)
    return data


def test_one_bad_inode_among_many(made: Made, serve, expected_logs):
    """Reading it is EIO, as for a program that gets SIGBUS; the others are as good as ever."""
    bad = NAMES[7]
    expected_logs("inode .*: an extent tree of depth 9")
    made.image.change_inode(made.inos[bad], extent_depth=9)
    files = serve()
    assert error_of(read_start, files, bad) == "EIO"
    for name in NAMES:
        if name != bad:
            assert read_start(files, name) == (name * 1000)[:100]


def test_a_listing_with_a_free_inode_in_it(made: Made, serve):
    """What comes before the bad entry is handed out, then the error, and no lookup is left over.

    The error once took all entries of its request with it, but their lookups stayed counted: the
    kernel, which had not seen them, never took them back.
    """
    bad = NAMES[7]
    made.image.change_inode(made.inos[bad], mode=0)
    files = serve()
    operations = files.operations
    fh = files.call(operations.opendir, 1)
    names: list[bytes] = []
    position = files.list_some(fh, 0, names, 1000)
    assert 2 <= len(names) < len(NAMES)
    assert bad not in names
    assert error_of(files.list_some, fh, position, [], 1000) == "EUCLEAN"
    files.call(operations.release, fh)
    assert files.mount.sb.nr_inodes_in_memory == 1


def test_names_that_lead_nowhere(made: Made, serve):
    for mode, name in ((0, NAMES[1]), (stat.S_IFDIR | 0o755, NAMES[2])):
        made.image.change_inode(made.inos[name], mode=mode)
    files = serve()
    assert error_of(files.attributes, NAMES[1]) == "EUCLEAN"
    # A file whose record says it is a directory: its contents are no directory's.
    assert error_of(files.names, NAMES[2]) == "EUCLEAN"
    assert error_of(files.attributes, NAMES[2] + b"/x") == "EUCLEAN"


def test_extents_outside_of_the_image(made: Made, serve, expected_logs):
    expected_logs("inode .*: outside of the image's 256 pages, in its metadata, or out of order")
    made.image.change_extent(made.inos[NAMES[3]], 0, block=1 << 40)
    files = serve()
    opened = files.open(NAMES[3])
    for _ in range(2):
        assert error_of(files.read, opened, 0, 10) == "EIO"
        assert error_of(files.read, opened, 0, 1 << 20) == "EIO"
    files.close(opened)
    assert error_of(files.xattr, NAMES[3], b"user.xipfs.extents") == "EUCLEAN"
    assert read_start(files, NAMES[4]) == (NAMES[4] * 1000)[:100]


def test_damaged_attributes(made: Made, serve):
    made.image.change_inode(made.inos[NAMES[0]], xattr_block=2)
    files = serve()
    assert error_of(files.xattrs, NAMES[0]) == "EUCLEAN"
    assert error_of(files.xattr, NAMES[0], b"user.a") == "EUCLEAN"
    assert read_start(files, NAMES[0]) == (NAMES[0] * 1000)[:100]


def test_a_damaged_directory_page(made: Made, serve):
    made.image.change_dir_page(made.directory, ino=999)
    files = serve()
    assert error_of(files.attributes, b"directory/inner") == "EUCLEAN"
    assert error_of(files.names, b"directory") == "EUCLEAN"
    assert read_start(files, NAMES[5]) == (NAMES[5] * 1000)[:100]


def test_a_symbolic_link_longer_than_any_path(made: Made, serve):
    made.image.change_inode(made.link, size_bytes=5000)
    files = serve()
    assert error_of(files.readlink, b"link") == "EUCLEAN"


# What is cut off while it is served


def test_cut_short_while_served(made: Made, serve):
    """Metadata and bytes that are gone are EIO; nobody dies of SIGBUS; promoted pages live on."""
    files = serve()
    opened = files.open(NAMES[0])
    assert files.read(opened, 0, 10) == (NAMES[0] * 1000)[:10]
    inode = opened[1]
    files.mount.dispatch(files.operations.read, opened[0], 0, PAGE_SIZE)

    promote_pages(files.mount.machine, inode.mapping, np.array([0]))
    os.truncate(files.mount.sb.nvram.path, 2 * PAGE_SIZE)
    assert files.read(opened, 0, 10) == (NAMES[0] * 1000)[:10]
    # Two runs, so the bytes are gathered by preadv, which tells.
    runs = files.call(files.operations.read, opened[0], 0, 2 * PAGE_SIZE)
    assert len(runs) == 2
    with pytest.raises(DeviceError, match="cut short"):
        files.mount.read_bytes(runs)
    files.close(opened)
    assert error_of(files.attributes, NAMES[9]) == "EIO"
    assert error_of(files.xattrs, NAMES[0]) == "EIO"
    for _ in range(3):
        files.mount.run_epoch()
    os.truncate(files.mount.sb.nvram.path, 256 * PAGE_SIZE)


def test_promoting_what_is_cut_off(made: Made, serve):
    files = serve()
    opened = files.open(NAMES[0])
    os.truncate(files.mount.sb.nvram.path, 2 * PAGE_SIZE)
    for _ in range(4):
        for page in (0, 1):  # faulted in and counted, never touched
            files.call(files.operations.read, opened[0], page * PAGE_SIZE, PAGE_SIZE)
        files.mount.run_epoch()
    vmstat = files.mount.machine.vmstat
    assert vmstat.pgmigrate_fail > 0
    assert vmstat.pgpromote_success == 0
    assert files.mount.machine.mem_map.nr_free == 8
    files.close(opened)
    os.truncate(files.mount.sb.nvram.path, 256 * PAGE_SIZE)
