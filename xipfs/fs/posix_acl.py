"""POSIX ACLs: the attribute that Linux stores, made from text, and what it does to a file's mode.

    user::rw-,user:1000:r--,group::r--,mask::r--,other::---
                                      |
                                      v
    version 2 | tag perm id | tag perm id | ...         little-endian: 4 | 2 2 4 | 2 2 4 | ...

    acl_from_text(text)              from what archives carry
    check_acl(value)                 can it be set?
    mode_of_acl(value, mode)         setting the ACL of a file sets its mode
    acl_after_chmod(value, mode)     and the other way round
    inherited_acl(default, mode)     a new file in a directory with a default ACL

Source: include/uapi/linux/posix_acl_xattr.h, fs/posix_acl.c; acl(5) for the text, "SHORT TEXT FORM"
too.
"""

import grp
import pwd
from collections.abc import Callable

import numpy as np

from xipfs.ondisk.record import fields_dtype

__all__ = [
    "XATTR_ACL_ACCESS",
    "XATTR_ACL_DEFAULT",
    "acl_after_chmod",
    "acl_from_text",
    "check_acl",
    "inherited_acl",
    "mode_of_acl",
]

XATTR_ACL_ACCESS = b"system.posix_acl_access"
XATTR_ACL_DEFAULT = b"system.posix_acl_default"

_VERSION = (2).to_bytes(4, "little")
_ENTRY_DTYPE = fields_dtype(8, [(0, "<u2", "tag"), (2, "<u2", "perm"), (4, "<u4", "id")])
_ID_NONE = (1 << 32) - 1

# (tag of the text, has it an id?) -> tag of Linux; entries are stored in this order, then by id.
_TAGS = {
    ("user", False): 0x01,
    ("user", True): 0x02,
    ("group", False): 0x04,
    ("group", True): 0x08,
    ("mask", False): 0x10,
    ("other", False): 0x20,
}
_TAG_NAMES = {"u": "user", "g": "group", "m": "mask", "o": "other"}
_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20
_NAMED = (0x02, 0x08)
_PERMS = {"r": 4, "w": 2, "x": 1, "-": 0}


def acl_from_text(text: str) -> bytes:
    """Return the value of system.posix_acl_access or _default for an ACL in text form.

    A name stands for the id behind the permissions if there is one (star and libarchive write
    `user:alice:rw-:1000`), else for that of the user or group of this machine.
    Raises: ValueError.
    """
    entries = []
    for line in text.replace(",", "\n").splitlines():
        entry = line.partition("#")[0].strip()
        if entry:
            entries.append(_parse_entry(entry))
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return _encode(entries)


def check_acl(value: bytes) -> None:
    """Say whether Linux would take *value* as an ACL (posix_acl_valid). Raises: ValueError."""
    rows = _rows(value)
    tags = [tag for tag, _, _ in rows]
    if (
        tags != sorted(tags)
        or not set(tags) <= set(_TAGS.values())
        or any(tags.count(tag) != 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER))
        or tags.count(_MASK) > 1
        or (_MASK not in tags and any(tag in tags for tag in _NAMED))
        or any(perm > 7 for _, perm, _ in rows)
    ):
        raise ValueError("no ACL: its entries are not those of one")


def mode_of_acl(value: bytes, mode: int) -> tuple[int, bool]:
    """Return *mode* with the permissions of an access ACL, and whether that says all of it.

    Source: posix_acl_equiv_mode.
    """
    perms = {tag: perm for tag, perm, _ in _rows(value)}
    group = perms.get(_MASK, perms[_GROUP_OBJ])
    bits = perms[_USER_OBJ] << 6 | group << 3 | perms[_OTHER]
    return mode & ~0o777 | bits, len(perms) == 3


def acl_after_chmod(value: bytes, mode: int) -> bytes:
    """Return an access ACL after its file was given *mode* (__posix_acl_chmod_masq).

    Raises: ValueError for what is no ACL.
    """
    check_acl(value)
    rows = _rows(value)
    group = _MASK if any(tag == _MASK for tag, _, _ in rows) else _GROUP_OBJ
    perms = {_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
    return _encode([(tag, perms.get(tag, perm), entry_id) for tag, perm, entry_id in rows])


def inherited_acl(default: bytes, mode: int) -> tuple[int, bytes | None]:
    """Return mode and access ACL of a file created with *mode* where *default* is the default ACL.

    The ACL is None where the mode says all of it. Source: posix_acl_create_masq.
    Raises: ValueError for what is no ACL.
    """
    check_acl(default)
    rows = _rows(default)
    group = _MASK if any(tag == _MASK for tag, _, _ in rows) else _GROUP_OBJ
    asked = {_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
    value = _encode([(tag, perm & asked.get(tag, 7), entry_id) for tag, perm, entry_id in rows])
    new_mode, is_all = mode_of_acl(value, mode)
    return new_mode, None if is_all else value


def _rows(value: bytes) -> list[tuple[int, int, int]]:
    """Return (tag, perm, id) of each entry. Raises: ValueError."""
    if value[:4] != _VERSION or (len(value) - 4) % _ENTRY_DTYPE.itemsize:
        raise ValueError("no ACL: it has another version or size")
    rows: list[tuple[int, int, int]] = np.frombuffer(value, _ENTRY_DTYPE, offset=4).tolist()
    return rows


def _encode(rows: list[tuple[int, int, int]]) -> bytes:
    return _VERSION + np.array(rows, _ENTRY_DTYPE).tobytes()


def _parse_entry(entry: str) -> tuple[int, int, int]:
    """Return one row of _ENTRY_DTYPE."""
    fields = entry.split(":")
    if len(fields) == 2:  # mask and other may leave the empty qualifier away
        fields.insert(1, "")
    if len(fields) not in (3, 4):
        raise ValueError(f"no ACL entry: {entry!r}")
    tag, qualifier, perms = fields[:3]
    name = _TAG_NAMES.get(tag, tag)
    number = _TAGS.get((name, qualifier != ""))
    if number is None or not set(perms) <= set(_PERMS):
        raise ValueError(f"no ACL entry: {entry!r}")
    entry_id = _ID_NONE
    if qualifier:
        entry_id = int(fields[3]) if len(fields) == 4 else _find_id(name, qualifier)
    return number, sum({_PERMS[p] for p in perms}), entry_id


def _find_id(tag: str, qualifier: str) -> int:
    if qualifier.isdecimal():
        return int(qualifier)
    find: Callable[[str], int] = _uid if tag == "user" else _gid
    try:
        return find(qualifier)
    except KeyError:
        raise ValueError(
            f"{tag} {qualifier!r} of an ACL is not known here: archive with --numeric-owner"
        ) from None


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid
