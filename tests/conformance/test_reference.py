"""The slow reference of `tests/kit/reference.py` says what a real Linux 6.1 said.

Each scenario of the probe is written as a scene. A line `step: text` makes one line of the golden;
`[op]` in it is the answer of an operation, and

    <op>      the answer, with 0 for ok       (what a system call returned)
    {op}      the answer, with 1 for a count  (the probe moved one byte there)

Other lines are played for what they do. `if count:` and `if ok:` before a line: only if the answer
before it was a number, or no error. Between `fork 1` and `exit` of process 1, nothing is played if
fork failed. `USERS r` stands for all users of get_user_pages of page 0 of A that read, `USERS rw`
for those that write, too; a word behind it is put before the steps.

The pages of the device stay dirty from scenario to scenario, as nobody ever cleans them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given

from tests.kit.reference import Reference
from tests.kit.scenes import scenes

GOLDEN = Path(__file__).parent / "golden"

TARGETS = {
    "mixR": "plan=R vm=mixed",
    "mixP": "plan=P vm=mixed",
    "mixV": "plan=V vm=mixed",
    "mixI": "plan=I vm=mixed",
    "pfnremap": "plan=G vm=remap",
}
"""In the order in which they were played, in one boot."""

KERNELS = [
    ("um-special", "linux-6.1-um-ptespecial.txt", list(TARGETS)),
    ("um", "linux-6.1-um-pfnvalid.txt", list(TARGETS)),
    ("x86", "linux-6.1-x86-pfnremap.txt", ["pfnremap"]),
]

UNSPOKEN = {
    "write_shared_first|file_byte": "read(2) of the device",
    "munmap|kcount_mapped": "kpagecount",
    "munmap|kcount_unmapped": "kpagecount",
    "mlockall_future|mlockall": "mlockall",
    "madvise|priv_COLLAPSE": "huge pages",
    "madvise|shared_COLLAPSE": "huge pages",
    "uffd|uffd": "userfaultfd",
    "uffd|register_missing": "userfaultfd",
    "uffd|register_wp": "userfaultfd",
    "clear_refs|clear1": "accessed bits",
    "clear_refs|clear4": "soft-dirty bits",
    "reinsert|outside": "an address behind the area",
}
"""Lines that the scene language cannot express, and what it would need."""

MIXED_ONLY = {"reinsert", "insert_over_cow", "migrate"}

SCENES = """
== read_shared_ro
0 map A r shared 8
vma_before: [0 smaps A 0]
p0_before: [0 state A 0]
read: p0=[0 read A 0] p1=[0 read A 1]
p0: [0 state A 0]
p1: [0 state A 1]
vma: [0 smaps A 0]
cnt: [count]
pg0: pg+0 [page 0]

== read_private
0 map A rw private 8
read: p0=[0 read A 0]
p0: [0 state A 0]
vma: [0 smaps A 0]
cnt: [count]

== double_fault
0 map A r shared 8
0 read A 0
0 read A 0
cnt: [count]

== write_shared_first
0 map A rw shared 8
write: p0=[0 write A 0 x]
p0: [0 state A 0]
vma: [0 smaps A 0]
cnt: [count]

== read_then_write_shared
0 map A rw shared 8
read: p0=[0 read A 0]
p0_r: [0 state A 0]
write: p0=[0 write A 0 y]
p0_w: [0 state A 0]
cnt: [count]

== cow
0 map A rw private 8
read: p0=[0 read A 0]
p0_r: [0 state A 0]
write: p0=[0 write A 0 Q] now=[0 read A 0] tail=[0 tail A 0]
p0_w: [0 state A 0]
vma: [0 smaps A 0]
cnt: [count]
pg0: pg+0 [page 0]
0 map B r shared 8
other_view: p0=[0 read B 0]

== write_private_first
0 map A rw private 8
write: p0=[0 write A 0 Q] tail=[0 tail A 0]
p0: [0 state A 0]
cnt: [count]
pg0: pg+0 [page 0]

== fork_shared
0 map A r shared 8
0 read A 0
parent_p0: [0 state A 0]
0 fork 1
child_p0_untouched: [1 state A 0]
child_p1_unfaulted: [1 state A 1]
child_read: p0=[1 read A 0]
child_p0_r: [1 state A 0]
child_pg0: pg+0 [page 0]
child_cnt: [count]
1 exit
parent_after: [0 state A 0]
pg0_after: pg+0 [page 0]
cnt: [count]

