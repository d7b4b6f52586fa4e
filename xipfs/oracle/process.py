"""Process: a process of the probe, what it does to memory, and the lines that it prints."""

import errno
from collections.abc import Callable

from xipfs.mm.access import Signal, user_load, user_store
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
from xipfs.mm.mixedmap import vm_normal_page
from xipfs.mm.mmap import do_mmap, exit_mmap
from xipfs.mm.pgtable import PMD_SHIFT, PTE_NONE, pte_index, pte_pfn, pte_special, pte_write
from xipfs.mm.proc import pagemap_entry, smaps, vm_flag_names
from xipfs.mm.vm_fault import FaultResult
from xipfs.mm.vma import VM_READ, VM_WRITE, Mm
from xipfs.oracle.cramfs import Cramfs
from xipfs.oracle.device import Mixmap, raw_pfn
from xipfs.units import PAGE_SIZE, Pfn, Vaddr

__all__ = ["NR_MAPPED", "Absent", "Process", "number", "ok", "pte_facts"]

NR_MAPPED = 8
"""Pages that a scenario maps."""

_KIB = 1024


class Absent(Exception):
    """mmap failed: the scenario is over."""


class Process:
    """A process of the probe: what it does to memory, and the lines that it prints."""

    def __init__(self, device: Mixmap | Cramfs, head: str, mm: Mm | None = None) -> None:
        self.device = device
        self.head = head
        self.mm = mm if mm is not None else Mm(device.machine)
        self.lines: list[str] = []

    @property
    def mixmap(self) -> Mixmap:
        """The device, in scenarios that cannot be played on a file."""
        assert isinstance(self.device, Mixmap), "a scenario of the device"
        return self.device

    def say(self, step: str, text: object) -> None:
        """Print a line."""
        self.lines.append(f"{self.head}|{step}|{text}")

    def map(self, prot: int, *, shared: bool, populate: bool = False, lock: bool = False) -> Vaddr:
        """Map the device's first pages. Raises: Absent, with the error told."""
        address = do_mmap(
            self.mm,
            self.device,
            nr_pages=NR_MAPPED,
            prot=prot,
            shared=shared,
            populate=populate,
            lock=lock,
        )
        if address < 0:
            prots = ("r" if prot & VM_READ else "-") + ("w" if prot & VM_WRITE else "-")
            kind = "shared" if shared else "private"
            self.say("mmap", f"prot={prots} flags={kind} -> {number(address)}")
            raise Absent
        return Vaddr(address)

    def read(self, address: int) -> str:
        """Return the byte at *address* as the probe prints it, or the signal."""
        found = user_load(self.mm, Vaddr(address), 1)
        return _signal(found) if isinstance(found, Signal) else _byte(found[0])

    def write(self, address: int, char: str) -> str:
        """Write a character; return `ok` or the signal."""
        error = user_store(self.mm, Vaddr(address), char.encode())
        return _signal(error) if error is not None else "ok"

    def state(self, step: str, address: int) -> None:
        """Print the facts of one page's pte."""
        self.say(step, pte_facts(self.device, self.mm, Vaddr(address)))

    def page(self, step: str, i: int) -> None:
        """Print the references and ptes of the device's page *i*; nothing of a file's."""
        if not isinstance(self.device, Mixmap):
            return
        page = self.device.pages[i]
        mem_map = self.mm.machine.mem_map
        facts = f"ref={mem_map.page_count(page)} mapc={mem_map.page_mapcount(page)}"
        self.say(step, f"pg+{i} {facts}")

    def counts(self, step: str) -> None:
        """Print how often the device's vm_ops were called; nothing of a file's."""
        if not isinstance(self.device, Mixmap):
            return
        counts = self.device.counts
        self.say(
            step,
            f"faults={counts.faults} page_mkwrite={counts.page_mkwrite} "
            f"pfn_mkwrite={counts.pfn_mkwrite} vm_open={counts.opens} vm_close={counts.closes}",
        )

    def area(self, step: str, address: int) -> None:
        """Print the area's lines of smaps."""
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
            self.say("fork", number(mm))
            return
        child = Process(self.device, self.head, mm)
        run(child, address)
        self.lines += child.lines
        exit_mmap(mm)

    def insert(self, step: str, address: int, i: int, letter: str) -> None:
        """Let the driver insert a page."""
        said = self.mixmap.insert_at(self.mm, Vaddr(address), i, letter)
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
        """Let the device move page *i*, or only unmap it."""
        self.mixmap.migrate(i, letter, even_cows=even_cows)
        self.say(step, f"idx={i} kind={letter or '-'} even_cows={int(even_cows)} 0")

    def users(self, tag: str, address: Vaddr, *, write: bool) -> None:
        """Let each user of get_user_pages try the page at *address*."""
        mm = self.mm
        buffer = bytearray(64)
        got = process_vm_rw(mm, address, buffer, write=False)
        first = f" c=0x{buffer[0]:02x}" if got > 0 else ""
        self.say(f"{tag}process_vm_readv", number(got) + first)
        if write:
            byte = user_load(mm, address, 1)
            buffer[0:1] = byte if isinstance(byte, bytes) else b"\0"
            got = process_vm_rw(mm, address, buffer, write=True)
            self.say(f"{tag}process_vm_writev", number(got))
        self.say(f"{tag}proc_mem_read", number(mem_rw(mm, address, buffer, write=False)))
        if write:
            got = mem_rw(mm, address, buffer[:1], write=True)
            self.say(f"{tag}proc_mem_write", number(got))
        self._ptrace(tag, address, write=write)
        pipe = Pipe(mm)
        got = pipe.vmsplice(address, 64)
        self.say(f"{tag}vmsplice", number(got))
        if got > 0:
            self.state(f"{tag}pinned_vmsplice", address)
        pipe.close()
        data = user_load(mm, address, 64)
        got = pipe.write(address, 64)
        self.say(f"{tag}write_pipe_from", number(got))
        if write and isinstance(data, bytes):
            self.say(f"{tag}read_pipe_into", number(pipe.read(address, data)))
        block = bytearray(PAGE_SIZE)
        got = direct_io(mm, address, block, write=False)
        self.say(f"{tag}odirect_write_from", number(got))
        if write:
            content = user_load(mm, address, PAGE_SIZE)
            block = bytearray(content if isinstance(content, bytes) else PAGE_SIZE)
            got = direct_io(mm, address, block, write=True)
            self.say(f"{tag}odirect_read_into", number(got))
        pinned: list[Pfn] = []
        got = io_uring_register_buffer(mm, address, 1, pinned)
        self.say(f"{tag}io_uring_fixed_buf", number(got))
        self.say(f"{tag}futex_wake_shared", number(futex_wake_shared(mm, address)))

    def _ptrace(self, tag: str, address: Vaddr, *, write: bool) -> None:
        """A child attaches to us, so that it has a copy of our areas meanwhile."""
        child = dup_mm(self.mm)
        if not isinstance(child, Mm):
            return
        word = bytearray(8)
        got = ptrace_access(self.mm, address, word, write=False)
        self.say(f"{tag}ptrace_peek", number(got) if got else "ok")
        if write:
            got = ptrace_access(self.mm, address, word, write=True)
            self.say(f"{tag}ptrace_poke", number(got) if got else "ok")
        exit_mmap(child)


def pte_facts(device: Mixmap | Cramfs, mm: Mm, address: Vaddr) -> str:
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


def _class(device: Mixmap | Cramfs, pfn: Pfn) -> str:
    machine = device.machine
    if isinstance(device, Mixmap):  # the probe knows of its memory only
        if machine.is_nvram(pfn):
            return f"raw+{pfn - raw_pfn(0)}"
        if pfn in device.pages:
            return f"pg+{device.pages.index(pfn)}"
    if pfn == machine.zero_pfn:
        return "zero"
    return "anon" if machine.pfn_valid(pfn) and machine.mem_map.page_anon(pfn) else "page"


def _byte(value: int) -> str:
    return f"'{chr(value)}'" if 32 < value < 127 else f"0x{value:02x}"


def _signal(signal: Signal) -> str:
    return f"{signal.name}/{signal.code}"


def number(value: int) -> str:
    """Write what a system call returned: a number, or the name of its errno."""
    if value >= 0:
        return str(value)
    return "EOPNOTSUPP" if value == -errno.EOPNOTSUPP else errno.errorcode[-value]


def ok(value: int) -> str:
    """Write `ok` for anything but an error."""
    return "ok" if value >= 0 else number(value)
