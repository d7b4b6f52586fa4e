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
    pgpromote_candidate    pages a policy asked to promote, in exchange for others or by its limits
    pgpromote_candidate_nrl  pages asked for while frames were free, or by hand: not rate-limited
    pgpromote_success      pages copied into a RAM frame
    pgdemote_kswapd        pages given back by the daemon, as a policy asked
    pgdemote_direct        pages given back since their file went away, or the tier shrinks
    pgdemote_proactive     pages given back because a user said so
    numa_pte_updates       pages dropped from the kernel's cache, for their next use to be seen
    numa_hint_faults       pages seen in use after they had been dropped; again if Linux evicts them
    pgmigrate_success      pages moved, either way
    pgmigrate_fail         pages that stayed: busy, unreadable, or no frame free
    xip_exchange           pages promoted into the frame of one that was demoted for it
    xip_truncate           pages in RAM that ended with their file, or its end
    xip_shadow_hit         demotions that moved no byte, NVRAM having kept the page
    xip_writeback          dirty pages written to NVRAM, at demotion or before
    xip_writeback_fail     dirty pages that could not be
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
    pgpromote_candidate_nrl: int = 0
    pgpromote_success: int = 0
    pgdemote_kswapd: int = 0
    pgdemote_direct: int = 0
    pgdemote_proactive: int = 0
    numa_pte_updates: int = 0
    numa_hint_faults: int = 0
    pgmigrate_success: int = 0
    pgmigrate_fail: int = 0
    xip_exchange: int = 0
    xip_truncate: int = 0
    xip_shadow_hit: int = 0
    xip_writeback: int = 0
    xip_writeback_fail: int = 0
    xip_zap: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return all counters by name, with `pgdemote`, the sum of its causes."""
        counters = asdict(self)
        counters["pgdemote"] = self.pgdemote
        return counters

    @property
    def pgdemote(self) -> int:
        """Pages given back to NVRAM, for whatever reason."""
        return self.pgdemote_kswapd + self.pgdemote_direct + self.pgdemote_proactive

    def check_sums(self, nr_resident: int, *, has_policy: bool) -> list[str]:
        """Return what should hold between the counters and does not, with its values.

        nr_resident: file pages in RAM. has_policy: pages were promoted as candidates only.
        """
        demoted, gone = self.pgdemote, self.xip_truncate
        asked = self.pgpromote_candidate + self.pgpromote_candidate_nrl
        statements = [
            (
                "promoted - demoted - truncated = resident",
                self.pgpromote_success - demoted - gone == nr_resident,
                (self.pgpromote_success, demoted, gone, nr_resident),
            ),
            (
                "pgmigrate_success = promoted + demoted",
                self.pgmigrate_success == self.pgpromote_success + demoted,
                (self.pgmigrate_success, self.pgpromote_success, demoted),
            ),
            (
                "pgpromote_success <= candidate + candidate_nrl",
                not has_policy or self.pgpromote_success <= asked,
                (self.pgpromote_success, self.pgpromote_candidate, self.pgpromote_candidate_nrl),
            ),
            (
                "demoted <= xip_shadow_hit + xip_writeback",
                demoted <= self.xip_shadow_hit + self.xip_writeback,
                (demoted, self.xip_shadow_hit, self.xip_writeback),
            ),
            (
                "xip_access_ram <= xip_access",
                self.xip_access_ram <= self.xip_access,
                (self.xip_access_ram, self.xip_access),
            ),
            (
                "xip_insert_sparse <= xip_insert_page",
                self.xip_insert_sparse <= self.xip_insert_page,
                (self.xip_insert_sparse, self.xip_insert_page),
            ),
        ]
        return [f"{what}: {values}" for what, holds, values in statements if not holds]
