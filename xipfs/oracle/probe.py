"""The probe: scenarios on one mapping of the device, told in lines `name|scenario|step|facts`.

Each scenario runs in a process of its own, on a device filled anew. What a kernel keeps beyond that
is kept here, too: a page of the device that became dirty stays dirty for all of a boot.
"""

from collections.abc import Iterator
from typing import NamedTuple

from xipfs.errors import BugError, InvalidArgumentError
from xipfs.mm.arch import Arch
from xipfs.mm.machine import Machine
from xipfs.mm.mmap import exit_mmap
from xipfs.oracle.cramfs import Cramfs, parse_blocks
from xipfs.oracle.device import NR_PAGES, Hooks, Mixmap, VmMode, parse_plan
from xipfs.oracle.process import Process
from xipfs.oracle.scenarios import SCENARIOS
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT

__all__ = ["Boot", "Target", "play"]

_NR_TIER_FRAMES = 128
_NR_KERNEL_FRAMES = 32


class Target(NamedTuple):
    """One mapping, and what its lines are headed with.

    plan: letters of `device`, or of `cramfs` where vm is VmMode.CRAMFS, which has no hooks.
    """

    name: str
    plan: str
    vm: VmMode = VmMode.MIXED
    hooks: Hooks = Hooks.FULL


RECORDED_BOOT = tuple(Target(f"mix{letter}", letter) for letter in "RPVI")
"""The targets of a recorded boot, in their order: what one leaves dirty, the next finds dirty."""


def play(target: Target, arch: Arch, scenario: str | None = None) -> Iterator[str]:
    """Yield the lines of *target*; of one *scenario* if given, after those that come before it.

    A target of a recorded boot is played in its place there, others in a boot of their own.
    Raises: InvalidArgumentError for an unknown scenario or plan; BugError where a kernel stops.
    """
    if scenario is not None and scenario not in SCENARIOS:
        known = ", ".join(SCENARIOS)
        raise InvalidArgumentError(f"no scenario {scenario}: there are {known}")
    _parse(target)
    boot = Boot(arch)
    try:
        if target in RECORDED_BOOT:
            for earlier in RECORDED_BOOT[: RECORDED_BOOT.index(target)]:
                for _ in boot.play(earlier):
                    pass
        for line in boot.play(target, until=scenario):
            if scenario is None or line.split("|")[1] == scenario:
                yield line
    finally:
        boot.close()


class Boot:
    """A machine with the device."""

    def __init__(self, arch: Arch) -> None:
        self._nvram = NvramDevice.scratch(NR_PAGES << PAGE_SHIFT)
        self.machine = Machine(self._nvram, nr_tier_frames=_NR_TIER_FRAMES, arch=arch)
        # The first frames are the kernel's, as in every kernel: else a page's pfn could be its
        # place in the file, by which a private VM_PFNMAP area tells special ptes.
        frames = (self.machine.mem_map.alloc_page() for _ in range(_NR_KERNEL_FRAMES))
        self.kernel_frames = [frame for frame in frames if frame is not None]
        self.device = Mixmap(self.machine)

    def play(self, target: Target, until: str | None = None) -> Iterator[str]:
        """Yield the lines of all scenarios, or of those up to *until*.

        Raises: BugError after the last one, if a kernel would have stopped in any.
        """
        file = Cramfs(self.machine, _parse(target)) if target.vm is VmMode.CRAMFS else None
        bugs: list[str] = []
        for name, scenario in SCENARIOS.items():
            if file is None:
                self.device.configure(_parse(target), target.vm, target.hooks)
            process = Process(file or self.device, f"{target.name}|{name}")
            try:
                scenario(process)
            except BugError as exc:
                bugs.append(f"{name}: {exc}")
            yield from process.lines
            exit_mmap(process.mm)
            if name == until:
                break
        if bugs:
            raise BugError("; ".join(bugs))

    def close(self) -> None:
        """Give the memory back."""
        self.machine.close()
        self._nvram.close()


def _parse(target: Target) -> str:
    parse = parse_blocks if target.vm is VmMode.CRAMFS else parse_plan
    return parse(target.plan)
