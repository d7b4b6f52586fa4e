"""Damaged archives: an image that is sound, or one SourceError. The seed in the name replays it."""

import io
import random
import tarfile

import pytest

from tests.kit.image_reader import read_image
from xipfs.errors import SourceError
from xipfs.fs.mkfs import mkfs
from xipfs.fs.tarsource import read_tar

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
SPARSE_HEADERS = {"GNU.sparse.map": "0,512,8192,512", "GNU.sparse.size": "10000"}


def sound_archive(tar_format: int) -> bytes:
    """Return an archive with every kind of header."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as tar:
        for name, kind, fields in [
            ("./d", tarfile.DIRTYPE, {}),
            ("d/" + "n" * 90, tarfile.REGTYPE, {"size": 3000}),
            ("l", tarfile.SYMTYPE, {"linkname": "t" * (90 if tar_format == FORMATS[0] else 150)}),
            ("h", tarfile.LNKTYPE, {"linkname": "l"}),
            ("c", tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
            ("x", tarfile.FIFOTYPE, {"pax_headers": {"mtime": "1.5", "SCHILY.xattr.user.a": "b"}}),
            ("s", tarfile.REGTYPE, {"size": 1024, "pax_headers": SPARSE_HEADERS}),
        ]:
            member = tarfile.TarInfo(name)
            member.type = kind
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return stream.getvalue()


def damage(data: bytearray, seed: int) -> None:
    """Flip bits; or change headers and make their checksums right again."""
    chance = random.Random(seed)
    for _ in range(chance.randrange(1, 4)):
        if seed % 4 == 0:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            continue
        start = chance.randrange(12) * tarfile.BLOCKSIZE
        value = chance.choice([0x00, 0x30, 0x37, 0x80, 0xFF, chance.randrange(256)])
        data[start + chance.randrange(tarfile.BLOCKSIZE)] = value
        header = data[start : start + tarfile.BLOCKSIZE]
        header[148:156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(header)


@pytest.mark.parametrize("seed", range(240))
def test_damaged_archives(tmp_path, seed):
    data = bytearray(sound_archive(FORMATS[seed % 3]))
    damage(data, seed)
    source = read_tar(io.BufferedReader(io.BytesIO(data)), "a.tar")
    try:
        mkfs(tmp_path / "a.img", source, now_ns=1)
    except SourceError as exc:
        assert "\n" not in str(exc)  # noqa: PT017
        assert list(tmp_path.iterdir()) == []
    else:
        read_image(tmp_path / "a.img")


@pytest.mark.parametrize("tar_format", FORMATS)
def test_the_undamaged_archive_is_sound(tmp_path, tar_format):
    source = read_tar(io.BufferedReader(io.BytesIO(sound_archive(tar_format))), "a.tar")
    mkfs(tmp_path / "a.img", source, now_ns=1)
    assert len(read_image(tmp_path / "a.img").paths) == 8
