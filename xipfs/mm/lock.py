"""Atomic steps and locks, as far as the order of steps matters.

Code of mm runs from one `atomic_step` to the next without a break: that is what a spinlock, a
single store, or the mount's lock gives it. In the mount nothing else ever runs, and a step is an
empty function. A scheduler that drives several callers through all interleavings replaces the
`Scheduler` for the time of a run (`set_scheduler`).

The locks are the kernel's sleeping ones. Without a scheduler nobody can wait, so whoever would have
to has locked himself out: BugError.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from xipfs.errors import bug_on

__all__ = ["RwLock", "Scheduler", "atomic_step", "set_scheduler", "wait_for"]


class Scheduler:
    """Decides who runs after a step. This one knows a single caller, who always does."""

    def step(self, what: str) -> None:
        """One atomic step is done; *what* names the one that comes."""

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Return when *condition* holds, before anything else runs."""
        bug_on(not condition(), "waiting for oneself", what=what)


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


class RwLock:
    """Many readers or one writer (struct rw_semaphore); a mutex is one that is only written."""

    __slots__ = ("is_write_locked", "name", "nr_readers")

    def __init__(self, name: str) -> None:
        self.name = name
        self.nr_readers = 0
        self.is_write_locked = False

    @contextmanager
    def read(self) -> Iterator[None]:
        """Hold the lock for reading."""
        wait_for(self.name, lambda: not self.is_write_locked)
        self.nr_readers += 1
        try:
            yield
        finally:
            self.nr_readers -= 1

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock for writing."""
        wait_for(self.name, lambda: not self.is_write_locked and not self.nr_readers)
        self.is_write_locked = True
        try:
            yield
        finally:
            self.is_write_locked = False
