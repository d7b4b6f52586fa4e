"""Counters in known forms: /proc/vmstat, vmstat(8), numastat(8), Prometheus."""

import json
import re

from xipfs.cli.vmforms import (
    render_numastat,
    render_prometheus,
    render_vmstat,
    render_vmstat_rates,
)
from xipfs.mm.vmstat import VmStat


def look(seconds: float, **counts: int) -> dict:
    return {
        "image": '/images/a "b".img',
        "policy": "lru",
        "uptime_s": seconds,
        "ram_free_frames": 7,
        "vmstat": VmStat().as_dict() | counts,
        "vmstat_complaints": [],
        "cost": {"model": "optane", "clients": 1, "energy_pj": None, "inject": False},
    }


def test_vmstat_is_a_name_and_a_count_a_line():
    facts = look(1, pgfault=12, pgpromote_success=3)
    lines = list(render_vmstat(facts))
    assert dict(line.split() for line in lines) == {k: str(v) for k, v in facts["vmstat"].items()}
    assert "pgpromote_candidate_nrl 0" in lines


def test_what_does_not_add_up_is_said():
    facts = look(1) | {"vmstat_complaints": ["a = b: (1, 2)"]}
    assert list(render_vmstat(facts))[-1] == "# does not hold: a = b: (1, 2)"


def test_rates_are_of_the_time_between_two_looks():
    looks = [
        look(10, xip_access=100, xip_access_ram=100, pgpromote_success=5),
        look(12, xip_access=300, xip_access_ram=150, pgpromote_success=25, pgdemote=4),
        look(13, xip_access=300, xip_access_ram=150, pgpromote_success=25, pgdemote=4),
    ]
    head, first, second = render_vmstat_rates(looks, as_json=False)
    row = dict(zip(head.split(), first.split(), strict=True))
    assert (row["%ram"], row["free"], row["access"]) == ("25.0%", "7", "100")
    assert (row["up"], row["down"]) == ("10", "2")
    assert set(second.split()) == {"0.0%", "7", "0"}


def test_the_head_comes_again():
    looks = [look(second) for second in range(42)]
    lines = list(render_vmstat_rates(looks, as_json=False))
    assert [i for i, line in enumerate(lines) if "access" in line] == [0, 21, 42]


def test_counts_for_programs():
    looks = [look(1, pgfault=1), look(2.5, pgfault=7)]
    [line] = render_vmstat_rates(looks, as_json=True)
    found = json.loads(line)
    assert (found["seconds"], found["pgfault"], found["ram_free_frames"]) == (1.5, 6, 7)


def test_numastat():
    files = [
        {"path": "/usr/lib/libc.so", "ram": 256, "nvram": 512},
        {"path": "/" + "x" * 60, "ram": 0, "nvram": 128},
    ]
    lines = list(render_numastat(files))
    assert lines[3].split() == ["/usr/lib/libc.so", "1.00", "2.00", "3.00"]
    assert lines[4].split() == ["x" * 40, "0.00", "0.50", "0.50"]
    assert lines[5].split() == ["Total", "1.00", "2.50", "3.50"]


def test_prometheus():
    lines = list(render_prometheus(look(3, pgfault=9)))
    label = r'image="/images/a \"b\".img"'
    assert f"xipfs_vmstat_pgfault_total{{{label}}} 9" in lines
    assert f"xipfs_cost_clients{{{label}}} 1" in lines
    assert f'xipfs_policy_info{{{label},policy="lru"}} 1' in lines
    samples = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z_]+\{.*\} [\d.]+", line) for line in samples)
    named = [re.match(r"(\w+)", line)[1] for line in samples]
    assert len(set(named)) == len(named)
    assert [line.split()[2] for line in lines if line.startswith("# TYPE")] == named
