"""Damaged images: an error in one line or a finding is fine; anything else is a bug.

Two kinds of damage. Bytes flipped or overwritten anywhere in the metadata: what a bad disk does,
and checksums find. And fields changed in records that are sealed again: what a bug or an attacker
does, and only distrust helps. All readers are driven over both, with a bound on what they may read,
so that a walk without end fails and does not hang.

hypothesis prints the example that fails; put it into `@example(...)` to play it again.
"""

import contextlib
import functools
import io
import itertools
import os
import shutil
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.image import HandmadeImage
from tests.kit.recipe import Record, records_of
from tests.kit.sample import Sample, make_sample
from xipfs.cli.main import main
from xipfs.errors import XipfsError
from xipfs.fs.contents import iter_contents
from xipfs.fs.copyout import copy_out
from xipfs.fs.fsck import NR_FINDINGS_MAX, fsck
from xipfs.fs.namei import path_lookup
from xipfs.fs.superblock import SuperBlock
from xipfs.ondisk.inode import INO_ROOT
from xipfs.ondisk.superblock import SUPERBLOCK
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SIZE, Ino, Pgoff

FEWER = settings(max_examples=settings.default.max_examples // 4)
NR_LOADS_MAX = 20_000
"""Far more than any reader needs for the sample, which has 65 pages in use."""
LOAD_SIZE_BYTES_MAX = 1 << 20
NR_PARTS_MAX = 50
PEAK_BYTES_MAX = 64 << 20


@functools.cache
def records() -> list[Record]:
    """Return every record of the sample that has a checksum, but for the replica."""
    return records_of(make_sample().image)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module", autouse=True)
def bounded() -> Iterator[None]:
    """Let each reader read so much and no more."""
    load = NvramDevice.load

    def counted_load(self: NvramDevice, offset: int, size_bytes: int) -> bytes:
        loads[0] += 1
        assert loads[0] <= NR_LOADS_MAX, "a reader does not come to an end"
        assert size_bytes <= LOAD_SIZE_BYTES_MAX, "a reader takes too much at once"
        return load(self, offset, size_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NvramDevice, "load", counted_load)
        yield


loads = [0]


def walk(path: Path) -> None:
    """Look everything up that can be looked up, as a mount would."""
    sb = SuperBlock.open(path)
    try:
        waiting, seen = [INO_ROOT], set()
        while waiting:
            ino = waiting.pop()
            if ino in seen:
                continue
            seen.add(ino)
            inode = only_xipfs_errors(sb.iget, ino)
            if inode is None:
                continue
            only_xipfs_errors(sb.read_xattrs, inode)
            only_xipfs_errors(inode.extents.pfns, Pgoff(0), 64)
            only_xipfs_errors(inode.extents.find_block, Pgoff((1 << 32) - 1))
            if stat.S_ISLNK(inode.disk.mode):
                only_xipfs_errors(sb.read_all, inode, 4096)
            if inode.is_dir:
                entries = only_xipfs_errors(
                    lambda inode=inode: list(sb.dir_reader.iter_entries(inode.disk, inode.extents))
                )
                for entry in entries or ():
                    only_xipfs_errors(sb.lookup, inode, entry.name)
                    waiting.append(entry.ino)
                only_xipfs_errors(sb.lookup, inode, b"no such name")
        for name in (b"tree", b"sparse", b"short", b"etc/hosts", b"long/hard"):
            only_xipfs_errors(read_some, sb, name)
    finally:
        sb.close()


def read_some(sb: SuperBlock, name: bytes) -> None:
    for part in itertools.islice(iter_contents(sb, path_lookup(sb, name)), NR_PARTS_MAX):
        assert len(part) <= LOAD_SIZE_BYTES_MAX


def only_xipfs_errors(function: Callable, *arguments: object) -> object:
    try:
        return function(*arguments)
    except XipfsError as exc:
        text = str(exc)
    assert "\n" not in text
    return None


def commands(path: Path) -> None:
    """What a user tries first. `main` turns an XipfsError into a line; all else comes through."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        run_commands(path)
    assert "Traceback" not in out.getvalue()


def run_commands(path: Path) -> None:
    for arguments in (
        ["info", path],
        ["fsck", path],
        ["ls", "-lR", path],
        ["ls", "-R", "--json", path],
        ["dump", path],
        ["dump", path, "--inode", "1"],
        ["dump", path, "/etc"],
    ):
        loads[0] = 0
        assert main([str(a) for a in arguments]) in (0, 1, 4, 8)


def read_everything(path: Path) -> None:
    loads[0] = 0
    only_xipfs_errors(walk, path)
    loads[0] = 0
    report = only_xipfs_errors(fsck, path)
    assert report is None or len(report.findings) <= NR_FINDINGS_MAX


# Flips in what is sealed


@pytest.mark.parametrize("number", range(len(records())))
def test_a_flip_in_any_record_is_found(place, number):
    """One bit in each record, another one for each run of `--long`."""
    record = records()[number]
    image = make_sample().image
    bit = (number * 7919 + 5) % (record.size_bytes * 8)
    image.data[record.offset + bit // 8] ^= 1 << bit % 8
    assert findings(image, place), f"bit {bit} of {record.name}"


@given(st.data())
def test_any_flip_in_a_record_is_found(place, data):
    record = data.draw(st.sampled_from(records()))
    byte = data.draw(st.integers(0, record.size_bytes - 1))
    image = make_sample().image
    image.data[record.offset + byte] ^= data.draw(st.integers(1, 255))
    assert findings(image, place)


@FEWER
@given(st.integers(0, PAGE_SIZE - 1), st.integers(1, 255))
def test_any_flip_in_the_replica_is_found(place, byte, bits):
    image = make_sample().image
    image.replica[byte] ^= bits
    assert findings(image, place)


def findings(image: HandmadeImage, place: Path) -> tuple:
    loads[0] = 0
    return fsck(image.write(place / "nvram.img")).findings


# Damage of any kind

INTERESTING = st.one_of(
    st.sampled_from(
        [0, 1, 2, 3, 4, 5, 6, 16, 120, 121, 255, 256, 4095, 4096, 4097]
        + [(1 << n) + d for n in (15, 16, 31, 32, 44, 47, 51, 52, 62, 63, 64) for d in (-1, 0)]
    ),
    st.integers(0, 300),
    st.integers(0, (1 << 64) - 1),
)


@st.composite
def overwrites(draw) -> tuple[int, bytes]:
    """(byte of the image, what stands there instead)"""
    offset = draw(st.integers(0, 65 * PAGE_SIZE - 1))
    data = draw(
        st.one_of(
            st.binary(min_size=1, max_size=16),
            st.integers(1, 2 * PAGE_SIZE).map(bytes),
            st.integers(1, PAGE_SIZE).map(lambda n: b"\xff" * n),
        )
    )
    return offset, data


@given(st.lists(overwrites(), min_size=1, max_size=6))
def test_overwritten_images(place, damage):
    image = make_sample().image
    end = len(image.data)
    for offset, data in damage:
        image.data[offset : offset + len(data)] = data
    del image.data[end:]
    read_everything(image.write(place / "nvram.img"))


class Damage(NamedTuple):
    """A record of the sample, by its number, and fields to change: (entry, field, value).

    entry: 0 for the record or head itself, else one of its entries.
    """

    number: int
    changes: list[tuple[int, str, int]]


def places_in(record: Record) -> list[tuple[np.dtype, int]]:
    """Return (dtype, offset) of the record or head, and of each entry."""
    places = [(record.kind.dtype, 0)]
    for dtype, offset, nr_entries in record.entries:
        places += [(dtype, offset + i * dtype.itemsize) for i in range(nr_entries)]
    return places


def changeable(dtype: np.dtype) -> list[str]:
    return [n for n in dtype.names if n not in ("magic", "checksum") and dtype[n].kind != "V"]


@st.composite
def resealed(draw) -> Damage:
    # First a kind of record, then one of it: there is one superblock, and many inodes.
    kind = draw(st.sampled_from(sorted({r.kind.name for r in records() if r.kind})))
    of_kind = [n for n, r in enumerate(records()) if r.kind and r.kind.name == kind]
    number = draw(st.sampled_from(of_kind))
    places = places_in(records()[number])
    changes = []
    for _ in range(draw(st.integers(1, 3))):
        entry = draw(st.integers(0, len(places) - 1))
        name = draw(st.sampled_from(changeable(places[entry][0])))
        changes.append((entry, name, draw(INTERESTING)))
    return Damage(number, changes)


def apply(image: HandmadeImage, damages: list[Damage]) -> None:
    for damage in damages:
        record = records()[damage.number]
        buf = memoryview(image.data)[record.offset : record.offset + record.size_bytes]
        places = places_in(record)
        for entry, name, value in damage.changes:
            dtype, offset = places[entry]
            field = dtype[name]
            mask = (1 << field.itemsize * 8) - 1
            fields = np.frombuffer(buf, dtype, 1, offset)
            fields[name] = np.array(value & mask, f"<u{field.itemsize}").view(field)
        record.kind.seal(buf, 0 if record.kind is SUPERBLOCK else image.seed)
        if record.kind is SUPERBLOCK:
            image.replica[:] = buf


@given(st.lists(resealed(), min_size=1, max_size=3))
def test_resealed_images(place, damage):
    image = make_sample().image
    apply(image, damage)
    read_everything(image.write(place / "nvram.img"))


@FEWER
@given(st.lists(resealed(), min_size=1, max_size=3))
def test_commands_on_resealed_images(place, damage):
    image = make_sample().image
    apply(image, damage)
    commands(image.write(place / "nvram.img"))


@FEWER
@given(st.lists(overwrites(), min_size=1, max_size=3))
def test_commands_on_overwritten_images(place, damage):
    image = make_sample().image
    for offset, data in damage:
        image.data[offset : offset + len(data)] = data
    commands(image.write(place / "nvram.img"))


def test_sizes_and_names_that_no_system_call_takes(place):
    """A size of 2^63, a NUL in a link's target and in an attribute's name ended in a traceback."""
    sample = make_sample()
    image = sample.image
    image.change_inode(sample.hard, size_bytes=1 << 63)
    image.change_extent(sample.long, 0, pgoff=1)
    image.change_inode(sample.empty, size_bytes=(1 << 44) + 1)

    def change(run: memoryview) -> None:
        run[bytes(run).index(b"user.comment") + 5] = 0

    image.change_xattr_run(sample.hosts, change)
    path = image.write(place / "nvram.img")
    shutil.rmtree(place / "below", ignore_errors=True)
    (place / "below").mkdir()
    warnings = copy_all(path, place / "below" / "copy")
    warnings = [text for text in warnings if "not permitted" not in text]  # the device, to users
    assert len(warnings) == 5  # hard has two names
    assert {str(f.invariant) for f in fsck(path).findings} == {"I10", "I11", "I15"}
    read_everything(path)


@FEWER
@given(st.lists(resealed(), min_size=1, max_size=2))
def test_copies_from_resealed_images(place, damage):
    """What a copy makes stays below its target, whatever the image says."""
    image = make_sample().image
    apply(image, damage)
    path = image.write(place / "nvram.img")
    target = place / "below" / "copy"
    shutil.rmtree(place / "below", ignore_errors=True)
    target.parent.mkdir()
    before = sorted(os.listdir(place))
    loads[0] = 0
    only_xipfs_errors(copy_all, path, target)
    assert sorted(os.listdir(place)) == before
    assert os.listdir(target.parent) in ([], ["copy"])


def copy_all(path: Path, target: Path) -> list[str]:
    warnings: list[str] = []
    sb = SuperBlock.open(path)
    try:
        copy_out(sb, sb.iget(INO_ROOT), os.fsencode(target), warn=warnings.append)
    finally:
        sb.close()
    return warnings


@FEWER
@given(st.lists(resealed(), min_size=1, max_size=3))
def test_memory_is_bounded(place, damage):
    image = make_sample().image
    apply(image, damage)
    path = image.write(place / "nvram.img")
    tracemalloc.start()
    try:
        read_everything(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < PEAK_BYTES_MAX


def test_the_sample_is_sound_and_read_in_bounds(place):
    """Otherwise all of the above would prove nothing."""
    sample: Sample = make_sample()
    path = sample.image.write(place / "nvram.img")
    read_everything(path)
    commands(path)
    assert not findings(sample.image, place)
    assert len(records()) > 80
    assert Ino(sample.tree) > 0
