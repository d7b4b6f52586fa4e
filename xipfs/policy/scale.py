"""Constants that count pages or samples, brought to the size of the machine at hand.

    scale = scale_of(None, tiers.nr_ram_frames, REFERENCE_FRAMES)      1/64 on 64 MiB, for 4 GiB
    batch = scaled(NR_BATCH_SAMPLES, scale)

The published systems were made for tens or hundreds of GiB; with their numbers a RAM tier of some
thousand frames would wait for ever. `scale` multiplies what counts pages, bytes or samples in
absolute terms, never a ratio and never a time.
"""

__all__ = ["scale_of", "scaled"]


def scale_of(scale: float | None, nr_ram_frames: int, reference_frames: int) -> float:
    """Return *scale*, or for None how much smaller the RAM tier is than the reference, at most 1.

    >>> scale_of(None, 1 << 14, 1 << 20)
    0.015625
    >>> scale_of(None, 1 << 24, 1 << 20), scale_of(3.0, 1 << 14, 1 << 20)
    (1.0, 3.0)
    """
    return min(1.0, nr_ram_frames / reference_frames) if scale is None else scale


def scaled(count: int, scale: float) -> int:
    """Return *count* times *scale*, at least 1.

    >>> scaled(512, 1 / 16), scaled(512, 1 / 4096)
    (32, 1)
    """
    return max(1, round(count * scale))
