"""Player: scenes, a line for each operation, played on `xipfs.mm`.

    player = Player("device plan=RRPV vm=mixed hooks=full", get_arch("um", "6.1"))
    player.play("0 map A rw private 4")      -> "ok"
    player.play("0 write A 0 Q")             -> "ok"
    player.play("0 state A 0")               -> "pm=present,excl pte=WD cls=anon ..."

Process 0 is there from the start; areas are capital letters, pages are counted from their start.

    P map A r|rw|rx|none shared|private N [OFF]     P fork Q            P exit
    P mremap A I OLD NEW shrink|move|grow|dontunmap|dup [AREA]
    P read A I     P tail A I     P write A I C     P munmap A I N      P mprotect A I N PROT
    P mlock A I N  P munlock A I N  P madvise A I N ADVICE              P msync A I N
    P mincore A I N    P gup USER A I    P hold A I    P drop           P insert A I J LETTER
    P state A I    P smaps A I    P rss                                 zap J N EVEN
    migrate J LETTER                     page J                         count

`hold` is a vmsplice whose pipe keeps the page until `drop`. An area that mremap moves, or maps for
a second time (`dup`), gets the name that is last in the line. Answers are `ok`, numbers, names of
errnos and signals, facts in the form of the goldens, and BUG where a kernel stops.
"""

from xipfs.errors import BugError, InvalidArgumentError
from xipfs.mm.access import Signal, user_load
from xipfs.mm.arch import Arch
from xipfs.mm.fork import dup_mm
from xipfs.mm.gup import FOLL_PIN, put_user_page
from xipfs.mm.gup_users import (
    Pipe,
    direct_io,
    futex_wake_shared,
    io_uring_register_buffer,
    mem_rw,
    process_vm_rw,
    ptrace_access,
)
from xipfs.mm.madvise import Advice, do_madvise
from xipfs.mm.mlock import do_mlock, do_munlock
from xipfs.mm.mmap import do_mmap, do_munmap, exit_mmap
from xipfs.mm.mprotect import do_mprotect
from xipfs.mm.mremap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, do_mremap
from xipfs.mm.msync import do_msync
from xipfs.mm.proc import mincore
from xipfs.mm.vm_fault import FaultResult
from xipfs.mm.vma import VM_EXEC, VM_READ, VM_WRITE, Mm
from xipfs.oracle.device import Hooks, VmMode, parse_plan
from xipfs.oracle.probe import Boot
from xipfs.oracle.process import Process, number, pte_facts
from xipfs.units import PAGE_SIZE, Pfn, Pgoff, Vaddr

__all__ = ["BUG", "Player", "play_scene", "scene_lines"]

BUG = "BUG"

_NR_RESERVED = 64
_PROTS = {"none": 0, "r": VM_READ, "rw": VM_READ | VM_WRITE, "rx": VM_READ | VM_EXEC}
_MREMAPS = {
    "shrink": 0,
    "grow": MREMAP_MAYMOVE,
    "move": MREMAP_MAYMOVE | MREMAP_FIXED,
    "dup": MREMAP_MAYMOVE | MREMAP_FIXED,
    "dontunmap": MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
}
_USER_SIZE_BYTES = 64
_WRITERS = ("process_vm_writev", "ptrace_poke", "odirect_read", "read_pipe")


