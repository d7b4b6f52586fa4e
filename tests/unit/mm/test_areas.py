"""System calls on areas: what each refuses, and what it leaves behind. (What they do to ptes is in
tests/conformance, against a real kernel's answers.)"""

import errno
from collections.abc import Iterator

import pytest

from xipfs.mm.access import Signal, user_load, user_store
from xipfs.mm.arch import get_arch
from xipfs.mm.check import check_invariants
from xipfs.mm.fork import dup_mm
from xipfs.mm.gup import FOLL_PIN, FOLL_WRITE, get_user_pages, put_user_page
from xipfs.mm.machine import Machine
from xipfs.mm.madvise import Advice, do_madvise
from xipfs.mm.mlock import do_mlock, do_mlockall_future, do_munlock
from xipfs.mm.mmap import do_mmap, do_munmap, exit_mmap
from xipfs.mm.mprotect import do_mprotect
from xipfs.mm.mremap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, do_mremap
from xipfs.mm.msync import do_msync
from xipfs.mm.proc import mincore, pagemap_entry, smaps, vm_flag_names
from xipfs.mm.remap import remap_pfn_range
from xipfs.mm.vma import VM_DONTCOPY, VM_READ, VM_WRITE, Mm, Vma
from xipfs.oracle.device import Hooks, Mixmap, VmMode, parse_plan
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Pfn, Pgoff, Vaddr

R, RW = VM_READ, VM_READ | VM_WRITE
HOLE = Vaddr(1 << 50)


class Program:
    """A process with areas of the device, and what it may still hold."""

    def __init__(self, arch: str = "um-special", version: str = "6.1") -> None:
        self.nvram = NvramDevice.scratch(16 << PAGE_SHIFT)
        self.machine = Machine(self.nvram, nr_tier_frames=64, arch=get_arch(arch, version))
        self.device = Mixmap(self.machine)
        self.mm = Mm(self.machine)
        self.mms = [self.mm]

    def map(
        self, prot: int = RW, *, shared: bool = False, nr_pages: int = 4, **more: bool
    ) -> Vaddr:
        address = do_mmap(self.mm, self.device, nr_pages=nr_pages, prot=prot, shared=shared, **more)
        assert address > 0, errno.errorcode[-address]
        return Vaddr(address)

    def fork(self) -> Mm:
        child = dup_mm(self.mm)
        assert isinstance(child, Mm)
        self.mms.append(child)
        return child

    def vma(self, address: int, mm: Mm | None = None) -> Vma:
        vma = (mm or self.mm).find_vma(Vaddr(address))
        assert vma is not None
        return vma

    def check(self) -> None:
        check_invariants(self.machine, self.mms, [self.device.f_mapping], self.device.pages)

    def close(self) -> None:
        self.check()
        for mm in self.mms:
            exit_mmap(mm)
        self.mms = []
        self.check()
        self.machine.close()
        self.nvram.close()


@pytest.fixture
def program() -> Iterator[Program]:
    program = Program()
    yield program
    program.close()


@pytest.fixture(params=[("um", "6.1"), ("um-special", "6.1"), ("x86", "6.18"), ("x86", "2.6.28")])
def any_program(request: pytest.FixtureRequest) -> Iterator[Program]:
    program = Program(*request.param)
    yield program
    program.close()


def page(address: int, i: int) -> Vaddr:
    return Vaddr(address + i * PAGE_SIZE)


# --- mmap, munmap ---


def test_mmap_refuses_what_makes_no_sense(program: Program):
    def mmap(**changed: object) -> int:
        return do_mmap(
            program.mm,
            program.device,
            **{"nr_pages": 1, "prot": R, "shared": True} | changed,  # type: ignore[arg-type]
        )

    assert mmap(nr_pages=0) == -errno.EINVAL
    assert mmap(address=Vaddr(4097)) == -errno.EINVAL
    assert mmap(nr_pages=1 << 50) == -errno.ENOMEM
    program.device.may_write = False
    assert mmap(prot=RW) == -errno.EACCES
    address = mmap()
    assert vm_flag_names(program.vma(address).vm_flags) == ["rd", "mr", "me", "ms", "mm"]


