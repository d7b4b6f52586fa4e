"""Every order in which callers of mm can run: an explorer over its atomic steps.

    report = explore(make_scene)        make_scene() -> Scene, always the same

A scene's actors are greenlets over the product's own code. At each `atomic_step` of mm, and where
one waits for a lock, the explorer decides who goes on. It runs a scene again and again, each time
along a path not taken yet, and stops a run where it reaches a state it has seen: equal page tables,
struct pages, files and bytes, and every actor at the same line with the same local values. So steps
that commute are tried in one order only. How many orders that stands for is counted in the graph of
states.

After each step, free frames and blocks get foreign bytes, as their next owner would write them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import greenlet

from tests.kit.mm import World, snapshot
from xipfs.mm.lock import Scheduler, set_scheduler

__all__ = ["Actor", "Deadlock", "Report", "Scene", "explore"]

_NR_STEPS_MAX = 400


class Deadlock(AssertionError):
    """Nobody can go on, or nobody gets anywhere."""


@dataclass
class Actor:
    """A caller: its name, and what it does."""

    name: str
    run: Callable[[], None]


@dataclass
class Scene:
    """What the actors work on; check() is called when all are done, scribble() after each step."""

    world: World
    actors: list[Actor]
    check: Callable[[], None]
    scribble: Callable[[], None]
    notes: dict[str, Any] = field(default_factory=dict)
    """What actors have seen so far, for check(): part of the state."""


@dataclass
class Report:
    nr_runs: int = 0
    nr_steps: int = 0
    nr_states: int = 0
    nr_orders: int = 0


class _Baton(Scheduler):
    """Hands every step of an actor to the explorer."""

    def step(self, what: str) -> None:
        self._pause(None)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        while not condition():
            self._pause(condition)

    def _pause(self, condition: Callable[[], bool] | None) -> None:
        parent = greenlet.getcurrent().parent
        if parent is None:  # no actor: the scene is being made or checked
            assert condition is None, "waiting for oneself"
            return
        parent.switch(condition)


def explore(make_scene: Callable[[], Scene]) -> Report:
    """Run a scene in every order. Raises: what an actor or a check raises; Deadlock."""
    report = Report()
    edges: dict[int, dict[int, int]] = {}
    pending: list[list[int]] = [[]]
    set_scheduler(_Baton())
    try:
        while pending:
            _run(make_scene, pending.pop(), edges, pending, report)
    finally:
        set_scheduler(None)
    report.nr_states = len(edges)
    report.nr_orders = _count_orders(edges)
    return report


_DONE = -1
"""The state after the last step."""


def _run(
    make_scene: Callable[[], Scene],
    path: list[int],
    edges: dict[int, dict[int, int]],
    pending: list[list[int]],
    report: Report,
) -> None:
    scene = make_scene()
    try:
        report.nr_runs += 1
        running = {i: greenlet.greenlet(actor.run) for i, actor in enumerate(scene.actors)}
        waiting: dict[int, Callable[[], bool] | None] = dict.fromkeys(running)
        taken: list[int] = []
        state = _state(scene, running, waiting)
        while running:
            ready = [i for i in running if (wait := waiting[i]) is None or wait()]
            if not ready or len(taken) > _NR_STEPS_MAX:
                raise Deadlock(f"{[scene.actors[i].name for i in running]} after {taken}")
            if len(taken) < len(path):
                choice = path[len(taken)]
            elif state in edges:
                return  # what follows is known
            else:
                choice = ready[0]
                pending += [[*taken, other] for other in ready[1:]]
            found = edges.setdefault(state, {})
            taken.append(choice)
            waiting[choice] = running[choice].switch()
            report.nr_steps += 1
            if running[choice].dead:
                del running[choice]
            scene.scribble()
            state = _state(scene, running, waiting) if running else _DONE
            found[choice] = state
        scene.check()
    except Exception as exc:
        exc.add_note(f"order of steps: {[scene.actors[i].name for i in taken]}")
        raise
    finally:
        for actor in running.values():
            actor.throw()
        scene.world.close()


def _state(scene: Scene, running: dict[int, Any], waiting: dict[int, Any]) -> int:
    world = scene.world
    memory = snapshot(world.machine, world.mms, world.fs.files)
    del memory["vmstat"]
    frames = tuple(
        bytes(world.machine.physmem.frame(pfn)[:128])  # type: ignore[arg-type]
        for pfn in range(world.machine.physmem.nr_ram_frames)
    )
    actors = tuple((i, _stack(running[i]), waiting[i] is None) for i in running)
    locks = tuple(
        (lock.nr_readers, lock.is_write_locked)
        for lock in (
            world.machine.xip_sparse_mutex,
            *(mm.mmap_lock for mm in world.mms),
            *(mapping.i_rwsem for mapping in world.fs.files),
        )
    )
    files = tuple(
        (mapping.i_size_bytes, mapping.invalidate_seq, len(mapping.i_mmap))
        for mapping in world.fs.files
    )
    nvram = bytes(world.machine.physmem.nvram.bytes)
    return hash(
        (
            repr(memory),
            frames,
            actors,
            locks,
            files,
            world.machine.xip_sparse_seq,
            repr(world.fs.blocks),
            repr(sorted(scene.notes.items(), key=str)),
            hash(nvram),
        )
    )


def _stack(actor: Any) -> tuple[Any, ...]:
    """Where an actor is, and what it knows: lines and plain local values of all its frames."""
    if not actor:
        return ("not begun",)
    found = []
    frame = actor.gr_frame
    while frame is not None:
        values = tuple(
            (name, repr(value))
            for name, value in frame.f_locals.items()
            if isinstance(value, int | str | bytes | bytearray | tuple | list | dict | None)
            and "object at" not in repr(value)
        )
        found.append((frame.f_code.co_qualname, frame.f_lineno, values))
        frame = frame.f_back
    return tuple(found)


def _count_orders(edges: dict[int, dict[int, int]]) -> int:
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