def scene_lines(text: str) -> list[str]:
    """Return header and operations of a scene file: no comments, no answers.

    >>> scene_lines("# two pages\\ndevice plan=R vm=mixed hooks=full\\n0 map A r shared 2 -> ok\\n")
    ['device plan=R vm=mixed hooks=full', '0 map A r shared 2']
    """
    lines = (line.split("->")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def play_scene(lines: list[str], arch: Arch) -> list[str]:
    """Return the answer to each line of a scene, `ok` for its header; BUG may be the last."""
    player = Player(lines[0], arch)
    answers = ["ok"]
    for op in lines[1:]:
        try:
            answers.append(player.play(op))
        except BugError:
            return [*answers, BUG]
    player.close()
    return answers


class _Program:
    def __init__(self, mm: Mm, areas: dict[str, int]) -> None:
        self.mm = mm
        self.areas = areas
        self.pipes: list[Pipe] = []

    def drop(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        self.pipes.clear()


class Player:
    """One scene. *header*: `device plan=.. vm=mixed|pfn|remap hooks=full|none|fail`."""

    def __init__(self, header: str, arch: Arch) -> None:
        options = dict(word.split("=", 1) for word in header.split()[1:])
        self.boot = Boot(arch)
        self.device = self.boot.device
        self.device.configure(
            parse_plan(options["plan"]), VmMode(options["vm"]), Hooks(options["hooks"])
        )
        self._programs = {0: _Program(Mm(self.boot.machine), {})}

    @property
    def mms(self) -> list[Mm]:
        """The address spaces of the processes there are."""
        return [program.mm for program in self._programs.values()]

    @property
    def pins(self) -> list[Pfn]:
        """References that are neither ptes nor the kernel's: of the device and of pipes."""
        pipes = (pipe for program in self._programs.values() for pipe in program.pipes)
        held = [page for pipe in pipes for page in pipe.pages]
        return [*self.boot.kernel_frames, *self.device.pages, *held]

    def play(self, op: str) -> str:
        """Play one line. Raises: InvalidArgumentError for what is none, or has no object."""
        words = op.split()
        try:
            if words[0].isdigit():
                return self._play_program(int(words[0]), words[1], words[2:])
            return self._play_device(words[0], words[1:])
        except (KeyError, IndexError, ValueError) as exc:
            raise InvalidArgumentError(f"no such operation: {op!r}") from exc

    def close(self) -> None:
        """End all processes and give the memory back."""
        for program in self._programs.values():
            program.drop()
            exit_mmap(program.mm)
        self.boot.close()

    def _play_device(self, name: str, words: list[str]) -> str:
        device = self.device
        if name == "zap":
            first, nr_pages, even_cows = map(int, words)
            for i in range(first, first + nr_pages):
                device.migrate(i, None, even_cows=bool(even_cows))
            return "ok"
        if name == "migrate":
            device.migrate(int(words[0]), words[1], even_cows=False)
            return "ok"
        if name == "page":
            mem_map, page = device.machine.mem_map, device.pages[int(words[0])]
            return f"ref={mem_map.page_count(page)} mapc={mem_map.page_mapcount(page)}"
        if name == "count":
            counts = device.counts
            return (
                f"faults={counts.faults} page_mkwrite={counts.page_mkwrite} "
                f"pfn_mkwrite={counts.pfn_mkwrite} vm_open={counts.opens} vm_close={counts.closes}"
            )
        raise KeyError(name)

    def _play_program(self, ident: int, name: str, words: list[str]) -> str:
        program = self._programs[ident]
        mm = program.mm
        if name == "map":
            return self._map(program, words)
        if name == "fork":
            return self._fork(program, int(words[0]))
        if name == "exit":
            program.drop()
            exit_mmap(self._programs.pop(ident).mm)
            return "ok"
        if name == "drop":
            program.drop()
            return "ok"
        if name == "rss":
            return f"file={mm.rss_file} anon={mm.rss_anon}"
        user = words.pop(0) if name == "gup" else ""
        address = Vaddr(program.areas[words[0]] + int(words[1]) * PAGE_SIZE)
        rest = words[2:]
        if name == "gup":
            return self._gup(mm, user, address)
        if name == "hold":
            pipe = Pipe(mm)
            program.pipes.append(pipe)
            return number(pipe.vmsplice(address, _USER_SIZE_BYTES))
        if name == "insert":
            return self._insert(mm, address, int(rest[0]), rest[1])
        if name == "mremap":
            return self._mremap(program, address, int(rest[0]), int(rest[1]), *rest[2:])
        return self._play_pages(mm, name, address, rest)

    def _play_pages(self, mm: Mm, name: str, address: Vaddr, rest: list[str]) -> str:
        process = Process(self.device, "", mm)
        if name == "read":
            return process.read(address)
        if name == "tail":
            return process.read(address + 100)
        if name == "write":
            return process.write(address, rest[0])
        if name == "state":
            return pte_facts(self.device, mm, address)
        if name == "smaps":
            if mm.find_vma(address) is None:
                return "VmFlags=[]"
            process.area("", address)
            return process.lines[0].split("|", 2)[2]
        nr_pages = int(rest[0])
        if name == "mincore":
            pages = [Vaddr(address + i * PAGE_SIZE) for i in range(nr_pages)]
            if any(mm.find_vma(page) is None for page in pages):
                return "ENOMEM"
            return "".join(str(int(mincore(mm, page))) for page in pages)
        done = {
            "munmap": lambda: do_munmap(mm, address, nr_pages),
            "mprotect": lambda: do_mprotect(mm, address, nr_pages, _PROTS[rest[1]]),
            "mlock": lambda: do_mlock(mm, address, nr_pages),
            "munlock": lambda: do_munlock(mm, address, nr_pages),
            "madvise": lambda: do_madvise(mm, address, nr_pages, Advice[rest[1]]),
            "msync": lambda: do_msync(mm, address, nr_pages),
        }[name]()
        return number(done) if done else "ok"

    def _map(self, program: _Program, words: list[str]) -> str:
        area, prot, share, nr_pages = words[0], _PROTS[words[1]], words[2], int(words[3])
        pgoff = Pgoff(int(words[4]) if len(words) > 4 else 0)
        address = do_mmap(
            program.mm,
            self.device,
            nr_pages=nr_pages,
            prot=prot,
            shared=share == "shared",
            pgoff=pgoff,
            address=self._reserve(program.mm),
        )
        if address < 0:
            return number(address)
        program.areas[area] = address
        return "ok"

    @staticmethod
    def _reserve(mm: Mm) -> Vaddr:
        """Find a place for an area; something lies behind it that never goes away."""
        return Vaddr(do_mmap(mm, None, nr_pages=_NR_RESERVED, prot=0, shared=False))

    def _mremap(
        self, program: _Program, address: Vaddr, nr_old: int, nr_new: int, how: str, area: str = ""
    ) -> str:
        """Where the new area lies is ours to say, but for `grow`: there it is the kernel's."""
        flags, place = _MREMAPS[how], None
        if flags & MREMAP_FIXED:
            place = self._reserve(program.mm)
        found = do_mremap(program.mm, address, nr_old, nr_new, flags, place)
        if found < 0:
            return number(found)
        if area:
            program.areas[area] = found
        return "ok"

    def _fork(self, program: _Program, ident: int) -> str:
        mm = dup_mm(program.mm)
        if not isinstance(mm, Mm):
            return number(mm)
        self._programs[ident] = _Program(mm, dict(program.areas))
        return "ok"

    def _insert(self, mm: Mm, address: Vaddr, i: int, letter: str) -> str:
        said = self.device.insert_at(mm, address, i, letter)
        if letter in "GI" or said < 0:
            return number(said)
        return str(FaultResult(said).name)

    def _gup(self, mm: Mm, user: str, address: Vaddr) -> str:
        """What is written is what the page held, or 'A's where it cannot be read."""
        content = user_load(mm, address, PAGE_SIZE) if user in _WRITERS else b""
        if isinstance(content, Signal) or not content:
            content = b"A" * PAGE_SIZE
        buffer, block = bytearray(content[:_USER_SIZE_BYTES]), bytearray(content)
        word = bytearray(content[:8] or 8)
        if user == "io_uring":
            pinned: list[Pfn] = []
            got = io_uring_register_buffer(mm, address, 1, pinned)
            for page in pinned:
                put_user_page(mm, page, FOLL_PIN)
            return number(got) if got else "ok"
        if user in ("ptrace_peek", "ptrace_poke"):
            got = ptrace_access(mm, address, word, write=user == "ptrace_poke")
            return number(got) if got else "ok"
        pipe = Pipe(mm)
        got = {
            "process_vm_readv": lambda: process_vm_rw(mm, address, buffer, write=False),
            "process_vm_writev": lambda: process_vm_rw(mm, address, buffer, write=True),
            "proc_mem_read": lambda: mem_rw(mm, address, buffer, write=False),
            "proc_mem_write": lambda: mem_rw(mm, address, bytearray(b"Z"), write=True),
            "vmsplice": lambda: pipe.vmsplice(address, _USER_SIZE_BYTES),
            "odirect_write": lambda: direct_io(mm, address, block, write=False),
            "odirect_read": lambda: direct_io(mm, address, block, write=True),
            "futex": lambda: futex_wake_shared(mm, address),
            "write_pipe": lambda: pipe.write(address, _USER_SIZE_BYTES),
            "read_pipe": lambda: pipe.read(address, bytes(buffer)),
        }[user]()
        pipe.close()
        return number(got)
