"""Cost: what accesses and migrations would take on two given media, on a simulated clock.

    model = parse_cost("optane:clients=100")      RAM and NVRAM of `media`, and who loads them
    account = CostAccount(model, vmstat)
    account.tier_facts(elapsed_ns)                once an epoch: its load; charges
    account.facts()                               at any time: charges, and says what it came to

Nothing is charged per access. mm counts accesses and migrations anyway (`vmstat`); what is charged
is the difference of the counters since the last time.

Time of an access, loaded:

    latency + transfer + wait          wait = sum(rho_i * S_i) / (2 * (1 - rho))

An open queue with Poisson arrivals and one server, which is busy for the transfer S of a page: S_i
nanoseconds for a read or a write, rho_i of the time. That is M/G/1 with two fixed service times
(Pollaczek-Khinchine; Kleinrock, Queueing Systems 1, 1975, chapter 5), and M/D/1 where all are
reads. Flynn, Computer Architecture, 1995, chapter 6, models memories so, and says where it fails: a
memory that is full is no open queue, since who waits does not ask for more. So the wait is at most
that of all that can be under way, NR_UNDER_WAY_MAX pages a client, and from rho = 1 on it is that:
then the clients together get the bandwidth, by Little's law, and nobody more.

The load is that of the last whole epoch: its accesses and migrations, by its length. *clients* are
so many mounts like this one on the same two memories: they multiply the load and what can be under
way, and nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from xipfs.phys.media import RAM_AND_NVRAM, Medium
from xipfs.phys.physmem import Run
from xipfs.phys.wear import Wear
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, PAGE_SIZE

__all__ = [
    "COST_DEFAULT",
    "NR_UNDER_WAY_MAX",
    "PAGE_MIGRATION_NS",
    "CostAccount",
    "CostModel",
    "Counters",
    "TierFacts",
    "Waits",
    "parse_cost",
]

NR_CLIENTS_MAX = 1_000_000

NR_UNDER_WAY_MAX = 12
"""Pages that one client asks for at a time: FUSE's max_background (fs/fuse/inode.c, Linux 6.18)."""

PAGE_MIGRATION_NS = 1000
"""Unmapping, bookkeeping and the next fault of one migrated page, either way.

Source: sim/perf_model.py of Cori (Doudali et al., arXiv:2101.07200), which charges 1 us a page.
"""

_NVRAM_PADDR_START = NVRAM_PFN_START << PAGE_SHIFT


class Counters(Protocol):
    """What is read of mm's VmStat."""

    xip_access: int
    xip_access_ram: int
    xip_access_sparse: int
    pgpromote_success: int
    xip_shadow_hit: int

    @property
    def pgdemote(self) -> int: ...  # noqa: D102


class TierFacts(NamedTuple):
    """An epoch as a policy sees it; pairs are (RAM, NVRAM).

    nr_accesses: pages read, of this mount. latency_ns: of one, with the load of the epoch.
    occupancy: accesses under way at a time, by Little's law: rate x latency.
    promote_ns, write_back_ns: a page copied into RAM, and a dirty one back.
    """

    nr_accesses: tuple[int, int]
    latency_ns: tuple[float, float]
    occupancy: tuple[float, float]
    promote_ns: float
    write_back_ns: float


class Waits(NamedTuple):
    """How long a page waits for its turn, on top of the unloaded time, in ns.

    all_in_nvram: in NVRAM, if every access of the epoch had gone there and nothing had been moved.
    """

    ram: float = 0.0
    nvram: float = 0.0
    all_in_nvram: float = 0.0


class _Events(NamedTuple):
    """Pages since the mount. nr_sparse: holes, which are in RAM whatever the tiers are."""

    nr_ram: int
    nr_nvram: int
    nr_sparse: int
    nr_promoted: int
    nr_demoted: int
    nr_written_back: int

    @classmethod
    def of(cls, counters: Counters) -> "_Events":
        nr_demoted = counters.pgdemote
        return cls(
            counters.xip_access_ram,
            counters.xip_access - counters.xip_access_ram,
            counters.xip_access_sparse,
            counters.pgpromote_success,
            nr_demoted,
            nr_demoted - counters.xip_shadow_hit,
        )

    def since(self, before: "_Events") -> "_Events":
        return _Events(*(now - then for now, then in zip(self, before, strict=True)))


