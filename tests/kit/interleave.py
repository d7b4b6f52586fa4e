"""Every order in which callers of mm can run: an explorer over its atomic steps.

    report = explore(make_scene)        make_scene() -> Scene, always the same

A scene's actors are greenlets over the product's own code, each on a CPU of its own. At each
`atomic_step` of mm, where one waits for a lock, and where an actor itself says `choose(n)`, the
explorer decides how it goes on. It runs a scene again and again, each time along a path not taken
yet, and stops a run where it reaches a state it has seen: equal page tables, TLBs, struct pages,
files and bytes, and every actor at the same line with the same local values. So steps that commute
are tried in one order only. How many orders that stands for is counted in the graph of states.

Each CPU has a TLB, the worst there could be: it keeps what a walk of the page table found, and uses
it before anything else, until mm flushes. After each step, no TLB may lead to a page that is free,
or somebody else's; at the end, none may know more than the page tables say. Free frames and blocks
get foreign bytes, as their next owner would write them, and a free leaf cannot be looked at.

Left out of a state: vmstat, and the marks of use (accessed, heat), which nothing in a scene reads.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import greenlet
import numpy as np

from tests.kit.mm import World
from xipfs.mm.lock import Scheduler, set_scheduler
from xipfs.mm.pgtable import PTE_RW, Leaf, pte_pfn
from xipfs.mm.tlb import MmuGather
from xipfs.mm.vm_fault import VmFault
from xipfs.mm.vma import Mm
from xipfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Pfn, Vaddr

__all__ = ["Actor", "Deadlock", "Report", "Scene", "choose", "explore"]

_NR_STEPS_MAX = 400

_NR_BYTES_SEEN = 256
"""Of each page, as much is part of a state: scenes write no further."""


class Deadlock(AssertionError):
    """Nobody can go on, or nobody gets anywhere."""


@dataclass
class Actor:
    """A caller: its name, what it does, and what its CPU did before it begins."""

    name: str
    run: Callable[[], None]
    before: Callable[[], None] | None = None


@dataclass
class Scene:
    """What the actors work on; check() is called when all are done, scribble() after each step.

    is_foreign: does the frame belong to nobody of the scene (any more)? By default: is it free?
    """

    world: World
    actors: list[Actor]
    check: Callable[[], None]
    scribble: Callable[[], None]
    notes: dict[str, Any] = field(default_factory=dict)
    """What actors have seen so far, for check(): part of the state."""
    is_foreign: Callable[[Pfn], bool] | None = None
    tlb: "Tlb" = field(default_factory=lambda: Tlb())


@dataclass
class Report:
    nr_runs: int = 0
    nr_steps: int = 0
    nr_states: int = 0
    nr_orders: int = 0

    def __iadd__(self, other: "Report") -> "Report":
        self.nr_runs += other.nr_runs
        self.nr_steps += other.nr_steps
        self.nr_states += other.nr_states
        self.nr_orders += other.nr_orders
        return self

    def __str__(self) -> str:
        return (
            f"{self.nr_runs:,} runs of {self.nr_steps:,} steps, through {self.nr_states:,} states, "
            f"stand for {self.nr_orders:,} orders"
        )


class Tlb:
    """What all CPUs remember: (cpu, mm, page) -> (pte, is its dirty bit known to be set?)."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, Mm, int], tuple[int, bool]] = {}

    def translations(self) -> list[tuple[Mm, Vaddr, int]]:
        """Return (mm, address, pte) of all entries."""
        return [
            (mm, Vaddr(page << PAGE_SHIFT), pte) for (_, mm, page), (pte, _) in self.entries.items()
        ]

    def check(self) -> None:
        """Raise AssertionError where a CPU may do what the page table does not allow."""
        for mm, address, pte in self.translations():
            now = mm.page_table.find_pte(address)
            assert pte | PTE_RW == now | PTE_RW, f"a stale translation: {pte:#x}, not {now:#x}"
            assert not pte & ~now & PTE_RW, f"a stale permission: {pte:#x}, not {now:#x}"


def choose(number: int) -> int:
    """Return one of range(number): the explorer tries each."""
    parent = greenlet.getcurrent().parent
    assert parent is not None, "only an actor has a choice"
    chosen: int = parent.switch(number)
    return chosen


_Pause = Callable[[], bool] | int | None
"""Why an actor pauses: it waits for a condition, has a choice of so many, or took a step."""


