"""The scenarios, in the order of the recorded boots: each is what a program does with one mapping.

The first argument of `Process.say` and its kin names the step in the line that is printed.
"""

import contextlib
from collections.abc import Callable

from xipfs.mm.gup_users import (
    mem_rw,
    process_vm_rw,
)
from xipfs.mm.madvise import Advice, do_madvise
from xipfs.mm.mlock import do_mlock, do_mlockall_future, do_munlock
from xipfs.mm.mmap import do_mmap, do_munmap
from xipfs.mm.mprotect import do_mprotect
from xipfs.mm.mremap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, do_mremap
from xipfs.mm.msync import do_msync
from xipfs.mm.proc import kpagecount, mincore, pagemap_entry
from xipfs.mm.vma import VM_EXEC, VM_READ, VM_WRITE, Mm
from xipfs.oracle.device import VmMode, parse_plan
from xipfs.oracle.process import NR_MAPPED, Absent, Process, number, ok
from xipfs.units import PAGE_SIZE, Vaddr

__all__ = ["SCENARIOS"]

_R, _RW, _RX = VM_READ, VM_READ | VM_WRITE, VM_READ | VM_EXEC


def _read_shared_ro(p: Process) -> None:
    a = p.map(_R, shared=True)
    p.area("vma_before", a)
    p.state("p0_before", a)
    p.say("read", f"p0={p.read(a)} p1={p.read(a + PAGE_SIZE)}")
    p.state("p0", a)
    p.state("p1", a + PAGE_SIZE)
    p.area("vma", a)
    p.counts("cnt")
    p.page("pg0", 0)


