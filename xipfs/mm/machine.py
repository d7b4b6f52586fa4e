"""Machine: what all mms of one simulated kernel share."""

from xipfs.errors import OutOfFramesError, bug_on
from xipfs.mm.arch import ARCH_DEFAULT, Arch
from xipfs.mm.lock import RwLock
from xipfs.mm.mem_map import PG_RESERVED, MemMap
from xipfs.mm.vmstat import VmStat
from xipfs.mm.watermark import Watermarks, setup_per_zone_wmarks
from xipfs.phys.nvram import NvramDevice
from xipfs.phys.physmem import PhysMem
from xipfs.units import NVRAM_PFN_START, STRUCT_PAGE_SIZE_BYTES, Pfn

__all__ = ["NR_KERNEL_FRAMES", "Machine"]

NR_KERNEL_FRAMES = 2
"""RAM beyond the tier: the sparse page and the zero page."""


class Machine:
    """A kernel's physical memory, struct pages, counters and architecture.

    nr_tier_frames: RAM frames for promoted pages and private copies; the kernel has two more. They
        may become more or fewer (`mm.memory_hotplug`), up to nr_tier_frames_max.
    watermarks: how many of them should be free.
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
        "watermarks",
        "xip_sparse_mutex",
        "xip_sparse_seq",
        "zero_pfn",
    )

    def __init__(
        self,
        nvram: NvramDevice,
        *,
        nr_tier_frames: int,
        nr_tier_frames_max: int = 0,
        arch: Arch = ARCH_DEFAULT,
    ) -> None:
        nr_ram_frames = nr_tier_frames + NR_KERNEL_FRAMES
        self.physmem = PhysMem(
            nvram,
            nr_ram_frames=nr_ram_frames,
            nr_ram_frames_max=nr_tier_frames_max + NR_KERNEL_FRAMES,
        )
        self.pfn_valid = arch.pfn_valid(nr_ram_frames)
        self.mem_map = MemMap(nr_ram_frames, self.pfn_valid.struct_pages_end)
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
        self.set_tier_frames(nr_tier_frames)

    @property
    def nr_tier_frames_max(self) -> int:
        """Frames that the tier can be resized to."""
        return self.physmem.nr_ram_frames_max - NR_KERNEL_FRAMES

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

    def set_tier_frames(self, nr_tier_frames: int) -> None:
        """Note that the tier has so many frames now."""
        self.nr_tier_frames = nr_tier_frames
        self.watermarks: Watermarks = setup_per_zone_wmarks(nr_tier_frames)

    def add_memory(self, nr_frames: int) -> None:
        """Let more RAM frames exist, with struct pages, and be free.

        Source: mm/memory_hotplug.c add_memory. Bug: more than the machine can have.
        """
        physmem, pfn_valid = self.physmem, self.pfn_valid
        nr_ram_frames = physmem.nr_ram_frames + nr_frames
        bug_on(nr_ram_frames > physmem.nr_ram_frames_max, "no place for RAM", nr_frames=nr_frames)
        physmem.nr_ram_frames = nr_ram_frames
        self.pfn_valid = type(pfn_valid)(nr_ram_frames)
        self.pfn_valid.nr_calls = pfn_valid.nr_calls
        self.pfn_valid.nr_locks = pfn_valid.nr_locks
        self.mem_map.grow(nr_ram_frames, self.pfn_valid.struct_pages_end)

    def _alloc_kernel_page(self) -> Pfn:
        pfn = self.mem_map.alloc_page()
        if pfn is None:
            raise OutOfFramesError("no RAM frame for the sparse page and the zero page")
        return pfn

    def close(self) -> None:
        """Give the RAM back."""
        self.physmem.close()