@dataclass(frozen=True, slots=True)
class CostModel:
    """Two media, and how many clients load them. Times are of one page."""

    name: str
    ram: Medium
    nvram: Medium
    clients: int = 1

    def __str__(self) -> str:
        return self.name if self.clients == 1 else f"{self.name}:clients={self.clients}"

    def wait_ns(
        self, medium: Medium, *, nr_reads: int, nr_writes: int = 0, elapsed_ns: int
    ) -> float:
        """Return the mean wait when each client moves so many pages within *elapsed_ns* (> 0)."""
        if not nr_reads + nr_writes:
            return 0.0
        read_ns, write_ns = medium.read_transfer_ns, medium.write_transfer_ns
        rho_reads = self.clients * nr_reads * read_ns / elapsed_ns
        rho_writes = self.clients * nr_writes * write_ns / elapsed_ns
        mean_ns = (nr_reads * read_ns + nr_writes * write_ns) / (nr_reads + nr_writes)
        longest_ns = NR_UNDER_WAY_MAX * self.clients * mean_ns
        rho = rho_reads + rho_writes
        if rho >= 1:
            return longest_ns
        return min((rho_reads * read_ns + rho_writes * write_ns) / (2 * (1 - rho)), longest_ns)

    def promote_ns(self, waits: Waits) -> float:
        """Return what moving a page to RAM takes: read it there, write it here, and the rest."""
        nvram_ns = self.nvram.read_ns + waits.nvram
        return PAGE_MIGRATION_NS + nvram_ns + self.ram.write_ns + waits.ram

    def write_back_ns(self, waits: Waits) -> float:
        """Return what moving a dirty page to NVRAM takes. A clean one takes PAGE_MIGRATION_NS."""
        nvram_ns = self.nvram.write_ns + waits.nvram
        return PAGE_MIGRATION_NS + self.ram.read_ns + waits.ram + nvram_ns

    @property
    def has_energy(self) -> bool:
        """Are there figures of both media?"""
        return None not in (self.ram.read_energy_pj_per_byte, self.nvram.read_energy_pj_per_byte)


COST_DEFAULT = CostModel("optane", *RAM_AND_NVRAM["optane"])


