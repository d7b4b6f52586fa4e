"""fsck repairs: the cases of test_fsck.py, each broken, repaired, and looked at again."""

import random
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.kit.image import HandmadeImage, ImageKit
from tests.kit.sample import Sample, make_sample
from tests.kit.survivors import assert_kept, files, untouched
from tests.unit.fs.test_fsck import CASES, numbers
from xipfs.errors import ImageBusyError
from xipfs.fs.contents import list_directory
from xipfs.fs.fsck import FsckReport, Invariant, fsck, repair
from xipfs.fs.fsck.repair import repair_image
from xipfs.fs.namei import path_lookup
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.extent import EXTENT_DTYPE
from xipfs.ondisk.inode import INO_ROOT, INODE
from xipfs.ondisk.superblock import StateFlags
from xipfs.phys.nvram import CACHE_LINE_SIZE_BYTES, NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

I = Invariant  # noqa: E741
NOW_NS = 1_800_000_000_000_000_000

REFUSED = {"two_flipped_superblocks"}
"""Besides all cases of I3 and I5."""

SAFE = {
    *(I.SUPERBLOCK, I.REPLICA, I.JOURNAL, I.STATE, I.NR_PAGES, I.ACL_FEATURE, I.NR_ENTRIES),
    *(I.NLINK, I.LISTS, I.GROUPS, I.BITMAPS, I.FREE_COUNTS, I.NR_INODES, I.RESERVED, I.TAILS),
}
"""What -p repairs."""


LOSES = {"a_flipped_state", "a_transaction_behind_a_torn_state", "no_ino_end"}
"""Only rules of SAFE are broken, but not in a way that -p repairs."""


def cases(*, refused: bool) -> list:
    return [
        pytest.param(*case, id=case[0])
        for case in CASES
        if (case[0] in REFUSED or any(i in (I.FEATURES, I.LAYOUT) for i in case[1])) == refused
    ]


def mend(path: Path, *, unsafe: bool = True) -> FsckReport:
    return repair(path, unsafe=unsafe, now_ns=NOW_NS)


def broken(function: Callable, tmp_path: Path) -> tuple[Path, HandmadeImage, dict]:
    """Return (the broken image, what it was, what was in it)."""
    sound = make_sample()
    before = files(sound.image.write(tmp_path / "sound.img"))
    sample = make_sample()
    function(sample)
    return sample.image.write(tmp_path / "nvram.img"), sound.image, before


# -y


@pytest.mark.parametrize(("name", "expected", "function"), cases(refused=False))
def test_all_that_is_broken_is_repaired(tmp_path, name, expected, function):
    path, sound, before = broken(function, tmp_path)
    inos = untouched(sound, path.read_bytes())
    report = mend(path)
    assert not report.findings, report.findings
    assert not fsck(path).findings
    assert report.exit_code == bool(expected)
    assert bool(report.repairs) == bool(expected)
    assert_kept(before, files(path), inos)
    mended = path.read_bytes()
    assert mend(path).exit_code == 0
    assert path.read_bytes() == mended


@pytest.mark.parametrize(("name", "expected", "function"), cases(refused=True))
def test_what_cannot_be_repaired_is_left_alone(tmp_path, name, expected, function):
    path, _, _ = broken(function, tmp_path)
    damaged = path.read_bytes()
    found = fsck(path)
    report = mend(path)
    assert report == found
    assert report.unchecked
    assert report.exit_code in (4, 8)
    assert path.read_bytes() == damaged


# -p


@pytest.mark.parametrize(("name", "expected", "function"), cases(refused=False))
def test_what_is_safe_is_repaired_without_loss(tmp_path, name, expected, function):
    path, sound, before = broken(function, tmp_path)
    inos = untouched(sound, path.read_bytes())
    report = mend(path, unsafe=False)
    if set(expected) <= SAFE and name not in LOSES:
        assert report.exit_code == bool(expected)
        assert not fsck(path).findings
        assert_kept(before, files(path), inos)
        return
    assert report.exit_code == 4
    assert report.unchecked
    assert mend(path).exit_code == 1
    assert not fsck(path).findings


def test_what_is_left_is_remembered(tmp_path):
    """-p makes the journal right, and stops at an inode; then the state says ERROR."""
    sample = make_sample()
    sample.image.change_inode(sample.empty, rdev=1)
    sample.image.change_inode(sample.hard, nlink=7)
    path = sample.image.write(tmp_path / "nvram.img")
    report = mend(path, unsafe=False)
    assert not report.repairs
    assert report.unchecked == ("inodes: not repaired, as -p loses nothing",)
    assert numbers(fsck(path)) == ["I10", "I24", "I7"]
    sb = SuperBlock.open(path)
    assert sb.state.flags == StateFlags.CLEAN | StateFlags.ERROR
    sb.close()
    assert mend(path).exit_code == 1
    assert not fsck(path).findings


# What a repair leaves


def names_in(path: Path, directory: bytes) -> dict[bytes, int]:
    sb = SuperBlock.open(path)
    try:
        found = path_lookup(sb, directory)
        return {entry.name: entry.ino for entry in list_directory(sb, found)}
    finally:
        sb.close()


