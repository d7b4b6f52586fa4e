"""journal: a transaction is in the image wholly or not at all, whenever the writer dies."""

import itertools
from pathlib import Path

import pytest

from tests.kit.crash import StoreLog
from tests.kit.image import ImageKit
from xipfs.errors import DeviceError, FormatError, NoSpaceError
from xipfs.fs.journal import Journal
from xipfs.ondisk.journal import (
    JOURNAL_HEADER,
    JOURNAL_RECORD,
    DiskJournalHeader,
    JournalRecordKind,
    decode_journal_header,
    encode_journal_record,
)
from xipfs.ondisk.superblock import DiskSuperblock
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

FREE = 200 * PAGE_SIZE
"""Some byte of the image that nobody uses."""


class Image:
    """An image with its journal, which can be opened again and again."""

    def __init__(self, path: Path, nr_journal_pages: int = 16) -> None:
        handmade = ImageKit(nr_journal_pages=nr_journal_pages).build()
        self.disk: DiskSuperblock = handmade.disk
        self.path = handmade.write(path)
        self.open()

    def open(self) -> None:
        self.nvram = NvramDevice.open(self.path, writable=True)
        self.journal = Journal(self.nvram, self.disk)

    def reopen(self, image: bytes | None = None) -> None:
        self.nvram.close()
        if image is not None:
            self.path.write_bytes(image)
        self.open()

    @property
    def area(self) -> int:
        return self.disk.journal_block << PAGE_SHIFT

    def header(self) -> DiskJournalHeader:
        return decode_journal_header(self.nvram.load(self.area, PAGE_SIZE), self.disk.seed)

    def data(self, size_bytes: int = 24) -> bytes:
        return self.nvram.load(FREE, size_bytes)


@pytest.fixture
def image(tmp_path: Path):
    image = Image(tmp_path / "nvram.img")
    yield image
    image.nvram.close()


def test_commit_stores_and_moves_the_head(image: Image):
    image.journal.commit([(FREE, b"abc"), (FREE + 8, b"defgh")])
    assert image.data(16) == b"abc\0\0\0\0\0defgh\0\0\0"
    assert image.header() == (2, 3 * JOURNAL_RECORD.size_bytes + 16)


def test_headers_take_turns(image: Image):
    before = image.header()
    image.journal.commit([(FREE, b"a")])
    page = image.nvram.load(image.area, PAGE_SIZE)
    assert before.encode(image.disk.seed) in page, "the newest header was not overwritten"
    image.journal.commit([(FREE, b"b")])
    page = image.nvram.load(image.area, PAGE_SIZE)
    assert before.encode(image.disk.seed) not in page


def test_of_two_ranges_the_later_counts(image: Image):
    with StoreLog(image.nvram) as log:
        image.journal.commit([(FREE, b"aaaa"), (FREE + 2, b"bb")])
    assert image.data(4) == b"aabb"
    for state in log.states():
        image.reopen(state)
        image.journal.replay()
        assert image.data(4) in (bytes(4), b"aabb")


@pytest.mark.parametrize("nr_before", range(0, 60, 7))
def test_killed_anywhere_it_is_there_or_not(image: Image, nr_before: int):
    """Also where a record goes on at the start of the ring."""
    for i in range(nr_before):
        image.journal.commit([(FREE, bytes([i]) * 900)])
    old = image.data(1000)
    with StoreLog(image.nvram) as log:
        image.journal.commit([(FREE + i, b"new!") for i in range(0, 1000, 100)])
    new = image.data(1000)
    found = []
    for state in itertools.chain(log.states(), log.torn_states(nr_before, 40)):
        image.reopen(state)
        image.journal.replay()
        found.append(image.data(1000))
        image.journal.commit([(FREE + 2000, b"and it goes on")])
        image.reopen()
        assert image.journal.replay() == 0
        assert image.nvram.load(FREE + 2000, 4) == b"and "
    assert set(found) == {old, new}
    assert found[0] == old


def test_a_replay_is_begun_again(image: Image):
    with StoreLog(image.nvram) as log:
        image.journal.commit([(FREE + i, b"new!") for i in range(0, 400, 100)])
    new = image.data(400)
    ring_done = next(state for i, state in enumerate(log.states()) if i == 2)
    image.reopen(ring_done)
    with StoreLog(image.nvram) as replayed:
        assert image.journal.replay() == 1
    for state in itertools.chain(replayed.states(), replayed.torn_states(1, 40)):
        image.reopen(state)
        image.journal.replay()
        assert image.data(400) == new


def test_replay_goes_through_several_transactions_and_stops_at_the_first_that_is_not_whole(
    image: Image,
):
    seed, position, parts = image.disk.seed, 0, b""
    for sequence, is_whole in ((1, True), (2, True), (3, False), (4, True)):
        for number in range(2):
            target = FREE + 8 * sequence + number
            data = b"%d" % sequence
            parts += encode_journal_record(seed, sequence, JournalRecordKind.DATA, target, data)
        if is_whole:
            parts += encode_journal_record(seed, sequence, JournalRecordKind.COMMIT, 2, b"")
    image.nvram.store_bytes(image.area + PAGE_SIZE + position, parts)
    assert image.journal.replay() == 2
    assert image.data(40)[8:] == b"11".ljust(8, b"\0") + b"22".ljust(24, b"\0")
    assert image.header().sequence == 3 + 15 * PAGE_SIZE