class CostAccount:
    """What a mount's accesses and migrations have cost by *model*.

    counters: mm's VmStat; what it says when the account is opened is free.
    wear: of the NVRAM's blocks, None for a medium that does not wear out; whoever stores to NVRAM
    records there.
    """

    def __init__(self, model: CostModel, counters: Counters) -> None:
        self.model = model
        self._counters = counters
        self._charged = self._epoch = _Events.of(counters)
        self._waits = Waits()
        self._nr_accesses = 0
        self._ram_ns = self._nvram_ns = self._migration_ns = self._all_in_nvram_ns = 0.0
        self._energy_pj = 0.0
        wears = model.nvram.endurance_cycles is not None
        self.wear = Wear(model.nvram.wear_block_size_bytes) if wears else None

    @property
    def clock_ns(self) -> int:
        """The simulated time: what was charged, accesses and migrations. Never goes back."""
        return round(self._ram_ns + self._nvram_ns + self._migration_ns)

    @property
    def latency_ns(self) -> tuple[float, float]:
        """What reading one page takes now, in RAM and in NVRAM, under the load of last epoch."""
        ram, nvram = self.model.ram, self.model.nvram
        return ram.read_ns + self._waits.ram, nvram.read_ns + self._waits.nvram

    def tier_facts(self, elapsed_ns: int) -> TierFacts:
        """End an epoch of *elapsed_ns*: from here on its load counts, for what it had, too."""
        elapsed_ns = max(elapsed_ns, 1)
        now = _Events.of(self._counters)
        events, self._epoch = now.since(self._epoch), now
        self._waits = self._find_waits(events, elapsed_ns)
        self.charge()
        latency_ns = self.latency_ns
        nr_accesses = (events.nr_ram, events.nr_nvram)
        return TierFacts(
            nr_accesses=nr_accesses,
            latency_ns=latency_ns,
            occupancy=(
                nr_accesses[0] / elapsed_ns * latency_ns[0],
                nr_accesses[1] / elapsed_ns * latency_ns[1],
            ),
            promote_ns=self.model.promote_ns(self._waits),
            write_back_ns=self.model.write_back_ns(self._waits),
        )

    def charge(self) -> None:
        """Charge what happened since the last time, under the load that is known now."""
        now = _Events.of(self._counters)
        events, self._charged = now.since(self._charged), now
        model, waits = self.model, self._waits
        ram_ns, nvram_ns = self.latency_ns
        self._nr_accesses += events.nr_ram + events.nr_nvram
        self._ram_ns += events.nr_ram * ram_ns
        self._nvram_ns += events.nr_nvram * nvram_ns
        self._migration_ns += events.nr_promoted * model.promote_ns(waits)
        self._migration_ns += events.nr_written_back * model.write_back_ns(waits)
        self._migration_ns += (events.nr_demoted - events.nr_written_back) * PAGE_MIGRATION_NS
        nr_tiered = events.nr_ram + events.nr_nvram - events.nr_sparse
        self._all_in_nvram_ns += nr_tiered * (model.nvram.read_ns + waits.all_in_nvram)
        self._all_in_nvram_ns += events.nr_sparse * ram_ns
        self._energy_pj += self._find_energy_pj(events)

    def read_ns(self, runs: Iterable[Run]) -> int:
        """Return what reading *runs* takes now, page by page: for who really waits for it."""
        ram_ns, nvram_ns = self.latency_ns
        total_ns = 0.0
        for paddr, size_bytes in runs:
            nr_pages = (paddr + size_bytes - 1 >> PAGE_SHIFT) - (paddr >> PAGE_SHIFT) + 1
            total_ns += nr_pages * (nvram_ns if paddr >= _NVRAM_PADDR_START else ram_ns)
        return round(total_ns)

    def facts(self) -> dict[str, Any]:
        """Charge; return the account by stable names with units. None: not modelled."""
        self.charge()
        model = self.model
        access_ns = self._ram_ns + self._nvram_ns
        wear = self.wear.facts() if self.wear is not None else None
        ram_ns, nvram_ns = self.latency_ns
        return {
            "model": str(model),
            "ram": model.ram.name,
            "nvram": model.nvram.name,
            "clients": model.clients,
            "clock_ns": self.clock_ns,
            "accesses": self._nr_accesses,
            "access_mean_ns": round(access_ns / max(self._nr_accesses, 1), 1),
            "access_ram_ns": round(self._ram_ns),
            "access_nvram_ns": round(self._nvram_ns),
            "access_all_in_nvram_ns": round(self._all_in_nvram_ns),
            "migration_ns": round(self._migration_ns),
            "net_benefit_ns": round(self._all_in_nvram_ns - access_ns - self._migration_ns),
            "latency_ram_ns": round(ram_ns, 1),
            "latency_nvram_ns": round(nvram_ns, 1),
            "energy_pj": round(self._energy_pj) if model.has_energy else None,
            "wear_blocks": wear.nr_blocks if wear else None,
            "wear_block_size_bytes": model.nvram.wear_block_size_bytes if wear else None,
            "wear_max_cycles": wear.max_cycles if wear else None,
            "wear_mean_cycles": round(wear.mean_cycles, 3) if wear else None,
            "endurance_cycles": model.nvram.endurance_cycles,
        }

    def _find_energy_pj(self, events: _Events) -> float:
        """Return the energy of *events*; what has no figures counts nothing."""
        ram, nvram = self.model.ram, self.model.nvram
        parts = (
            (ram.read_energy_pj_per_byte, events.nr_ram + events.nr_written_back),
            (ram.write_energy_pj_per_byte, events.nr_promoted),
            (nvram.read_energy_pj_per_byte, events.nr_nvram + events.nr_promoted),
            (nvram.write_energy_pj_per_byte, events.nr_written_back),
        )
        return PAGE_SIZE * sum(pj * nr_pages for pj, nr_pages in parts if pj is not None)

    def _find_waits(self, events: _Events, elapsed_ns: int) -> Waits:
        model = self.model
        return Waits(
            ram=model.wait_ns(
                model.ram,
                nr_reads=events.nr_ram + events.nr_written_back,
                nr_writes=events.nr_promoted,
                elapsed_ns=elapsed_ns,
            ),
            nvram=model.wait_ns(
                model.nvram,
                nr_reads=events.nr_nvram + events.nr_promoted,
                nr_writes=events.nr_written_back,
                elapsed_ns=elapsed_ns,
            ),
            all_in_nvram=model.wait_ns(
                model.nvram,
                nr_reads=events.nr_ram + events.nr_nvram - events.nr_sparse,
                elapsed_ns=elapsed_ns,
            ),
        )


def parse_cost(text: str) -> CostModel:
    """Read NAME or NAME:clients=N.

    Raises: ValueError in one line that says what there is.

    >>> str(parse_cost("cxl:clients=100"))
    'cxl:clients=100'
    """
    name, colon, parameter = text.partition(":")
    media = RAM_AND_NVRAM.get(name)
    if media is None:
        raise ValueError(f"{text!r}: one of {', '.join(RAM_AND_NVRAM)}, perhaps with :clients=N")
    if not colon:
        return CostModel(name, *media)
    key, _, number = parameter.partition("=")
    digits = number if number.isdecimal() and len(number) <= len(str(NR_CLIENTS_MAX)) else "0"
    if key != "clients" or not 1 <= int(digits) <= NR_CLIENTS_MAX:
        raise ValueError(f"{text!r}: {name}:clients=N, N from 1 to {NR_CLIENTS_MAX}")
    return CostModel(name, *media, clients=int(digits))
