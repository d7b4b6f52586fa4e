"""Watermarks: how many frames of the tier should be free. Facts for whoever demotes and promotes.

    free frames   0 .. MIN .. LOW .. HIGH .. PROMO .. nr_tier_frames
                       |      |      |       promotion frees up to here (memory tiering)
                       |      |      kswapd goes back to sleep; promotion asks for as much
                       |      kswapd wakes
                       only the kernel itself may take from these

mm itself gives out the last frame to whoever asks.

Source: mm/page_alloc.c calculate_min_free_kbytes and __setup_per_zone_wmarks, 6.18. Differs from
Linux: MIN is at most a 64th, and not 128 KiB at least, since nobody but the tier lives in this RAM.
"""

import math
from typing import NamedTuple

from xipfs.units import PAGE_SHIFT

__all__ = ["Watermarks", "setup_per_zone_wmarks"]

_KIB_SHIFT = 10
_MIN_FREE_KBYTES_MAX = 262144
_WATERMARK_SCALE_FACTOR = 10
"""In 10,000ths of the tier: /proc/sys/vm/watermark_scale_factor."""


class Watermarks(NamedTuple):
    """In frames: WMARK_MIN, WMARK_LOW, WMARK_HIGH, WMARK_PROMO."""

    min: int
    low: int
    high: int
    promo: int


def setup_per_zone_wmarks(nr_tier_frames: int) -> Watermarks:
    """Return the watermarks of a tier of that size.

    >>> setup_per_zone_wmarks(16384)
    Watermarks(min=256, low=320, high=384, promo=448)
    """
    tier_kbytes = nr_tier_frames << (PAGE_SHIFT - _KIB_SHIFT)
    min_free_kbytes = min(math.isqrt(tier_kbytes * 16), _MIN_FREE_KBYTES_MAX)
    wmark_min = min(min_free_kbytes >> (PAGE_SHIFT - _KIB_SHIFT), nr_tier_frames >> 6)
    gap = max(wmark_min >> 2, nr_tier_frames * _WATERMARK_SCALE_FACTOR // 10000)
    return Watermarks(wmark_min, wmark_min + gap, wmark_min + 2 * gap, wmark_min + 3 * gap)
