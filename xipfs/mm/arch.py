"""Arch: what one architecture of one kernel version has, as far as mixed maps notice.

The pte special bit decides how a page enters a VM_MIXEDMAP area and how `vm_normal_page` tells:

    pte_special   vm_insert_mixed(pfn)                        vm_normal_page asks
    no            pfn_valid: refcounted; else: bare           pfn_valid(pfn)
    yes           always a special pte, never refcounted;     the bit, and nothing else
                  RAM pages enter by vm_insert_page instead

Source: mm/memory.c of 2.6.28 and 6.18; CONFIG_ARCH_HAS_PTE_SPECIAL, before 2.6.28
__HAVE_ARCH_PTE_SPECIAL. x86 had no special bit in 2.6.26 and has had one since fast GUP came.
"""

from typing import NamedTuple

from xipfs.errors import InvalidArgumentError

__all__ = ["ARCHS", "ARCH_DEFAULT", "Arch", "get_arch"]


class Arch(NamedTuple):
    """One row of the table."""

    name: str
    version: str
    pte_special: bool


ARCHS = tuple(
    Arch(name, version, pte_special)
    for version, rows in {
        "2.6.26": {"generic": False, "x86": False, "s390": True},
        "2.6.28": {"generic": False, "x86": True, "powerpc": True, "s390": True},
        "6.1": {"generic": False, "x86": True, "powerpc": True, "s390": True},
        "6.18": {"generic": False, "x86": True, "powerpc": True, "s390": True},
    }.items()
    for name, pte_special in rows.items()
)

ARCH_DEFAULT = Arch("generic", "2.6.28", pte_special=False)
"""Without a special bit pfn_valid decides: the rule of the patch series of 2008."""


def get_arch(name: str, version: str = ARCH_DEFAULT.version) -> Arch:
    """Return the row of *name* and *version*. Raises: InvalidArgumentError, listing the rows."""
    for arch in ARCHS:
        if (arch.name, arch.version) == (name, version):
            return arch
    known = ", ".join(f"{arch.name}-{arch.version}" for arch in ARCHS)
    raise InvalidArgumentError(f"no architecture {name}-{version}: there are {known}")