def lose_root(sample: Sample) -> None:
    """Zero the inode of the root and its pages."""
    image = sample.image
    block, inode = image.dir_block(INO_ROOT), image.inode(INO_ROOT)
    image.data[block << PAGE_SHIFT : (block << PAGE_SHIFT) + inode.size_bytes] = bytes(
        inode.size_bytes
    )
    start = image.inode_offset(INO_ROOT)
    image.data[start : start + INODE.size_bytes] = bytes(INODE.size_bytes)


def test_what_has_no_name_gets_its_number_in_lost_and_found(tmp_path):
    """The root is gone, and with it the names in it; its directories keep theirs."""
    sample = make_sample()
    lose_root(sample)
    path = sample.image.write(tmp_path / "nvram.img")
    mend(path)
    assert set(names_in(path, b"/")) == {b"lost+found"}
    lost = names_in(path, b"/lost+found")
    assert lost[b"#%d" % sample.etc] == sample.etc
    assert lost[b"#%d" % sample.fifo] == sample.fifo
    assert names_in(path, b"/lost+found/#%d" % sample.etc)[b"hosts"] == sample.hosts


def test_a_lost_inode_of_a_directory_is_made_from_its_pages(tmp_path):
    sample = make_sample()
    start = sample.image.inode_offset(sample.etc)
    sample.image.data[start : start + INODE.size_bytes] = bytes(INODE.size_bytes)
    before = names_in(make_sample().image.write(tmp_path / "sound.img"), b"/etc")
    path = sample.image.write(tmp_path / "nvram.img")
    mend(path)
    assert names_in(path, b"/etc") == before


def test_a_lost_inode_file_is_found(tmp_path):
    """All of page 1 is gone: what it said is in the inodes."""
    sample = make_sample()
    sample.image.data[PAGE_SIZE : 2 * PAGE_SIZE] = bytes(PAGE_SIZE)
    before = files(make_sample().image.write(tmp_path / "sound.img"))
    path = sample.image.write(tmp_path / "nvram.img")
    mend(path)
    assert files(path) == before


def test_names_in_a_damaged_page_are_known_by_their_hash(tmp_path):
    """One bit of the second name is flipped: the others of its page stay, its file is numbered."""
    sample = make_sample()
    image = sample.image
    name = b"fifo"
    pgoff, slot = image.find_slot(INO_ROOT, name)
    start = int(image.dir_page(INO_ROOT, pgoff).entries["name_offset"][slot])
    image.page(image.dir_block(INO_ROOT, pgoff))[start] ^= 1
    before = names_in(make_sample().image.write(tmp_path / "sound.img"), b"/")
    path = image.write(tmp_path / "nvram.img")
    mend(path)
    assert names_in(path, b"/").keys() == before.keys() - {name} | {b"lost+found"}
    assert names_in(path, b"/lost+found") == {b"#%d" % sample.fifo: sample.fifo}


def test_both_files_of_a_page_keep_its_bytes(tmp_path):
    sample = make_sample()
    image = sample.image
    image.change_extent(sample.sparse, 0, block=int(image.inode(sample.hard).extents["block"][0]))
    path = image.write(tmp_path / "nvram.img")
    mend(path)
    after = files(path)
    assert after[sample.hard].data == b"\xaa" * PAGE_SIZE
    assert after[sample.sparse].data[PAGE_SIZE : 2 * PAGE_SIZE] == b"\xaa" * PAGE_SIZE


def test_an_inode_kept_in_spite_of_its_checksum_runs_as_nobody_else(tmp_path):
    sample = make_sample()
    image = sample.image
    image.change_inode(sample.empty, mode=stat.S_IFREG | 0o6755)
    image.data[image.inode_offset(sample.empty) + 70] ^= 1
    path = image.write(tmp_path / "nvram.img")
    mend(path)
    assert files(path)[sample.empty].mode == stat.S_IFREG | 0o755


def full_image() -> tuple[HandmadeImage, int, int]:
    """Return an image without a free page, and the inodes of /etc and /etc/hosts in it."""
    nr_free_pages = 0
    while True:
        kit = ImageKit(nr_pages=64)
        etc = kit.add_dir(INO_ROOT, b"etc")
        hosts = kit.add_file(etc, b"hosts", b"127.0.0.1")
        kit.add_file(INO_ROOT, b"large", bytes(nr_free_pages * PAGE_SIZE))
        image = kit.build()
        if not image.state.nr_free_pages:
            return image, etc, hosts
        nr_free_pages = image.state.nr_free_pages


def test_a_full_image_is_repaired_in_its_own_pages(tmp_path):
    image, etc, hosts = full_image()
    image.change_entry(etc, b"hosts", d_type=4)
    path = image.write(tmp_path / "nvram.img")
    assert mend(path).exit_code == 1
    assert not fsck(path).findings
    assert names_in(path, b"/etc") == {b"hosts": hosts}


