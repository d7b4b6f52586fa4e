"""Random scenes of several processes, played on mm and on the reference: equal answers, and after
each operation every reference accounted for.

The reference is written from the specification alone (tests/kit/reference.py).
"""

import logging
import random
from collections.abc import Iterator

import pytest

from tests.kit.reference import Reference
from xipfs.mm.arch import get_arch
from xipfs.mm.check import check_invariants
from xipfs.oracle.player import Player

NR_OPS = 40
# Not ptrace_poke, write_pipe and read_pipe: how the kernel itself copies from and to user memory,
# and what that does to a pte, depends on more than mm.
USERS = (
    "process_vm_readv",
    "process_vm_writev",
    "proc_mem_read",
    "proc_mem_write",
    "ptrace_peek",
    "vmsplice",
    "odirect_write",
    "odirect_read",
    "io_uring",
    "futex",
)
ADVICES = ("DONTNEED", "NORMAL", "COLD", "POPULATE_READ", "POPULATE_WRITE", "DONTFORK", "DOFORK")


class Scene:
    """Makes one valid operation after the other, from what processes and areas there are."""

    def __init__(self, arch: str, seed: int) -> None:
        self.random = random.Random(seed)
        plan = "".join(self.random.choice("RWPIVF") for _ in range(self.random.randint(1, 5)))
        hooks = self.random.choice(("full", "full", "none", "fail"))
        # On x86 a fork that PAT refuses has copied as many areas as lie below in memory.
        vm = "remap" if arch != "x86" and self.random.random() < 0.1 else "mixed"
        self.vm = vm
        self.header = f"device plan={plan if vm == 'mixed' else 'G'} vm={vm} hooks={hooks}"
        self.areas: dict[int, dict[str, int]] = {0: {}}
        self.next_process = 1

    def op(self) -> str:
        choose = self.random
        process = choose.choice(list(self.areas))
        areas = self.areas[process]
        if not areas or (len(areas) < 3 and choose.random() < 0.15):
            letter = next(c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in areas)
            areas[letter] = nr = choose.randint(1, 6)
            prot = choose.choice(("r", "rw", "rw", "rw", "rx"))
            return f"{process} map {letter} {prot} {choose.choice(('shared', 'private'))} {nr}"
        area = choose.choice(list(areas))
        page = choose.randrange(areas[area])
        nr = choose.randint(1, areas[area] - page)
        at = f"{area} {page}"
        match choose.randrange(20):
            case 0 | 1 | 2:
                return f"{process} read {at}"
            case 3 | 4 | 5 | 6:
                return f"{process} write {at} {choose.choice('QXY')}"
            case 7 if len(self.areas) < 4:
                return f"{process} fork {self.next_process}"
            case 8 if process and choose.random() < 0.5:
                return f"{process} exit"
            case 9 if choose.random() < 0.3:
                return f"{process} munmap {at} {nr}"
            case 10 | 11:
                return f"{process} mprotect {at} {nr} {choose.choice(('r', 'rw', 'none', 'rw'))}"
            case 12:
                return f"{process} madvise {at} {nr} {choose.choice(ADVICES)}"
            case 13 if self.vm == "mixed":
                return f"zap {choose.randrange(6)} 1 {choose.randrange(2)}"
            case 14 if self.vm == "mixed":
                return f"migrate {choose.randrange(6)} {choose.choice('RVI')}"
            case 15:
                return f"{process} hold {at}"
            case 16:
                return f"{process} drop"
            case 17:
                return f"{process} mlock {at} {nr}"
            case 18 if self.vm == "mixed":
                return f"{process} insert {at} {choose.randrange(6)} {choose.choice('RPIW')}"
        return f"{process} gup {choose.choice(USERS)} {at}"

    def played(self, op: str, answer: str) -> None:
        words = op.split()
        if words[1] == "fork" and answer == "ok":
            self.areas[self.next_process] = dict(self.areas[int(words[0])])
            self.next_process += 1
        elif words[1] == "exit":
            del self.areas[int(words[0])]

    def states(self) -> list[str]:
        return [
            *(
                f"{process} state {area} {page}"
                for process, areas in self.areas.items()
                for area, nr_pages in areas.items()
                for page in range(nr_pages)
            ),
            *(f"{process} rss" for process in self.areas),
            *(f"page {page}" for page in range(6)),
            "count",
        ]


@pytest.fixture(autouse=True)
def no_warnings_of_mkwrite() -> Iterator[None]:
    """Scenes make pages writable where others are mapped: the kernel warns, and so do we."""
    logger = logging.getLogger("xipfs.mm.mixedmap")
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


def play_both(arch: str, seed: int, nr_ops: int = NR_OPS) -> int:
    scene = Scene(arch, seed)
    model = Player(scene.header, get_arch(arch, "6.1"))
    reference = Reference(scene.header, arch, "6.1")
    played = [scene.header]
    for _ in range(nr_ops):
        op = scene.op()
        played.append(op)
        story = f"arch {arch}, seed {seed}\n" + "\n".join(played)
        expected = reference.play(op)
        assert (op, model.play(op)) == (op, expected), story
        scene.played(op, expected)
        check_invariants(model.boot.machine, model.mms, [model.device.f_mapping], model.pins)
    for op in scene.states():
        assert (op, model.play(op)) == (op, reference.play(op)), story
    reference.check_invariants()
    model.close()
    return nr_ops


@pytest.mark.parametrize("arch", ["um", "um-special", "x86"])
def test_mm_answers_as_the_reference(arch: str):
    for seed in range(150):
        play_both(arch, seed)


@pytest.mark.long
@pytest.mark.parametrize("arch", ["um", "um-special", "x86"])
def test_a_million_operations(arch: str):
    assert sum(play_both(arch, seed) for seed in range(1000, 9400)) >= 333_333
