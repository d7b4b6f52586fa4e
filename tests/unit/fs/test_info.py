"""What an image says of itself."""

import pytest

from tests.kit.image import CREATED_NS
from tests.kit.sample import make_sample
from xipfs.errors import FormatError
from xipfs.fs.info import flag_names, read_info
from xipfs.ondisk.superblock import StateFlags


def test_all_figures(tmp_path):
    sample = make_sample()
    path = sample.image.write(tmp_path / "nvram.img")
    info = read_info(path)
    assert info.uuid == "5ca1ab1e-0ddb-a115-ba5e-ba11ca11ab1e"
    assert info.label == "by hand"
    assert info.created_ns == info.written_ns == CREATED_NS
    assert (info.compat, info.ro_compat, info.incompat) == (["ACL"], [], [])
    assert info.state == ["CLEAN"]
    assert info.size_bytes == 256 * 4096 == path.stat().st_size
    assert info.allocated_bytes == path.stat().st_blocks * 512
    assert info.nr_used_pages + info.nr_free_pages == info.nr_pages == 256
    assert info.nr_inodes == sample.image.state.nr_inodes
    assert info.journal_sequence == 1
    assert info.struct_page_saved_bytes == 256 * 64


def test_an_image_that_is_not_clean(tmp_path):
    sample = make_sample()
    sample.image.change_state(flags=int(StateFlags.ERROR), mount_count=3)
    info = read_info(sample.image.write(tmp_path / "nvram.img"))
    assert info.state == ["ERROR"]
    assert info.mount_count == 3


def test_a_label_that_is_no_text(tmp_path):
    sample = make_sample()
    sample.image.change_superblock(label=b"\xffabc")
    assert read_info(sample.image.write(tmp_path / "nvram.img")).label == "\\xffabc"


@pytest.mark.parametrize("offset", [8, 4096 + 40])
def test_damage_is_an_error(tmp_path, offset):
    sample = make_sample()
    sample.image.data[offset] ^= 1
    with pytest.raises(FormatError):
        read_info(sample.image.write(tmp_path / "nvram.img"))


def test_unknown_flags_are_numbers():
    assert flag_names(StateFlags, 0) == []
    assert flag_names(StateFlags, 1 << 63 | 3) == ["CLEAN", "ERROR", "0x8000000000000000"]
    assert flag_names(None, 6) == ["0x6"]
