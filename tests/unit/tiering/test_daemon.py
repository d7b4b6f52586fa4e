"""One epoch: what the policy is told, and what becomes of what it says. It can do no harm."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.mm import World, block_bytes
from xipfs.mm.access import access_page, access_range
from xipfs.phys.cost import TierFacts
from xipfs.policy.contract import AccessKind, Plan, Tier, no_pages, page_id
from xipfs.tiering.access_log import AccessLog
from xipfs.tiering.budget import Budget
from xipfs.tiering.daemon import TieringDaemon, decide
from xipfs.tiering.filemap_events import Told
from xipfs.tiering.mover import Mover, resident_pages
from xipfs.tiering.sampler import CacheSampler, DropRange
from xipfs.units import NVRAM_PFN_START, Pgoff

NR_FRAMES, BUDGET = 8, 6


class Scripted:
    """A policy that says what the test wants: a plan, or a function of (batch, tiers)."""

    def __init__(self) -> None:
        self.answer: object = Plan()
        self.asked: list = []

    def decide(self, batch, tiers):
        self.asked.append((batch, tiers))
        return self.answer(batch, tiers) if callable(self.answer) else self.answer


class TieredWorld(World):
    """The small world of mm with a tiering daemon.

    a, b: files of 20 and 6 pages of their own, c: one of 6 pages of which 2 are holes.
    emptied: ids of the files whose last page left RAM, as the daemon told.
    """

    def __init__(self, path, *, sampler=None, budget_pages=BUDGET) -> None:
        super().__init__(path, nr_blocks=64, nr_tier_frames=NR_FRAMES)
        self.a = self.fs.make_file({i: i for i in range(20)})
        self.b = self.fs.make_file({i: 20 + i for i in range(6)})
        self.c = self.fs.make_file({i: 30 + i for i in (0, 2, 3, 5)})
        self.vmas = {mapping.id: self.mmap(mapping) for mapping in self.fs.files}
        self.log = AccessLog()
        self.policy = Scripted()
        self.emptied: list[int] = []
        self.in_memory = {mapping.id: mapping for mapping in self.fs.files}
        self.daemon = TieringDaemon(
            self.mm,
            Mover(
                self.machine,
                self.in_memory.get,
                lambda mapping: self.emptied.append(mapping.id),
            ),
            self.log,
            self.policy,
            policy_name="scripted",
            sampler=sampler,
            budget=Budget(budget_pages, None, 0),
            epoch_ns=1_000_000_000,
        )

    def read(self, mapping, pgoff, nr_pages=1) -> None:
        pfns = access_range(self.vmas[mapping.id], Pgoff(pgoff), nr_pages)
        for i, pfn in enumerate(pfns.tolist()):
            self.log.record(page_id(mapping.id, pgoff + i), 1, int(pfn >= NVRAM_PFN_START))

    def run(self, promote=(), demote=()) -> None:
        """One epoch with a policy that wants just this, as (mapping, pgoff)."""
        self.policy.answer = Plan(as_ids(promote), as_ids(demote))
        self.daemon.run_epoch()
        self.check()

    @property
    def resident(self) -> set[tuple[int, int]]:
        return {(m.id, pgoff) for m in self.fs.files for pgoff in m.i_pages}


def as_ids(pages) -> np.ndarray:
    return np.array([page_id(mapping.id, pgoff) for mapping, pgoff in pages], np.int64)


@pytest.fixture
def world(tmp_path):
    world = TieredWorld(tmp_path / "region")
    yield world
    world.check()
    world.close()


def test_the_policy_is_told_every_access_in_order(world):
    world.read(world.b, 3)
    world.read(world.a, 1, 2)
    world.read(world.b, 3)
    world.run()
    batch, _ = world.policy.asked[0]
    b3 = page_id(world.b.id, 3)
    a1 = page_id(world.a.id, 1)
    assert batch.page.tolist() == [b3, a1, a1 + 1, b3]
    assert batch.kind.tolist() == [AccessKind.READ] * 4
    assert batch.tier.tolist() == [Tier.NVRAM] * 4
    assert batch.latency_ns.tolist() == [-1] * 4
    world.run()
    assert len(world.policy.asked[1][0].page) == 0


def test_the_policy_is_told_what_the_kernel_tells(tmp_path):
    """Behind what came by requests; no holes, and nothing of files that are not in memory."""
    sampler = CacheSampler()
    world = TieredWorld(tmp_path / "region", sampler=sampler)
    world.daemon.see_reads()
    world.run(promote=[(world.a, 1)])
    world.read(world.b, 0)
    reads = as_ids([(world.a, 2), (world.c, 1), (world.a, 1), (world.a, 2), (world.a, 20)])
    gone = np.array([page_id(99, 0)])
    batch, tiers = world.daemon.sample(Told(np.concatenate([reads, gone]), *2 * [no_pages()]))[1:]
    expected = as_ids([(world.b, 0), (world.a, 2), (world.a, 1), (world.a, 2)])
    assert batch.page.tolist() == expected.tolist()
    assert batch.tier.tolist() == [Tier.NVRAM, Tier.NVRAM, Tier.RAM, Tier.NVRAM]
    assert batch.latency_ns.tolist() == [-1] * 4
    assert (batch.page.dtype, batch.kind.dtype) == (np.int64, np.uint8)
    assert (batch.tier.dtype, batch.latency_ns.dtype) == (np.uint8, np.int64)
    assert not tiers.is_sampled
    assert world.daemon.nr_reads_told == 3
    world.close()


def test_the_policy_is_told_the_tiers(world):
    world.read(world.a, 0, 4)
    world.run(promote=[(world.a, 2), (world.a, 0)])
    world.read(world.a, 1, 2)
    world.run()
    batch, tiers = world.policy.asked[1]
    assert batch.tier.tolist() == [Tier.NVRAM, Tier.RAM]
    assert (tiers.epoch, tiers.nr_ram_frames, tiers.nr_free_frames) == (1, NR_FRAMES, NR_FRAMES - 2)
    assert tiers.budget_pages == BUDGET
    assert tiers.resident.tolist() == [page_id(world.a.id, 0), page_id(world.a.id, 2)]
    assert tiers.blind.tolist() == []


def test_the_policy_is_told_what_accesses_cost_in_this_epoch(world):
    """How long it was is measured: an epoch may come late."""
    elapsed_ns: list[int] = []

    def tier_facts(epoch_ns: int) -> TierFacts:
        elapsed_ns.append(epoch_ns)
        return TierFacts((4, 5), (80.0, 300.0), (0.25, 1.5), 2000.0, 9000.0)

    times_ns = [1000]
    world.log.clock = lambda: times_ns[-1]
    daemon = TieringDaemon(
        world.mm,
        Mover(world.machine, world.in_memory.get, lambda _: None),
        world.log,
        world.policy,
        policy_name="scripted",
        sampler=None,
        budget=Budget(BUDGET, None, 0),
        epoch_ns=1_000_000_000,
        tier_facts=tier_facts,
    )
    for time_ns in (1500, 4000):
        times_ns.append(time_ns)
        daemon.run_epoch()
    assert elapsed_ns == [500, 2500]
    _, tiers = world.policy.asked[-1]
    assert (tiers.latency_ns, tiers.occupancy) == ((80.0, 300.0), (0.25, 1.5))
    assert (tiers.promote_ns, tiers.write_back_ns) == (2000.0, 9000.0)


def test_resident_pages_are_sorted_and_a_copy(world):
    world.run(promote=[(world.b, 3), (world.a, 9), (world.a, 2)])
    found = resident_pages(world.machine)
    expected = [page_id(world.a.id, 2), page_id(world.a.id, 9), page_id(world.b.id, 3)]
    assert found.tolist() == expected
    found[:] = 0
    assert resident_pages(world.machine).tolist() == expected


def test_a_plan_is_carried_out(world):
    world.run(promote=[(world.a, 5), (world.b, 0), (world.a, 4)])
    assert world.resident == {(world.a.id, 4), (world.a.id, 5), (world.b.id, 0)}
    assert world.page(access_page(world.vmas[world.a.id], Pgoff(5))) == block_bytes(5)
    world.run(promote=[(world.a, 6)], demote=[(world.a, 4), (world.b, 0)])
    assert world.resident == {(world.a.id, 5), (world.a.id, 6)}
    vmstat = world.machine.vmstat
    assert (vmstat.pgpromote_candidate_nrl, vmstat.pgpromote_success) == (4, 4)
    assert (vmstat.pgdemote_kswapd, vmstat.pgdemote_direct, vmstat.pgmigrate_fail) == (2, 0, 0)
    assert (
        world.daemon.nr_epochs,
        world.daemon.nr_policy_errors,
        world.daemon.nr_plan_refused,
    ) == (2, 0, 0)


def test_demotions_make_room_for_promotions(world):
    for start in (0, 4):
        world.run(promote=[(world.a, pgoff) for pgoff in range(start, start + 4)])
    assert world.machine.mem_map.nr_free == 0
    world.run(promote=[(world.b, 0), (world.b, 1)], demote=[(world.a, 3), (world.a, 7)])
    assert world.daemon.nr_plan_refused == 0
    assert len(world.resident) == NR_FRAMES
    assert {(world.b.id, 0), (world.b.id, 1)} < world.resident


def test_a_file_that_left_ram_is_told_once(world):
    world.run(promote=[(world.a, 0), (world.a, 1), (world.b, 0)])
    world.run(demote=[(world.a, 0)])
    assert world.emptied == []
    world.run(demote=[(world.a, 1), (world.b, 0)])
    assert world.emptied == [world.a.id, world.b.id]


def test_a_long_plan_goes_in_slices(tmp_path):
    world = TieredWorld(tmp_path / "region", budget_pages=1024)
    world.policy.answer = Plan(as_ids([(world.a, 1)]))
    world.daemon.accept(decide(world.daemon.sample()))
    assert world.daemon.migrate_some() is False, "one slice was all"
    assert world.daemon.migrate_some() is False, "and there is nothing more"
    world.close()


def test_slices(tmp_path):
    """A plan of more pages than one slice: demotions first, some at a time, all in the end."""
    world = World(tmp_path / "region", nr_blocks=700, nr_tier_frames=600)
    file = world.fs.make_file({i: i for i in range(640)})
    policy = Scripted()
    daemon = TieringDaemon(
        world.mm,
        Mover(world.machine, {file.id: file}.get, lambda _: None),
        AccessLog(),
        policy,
        policy_name="scripted",
        sampler=None,
        budget=Budget(2000, None, 0),
        epoch_ns=1_000_000_000,
    )
    policy.answer = Plan(as_ids([(file, pgoff) for pgoff in range(600)]))
    daemon.accept(decide(daemon.sample()))
    sizes = [len(file.i_pages)]
    while daemon.migrate_some():
        sizes.append(len(file.i_pages))
        world.check()
    assert sizes == [0, 256, 512]
    assert len(file.i_pages) == 600
    policy.answer = Plan(
        as_ids([(file, pgoff) for pgoff in range(600, 640)]),
        as_ids([(file, pgoff) for pgoff in range(300)]),
    )
    daemon.accept(decide(daemon.sample()))
    assert daemon.migrate_some()
    assert daemon.migrate_some()
    assert sorted(file.i_pages) == list(range(300, 600))
    assert not daemon.migrate_some()
    assert sorted(file.i_pages) == list(range(300, 640))
    assert daemon.nr_plan_refused == 0
    world.check()
    world.close()


def test_a_file_that_goes_between_plan_and_slice(world):
    """FORGET comes in while a plan waits: its pages are left out."""
    world.policy.answer = Plan(as_ids([(world.a, 0), (world.b, 0)]))
    world.daemon.accept(decide(world.daemon.sample()))
    del world.in_memory[world.a.id]
    world.daemon.migrate_some()
    assert world.resident == {(world.b.id, 0)}


def test_heat_is_halved_every_eighth_epoch(world):
    for _ in range(5):
        world.read(world.a, 0)
    leaf = next(iter(world.mm.page_table.leaves.values()))
    heat = []
    for _ in range(24):
        world.run()
        heat.append(int(leaf.heat[0]))
    assert heat == [5] * 7 + [2] * 8 + [1] * 8 + [0]


# What a policy may say, and what is done about it


REFUSED = {
    "a page of no file": lambda w: ([999 << 32], []),
    "a page past the end": lambda w: ([page_id(w.a.id, 20), page_id(w.b.id, 6)], []),
    "a negative page": lambda w: ([-1, -(1 << 40)], []),
    "a page that is in RAM": lambda w: ([page_id(w.a.id, 1)], []),
    "a page that is not in RAM": lambda w: ([], [page_id(w.a.id, 2)]),
    "demoting what does not exist": lambda w: ([], [999 << 32, -5, page_id(w.a.id, 77)]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(world, expected_logs, what):
    world.run(promote=[(world.a, 0), (world.a, 1)])
    promote, demote = REFUSED[what](world)
    expected_logs("policy scripted: .* entries refused")
    world.policy.answer = Plan(np.array(promote, np.int64), np.array(demote, np.int64))
    world.daemon.run_epoch()
    assert world.resident == {(world.a.id, 0), (world.a.id, 1)}
    assert world.daemon.nr_plan_refused == len(promote) + len(demote)
    assert world.daemon.nr_policy_errors == 0


def test_what_is_refused_does_not_hinder_the_rest(world, expected_logs):
    expected_logs("4 of 6 entries refused")
    a, b = world.a, world.b
    world.run(promote=[(a, 0), (a, 99), (b, 1), (a, 0), (b, 6)], demote=[(a, 3)])
    assert world.resident == {(a.id, 0), (b.id, 1)}
    assert world.daemon.nr_plan_refused == 4


def test_twice_is_once(world, expected_logs):
    expected_logs("1 of 2 entries refused")
    world.run(promote=[(world.a, 0), (world.a, 0)])
    world.run(demote=[(world.a, 0), (world.a, 0)])
    assert world.resident == set()
    assert world.daemon.nr_plan_refused == 2
    assert world.machine.vmstat.pgdemote_kswapd == 1


def test_in_and_out_in_one_plan(world, expected_logs):
    """What is to be promoted and demoted at once is in one tier now, so one of the two is wrong."""
    expected_logs("1 of 2 entries refused")
    world.run(promote=[(world.a, 0)], demote=[(world.a, 0)])
    assert world.resident == {(world.a.id, 0)}
    world.run(promote=[(world.a, 0)], demote=[(world.a, 0)])
    assert world.resident == set()


def test_more_than_the_budget(world, expected_logs):
    expected_logs("3 of 9 entries refused")
    world.run(promote=[(world.a, pgoff) for pgoff in range(9)])
    assert len(world.resident) == BUDGET
    # The demotions come first, and leave the rest to the promotions.
    world.run(
        promote=[(world.b, pgoff) for pgoff in range(5)],
        demote=[(world.a, pgoff) for pgoff in range(4)],
    )
    assert {(world.b.id, 0), (world.b.id, 1)} < world.resident
    assert len(world.resident) == 4
    assert world.daemon.nr_plan_refused == 3 + 3


def test_more_than_there_is_room_for(world, expected_logs):
    expected_logs("4 of 6 entries refused")
    world.run(promote=[(world.a, pgoff) for pgoff in range(6)])
    world.run(promote=[(world.a, pgoff) for pgoff in range(6, 12)])
    assert len(world.resident) == NR_FRAMES
    assert world.daemon.nr_plan_refused == 4


def test_the_first_come_first_where_not_all_fit(world, expected_logs):
    """A plan is in the order of the policy's wishes, whatever the numbers of the pages."""
    expected_logs("refused")
    wanted = [(world.a, pgoff) for pgoff in (19, 3, 11, 7, 15, 2, 1, 0)]
    world.run(promote=wanted)
    assert world.resident == {(world.a.id, pgoff) for _, pgoff in wanted[:BUDGET]}


