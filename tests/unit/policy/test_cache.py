"""CachePolicy: a textbook's cache decides at every access, and frames follow once an epoch."""

from collections import OrderedDict

from tests.kit.policy import PolicyWorld
from xipfs.policy.cache import CachePolicy


class Fifo(CachePolicy):
    def __init__(self) -> None:
        super().__init__()
        self.queue: OrderedDict[int, None] = OrderedDict()

    def access(self, page: int) -> None:
        if page not in self.queue:
            if len(self.queue) == self.capacity:
                self.evict()
            self.queue[page] = None

    def evict(self) -> None:
        self.queue.popitem(last=False)

    def pages(self):
        return reversed(self.queue)


def test_every_access_in_order():
    world = PolicyWorld(Fifo(), nr_ram_frames=3)
    world.epoch([1, 2, 3, 1, 4, 1])
    assert world.resident == {3, 4, 1}


def test_frames_follow_within_the_budget():
    world = PolicyWorld(Fifo(), nr_ram_frames=3, budget_pages=2)
    world.epoch([1, 2, 3])
    assert len(world.resident) == 2
    world.epoch([])
    assert world.resident == {1, 2, 3}
    world.epoch([4])
    assert 4 in world.resident


def test_another_size():
    world = PolicyWorld(Fifo(), nr_ram_frames=4)
    world.epoch([1, 2, 3, 4])
    world.nr_ram_frames = 2
    world.resident = {1, 4}
    world.epoch([])
    assert world.resident == {3, 4}


def test_no_frames():
    world = PolicyWorld(Fifo(), nr_ram_frames=0)
    plan = world.epoch([1, 2])
    assert not len(plan.promote)
