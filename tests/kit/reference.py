"""The reference player: Linux 6.1 around VM_MIXEDMAP, slow and plain, to be right by reading.

It answers the lines of the scene language (a device of 16 pages, processes, areas) as the kernel
would, and shares nothing with `xipfs.mm`: what both say, two readings of the kernel say.

    reference = Reference("device plan=RRPV vm=mixed hooks=full", arch="um-special")
    reference.play("0 map A rw private 4")   # "ok"
    reference.play("0 write A 0 Q")          # "ok"
    reference.play("0 state A 0")            # "pm=present,excl pte=WD cls=anon valid=1 ..."
    reference.check_invariants()

    frame   Page        bytes, reference count, mapcount, dirty, exclusive
    pte     Pte         in a dict {(process, address): Pte}; no entry: pte_none
    vma     Vma         in a list; its flags are the words of smaps: rd wr sh mm pf io ...
    area    (base, nr)  in a dict {(process, "A"): ...}: a name for addresses, nothing more

Addresses are counted in pages. A method is one function of the kernel, and has its name where it
has one; `op_read` and so on are the operations of the language. Memory is never short, there is
one CPU, nothing is reclaimed. The accessed bit is not kept, as no answer shows it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

__all__ = ["ARCHES", "NR_DEVICE_PAGES", "Arch", "BadScene", "Page", "Pte", "Reference", "Vma"]

NR_DEVICE_PAGES = 16
PAGE_BYTES = 4096

RAW_PFN = 1 << 20
"""Frame number of raw page 0: beyond all memory that has struct pages."""

PIN_BIAS = 1024
RESERVED_PAGES = 64
TOP_ADDRESS = 1 << 20
LETTERS = frozenset("RWPIVZFG")

VM_FLAGS = {
    "rd": "VM_READ",
    "wr": "VM_WRITE",
    "ex": "VM_EXEC",
    "sh": "VM_SHARED",
    "mr": "VM_MAYREAD",
    "mw": "VM_MAYWRITE",
    "me": "VM_MAYEXEC",
    "ms": "VM_MAYSHARE",
    "pf": "VM_PFNMAP",
    "io": "VM_IO",
    "sr": "VM_SEQ_READ",
    "rr": "VM_RAND_READ",
    "dc": "VM_DONTCOPY",
    "de": "VM_DONTEXPAND",
    "ac": "VM_ACCOUNT",
    "dd": "VM_DONTDUMP",
    "mm": "VM_MIXEDMAP",
}
"""Flags of a vma in the words of smaps, in its order. `PAT` (VM_PAT) is not printed."""

PROTS = {"r": {"rd"}, "rw": {"rd", "wr"}, "rx": {"rd", "ex"}, "none": set()}

ADVICE_FLAGS: dict[str, tuple[set[str], set[str]]] = {
    "NORMAL": ({"rr", "sr"}, set()),
    "RANDOM": ({"sr"}, {"rr"}),
    "SEQUENTIAL": ({"rr"}, {"sr"}),
    "DONTFORK": (set(), {"dc"}),
    "DOFORK": ({"dc"}, set()),
    "DONTDUMP": (set(), {"dd"}),
    "DODUMP": ({"dd"}, set()),
}
"""Advice that changes flags: (cleared, set)."""

WRITE_BACK = {"process_vm_writev": 64, "ptrace_poke": 8, "odirect_read": 4096, "read_pipe": 64}
"""Users of pages that write what they have just read through the mapping: how many bytes."""

MREMAPS = ("move", "grow", "shrink", "dontunmap", "dup")

DEVICE_OPERATIONS = {"zap": "iii", "migrate": "iw", "page": "i", "count": ""}
PROCESS_OPERATIONS = {
    **dict.fromkeys(["read", "tail", "hold", "state", "smaps"], "Ai"),
    **dict.fromkeys(["munmap", "mlock", "munlock", "msync", "mincore"], "Ain"),
    **dict.fromkeys(["mprotect", "madvise"], "Ainw"),
    **dict.fromkeys(["exit", "drop", "rss"], ""),
    "write": "Aiw",
    "insert": "Aiiw",
    "gup": "wAi",
    "map": "Awwn?i",
    "mremap": "Aiinw?w",
    "fork": "i",
}
"""Words of the operations: A an area, i a number, n a number of pages, w a word; after ? they
may be missing."""

DONE, NOPAGE, SIGBUS = "DONE", "NOPAGE", "SIGBUS"
"""What faults answer: 0, VM_FAULT_NOPAGE and VM_FAULT_SIGBUS of the kernel."""

EMLINK = "EMLINK"
"""follow_page: an anonymous page has to be made exclusive before it can be pinned."""


class BadScene(ValueError):
    """An operation that no player can play: no such area, process, word."""


class KernelBug(Exception):
    """A BUG_ON of the kernel."""


@dataclass(frozen=True)
class Arch:
    """What one build of the kernel has."""

    pte_special: bool
    fast_gup: bool = False
    pat: bool = False
    ksm: bool = True
    user_copy_by_mmu: bool = False
    """The kernel copies from and to users through the MMU. User-mode Linux looks at the ptes
    itself: it reads under PROT_NONE, and leaves a clean writable pte clean."""


ARCHES = {
    "um": Arch(pte_special=False, ksm=False),
    "um-special": Arch(pte_special=True),
    "x86": Arch(pte_special=True, fast_gup=True, pat=True, user_copy_by_mmu=True),
}


@dataclass(eq=False)
class Page:
    """A frame. `kind` is raw (no struct page), pg (the device's), zero or anon."""

    kind: str
    index: int
    pfn: int
    content: bytearray
    refcount: int = 0
    mapcount: int = 0
    dirty: bool = False
    anon_exclusive: bool = False

    @property
    def valid(self) -> bool:
        """pfn_valid: there is a struct page."""
        return self.kind != "raw"

    @property
    def anon(self) -> bool:
        return self.kind == "anon"


@dataclass(eq=False)
class Pte:
    """A present pte. `counted`: it took a reference and a mapcount (for check_invariants)."""

    frame: Page
    write: bool
    dirty: bool
    special: bool
    counted: bool


@dataclass(eq=False)
class Vma:
    """Addresses `start` to `end` (not included) of a process, from page `pgoff` of the device."""

    process: int
    start: int
    end: int
    pgoff: int
    flags: set[str] = field(default_factory=set)

    @property
    def shared(self) -> bool:
        return "sh" in self.flags

    @property
    def cow(self) -> bool:
        """is_cow_mapping"""
        return "sh" not in self.flags and "mw" in self.flags

    @property
    def accessible(self) -> bool:
        """vma_is_accessible: any protection but PROT_NONE"""
        return bool(self.flags & {"rd", "wr", "ex"})

    @property
    def special(self) -> bool:
        """VM_SPECIAL"""
        return bool(self.flags & {"io", "de", "pf", "mm"})


class Reference:
    """One scene: `play` each line, in order. BadScene for a line that makes no sense."""

    def __init__(self, header: str, arch: str = "um", version: str = "6.1") -> None:
        if arch not in ARCHES or version != "6.1":
            raise BadScene(f"no reference for {arch} {version}; there is {', '.join(ARCHES)} 6.1")
        self.arch = ARCHES[arch]
        self.plan, self.vm, self.hooks = _parse_header(header)
        self.pages = [_page("pg", i, 1 + i, ord("a") + i, 1) for i in range(NR_DEVICE_PAGES)]
        self.raw = {
            i: _page("raw", i, RAW_PFN + i, ord("A") + i, 0) for i in range(NR_DEVICE_PAGES)
        }
        self.zero = _page("zero", -1, 0, 0, 1)
        self.next_pfn = 1000
        self.ptes: dict[tuple[int, int], Pte] = {}
        self.vmas: list[Vma] = []
        self.areas: dict[tuple[int, str], tuple[int, int]] = {}
        self.next_address = {0: TOP_ADDRESS}
        self.guards: dict[int, list[tuple[int, int]]] = {0: []}
        self.rss = {0: {"file": 0, "anon": 0}}
        self.held: dict[int, list[Page]] = {0: []}
        self.counts = dict.fromkeys(["faults", "page_mkwrite", "pfn_mkwrite", "open", "close"], 0)
        self.nr_maps = 0
        self.leaked: list[tuple[int, Page]] = []
        self.ended = False

    # ---------------------------------------------------------------- the scene language

    def play(self, op: str) -> str:
        """Play one line, without newline; answer what the kernel does, "" for a comment."""
        words = op.split()
        if not words or words[0].startswith("#"):
            return ""
        if self.ended:
            raise BadScene(f"{op!r}: the scene ended with a BUG")
        try:
            if words[0].isdigit():
                return self._play_process(int(words[0]), words[1:])
            return self._play_device(words)
        except KernelBug:
            self.ended = True
            return "BUG"
        except BadScene as e:
            raise BadScene(f"{op!r}: {e}") from e

    def _play_device(self, words: list[str]) -> str:
        verb, args = _arguments(words, DEVICE_OPERATIONS)
        if verb == "zap":
            first, nr, even_cows = args
            self.unmap_mapping_range(first, nr, bool(even_cows))
            return "ok"
        if verb == "migrate":
            return self.op_migrate(*args)
        if verb == "page":
            page = self.device_page(args[0])
            return f"ref={page.refcount} mapc={page.mapcount}"
        c = self.counts
        return (
            f"faults={c['faults']} page_mkwrite={c['page_mkwrite']} "
            f"pfn_mkwrite={c['pfn_mkwrite']} vm_open={c['open']} vm_close={c['close']}"
        )

    def _play_process(self, process: int, words: list[str]) -> str:
        if process not in self.held:
            raise BadScene("no such process")
        verb, args = _arguments(words, PROCESS_OPERATIONS)
        if verb == "rss":
            return f"file={self.rss[process]['file']} anon={self.rss[process]['anon']}"
        method = getattr(self, f"op_{verb}")
        if verb == "gup":
            user, area, index = args
            return str(method(process, self.address(process, area, index), user))
        kinds = PROCESS_OPERATIONS[verb]
        if verb == "mremap" or not kinds.startswith("Ai"):
            return str(method(process, *args))
        nr = args[2] if kinds.startswith("Ain") else 1
        return str(method(process, self.address(process, args[0], args[1], nr), *args[2:]))

    def device_page(self, index: int) -> Page:
        if not 0 <= index < NR_DEVICE_PAGES:
            raise BadScene(f"the device has no page {index}")
        return self.pages[index]

    def address(self, process: int, area: str, index: int, nr: int = 1) -> int:
        """Address of page `index` of an area, where `nr` pages have to be inside of it."""
        if (process, area) not in self.areas:
            raise BadScene(f"no area {area}")
        base, size = self.areas[process, area]
        if index + nr > size:
            raise BadScene(f"pages {index}+{nr} are outside of area {area} of {size} pages")
        return base + index

    # ---------------------------------------------------------------- vmas

    def find_vma(self, process: int, address: int) -> Vma | None:
        """vma_lookup: the vma that holds this address"""
        for vma in self.vmas:
            if vma.process == process and vma.start <= address < vma.end:
                return vma
        return None

    def vmas_of(self, process: int) -> list[Vma]:
        """In order of addresses"""
        return sorted((v for v in self.vmas if v.process == process), key=lambda v: v.start)

    def walk(self, process: int, start: int, end: int) -> Iterator[tuple[int, int, Vma | None]]:
        """The pieces of a range, in order: (from, to, vma), vma None for a hole.

        The next piece is looked for when it is asked for, so that vmas may be split meanwhile.
        """
        while start < end:
            vma = self.find_vma(process, start)
            later = [v.start for v in self.vmas_of(process) if v.start > start]
            to = vma.end if vma else min([*later, end])
            yield start, min(to, end), vma
            start = min(to, end)

    def has_hole(self, process: int, start: int, end: int) -> bool:
        return any(vma is None for _, _, vma in self.walk(process, start, end))

    def ptes_of(self, vma: Vma) -> list[tuple[int, Pte]]:
        """(address, pte) of every present pte of a vma, in order"""
        addresses = range(vma.start, vma.end)
        return [(a, self.ptes[vma.process, a]) for a in addresses if (vma.process, a) in self.ptes]

    def reserve(self, process: int, nr: int) -> int:
        """A fresh place, below all others, with something behind it that never goes away."""
        total = max(nr, RESERVED_PAGES) + 1
        self.next_address[process] -= total
        start = self.next_address[process]
        self.guards[process].append((start + nr, start + total))
        return start

    def is_free(self, process: int, start: int, end: int) -> bool:
        taken = [(v.start, v.end) for v in self.vmas_of(process)] + self.guards[process]
        return all(b <= start or end <= a for a, b in taken)

    def split_vma(self, vma: Vma, address: int) -> Vma:
        """Cut a vma in two; the second piece is returned. One ->open is called."""
        after = replace(vma, start=address, flags=set(vma.flags))
        after.pgoff += address - vma.start
        vma.end = address
        self.vmas.append(after)
        self.counts["open"] += 1
        return after

    def isolate(self, vma: Vma, start: int, end: int) -> Vma:
        """The part from `start` to `end` of a vma as a vma of its own, split as needed."""
        if start > vma.start:
            vma = self.split_vma(vma, start)
        if end < vma.end:
            self.split_vma(vma, end)
        return vma

    def remove_vma(self, vma: Vma) -> None:
        """Its ptes are gone already. ->close is called."""
        self.vmas.remove(vma)
        self.counts["close"] += 1

    def do_munmap(self, process: int, start: int, end: int) -> None:
        for a, b, vma in self.walk(process, start, end):
            if vma:
                self.zap_page_range(vma, a, b)
                self.remove_vma(self.isolate(vma, a, b))

    def vm_page_prot_writable(self, vma: Vma) -> bool:
        """Whether new ptes are writable: vma_set_page_prot, vma_wants_writenotify.

        The bdi of a character device does no writeback, so that only the hooks matter.
        """
        return vma.shared and "wr" in vma.flags and self.hooks == "none"

    # ---------------------------------------------------------------- frames and counts

    def raw_page(self, index: int) -> Page:
        """There are raw pages behind the 16 of the device, too: the window is larger."""
        if index not in self.raw:
            self.raw[index] = _page("raw", index, RAW_PFN + index, 0, 0)
        return self.raw[index]

    def count_rss(self, process: int, page: Page, nr: int) -> None:
        self.rss[process]["anon" if page.anon else "file"] += nr

    def vm_normal_page(self, vma: Vma, address: int, pte: Pte) -> Page | None:
        """The page behind a pte, None if it is special (specification, 2.2)."""
        frame = pte.frame
        if self.arch.pte_special:
            return None if pte.special else frame
        if "mm" in vma.flags:
            return frame if frame.valid else None
        if "pf" in vma.flags:
            if frame.pfn == vma.pgoff + (address - vma.start):
                return None
            if not vma.cow:
                return None
        return None if frame is self.zero else frame

    def map_page(self, vma: Vma, address: int, page: Page, write: bool, dirty: bool) -> None:
        """do_set_pte: the caller's reference becomes the pte's."""
        page.mapcount += 1
        self.count_rss(vma.process, page, 1)
        self.ptes[vma.process, address] = Pte(page, write, dirty, special=False, counted=True)

    def map_anon(self, vma: Vma, address: int, content: bytes, write: bool, dirty: bool) -> None:
        """A new anonymous page, exclusive: page_add_new_anon_rmap"""
        self.next_pfn += 1
        page = Page("anon", -1, self.next_pfn, bytearray(content), refcount=1)
        page.anon_exclusive = True
        self.map_page(vma, address, page, write, dirty)

    def unmap_page(self, vma: Vma, address: int, pte: Pte) -> None:
        """Clear a pte; page_remove_rmap and put_page if vm_normal_page knows of a page."""
        page = self.vm_normal_page(vma, address, pte)
        del self.ptes[vma.process, address]
        if page:
            self.count_rss(vma.process, page, -1)
            page.mapcount -= 1
            page.refcount -= 1
        elif pte.counted:
            self.leaked.append((vma.process, pte.frame))

    # ---------------------------------------------------------------- zap

    def zap_pte(self, vma: Vma, address: int, even_cows: bool = True) -> None:
        """zap_pte_range for one pte. A special pte is zapped for both values of even_cows."""
        pte = self.ptes.get((vma.process, address))
        if pte is None:
            return
        page = self.vm_normal_page(vma, address, pte)
        if page and page.anon and not even_cows:
            return  # should_zap_page
        if page and not page.anon and pte.dirty:
            page.dirty = True
        self.unmap_page(vma, address, pte)

    def zap_page_range(self, vma: Vma, start: int, end: int) -> None:
        for address in range(start, end):
            self.zap_pte(vma, address)

    def unmap_mapping_range(self, first: int, nr: int, even_cows: bool) -> None:
        """Ptes are found by their offset. A private remap_pfn_range is not found: its offset
        (vm_pgoff) is a frame number.
        """
        for vma in self.vmas:
            for address in range(vma.start, vma.end):
                if first <= vma.pgoff + (address - vma.start) < first + nr:
                    self.zap_pte(vma, address, even_cows)

    # ---------------------------------------------------------------- insertion

    def insert_pfn(self, vma: Vma, address: int, frame: Page, mkwrite: bool) -> str:
        pte = self.ptes.get((vma.process, address))
        if pte is None:
            write = self.vm_page_prot_writable(vma) or (mkwrite and "wr" in vma.flags)
            special = self.arch.pte_special
            self.ptes[vma.process, address] = Pte(frame, write, mkwrite, special, counted=False)
        elif mkwrite and pte.frame is frame:
            pte.dirty = True
            pte.write = pte.write or "wr" in vma.flags
        return NOPAGE

    def insert_page(self, vma: Vma, address: int, page: Page) -> str:
        """0 or an errno"""
        if (vma.process, address) in self.ptes:
            return "EBUSY"
        page.refcount += 1
        self.map_page(vma, address, page, self.vm_page_prot_writable(vma), dirty=False)
        return "0"

    def vmf_insert_mixed(self, vma: Vma, address: int, frame: Page, mkwrite: bool = False) -> str:
        if "mm" not in vma.flags and frame is not self.zero:  # vm_mixed_ok
            raise KernelBug
        if not self.arch.pte_special and frame.valid:
            self.insert_page(vma, address, frame)  # EBUSY is NOPAGE, too
            return NOPAGE
        return self.insert_pfn(vma, address, frame, mkwrite)

    def vmf_insert_pfn(self, vma: Vma, address: int, frame: Page) -> str:
        """`frame` is raw: what the kernel checks for pages of VM_MIXEDMAP is not needed."""
        if len(vma.flags & {"pf", "mm"}) != 1:
            raise KernelBug
        if "pf" in vma.flags and vma.cow:
            raise KernelBug
        return self.insert_pfn(vma, address, frame, mkwrite=False)

    def vm_insert_page(self, vma: Vma, address: int, page: Page, mmap_write_locked: bool) -> str:
        if "mm" not in vma.flags:
            if not mmap_write_locked or "pf" in vma.flags:
                raise KernelBug
            vma.flags.add("mm")
        return self.insert_page(vma, address, page)

    def remap_pfn_range(self, vma: Vma, address: int, raw: int, nr: int, write: bool) -> str:
        """0 or an errno; a failure zaps the range (6.1.111 and later)."""
        whole = address == vma.start and address + nr == vma.end
        if vma.cow:
            if not whole:
                self.zap_page_range(vma, address, address + nr)
                return "EINVAL"
            vma.pgoff = RAW_PFN + raw
        vma.flags |= {"io", "pf", "de", "dd"}
        if self.arch.pat and whole:
            vma.flags.add("PAT")  # track_pfn_remap
        for i in range(nr):
            if (vma.process, address + i) in self.ptes:
                raise KernelBug
            frame, special = self.raw_page(raw + i), self.arch.pte_special
            self.ptes[vma.process, address + i] = Pte(frame, write, False, special, counted=False)
        return "0"

    def do_insert(
        self, vma: Vma, address: int, index: int, letter: str, mmap_write_locked: bool
    ) -> tuple[str, str]:
        """What the driver does for a letter: (what ->fault returns, what the call returned)"""
        if letter == "I":
            error = self.vm_insert_page(vma, address, self.pages[index], mmap_write_locked)
            return (NOPAGE if error in ("0", "EBUSY") else SIGBUS), error
        if letter == "G":
            write = self.vm_page_prot_writable(vma)
            error = self.remap_pfn_range(vma, address, index, 1, write)
            return (NOPAGE if error == "0" else SIGBUS), error
        if letter == "F":
            code = self.vmf_insert_pfn(vma, address, self.raw[index])
        else:
            mixed = {"R": self.raw, "W": self.raw, "P": self.pages}
            frame = self.zero if letter == "Z" else mixed[letter][index]
            code = self.vmf_insert_mixed(vma, address, frame, mkwrite=letter == "W")
        return code, code

    # ---------------------------------------------------------------- faults

    def vm_ops_fault(self, vma: Vma, address: int) -> tuple[str, Page | None]:
        """->fault of the driver: (code, the page for V with a reference for the caller)"""
        self.counts["faults"] += 1
        index = vma.pgoff + (address - vma.start)
        if index >= NR_DEVICE_PAGES:
            return SIGBUS, None
        if self.plan[index] == "V":
            self.pages[index].refcount += 1
            return DONE, self.pages[index]
        code, _ = self.do_insert(vma, address, index, self.plan[index], mmap_write_locked=False)
        return code, None

    def mkwrite(self, hook: str) -> str:
        """->page_mkwrite or ->pfn_mkwrite, if there is one"""
        if self.hooks == "none":
            return DONE
        self.counts[hook] += 1
        return SIGBUS if self.hooks == "fail" else DONE

    def handle_mm_fault(self, vma: Vma, address: int, write: bool, unshare: bool = False) -> str:
        unshare = unshare and vma.cow  # sanitize_fault_flags
        pte = self.ptes.get((vma.process, address))
        if pte is None:
            return self.do_fault(vma, address, write)
        if (write or unshare) and not pte.write:
            return self.do_wp_page(vma, address, pte, unshare)
        pte.dirty = pte.dirty or write
        return DONE

    def do_fault(self, vma: Vma, address: int, write: bool) -> str:
        code, page = self.vm_ops_fault(vma, address)
        if page is None:
            return code
        if not write:  # do_read_fault
            self.map_page(vma, address, page, self.vm_page_prot_writable(vma), dirty=False)
        elif not vma.shared:  # do_cow_fault
            self.map_anon(vma, address, page.content, write="wr" in vma.flags, dirty=True)
            page.refcount -= 1
        else:  # do_shared_fault
            if self.mkwrite("page_mkwrite") == SIGBUS:
                page.refcount -= 1
                return SIGBUS
            self.map_page(vma, address, page, write=True, dirty=True)
            page.dirty = True  # fault_dirty_shared_page
        return DONE

    def do_wp_page(self, vma: Vma, address: int, pte: Pte, unshare: bool) -> str:
        page = self.vm_normal_page(vma, address, pte)
        if vma.shared:  # wp_page_shared, wp_pfn_shared
            code = self.mkwrite("page_mkwrite" if page else "pfn_mkwrite")
            if code == DONE:
                self.wp_page_reuse(vma, pte)
                if page:
                    page.dirty = True  # fault_dirty_shared_page
            return code
        if page and page.anon:
            if page.refcount == 1:
                page.anon_exclusive = True  # page_move_anon_rmap
            if page.anon_exclusive:
                if not unshare:
                    self.wp_page_reuse(vma, pte)
                return DONE
        self.wp_page_copy(vma, address, pte, unshare)
        return DONE

    def wp_page_reuse(self, vma: Vma, pte: Pte) -> None:
        pte.dirty = True
        pte.write = "wr" in vma.flags  # maybe_mkwrite: FOLL_FORCE leaves it read-only

    def wp_page_copy(self, vma: Vma, address: int, pte: Pte, unshare: bool) -> None:
        content = pte.frame.content
        page = self.vm_normal_page(vma, address, pte)
        if page is None and self.arch.user_copy_by_mmu and not vma.accessible:
            # Copied from the user's address, which cannot be read: __wp_page_copy_user
            content = bytearray(PAGE_BYTES)
        self.unmap_page(vma, address, pte)
        write = "wr" in vma.flags and not unshare
        self.map_anon(vma, address, content, write, dirty=not unshare)

    # ---------------------------------------------------------------- access by the CPU

    def access(self, process: int, address: int, write: bool) -> Page | str:
        """A load or a store by the process itself: the frame, or the signal."""
        for _ in range(4):
            vma = self.find_vma(process, address)
            if vma is None:
                return "SIGSEGV/1"
            if ("wr" if write else "rd") not in vma.flags:
                return "SIGSEGV/2"
            pte = self.ptes.get((process, address))
            if pte and (pte.write or not write):
                pte.dirty = pte.dirty or write
                return pte.frame
            if self.handle_mm_fault(vma, address, write) == SIGBUS:
                return "SIGBUS/2"
        raise AssertionError("the access faults for ever")

    def copy_from_user(self, process: int, address: int, nr_bytes: int) -> bytes | None:
        """None for EFAULT"""
        pte = self.ptes.get((process, address))
        if pte and not self.arch.user_copy_by_mmu:
            return bytes(pte.frame.content[:nr_bytes])  # maybe_map of arch/um
        frame = self.access(process, address, write=False)
        return None if isinstance(frame, str) else bytes(frame.content[:nr_bytes])

    def copy_to_user(self, process: int, address: int, data: bytes) -> bool:
        """False for EFAULT"""
        pte = self.ptes.get((process, address))
        if pte and pte.write and not self.arch.user_copy_by_mmu:
            frame: Page | str = pte.frame  # maybe_map of arch/um
        else:
            frame = self.access(process, address, write=True)
        if isinstance(frame, str):
            return False
        frame.content[: len(data)] = data
        return True

    # ---------------------------------------------------------------- get_user_pages

    def check_vma_flags(self, vma: Vma, flags: set[str]) -> bool:
        if vma.flags & {"io", "pf"}:
            return False
        if "write" in flags:
            return "wr" in vma.flags or ("force" in flags and vma.cow)
        return "rd" in vma.flags or "force" in flags

    def can_follow_write_pte(self, vma: Vma, page: Page | None, pte: Pte, flags: set[str]) -> bool:
        if pte.write:
            return True
        if "force" not in flags or not vma.cow or "wr" in vma.flags:
            return False
        return page is not None and page.anon and page.anon_exclusive

    def gup_must_unshare(self, page: Page, flags: set[str]) -> bool:
        return "pin" in flags and "write" not in flags and page.anon and not page.anon_exclusive

    def follow_page(self, vma: Vma, address: int, flags: set[str]) -> Page | str | None:
        """follow_page_pte: a page (with a reference, if one is asked for), None if a fault is
        needed, or an errno.
        """
        pte = self.ptes.get((vma.process, address))
        if pte is None:
            return None
        page = self.vm_normal_page(vma, address, pte)
        if "write" in flags and not self.can_follow_write_pte(vma, page, pte, flags):
            return None
        if page is None:
            if pte.frame is not self.zero:  # follow_pfn_pte
                pte.dirty = pte.dirty or {"touch", "write"} <= flags
                return "EEXIST"
            page = self.zero
        if not pte.write and self.gup_must_unshare(page, flags):
            return EMLINK
        page.refcount += PIN_BIAS if "pin" in flags else 1 if "get" in flags else 0
        if {"touch", "write"} <= flags and not pte.dirty:
            page.dirty = True
        return page

    def get_user_pages(
        self, process: int, start: int, nr: int, flags: set[str], pages: list[Page] | None
    ) -> int | str:
        """__get_user_pages: how many, or the errno of the first. Without `pages` it only faults
        them in, and steps over what has no page.
        """
        vma: Vma | None = None
        for i in range(nr):
            address = start + i
            if vma is None or address >= vma.end:
                vma = self.find_vma(process, address)
                if vma is None or not self.check_vma_flags(vma, flags):
                    return i or "EFAULT"
            page = self.faultin_and_follow(vma, address, flags)
            if page == "EFAULT":
                return i or page
            if pages is not None:
                if isinstance(page, str):
                    return i or page
                pages.append(page)
        return nr

    def faultin_and_follow(self, vma: Vma, address: int, flags: set[str]) -> Page | str:
        for _ in range(4):
            page = self.follow_page(vma, address, flags)
            if page is not None and page != EMLINK:
                return page
            if self.handle_mm_fault(vma, address, "write" in flags, page == EMLINK) == SIGBUS:
                return "EFAULT"
        raise AssertionError("get_user_pages faults for ever")

    def get_user_page(self, process: int, address: int, flags: set[str]) -> Page | str:
        """One page with a reference taken, or an errno"""
        pages: list[Page] = []
        result = self.get_user_pages(process, address, 1, flags, pages)
        return result if isinstance(result, str) else pages[0]

    def get_user_page_fast(self, process: int, address: int, write: bool) -> Page | str:
        """get_user_pages_fast with FOLL_GET: by the pte alone, else the slow way."""
        if self.arch.fast_gup:
            pte = self.ptes.get((process, address))
            vma = self.find_vma(process, address)
            protnone = vma is None or not vma.accessible
            if pte and not protnone and not pte.special and (pte.write or not write):
                pte.frame.refcount += 1
                return pte.frame
        flags = {"get", "touch"} | ({"write"} if write else set())
        return self.get_user_page(process, address, flags)

    def access_remote_vm(self, process: int, address: int, write: bytes | None) -> bool:
        """ptrace and /proc/PID/mem: whether it worked; reads, or writes these bytes."""
        flags = {"get", "force", "touch"} | ({"write"} if write else set())
        page = self.get_user_page(process, address, flags)
        if isinstance(page, str):
            return False
        if write:
            page.content[: len(write)] = write
            page.dirty = True
        page.refcount -= 1
        return True

    # ---------------------------------------------------------------- users of get_user_pages

    def op_gup(self, process: int, address: int, user: str) -> str:
        data = b""
        if user in WRITE_BACK:
            nr_bytes = WRITE_BACK[user]
            frame = self.access(process, address, write=False)
            data = b"A" * PAGE_BYTES if isinstance(frame, str) else bytes(frame.content)
            data = data[:nr_bytes]
        if user in ("process_vm_readv", "process_vm_writev"):
            return self.gup_process_vm(process, address, data)
        if user in ("proc_mem_read", "proc_mem_write"):
            write = b"Z" if user == "proc_mem_write" else None
            worked = self.access_remote_vm(process, address, write)
            return ("1" if write else "64") if worked else "EIO"
        if user in ("ptrace_peek", "ptrace_poke"):
            return "ok" if self.access_remote_vm(process, address, data or None) else "EIO"
        if user in ("odirect_write", "odirect_read"):
            return self.gup_odirect(process, address, data)
        if user == "vmsplice":
            page = self.get_user_page_fast(process, address, write=False)
            if isinstance(page, Page):
                page.refcount -= 1
            return page if isinstance(page, str) else "64"
        if user == "io_uring":
            return self.gup_io_uring(process, address)
        if user == "futex":
            return self.gup_futex(process, address)
        if user == "write_pipe":
            return "EFAULT" if self.copy_from_user(process, address, 64) is None else "64"
        if user == "read_pipe":
            return "64" if self.copy_to_user(process, address, data) else "EFAULT"
        raise BadScene(f"no such user of pages: {user}")

    def gup_process_vm(self, process: int, address: int, data: bytes) -> str:
        """process_vm_rw_single_vec: any error is EFAULT"""
        flags = {"pin", "touch"} | ({"write"} if data else set())
        page = self.get_user_page(process, address, flags)
        if isinstance(page, str):
            return "EFAULT"
        if data:
            page.content[: len(data)] = data
            page.dirty = True  # unpin_user_pages_dirty_lock
        page.refcount -= PIN_BIAS
        return "64"

    def gup_odirect(self, process: int, address: int, data: bytes) -> str:
        """bio_iov_iter_get_pages; a read from the disk writes to the page"""
        page = self.get_user_page_fast(process, address, write=bool(data))
        if isinstance(page, str):
            return page
        if data:
            page.content[:] = data
            page.dirty = True  # bio_release_pages
        page.refcount -= 1
        return "4096"

    def gup_io_uring(self, process: int, address: int) -> str:
        """io_pin_pages: pin_user_pages, without FOLL_TOUCH; then, no files"""
        page = self.get_user_page(process, address, {"pin", "write"})
        if isinstance(page, str):
            return page
        page.refcount -= PIN_BIAS
        return "EOPNOTSUPP"

    def gup_futex(self, process: int, address: int) -> str:
        """get_futex_key for FUTEX_WAKE, which is content with a page to read"""
        page = self.get_user_page_fast(process, address, write=True)
        read_only = page == "EFAULT"
        if read_only:
            page = self.get_user_page_fast(process, address, write=False)
        if isinstance(page, str):
            return page
        page.refcount -= 1
        if not page.anon or read_only:  # page->mapping NULL; or nobody could ever wake
            return "EFAULT"
        return "0"

    def op_hold(self, process: int, address: int) -> str:
        page = self.get_user_page_fast(process, address, write=False)
        if isinstance(page, str):
            return page
        self.held[process].append(page)
        return "64"

    def op_drop(self, process: int) -> str:
        for page in self.held[process]:
            page.refcount -= 1
        self.held[process] = []
        return "ok"

    # ---------------------------------------------------------------- system calls

    def op_map(
        self, process: int, area: str, prot: str, share: str, nr: int, offset: int = 0
    ) -> str:
        if prot not in PROTS or share not in ("shared", "private"):
            raise BadScene("no such mapping")
        if self.area_in_use(process, area):
            raise BadScene(f"area {area} is mapped")
        start = self.reserve(process, nr)
        vma = Vma(process, start, start + nr, offset, PROTS[prot] | {"mr", "mw", "me"})
        if share == "shared":
            vma.flags |= {"sh", "ms"}
        elif "wr" in vma.flags:
            vma.flags.add("ac")  # accountable_mapping
        self.vmas.append(vma)
        self.nr_maps += 1
        self.areas[process, area] = (start, nr)
        if self.vm == "remap":
            # ->mmap runs before vma_set_page_prot: these ptes do not wait for mkwrite
            self.remap_pfn_range(vma, start, offset, nr, vma.shared and "wr" in vma.flags)
        else:
            vma.flags.add("mm" if self.vm == "mixed" else "pf")
        return "ok"

    def area_in_use(self, process: int, area: str) -> bool:
        base, size = self.areas.get((process, area), (0, 0))
        return any(vma for _, _, vma in self.walk(process, base, base + size))

    def op_read(self, process: int, address: int, offset: int = 0) -> str:
        frame = self.access(process, address, write=False)
        return frame if isinstance(frame, str) else _show_byte(frame.content[offset])

    def op_tail(self, process: int, address: int) -> str:
        return self.op_read(process, address, 100)

    def op_write(self, process: int, address: int, char: str) -> str:
        frame = self.access(process, address, write=True)
        if isinstance(frame, str):
            return frame
        frame.content[0] = ord(char)
        return "ok"

    def op_munmap(self, process: int, start: int, nr: int) -> str:
        self.do_munmap(process, start, start + nr)
        return "ok"

    def op_mprotect(self, process: int, start: int, nr: int, prot: str) -> str:
        if prot not in PROTS:
            raise BadScene(f"no such protection: {prot}")
        for a, b, vma in self.walk(process, start, start + nr):
            if vma is None:
                return "ENOMEM"  # what is before the hole is done
            self.mprotect_fixup(vma, a, b, PROTS[prot])
        return "ok"

    def mprotect_fixup(self, vma: Vma, start: int, end: int, prot: set[str]) -> None:
        flags = vma.flags - {"rd", "wr", "ex"} | prot
        if flags == vma.flags:
            return
        if "wr" in flags and not vma.flags & {"ac", "wr", "sh"}:
            flags.add("ac")
        vma = self.isolate(vma, start, end)
        vma.flags = flags
        for address, pte in self.ptes_of(vma):  # change_pte_range
            pte.write = self.vm_page_prot_writable(vma)
            if not pte.write and "wr" in flags:
                pte.write = self.can_change_pte_writable(vma, address, pte)

    def can_change_pte_writable(self, vma: Vma, address: int, pte: Pte) -> bool:
        """6.1 wants a dirty pte of private mappings, too."""
        if not pte.dirty:
            return False
        if vma.shared:
            return True
        page = self.vm_normal_page(vma, address, pte)
        return page is not None and page.anon and page.anon_exclusive

    def op_mlock(self, process: int, start: int, nr: int) -> str:
        """A VM_SPECIAL vma is never locked nor split (mlock_fixup), but it is populated."""
        if self.has_hole(process, start, start + nr):
            return "ENOMEM"
        for a, b, vma in self.walk(process, start, start + nr):  # __mm_populate
            if vma and not vma.flags & {"io", "pf"} and not self.populate_vma_page_range(vma, a, b):
                return "ENOMEM"  # __mlock_posix_error_return of EFAULT
        return "ok"

    def populate_vma_page_range(self, vma: Vma, start: int, end: int) -> bool:
        """Called again after a partial result, so that a page that fails is tried twice."""
        flags = {"touch"}
        if "wr" in vma.flags and not vma.shared:
            flags.add("write")
        if vma.accessible:
            flags.add("force")
        return self.faultin_page_range(vma, start, end, flags) is None

    def faultin_page_range(self, vma: Vma, start: int, end: int, flags: set[str]) -> str | None:
        """The loops of __mm_populate and madvise_populate: an errno, or None"""
        while start < end:
            done = self.get_user_pages(vma.process, start, end - start, flags, None)
            if isinstance(done, str):
                return done
            start += done
        return None

    def op_munlock(self, process: int, start: int, nr: int) -> str:
        return "ENOMEM" if self.has_hole(process, start, start + nr) else "ok"

    def op_madvise(self, process: int, start: int, nr: int, advice: str) -> str:
        """madvise_walk_vmas: the first error stops it; holes are ENOMEM, at the end."""
        if advice == "MERGEABLE" and not self.arch.ksm:
            return "EINVAL"
        result = "ok"
        for a, b, vma in self.walk(process, start, start + nr):
            error = self.madvise_vma(vma, a, b, advice) if vma else None
            if error:
                return error
            result = result if vma else "ENOMEM"
        return result

    def madvise_vma(self, vma: Vma, start: int, end: int, advice: str) -> str | None:
        """One vma: an errno, or None"""
        if advice in ("POPULATE_READ", "POPULATE_WRITE"):
            flags = {"touch", "write"} if advice == "POPULATE_WRITE" else {"touch"}
            if not self.check_vma_flags(vma, flags):
                return "EINVAL"  # faultin_vma_page_range
            return self.faultin_page_range(vma, start, end, flags)
        if advice in ("DONTNEED", "COLD", "PAGEOUT") and "pf" in vma.flags:
            return "EINVAL"
        if advice == "DONTNEED":
            self.zap_page_range(vma, start, end)
        if advice in ("FREE", "WIPEONFORK"):
            return "EINVAL"  # only for anonymous memory
        if advice == "REMOVE":
            # vfs_fallocate does not know character devices
            return "ENODEV" if {"mw", "sh"} <= vma.flags else "EACCES"
        if advice == "DOFORK" and "io" in vma.flags:
            return "EINVAL"
        if advice == "DODUMP" and vma.special:
            return "EINVAL"
        if advice in ADVICE_FLAGS:
            clear, add = ADVICE_FLAGS[advice]
            flags = vma.flags - clear | add
            if flags != vma.flags:
                self.isolate(vma, start, end).flags = flags
        elif advice not in ("DONTNEED", "COLD", "PAGEOUT", "WILLNEED", "MERGEABLE", "KEEPONFORK"):
            raise BadScene(f"no such advice: {advice}")
        return None

    def op_msync(self, process: int, start: int, nr: int) -> str:
        """The device has no ->fsync, which only shared mappings find out."""
        result = "ok"
        for _, _, vma in self.walk(process, start, start + nr):
            if vma and vma.shared:
                return "EINVAL"
            result = result if vma else "ENOMEM"
        return result

    def op_mincore(self, process: int, start: int, nr: int) -> str:
        """Page walks take VM_PFNMAP for a hole; nothing is in the page cache."""
        if self.has_hole(process, start, start + nr):
            return "ENOMEM"
        present = [(process, a) in self.ptes for a in range(start, start + nr)]
        vmas = [self.find_vma(process, a) for a in range(start, start + nr)]
        return "".join(
            "1" if p and v and "pf" not in v.flags else "0"
            for p, v in zip(present, vmas, strict=True)
        )

    # ---------------------------------------------------------------- mremap

    def op_mremap(
        self, process: int, area: str, index: int, nr: int, new_nr: int, how: str, name: str = ""
    ) -> str:
        if how not in MREMAPS or (nr < 1 and how != "dup"):
            raise BadScene("no such mremap")
        if how in ("grow", "shrink") and (new_nr <= nr if how == "grow" else new_nr >= nr):
            raise BadScene(f"{nr} to {new_nr} pages is no {how}")
        old = 0 if how == "dup" else nr
        start = self.address(process, area, index, max(old, 1))
        if how == "shrink":
            return self.mremap_shrink(process, start, nr, new_nr)
        if not name:
            raise BadScene("the new area has no name")
        if self.area_in_use(process, name) and not (name == area and how in ("move", "grow")):
            raise BadScene(f"area {name} is mapped")
        result = self.mremap_to(process, start, old, new_nr, how)
        if isinstance(result, str):
            return result
        self.areas[process, name] = (result, new_nr)
        return "ok"

    def mremap_shrink(self, process: int, start: int, nr: int, new_nr: int) -> str:
        if self.find_vma(process, start) is None:
            return "EFAULT"
        self.do_munmap(process, start + new_nr, start + nr)
        return "ok"

    def mremap_to(self, process: int, start: int, old: int, new: int, how: str) -> int | str:
        """The new address, or an errno: the system call, mremap_to and vma_to_resize"""
        vma = self.find_vma(process, start)
        if how == "dontunmap" and old != new:
            return "EINVAL"
        if vma is None:
            return "EFAULT"
        if how == "move" and old > new:
            self.do_munmap(process, start + new, start + old)  # before any check
            old = new
        if old == 0 and not vma.shared:
            return "EINVAL"
        if how == "dontunmap" and vma.flags & {"de", "pf"}:
            return "EINVAL"
        if old > vma.end - start:
            return "EFAULT"
        if new != old and vma.flags & {"de", "pf"}:
            return "EFAULT"
        if how == "grow" and old == vma.end - start and self.is_free(process, vma.end, start + new):
            vma.end = start + new  # vma_expandable: what was behind it has gone
            return start
        return self.move_vma(vma, start, old, new, dontunmap=how == "dontunmap")

    def move_vma(self, vma: Vma, start: int, old: int, new: int, dontunmap: bool) -> int:
        process = vma.process
        address = self.reserve(process, new)
        moved = replace(vma, start=address, end=address + new, flags=set(vma.flags))
        moved.pgoff = vma.pgoff + (start - vma.start)
        self.vmas.append(moved)
        self.counts["open"] += 1  # copy_vma
        for i in range(old):
            if (process, start + i) in self.ptes:
                self.ptes[process, address + i] = self.ptes.pop((process, start + i))
        vma.flags.discard("PAT")  # untrack_pfn_moved
        if not dontunmap:
            self.do_munmap(process, start, start + old)
        return address

    # ---------------------------------------------------------------- fork and exit

    def op_fork(self, process: int, child: int) -> str:
        if child in self.held:
            raise BadScene(f"process {child} exists")
        self.held[child] = []
        self.rss[child] = {"file": 0, "anon": 0}
        self.next_address[child] = self.next_address[process]
        self.guards[child] = list(self.guards[process])
        names = {name: area for (p, name), area in self.areas.items() if p == process}
        self.areas |= {(child, name): area for name, area in names.items()}
        for vma in self.vmas_of(process):
            if "dc" in vma.flags:
                continue
            copy = replace(vma, process=child, flags=set(vma.flags))
            self.vmas.append(copy)
            worked = self.copy_page_range(vma, copy)
            self.counts["open"] += 1
            if not worked:
                self.op_exit(child)
                return "ENOMEM"
        return "ok"

    def copy_page_range(self, vma: Vma, copy: Vma) -> bool:
        """VM_PFNMAP and VM_MIXEDMAP are always copied. False if the whole fork has to fail."""
        if "PAT" in vma.flags:  # track_pfn_copy: the first pte has to tell what is mapped
            first = self.ptes.get((vma.process, vma.start))
            if first is None or self.vm_normal_page(vma, vma.start, first):
                return False
        for address, pte in self.ptes_of(vma):  # copy_present_pte
            page = self.vm_normal_page(vma, address, pte)
            if page:
                page.refcount += 1
                page.mapcount += 1
                page.anon_exclusive = False
                self.count_rss(copy.process, page, 1)
            if vma.cow:
                pte.write = False
            dirty = pte.dirty and not vma.shared
            self.ptes[copy.process, address] = replace(pte, dirty=dirty, counted=page is not None)
        return True

    def op_exit(self, process: int) -> str:
        for vma in self.vmas_of(process):
            self.zap_page_range(vma, vma.start, vma.end)
            self.remove_vma(vma)
        self.op_drop(process)
        self.leaked = [(-1 if p == process else p, page) for p, page in self.leaked]
        del self.held[process], self.rss[process]
        del self.next_address[process], self.guards[process]
        self.areas = {key: area for key, area in self.areas.items() if key[0] != process}
        return "ok"

    # ---------------------------------------------------------------- the driver's own

    def op_insert(self, process: int, address: int, index: int, letter: str) -> str:
        """With the mmap lock write-held"""
        if letter not in LETTERS - {"V"}:
            raise BadScene(f"{letter} is no letter for an insertion")
        self.device_page(index)
        vma = self.find_vma(process, address)
        if vma is None:
            return "ENOENT"
        return self.do_insert(vma, address, index, letter, mmap_write_locked=True)[1]

    def op_migrate(self, index: int, letter: str) -> str:
        if letter not in LETTERS:
            raise BadScene(f"no such letter: {letter}")
        page, raw = self.device_page(index), self.raw[index]
        source = raw if self.plan[index] in "RFWG" else page
        target = raw if letter in "RFWG" else page
        target.content[:] = source.content
        self.plan[index] = letter
        self.unmap_mapping_range(index, 1, even_cows=False)
        return "ok"

    # ---------------------------------------------------------------- what can be seen

    def op_state(self, process: int, address: int) -> str:
        vma = self.find_vma(process, address)
        if vma is None:
            return "pm=none pte=ERR2"
        pte = self.ptes.get((process, address))
        if pte is None:
            return "pm=none pte=none"
        page, frame = self.vm_normal_page(vma, address, pte), pte.frame
        bits = ("W" if pte.write else "r") + ("D" if pte.dirty else "")
        facts = [
            f"pm={self.pagemap(vma, page)}",
            f"pte={bits}{'|SPECIAL' if pte.special else ''}",
            f"cls={frame.kind}" + (f"+{frame.index}" if frame.index >= 0 else ""),
            f"valid={int(frame.valid)}",
            f"vm_normal_page={'page' if page else 'NULL'}",
        ]
        if frame.anon:
            facts += [f"mapc={frame.mapcount}", "PageAnon"]
        elif frame.valid:
            facts += [f"ref={frame.refcount}", f"mapc={frame.mapcount}"]
        return " ".join(facts)

    def pagemap(self, vma: Vma, page: Page | None) -> str:
        """The bits of /proc/PID/pagemap, to which VM_PFNMAP is a hole."""
        if "pf" in vma.flags:
            return "none"
        file = ",file" if page and not page.anon else ""
        exclusive = ",excl" if page and page.mapcount == 1 else ""
        return f"present{file}{exclusive}"

    def op_smaps(self, process: int, address: int) -> str:
        vma = self.find_vma(process, address)
        if vma is None:
            return "VmFlags=[]"
        kb = dict.fromkeys(["Rss", "Pss", "Shared_Clean", "Shared_Dirty"], 0)
        kb |= dict.fromkeys(["Private_Clean", "Private_Dirty", "Anonymous", "Locked"], 0)
        pss = 0  # in 1/4096 of a byte
        for a, pte in self.ptes_of(vma):
            page = self.vm_normal_page(vma, a, pte)
            if page is None or "pf" in vma.flags:
                continue
            private = page.refcount == 1 or page.mapcount < 2
            dirty = pte.dirty or page.dirty
            kb[f"{'Private' if private else 'Shared'}_{'Dirty' if dirty else 'Clean'}"] += 4
            kb["Rss"] += 4
            kb["Anonymous"] += 4 if page.anon else 0
            pss += (PAGE_BYTES << 12) // (1 if private else page.mapcount)
        kb["Pss"] = pss >> 22
        perm = "".join(c if f in vma.flags else "-" for f, c in (("rd", "r"), ("wr", "w")))
        perm += ("x" if "ex" in vma.flags else "-") + ("s" if vma.shared else "p")
        values = " ".join(f"{name}={value}" for name, value in kb.items())
        flags = "".join(f"{f} " for f in VM_FLAGS if f in vma.flags)
        return f"perm={perm} size={4 * (vma.end - vma.start)} {values} VmFlags=[{flags}]"

    # ---------------------------------------------------------------- invariants

    def check_invariants(self) -> None:
        """AssertionError unless all is accounted for: each reference, mapping, counter, vma."""
        self._check_vmas()
        self._check_ptes()
        self._check_counts()

    def _check_vmas(self) -> None:
        expected = self.nr_maps + self.counts["open"] - self.counts["close"]
        assert len(self.vmas) == expected, "a vma without its ->open, or ->close"
        assert {v.process for v in self.vmas} <= set(self.held), "a vma without process"
        for process in self.held:
            vmas = self.vmas_of(process)
            assert all(v.start < v.end for v in vmas), "an empty vma"
            assert all(v.end <= w.start for v, w in pairwise(vmas)), "vmas overlap"

    def _check_ptes(self) -> None:
        for (process, address), pte in self.ptes.items():
            vma = self.find_vma(process, address)
            assert vma, f"pte of process {process} at {address:#x} in no vma"
            frame, page = pte.frame, self.vm_normal_page(vma, address, pte)
            assert pte.special <= self.arch.pte_special, "a special bit that does not exist"
            assert frame.valid or not pte.counted, f"a reference on raw page {frame.index}"
            assert page is None or pte.counted, f"{frame.kind} page mapped without reference"
            assert "wr" in vma.flags or not pte.write, "a writable pte in a read-only vma"
            if frame.anon:
                assert vma.cow, "an anonymous page in a shared mapping"
                assert page is frame, "an anonymous page that is not normal"
                assert frame.anon_exclusive <= (frame.mapcount == 1), "exclusive, mapped twice"
                assert pte.write <= frame.anon_exclusive, "writable, and not exclusive"

    def _check_counts(self) -> None:
        rss = {process: {"file": 0, "anon": 0} for process in self.rss}
        mapped: dict[Page, int] = {}
        counted = [(process, pte.frame) for (process, _), pte in self.ptes.items() if pte.counted]
        for process, page in counted + self.leaked:
            mapped[page] = mapped.get(page, 0) + 1
            if process in rss:
                rss[process]["anon" if page.anon else "file"] += 1
        assert rss == self.rss, f"rss is {self.rss}, the ptes say {rss}"
        held = [page for pages in self.held.values() for page in pages]
        for page in {*mapped, *held, *self.pages, self.zero, *self.raw.values()}:
            where = f"{page.kind}+{page.index}"
            assert page.mapcount == mapped.get(page, 0), f"{where}: mapcount {page.mapcount}"
            own = 0 if page.kind in ("raw", "anon") else 1
            references = own + page.mapcount + sum(p is page for p in held)
            assert page.refcount == references, f"{where}: {page.refcount}, not {references}"


def _page(kind: str, index: int, pfn: int, byte: int, refcount: int) -> Page:
    return Page(kind, index, pfn, bytearray([byte]) * PAGE_BYTES, refcount)


def _show_byte(byte: int) -> str:
    return f"'{chr(byte)}'" if 32 < byte < 127 else f"0x{byte:02x}"


def _parse_header(header: str) -> tuple[list[str], str, str]:
    """(plan of 16 letters, vm, hooks)"""
    words = header.split()
    options = dict(word.partition("=")[::2] for word in words[1:])
    plan, vm, hooks = (options.get(key, "") for key in ("plan", "vm", "hooks"))
    good = words[:1] == ["device"] and len(words) == 4 and plan and set(plan) <= LETTERS
    if not good or vm not in ("mixed", "pfn", "remap") or hooks not in ("full", "none", "fail"):
        raise BadScene(f"no header: {header!r}")
    return [plan[i % len(plan)] for i in range(NR_DEVICE_PAGES)], vm, hooks


def _arguments(words: list[str], operations: dict[str, str]) -> tuple[str, list[Any]]:
    """(verb, arguments), numbers as int"""
    if not words or words[0] not in operations:
        raise BadScene("no such operation")
    verb, args = words[0], words[1:]
    needed, _, optional = operations[verb].partition("?")
    kinds = needed + optional
    if not len(needed) <= len(args) <= len(kinds):
        raise BadScene(f"{verb} takes {len(needed)} to {len(kinds)} words")
    typed: list[Any] = []
    for arg, kind in zip(args, kinds, strict=False):
        bad = {"A": not arg.isupper(), "i": not arg.isdigit(), "n": not arg.isdigit(), "w": False}
        if bad[kind] or (kind == "n" and int(arg) == 0):
            raise BadScene(f"{arg!r} is not what {verb} takes there")
        typed.append(int(arg) if kind in "in" else arg)
    return verb, typed
