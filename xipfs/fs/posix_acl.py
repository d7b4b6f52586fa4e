"""POSIX ACLs: from the text that archives carry to the attribute that Linux stores.

    user::rw-,user:1000:r--,group::r--,mask::r--,other::---
                                      |
                                      v
    version 2 | tag perm id | tag perm id | ...         little-endian: 4 | 2 2 4 | 2 2 4 | ...

Source: include/uapi/linux/posix_acl_xattr.h; acl(5) for the text, "SHORT TEXT FORM" too.
"""

import grp
import pwd
from collections.abc import Callable

import numpy as np

from xipfs.ondisk.record import fields_dtype

__all__ = ["acl_from_text"]

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
    return _VERSION + np.array(entries, _ENTRY_DTYPE).tobytes()


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