class _Machine(Scheduler):
    """Hands every step of an actor to the explorer, and keeps the TLBs."""

    def __init__(self) -> None:
        self.cpu = -1
        self.tlb = Tlb()

    def step(self, what: str) -> None:
        self._pause(None)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        while not condition():
            self._pause(condition)

    def remember_translation(self, mm: Mm, address: Vaddr, pte: int, *, dirty: bool) -> None:
        self.tlb.entries[self.cpu, mm, address >> PAGE_SHIFT] = (pte, dirty)

    def remembered_translation(self, mm: Mm, address: Vaddr, *, write: bool) -> Pfn | None:
        pte, dirty = self.tlb.entries.get((self.cpu, mm, address >> PAGE_SHIFT), (0, False))
        # A first write sets the dirty bit of the pte, so it needs the page table.
        if not pte or (write and not (pte & PTE_RW and dirty)):
            return None
        return pte_pfn(pte)

    def forget_translations(self, mm: Mm, start: Vaddr, end: Vaddr) -> None:
        assert not (start | end) & PAGE_MASK
        first, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
        entries = self.tlb.entries
        for key in [key for key in entries if key[1] is mm and first <= key[2] < last]:
            del entries[key]

    def forget_leaf(self, leaf: Leaf) -> None:
        leaf.words = _FreedWords()  # type: ignore[assignment]

    def _pause(self, pause: _Pause) -> None:
        parent = greenlet.getcurrent().parent
        if parent is None:  # no actor: the scene is being made or checked
            assert pause is None, "waiting for oneself"
            return
        parent.switch(pause)


class _FreedWords:
    """The ptes of a leaf that was freed."""

    def __getitem__(self, index: int) -> NoReturn:
        raise AssertionError("a walk through a page table that was freed")


def explore(make_scene: Callable[[], Scene]) -> Report:
    """Run a scene in every order. Raises: what an actor or a check raises; Deadlock."""
    report = Report()
    edges: dict[int, dict[_Choice, int]] = {}
    pending: list[_Path] = [([], None)]
    try:
        while pending:
            machine = _Machine()
            set_scheduler(machine)
            _run(make_scene, machine, pending.pop(), edges, pending, report)
    finally:
        set_scheduler(None)
    report.nr_states = len(edges)
    report.nr_orders = _count_orders(edges)
    return report


_Choice = tuple[int, int]
"""(which actor goes on, what it chooses)."""

_Path = tuple[list[_Choice], int | None]
"""Choices to make, and the state before the last of them: those before lead through known ones."""

_DONE = -1
"""The state after the last step."""


def _run(
    make_scene: Callable[[], Scene],
    machine: _Machine,
    todo: _Path,
    edges: dict[int, dict[_Choice, int]],
    pending: list[_Path],
    report: Report,
) -> None:
    path, state = todo
    scene = make_scene()
    scene.tlb = machine.tlb
    taken: list[_Choice] = []
    running: dict[int, Any] = {}
    try:
        report.nr_runs += 1
        for i, actor in enumerate(scene.actors):
            if actor.before is not None:
                machine.cpu = i
                actor.before()
        running = {i: greenlet.greenlet(actor.run) for i, actor in enumerate(scene.actors)}
        pauses: dict[int, _Pause] = dict.fromkeys(running)
        if state is None:
            state = _state(scene, running, pauses)
        while running:
            if len(taken) < len(path):
                choice = path[len(taken)]
            elif state in edges:
                return  # what follows is known
            else:
                ready = [choice for i in running for choice in _choices(i, pauses[i])]
                if not ready or len(taken) > _NR_STEPS_MAX:
                    raise Deadlock(f"{[scene.actors[i].name for i in running]} after {taken}")
                choice = ready[0]
                pending += [([*taken, other], state) for other in ready[1:]]
            taken.append(choice)
            machine.cpu = choice[0]
            pause = running[choice[0]].switch(*_answer(pauses[choice[0]], choice))
            machine.cpu = -1
            pauses[choice[0]] = pause
            if running[choice[0]].dead:
                del running[choice[0]]
            scene.scribble()
            if len(taken) < len(path):
                continue
            report.nr_steps += 1
            for _, _, pte in scene.tlb.translations():
                assert not _is_foreign(scene, pte_pfn(pte)), "a CPU reaches what is somebody else's"
            before, state = state, _state(scene, running, pauses) if running else _DONE
            edges.setdefault(before, {})[choice] = state
        scene.tlb.check()
        scene.check()
    except Exception as exc:
        exc.add_note(f"order of steps: {[scene.actors[i].name for i, _ in taken]}")
        raise
    finally:
        for actor in running.values():
            actor.throw()
        scene.world.close()


def _is_foreign(scene: Scene, pfn: Pfn) -> bool:
    if scene.is_foreign is not None:
        return scene.is_foreign(pfn)
    machine = scene.world.machine
    return not machine.is_nvram(pfn) and machine.mem_map.page_count(pfn) == 0


def _choices(i: int, pause: _Pause) -> list[_Choice]:
    if isinstance(pause, int):
        return [(i, chosen) for chosen in range(pause)]
    return [(i, 0)] if pause is None or pause() else []