def _read_private(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.say("read", f"p0={p.read(a)}")
    p.state("p0", a)
    p.area("vma", a)
    p.counts("cnt")


def _double_fault(p: Process) -> None:
    a = p.map(_R, shared=True)
    for offset in (0, 0, 8):
        p.read(a + offset)
    p.counts("cnt")


def _write_shared_first(p: Process) -> None:
    a = p.map(_RW, shared=True)
    p.say("write", f"p0={p.write(a, 'x')}")
    p.state("p0", a)
    p.area("vma", a)
    p.counts("cnt")
    p.say("file_byte", "pread=EINVAL c=0x00")  # the device has no read


def _read_then_write_shared(p: Process) -> None:
    a = p.map(_RW, shared=True)
    p.say("read", f"p0={p.read(a)}")
    p.state("p0_r", a)
    p.say("write", f"p0={p.write(a, 'y')}")
    p.state("p0_w", a)
    p.counts("cnt")
    p.write(a, "A")


def _cow(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.say("read", f"p0={p.read(a)}")
    p.state("p0_r", a)
    p.say("write", f"p0={p.write(a, 'Q')} now={p.read(a)} tail={p.read(a + 100)}")
    p.state("p0_w", a)
    p.area("vma", a)
    p.counts("cnt")
    p.page("pg0", 0)
    p.say("other_view", f"p0={p.read(p.map(_R, shared=True))}")


def _write_private_first(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.say("write", f"p0={p.write(a, 'Q')} tail={p.read(a + 100)}")
    p.state("p0", a)
    p.counts("cnt")
    p.page("pg0", 0)


def _child_read(p: Process, a: Vaddr) -> None:
    p.state("child_p0_untouched", a)
    p.state("child_p1_unfaulted", a + PAGE_SIZE)
    p.say("child_read", f"p0={p.read(a)}")
    p.state("child_p0_r", a)
    p.page("child_pg0", 0)
    p.counts("child_cnt")


def _child_read_write(p: Process, a: Vaddr) -> None:
    _child_read(p, a)
    p.say("child_write", f"p0={p.write(a, 'C')} now={p.read(a)}")
    p.state("child_p0_w", a)
    p.counts("child_cnt2")


def _fork_shared(p: Process) -> None:
    a = p.map(_R, shared=True)
    p.read(a)
    p.state("parent_p0", a)
    p.child(_child_read, a)
    p.state("parent_after", a)
    p.page("pg0_after", 0)
    p.counts("cnt")


def _fork_shared_rw(p: Process) -> None:
    a = p.map(_RW, shared=True)
    p.say("write", p.write(a, "A"))
    p.state("parent_p0", a)
    p.child(_child_read, a)
    p.state("parent_after", a)
    p.counts("cnt")


def _fork_private(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.state("parent_p0", a)
    p.child(_child_read_write, a)
    p.say("parent_sees", f"p0={p.read(a)}")
    p.state("parent_after", a)
    p.page("pg0_after", 0)


def _fork_after_cow(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.write(a, "Q")
    p.state("parent_p0", a)
    p.child(_child_read_write, a)
    p.say("parent_sees", f"p0={p.read(a)}")
    p.state("parent_after_child", a)
    p.say("parent_write", p.write(a, "R"))
    p.state("parent_rewrite", a)


def _munmap(p: Process) -> None:
    a = p.map(_R, shared=True)
    p.read(a)
    p.read(a + PAGE_SIZE)
    pfn = pagemap_entry(p.mm, a).pfn

    def mapped() -> str:
        if p.mm.machine.is_nvram(pfn):
            return "EIO"  # /proc/kpagecount ends with the struct pages
        return "n>0" if kpagecount(p.mm, pfn) else "0"

    p.page("pg0_mapped", 0)
    p.say("kcount_mapped", mapped())
    p.say("munmap", number(do_munmap(p.mm, a, NR_MAPPED)))
    p.say("kcount_unmapped", mapped())
    p.page("pg0_unmapped", 0)
    p.counts("cnt")


def _munmap_cowed(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.write(a, "Q")
    p.page("pg0_mapped", 0)
    p.say("munmap", number(do_munmap(p.mm, a, NR_MAPPED)))
    p.page("pg0_unmapped", 0)


def _gup_shared_ro(p: Process) -> None:
    a = p.map(_R, shared=True)
    p.users("cold_", a, write=False)
    p.state("p0", a)
    p.area("vma", a)


def _gup_shared_rw(p: Process) -> None:
    a = p.map(_RW, shared=True)
    p.write(a, "A")
    p.users("", a, write=True)
    p.state("p0", a)


def _gup_private_uncowed(p: Process) -> None:
    a = p.map(_R, shared=False)
    p.read(a)
    p.users("", a, write=False)
    p.state("p0", a)


def _gup_private_rw_uncowed(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.say("process_vm_writev", number(process_vm_rw(p.mm, a, bytearray(b"Z"), write=True)))
    p.state("p0_after_writev", a)
    second = Vaddr(a + PAGE_SIZE)
    p.say("proc_mem_write", number(mem_rw(p.mm, second, bytearray(b"Z"), write=True)))
    p.state("p1_after_memwrite", second)


def _gup_private_cowed(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.write(a, "Q")
    p.users("", a, write=True)
    p.state("p0", a)


def _force_write_ro_private(p: Process) -> None:
    a = p.map(_R, shared=False)
    p.read(a)
    got = number(mem_rw(p.mm, a, bytearray(b"Z"), write=True))
    p.say("proc_mem_write", f"{got} now={p.read(a)}")
    p.state("p0", a)


def _mlock(p: Process) -> None:
    a = p.map(_R, shared=True)
    p.say("mlock", number(do_mlock(p.mm, a, NR_MAPPED)))
    p.state("p3", a + 3 * PAGE_SIZE)
    p.area("vma", a)
    p.counts("cnt")
    p.say("munlock", number(do_munlock(p.mm, a, NR_MAPPED)))


def _mlock_private_rw(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.say("mlock", number(do_mlock(p.mm, a, NR_MAPPED)))
    p.state("p3", a + 3 * PAGE_SIZE)
    p.area("vma", a)
    p.counts("cnt")


def _map_locked(p: Process) -> None:
    a = p.map(_R, shared=True, lock=True)
    p.state("p3", a + 3 * PAGE_SIZE)
    p.area("vma", a)


def _mlockall_future(p: Process) -> None:
    p.say("mlockall", number(do_mlockall_future(p.mm)))
    a = p.map(_R, shared=True)
    p.state("p3", a + 3 * PAGE_SIZE)
    p.area("vma", a)


def _populate(p: Process) -> None:
    a = p.map(_R, shared=True, populate=True)
    p.state("p0", a)
    p.state("p3", a + 3 * PAGE_SIZE)
    p.counts("cnt")
    p.state("priv_p0", p.map(_RW, shared=False, populate=True))
    p.counts("cnt2")


def _mprotect(p: Process) -> None:
    a = p.map(_R, shared=False)
    p.read(a)
    p.say("mprotect_rw", number(do_mprotect(p.mm, a, 1, _RW)))
    p.state("p0_after", a)
    p.say("write", p.write(a, "Q"))
    p.state("p0_w", a)
    p.say("mprotect_ro", number(do_mprotect(p.mm, a, 1, _R)))
    p.say("write_ro", p.write(a, "x"))
    p.say("mprotect_none", number(do_mprotect(p.mm, a, 1, 0)))
    p.say("read_none", p.read(a))
    p.state("p0_none", a)
    if not p.device.may_write:
        return
    s = p.map(_R, shared=True)
    p.read(s)
    p.say("shared_mprotect_rw", number(do_mprotect(p.mm, s, 1, _RW)))
    p.state("s0_after", s)
    p.say("shared_write", p.write(s, "A"))
    p.state("s0_w", s)
    p.counts("cnt")
    p.say("shared_ro_again", number(do_mprotect(p.mm, s, 1, _R)))
    p.state("s0_ro", s)
    p.say("rw_again", number(do_mprotect(p.mm, s, 1, _RW)))
    p.state("s0_rw2", s)
    p.say("write2", p.write(s, "A"))
    p.counts("cnt2")


def _mremap(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.write(a + PAGE_SIZE, "Q")
    room = do_mmap(p.mm, None, nr_pages=16, prot=0, shared=False)
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    q = do_mremap(p.mm, a, NR_MAPPED, NR_MAPPED, flags, Vaddr(room))
    p.say("move", ok(q))
    if q < 0:
        return
    p.state("p0", q)
    p.state("p1", q + PAGE_SIZE)
    p.say("read", " ".join(f"p{i}={p.read(q + i * PAGE_SIZE)}" for i in range(3)))
    p.counts("cnt")
    g = do_mremap(p.mm, Vaddr(q), NR_MAPPED, NR_MAPPED + 2, MREMAP_MAYMOVE)
    p.say("grow", ok(g))
    if g < 0:
        g = q
    else:
        p.say("beyond", p.read(g + NR_MAPPED * PAGE_SIZE))
    p.say("shrink", ok(do_mremap(p.mm, Vaddr(g), NR_MAPPED, 1, 0)))
    s = p.map(_R, shared=True)
    p.read(s)
    z = do_mremap(p.mm, s, 0, NR_MAPPED, MREMAP_MAYMOVE)
    p.say("dup_old_size0", ok(z))
    if z >= 0:
        p.state("dup_p0", z)
    w = do_mremap(p.mm, s, NR_MAPPED, NR_MAPPED, MREMAP_MAYMOVE | MREMAP_DONTUNMAP)
    p.say("dontunmap", ok(w))
    if w >= 0:
        p.state("src_p0", s)
        p.say("src_read", p.read(s))


_ADVICES = (
    Advice.NORMAL,
    Advice.WILLNEED,
    Advice.COLD,
    Advice.PAGEOUT,
    Advice.FREE,
    Advice.REMOVE,
    Advice.DONTFORK,
    Advice.DOFORK,
    Advice.WIPEONFORK,
    Advice.MERGEABLE,
    Advice.DONTDUMP,
    Advice.DODUMP,
    Advice.POPULATE_READ,
    Advice.POPULATE_WRITE,
    Advice.COLLAPSE,
)


def _madvise(p: Process) -> None:
    a = p.map(_RW, shared=False)
    for advice in _ADVICES:
        p.read(a)
        p.say(f"priv_{advice.name}", number(do_madvise(p.mm, a, 1, advice)))
    s = p.map(_R, shared=True)
    for advice in _ADVICES:
        if advice is not Advice.REMOVE:
            p.read(s)
            p.say(f"shared_{advice.name}", number(do_madvise(p.mm, s, 1, advice)))


def _dontneed(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.write(a + PAGE_SIZE, "Q")
    p.say("before", f"p0={p.read(a)} p1={p.read(a + PAGE_SIZE)}")
    p.say("dontneed", number(do_madvise(p.mm, a, 2, Advice.DONTNEED)))
    p.state("p0_after", a)
    p.state("p1_after", a + PAGE_SIZE)
    p.page("pg0", 0)
    p.say("after", f"p0={p.read(a)} p1={p.read(a + PAGE_SIZE)}")
    p.state("p1_refault", a + PAGE_SIZE)
    p.counts("cnt")


def _mincore(p: Process) -> None:
    a = p.map(_R, shared=True)

    def vector() -> str:
        return "".join(str(int(mincore(p.mm, Vaddr(a + i * PAGE_SIZE)))) for i in range(3))

    p.say("cold", f"0 v={vector()}")
    p.read(a)
    p.say("p0_touched", f"0 v={vector()}")


def _msync(p: Process) -> None:
    a = p.map(_RW, shared=True)
    p.say("write", p.write(a, "A"))
    p.say("msync", number(do_msync(p.mm, a, NR_MAPPED)))
    p.state("p0", a)
    p.say("write2", p.write(a, "A"))
    p.state("p0_w2", a)
    p.counts("cnt")


def _uffd(p: Process) -> None:
    p.map(_RW, shared=False)
    if "USERFAULTFD" not in p.mm.machine.arch.configs:
        p.say("uffd", "ENOSYS")
        return
    for mode in ("missing", "wp"):  # anonymous memory, shmem and hugetlbfs only
        p.say(f"register_{mode}", "EINVAL")


def _clear_refs(p: Process) -> None:
    a = p.map(_R, shared=True)
    p.read(a)
    p.area("before", a)
    _clear_young(p.mm)
    p.say("clear1", 1)
    p.area("after_clear1", a)
    p.state("p0_clear1", a)
    p.read(a)
    p.area("after_read", a)
    p.say("clear4", 1)  # soft-dirty bits, which are not modelled
    p.state("p0_clear4", a)


def _clear_young(mm: Mm) -> None:
    for leaf in mm.page_table.leaves.values():
        leaf.accessed[:] = 0


def _softdirty_private(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.state("cleared", a)
    p.write(a, "Q")
    p.state("written", a)


def _wr_only_and_exec(p: Process) -> None:
    a = p.map(_RX, shared=False)
    p.say("mmap_exec", f"ok read={p.read(a)}")
    p.state("p0", a)
    p.area("vma", a)


def _reinsert(p: Process) -> None:
    if p.device.vm is not VmMode.MIXED:
        return
    a = p.map(_RW, shared=True)
    pages = [a + i * PAGE_SIZE for i in range(NR_MAPPED + 1)]
    p.insert("p0_R0", a, 0, "R")
    p.state("p0", a)
    p.insert("p0_R0_again", a, 0, "R")
    p.insert("p0_R5_other", a, 5, "R")
    p.state("p0_after_other", a)
    p.insert("p0_P0_over_raw", a, 0, "P")
    p.state("p0_after_P", a)
    p.insert("p0_I0_over_raw", a, 0, "I")
    p.state("p0_after_I", a)
    p.page("pg0", 0)
    p.insert("p1_P1", pages[1], 1, "P")
    p.state("p1", pages[1])
    p.page("pg1", 1)
    p.insert("p1_R1_over_page", pages[1], 1, "R")
    p.state("p1_after", pages[1])
    p.insert("p2_I2", pages[2], 2, "I")
    p.state("p2", pages[2])
    p.insert("p2_I2_again", pages[2], 2, "I")
    p.insert("p2_I3_other", pages[2], 3, "I")
    p.page("pg2", 2)
    p.page("pg3", 3)
    p.insert("p3_Z", pages[3], 3, "Z")
    p.state("p3", pages[3])
    p.insert("p4_F", pages[4], 4, "F")
    p.state("p4", pages[4])
    p.insert("p5_W", pages[5], 5, "W")
    p.state("p5", pages[5])
    p.insert("p0_W0_upgrade", a, 0, "W")
    p.state("p0_upgraded", a)
    p.insert("outside", pages[NR_MAPPED], 0, "R")
    do_munmap(p.mm, a, NR_MAPPED)
    p.page("pg1_unmapped", 1)
    p.page("pg2_unmapped", 2)


def _insert_over_cow(p: Process) -> None:
    if p.device.vm is not VmMode.MIXED:
        return
    a = p.map(_RW, shared=False)
    p.write(a, "Q")
    p.state("cowed", a)
    p.insert("R0_over_anon", a, 0, "R")
    p.state("after", a)
    p.say("read", p.read(a))


def _zap(p: Process) -> None:
    if p.device.vm is VmMode.CRAMFS:
        return
    s = p.map(_R, shared=True)
    q = p.map(_RW, shared=False)
    second = q + PAGE_SIZE
    p.read(s)
    p.read(q)
    p.write(second, "Q")
    p.read(s + PAGE_SIZE)
    p.migrate("zap0_keepcows", 0, None, even_cows=False)
    p.migrate("zap1_keepcows", 1, None, even_cows=False)
    p.state("s0", s)
    p.state("q0", q)
    p.state("q1_cow", second)
    p.say("q1", p.read(second))
    p.migrate("zap1_evencows", 1, None, even_cows=True)
    p.state("q1_after", second)
    p.say("q1", p.read(second))
    p.page("pg0", 0)


def _migrate(p: Process) -> None:
    if p.device.vm is not VmMode.MIXED:
        return
    p.mixmap.plan = list(parse_plan("R"))
    s = p.map(_R, shared=True)
    q = p.map(_RW, shared=False)
    p.say("xip", f"s0={p.read(s)} q0={p.read(q)}")
    p.write(q + PAGE_SIZE, "Q")
    p.read(s + PAGE_SIZE)
    p.state("s0_xip", s)
    p.migrate("to_ram_page", 0, "V", even_cows=False)
    p.migrate("to_ram_page1", 1, "V", even_cows=False)
    seconds = f"q1={p.read(q + PAGE_SIZE)} s1={p.read(s + PAGE_SIZE)}"
    p.say("ram", f"s0={p.read(s)} q0={p.read(q)} {seconds}")
    p.state("s0_ram", s)
    p.state("q0_ram", q)
    p.state("q1_cow", q + PAGE_SIZE)
    p.area("vma_mixed", s)
    p.page("pg0", 0)
    p.users("ram_", s, write=False)
    p.migrate("back_to_xip", 0, "R", even_cows=False)
    p.say("xip2", f"s0={p.read(s)}")
    p.state("s0_xip2", s)
    p.page("pg0_back", 0)
    p.counts("cnt")


def _guarded(scenario: Callable[[Process], None]) -> Callable[[Process], None]:
    def run(p: Process) -> None:
        with contextlib.suppress(Absent):
            scenario(p)

    return run


SCENARIOS: dict[str, Callable[[Process], None]] = {
    scenario.__name__.removeprefix("_"): _guarded(scenario)
    for scenario in (
        _read_shared_ro,
        _read_private,
        _double_fault,
        _write_shared_first,
        _read_then_write_shared,
        _cow,
        _write_private_first,
        _fork_shared,
        _fork_shared_rw,
        _fork_private,
        _fork_after_cow,
        _munmap,
        _munmap_cowed,
        _gup_shared_ro,
        _gup_shared_rw,
        _gup_private_uncowed,
        _gup_private_rw_uncowed,
        _gup_private_cowed,
        _force_write_ro_private,
        _mlock,
        _mlock_private_rw,
        _map_locked,
        _mlockall_future,
        _populate,
        _mprotect,
        _mremap,
        _madvise,
        _dontneed,
        _mincore,
        _msync,
        _uffd,
        _clear_refs,
        _softdirty_private,
        _wr_only_and_exec,
        _reinsert,
        _insert_over_cow,
        _zap,
        _migrate,
    )
}
