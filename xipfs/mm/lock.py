"""Atomic steps, locks, and what CPUs remember, as far as the order of steps matters.

Code of mm runs from one `atomic_step` to the next without a break: that is what a spinlock, a
single store, or the mount's lock gives it. In the mount nothing else ever runs, and a step is an
empty function. A scheduler that drives several callers through all interleavings replaces the
`Scheduler` for the time of a run (`set_scheduler`). It plays the CPUs' TLBs, too: what a walk of
the page table found may be used again until mm says that it must be forgotten.

The locks are the kernel's sleeping ones. Without a scheduler nobody can wait, so whoever would have
to has locked himself out: BugError.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xipfs.errors import bug_on

if TYPE_CHECKING:
    from xipfs.mm.pgtable import Leaf
    from xipfs.mm.vma import Mm
    from xipfs.units import Pfn, Vaddr

__all__ = [
    "RwLock",
    "Scheduler",
    "atomic_step",
    "forget_leaf",
    "forget_translations",
    "remember_translation",
    "remembered_translation",
    "set_scheduler",
    "wait_for",
]


class Scheduler:
    """Decides who runs after a step, and what CPUs remember.

    This one knows a single caller, who always runs, and a CPU without TLB.
    """

    def step(self, what: str) -> None:
        """One atomic step is done; *what* names the one that comes."""

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Return when *condition* holds, before anything else runs."""
        bug_on(not condition(), "waiting for oneself", what=what)

    def remember_translation(self, mm: "Mm", address: "Vaddr", pte: int, *, dirty: bool) -> None:
        """This CPU found *pte* in the page table, and its dirty bit set or not."""

    def remembered_translation(self, mm: "Mm", address: "Vaddr", *, write: bool) -> "Pfn | None":
        """Return the frame that this CPU takes *address* for without a look at the page table."""
        return None

    def forget_translations(self, mm: "Mm", start: "Vaddr", end: "Vaddr") -> None:
        """No CPU remembers what it found in [start, end) of *mm* any more."""

    def forget_leaf(self, leaf: "Leaf") -> None:
        """The memory of *leaf* is somebody else's now."""


_scheduler = Scheduler()
_is_watched = False


def set_scheduler(scheduler: Scheduler | None) -> None:
    """Let *scheduler* decide at every step; None for nobody."""
    global _scheduler, _is_watched
    _scheduler = scheduler or Scheduler()
    _is_watched = scheduler is not None


def atomic_step(what: str) -> None:
    """Tell that others may run here, before the step *what*."""
    if _is_watched:
        _scheduler.step(what)


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Go on when *condition* holds."""
    if not condition():
        _scheduler.wait_for(what, condition)


def remember_translation(mm: "Mm", address: "Vaddr", pte: int, *, dirty: bool) -> None:
    """Tell what a CPU's walk of the page table found, and may be used again."""
    if _is_watched:
        _scheduler.remember_translation(mm, address, pte, dirty=dirty)


def remembered_translation(mm: "Mm", address: "Vaddr", *, write: bool) -> "Pfn | None":
    """Return the frame that this CPU reaches at *address* without a walk; None to walk."""
    if _is_watched:
        return _scheduler.remembered_translation(mm, address, write=write)
    return None


def forget_translations(mm: "Mm", start: "Vaddr", end: "Vaddr") -> None:
    """Tell that no CPU may use again what it found in [start, end): for `tlb.flush_tlb_range`."""
    if _is_watched:
        _scheduler.forget_translations(mm, start, end)


def forget_leaf(leaf: "Leaf") -> None:
    """Tell that a leaf of a page table is free: for `tlb.MmuGather`."""
    if _is_watched:
        _scheduler.forget_leaf(leaf)


class RwLock:
    """Many readers or one writer (struct rw_semaphore); a mutex is one that is only written."""

    __slots__ = ("is_write_locked", "name", "nr_readers")

    def __init__(self, name: str) -> None:
        self.name = name
        self.nr_readers = 0
        self.is_write_locked = False

    def down_read(self) -> None:
        """Take the lock for reading: `read`, where half a microsecond matters."""
        if self.is_write_locked:
            wait_for(self.name, lambda: not self.is_write_locked)
        self.nr_readers += 1

    def up_read(self) -> None:
        """Let go of the lock."""
        self.nr_readers -= 1

    @contextmanager
    def read(self) -> Iterator[None]:
        """Hold the lock for reading."""
        self.down_read()
        try:
            yield
        finally:
            self.up_read()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock for writing."""
        wait_for(self.name, lambda: not self.is_write_locked and not self.nr_readers)
        self.is_write_locked = True
        try:
            yield
        finally:
            self.is_write_locked = False
