"""VmStat: counters by name."""

import dataclasses

from xipfs.mm.vmstat import VmStat


def test_all_start_at_zero_and_pgdemote_is_the_sum_of_its_causes():
    vmstat = VmStat()
    assert set(vmstat.as_dict().values()) == {0}
    vmstat.pgdemote_kswapd += 3
    vmstat.pgdemote_direct += 4
    vmstat.pgfault += 1
    counters = vmstat.as_dict()
    assert counters["pgdemote"] == 7
    assert {name for name, value in counters.items() if value} == {
        "pgdemote",
        "pgdemote_kswapd",
        "pgdemote_direct",
        "pgfault",
    }


def test_each_counter_is_explained():
    table = (VmStat.__doc__ or "").partition("\n\n")[2]
    explained = [line.split()[0] for line in table.splitlines() if line.strip()]
    assert explained == [field.name for field in dataclasses.fields(VmStat)]
