"""No crash state of seq-1, seq-2 or random workloads is unsound: a share always, all if long."""

import os

import pytest

from xipfs.crash.campaign import CampaignReport, Plan, base_image, replay_spec, run_campaign
from xipfs.crash.enumerator import Cut
from xipfs.crash.operations import parse_operations
from xipfs.crash.persistence import Persistence
from xipfs.crash.player import play
from xipfs.crash.recorder import Fence
from xipfs.crash.spec import Spec, parse_spec
from xipfs.crash.workloads import ELEMENTS

NR_JOBS = len(os.sched_getaffinity(0))


def sound(plan: Plan) -> CampaignReport:
    report = run_campaign(plan)
    shown = "\n".join(f"xipfs crash replay '{f.spec}': {f.problems}" for f in report.failures)
    assert not report.failures, shown
    tally = report.tally
    assert tally.nr_states > tally.nr_examined > 0
    print(f"{plan}: {tally}, {report.states_per_cpu_s:.0f} states a second of CPU")
    return report


@pytest.mark.parametrize("moves_pages", [False, True])
def test_some_of_seq_1(moves_pages: bool):
    sound(Plan(seqs=(1,), share=0.2, nr_states_max=12, moves_pages=moves_pages, seed=1))


@pytest.mark.parametrize("moves_pages", [False, True])
def test_some_of_seq_2(moves_pages: bool):
    sound(Plan(seqs=(2,), share=0.002, nr_states_max=8, moves_pages=moves_pages, seed=2))


def test_some_random_workloads():
    plan = Plan(seqs=(), nr_fuzzed=4, nr_operations=30, nr_states_max=6, moves_pages=True, seed=3)
    sound(plan)


@pytest.mark.long
@pytest.mark.parametrize("moves_pages", [False, True])
def test_all_of_seq_1(moves_pages: bool):
    plan = Plan(seqs=(1,), nr_states_max=128, moves_pages=moves_pages, nr_jobs=NR_JOBS)
    assert sound(plan).tally.nr_workloads == len(ELEMENTS)


@pytest.mark.long
def test_all_of_seq_2():
    plan = Plan(seqs=(2,), nr_states_max=12, nr_jobs=NR_JOBS)
    assert sound(plan).tally.nr_workloads == len(ELEMENTS) ** 2


@pytest.mark.long
def test_many_random_workloads():
    options = {"nr_operations": 40, "nr_states_max": 8, "nr_jobs": NR_JOBS}
    sound(Plan(seqs=(), nr_fuzzed=96, moves_pages=True, **options))


def test_a_state_is_the_same_each_time_it_is_made():
    """Each cut of a rename with all that was in flight, from the line that replays it."""
    image = base_image()
    operations = parse_operations("rename /foo /A/foo; fsync /B/pieces")
    medium = Persistence(image)
    specs = []
    for number, event in enumerate(play(image, operations).events):
        if isinstance(event, Fence) and medium.in_flight:
            newest = tuple(len(medium.in_flight[line].values) for line in Cut(medium).lines)
            specs.append(Spec(operations, ((number, newest),)))
        medium.apply(event)
    assert len(specs) == 9  # three steps with stores: of the mount, the rename and the unmount
    for spec in specs[::4]:
        assert parse_spec(str(spec)) == spec
        found = replay_spec(spec)
        assert found.problems == ()
        assert found.image != image
        assert replay_spec(spec) == found
