"""user_load and user_store: the signals of a program. Marks and counters are in test_fault."""

import os

import pytest

from tests.kit.mm import SHARED_RW, World, block_bytes
from xipfs.mm.access import Signal, user_load, user_store
from xipfs.mm.arch import get_arch
from xipfs.mm.vma import VM_READ, VM_SHARED, VM_XIP_FILE
from xipfs.oracle.player import play_scene
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Vaddr


def test_bytes_over_several_pages(writable: World):
    vma = writable.mmap(writable.fs.make_file({0: 3, 1: 9}, read_only=False), vm_flags=SHARED_RW)
    at = Vaddr(vma.vm_start + 4000)
    assert user_store(writable.mm, at, b"x" * 200) is None
    expected = block_bytes(3)[:4000] + b"x" * 200 + block_bytes(9)[104:]
    assert user_load(writable.mm, vma.vm_start, 2 * PAGE_SIZE) == expected


def test_signals(world: World):
    vma = world.mmap(world.fs.make_file({0: 3}, size_bytes=10), nr_pages=2)
    hidden = world.mmap(world.fs.make_file({0: 3}), vm_flags=VM_XIP_FILE & ~VM_READ)
    assert user_load(world.mm, Vaddr(0), 1) == Signal("SIGSEGV", 1)
    assert user_store(world.mm, vma.vm_start, b"x") == Signal("SIGSEGV", 2)
    assert user_load(world.mm, hidden.vm_start, 1) == Signal("SIGSEGV", 2)
    assert user_load(world.mm, Vaddr(vma.vm_start + PAGE_SIZE), 1) == Signal("SIGBUS", 2)
    world.mm.page_table.nr_leaves_max = 0
    assert user_load(world.mm, vma.vm_start, 1) == Signal("SIGKILL", 0)


def test_memory_that_fails_is_sigbus(world: World):
    vma = world.mmap(world.fs.make_file({0: 50}, read_only=False), vm_flags=SHARED_RW)
    assert user_store(world.mm, vma.vm_start, b"x") == Signal("SIGBUS", 2), "opened for reading"
    os.truncate(world.machine.physmem.nvram.path, 50 << PAGE_SHIFT)
    assert user_load(world.mm, vma.vm_start, 1) == Signal("SIGBUS", 2)


def test_user_mode_linux_copies_by_the_ptes_and_others_by_the_mmu():
    """Under PROT_NONE, and over a clean pte: a live kernel of that kind answered so."""
    header = "device plan=R vm=mixed hooks=none"
    ops = ["0 map A rw shared 1", "0 read A 0", "0 gup read_pipe A 0", "0 state A 0"]
    ops += ["0 mprotect A 0 1 none", "0 gup write_pipe A 0", "0 gup read_pipe A 0"]
    found = {name: play_scene([header, *ops], get_arch(name, "6.1")) for name in ("um", "x86")}
    assert [answer.split()[1] for answer in (found["um"][4], found["x86"][4])] == [
        "pte=W",
        "pte=WD|SPECIAL",
    ]
    assert found["um"][6:] == ["64", "EFAULT"]
    assert found["x86"][6:] == ["EFAULT", "EFAULT"]


@pytest.mark.parametrize("vm_flags", [VM_READ, VM_READ | VM_SHARED])
def test_nothing_is_read_of_nothing(world: World, vm_flags: int):
    assert user_load(world.mm, Vaddr(0), 0) == b""