def test_a_fixed_address_takes_the_place_of_what_is_there(program: Program):
    a = program.map(nr_pages=8)
    user_store(program.mm, page(a, 3), b"x")
    middle = do_mmap(
        program.mm, program.device, nr_pages=4, prot=R, shared=True, address=page(a, 2)
    )
    assert middle == page(a, 2)
    assert user_load(program.mm, page(a, 3), 1) == b"B", "the device's page 1"
    assert [vma.nr_pages for vma in program.mm.vmas.values()] == [2, 4, 2]
    assert [vma.vm_pgoff for vma in program.mm.vmas.values()] == [0, 0, 6]


def test_mmap_that_its_file_refuses_leaves_nothing(program: Program):
    program.device.configure(parse_plan("G"), VmMode.REMAP, Hooks.FULL)
    program.mm.page_table.nr_leaves_max = 0
    refused = do_mmap(program.mm, program.device, nr_pages=4, prot=R, shared=True)
    assert refused == -errno.ENOMEM
    assert not program.mm.vmas
    assert not program.device.f_mapping.i_mmap


def test_munmap_of_a_middle_leaves_both_ends(program: Program):
    a = program.map(nr_pages=8)
    for i in range(8):
        user_store(program.mm, page(a, i), b"x")
    assert do_munmap(program.mm, Vaddr(a + 1), 1) == -errno.EINVAL
    assert do_munmap(program.mm, a, 0) == -errno.EINVAL
    assert do_munmap(program.mm, page(a, 2), 3) == 0
    assert user_load(program.mm, page(a, 2), 1) == Signal("SIGSEGV", 1)
    assert user_load(program.mm, page(a, 5), 1) == b"x"
    assert (program.mm.rss_anon, program.device.counts.opens) == (5, 2)
    assert do_munmap(program.mm, HOLE, 5) == 0, "nothing there is no error"


# --- access ---


def test_bytes_over_a_page_boundary(program: Program):
    a = program.map(shared=True)
    assert user_store(program.mm, Vaddr(a + PAGE_SIZE - 2), b"1234") is None
    assert user_load(program.mm, Vaddr(a + PAGE_SIZE - 3), 6) == b"A1234B"
    end = Vaddr(a + 4 * PAGE_SIZE - 1)
    assert user_load(program.mm, end, 2) == Signal("SIGSEGV", 1)
    assert user_store(program.mm, end, b"12") == Signal("SIGSEGV", 1)


def test_without_page_tables_a_program_is_killed(any_program: Program):
    a = any_program.map()
    any_program.mm.page_table.nr_leaves_max = 0
    assert user_load(any_program.mm, a, 1) == Signal("SIGKILL", 0)


def test_without_frames_a_private_write_is_refused_and_changes_nothing(any_program: Program):
    a = any_program.map()
    assert user_load(any_program.mm, a, 1) == b"A"
    taken = []
    while (frame := any_program.machine.mem_map.alloc_page()) is not None:
        taken.append(frame)
    assert user_store(any_program.mm, a, b"x") == Signal("SIGKILL", 0)
    assert user_store(any_program.mm, page(a, 1), b"x") == Signal("SIGKILL", 0)
    for frame in taken:
        any_program.machine.mem_map.put_page(frame)
    assert user_store(any_program.mm, a, b"x") is None


# --- mprotect ---