@pytest.mark.parametrize(
    ("target", "data", "count"),
    [
        (FREE, b"x", 2),
        (FREE, b"x", 0),
        (256 * PAGE_SIZE - 1, b"xx", 1),
        (1 << 63, b"x", 1),
        (FREE, b"", 1),
        (None, b"x", 1),
    ],
    ids=["count", "no count", "past the image", "far past it", "no bytes", "in the journal"],
)
def test_what_is_not_allowed_never_happened(
    image: Image, target: int | None, data: bytes, count: int
):
    seed = image.disk.seed
    where = image.area + 100 if target is None else target
    parts = encode_journal_record(seed, 1, JournalRecordKind.DATA, where, data)
    parts += encode_journal_record(seed, 1, JournalRecordKind.COMMIT, count, b"")
    image.nvram.store_bytes(image.area + PAGE_SIZE, parts)
    before = image.nvram.load(0, image.area), image.data(1)
    assert image.journal.replay() == 0
    assert (image.nvram.load(0, image.area), image.data(1)) == before


def test_a_record_that_claims_more_than_the_ring(image: Image):
    head = bytearray(JOURNAL_RECORD.encode(image.disk.seed, sequence=1, kind=1, target=FREE))
    head[20:24] = (1 << 31).to_bytes(4, "little")
    image.nvram.store_bytes(image.area + PAGE_SIZE, head)
    assert image.journal.replay() == 0


def test_a_transaction_as_large_as_the_ring_and_one_larger(image: Image):
    room_bytes = image.journal.size_bytes_max - 2 * JOURNAL_RECORD.size_bytes
    data = bytes(range(256)) * (room_bytes // 256 + 1)
    records = [(FREE, data[:room_bytes])]
    assert Journal.size_bytes(records) == image.journal.size_bytes_max
    image.journal.commit(records)
    with StoreLog(image.nvram) as log:
        image.journal.commit(records)
    for state in log.states():
        image.reopen(state)
        image.journal.replay()
    before = image.nvram.load(0, image.nvram.size_bytes)
    with pytest.raises(NoSpaceError, match="its journal holds 61440"):
        image.journal.commit([(FREE, data[: room_bytes + 1])])
    assert image.nvram.load(0, image.nvram.size_bytes) == before


class FailingNvram:
    """Makes the *countdown*-th store from now on fail, and all others behind it if *for_good*."""

    def __init__(self, nvram: NvramDevice, monkeypatch, countdown: int, *, for_good: bool) -> None:
        store_bytes = NvramDevice.store_bytes
        self.nr_stores = 0

        def failing(device: NvramDevice, offset: int, data: bytes) -> None:
            self.nr_stores += 1
            is_due = self.nr_stores >= countdown if for_good else self.nr_stores == countdown
            if is_due:
                raise DeviceError("worn out")
            store_bytes(device, offset, data)

        monkeypatch.setattr(NvramDevice, "store_bytes", failing)


def test_a_store_that_fails_in_the_ring_is_as_if_nothing_had_been(image: Image, monkeypatch):
    with monkeypatch.context() as patch:
        FailingNvram(image.nvram, patch, 1, for_good=False)
        with pytest.raises(DeviceError, match="worn out"):
            image.journal.commit([(FREE, b"a")])
    assert not image.journal.aborted
    assert image.header().sequence == 1 + 15 * PAGE_SIZE
    image.journal.commit([(FREE, b"b")])
    assert image.data(1) == b"b"


@pytest.mark.parametrize("countdown", [2, 3, 4])
def test_a_store_that_fails_later_leaves_it_to_the_next_mount(
    image: Image, monkeypatch, countdown: int
):
    with monkeypatch.context() as patch:
        FailingNvram(image.nvram, patch, countdown, for_good=True)
        with pytest.raises(DeviceError, match="worn out"):
            image.journal.commit([(FREE, b"a"), (FREE + 100, b"b")])
    assert image.journal.aborted
    with pytest.raises(DeviceError, match="a mount will recover it"):
        image.journal.commit([(FREE, b"c")])
    image.reopen()
    assert image.journal.replay() == 1
    assert (image.data(1), image.nvram.load(FREE + 100, 1)) == (b"a", b"b")


def test_a_ring_that_cannot_be_abandoned_is_aborted(image: Image, monkeypatch):
    with monkeypatch.context() as patch:
        FailingNvram(image.nvram, patch, 1, for_good=True)
        with pytest.raises(DeviceError, match="worn out"):
            image.journal.commit([(FREE, b"a")])
    assert image.journal.aborted


def test_a_torn_header_leaves_the_other(image: Image):
    for data in (b"a", b"b"):
        image.journal.commit([(FREE, data)])
    newest = image.header()
    page = image.nvram.load(image.area, PAGE_SIZE)
    place = page.index(newest.encode(image.disk.seed))
    image.nvram.store_bytes(image.area + place + 8, b"\xff" * 8)
    image.reopen()
    assert image.header().sequence == newest.sequence - 1
    assert image.journal.replay() == 1, "the last one, once more"
    assert image.data(1) == b"b"


@pytest.mark.parametrize(
    "header", [DiskJournalHeader(0, 0), DiskJournalHeader(1, 4), DiskJournalHeader(1, 15 * 4096)]
)
def test_a_header_that_makes_no_sense(image: Image, header: DiskJournalHeader):
    image.nvram.store_bytes(image.area, header.encode(image.disk.seed))
    with pytest.raises(FormatError, match="the journal starts with"):
        Journal(image.nvram, image.disk)


def test_no_header_at_all(image: Image):
    image.nvram.store_bytes(image.area, bytes(2 * JOURNAL_HEADER.size_bytes))
    with pytest.raises(FormatError, match="journal header"):
        Journal(image.nvram, image.disk)


@pytest.mark.parametrize("fields", [{"nr_journal_pages": 1}, {"journal_block": 250}])
def test_a_journal_that_is_nowhere(image: Image, fields: dict[str, int]):
    with pytest.raises(FormatError, match="a journal of"):
        Journal(image.nvram, image.disk._replace(**fields))
