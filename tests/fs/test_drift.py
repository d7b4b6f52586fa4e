"""A working set that drifts: at least 0.7 of the accesses find RAM, under most policies.

The program, and what the others do with it, is `tools/bench drift`: docs/BENCHMARKS.md.
"""

from pathlib import Path

import pytest

from tools.drift import NR_FRAMES, make_drift_image, measure_drift

GOAL = 0.7


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_drift_image(tmp_path_factory.mktemp("drift") / "nvram.img")


@pytest.mark.parametrize("policy", ["arc", "memtis", "ours", "s3fifo", "second_chance"])
def test_ram_follows_the_working_set(image: Path, policy: str):
    """One read in ten goes anywhere, and no RAM that follows could have it."""
    drift = measure_drift(image, policy, noise=0.1)
    assert drift.ratio >= GOAL
    assert drift.nr_migrated > NR_FRAMES
    assert drift.facts["vmstat_complaints"] == []
    assert (drift.facts["policy_errors"], drift.facts["plan_refused"]) == (0, 0)


@pytest.mark.parametrize("policy", ["none", "static"])
def test_ram_that_does_not_follow_falls_behind(image: Path, policy: str):
    """So that it is the policies that keep the goal, not a program that needs none."""
    assert measure_drift(image, policy, noise=0.1).ratio < 0.3


def test_the_figures_are_the_same_again(image: Path):
    first, second = (measure_drift(image, "colloid", noise=0.1) for _ in range(2))
    assert first[:3] == second[:3]
