"""Scenes: for every policy a handful of accesses after which it moves what no other one moves.

    "lru": Scene("keeps what was used last", frames=4, epochs=[[1, 2, 3, 4], [1, 5]], ends={...}),

To add a policy, add its row here. Every policy plays every scene; in its own, nobody does as it
does, and at the end the pages in RAM are those that its row was written to show.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.kit.policy import PolicyWorld
from xipfs.policy.registry import load_policy, policy_names


@dataclass(frozen=True)
class Epoch:
    """One epoch: the pages that are accessed, and what else `PolicyWorld.epoch` takes."""

    pages: Sequence[int]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """A story of a few epochs.

    why: what the policy does here that others do not.
    ends: the pages in RAM after the last epoch; None for luck.
    epochs: the pages of each in their order, or an Epoch.
    settings: parameters of the policy in question, "scale=0.01"; the others play with theirs.
    """

    why: str
    ends: set[int] | None
    epochs: Sequence[Sequence[int] | Epoch]
    frames: int = 8
    budget: int = 1024
    settings: str = ""


def _faults(pages: list[int]) -> Epoch:
    """Return an epoch in which each page is used 10 ms after the sampler has dropped it."""
    return Epoch(pages, {"latency_ns": [10_000_000] * len(pages)})


SCENES = {
    "none": Scene(
        "moves nothing, whatever is used, however often, while there is room for all of it",
        ends=set(),
        epochs=[[1, 1, 2, 2, 3, 3] * 20] * 12,
    ),
    "ours": Scene(
        "does nothing about 3 while RAM is the slower one, and lets it in when that is over",
        ends={1, 3},
        epochs=[
            [1] * 10 + [2] * 4,
            Epoch([1] * 5 + [2] + [3] * 8, {"tier_latency_ns": (400.0, 300.0)}),
            [1] * 5 + [2] + [3] * 8,
        ],
        frames=2,
    ),
    "random": Scene(
        "chooses among the pages that were read, whatever else is known of them",
        ends=None,
        epochs=[[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9]],
        frames=4,
    ),
    "static": Scene(
        "keeps what was read first, though nobody reads it again and others are read all the time",
        ends={1, 2, 3},
        epochs=[[1, 2, 3], *[[4, 5] * 20] * 6],
        frames=3,
    ),
    "clock": Scene(
        "passes 1 and 2, which were used; 1 came first and leaves first, though it was used last",
        ends={2, 5, 6, 7},
        epochs=[[1, 2, 3, 4, 2, 1, 5, 6, 7]],
        frames=4,
    ),
    "lru": Scene(
        "lets 1 go, used most but longest ago, and keeps 2, used just before the scan",
        ends={2, 4, 5, 6},
        epochs=[[1, 1, 2, 1, 3, 4, 2, 5, 6]],
        frames=4,
    ),
    "lfu": Scene(
        "lets 4 go for 5, and 5 for 6, since the others were used more often, if longer ago",
        ends={1, 2, 3, 6},
        epochs=[[1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6]],
        frames=4,
    ),
    "2q": Scene(
        "keeps 1, which came back after it had left; uses of 4 while on trial are worth nothing",
        ends={1, 6, 7, 8},
        epochs=[[1, 2, 3, 4, 5, 1, 4, 4, 4, 6, 7, 8]],
        frames=4,
    ),
    "arc": Scene(
        "3, 4 and 5 came back too late, so T1 grows: 6, seen once, outlives 3 and 5, seen twice",
        ends={4, 6, 7, 8},
        epochs=[[1, 1, 2, 2, 3, 4, 5, 6, 3, 4, 5, 7, 4, 8]],
        frames=4,
    ),
    "sieve": Scene(
        "1 keeps its place when the hand passes it, and is the first to go in the next round",
        ends={2, 7, 9, 10},
        epochs=[[1, 2, 3, 4, 2, 1, 5, 6, 7, 7, 8, 9, 10]],
        frames=4,
    ),
    "s3fifo": Scene(
        "a scan goes through the small queue, one frame of ten, and leaves the others alone",
        ends={2, 3, 4, 5, 6, 7, 8, 9, 10, 13},
        epochs=[range(1, 14)],
        frames=10,
    ),
    "second_chance": Scene(
        "3 waits for its second epoch, then until the hand has come to 2 twice; 1 was used more",
        ends={1, 3},
        epochs=[[1, 2], [1, 2], [1, 1, 1, 3], [3], [3]],
        frames=2,
    ),
    "tpp": Scene(
        "promotes 1 at its third hint fault, the first on the active list; 2 has had but two",
        ends={1},
        epochs=[_faults([1, 2]), _faults([1]), _faults([2, 1])],
    ),
    "numab2": Scene(
        "with no frame free only 4 is quick enough, below a second, and takes that of 1, unused",
        ends={2, 4},
        epochs=[
            _faults([1, 2]),
            *[Epoch([3, 4, 2], {"latency_ns": [1_100_000_000, 900_000_000, -1]})] * 4,
        ],
        frames=2,
    ),
    "nomad": Scene(
        "1 needs three later faults by anybody, and is written just then; it is copied in peace",
        ends={1},
        epochs=[Epoch([1, 2, 3, 4], {"latency_ns": [10_000_000] * 4, "written": [1]}), []],
    ),
    "hemem": Scene(
        "four reads make 2 hot; 1 has three, and the fourth comes an epoch later",
        ends={1, 2},
        epochs=[[1, 1, 1, 2, 2, 2, 2], [1]],
    ),
    "memtis": Scene(
        "T_hot rises above the bin of pages read once, as these and the others would not fit",
        ends=set(range(50)),
        epochs=[[*range(200), *range(50)]],
        frames=100,
    ),
    "colloid": Scene(
        "half of the accesses, half-way again, and a step back when RAM is the slower under load",
        ends={2, 3, 4, 5, 6},
        epochs=[
            [1, 2, 3, 4, 5, 6, 7, 8],
            [1, 2, 3, 4, 5, 6, 7, 8],
            Epoch([1, 2, 3, 4, 5, 6, 7, 8], {"tier_latency_ns": (400.0, 300.0)}),
        ],
        settings="scale=1",
    ),
    "damon": Scene(
        "begins with a page, and its quota doubles while the goal is far; which ones is luck",
        ends=None,
        epochs=[[*range(100)] * 8] * 6,
        frames=1000,
    ),
    "autotiering": Scene(
        "9 has been used in every scan, 2 not in the last one: they change places; 1 stays",
        ends={1, 9},
        epochs=[_faults([1, 2]), Epoch([1], {"latency_ns": [-1]}), _faults([9])],
        frames=2,
        settings="wmark_high_factor=0",
    ),
    "nimble": Scene(
        "8 was used in two periods behind each other, and changes places with the inactive 1",
        ends={2, 8},
        epochs=[[1, 2], [1, 2], [8], [8]],
        frames=2,
    ),
    "multiclock": Scene(
        "1 goes through all lists in four periods; 2 has as many, but each loses its reference",
        ends={1},
        epochs=[[1, 2], [1], [1, 2], [1], [2], [], [2]],
    ),
    "hybridtier": Scene(
        "three samples of late are momentum enough for 2, and then for 1",
        ends={1, 2},
        epochs=[[1, 1, 2, 2, 2], [1]],
    ),
}


Moves = list[tuple[list[int], list[int], list[list[int]]]]


def play(name: str, scene: Scene, settings: str = "") -> tuple[Moves, set[int]]:
    """Return what the policy moved in each epoch, the order aside, and the pages in RAM then."""
    policy = load_policy(f"{name}:{settings}" if settings else name)
    world = PolicyWorld(policy, nr_ram_frames=scene.frames, budget_pages=scene.budget)
    moves = []
    for epoch in scene.epochs:
        if not isinstance(epoch, Epoch):
            epoch = Epoch(epoch)
        plan = world.epoch(epoch.pages, **epoch.facts)
        promoted, demoted = sorted(plan.promote.tolist()), sorted(plan.demote.tolist())
        moves.append((promoted, demoted, sorted(plan.exchange.tolist())))
    return moves, world.resident


@pytest.mark.parametrize("name", policy_names())
def test_nobody_else_does_as_it_does(name):
    assert name in SCENES, f"{name} has no scene: add a row to SCENES"
    scene = SCENES[name]
    moves, resident = play(name, scene, scene.settings)
    assert scene.ends is None or resident == scene.ends
    alike = [other for other in policy_names() if other != name and play(other, scene)[0] == moves]
    assert not alike, f"move the same in the scene of {name}: {', '.join(alike)}"


def test_every_scene_is_of_a_policy():
    assert SCENES.keys() <= set(policy_names())
