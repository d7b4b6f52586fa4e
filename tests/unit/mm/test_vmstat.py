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


def test_sums_that_hold_say_nothing_and_others_say_their_values():
    vmstat = VmStat()
    assert vmstat.check_sums(0, has_policy=True) == []
    vmstat.pgpromote_success = vmstat.pgmigrate_success = 3
    assert vmstat.check_sums(3, has_policy=False) == []
    assert vmstat.check_sums(3, has_policy=True) == [
        "pgpromote_success <= candidate + candidate_nrl: (3, 0, 0)"
    ]
    vmstat.pgpromote_candidate, vmstat.pgpromote_candidate_nrl = 1, 2
    assert vmstat.check_sums(3, has_policy=True) == []
    vmstat.xip_truncate = 1
    assert vmstat.check_sums(3, has_policy=True) == [
        "promoted - demoted - truncated = resident: (3, 0, 1, 3)"
    ]
    vmstat.pgdemote_proactive = vmstat.xip_access_ram = vmstat.xip_insert_sparse = 1
    assert vmstat.check_sums(1, has_policy=True) == [
        "pgmigrate_success = promoted + demoted: (3, 3, 1)",
        "demoted <= xip_shadow_hit + xip_writeback: (1, 0, 0)",
        "xip_access_ram <= xip_access: (1, 0)",
        "xip_insert_sparse <= xip_insert_page: (1, 0)",
    ]