def test_no_room_for_lost_and_found_is_said(tmp_path):
    image, etc, hosts = full_image()
    image.change_entry(etc, b"hosts", ino=1 << 40)
    path = image.write(tmp_path / "nvram.img")
    report = mend(path)
    assert report.exit_code == 4
    assert [str(finding) for finding in report.findings] == [
        f"I23: inode {hosts}: no directory names it"
    ]
    assert report.unchecked == (
        f"what has no name: not repaired: {path}: no 1 pages are free for a repair",
    )
    assert numbers(fsck(path)) == ["I23", "I7"]


def test_a_directory_that_claims_the_pages_of_another(tmp_path):
    """The root came first and took them, though the seal of their owner is on them."""
    sample = make_sample()
    image = sample.image
    before = files(image.write(tmp_path / "nvram.img"))
    extents = np.array([(0, 2, 250, 0)], EXTENT_DTYPE)
    image.change_inode(INO_ROOT, nr_extents=1, nr_pages=250, payload=extents.tobytes())
    path = image.write(tmp_path / "nvram.img")
    assert mend(path).exit_code == 1
    assert not fsck(path).findings
    after = files(path)
    assert after[sample.etc] == before[sample.etc]
    assert names_in(path, b"/etc")[b"hosts"] == sample.hosts


def test_it_needs_the_image_for_itself(tmp_path):
    path = make_sample().image.write(tmp_path / "nvram.img")
    reader = NvramDevice.open(path)
    with pytest.raises(ImageBusyError):
        mend(path)
    reader.close()
    assert mend(path).exit_code == 0


# A crash in the middle


NR_STATES_MAX = 12
"""Of the 2 to 80 that a case has."""

CRASHES = [
    "a_flipped_superblock",
    "no_journal_header",
    "a_transaction_to_replay",
    "a_flipped_state",
    "a_flipped_inode_of_the_inode_file",
    "a_flipped_inode",
    "an_extent_out_of_order",
    "a_flipped_node",
    "a_page_of_two_files",
    "a_flipped_leaf",
    "a_name_of_no_inode",
    "directories_in_a_circle",
    "too_many_links",
    "a_free_list_in_a_circle",
    "a_flipped_bitmap",
    "acls_without_the_feature",
]


class Recorder:
    """Keeps what happens to the device: (offset, bytes) of stores, True for a fence."""

    def __init__(self, nvram: NvramDevice) -> None:
        self.nvram = nvram
        self.events: list[tuple[int, bytes] | None] = []
        nvram.observer = self

    def on_store(self, offset: int, size_bytes: int) -> None:
        self.events.append((offset, self.nvram.load(offset, size_bytes)))

    def on_flush(self, offset: int, size_bytes: int) -> None:
        """Every store is flushed before the next fence, as writeout does it."""

    def on_fence(self) -> None:
        self.events.append(None)


def crash_states(base: bytes, events: list, rng: random.Random) -> Iterator[bytes]:
    """Yield images: cut off between any two stores, and with any lines of unfenced ones lost."""
    durable = bytearray(base)
    pending: list[tuple[int, bytes]] = []
    for event in events:
        if event is not None:
            pending.append(event)
            image = bytearray(durable)
            for offset, data in pending:
                image[offset : offset + len(data)] = data
            yield bytes(image)
            continue
        lines = [
            (start, data[start - offset : start - offset + size])
            for offset, data in pending
            for start, size in line_parts(offset, len(data))
        ]
        image = bytearray(durable)
        for start, data in rng.sample(lines, rng.randint(0, len(lines))):
            image[start : start + len(data)] = data
        yield bytes(image)
        for offset, data in pending:
            durable[offset : offset + len(data)] = data
        pending.clear()


def line_parts(offset: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    end = offset + size_bytes
    while offset < end:
        stop = min(end, (offset // CACHE_LINE_SIZE_BYTES + 1) * CACHE_LINE_SIZE_BYTES)
        yield offset, stop - offset
        offset = stop


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_in_a_repair_is_repaired(tmp_path, name):
    function = next(case[2] for case in CASES if case[0] == name)
    path, sound, before = broken(function, tmp_path)
    damaged = path.read_bytes()
    inos = untouched(sound, damaged)
    nvram = NvramDevice.open(path, writable=True)
    recorder = Recorder(nvram)
    repair_image(nvram, unsafe=True, now_ns=NOW_NS)
    nvram.close()
    rng = random.Random(1)
    states = list(dict.fromkeys(crash_states(damaged, recorder.events, rng)))
    assert len(states) > 1
    for number, state in enumerate(rng.sample(states, min(len(states), NR_STATES_MAX))):
        path.write_bytes(state)
        report = mend(path)
        assert not report.findings, (number, report.findings)
        assert not fsck(path).findings, number
        assert_kept(before, files(path), inos)


def test_the_document_says_what_repairs():
    text = (Path(__file__).parents[3] / "docs" / "FSCK.md").read_text()
    rows = re.findall(r"^\| (I\d+) \| .* \| (-[py]|) \|$", text, re.MULTILINE)
    left = {I.FEATURES, I.SIZE, I.LAYOUT}
    assert dict(rows) == {str(i): "" if i in left else "-p" if i in SAFE else "-y" for i in I}