def _answer(pause: _Pause, choice: _Choice) -> tuple[int, ...]:
    return (choice[1],) if isinstance(pause, int) else ()


def _state(scene: Scene, running: dict[int, Any], pauses: dict[int, _Pause]) -> int:
    world = scene.world
    machine = world.machine
    mem_map, physmem = machine.mem_map, machine.physmem
    nr_frames = physmem.nr_ram_frames
    ram = np.frombuffer(physmem.view(0, nr_frames << PAGE_SHIFT), np.uint8)
    mms = {mm: i for i, mm in enumerate(world.mms)}
    return hash(
        (
            *(
                array[:nr_frames].tobytes()
                for array in (
                    mem_map.refcount,
                    mem_map.mapcount,
                    mem_map.mapping,
                    mem_map.index,
                    mem_map.flags,
                )
            ),
            tuple(mem_map._free),
            *(
                memory.reshape(-1, PAGE_SIZE)[:, :_NR_BYTES_SEEN].tobytes()
                for memory in (ram, physmem.nvram.bytes)
            ),
            tuple(_mm_state(mm) for mm in world.mms),
            tuple(
                sorted(
                    (cpu, mms[mm], page, entry)
                    for (cpu, mm, page), entry in scene.tlb.entries.items()
                )
            ),
            tuple(
                (
                    tuple(mapping.i_pages.items()),
                    mapping.i_size_bytes,
                    mapping.invalidate_seq,
                    len(mapping.i_mmap),
                    _lock_state(mapping.i_rwsem),
                    _lock_state(mapping.i_mmap_rwsem),
                )
                for mapping in world.fs.files
            ),
            machine.xip_sparse_seq,
            _lock_state(machine.xip_sparse_mutex),
            tuple(world.fs.blocks.items()),
            tuple(world.fs.free_blocks),
            repr(scene.notes),
            tuple((i, _stack(running[i], mms), pauses[i] is None) for i in running),
        )
    )


def _lock_state(lock: Any) -> tuple[int, bool]:
    return lock.nr_readers, lock.is_write_locked


def _mm_state(mm: Mm) -> tuple[Any, ...]:
    return (
        tuple((number, _value(leaf, {})) for number, leaf in mm.page_table.leaves.items()),
        tuple((vma.vm_start, vma.vm_end, vma.vm_flags, vma.anon_vma) for vma in mm.vmas.values()),
        (mm.rss_file, mm.rss_anon, mm.tlb_flush_pending, mm.nr_lockless_walks),
        _lock_state(mm.mmap_lock),
    )


def _stack(actor: Any, mms: dict[Mm, int]) -> tuple[Any, ...]:
    """Where an actor is, and what it knows: lines and local values of all its frames."""
    if not actor:
        return ("not begun",)
    found = []
    frame = actor.gr_frame
    while frame is not None:
        values = tuple(_value(value, mms) for value in frame.f_locals.values())
        found.append((id(frame.f_code), frame.f_lineno, values))
        frame = frame.f_back
    return tuple(found)


def _value(value: Any, mms: dict[Mm, int]) -> Any:
    """Return what is to be compared of a local value; None if it is no value, but a place."""
    if value is None or isinstance(value, int | str | bytes):
        return value
    if isinstance(value, VmFault):
        return value.flags, value.orig_pte, value.page, value.cow_page
    if isinstance(value, Leaf):
        present = np.flatnonzero(value.ptes)
        return present.tobytes(), value.ptes[present].tobytes(), value.dirty[present].tobytes()
    if isinstance(value, MmuGather):
        return value._start, value._end, tuple(value._pages), len(value._leaves)
    if isinstance(value, Mm):
        return mms[value] if value in mms else _mm_state(value)
    if isinstance(value, tuple | list):
        return tuple(_value(item, mms) for item in value)
    if isinstance(value, dict):
        return tuple((key, _value(item, mms)) for key, item in value.items())
    return bytes(value) if isinstance(value, bytearray) else None


def _count_orders(edges: dict[int, dict[_Choice, int]]) -> int:
    """Count the paths from the first state to the end; a loop (a retry) counts once."""
    counts: dict[int, int] = {_DONE: 1}
    first = next(iter(edges))
    stack = [(first, False)]
    open_states: set[int] = set()
    while stack:
        state, expanded = stack.pop()
        if expanded:
            open_states.discard(state)
            counts[state] = sum(counts.get(to, 0) for to in edges.get(state, {}).values())
        elif state not in counts and state not in open_states:
            open_states.add(state)
            stack.append((state, True))
            stack += [(to, False) for to in edges.get(state, {}).values() if to not in counts]
    return counts[first]
