"""Arch: what one architecture of one kernel version has, as far as mixed maps notice.

    feature      what it changes
    pte_special  how a page enters a VM_MIXEDMAP area, and how `vm_normal_page` tells (see below)
    fast_gup     whether get_user_pages_fast walks page tables without locks, and what makes it safe
    pat          remap_pfn_range reserves a memory type for the whole area (VM_PAT)
    pfn_valid    the memory model (`mm.pfn_valid`)
    configs      parts of mm/ that a build may lack: what they answer is ENOSYS or EINVAL then
    user_copy_by_mmu  whether the kernel copies from and to programs through the MMU; user-mode
                 Linux looks at the ptes by itself, and so reads under PROT_NONE, and leaves a
                 clean pte that is writable clean

    pte_special   vm_insert_mixed(pfn)                        vm_normal_page asks
    no            pfn_valid: refcounted; else: bare           pfn_valid(pfn)
    yes           always a special pte, never refcounted;     the bit, and nothing else
                  RAM pages enter by vm_insert_page instead

`um` is user-mode Linux as it comes, `um-special` the same with a software special bit.

Source: arch/um/kernel/skas/uaccess.c maybe_map of 6.1; mm/memory.c, mm/gup.c of 2.6.28 and 6.18;
CONFIG_ARCH_HAS_PTE_SPECIAL, before 2.6.28 __HAVE_ARCH_PTE_SPECIAL. x86 had no special bit in 2.6.26
and has had one since fast GUP came.
"""

from enum import Enum
from typing import NamedTuple

from xipfs.errors import InvalidArgumentError
from xipfs.mm.pfn_valid import FlatMem, ListMem, PfnValid, SectionMem, SubsectionMem

__all__ = ["ARCHS", "ARCH_DEFAULT", "Arch", "FastGup", "get_arch"]


class FastGup(Enum):
    """What keeps a page that get_user_pages_fast found from being freed under it.

    IRQS_OFF: freeing waits for an interrupt that this cpu does not take. Source: arch/x86/mm/gup.c,
              2.6.32.
    RECHECK:  the reference is taken unless it is zero, then the pte is read again.
              Source: arch/powerpc/mm/gup.c, 2.6.28; mm/gup.c, 6.18.
    """

    IRQS_OFF = "irqs off"
    RECHECK = "recheck"


class Arch(NamedTuple):
    """One row of the table."""

    name: str
    version: str
    pte_special: bool
    fast_gup: FastGup | None = None
    pat: bool = False
    pfn_valid: type[PfnValid] = FlatMem
    configs: frozenset[str] = frozenset({"KSM", "USERFAULTFD"})
    user_copy_by_mmu: bool = True

    @property
    def is_2008(self) -> bool:
        """Does mm/ work as in 2.6.26 to 2.6.28?"""
        return self.version.startswith("2.6.")

    @property
    def is_6_18(self) -> bool:
        """Does mm/ work as in 6.18, where that differs from 6.1?"""
        return self.version == "6.18"


_X86_GUP_2008 = FastGup.IRQS_OFF
_RECHECK = FastGup.RECHECK
_NO_CONFIGS: frozenset[str] = frozenset()

ARCHS = (
    Arch("generic", "2.6.26", pte_special=False),
    Arch("x86", "2.6.26", pte_special=False),
    Arch("s390", "2.6.26", pte_special=True, pfn_valid=ListMem),
    Arch("generic", "2.6.28", pte_special=False),
    Arch("x86", "2.6.28", pte_special=True, fast_gup=_X86_GUP_2008, pfn_valid=SectionMem),
    Arch("powerpc", "2.6.28", pte_special=True, fast_gup=_RECHECK, pfn_valid=SectionMem),
    Arch("s390", "2.6.28", pte_special=True, pfn_valid=ListMem),
    *(
        arch
        for version in ("6.1", "6.18")
        for arch in (
            Arch("generic", version, pte_special=False),
            Arch("um", version, False, configs=_NO_CONFIGS, user_copy_by_mmu=False),
            Arch("um-special", version, True, user_copy_by_mmu=False),
            Arch("x86", version, True, _RECHECK, pat=True, pfn_valid=SubsectionMem),
            Arch("powerpc", version, True, _RECHECK, pfn_valid=SubsectionMem),
            Arch("s390", version, True, _RECHECK, pfn_valid=SubsectionMem),
        )
    ),
)

ARCH_DEFAULT = ARCHS[3]
"""generic 2.6.28: without a special bit pfn_valid decides, the rule of the patches of 2008."""


def get_arch(name: str, version: str = ARCH_DEFAULT.version) -> Arch:
    """Return the row of *name* and *version*. Raises: InvalidArgumentError, listing the rows."""
    for arch in ARCHS:
        if (arch.name, arch.version) == (name, version):
            return arch
    known = ", ".join(f"{arch.name}-{arch.version}" for arch in ARCHS)
    raise InvalidArgumentError(f"no architecture {name}-{version}: there are {known}")
