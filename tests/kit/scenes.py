"""hypothesis strategies for scenes: random operations on processes and areas that exist.

    @given(scenes())
    def test_both_say_the_same(scene):
        header, *ops = scene.splitlines()
        ...

A scene is text in the language of `tests.kit.reference`. It is for every player, a live kernel
among them, and so keeps clear of

- what BUGs: vmf_insert_mixed without VM_MIXEDMAP, vmf_insert_pfn in a private VM_PFNMAP or where
  both flags are set, vm_insert_page in VM_PFNMAP, remap_pfn_range over a present pte
- what breaks the kernel without a BUG: the zero page in a mapping that could write to it; a page
  with references in a shared VM_PFNMAP without special bit (it is never put); remap_pfn_range in
  a private vma of one page (its offset changes while it is in the tree of the file)
- what depends on the player: ptrace that copies a frame without page (it copies what the tracer
  has at that address); holes, once mremap has chosen an address by itself (it may be there)

What is open to choice goes by a `Reference` that plays along. At the end the scene asks for all
that can be seen: each pte, each vma, each page of the device, the counters, then the bytes.
"""

from hypothesis import strategies as st

from tests.kit.reference import ADVICE_FLAGS, MREMAPS, NR_DEVICE_PAGES, PROTS, Reference, Vma

__all__ = ["GUP_USERS", "scenes"]

AREAS = "ABCDEF"
MAX_PROCESSES = 4
MAX_HELD = 6
MAX_PAGES = 8

GUP_USERS = [
    "process_vm_readv",
    "process_vm_writev",
    "proc_mem_read",
    "proc_mem_write",
    "ptrace_peek",
    "ptrace_poke",
    "vmsplice",
    "odirect_write",
    "odirect_read",
    "io_uring",
    "futex",
    "write_pipe",
    "read_pipe",
]

ADVICES = [
    *ADVICE_FLAGS,
    *("WILLNEED", "COLD", "PAGEOUT", "FREE", "REMOVE", "DONTNEED", "WIPEONFORK", "KEEPONFORK"),
    *("MERGEABLE", "POPULATE_READ", "POPULATE_WRITE"),
]

KINDS = [
    *("map", "map", "fork", "fork", "exit", "munmap", "mremap"),
    *("read", "read", "tail", "write", "write", "write", "gup", "gup", "gup", "hold", "drop"),
    *("mprotect", "mprotect", "madvise", "madvise", "mlock", "munlock", "msync", "mincore"),
    *("insert", "zap", "zap", "migrate", "state", "smaps", "page", "count"),
]
"""What an operation may be; what is there twice is twice as frequent."""

PROFILES: list[tuple[str, str, tuple[str, ...]]] = [
    ("mixed", "RPV", ("shared", "private")),
    ("mixed", "RV", ("private",)),
    ("mixed", "RWPIVF", ("shared", "private")),
    ("mixed", "RWPIVZF", ("shared", "private")),
    ("mixed", "RWPIVG", ("shared",)),
    ("pfn", "FG", ("shared",)),
    ("remap", "FG", ("shared", "private")),
]
"""(vm, letters, kinds of mappings) that go together."""