def test_mprotect_refuses_and_does_what_comes_before(program: Program):
    a = program.map(nr_pages=2)
    assert do_mprotect(program.mm, Vaddr(a + 1), 1, R) == -errno.EINVAL
    assert do_mprotect(program.mm, HOLE, 1, R) == -errno.ENOMEM
    assert do_mprotect(program.mm, a, 3, R) == -errno.ENOMEM
    assert user_store(program.mm, a, b"x") == Signal("SIGSEGV", 2), "done all the same"
    assert do_munmap(program.mm, a, 1) == 0
    assert do_mprotect(program.mm, a, 2, RW) == -errno.ENOMEM, "a gap at its start"
    program.device.may_write = False
    b = program.map(R, shared=True)
    assert do_mprotect(program.mm, b, 1, RW) == -errno.EACCES
    assert do_mprotect(program.mm, b, 1, R) == 0, "as it was"
    assert program.vma(b).nr_pages == 4


def test_mprotect_gives_own_pages_back_their_write_bit_since_5_19(any_program: Program):
    a = any_program.map()
    user_store(any_program.mm, a, b"x")
    user_load(any_program.mm, page(a, 1), 1)
    for prot in (0, R, RW):
        assert do_mprotect(any_program.mm, a, 4, prot) == 0
    faults = any_program.machine.vmstat.pgfault
    user_store(any_program.mm, a, b"y")
    is_2008 = any_program.machine.arch.is_2008
    assert any_program.machine.vmstat.pgfault - faults == (1 if is_2008 else 0)
    user_store(any_program.mm, page(a, 1), b"y")
    assert any_program.mm.rss_anon == 2


# --- mremap ---


def test_mremap_refuses_crooked_values(program: Program):
    a = program.map()
    shared = program.map(R, shared=True)

    def mremap(flags: int, old: int = 4, new: int = 4, at: int = a, to: Vaddr | None = None) -> int:
        return do_mremap(program.mm, Vaddr(at), old, new, flags, to)

    assert mremap(0, at=a + 1) == -errno.EINVAL
    assert mremap(0, new=0) == -errno.EINVAL
    assert mremap(MREMAP_FIXED, to=HOLE) == -errno.EINVAL
    assert mremap(MREMAP_MAYMOVE | MREMAP_FIXED) == -errno.EINVAL
    assert mremap(MREMAP_MAYMOVE | MREMAP_DONTUNMAP, new=5) == -errno.EINVAL
    assert mremap(MREMAP_MAYMOVE, old=0) == -errno.EINVAL, "a private area twice"
    assert mremap(0, at=HOLE) == -errno.EFAULT
    assert mremap(0, old=2, new=1, at=HOLE) == -errno.EFAULT
    assert mremap(0, old=5, new=6) == -errno.EFAULT, "beyond its area"
    assert mremap(MREMAP_MAYMOVE, new=1 << 50) == -errno.ENOMEM
    assert mremap(0) == a, "as it was"
    assert mremap(0, old=0, new=4, at=shared) == -errno.ENOMEM, "not without moving"


def test_mremap_grows_in_place_where_there_is_room(program: Program):
    a = program.map(nr_pages=5)  # 8 are reserved
    assert do_mremap(program.mm, a, 5, 8, 0) == a
    assert user_load(program.mm, page(a, 7), 1) == b"H"
    neighbour = program.map(nr_pages=8)
    assert neighbour == page(a, 8)
    assert do_mremap(program.mm, a, 8, 9, 0) == -errno.ENOMEM
    moved = do_mremap(program.mm, a, 8, 9, MREMAP_MAYMOVE)
    assert user_load(program.mm, page(moved, 7), 1) == b"H"
    assert user_load(program.mm, a, 1) == Signal("SIGSEGV", 1)


