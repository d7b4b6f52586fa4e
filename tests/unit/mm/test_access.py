"""user_load and user_store: the signals of a program. Marks and counters are in test_fault."""

import os

import pytest

from tests.kit.mm import SHARED_RW, World, block_bytes
from xipfs.mm.access import Signal, user_load, user_store
from xipfs.mm.vma import VM_READ, VM_SHARED, VM_XIP_FILE
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


@pytest.mark.parametrize("vm_flags", [VM_READ, VM_READ | VM_SHARED])
def test_nothing_is_read_of_nothing(world: World, vm_flags: int):
    assert user_load(world.mm, Vaddr(0), 0) == b""
