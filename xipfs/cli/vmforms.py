"""Counters in the forms that one knows: of /proc/vmstat, vmstat(8), numastat(8) and Prometheus."""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from xipfs.units import PAGE_SIZE

__all__ = ["render_numastat", "render_prometheus", "render_vmstat", "render_vmstat_rates"]

_RATES = {
    "access": "xip_access",
    "fault": "pgfault",
    "hint": "numa_hint_faults",
    "cand": "pgpromote_candidate",
    "nrl": "pgpromote_candidate_nrl",
    "up": "pgpromote_success",
    "down": "pgdemote",
    "shadow": "xip_shadow_hit",
    "fail": "pgmigrate_fail",
}
"""Columns of `--as vmstat INTERVAL`: what is counted in them."""

_NR_HEADED_ROWS = 20
_MIB = 1 << 20


def render_vmstat(facts: dict[str, Any]) -> Iterator[str]:
    """Write the counters as /proc/vmstat does, and behind them what does not add up."""
    for name, count in facts["vmstat"].items():
        yield f"{name} {count}"
    for complaint in facts["vmstat_complaints"]:
        yield f"# does not hold: {complaint}"


def render_vmstat_rates(looks: Iterable[dict[str, Any]], *, as_json: bool) -> Iterator[str]:
    """Write a line for what happened between each two looks, per second, as vmstat(8) does.

    as_json: an object a line instead, with the counts themselves and the seconds.
    """
    for number, (before, now) in enumerate(itertools.pairwise(looks)):
        counts = {name: now["vmstat"][name] - before["vmstat"][name] for name in now["vmstat"]}
        elapsed_s = max(now["uptime_s"] - before["uptime_s"], 1e-3)
        if as_json:
            free = now["ram_free_frames"]
            yield json.dumps({"seconds": elapsed_s, "ram_free_frames": free, **counts})
            continue
        if number % _NR_HEADED_ROWS == 0:
            yield " ".join(f"{name:>7}" for name in ("%ram", "free", *_RATES))
        in_ram = counts["xip_access_ram"] / max(counts["xip_access"], 1)
        rates = (counts[name] / elapsed_s for name in _RATES.values())
        yield " ".join(
            [f"{in_ram:7.1%}", f"{now['ram_free_frames']:7}", *(f"{rate:7.0f}" for rate in rates)]
        )


def render_numastat(files: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Write where the pages of files are, in MiB, as numastat(8) does for processes.

    Node 0 is RAM, node 1 NVRAM, which also keeps the pages that are in RAM.
    """
    yield "Per-file memory use (in MiB), the hottest first"
    yield f"{'':40} {'Node 0':>10} {'Node 1':>10} {'Total':>10}"
    yield f"{'FILE':40} {'RAM':>10} {'NVRAM':>10}"
    totals = [0, 0]
    for file in files:
        totals = [totals[0] + file["ram"], totals[1] + file["nvram"]]
        yield _numastat_row(file["path"][-40:], file["ram"], file["nvram"])
    yield _numastat_row("Total", *totals)


def render_prometheus(facts: dict[str, Any]) -> Iterator[str]:
    """Write all figures in the text format that Prometheus scrapes; counters end in _total."""
    label = facts["image"].replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    figures = {name: value for name, value in facts.items() if _is_number(value)}
    figures |= {f"cost_{name}": v for name, v in facts["cost"].items() if _is_number(v)}
    counters = {f"vmstat_{name}_total": count for name, count in facts["vmstat"].items()}
    for kind, found in (("gauge", figures), ("counter", counters)):
        for name, value in found.items():
            yield f"# TYPE xipfs_{name} {kind}"
            yield f'xipfs_{name}{{image="{label}"}} {value}'
    yield "# TYPE xipfs_policy_info gauge"
    policy = facts["policy"].replace("\\", "\\\\").replace('"', '\\"')
    yield f'xipfs_policy_info{{image="{label}",policy="{policy}"}} 1'


def _numastat_row(name: str, nr_ram: int, nr_nvram: int) -> str:
    sizes = (nr_ram, nr_nvram, nr_ram + nr_nvram)
    return f"{name:40} " + " ".join(f"{nr * PAGE_SIZE / _MIB:10.2f}" for nr in sizes)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
