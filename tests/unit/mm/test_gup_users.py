"""Who calls get_user_pages: counts and errnos on areas with and without struct pages."""

import errno

import pytest

from tests.kit.mm import PRIVATE_RW, SHARED_RW, World, block_bytes
from xipfs.mm.arch import get_arch
from xipfs.mm.gup_users import (
    Pipe,
    access_remote_vm,
    direct_io,
    futex_wake_shared,
    io_uring_register_buffer,
    mem_rw,
    process_vm_rw,
    ptrace_access,
)
from xipfs.mm.mem_map import GUP_PIN_COUNTING_BIAS
from xipfs.mm.mmap import do_munmap
from xipfs.mm.pgtable import pte_pfn
from xipfs.mm.vm_fault import VmOperations
from xipfs.mm.vma import Vma
from xipfs.units import PAGE_SIZE, Pfn, Vaddr

pytestmark = pytest.mark.parametrize("arch", [get_arch("generic"), get_arch("x86", "6.1")])


@pytest.fixture
def private(world: World) -> Vma:
    """Two pages that a write copies."""
    return world.mmap(world.fs.make_file({0: 3, 1: 4}), vm_flags=PRIVATE_RW)


@pytest.fixture
def bare(world: World) -> Vma:
    """Two pages without struct page that stay so."""
    return world.mmap(world.fs.make_file({0: 3, 1: 4}, read_only=False), vm_flags=SHARED_RW)


def refuses(world: World) -> int:
    return -errno.EFAULT if world.machine.arch.is_2008 else -errno.EEXIST


def test_process_vm(world: World, private: Vma, bare: Vma):
    at = Vaddr(private.vm_start + 4090)
    assert process_vm_rw(world.mm, at, bytearray(b"twelve bytes"), write=True) == 12
    buffer = bytearray(12)
    assert process_vm_rw(world.mm, at, buffer, write=False) == 12
    assert buffer == b"twelve bytes"
    assert process_vm_rw(world.mm, bare.vm_start, buffer, write=False) == -errno.EFAULT
    do_munmap(world.mm, Vaddr(private.vm_start + PAGE_SIZE), 1)
    assert process_vm_rw(world.mm, at, buffer, write=False) == 6, "as far as it goes"
    world.check()


def test_proc_mem_and_ptrace(world: World, private: Vma, bare: Vma):
    at = Vaddr(private.vm_start + 4092)
    assert mem_rw(world.mm, at, bytearray(b"8 bytes!"), write=True) == 8
    word = bytearray(8)
    assert ptrace_access(world.mm, at, word, write=False) == 0
    assert word == b"8 bytes!"
    assert mem_rw(world.mm, bare.vm_start, word, write=False) == -errno.EIO
    assert ptrace_access(world.mm, bare.vm_start, word, write=False) == -errno.EIO
    do_munmap(world.mm, Vaddr(private.vm_start + PAGE_SIZE), 1)
    assert access_remote_vm(world.mm, at, word, write=False) == 4
    assert ptrace_access(world.mm, at, word, write=False) == -errno.EIO
    world.check()


def test_direct_io(world: World, private: Vma, bare: Vma):
    disk = bytearray(block_bytes(20))
    assert direct_io(world.mm, private.vm_start, disk, write=True) == PAGE_SIZE
    found = bytearray(2 * PAGE_SIZE)
    assert direct_io(world.mm, private.vm_start, found, write=False) == PAGE_SIZE
    assert found[:PAGE_SIZE] == block_bytes(20)
    assert direct_io(world.mm, bare.vm_start, disk, write=False) == refuses(world)
    world.check()


def test_io_uring_pins_what_is_no_files(world: World, private: Vma):
    pinned: list[Pfn] = []
    start = private.vm_start
    assert io_uring_register_buffer(world.mm, start, 1, pinned) == -errno.EOPNOTSUPP
    do_munmap(world.mm, Vaddr(start + PAGE_SIZE), 1)
    assert io_uring_register_buffer(world.mm, start, 2, pinned) == -errno.EFAULT
    assert io_uring_register_buffer(world.mm, private.vm_end, 1, pinned) == -errno.EFAULT
    assert pinned == []
    world.check()
    # An area of no file, whose page is there already.
    page = pte_pfn(world.pte(private, 0))
    private.vm_file.i_mmap.remove(private)
    private.vm_file, private.vm_ops = None, VmOperations()
    assert io_uring_register_buffer(world.mm, start, 1, pinned) == 0
    assert pinned == [page]
    pin = 1 if world.machine.arch.is_2008 else GUP_PIN_COUNTING_BIAS
    assert world.machine.mem_map.page_count(page) == 1 + pin
    world.check(pins=[page] * pin)


def test_futex(world: World, private: Vma, bare: Vma):
    assert futex_wake_shared(world.mm, Vaddr(private.vm_start + 8)) == 0
    assert futex_wake_shared(world.mm, bare.vm_start) == refuses(world)
    hole = world.mmap(world.fs.make_file({}, nr_pages=1))
    assert futex_wake_shared(world.mm, hole.vm_start) == -errno.EFAULT, "of no file"
    world.check()


def test_pipe(writable: World):
    world = writable
    bare = world.mmap(world.fs.make_file({0: 3}, read_only=False), vm_flags=SHARED_RW)
    private = world.mmap(world.fs.make_file({0: 3, 1: 4}), vm_flags=PRIVATE_RW)
    pipe = Pipe(world.mm)
    assert pipe.vmsplice(bare.vm_start, 10) == refuses(world)
    assert pipe.write(bare.vm_start, 10) == 10
    assert pipe.read(bare.vm_start, b"data") == 4
    assert world.page(pte_pfn(world.pte(bare, 0)))[:4] == b"data"
    assert pipe.write(Vaddr(0), 10) == pipe.read(Vaddr(0), b"data") == -errno.EFAULT
    assert pipe.read(private.vm_start, b"mine") == 4
    page = pte_pfn(world.pte(private, 0))
    assert pipe.vmsplice(Vaddr(private.vm_start + 4000), 200) == 96, "as far as it goes"
    world.check(pins=[page])
    pipe.close()
    world.check()