== fork_shared_rw
0 map A rw shared 8
write: [0 write A 0 A]
parent_p0: [0 state A 0]
0 fork 1
child_p0_untouched: [1 state A 0]
child_p1_unfaulted: [1 state A 1]
child_read: p0=[1 read A 0]
child_p0_r: [1 state A 0]
child_pg0: pg+0 [page 0]
child_cnt: [count]
1 exit
parent_after: [0 state A 0]
cnt: [count]

== fork_private
0 map A rw private 8
0 read A 0
parent_p0: [0 state A 0]
0 fork 1
child_p0_untouched: [1 state A 0]
child_p1_unfaulted: [1 state A 1]
child_read: p0=[1 read A 0]
child_p0_r: [1 state A 0]
child_pg0: pg+0 [page 0]
child_cnt: [count]
child_write: p0=[1 write A 0 C] now=[1 read A 0]
child_p0_w: [1 state A 0]
child_cnt2: [count]
1 exit
parent_sees: p0=[0 read A 0]
parent_after: [0 state A 0]
pg0_after: pg+0 [page 0]

== fork_after_cow
0 map A rw private 8
0 read A 0
0 write A 0 Q
parent_p0: [0 state A 0]
fork: [0 fork 1]
child_p0_untouched: [1 state A 0]
child_p1_unfaulted: [1 state A 1]
child_read: p0=[1 read A 0]
child_p0_r: [1 state A 0]
child_pg0: pg+0 [page 0]
child_cnt: [count]
child_write: p0=[1 write A 0 C] now=[1 read A 0]
child_p0_w: [1 state A 0]
child_cnt2: [count]
1 exit
parent_sees: p0=[0 read A 0]
parent_after_child: [0 state A 0]
parent_write: [0 write A 0 R]
parent_rewrite: [0 state A 0]

== munmap
0 map A r shared 8
0 read A 0
0 read A 1
pg0_mapped: pg+0 [page 0]
munmap: <0 munmap A 0 8>
pg0_unmapped: pg+0 [page 0]
cnt: [count]

== munmap_cowed
0 map A rw private 8
0 read A 0
0 write A 0 Q
pg0_mapped: pg+0 [page 0]
munmap: <0 munmap A 0 8>
pg0_unmapped: pg+0 [page 0]

== gup_shared_ro
0 map A r shared 8
USERS r cold_
p0: [0 state A 0]
vma: [0 smaps A 0]

== gup_shared_rw
0 map A rw shared 8
0 write A 0 A
USERS rw
p0: [0 state A 0]

== gup_private_uncowed
0 map A r private 8
0 read A 0
USERS r
p0: [0 state A 0]

== gup_private_rw_uncowed
0 map A rw private 8
0 read A 0
process_vm_writev: {0 gup process_vm_writev A 0}
p0_after_writev: [0 state A 0]
proc_mem_write: [0 gup proc_mem_write A 1]
p1_after_memwrite: [0 state A 1]

== gup_private_cowed
0 map A rw private 8
0 read A 0
0 write A 0 Q
USERS rw
p0: [0 state A 0]

== force_write_ro_private
0 map A r private 8
0 read A 0
proc_mem_write: [0 gup proc_mem_write A 0] now=[0 read A 0]
p0: [0 state A 0]

== mlock
0 map A r shared 8
mlock: <0 mlock A 0 8>
p3: [0 state A 3]
vma: [0 smaps A 0]
cnt: [count]
munlock: <0 munlock A 0 8>

== mlock_private_rw
0 map A rw private 8
mlock: <0 mlock A 0 8>
p3: [0 state A 3]
vma: [0 smaps A 0]
cnt: [count]

== map_locked
0 map A r shared 8
0 mlock A 0 8
p3: [0 state A 3]
vma: [0 smaps A 0]

== mlockall_future
0 map A r shared 8
0 mlock A 0 8
p3: [0 state A 3]
vma: [0 smaps A 0]

== populate
0 map A r shared 8
0 mlock A 0 8
p0: [0 state A 0]
p3: [0 state A 3]
cnt: [count]
0 map B rw private 8
0 mlock B 0 8
priv_p0: [0 state B 0]
cnt2: [count]