@st.composite
def scenes(
    draw: st.DrawFn,
    *,
    arch: str = "um-special",
    max_ops: int = 40,
    vms: tuple[str, ...] = ("mixed", "pfn", "remap"),
    with_rss: bool = False,
    without_users: tuple[str, ...] = (),
) -> str:
    """A scene of a header, up to `max_ops` operations, and what asks for the outcome.

    `arch` matters for x86, where a fork may fail. `with_rss` asks for mm counters, which a live
    kernel does not tell. `without_users` leaves users of pages out.
    """
    writer = _Writer(draw, draw(st.sampled_from([p for p in PROFILES if p[0] in vms])), arch)
    writer.gup_users = [user for user in GUP_USERS if user not in without_users]
    writer.write_map()
    kinds = st.sampled_from(KINDS)
    few = st.lists(kinds, max_size=max_ops)  # to shrink to; on its own mostly a handful
    many = st.lists(kinds, min_size=max_ops // 2, max_size=max_ops)
    for kind in draw(few | many | many):
        getattr(writer, f"write_{kind}")()
    writer.write_outcome(with_rss)
    return "".join(f"{line}\n" for line in writer.lines)


class _Writer:
    """Appends lines, each of which is played on the reference at once."""

    def __init__(self, draw: st.DrawFn, profile: tuple[str, str, tuple[str, ...]], arch: str):
        self.draw = draw
        vm, self.letters, self.shares = profile
        plan = "".join(draw(st.lists(st.sampled_from(self.letters), min_size=1, max_size=8)))
        hooks = draw(st.sampled_from(["full", "full", "none", "fail"]))
        header = f"device plan={plan} vm={vm} hooks={hooks}"
        self.reference = Reference(header, arch)
        self.lines = [header]
        self.vm = vm
        self.with_holes = draw(st.booleans())
        self.placed: set[tuple[int, str]] = set()
        self.gup_users = GUP_USERS

    # ------------------------------------------------------------ choices

    def play(self, op: str) -> str:
        self.lines.append(op)
        return self.reference.play(op)

    def choose(self, values: list) -> object:
        return self.draw(st.sampled_from(values))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def process(self) -> int:
        return self.choose(sorted(self.reference.held))

    def areas(self) -> list[tuple[int, str]]:
        """(process, area) of areas that have a mapped page"""
        return [key for key in sorted(self.reference.areas) if self.reference.area_in_use(*key)]

    def vma(self, process: int, area: str, index: int) -> Vma | None:
        base, _ = self.reference.areas[process, area]
        return self.reference.find_vma(process, base + index)

    def mapped(self, process: int, area: str) -> list[int]:
        size = self.reference.areas[process, area][1]
        return [i for i in range(size) if self.vma(process, area, i)]

    def page(self) -> tuple[int, str, int] | None:
        """A page of an area, mostly a mapped one"""
        areas = self.areas()
        if not areas:
            return None
        process, area = self.choose(areas)
        if self.with_holes and self.number(0, 15) == 15:
            return process, area, self.number(0, self.reference.areas[process, area][1] - 1)
        return process, area, self.choose(self.mapped(process, area))

    def range(self) -> tuple[int, str, int, int] | None:
        """A range of an area, without holes unless they are allowed: (process, area, from, nr)"""
        page = self.page()
        if page is None:
            return None
        process, area, first = page
        size = self.reference.areas[process, area][1]
        end = size
        if not self.with_holes:
            holes = [i for i in range(first, size) if not self.vma(process, area, i)]
            end = min([*holes, size])
        return process, area, first, self.number(1, end - first)

    def on_page(self, form: str) -> None:
        page = self.page()
        if page:
            self.play(form.format(*page))

    def on_range(self, form: str) -> None:
        pages = self.range()
        if pages:
            self.play(form.format(*pages))

    def prot(self, share: str) -> str:
        """The zero page must not become writable."""
        allowed = set(PROTS) - ({"rw"} if share == "shared" and "Z" in self.letters else set())
        return self.choose(["r", *sorted(allowed & {"rw"}) * 4, *sorted(allowed)])

    # ------------------------------------------------------------ operations

    def write_map(self) -> None:
        process = self.process()
        free = [a for a in AREAS if not self.reference.area_in_use(process, a)]
        if not free:
            return
        nr = self.number(1, MAX_PAGES)
        behind = 0 if self.vm == "remap" else 2  # pages behind the end of the device: SIGBUS
        offset = self.choose([0, 0, 0, self.number(0, NR_DEVICE_PAGES + behind - nr)])
        share = self.choose(list(self.shares))
        self.placed.discard((process, free[0]))
        self.play(f"{process} map {free[0]} {self.prot(share)} {share} {nr} {offset}")

    def write_read(self) -> None:
        self.on_page("{} read {} {}")

    def write_tail(self) -> None:
        self.on_page("{} tail {} {}")

    def write_write(self) -> None:
        self.on_page("{} write {} {} " + self.choose(list("QXYZ01")))

    def write_state(self) -> None:
        self.on_page("{} state {} {}")

    def write_smaps(self) -> None:
        page = self.page()
        if page and self.vma(*page):
            self.play("{} smaps {} {}".format(*page))

    def write_fork(self) -> None:
        living = self.reference.held
        if len(living) < MAX_PROCESSES:
            parent = self.process()
            child = min(set(range(MAX_PROCESSES)) - set(living))
            self.play(f"{parent} fork {child}")
            self.placed |= {(child, area) for p, area in self.placed if p == parent}

    def write_exit(self) -> None:
        children = sorted(set(self.reference.held) - {0})
        if children:
            process = self.choose(children)
            self.placed = {key for key in self.placed if key[0] != process}
            self.play(f"{process} exit")

    def write_munmap(self) -> None:
        self.on_range("{} munmap {} {} {}")

    def write_mlock(self) -> None:
        self.on_range("{} mlock {} {} {}")

    def write_munlock(self) -> None:
        self.on_range("{} munlock {} {} {}")

    def write_msync(self) -> None:
        self.on_range("{} msync {} {} {}")

    def write_mincore(self) -> None:
        self.on_range("{} mincore {} {} {}")

    def write_madvise(self) -> None:
        self.on_range("{} madvise {} {} {} " + self.choose(ADVICES))

    def write_mprotect(self) -> None:
        share = "shared" if "shared" in self.shares else "private"
        self.on_range("{} mprotect {} {} {} " + self.prot(share))

    def write_mremap(self) -> None:
        pages = self.range()
        if pages is None:
            return
        process, area, first, nr = pages
        how = self.choose(["move", "shrink"] if self.with_holes else list(MREMAPS))
        if how == "grow" and (process, area) in self.placed:
            return  # what is behind it in memory, nobody knows
        free = [a for a in AREAS if not self.reference.area_in_use(process, a)]
        names = [area, *free[:1]] if how in ("move", "grow") else free[:1]
        new = {"shrink": nr - 1, "dontunmap": nr, "grow": nr + self.number(1, 4)}.get(how)
        new = self.number(1, MAX_PAGES) if new is None else new
        if how == "shrink":
            if new > 0:
                self.play(f"{process} mremap {area} {first} {nr} {self.number(1, new)} shrink")
        elif names:
            name = self.choose(names)
            old = 0 if how == "dup" else nr
            answer = self.play(f"{process} mremap {area} {first} {old} {new} {how} {name}")
            if answer == "ok":
                update = self.placed.discard if how == "move" else self.placed.add
                update((process, name))

    def write_gup(self) -> None:
        page, user = self.page(), self.choose(self.gup_users)
        if page and not (user == "ptrace_poke" and self.copies_of_the_tracer(*page)):
            self.play("{0} gup {3} {1} {2}".format(*page, user))

    def copies_of_the_tracer(self, process: int, area: str, index: int) -> bool:
        vma = self.vma(process, area, index)
        pte = self.reference.ptes.get((process, self.reference.areas[process, area][0] + index))
        return vma is not None and not vma.shared and not (pte and pte.frame.anon)

    def write_hold(self) -> None:
        page = self.page()
        if page and len(self.reference.held[page[0]]) < MAX_HELD:
            self.play("{} hold {} {}".format(*page))

    def write_drop(self) -> None:
        self.play(f"{self.process()} drop")

    def write_insert(self) -> None:
        page = self.page()
        vma = self.vma(*page) if page else None
        if page is None or vma is None:
            return
        letters = set(self.letters) - {"V"}
        if not vma.shared:
            letters -= {"G"} if self.vm == "mixed" else {"F", "G"}
        if (page[0], self.reference.areas[page[:2]][0] + page[2]) in self.reference.ptes:
            letters -= {"G"}
        if letters:
            index = self.choose([page[2], self.number(0, NR_DEVICE_PAGES - 1)])
            letter = self.choose(sorted(letters))
            self.play("{} insert {} {} ".format(*page) + f"{index % NR_DEVICE_PAGES} {letter}")

    def write_zap(self) -> None:
        first = self.number(0, NR_DEVICE_PAGES - 1)
        nr = self.number(1, NR_DEVICE_PAGES - first)
        self.play(f"zap {first} {nr} {self.number(0, 1)}")

    def write_migrate(self) -> None:
        index, letter = self.number(0, NR_DEVICE_PAGES - 1), self.choose(list(self.letters))
        self.play(f"migrate {index} {letter}")

    def write_page(self) -> None:
        self.play(f"page {self.number(0, NR_DEVICE_PAGES - 1)}")

    def write_count(self) -> None:
        self.play("count")

    # ------------------------------------------------------------ the outcome

    def write_outcome(self, with_rss: bool) -> None:
        pages = [(p, a, i) for p, a in self.areas() for i in self.mapped(p, a)]
        for page in pages:
            self.play("{} state {} {}".format(*page))
        seen: list[Vma] = []
        for page in pages:
            vma = self.vma(*page)
            if vma not in seen:
                seen.append(vma)
                self.play("{} smaps {} {}".format(*page))
        for index in range(NR_DEVICE_PAGES):
            self.play(f"page {index}")
        self.play("count")
        if with_rss:
            for process in sorted(self.reference.held):
                self.play(f"{process} rss")
        for page in pages:
            if "rd" in self.vma(*page).flags:
                self.play("{} read {} {}".format(*page))
                self.play("{} tail {} {}".format(*page))
