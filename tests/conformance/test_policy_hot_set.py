"""Every policy that looks at use finds a hot set beside a scan, on a small mount, as it comes.

Constants made for tens of GiB must not keep a page out of 8 MiB for ever: see `scale`. 400 pages
are used 8 times an epoch, all others of an image 4 times the size of RAM once in 20 epochs.
"""

import numpy as np
import pytest

from tests.kit.policy import PolicyWorld
from xipfs.policy.registry import load_policy, policy_names

BLIND_TO_USE = {"none", "random", "static"}

NR_FRAMES = 2048
IMAGE = np.arange(4 * NR_FRAMES)
HOT = IMAGE[3000:3400]
NR_EPOCHS = 50


@pytest.mark.parametrize("name", [name for name in policy_names() if name not in BLIND_TO_USE])
def test_a_hot_set_comes_to_ram(name):
    rng = np.random.default_rng(5)
    world = PolicyWorld(load_policy(name), nr_ram_frames=NR_FRAMES)
    for epoch in range(NR_EPOCHS):
        part = np.array_split(IMAGE, 20)[epoch % 20]
        world.epoch(rng.permutation(np.concatenate([np.repeat(HOT, 8), part])))
    share = len(world.resident & set(HOT.tolist())) / len(HOT)
    assert share > 0.8, f"{share:.0%} of the hot pages are in RAM"