== mprotect
0 map A r private 8
0 read A 0
mprotect_rw: <0 mprotect A 0 1 rw>
p0_after: [0 state A 0]
write: [0 write A 0 Q]
p0_w: [0 state A 0]
mprotect_ro: <0 mprotect A 0 1 r>
write_ro: [0 write A 0 x]
mprotect_none: <0 mprotect A 0 1 none>
read_none: [0 read A 0]
p0_none: [0 state A 0]
0 map B r shared 8
0 read B 0
shared_mprotect_rw: <0 mprotect B 0 1 rw>
s0_after: [0 state B 0]
shared_write: [0 write B 0 A]
s0_w: [0 state B 0]
cnt: [count]
shared_ro_again: <0 mprotect B 0 1 r>
s0_ro: [0 state B 0]
rw_again: <0 mprotect B 0 1 rw>
s0_rw2: [0 state B 0]
write2: [0 write B 0 A]
cnt2: [count]

== mremap
0 map A rw private 8
0 read A 0
0 write A 1 Q
move: [0 mremap A 0 8 8 move A]
p0: [0 state A 0]
p1: [0 state A 1]
read: p0=[0 read A 0] p1=[0 read A 1] p2=[0 read A 2]
cnt: [count]
grow: [0 mremap A 0 8 10 grow A]
if ok: beyond: [0 read A 8]
shrink: [0 mremap A 0 8 1 shrink A]
0 map B r shared 8
0 read B 0
dup_old_size0: [0 mremap B 0 0 8 dup C]
if ok: dup_p0: [0 state C 0]
dontunmap: [0 mremap B 0 8 8 dontunmap D]
if ok: src_p0: [0 state B 0]
if ok: src_read: [0 read B 0]

== madvise
0 map A rw private 8
0 map B r shared 8
ADVICE A priv
ADVICE B shared

== dontneed
0 map A rw private 8
0 read A 0
0 write A 1 Q
before: p0=[0 read A 0] p1=[0 read A 1]
dontneed: <0 madvise A 0 2 DONTNEED>
p0_after: [0 state A 0]
p1_after: [0 state A 1]
pg0: pg+0 [page 0]
after: p0=[0 read A 0] p1=[0 read A 1]
p1_refault: [0 state A 1]
cnt: [count]

== mincore
0 map A r shared 8
cold: 0 v=[0 mincore A 0 3]
0 read A 0
p0_touched: 0 v=[0 mincore A 0 3]

== msync
0 map A rw shared 8
write: [0 write A 0 A]
msync: <0 msync A 0 8>
p0: [0 state A 0]
write2: [0 write A 0 A]
p0_w2: [0 state A 0]
cnt: [count]

== uffd

== clear_refs
0 map A r shared 8
0 read A 0
before: [0 smaps A 0]
after_clear1: [0 smaps A 0]
p0_clear1: [0 state A 0]
0 read A 0
after_read: [0 smaps A 0]
p0_clear4: [0 state A 0]

== softdirty_private
0 map A rw private 8
0 read A 0
cleared: [0 state A 0]
0 write A 0 Q
written: [0 state A 0]

== wr_only_and_exec
0 map A rx private 8
mmap_exec: ok read=[0 read A 0]
p0: [0 state A 0]
vma: [0 smaps A 0]

== reinsert
0 map A rw shared 8
p0_R0: kind=R ioctl=0 vm_fault=[0 insert A 0 0 R]
p0: [0 state A 0]
p0_R0_again: kind=R ioctl=0 vm_fault=[0 insert A 0 0 R]
p0_R5_other: kind=R ioctl=0 vm_fault=[0 insert A 0 5 R]
p0_after_other: [0 state A 0]
p0_P0_over_raw: kind=P ioctl=0 vm_fault=[0 insert A 0 0 P]
p0_after_P: [0 state A 0]
p0_I0_over_raw: kind=I ioctl=0 errno=[0 insert A 0 0 I]
p0_after_I: [0 state A 0]
pg0: pg+0 [page 0]
p1_P1: kind=P ioctl=0 vm_fault=[0 insert A 1 1 P]
p1: [0 state A 1]
pg1: pg+1 [page 1]
p1_R1_over_page: kind=R ioctl=0 vm_fault=[0 insert A 1 1 R]
p1_after: [0 state A 1]
p2_I2: kind=I ioctl=0 errno=[0 insert A 2 2 I]
p2: [0 state A 2]
p2_I2_again: kind=I ioctl=0 errno=[0 insert A 2 2 I]
p2_I3_other: kind=I ioctl=0 errno=[0 insert A 2 3 I]
pg2: pg+2 [page 2]
pg3: pg+3 [page 3]
p3_Z: kind=Z ioctl=0 vm_fault=[0 insert A 3 3 Z]
p3: [0 state A 3]
p4_F: kind=F ioctl=0 vm_fault=[0 insert A 4 4 F]
p4: [0 state A 4]
p5_W: kind=W ioctl=0 vm_fault=[0 insert A 5 5 W]
p5: [0 state A 5]
p0_W0_upgrade: kind=W ioctl=0 vm_fault=[0 insert A 0 0 W]
p0_upgraded: [0 state A 0]
0 munmap A 0 8
pg1_unmapped: pg+1 [page 1]
pg2_unmapped: pg+2 [page 2]

