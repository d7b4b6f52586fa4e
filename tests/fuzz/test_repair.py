"""Damaged images, repaired: they are clean then, or refused in a line, and what was not hit stays.

The damage is that of test_image.py, and pages that stand in the place of others: what a write that
went astray leaves.

hypothesis prints the example that fails; put it into `@example(...)` to play it again.
"""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.test_image import apply, overwrites, resealed
from tests.kit.image import HandmadeImage
from tests.kit.sample import make_sample
from tests.kit.survivors import File, assert_kept, files, untouched
from xipfs.errors import FormatError
from xipfs.fs.fsck import Invariant, fsck, repair
from xipfs.units import PAGE_SHIFT, PAGE_SIZE

NOW_NS = 1_800_000_000_000_000_000
FEWER = settings(max_examples=settings.default.max_examples // 4)
REFUSED = {Invariant.SUPERBLOCK, Invariant.FEATURES, Invariant.SIZE, Invariant.LAYOUT}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("repair")


_before: dict[int, File] = {}


def before(place: Path) -> dict[int, File]:
    """What is in the sample. (As a fixture it would be printed with each failure, at length.)"""
    if not _before:
        _before.update(files(make_sample().image.write(place / "sound.img")))
    return _before


def repaired(image: HandmadeImage, place: Path) -> bool:
    """Repair *image* in place / "nvram.img"; return whether it was not refused."""
    path = image.write(place / "nvram.img")
    damaged = path.read_bytes()
    try:
        report = repair(path, unsafe=True, now_ns=NOW_NS)
    except FormatError as exc:
        assert "\n" not in str(exc)  # noqa: PT017
        assert path.read_bytes() == damaged
        return False
    if {finding.invariant for finding in report.findings} & REFUSED:
        assert path.read_bytes() == damaged
        return False
    assert not report.findings, report
    assert not fsck(path).findings
    return True


def check_kept(image: HandmadeImage, place: Path) -> None:
    inos = untouched(make_sample().image, bytes(image.data))
    if repaired(image, place):
        assert_kept(before(place), files(place / "nvram.img"), inos)


@FEWER
@given(st.lists(overwrites(), min_size=1, max_size=6))
def test_overwritten_images(place, damage):
    image = make_sample().image
    end = len(image.data)
    for offset, data in damage:
        image.data[offset : offset + len(data)] = data
    del image.data[end:]
    check_kept(image, place)


@FEWER
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 63)), min_size=1, max_size=4))
def test_pages_in_the_place_of_others(place, moves):
    image = make_sample().image
    for source, target in moves:
        image.data[target << PAGE_SHIFT : target + 1 << PAGE_SHIFT] = bytes(image.page(source))
    assert len(image.data) % PAGE_SIZE == 0
    check_kept(image, place)


@FEWER
@given(st.lists(resealed(), min_size=1, max_size=3))
def test_resealed_images(place, damage):
    """Sealed lies can take pages from files that are sound: only that it ends well is asked."""
    image = make_sample().image
    apply(image, damage)
    repaired(image, place)
