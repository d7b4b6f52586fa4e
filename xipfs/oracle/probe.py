"""The probe: scenarios on one mapping of the device, told in lines `name|scenario|step|facts`.

Each scenario runs in a process of its own, on a device filled anew. What a kernel keeps beyond that
is kept here, too: a page of the device that became dirty stays dirty for all of a boot.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import NamedTuple

from xipfs.errors import BugError, InvalidArgumentError
from xipfs.mm.access import Signal, user_load, user_store
from xipfs.mm.arch import Arch
from xipfs.mm.fork import dup_mm
from xipfs.mm.gup_users import (
    Pipe,
    direct_io,
    futex_wake_shared,
    io_uring_register_buffer,
    mem_rw,
    process_vm_rw,
    ptrace_access,
)
from xipfs.mm.machine import Machine
from xipfs.mm.madvise import Advice, do_madvise
from xipfs.mm.mixedmap import vm_normal_page
from xipfs.mm.mlock import do_mlock, do_mlockall_future, do_munlock
from xipfs.mm.mmap import do_mmap, do_munmap, exit_mmap
from xipfs.mm.mprotect import do_mprotect
from xipfs.mm.mremap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, do_mremap
from xipfs.mm.msync import do_msync
from xipfs.mm.pgtable import PMD_SHIFT, PTE_NONE, pte_index, pte_pfn, pte_special, pte_write
from xipfs.mm.proc import kpagecount, mincore, pagemap_entry, smaps, vm_flag_names
from xipfs.mm.vm_fault import FaultResult
from xipfs.mm.vma import VM_EXEC, VM_READ, VM_WRITE, Mm
from xipfs.oracle.device import NR_PAGES, Hooks, Mixmap, VmMode, parse_plan
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE, Pfn, Vaddr

__all__ = ["SCENARIOS", "Boot", "Target", "play"]

_NR_MAPPED = 8
_NR_TIER_FRAMES = 128
_R, _RW, _RX = VM_READ, VM_READ | VM_WRITE, VM_READ | VM_EXEC
_KIB = 1024


class Target(NamedTuple):
    """One mapping of the device, and what its lines are headed with."""

    name: str
    plan: str
    vm: VmMode = VmMode.MIXED
    hooks: Hooks = Hooks.FULL


RECORDED_BOOT = tuple(Target(f"mix{letter}", letter) for letter in "RPVI")
"""The targets of a recorded boot, in their order: what one leaves dirty, the next finds dirty."""


def play(target: Target, arch: Arch, scenario: str | None = None) -> Iterator[str]:
    """Yield the lines of *target*; of one *scenario* if given, after those that come before it.

    A target of a recorded boot is played in its place there, others in a boot of their own.
    Raises: InvalidArgumentError for an unknown scenario or plan; BugError where a kernel stops.
    """
    if scenario is not None and scenario not in SCENARIOS:
        known = ", ".join(SCENARIOS)
        raise InvalidArgumentError(f"no scenario {scenario}: there are {known}")
    parse_plan(target.plan)
    boot = Boot(arch)
    try:
        if target in RECORDED_BOOT:
            for earlier in RECORDED_BOOT[: RECORDED_BOOT.index(target)]:
                for _ in boot.play(earlier):
                    pass
        for line in boot.play(target, until=scenario):
            if scenario is None or line.split("|")[1] == scenario:
                yield line
    finally:
        boot.close()


class Boot:
    """A machine with the device."""

    def __init__(self, arch: Arch) -> None:
        self._nvram = NvramDevice.scratch(NR_PAGES << PAGE_SHIFT)
        self.machine = Machine(self._nvram, nr_tier_frames=_NR_TIER_FRAMES, arch=arch)
        self.device = Mixmap(self.machine)

    def play(self, target: Target, until: str | None = None) -> Iterator[str]:
        """Yield the lines of all scenarios, or of those up to *until*.

        Raises: BugError after the last one, if a kernel would have stopped in any.
        """
        bugs: list[str] = []
        for name, scenario in SCENARIOS.items():
            self.device.configure(parse_plan(target.plan), target.vm, target.hooks)
            process = Process(self.device, f"{target.name}|{name}")
            try:
                scenario(process)
            except BugError as exc:
                bugs.append(f"{name}: {exc}")
            yield from process.lines
            exit_mmap(process.mm)
            if name == until:
                break
        if bugs:
            raise BugError("; ".join(bugs))

    def close(self) -> None:
        """Give the memory back."""
        self.machine.close()
        self._nvram.close()


class _Absent(Exception):
    """mmap failed: the scenario is over."""


class Process:
    """A process of the probe: what it does to memory, and the lines that it prints."""

    def __init__(self, device: Mixmap, head: str, mm: Mm | None = None) -> None:
        self.device = device
        self.head = head
        self.mm = mm if mm is not None else Mm(device.machine)
        self.lines: list[str] = []

    def say(self, step: str, text: object) -> None:
        self.lines.append(f"{self.head}|{step}|{text}")

    def map(self, prot: int, *, shared: bool, populate: bool = False, lock: bool = False) -> Vaddr:
        address = do_mmap(
            self.mm,
            self.device,
            nr_pages=_NR_MAPPED,
            prot=prot,
            shared=shared,
            populate=populate,
            lock=lock,
        )
        if address < 0:
            prots = ("r" if prot & VM_READ else "-") + ("w" if prot & VM_WRITE else "-")
            kind = "shared" if shared else "private"
            self.say("mmap", f"prot={prots} flags={kind} -> {_number(address)}")
            raise _Absent
        return Vaddr(address)

    def read(self, address: int) -> str:
        found = user_load(self.mm, Vaddr(address), 1)
        return _signal(found) if isinstance(found, Signal) else _byte(found[0])

    def write(self, address: int, char: str) -> str:
        error = user_store(self.mm, Vaddr(address), char.encode())
        return _signal(error) if error is not None else "ok"

    def state(self, step: str, address: int) -> None:
        self.say(step, pte_facts(self.device, self.mm, Vaddr(address)))

    def page(self, step: str, i: int) -> None:
        page = self.device.pages[i]
        mem_map = self.mm.machine.mem_map
        facts = f"ref={mem_map.page_count(page)} mapc={mem_map.page_mapcount(page)}"
        self.say(step, f"pg+{i} {facts}")

    def counts(self, step: str) -> None:
        counts = self.device.counts
        self.say(
            step,
            f"faults={counts.faults} page_mkwrite={counts.page_mkwrite} "
            f"pfn_mkwrite={counts.pfn_mkwrite} vm_open={counts.opens} vm_close={counts.closes}",
        )

    def area(self, step: str, address: int) -> None:
        vma = self.mm.find_vma(Vaddr(address))
        assert vma is not None, "an area that is mapped"
        sums = smaps(vma)
        figures = {
            "size": sums.size_bytes,
            "Rss": sums.rss_bytes,
            "Pss": sums.pss_bytes,
            "Shared_Clean": sums.shared_clean_bytes,
            "Shared_Dirty": sums.shared_dirty_bytes,
            "Private_Clean": sums.private_clean_bytes,
            "Private_Dirty": sums.private_dirty_bytes,
            "Anonymous": sums.anonymous_bytes,
            "Locked": sums.locked_bytes,
        }
        text = " ".join(f"{key}={int(figure) // _KIB}" for key, figure in figures.items())
        names = "".join(f"{name} " for name in vm_flag_names(vma.vm_flags))
        self.say(step, f"perm={sums.perm} {text} VmFlags=[{names}]")

    def child(self, run: "Callable[[Process, Vaddr], None]", address: Vaddr) -> None:
        """Fork, and let the child *run*."""
        mm = dup_mm(self.mm)
        if not isinstance(mm, Mm):
            self.say("fork", _number(mm))
            return
        child = Process(self.device, self.head, mm)
        run(child, address)
        self.lines += child.lines
        exit_mmap(mm)

    def insert(self, step: str, address: int, i: int, letter: str) -> None:
        """Let the driver insert a page."""
        said = self.device.insert_at(self.mm, Vaddr(address), i, letter)
        found = said != -errno.ENOENT
        if letter in "IG":
            ioctl = 0 if found else -1
            name = errno.errorcode[-said] if found and said else "0"
            self.say(step, f"kind={letter} ioctl={ioctl} errno={name}")
            return
        result = FaultResult(said).name if found and said else None
        known = result if result in ("NOPAGE", "SIGBUS", "OOM") else "other"
        self.say(step, f"kind={letter} ioctl={0 if found else 'ENOENT'} vm_fault={known}")

    def migrate(self, step: str, i: int, letter: str | None, *, even_cows: bool) -> None:
        self.device.migrate(i, letter, even_cows=even_cows)
        self.say(step, f"idx={i} kind={letter or '-'} even_cows={int(even_cows)} 0")

    def users(self, tag: str, address: Vaddr, *, write: bool) -> None:
        """Let each user of get_user_pages try the page at *address*."""
        mm = self.mm
        buffer = bytearray(64)
        got = process_vm_rw(mm, address, buffer, write=False)
        first = f" c=0x{buffer[0]:02x}" if got > 0 else ""
        self.say(f"{tag}process_vm_readv", _number(got) + first)
        if write:
            byte = user_load(mm, address, 1)
            buffer[0:1] = byte if isinstance(byte, bytes) else b"\0"
            got = process_vm_rw(mm, address, buffer, write=True)
            self.say(f"{tag}process_vm_writev", _number(got))
        self.say(f"{tag}proc_mem_read", _number(mem_rw(mm, address, buffer, write=False)))
        if write:
            got = mem_rw(mm, address, buffer[:1], write=True)
            self.say(f"{tag}proc_mem_write", _number(got))
        self._ptrace(tag, address, write=write)
        pipe = Pipe(mm)
        got = pipe.vmsplice(address, 64)
        self.say(f"{tag}vmsplice", _number(got))
        if got > 0:
            self.state(f"{tag}pinned_vmsplice", address)
        pipe.close()
        data = user_load(mm, address, 64)
        got = pipe.write(address, 64)
        self.say(f"{tag}write_pipe_from", _number(got))
        if write and isinstance(data, bytes):
            self.say(f"{tag}read_pipe_into", _number(pipe.read(address, data)))
        block = bytearray(PAGE_SIZE)
        got = direct_io(mm, address, block, write=False)
        self.say(f"{tag}odirect_write_from", _number(got))
        if write:
            content = user_load(mm, address, PAGE_SIZE)
            block = bytearray(content if isinstance(content, bytes) else PAGE_SIZE)
            got = direct_io(mm, address, block, write=True)
            self.say(f"{tag}odirect_read_into", _number(got))
        pinned: list[Pfn] = []
        got = io_uring_register_buffer(mm, address, 1, pinned)
        self.say(f"{tag}io_uring_fixed_buf", _number(got))
        self.say(f"{tag}futex_wake_shared", _number(futex_wake_shared(mm, address)))

    def _ptrace(self, tag: str, address: Vaddr, *, write: bool) -> None:
        """A child attaches to us, so that it has a copy of our areas meanwhile."""
        child = dup_mm(self.mm)
        if not isinstance(child, Mm):
            return
        word = bytearray(8)
        got = ptrace_access(self.mm, address, word, write=False)
        self.say(f"{tag}ptrace_peek", _number(got) if got else "ok")
        if write:
            got = ptrace_access(self.mm, address, word, write=True)
            self.say(f"{tag}ptrace_poke", _number(got) if got else "ok")
        exit_mmap(child)


def pte_facts(device: Mixmap, mm: Mm, address: Vaddr) -> str:
    """Return what pagemap, the page table and the struct page tell of one page."""
    entry = pagemap_entry(mm, address)
    bits = ["present" if entry.present else "none"]
    bits += ["file"] * entry.file + ["excl"] * entry.exclusive
    text = f"pm={','.join(bits)}"
    vma = mm.find_vma(address)
    if vma is None:
        return f"{text} pte=ERR{errno.ENOENT}"
    leaf = mm.page_table.leaves.get(address >> PMD_SHIFT)
    pte = leaf.words[pte_index(address)] if leaf is not None else PTE_NONE
    if leaf is None or pte == PTE_NONE:
        return f"{text} pte=none"
    machine = mm.machine
    pfn = pte_pfn(pte)
    dirty = "D" if leaf.dirty_bytes[pte_index(address)] else ""
    special = "|SPECIAL" if pte_special(pte) else ""
    text += f" pte={'W' if pte_write(pte) else 'r'}{dirty}{special} cls={_class(device, pfn)}"
    valid = machine.pfn_valid(pfn)
    normal = vm_normal_page(vma, address, pte) is not None
    text += f" valid={int(valid)} vm_normal_page={'page' if normal else 'NULL'}"
    if not valid:
        return text
    mapcount = f"mapc={machine.mem_map.page_mapcount(pfn)}"
    if machine.mem_map.page_anon(pfn):
        return f"{text} {mapcount} PageAnon"
    return f"{text} ref={machine.mem_map.page_count(pfn)} {mapcount}"


def _class(device: Mixmap, pfn: Pfn) -> str:
    machine = device.machine
    if machine.is_nvram(pfn):
        return f"raw+{pfn - device.raw_pfn(0)}"
    if pfn in device.pages:
        return f"pg+{device.pages.index(pfn)}"
    if pfn == machine.zero_pfn:
        return "zero"
    return "anon" if machine.mem_map.page_anon(pfn) else "page"


def _byte(value: int) -> str:
    return f"'{chr(value)}'" if 32 < value < 127 else f"0x{value:02x}"


def _signal(signal: Signal) -> str:
    return f"{signal.name}/{signal.code}"


def _number(value: int) -> str:
    if value >= 0:
        return str(value)
    return "EOPNOTSUPP" if value == -errno.EOPNOTSUPP else errno.errorcode[-value]


def _ok(value: int) -> str:
    return "ok" if value >= 0 else _number(value)


# --- The scenarios, in the order of the recorded boots ---


def read_shared_ro(p: Process) -> None:
    a = p.map(_R, shared=True)
    p.area("vma_before", a)
    p.state("p0_before", a)
    p.say("read", f"p0={p.read(a)} p1={p.read(a + PAGE_SIZE)}")
    p.state("p0", a)
    p.state("p1", a + PAGE_SIZE)
    p.area("vma", a)
    p.counts("cnt")
    p.page("pg0", 0)


def read_private(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.say("read", f"p0={p.read(a)}")
    p.state("p0", a)
    p.area("vma", a)
    p.counts("cnt")


def double_fault(p: Process) -> None:
    a = p.map(_R, shared=True)
    for offset in (0, 0, 8):
        p.read(a + offset)
    p.counts("cnt")


def write_shared_first(p: Process) -> None:
    a = p.map(_RW, shared=True)
    p.say("write", f"p0={p.write(a, 'x')}")
    p.state("p0", a)
    p.area("vma", a)
    p.counts("cnt")
    p.say("file_byte", "pread=EINVAL c=0x00")  # the device has no read


def read_then_write_shared(p: Process) -> None:
    a = p.map(_RW, shared=True)
    p.say("read", f"p0={p.read(a)}")
    p.state("p0_r", a)
    p.say("write", f"p0={p.write(a, 'y')}")
    p.state("p0_w", a)
    p.counts("cnt")
    p.write(a, "A")


def cow(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.say("read", f"p0={p.read(a)}")
    p.state("p0_r", a)
    p.say("write", f"p0={p.write(a, 'Q')} now={p.read(a)} tail={p.read(a + 100)}")
    p.state("p0_w", a)
    p.area("vma", a)
    p.counts("cnt")
    p.page("pg0", 0)
    p.say("other_view", f"p0={p.read(p.map(_R, shared=True))}")


def write_private_first(p: Process) -> None:
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


def fork_shared(p: Process) -> None:
    a = p.map(_R, shared=True)
    p.read(a)
    p.state("parent_p0", a)
    p.child(_child_read, a)
    p.state("parent_after", a)
    p.page("pg0_after", 0)
    p.counts("cnt")


def fork_shared_rw(p: Process) -> None:
    a = p.map(_RW, shared=True)
    p.say("write", p.write(a, "A"))
    p.state("parent_p0", a)
    p.child(_child_read, a)
    p.state("parent_after", a)
    p.counts("cnt")


def fork_private(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.state("parent_p0", a)
    p.child(_child_read_write, a)
    p.say("parent_sees", f"p0={p.read(a)}")
    p.state("parent_after", a)
    p.page("pg0_after", 0)


def fork_after_cow(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.write(a, "Q")
    p.state("parent_p0", a)
    p.child(_child_read_write, a)
    p.say("parent_sees", f"p0={p.read(a)}")
    p.state("parent_after_child", a)
    p.say("parent_write", p.write(a, "R"))
    p.state("parent_rewrite", a)


def munmap(p: Process) -> None:
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
    p.say("munmap", _number(do_munmap(p.mm, a, _NR_MAPPED)))
    p.say("kcount_unmapped", mapped())
    p.page("pg0_unmapped", 0)
    p.counts("cnt")


def munmap_cowed(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.write(a, "Q")
    p.page("pg0_mapped", 0)
    p.say("munmap", _number(do_munmap(p.mm, a, _NR_MAPPED)))
    p.page("pg0_unmapped", 0)


def gup_shared_ro(p: Process) -> None:
    a = p.map(_R, shared=True)
    p.users("cold_", a, write=False)
    p.state("p0", a)
    p.area("vma", a)


def gup_shared_rw(p: Process) -> None:
    a = p.map(_RW, shared=True)
    p.write(a, "A")
    p.users("", a, write=True)
    p.state("p0", a)


def gup_private_uncowed(p: Process) -> None:
    a = p.map(_R, shared=False)
    p.read(a)
    p.users("", a, write=False)
    p.state("p0", a)


def gup_private_rw_uncowed(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.say("process_vm_writev", _number(process_vm_rw(p.mm, a, bytearray(b"Z"), write=True)))
    p.state("p0_after_writev", a)
    second = Vaddr(a + PAGE_SIZE)
    p.say("proc_mem_write", _number(mem_rw(p.mm, second, bytearray(b"Z"), write=True)))
    p.state("p1_after_memwrite", second)


def gup_private_cowed(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.write(a, "Q")
    p.users("", a, write=True)
    p.state("p0", a)


def force_write_ro_private(p: Process) -> None:
    a = p.map(_R, shared=False)
    p.read(a)
    got = _number(mem_rw(p.mm, a, bytearray(b"Z"), write=True))
    p.say("proc_mem_write", f"{got} now={p.read(a)}")
    p.state("p0", a)


def mlock(p: Process) -> None:
    a = p.map(_R, shared=True)
    p.say("mlock", _number(do_mlock(p.mm, a, _NR_MAPPED)))
    p.state("p3", a + 3 * PAGE_SIZE)
    p.area("vma", a)
    p.counts("cnt")
    p.say("munlock", _number(do_munlock(p.mm, a, _NR_MAPPED)))


def mlock_private_rw(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.say("mlock", _number(do_mlock(p.mm, a, _NR_MAPPED)))
    p.state("p3", a + 3 * PAGE_SIZE)
    p.area("vma", a)
    p.counts("cnt")


def map_locked(p: Process) -> None:
    a = p.map(_R, shared=True, lock=True)
    p.state("p3", a + 3 * PAGE_SIZE)
    p.area("vma", a)


def mlockall_future(p: Process) -> None:
    p.say("mlockall", _number(do_mlockall_future(p.mm)))
    a = p.map(_R, shared=True)
    p.state("p3", a + 3 * PAGE_SIZE)
    p.area("vma", a)


def populate(p: Process) -> None:
    a = p.map(_R, shared=True, populate=True)
    p.state("p0", a)
    p.state("p3", a + 3 * PAGE_SIZE)
    p.counts("cnt")
    p.state("priv_p0", p.map(_RW, shared=False, populate=True))
    p.counts("cnt2")


def mprotect(p: Process) -> None:
    a = p.map(_R, shared=False)
    p.read(a)
    p.say("mprotect_rw", _number(do_mprotect(p.mm, a, 1, _RW)))
    p.state("p0_after", a)
    p.say("write", p.write(a, "Q"))
    p.state("p0_w", a)
    p.say("mprotect_ro", _number(do_mprotect(p.mm, a, 1, _R)))
    p.say("write_ro", p.write(a, "x"))
    p.say("mprotect_none", _number(do_mprotect(p.mm, a, 1, 0)))
    p.say("read_none", p.read(a))
    p.state("p0_none", a)
    s = p.map(_R, shared=True)
    p.read(s)
    p.say("shared_mprotect_rw", _number(do_mprotect(p.mm, s, 1, _RW)))
    p.state("s0_after", s)
    p.say("shared_write", p.write(s, "A"))
    p.state("s0_w", s)
    p.counts("cnt")
    p.say("shared_ro_again", _number(do_mprotect(p.mm, s, 1, _R)))
    p.state("s0_ro", s)
    p.say("rw_again", _number(do_mprotect(p.mm, s, 1, _RW)))
    p.state("s0_rw2", s)
    p.say("write2", p.write(s, "A"))
    p.counts("cnt2")


def mremap(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.write(a + PAGE_SIZE, "Q")
    room = do_mmap(p.mm, None, nr_pages=16, prot=0, shared=False)
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    q = do_mremap(p.mm, a, _NR_MAPPED, _NR_MAPPED, flags, Vaddr(room))
    p.say("move", _ok(q))
    if q < 0:
        return
    p.state("p0", q)
    p.state("p1", q + PAGE_SIZE)
    p.say("read", " ".join(f"p{i}={p.read(q + i * PAGE_SIZE)}" for i in range(3)))
    p.counts("cnt")
    g = do_mremap(p.mm, Vaddr(q), _NR_MAPPED, _NR_MAPPED + 2, MREMAP_MAYMOVE)
    p.say("grow", _ok(g))
    if g < 0:
        g = q
    else:
        p.say("beyond", p.read(g + _NR_MAPPED * PAGE_SIZE))
    p.say("shrink", _ok(do_mremap(p.mm, Vaddr(g), _NR_MAPPED, 1, 0)))
    s = p.map(_R, shared=True)
    p.read(s)
    z = do_mremap(p.mm, s, 0, _NR_MAPPED, MREMAP_MAYMOVE)
    p.say("dup_old_size0", _ok(z))
    if z >= 0:
        p.state("dup_p0", z)
    w = do_mremap(p.mm, s, _NR_MAPPED, _NR_MAPPED, MREMAP_MAYMOVE | MREMAP_DONTUNMAP)
    p.say("dontunmap", _ok(w))
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


def madvise(p: Process) -> None:
    a = p.map(_RW, shared=False)
    for advice in _ADVICES:
        p.read(a)
        p.say(f"priv_{advice.name}", _number(do_madvise(p.mm, a, 1, advice)))
    s = p.map(_R, shared=True)
    for advice in _ADVICES:
        if advice is not Advice.REMOVE:
            p.read(s)
            p.say(f"shared_{advice.name}", _number(do_madvise(p.mm, s, 1, advice)))


def dontneed(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.write(a + PAGE_SIZE, "Q")
    p.say("before", f"p0={p.read(a)} p1={p.read(a + PAGE_SIZE)}")
    p.say("dontneed", _number(do_madvise(p.mm, a, 2, Advice.DONTNEED)))
    p.state("p0_after", a)
    p.state("p1_after", a + PAGE_SIZE)
    p.page("pg0", 0)
    p.say("after", f"p0={p.read(a)} p1={p.read(a + PAGE_SIZE)}")
    p.state("p1_refault", a + PAGE_SIZE)
    p.counts("cnt")


def mincore_(p: Process) -> None:
    a = p.map(_R, shared=True)

    def vector() -> str:
        return "".join(str(int(mincore(p.mm, Vaddr(a + i * PAGE_SIZE)))) for i in range(3))

    p.say("cold", f"0 v={vector()}")
    p.read(a)
    p.say("p0_touched", f"0 v={vector()}")


def msync(p: Process) -> None:
    a = p.map(_RW, shared=True)
    p.say("write", p.write(a, "A"))
    p.say("msync", _number(do_msync(p.mm, a, _NR_MAPPED)))
    p.state("p0", a)
    p.say("write2", p.write(a, "A"))
    p.state("p0_w2", a)
    p.counts("cnt")


def uffd(p: Process) -> None:
    p.map(_RW, shared=False)
    if "USERFAULTFD" not in p.mm.machine.arch.configs:
        p.say("uffd", "ENOSYS")
        return
    for mode in ("missing", "wp"):  # anonymous memory, shmem and hugetlbfs only
        p.say(f"register_{mode}", "EINVAL")


def clear_refs(p: Process) -> None:
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


def softdirty_private(p: Process) -> None:
    a = p.map(_RW, shared=False)
    p.read(a)
    p.state("cleared", a)
    p.write(a, "Q")
    p.state("written", a)


def wr_only_and_exec(p: Process) -> None:
    a = p.map(_RX, shared=False)
    p.say("mmap_exec", f"ok read={p.read(a)}")
    p.state("p0", a)
    p.area("vma", a)


def reinsert(p: Process) -> None:
    if p.device.vm is not VmMode.MIXED:
        return
    a = p.map(_RW, shared=True)
    pages = [a + i * PAGE_SIZE for i in range(_NR_MAPPED + 1)]
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
    p.insert("outside", pages[_NR_MAPPED], 0, "R")
    do_munmap(p.mm, a, _NR_MAPPED)
    p.page("pg1_unmapped", 1)
    p.page("pg2_unmapped", 2)


def insert_over_cow(p: Process) -> None:
    if p.device.vm is not VmMode.MIXED:
        return
    a = p.map(_RW, shared=False)
    p.write(a, "Q")
    p.state("cowed", a)
    p.insert("R0_over_anon", a, 0, "R")
    p.state("after", a)
    p.say("read", p.read(a))


def zap(p: Process) -> None:
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


def migrate(p: Process) -> None:
    if p.device.vm is not VmMode.MIXED:
        return
    p.device.plan = list(parse_plan("R"))
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
        with contextlib.suppress(_Absent):
            scenario(p)

    return run


SCENARIOS: dict[str, Callable[[Process], None]] = {
    scenario.__name__.rstrip("_"): _guarded(scenario)
    for scenario in (
        read_shared_ro,
        read_private,
        double_fault,
        write_shared_first,
        read_then_write_shared,
        cow,
        write_private_first,
        fork_shared,
        fork_shared_rw,
        fork_private,
        fork_after_cow,
        munmap,
        munmap_cowed,
        gup_shared_ro,
        gup_shared_rw,
        gup_private_uncowed,
        gup_private_rw_uncowed,
        gup_private_cowed,
        force_write_ro_private,
        mlock,
        mlock_private_rw,
        map_locked,
        mlockall_future,
        populate,
        mprotect,
        mremap,
        madvise,
        dontneed,
        mincore_,
        msync,
        uffd,
        clear_refs,
        softdirty_private,
        wr_only_and_exec,
        reinsert,
        insert_over_cow,
        zap,
        migrate,
    )
}