== insert_over_cow
0 map A rw private 8
0 write A 0 Q
cowed: [0 state A 0]
R0_over_anon: kind=R ioctl=0 vm_fault=[0 insert A 0 0 R]
after: [0 state A 0]
read: [0 read A 0]

== zap
0 map A r shared 8
0 map B rw private 8
0 read A 0
0 read B 0
0 write B 1 Q
0 read A 1
zap0_keepcows: idx=0 kind=- even_cows=0 <zap 0 1 0>
zap1_keepcows: idx=1 kind=- even_cows=0 <zap 1 1 0>
s0: [0 state A 0]
q0: [0 state B 0]
q1_cow: [0 state B 1]
q1: [0 read B 1]
zap1_evencows: idx=1 kind=- even_cows=1 <zap 1 1 1>
q1_after: [0 state B 1]
q1: [0 read B 1]
pg0: pg+0 [page 0]

== migrate
0 map A r shared 8
0 map B rw private 8
xip: s0=[0 read A 0] q0=[0 read B 0]
0 write B 1 Q
0 read A 1
s0_xip: [0 state A 0]
to_ram_page: idx=0 kind=V even_cows=0 <migrate 0 V>
to_ram_page1: idx=1 kind=V even_cows=0 <migrate 1 V>
ram: s0=[0 read A 0] q0=[0 read B 0] q1=[0 read B 1] s1=[0 read A 1]
s0_ram: [0 state A 0]
q0_ram: [0 state B 0]
q1_cow: [0 state B 1]
vma_mixed: [0 smaps A 0]
pg0: pg+0 [page 0]
USERS r ram_
back_to_xip: idx=0 kind=R even_cows=0 <migrate 0 R>
xip2: s0=[0 read A 0]
s0_xip2: [0 state A 0]
pg0_back: pg+0 [page 0]
cnt: [count]
"""

USERS = """
process_vm_readv: [0 gup process_vm_readv A 0]
w process_vm_writev: [0 gup process_vm_writev A 0]
proc_mem_read: [0 gup proc_mem_read A 0]
w proc_mem_write: [0 gup proc_mem_write A 0]
0 fork 1
ptrace_peek: [0 gup ptrace_peek A 0]
w ptrace_poke: [0 gup ptrace_poke A 0]
1 exit
vmsplice: [0 hold A 0]
if count: pinned_vmsplice: [0 state A 0]
0 drop
write_pipe_from: [0 gup write_pipe A 0]
w read_pipe_into: [0 gup read_pipe A 0]
odirect_write_from: [0 gup odirect_write A 0]
w odirect_read_into: [0 gup odirect_read A 0]
io_uring_fixed_buf: [0 gup io_uring A 0]
futex_wake_shared: [0 gup futex A 0]
"""
"""The probe traces itself from a child, which therefore exists meanwhile."""

ADVICES = """NORMAL WILLNEED COLD PAGEOUT FREE REMOVE DONTFORK DOFORK WIPEONFORK MERGEABLE
DONTDUMP DODUMP POPULATE_READ POPULATE_WRITE"""


def golden_scenes() -> dict[str, list[str]]:
    """Scenario -> its lines, with USERS and ADVICE spelt out"""
    parts = re.split(r"^== (\w+)$", SCENES, flags=re.MULTILINE)
    return {
        name: list(spell_out(text)) for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def spell_out(text: str) -> Iterator[str]:
    for line in filter(None, text.splitlines()):
        words = line.split()
        if words[0] == "USERS":
            prefix = words[2] if len(words) > 2 else ""
            for user in filter(None, USERS.splitlines()):
                if not user.startswith("w ") or words[1] == "rw":
                    user = user.removeprefix("w ")
                    yield re.sub(r"^(if count: )?(\w+:)", rf"\1{prefix}\2", user)
        elif words[0] == "ADVICE":
            area, prefix = words[1:]
            for advice in ADVICES.split():
                yield f"0 read {area} 0"
                if (prefix, advice) != ("shared", "REMOVE"):
                    yield f"{prefix}_{advice}: <0 madvise {area} 0 1 {advice}>"
        else:
            yield line


def play(reference: Reference, lines: list[str]) -> Iterator[str]:
    """The lines `step|facts` of one scenario"""
    last, has_child = "", True
    for line in lines:
        condition = re.match(r"if (count|ok): ", line)
        if condition:
            line = line[condition.end() :]
            if not (last.isdigit() if condition[1] == "count" else last == "ok"):
                continue
        if not has_child:
            has_child = line == "1 exit"
            continue
        step, colon, text = line.partition(": ")
        shown, answers = play_line(reference, text if colon else f"[{line}]")
        if "0 fork 1" in line:
            has_child = answers[0] == "ok"
        if not condition:
            last = answers[0]
        if step.endswith("process_vm_readv") and answers[0].isdigit():
            shown += f" c=0x{ord(reference.play('0 read A 0')[1]):02x}"
        if colon and not (step == "fork" and has_child):  # the probe says when it failed
            yield f"{step}|{shown}"
        reference.check_invariants()


def play_line(reference: Reference, text: str) -> tuple[str, list[str]]:
    """(text with the answers filled in, the answers)"""
    answers = []

    def fill(match: re.Match[str]) -> str:
        answer = reference.play(match[2])
        answers.append(answer)
        if match[1] == "<" and answer == "ok":
            return "0"
        return "1" if match[1] == "{" and answer.isdigit() else answer

    return re.sub(r"([\[<{])(\w[^\]>}]*)[\]>}]", fill, text), answers


@pytest.mark.parametrize(("arch", "file", "targets"), KERNELS, ids=[k[0] for k in KERNELS])
def test_the_reference_says_what_a_real_kernel_said(
    arch: str, file: str, targets: list[str]
) -> None:
    golden = [line for line in (GOLDEN / file).read_text().splitlines() if not line.startswith("#")]
    golden = [line for line in golden if line.split("|")[0] in targets]
    said = []
    dirty: list[bool] = [False] * 16
    for target in targets:
        for scenario, lines in golden_scenes().items():
            if scenario in MIXED_ONLY and target == "pfnremap":
                continue
            header = TARGETS[target] if scenario != "migrate" else "plan=R vm=mixed"
            reference = Reference(f"device {header} hooks=full", arch)
            for page, was_dirty in zip(reference.pages, dirty, strict=True):
                page.dirty = was_dirty
            said += [f"{target}|{scenario}|{line}" for line in play(reference, lines)]
            dirty = [page.dirty for page in reference.pages]
    spoken = [line for line in golden if "|".join(line.split("|")[1:3]) not in UNSPOKEN]
    order = list(TARGETS)
    spoken.sort(key=lambda line: order.index(line.split("|")[0]))
    assert said == spoken


def test_every_line_that_is_left_out_is_in_the_goldens() -> None:
    """UNSPOKEN does not outlive what it excuses."""
    golden = "".join((GOLDEN / file).read_text() for _, file, _ in KERNELS)
    steps = {"|".join(line.split("|")[1:3]) for line in golden.splitlines()}
    assert set(UNSPOKEN) <= steps


@pytest.mark.parametrize("arch", ["um", "um-special"])
@given(scene=scenes())
def test_random_scenes_make_sense_and_leave_nothing_behind(arch: str, scene: str) -> None:
    """No BUG, every reference accounted for after each step, and all returned at the end."""
    header, *ops = scene.splitlines()
    reference = Reference(header, arch)
    for op in ops:
        assert reference.play(op) != "BUG", op
        reference.check_invariants()
    for process in list(reference.held):
        reference.op_exit(process)
    reference.check_invariants()
    assert [page.refcount for page in (*reference.pages, reference.zero)] == [1] * 17
    assert not reference.ptes
