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
    """A story of a few epochs, and the pages that are in RAM after the last.

    why: what the policy does here that others do not.
    epochs: the pages of each in their order, or an Epoch.
    settings: parameters of the policy in question, "scale=0.01"; the others play with theirs.
    """

    why: str
    ends: set[int]
    epochs: Sequence[Sequence[int] | Epoch]
    frames: int = 8
    budget: int = 1024
    settings: str = ""


SCENES = {
    "none": Scene(
        "moves nothing, whatever is used, however often, while there is room for all of it",
        ends=set(),
        epochs=[[1, 1, 2, 2, 3, 3] * 20] * 12,
    ),
    "second_chance": Scene(
        "lets in what comes again in a later epoch: 1 and 2; what comes once, however often, waits",
        ends={1, 2},
        epochs=[[1, 2, 3, 3, 3], [1, 2, 4, 4, 4], [5, 6]],
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
    assert resident == scene.ends
    alike = [other for other in policy_names() if other != name and play(other, scene)[0] == moves]
    assert not alike, f"move the same in the scene of {name}: {', '.join(alike)}"


def test_every_scene_is_of_a_policy():
    assert SCENES.keys() <= set(policy_names())
