"""Machine: what all mms of one simulated kernel share."""

from xipfs.errors import OutOfFramesError
from xipfs.mm.arch import ARCH_DEFAULT, Arch
from xipfs.mm.mem_map import MemMap
from xipfs.mm.vmstat import VmStat
from xipfs.phys.nvram import NvramDevice
from xipfs.phys.physmem import PhysMem
from xipfs.units import NVRAM_PFN_START, STRUCT_PAGE_SIZE_BYTES, Pfn

__all__ = ["Machine"]

_NR_KERNEL_FRAMES = 1
"""RAM beyond the tier: the sparse page."""


class Machine:
    """A kernel's physical memory, struct pages, counters and architecture.

    nr_tier_frames: RAM frames for promoted pages; one more holds the sparse page.
    """

    __slots__ = ("_sparse_pfn", "arch", "mem_map", "nr_tier_frames", "physmem", "vmstat")

    def __init__(
        self, nvram: NvramDevice, *, nr_tier_frames: int, arch: Arch = ARCH_DEFAULT
    ) -> None:
        nr_ram_frames = nr_tier_frames + _NR_KERNEL_FRAMES
        self.physmem = PhysMem(nvram, nr_ram_frames=nr_ram_frames)
        self.mem_map = MemMap(nr_ram_frames)
        self.nr_tier_frames = nr_tier_frames
        self.arch = arch
        self.vmstat = VmStat()
        # Taken now, so that the tier can never use it up.
        sparse_pfn = self.mem_map.alloc_page()
        if sparse_pfn is None:
            raise OutOfFramesError("no RAM frame for the sparse page")
        self._sparse_pfn = sparse_pfn

    @property
    def sparse_pfn(self) -> Pfn:
        """The one zeroed page that all holes map; a normal page, with a struct page.

        Source: mm/filemap_xip.c xip_sparse_page. Differs: allocated at once, not at the first hole.
        """
        return self._sparse_pfn

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

    def close(self) -> None:
        """Give the RAM back."""
        self.physmem.close()
