"""Arch: the table of special bits."""

import pytest

from xipfs.errors import InvalidArgumentError
from xipfs.mm.arch import ARCH_DEFAULT, ARCHS, Arch, get_arch


def test_special_bit_by_architecture_and_version():
    special = {(arch.name, arch.version) for arch in ARCHS if arch.pte_special}
    assert not special & {("generic", arch.version) for arch in ARCHS}
    assert ("x86", "2.6.26") not in special, "it came with fast GUP"
    assert {("x86", "2.6.28"), ("powerpc", "2.6.28"), ("s390", "2.6.26"), ("x86", "6.1")} <= special


def test_no_row_stands_twice():
    assert len({(arch.name, arch.version) for arch in ARCHS}) == len(ARCHS)


@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: f"{arch.name}-{arch.version}")
def test_every_row_is_found_by_its_name(arch: Arch):
    assert get_arch(arch.name, arch.version) is arch


def test_default_is_the_rule_of_2008():
    assert ARCH_DEFAULT[:3] == ("generic", "2.6.28", False)
    assert get_arch("generic") == ARCH_DEFAULT


@pytest.mark.parametrize(("name", "version"), [("vax", "2.6.28"), ("x86", "2.4"), ("s390", "")])
def test_unknown_one_is_told_what_there_is(name: str, version: str):
    with pytest.raises(InvalidArgumentError) as caught:
        get_arch(name, version)
    assert str(caught.value).startswith(f"no architecture {name}-{version}: there are ")
    assert all(f"{arch.name}-{arch.version}" in str(caught.value) for arch in ARCHS)
