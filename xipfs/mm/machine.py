"""Machine: what all mms of one simulated kernel share."""

from xipfs.errors import OutOfFramesError
from xipfs.mm.arch import ARCH_DEFAULT, Arch
from xipfs.mm.lock import RwLock
from xipfs.mm.mem_map import PG_RESERVED, MemMap
from xipfs.mm.vmstat import VmStat
from xipfs.phys.nvram import NvramDevice
from xipfs.phys.physmem import PhysMem
from xipfs.units import NVRAM_PFN_START, STRUCT_PAGE_SIZE_BYTES, Pfn

__all__ = ["Machine"]

_NR_KERNEL_FRAMES = 2
"""RAM beyond the tier: the sparse page and the zero page."""


class Machine:
    """A kernel's physical memory, struct pages, counters and architecture.

    nr_tier_frames: RAM frames for promoted pages and private copies; the kernel has two more.
    pfn_valid: the memory model; tells of every pfn whether it has a struct page.
    """

    __slots__ = (
        "arch",
        "mem_map",
        "nr_tier_frames",
        "pfn_valid",
        "physmem",
        "sparse_pfn",
        "vmstat",
        "xip_sparse_mutex",
        "xip_sparse_seq",
        "zero_pfn",
    )

    def __init__(
        self, nvram: NvramDevice, *, nr_tier_frames: int, arch: Arch = ARCH_DEFAULT
    ) -> None:
        nr_ram_frames = nr_tier_frames + _NR_KERNEL_FRAMES
        self.physmem = PhysMem(nvram, nr_ram_frames=nr_ram_frames)
        self.pfn_valid = arch.pfn_valid(nr_ram_frames)
        self.mem_map = MemMap(nr_ram_frames, self.pfn_valid.struct_pages_end)
        self.nr_tier_frames = nr_tier_frames
        self.arch = arch
        self.vmstat = VmStat()
        # The one zeroed page that holes map; normal, with a struct page. Taken now, so that the
        # tier can never use it up. Source: mm/filemap_xip.c xip_sparse_page, Linux 2.6.28, where
        # it is allocated at the first hole.
        self.sparse_pfn = self._alloc_kernel_page()
        self.xip_sparse_mutex = RwLock("xip_sparse_mutex")
        self.xip_sparse_seq = 0
        # ZERO_PAGE(0). Deliberately not the sparse page, as in Linux.
        self.zero_pfn = self._alloc_kernel_page()
        self.mem_map.set_page_flags(self.zero_pfn, PG_RESERVED)

    @property
    def nr_nvram_frames(self) -> int:
        """Frames of the NVRAM region; none of them has a struct page."""
        return self.physmem.nr_nvram_frames

    def is_nvram(self, pfn: Pfn) -> bool:
        """Does *pfn* lie in the NVRAM region?"""
        return 0 <= pfn - NVRAM_PFN_START < self.nr_nvram_frames

    @property
    def struct_page_saved_bytes(self) -> int:
        """What struct pages for all of the NVRAM region would have cost in RAM."""
        return self.nr_nvram_frames * STRUCT_PAGE_SIZE_BYTES

    def _alloc_kernel_page(self) -> Pfn:
        pfn = self.mem_map.alloc_page()
        if pfn is None:
            raise OutOfFramesError("no RAM frame for the sparse page and the zero page")
        return pfn

    def close(self) -> None:
        """Give the RAM back."""
        self.physmem.close()