def test_holes_fail_without_harm(world):
    """A hole is a page of the file, but nothing to copy: no refusal, a migration that fails."""
    world.run(promote=[(world.c, pgoff) for pgoff in range(6)])
    assert world.resident == {(world.c.id, pgoff) for pgoff in (0, 2, 3, 5)}
    assert world.daemon.nr_plan_refused == 0
    assert world.machine.vmstat.pgmigrate_fail == 2


def raising(error):
    def decide(batch, tiers):
        raise error

    return decide


WRONG = {
    "raises": raising(RuntimeError("boom")),
    "asserts": raising(AssertionError()),
    "exits": raising(SystemExit(3)),
    "runs out of stack": raising(RecursionError()),
    "returns nothing": lambda batch, tiers: None,
    "returns a list": lambda batch, tiers: [1, 2],
    "floats": Plan(np.array([1.0, 2.0])),
    "booleans": Plan(np.array([True])),
    "texts": Plan(np.array(["1"])),
    "a matrix": Plan(np.zeros((2, 2), np.int64)),
    "one number": Plan(np.int64(3)),
    "None for pages": Plan(None),
    "numbers of any size": Plan([1 << 70]),
    "objects": Plan([object()]),
    "half a plan": SimpleNamespace(promote=no_pages()),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_policy_that_fails(world, expected_logs, what):
    """Nothing is moved, it is logged once, and the next epoch asks again."""
    world.run(promote=[(world.a, 0)])
    expected_logs("policy scripted failed, nothing is moved")
    world.policy.answer = WRONG[what]
    for _ in range(3):
        world.daemon.run_epoch()
    assert world.resident == {(world.a.id, 0)}
    assert (
        world.daemon.nr_policy_errors,
        world.daemon.nr_plan_refused,
        world.daemon.nr_epochs,
    ) == (3, 0, 4)
    world.run(promote=[(world.a, 1)])
    assert len(world.resident) == 2


def test_what_passes_for_page_ids(world):
    """Lists and unsigned numbers will do."""
    a = page_id(world.a.id, 0)
    for promote in ([a], np.array([a + 1], np.uint64), (a + 2,)):
        world.policy.answer = Plan(promote, [])
        world.daemon.run_epoch()
    assert world.resident == {(world.a.id, 0), (world.a.id, 1), (world.a.id, 2)}


def test_a_policy_that_writes_to_what_it_is_given(world, expected_logs):
    """It changes its own copies: mm and the check of its plan are none the worse."""
    world.run(promote=[(world.a, 0), (world.a, 1)])
    world.read(world.a, 0, 4)

    def vandal(batch, tiers):
        for array in (batch.page, batch.kind, batch.tier, batch.latency_ns, tiers.resident):
            array[...] = 3
        return Plan(as_ids([(world.a, 1), (world.b, 0)]), as_ids([(world.a, 0), (world.a, 5)]))

    expected_logs("refused")
    world.policy.answer = vandal
    world.daemon.run_epoch()
    world.check()
    assert world.resident <= {(world.a.id, 0), (world.a.id, 1), (world.b.id, 0)}


def test_a_pinned_page_stays(world):
    world.run(promote=[(world.a, 0), (world.a, 1)])
    pinned = world.a.i_pages[0]
    world.machine.mem_map.get_page(pinned)
    world.policy.answer = Plan(demote=as_ids([(world.a, 0), (world.a, 1)]))
    world.daemon.run_epoch()
    world.check(pins=[pinned])
    assert world.resident == {(world.a.id, 0)}
    assert world.machine.vmstat.pgmigrate_fail == 1
    world.machine.mem_map.put_page(pinned)


def test_what_was_promoted_is_told_once(world):
    a, b = world.a, world.b
    world.policy.answer = Plan(as_ids([(a, 3), (a, 5)]))
    world.daemon.accept(decide(world.daemon.sample()))
    assert world.daemon.take_promoted() == []
    while world.daemon.migrate_some():
        pass
    (told,) = world.daemon.take_promoted()
    assert told.tolist() == as_ids([(a, 3), (a, 5)]).tolist()
    pair = np.array([[*as_ids([(a, 3)]), *as_ids([(b, 1)])]])
    world.policy.answer = Plan(exchange=pair)
    world.daemon.accept(decide(world.daemon.sample()))
    world.daemon.migrate_some()
    (told,) = world.daemon.take_promoted()
    assert told.tolist() == as_ids([(b, 1)]).tolist()
    assert world.daemon.take_promoted() == []


# The sampler's part


def test_without_a_sampler_nothing_is_dropped(world):
    world.read(world.a, 0, 20)
    assert world.daemon.run_epoch() == []
    assert world.daemon.nr_ranges_dropped == 0


def test_with_a_sampler_what_was_read_is_blind_until_it_is_dropped(tmp_path):
    """Two pages in RAM are cached; the budget's quarter for such pages is one."""
    sampler = CacheSampler(budget_pages_min=4, budget_pages_max=4)
    world = TieredWorld(tmp_path / "region", sampler=sampler)
    a, b = world.a, world.b
    world.read(a, 0, 2)
    world.read(b, 0, 2)
    world.policy.answer = Plan(as_ids([(a, 0), (b, 0)]))
    assert world.daemon.run_epoch() == [DropRange(a.id, 0, 1)]
    world.policy.answer = Plan()
    assert world.daemon.run_epoch() == [DropRange(b.id, 0, 1)]
    assert world.daemon.run_epoch() == []
    blind = [tiers.blind.tolist() for _, tiers in world.policy.asked]
    assert blind == [[], [page_id(b.id, 0)], []]
    assert world.daemon.nr_ranges_dropped == 2
    world.close()


# Anything at all


ids = st.one_of(
    st.builds(page_id, st.sampled_from([15, 16, 17, 18, 19]), st.integers(0, 21)),
    st.integers(-(1 << 63), (1 << 63) - 1),
)


@settings(max_examples=60)
@given(
    plans=st.lists(
        st.tuples(st.lists(ids, max_size=14), st.lists(ids, max_size=14)), min_size=1, max_size=6
    )
)
def test_any_plan_does_no_harm(tmp_path_factory, plans):
    """After any plan mm's books are right, within budget and room; what is refused is counted."""
    region = tmp_path_factory.getbasetemp() / "any-plan-region"
    world = TieredWorld(region)
    # The first refusal is logged: not wanted here.
    world.daemon.policies["scripted"].nr_refused["of old"] += 1
    for promote, demote in plans:
        before = world.resident
        refused = world.daemon.nr_plan_refused
        failed = world.machine.vmstat.pgmigrate_fail
        world.policy.answer = Plan(np.array(promote, np.int64), np.array(demote, np.int64))
        world.daemon.run_epoch()
        world.check()
        nr_moved = len(before ^ world.resident)
        assert nr_moved <= BUDGET
        refused = world.daemon.nr_plan_refused - refused
        failed = world.machine.vmstat.pgmigrate_fail - failed
        # A page that was promoted after it had been demoted counts as moved twice.
        assert refused + failed + nr_moved <= len(promote) + len(demote)
        for mapping in world.fs.files:
            for pgoff in mapping.i_pages:
                block = world.fs.blocks[mapping.id, pgoff]
                assert world.page(access_page(world.vmas[mapping.id], Pgoff(pgoff))) == block_bytes(
                    block
                )
    world.close()