def test_mremap_of_a_piece_moves_that_piece(program: Program):
    a = program.map(nr_pages=6)
    user_store(program.mm, page(a, 2), b"x")
    room = do_mmap(program.mm, None, nr_pages=8, prot=0, shared=False)
    moved = do_mremap(program.mm, page(a, 2), 3, 2, MREMAP_MAYMOVE | MREMAP_FIXED, Vaddr(room))
    assert moved == room
    assert user_load(program.mm, Vaddr(moved), 1) == b"x"
    assert user_load(program.mm, page(moved, 1), 1) == b"D"
    assert user_load(program.mm, page(a, 2), 1) == Signal("SIGSEGV", 1)
    assert user_load(program.mm, page(a, 5), 1) == b"F"
    kept = do_mremap(program.mm, Vaddr(moved), 1, 1, MREMAP_MAYMOVE | MREMAP_DONTUNMAP)
    assert user_load(program.mm, Vaddr(kept), 1) == b"x"
    assert user_load(program.mm, Vaddr(moved), 1) == b"C", "its file's page again"


def test_mremap_of_nothing_leaves_alone_what_lies_behind(program: Program):
    """It unmapped the end of the range before it looked at the start (found by a live kernel)."""
    a = program.map(nr_pages=4)
    do_munmap(program.mm, a, 2)
    assert do_mremap(program.mm, a, 4, 3, MREMAP_MAYMOVE) == -errno.EFAULT
    assert program.vma(page(a, 3)).nr_pages == 2


# --- mlock, madvise, msync ---


def test_mlock_needs_something_mapped(any_program: Program):
    a = any_program.map(R, nr_pages=2)
    b = do_mmap(any_program.mm, None, nr_pages=4, prot=0, shared=False)
    assert do_mlock(any_program.mm, HOLE, 1) == -errno.ENOMEM
    assert do_mlock(any_program.mm, a, 3) == -errno.ENOMEM
    assert do_mlock(any_program.mm, Vaddr(b), 2) == -errno.ENOMEM, "nothing to fault in"
    assert [vma.nr_pages for vma in any_program.mm.vmas_between(Vaddr(b), page(b, 4))] == [2, 2]
    assert smaps(any_program.vma(b)).locked_bytes == 0
    assert do_munlock(any_program.mm, Vaddr(b), 2) == 0
    do_munmap(any_program.mm, a, 1)
    assert do_munlock(any_program.mm, a, 2) == -errno.ENOMEM, "a gap at its start"


def test_mlock_of_an_area_that_fails_is_told_as_posix_wants(program: Program):
    program.device.configure(parse_plan("R"), VmMode.MIXED, Hooks.FULL)
    a = program.map(RW, nr_pages=20)
    assert do_mlock(program.mm, a, 16) == 0
    assert do_mlock(program.mm, page(a, 16), 1) == -errno.ENOMEM
    program.mm.page_table.nr_leaves_max = 0
    b = program.map(RW, nr_pages=512)
    assert do_mlock(program.mm, b, 1) == -errno.EAGAIN


def test_mlock_goes_on_after_a_partial_result(program: Program):
    """It stopped at the first page that could not be faulted in, and told of success."""
    program.device.configure(parse_plan("R"), VmMode.MIXED, Hooks.FULL)
    a = program.map(RW, nr_pages=20)
    assert do_mlock(program.mm, a, 20) == -errno.ENOMEM, "16 pages are there, and the next is not"
    assert program.device.counts.faults == 17 + 1, "which is tried again, for its own error"


def test_mlock_does_not_look_again_at_an_area_that_a_fault_made_pfnmap(program: Program):
    """A live kernel said so: flags are looked at when get_user_pages enters an area."""
    program.device.configure(parse_plan("RGR"), VmMode.MIXED, Hooks.FULL)
    a = program.map(RW, nr_pages=3, shared=True)
    assert do_mlock(program.mm, a, 3) == 0
    assert program.device.counts.faults == 3


def test_mlockall_marks_what_comes(program: Program):
    assert do_mlockall_future(program.mm) == 0
    anonymous = do_mmap(program.mm, None, nr_pages=1, prot=0, shared=False)
    assert "lo" in vm_flag_names(program.vma(anonymous).vm_flags)
    assert "lo" not in vm_flag_names(program.vma(program.map()).vm_flags)
    assert do_madvise(program.mm, Vaddr(anonymous), 1, Advice.DONTNEED) == -errno.EINVAL
    assert do_madvise(program.mm, Vaddr(anonymous), 1, Advice.REMOVE) == -errno.EINVAL


