"""watermark: the kernel's formulae, and tiers too small for them."""

import pytest

from tests.kit.mm import World
from xipfs.mm.memory_hotplug import resize_tier
from xipfs.mm.watermark import setup_per_zone_wmarks


@pytest.mark.parametrize(
    ("nr_tier_frames", "watermarks"),
    [
        (0, (0, 0, 0, 0)),
        (8, (0, 0, 0, 0)),
        (64, (1, 1, 1, 1)),
        (1 << 14, (256, 320, 384, 448)),
        # 16 GiB: min_free_kbytes is 16384, as sysctl says on such machines.
        (1 << 22, (4096, 8290, 12484, 16678)),
        (1 << 32, (65536, 4360503, 8655470, 12950437)),
    ],
)
def test_watermarks_are_the_kernels(nr_tier_frames: int, watermarks: tuple[int, ...]):
    assert setup_per_zone_wmarks(nr_tier_frames) == watermarks


def test_they_follow_the_size_of_the_tier(world: World):
    assert world.machine.watermarks == setup_per_zone_wmarks(8)
    resize_tier(world.machine, 4)
    assert world.machine.watermarks == setup_per_zone_wmarks(4)
