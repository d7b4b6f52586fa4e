"""ACLs as text become what Linux stores."""

import os
import struct

import pytest

from xipfs.fs.posix_acl import acl_from_text

NONE = 0xFFFFFFFF


def entries(value: bytes) -> list[tuple[int, int, int]]:
    assert value[:4] == b"\2\0\0\0"
    return list(struct.iter_unpack("<HHI", value[4:]))


def test_long_text():
    text = "user::rwx\nuser:1000:r-x\ngroup::r--\ngroup:20:-w-\nmask::rwx\nother::---\n"
    assert entries(acl_from_text(text)) == [
        (0x01, 7, NONE),
        (0x02, 5, 1000),
        (0x04, 4, NONE),
        (0x08, 2, 20),
        (0x10, 7, NONE),
        (0x20, 0, NONE),
    ]


def test_short_text_in_any_order_with_comments():
    text = "o:r, m:rw-, u:3:rw-  # effective\n,u::rwx,g::x,u:7:-"
    assert entries(acl_from_text(text)) == [
        (0x01, 7, NONE),
        (0x02, 6, 3),
        (0x02, 0, 7),
        (0x04, 1, NONE),
        (0x10, 6, NONE),
        (0x20, 4, NONE),
    ]


def test_names():
    """An id in the text goes before what this machine knows."""
    text = "user:root:rwx,group:root:r--,user:nobody at all:rw-:1234"
    assert entries(acl_from_text(text)) == [(0x02, 7, 0), (0x02, 6, 1234), (0x08, 4, 0)]


@pytest.mark.parametrize("text", ["user", "user:a:b:c:d", "owner::rwx", "user::rwq", "mask:1:r"])
def test_bad_text(text):
    with pytest.raises(ValueError, match="no ACL entry"):
        acl_from_text(text)


@pytest.mark.parametrize("text", ["user:no such user:r", "group:no such group:r"])
def test_unknown_names(text):
    with pytest.raises(ValueError, match="--numeric-owner"):
        acl_from_text(text)


def test_linux_takes_it(tmp_path):
    """The kernel checks an ACL that is set, and gives it back as it was."""
    value = acl_from_text("u::rw-,u:1:r--,g::r--,m::r--,o::---")
    os.setxattr(tmp_path, "system.posix_acl_access", value)
    assert os.getxattr(tmp_path, "system.posix_acl_access") == value
