"""The superblock tells newer, foreign and damaged images apart; the state record goes with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.errors import FormatError
from xipfs.ondisk.record import checksum_seed
from xipfs.ondisk.superblock import (
    CHECKSUM_CRC32,
    COMPAT_KNOWN,
    FORMAT_VERSION,
    STATE,
    STATE_INODE_OFFSET,
    DiskState,
    DiskSuperblock,
    StateFlags,
    decode_state,
    decode_superblock,
)

SUPERBLOCK = DiskSuperblock(
    version=FORMAT_VERSION,
    checksum_type=CHECKSUM_CRC32,
    compat=0,
    ro_compat=0,
    incompat=0,
    uuid=bytes(range(16)),
    hash_key=bytes(range(16, 32)),
    label="größe".encode().ljust(64, b"\0"),
    created_ns=-1,
    page_shift=12,
    group_shift=15,
    nr_pages=1000,
    nr_groups=1,
    gdt_block=996,
    bitmap_block=997,
    journal_block=900,
    nr_journal_pages=64,
)
SEED = SUPERBLOCK.seed
STATE_RECORD = DiskState(
    flags=StateFlags.CLEAN,
    nr_free_pages=5,
    nr_inodes=3,
    ino_end=20,
    free_ino_head=17,
    orphan_ino_head=18,
    mounted_ns=1,
    written_ns=2,
    mount_count=4,
)

u64 = st.integers(0, 2**64 - 1)


def test_round_trip():
    page = SUPERBLOCK.encode()
    assert len(page) == 4096
    assert decode_superblock(page, "page 0") == SUPERBLOCK


def test_its_own_seal_does_not_need_the_uuid():
    other = SUPERBLOCK._replace(uuid=bytes(16))
    assert decode_superblock(other.encode(), "page 0").seed == checksum_seed(bytes(16)) != SEED


@given(st.integers(0, 2**32 - 1).filter(lambda version: version != FORMAT_VERSION))
def test_another_version_is_named_and_not_called_damage(version: int):
    page = SUPERBLOCK._replace(version=version).encode()
    with pytest.raises(FormatError, match=f"format version {version}, .* use a newer xipfs"):
        decode_superblock(page, "page 0")


def test_a_damaged_version_is_called_damage():
    page = bytearray(SUPERBLOCK.encode())
    page[8] += 1
    with pytest.raises(FormatError, match="damaged superblock"):
        decode_superblock(page, "page 0")


@given(st.integers(1, 2**64 - 1))
def test_unknown_incompatible_features_are_refused(incompat: int):
    page = SUPERBLOCK._replace(incompat=incompat).encode()
    with pytest.raises(FormatError, match=f"features {incompat:#x}.*use a newer xipfs"):
        decode_superblock(page, "page 0")


@given(u64, u64)
def test_other_unknown_features_do_not_stop_a_reader(compat: int, ro_compat: int):
    superblock = SUPERBLOCK._replace(compat=compat, ro_compat=ro_compat)
    assert decode_superblock(superblock.encode(), "page 0") == superblock


@pytest.mark.parametrize("fields", [{"checksum_type": 2}, {"page_shift": 16}])
def test_what_this_code_cannot_read_is_refused(fields: dict[str, int]):
    page = SUPERBLOCK._replace(**fields).encode()
    with pytest.raises(FormatError, match="reads only type 1 and 2\\^12"):
        decode_superblock(page, "page 0")


@pytest.mark.parametrize("page", [b"", bytes(4096), b"\x7fELF".ljust(4096, b"\0"), bytes(100)])
def test_what_is_no_image_is_no_image(page: bytes):
    with pytest.raises(FormatError, match=r"^page 0: (this is no superblock|[0-9]+ bytes)"):
        decode_superblock(page, "page 0")


def test_the_known_features_are_the_named_ones():
    assert COMPAT_KNOWN == 1


def test_state_round_trip():
    record = STATE_RECORD.encode(SEED)
    assert len(record) == STATE.size_bytes == STATE_INODE_OFFSET
    assert decode_state(record, SEED) == STATE_RECORD


def test_the_state_of_another_image_is_refused():
    with pytest.raises(FormatError, match=r"^page 1: damaged state record"):
        decode_state(STATE_RECORD.encode(SEED ^ 1), SEED)