@pytest.mark.parametrize(
    ("advice", "name"),
    [
        (Advice.RANDOM, "rr"),
        (Advice.SEQUENTIAL, "sr"),
        (Advice.DONTFORK, "dc"),
        (Advice.DONTDUMP, "dd"),
    ],
)
def test_advice_that_is_a_flag_splits_the_area(program: Program, advice: Advice, name: str):
    a = program.map()
    assert do_madvise(program.mm, page(a, 1), 2, advice) == 0
    flags = [name in vm_flag_names(program.vma(page(a, i)).vm_flags) for i in range(4)]
    assert flags == [False, True, True, False]


def test_advice_beyond_what_is_mapped_is_told_and_the_rest_done(program: Program):
    a = program.map(nr_pages=3)
    user_store(program.mm, a, b"x")
    do_munmap(program.mm, page(a, 1), 1)
    assert do_madvise(program.mm, Vaddr(a + 1), 1, Advice.NORMAL) == -errno.EINVAL
    assert do_madvise(program.mm, a, 3, Advice.DONTNEED) == -errno.ENOMEM
    assert do_madvise(program.mm, page(a, 2), 2, Advice.DONTNEED) == -errno.ENOMEM
    assert do_madvise(program.mm, page(a, 1), 2, Advice.POPULATE_READ) == -errno.ENOMEM
    assert do_madvise(program.mm, page(a, 2), 2, Advice.POPULATE_READ) == -errno.ENOMEM
    assert program.mm.rss_anon == 0
    assert user_load(program.mm, a, 1) == b"A"


def test_populating_ends_at_the_page_that_fails(program: Program):
    a = program.map(nr_pages=18)
    assert do_madvise(program.mm, a, 18, Advice.POPULATE_WRITE) == -errno.EFAULT
    assert program.mm.rss_anon == 16
    assert do_madvise(program.mm, page(a, 16), 1, Advice.POPULATE_READ) == -errno.EFAULT


def test_other_advice(program: Program):
    s = program.map(RW, shared=True)
    assert do_madvise(program.mm, s, 1, Advice.KEEPONFORK) == 0
    assert do_madvise(program.mm, s, 1, Advice.UNMERGEABLE) == 0


def test_msync_asks_the_file_of_each_shared_area(program: Program):
    calls: list[int] = []

    def fsync() -> int:
        calls.append(1)
        return 0

    private, shared = program.map(nr_pages=4), program.map(shared=True, nr_pages=4)
    assert shared == page(private, 4)
    assert do_msync(program.mm, private, 8) == -errno.EINVAL
    program.device.f_mapping.fsync = fsync
    assert do_msync(program.mm, private, 8) == 0
    assert len(calls) == 1
    do_munmap(program.mm, private, 2)
    assert do_msync(program.mm, private, 8) == -errno.ENOMEM
    assert do_msync(program.mm, shared, 5) == -errno.ENOMEM
    assert len(calls) == 3


# --- fork ---


def test_an_area_that_is_not_for_children_stays_behind(program: Program):
    a, b = program.map(), program.map()
    program.vma(a).vm_flags |= VM_DONTCOPY
    child = program.fork()
    assert child.find_vma(a) is None
    assert child.find_vma(b) is not None
    assert child.get_unmapped_area(4) > b, "what a child maps later does not meet what it has"


def test_a_pinned_page_is_copied_for_the_child_at_once(program: Program):
    a = program.map()
    user_store(program.mm, a, b"x")
    pages: list[Pfn] = []
    assert get_user_pages(program.mm, a, 1, FOLL_PIN | FOLL_WRITE, pages) == 1
    child = program.fork()
    assert program.mm.page_table.find_pte(a) != child.page_table.find_pte(a)
    user_store(program.mm, a, b"y")
    assert user_load(child, a, 1) == b"x"
    assert program.machine.physmem.frame(pages[0])[0] == ord("y"), "who pinned it sees it"
    put_user_page(program.mm, pages[0], FOLL_PIN)


