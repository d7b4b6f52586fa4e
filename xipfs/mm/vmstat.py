"""Counters, under their names in /proc/vmstat where Linux has one."""

from dataclasses import asdict, dataclass

__all__ = ["VmStat"]


@dataclass(slots=True)
class VmStat:
    """Events since the machine was made. Names that begin with xip_ are our own.

    pgfault                faults taken, each for the page that was asked for
    xip_insert_pfn         ptes inserted by bare pfn: no struct page, nothing counted
    xip_insert_page        ptes inserted with their struct page: referenced and mapped
    xip_insert_sparse      of those, ptes of the shared sparse page
    xip_access             pages read through a pte
    xip_access_ram         of those, pages in RAM frames
    xip_access_sparse      of those, the shared sparse page, as the mount's reads of holes find it
    pgpromote_candidate    pages a policy asked to promote
    pgpromote_success      pages copied into a RAM frame
    pgdemote_kswapd        pages given back by the daemon, as a policy asked
    pgdemote_direct        pages given back since their file went away
    pgmigrate_success      pages moved, either way
    pgmigrate_fail         pages that stayed: busy, unreadable, or no frame free
    xip_shadow_hit         demotions that moved no byte, NVRAM having kept the page
    xip_zap                ptes taken away
    """

    pgfault: int = 0
    xip_insert_pfn: int = 0
    xip_insert_page: int = 0
    xip_insert_sparse: int = 0
    xip_access: int = 0
    xip_access_ram: int = 0
    xip_access_sparse: int = 0
    pgpromote_candidate: int = 0
    pgpromote_success: int = 0
    pgdemote_kswapd: int = 0
    pgdemote_direct: int = 0
    pgmigrate_success: int = 0
    pgmigrate_fail: int = 0
    xip_shadow_hit: int = 0
    xip_zap: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return all counters by name, with `pgdemote`, the sum of its causes."""
        counters = asdict(self)
        counters["pgdemote"] = self.pgdemote_kswapd + self.pgdemote_direct
        return counters
