"""Locks: who would wait for himself is told; with a scheduler he waits."""

from collections.abc import Callable

import pytest

from tests.kit.mm import DictFs
from xipfs.errors import BugError
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.lock import RwLock, Scheduler, atomic_step, set_scheduler, wait_for


def test_readers_share_and_a_writer_does_not():
    lock = RwLock("a lock")
    with lock.read(), lock.read():
        assert lock.nr_readers == 2
        with pytest.raises(BugError, match="waiting for oneself: what='a lock'"), lock.write():
            pass
    with lock.write():
        assert lock.is_write_locked
        for again in (lock.read, lock.write):
            with pytest.raises(BugError, match="waiting for oneself"), again():
                pass
    assert (lock.nr_readers, lock.is_write_locked) == (0, False)


def test_fault_amid_ones_own_migration_waits_for_oneself():
    mapping = AddressSpace(16, DictFs(), i_size_bytes=0, read_only=True)
    with mapping.invalidate(), pytest.raises(BugError, match="waiting for oneself"):
        mapping.read_invalidate_begin()
    assert mapping.read_invalidate_begin() == 2


class Recorder(Scheduler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def step(self, what: str) -> None:
        self.seen.append(what)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        self.seen.append(f"wait for {what}")


def test_scheduler_sees_steps_and_waits_until_it_goes():
    recorder = Recorder()
    set_scheduler(recorder)
    try:
        atomic_step("one")
        wait_for("nothing", lambda: True)
        wait_for("something", lambda: False)
    finally:
        set_scheduler(None)
    atomic_step("two")
    assert recorder.seen == ["one", "wait for something"]
    Scheduler().step("nobody minds")