@pytest.mark.parametrize("pinned", [False, True])
def test_fork_without_memory_leaves_nothing(program: Program, pinned: bool):
    a = program.map()
    user_store(program.mm, a, b"x")
    pages: list[Pfn] = []
    taken: list[Pfn] = []
    if pinned:
        get_user_pages(program.mm, a, 1, FOLL_PIN | FOLL_WRITE, pages)
        while (frame := program.machine.mem_map.alloc_page()) is not None:
            taken.append(frame)
    else:
        program.mm.page_table.nr_leaves_max = 0
    assert dup_mm(program.mm) == -errno.ENOMEM
    for frame in taken:
        program.machine.mem_map.put_page(frame)
    for frame in pages:
        put_user_page(program.mm, frame, FOLL_PIN)
    assert program.device.counts.opens == program.device.counts.closes == 1


def test_children_of_children_share_and_part(any_program: Program):
    a = any_program.map()
    user_store(any_program.mm, a, b"1")
    child = any_program.fork()
    any_program.mm, parent = child, any_program.mm
    grandchild = any_program.fork()
    any_program.check()
    user_store(child, a, b"2")
    any_program.check()
    assert [user_load(mm, a, 1) for mm in (parent, child, grandchild)] == [b"1", b"2", b"1"]
    user_store(parent, a, b"3")
    user_store(grandchild, a, b"4")
    assert [user_load(mm, a, 1) for mm in (parent, child, grandchild)] == [b"3", b"2", b"4"]
    any_program.mm = parent


# --- remap_pfn_range, /proc ---


def test_a_private_area_is_remapped_whole_or_not_at_all(program: Program):
    a = program.map()
    assert remap_pfn_range(program.vma(a), a, Pfn(5), 1) == -errno.EINVAL
    assert program.mm.page_table.find_pte(a) == 0


def test_proc_of_what_is_not_mapped(program: Program):
    assert pagemap_entry(program.mm, HOLE) == (False, False, False, 0)
    assert not mincore(program.mm, HOLE)
    a = program.map(R)
    assert smaps(program.vma(a)).perm == "r--p"
    program.device.f_mapping.i_pages[Pgoff(2)] = program.device.pages[2]
    assert [mincore(program.mm, page(a, i)) for i in range(4)] == [False, False, True, False]
    del program.device.f_mapping.i_pages[Pgoff(2)]


def test_pss_rounds_each_page_down():
    """A live kernel says so: three pages that three processes share are no whole page."""
    program = Program("um", "6.1")
    program.device.configure(parse_plan("V"), VmMode.MIXED, Hooks.FULL)
    a = program.map(R, nr_pages=3)
    for i in range(3):
        user_load(program.mm, page(a, i), 1)
    program.fork()
    program.fork()
    assert smaps(program.vma(a)).pss_bytes == PAGE_SIZE - 1
    program.close()


def test_madvise_remove_asks_whether_an_area_may_become_writable(program: Program):
    """6.1.192 does; and a device has no holes to punch (found by a live kernel)."""
    shared = program.map(R, shared=True)
    assert do_madvise(program.mm, shared, 1, Advice.REMOVE) == -errno.ENODEV
    private = program.map(RW, shared=False)
    assert do_madvise(program.mm, private, 1, Advice.REMOVE) == -errno.EACCES


def test_smaps_of_2_6_28_counts_special_ptes_in_rss_only():
    program = Program("x86", "2.6.28")
    a = program.map(R)
    user_load(program.mm, a, 1)
    sums = smaps(program.vma(a))
    assert (sums.rss_bytes, sums.pss_bytes, sums.private_clean_bytes) == (PAGE_SIZE, 0, 0)
    program.close()
