"""Media: what kinds of memory cost, as published; and which two are played as RAM and NVRAM.

    RAM_AND_NVRAM["optane"]  ->  (DRAM, OPTANE)

No figure is a measurement of ours. Each says where it is from; what has no source is None, and is
then not modelled. "Unchecked" marks what is known from its source, but was not looked up in it
again when this table was made (November 2026). docs/COST.md shows the table and what it leaves out.

An access is to one page. Its time has two parts, of which only the second is a queue's service
time: requests overlap in their latency, not on the wires.

    latency     until the first byte comes
    transfer    PAGE_SIZE / bandwidth
"""

from dataclasses import dataclass

from xipfs.units import PAGE_SIZE

__all__ = ["RAM_AND_NVRAM", "Medium"]


@dataclass(frozen=True, slots=True)
class Medium:
    """One kind of memory, as large as a machine has it (all its modules together).

    Energy: None if there is no source. endurance_cycles: writes that a wear block stands, None if
    there is no such limit. wear_block_size_bytes: what is written, or erased, at once.
    source: who says so.
    """

    name: str
    read_latency_ns: float
    write_latency_ns: float
    read_bandwidth_bytes_per_s: float
    write_bandwidth_bytes_per_s: float
    source: str
    read_energy_pj_per_byte: float | None = None
    write_energy_pj_per_byte: float | None = None
    endurance_cycles: int | None = None
    wear_block_size_bytes: int = PAGE_SIZE

    @property
    def read_transfer_ns(self) -> float:
        """How long reading one page keeps the medium busy."""
        return PAGE_SIZE / self.read_bandwidth_bytes_per_s * 1e9

    @property
    def write_transfer_ns(self) -> float:
        """How long writing one page keeps the medium busy."""
        return PAGE_SIZE / self.write_bandwidth_bytes_per_s * 1e9

    @property
    def read_ns(self) -> float:
        """What reading one page takes when nobody else is there."""
        return self.read_latency_ns + self.read_transfer_ns

    @property
    def write_ns(self) -> float:
        """What writing one page takes when nobody else is there."""
        return self.write_latency_ns + self.write_transfer_ns


DRAM = Medium(
    name="DRAM",
    read_latency_ns=81,
    write_latency_ns=86,
    read_bandwidth_bytes_per_s=105.9e9,
    write_bandwidth_bytes_per_s=52.3e9,
    read_energy_pj_per_byte=8 * (1.17 + 0.93),
    write_energy_pj_per_byte=8 * (0.39 + 1.02),
    source="Six DDR4 modules of one socket: Izraelevitz et al., Basic Performance Measurements of "
    "the Intel Optane DC Persistent Memory Module, arXiv:1903.05714v3 (2019), sections 3 and "
    "3.2.5. Energy, array and row buffer without the bus: Lee et al., Architecting Phase Change "
    "Memory as a Scalable DRAM Alternative, ISCA 2009, table 2 (unchecked).",
)

OPTANE = Medium(
    name="Optane DC",
    read_latency_ns=305,
    write_latency_ns=94,
    read_bandwidth_bytes_per_s=38.9e9,
    write_bandwidth_bytes_per_s=11.5e9,
    endurance_cycles=1_400_000,
    wear_block_size_bytes=256,
    source="Six modules of one socket, the same paper: random reads, and stores up to the "
    "persistence domain, not to the medium. Endurance: the 360 PB that a 256 GB module may be "
    "written (blocksandfiles.com, 4 April 2019, after StorageReview), spread evenly; a "
    "warranty, not what a cell stands. Energy: only the modules' power budget of 15 W is "
    "published there.",
)

CXL = Medium(
    name="CXL memory",
    read_latency_ns=155,
    write_latency_ns=155,
    read_bandwidth_bytes_per_s=32e9,
    write_bandwidth_bytes_per_s=32e9,
    source="Li et al., Pond, ASPLOS 2023: a pool for 8 sockets adds 70 ns (70 to 90 for 8 to 16) "
    "to 85 ns of local DRAM (these 85 unchecked). Bandwidth: the raw rate of a x8 link of PCIe "
    "5.0, 8 x 32 GT/s, each way. Writes: no source, taken as reads. Devices differ: Sun et al., "
    "Demystifying CXL Memory, MICRO 2023, compare three.",
)

NOR = Medium(
    name="NOR flash",
    read_latency_ns=90,
    write_latency_ns=275e6,
    read_bandwidth_bytes_per_s=32 / (90 + 15 * 15) * 1e9,
    write_bandwidth_bytes_per_s=1.5e6,
    endurance_cycles=100_000,
    wear_block_size_bytes=128 << 10,
    source="One parallel chip of 16 bits, Cypress S29GL-S, data sheet 001-98285 rev. R (2018): "
    "first word of a 32-byte page after 90 ns, the others 15 ns each; erase sectors of 128 KiB, "
    "100,000 cycles. Writing: erase a sector (275 ms), then program at 1.5 MB/s (both typical, "
    "unchecked). Energy: none.",
)

PCM = Medium(
    name="PCM",
    read_latency_ns=120,
    write_latency_ns=150,
    read_bandwidth_bytes_per_s=6.4e9,
    write_bandwidth_bytes_per_s=320e6,
    read_energy_pj_per_byte=8 * (2.47 + 0.93),
    write_energy_pj_per_byte=8 * (16.82 + 1.02),
    endurance_cycles=100_000_000,
    wear_block_size_bytes=64,
    source="A rank of eight chips: Choi et al., A 20nm 1.8V 8Gb PRAM with 40MB/s Program "
    "Bandwidth, ISSCC 2012, as NVMain plays it (PCM_ISSCC_2012_4GB.config): 800 MT/s on 64 bits. "
    "Energy, array and row buffer: Lee et al., ISCA 2009, as Cai et al., HOOP, ISCA 2020, use it. "
    "Endurance: 1e7 to 1e9 are reported (Seznec, WEST 2010). Wear block: a cache line, our choice.",
)

DCSS = Medium(
    name="DCSS",
    read_latency_ns=DRAM.read_latency_ns,
    write_latency_ns=DRAM.write_latency_ns,
    read_bandwidth_bytes_per_s=DRAM.read_bandwidth_bytes_per_s,
    write_bandwidth_bytes_per_s=DRAM.write_bandwidth_bytes_per_s,
    read_energy_pj_per_byte=DRAM.read_energy_pj_per_byte,
    write_energy_pj_per_byte=DRAM.write_energy_pj_per_byte,
    source="A shared segment of z/VM is main memory of the host, so DRAM again, as long as the "
    "host does not page it out, which is not modelled. No latency of a System z was found.",
)

RAM_AND_NVRAM = {
    "optane": (DRAM, OPTANE),
    "cxl": (DRAM, CXL),
    "pcm": (DRAM, PCM),
    "nor": (DRAM, NOR),
    "dcss": (DRAM, DCSS),
    "dram": (DRAM, DRAM),
}
"""name -> (RAM, NVRAM). "dram" is the control: NVRAM as fast as RAM, so that moving never pays."""
