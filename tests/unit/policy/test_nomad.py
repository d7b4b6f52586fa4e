"""nomad: looking back, the queue, pages that are written while they are copied."""

from tests.kit.policy import EPOCH_NS, PolicyWorld
from xipfs.policy.nomad import Policy


def fault(world, pages, **facts):
    return world.epoch(pages, latency_ns=[EPOCH_NS // 100] * len(pages), **facts)


def test_one_fault_of_its_own_and_three_of_others():
    world = PolicyWorld(Policy())
    assert fault(world, [1, 2, 3, 4]).promote.tolist() == [1]


def test_others_may_come_in_later_epochs():
    world = PolicyWorld(Policy())
    fault(world, [1, 2, 3])
    assert fault(world, [8]).promote.tolist() == [1]
    assert fault(world, [9]).promote.tolist() == [2]


def test_the_last_faults_wait():
    world = PolicyWorld(Policy())
    fault(world, [1])
    for _ in range(5):
        assert not len(world.epoch([1], latency_ns=[-1]).promote)


def test_a_page_that_is_written_waits_for_another_pass():
    world = PolicyWorld(Policy())
    assert fault(world, [1, 2, 3, 4], written=[1]).promote.tolist() == []
    assert world.epoch([]).promote.tolist() == [1]


def test_ten_passes_at_most():
    world = PolicyWorld(Policy(nr_passes_max=3))
    fault(world, [1, 2, 3, 4], written=[1])
    for _ in range(2):
        world.epoch([1], latency_ns=[-1], written=[1])
    assert world.epoch([]).promote.tolist() == []


def test_what_found_no_room_waits_in_a_queue_that_has_an_end():
    world = PolicyWorld(Policy(nr_queued_max=2, scale=1), nr_ram_frames=4)
    fault(world, range(20))
    assert world.resident == {0, 1, 2, 3}
    world.epoch([])  # the active list gives up its tail
    for _ in range(6):
        world.epoch([])
    assert world.resident <= {0, 1, 2, 3, 4, 5}
    assert {4, 5} <= world.resident


def test_the_budget_is_no_loss():
    world = PolicyWorld(Policy(scale=1), nr_ram_frames=100, budget_pages=3)
    fault(world, range(9))
    assert len(world.resident) == 3
    world.epoch([])
    assert world.resident == set(range(6))


def test_reclaim_is_that_of_tpp():
    world = PolicyWorld(Policy(demote_scale_factor=5000), nr_ram_frames=8)
    fault(world, range(11))
    for _ in range(6):
        world.epoch([5, 6, 7], latency_ns=[-1] * 3, blind=[4])
    assert world.resident == {4, 5, 6, 7}
