"""A program that reads one file page by page, and knows what it has read: the truth of a run.

    reader.py FILE WORKLOAD HOW SECONDS LOG     HOW: read, mmap, or random: with MADV_RANDOM

Each page is read whole (its CRC is computed), so that a read is some work beside its system call.
LOG, an .npz, then has all of it: `page` (int32, shape (nr_accesses,)), and for each block of
NR_BLOCK accesses when it began, `time_s` (on CLOCK_MONOTONIC); with `cpu_s` and `elapsed_s` in all.

    hot     90 % of the accesses are to 5 % of the pages, scattered; the rest to all
    clustered   the same in runs of 16 pages
    zipf    the page of rank r is read in proportion to 1 / r
    scan    80 % to the hot pages, between them the file from front to back, again and again
    drift   as hot, but every 30 seconds all hot pages have become others, one by one
"""

import mmap
import os
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HOT_RATIO", "NR_BLOCK", "WORKLOADS", "main", "pages_of"]

NR_BLOCK = 1024
HOT_RATIO = 0.05
_PAGE_SIZE = 4096
_SEED = 1
_NR_RUN_PAGES = 16
_DRIFT_S = 30.0

WORKLOADS = ("hot", "clustered", "zipf", "scan", "drift")


def pages_of(workload: str, nr_pages: int) -> Callable[[float], NDArray[np.int64]]:
    """Return what gives the next NR_BLOCK pages to read, *elapsed_s* after the start."""
    rng = np.random.default_rng(_SEED)
    order = rng.permutation(nr_pages)
    nr_hot = int(nr_pages * HOT_RATIO)
    if workload == "clustered":
        runs = rng.permutation(nr_pages // _NR_RUN_PAGES) * _NR_RUN_PAGES
        order = (runs[:, np.newaxis] + np.arange(_NR_RUN_PAGES)).ravel()
    if workload == "zipf":
        shares = np.cumsum(1 / np.arange(1, nr_pages + 1))
        shares /= shares[-1]
        return lambda _: order[np.searchsorted(shares, rng.random(NR_BLOCK))]
    hot_share = 0.8 if workload == "scan" else 0.9
    scanned = 0

    def pages(elapsed_s: float) -> NDArray[np.int64]:
        nonlocal scanned
        first = int(elapsed_s / _DRIFT_S * nr_hot) if workload == "drift" else 0
        hot = order[(first + rng.integers(0, nr_hot, NR_BLOCK)) % nr_pages]
        if workload == "scan":
            others = (scanned + np.arange(NR_BLOCK)) % nr_pages
        else:
            others = rng.integers(0, nr_pages, NR_BLOCK)
        is_other = rng.random(NR_BLOCK) >= hot_share
        hot[is_other] = others[: np.count_nonzero(is_other)]
        scanned += int(np.count_nonzero(is_other))
        return hot

    return pages


def main(path: str, workload: str, how: str, seconds: str, log: str) -> None:
    """Read, then write the log."""
    fd = os.open(path, os.O_RDONLY)
    size_bytes = os.fstat(fd).st_size
    next_pages = pages_of(workload, size_bytes // _PAGE_SIZE)
    mapped = None
    if how != "read":
        whole = mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ)
        whole.madvise(mmap.MADV_RANDOM if how == "random" else mmap.MADV_NORMAL)
        mapped = memoryview(whole)
    blocks, times_s = [], []
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    while (now_s := time.monotonic()) < start_s + float(seconds):
        pages = next_pages(now_s - start_s)
        if mapped is not None:
            for offset in (pages * _PAGE_SIZE).tolist():
                zlib.crc32(mapped[offset : offset + _PAGE_SIZE])
        else:
            for offset in (pages * _PAGE_SIZE).tolist():
                zlib.crc32(os.pread(fd, _PAGE_SIZE, offset))
        blocks.append(pages.astype(np.int32))
        times_s.append(now_s)
    facts: dict[str, Any] = {
        "page": np.concatenate(blocks),
        "time_s": np.array(times_s),
        "elapsed_s": time.monotonic() - start_s,
        "cpu_s": time.process_time() - start_cpu_s,
    }
    np.savez(Path(log), **facts)


if __name__ == "__main__":
    main(*sys.argv[1:])
