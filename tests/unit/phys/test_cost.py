"""The cost model: each term by hand, and how it grows with the load."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xipfs.mm.vmstat import VmStat
from xipfs.phys.cost import (
    COST_DEFAULT,
    NR_UNDER_WAY_MAX,
    PAGE_MIGRATION_NS,
    CostAccount,
    CostModel,
    Waits,
    parse_cost,
)
from xipfs.phys.media import RAM_AND_NVRAM, Medium
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, PAGE_SIZE

# Round figures: a page takes 100 + 40 and 200 + 80 ns in RAM, 500 + 400 and 1000 + 4000 in NVRAM.
RAM = Medium(
    "fast",
    100,
    200,
    PAGE_SIZE / 40e-9,
    PAGE_SIZE / 80e-9,
    "made up",
    1.0,
    2.0,
    endurance_cycles=None,
)
NVRAM = Medium(
    "slow", 500, 1000, PAGE_SIZE / 400e-9, PAGE_SIZE / 4000e-9, "made up", 3.0, 50.0, 1000, 256
)
MODEL = CostModel("test", RAM, NVRAM)
SECOND_NS = 1_000_000_000
NVRAM_PADDR = NVRAM_PFN_START << PAGE_SHIFT

every_model = pytest.mark.parametrize("name", RAM_AND_NVRAM)


@pytest.fixture
def vmstat() -> VmStat:
    return VmStat()


@pytest.fixture
def account(vmstat: VmStat) -> CostAccount:
    return CostAccount(MODEL, vmstat)


def read(vmstat: VmStat, *, ram: int = 0, nvram: int = 0, sparse: int = 0) -> None:
    """Count pages read; holes are in RAM, too."""
    vmstat.xip_access += ram + nvram + sparse
    vmstat.xip_access_ram += ram + sparse
    vmstat.xip_access_sparse += sparse


# Media


def test_an_access_is_latency_and_transfer():
    assert (RAM.read_ns, RAM.write_ns) == pytest.approx((140, 280))
    assert (NVRAM.read_ns, NVRAM.write_ns) == pytest.approx((900, 5000))


@every_model
def test_every_medium_is_possible_and_says_where_it_is_from(name):
    for medium in RAM_AND_NVRAM[name]:
        assert min(medium.read_latency_ns, medium.write_latency_ns) > 0
        assert min(medium.read_bandwidth_bytes_per_s, medium.write_bandwidth_bytes_per_s) > 0
        assert (medium.read_energy_pj_per_byte is None) == (medium.write_energy_pj_per_byte is None)
        assert len(medium.source) > 40


@every_model
def test_nvram_is_never_faster_than_its_ram_and_writes_never_than_reads_of_it(name):
    ram, nvram = RAM_AND_NVRAM[name]
    assert nvram.read_ns >= ram.read_ns
    assert nvram.write_ns >= nvram.read_ns * 0.99  # CXL: equal, for want of a source


def test_figures_of_the_sources():
    """305 + 4096 / 38.9; 90 + 128 pages of 32 bytes; 155 + 4096 / 32."""
    read_ns = {name: nvram.read_ns for name, (_, nvram) in RAM_AND_NVRAM.items()}
    assert read_ns["optane"] == pytest.approx(305 + 105.3, abs=0.1)
    assert read_ns["nor"] == pytest.approx(90 + 128 * 315)
    assert read_ns["cxl"] == pytest.approx(155 + 128)
    assert read_ns["dcss"] == read_ns["dram"] == RAM_AND_NVRAM["cxl"][0].read_ns


def test_the_default_is_in_the_table():
    assert parse_cost("optane") == COST_DEFAULT
    assert str(COST_DEFAULT) == "optane"


# The queue


def test_no_load_no_wait():
    assert MODEL.wait_ns(NVRAM, nr_reads=0, elapsed_ns=1) == 0


@pytest.mark.parametrize(
    ("nr_reads", "wait_ns"),
    # rho = 0.1, 0.5, 0.8 of 400 ns each: M/D/1, rho * S / (2 * (1 - rho)).
    [(250_000, 400 / 18), (1_250_000, 200), (2_000_000, 800)],
)
def test_reads_alone_are_m_d_1(nr_reads, wait_ns):
    found = MODEL.wait_ns(NVRAM, nr_reads=nr_reads, elapsed_ns=SECOND_NS)
    assert found == pytest.approx(wait_ns)


def test_reads_wait_for_slow_writes():
    """rho 0.2 of reads and 0.3 of writes: (0.2 * 400 + 0.3 * 4000) / (2 * 0.5) = 1280 ns."""
    found = MODEL.wait_ns(NVRAM, nr_reads=500_000, nr_writes=75_000, elapsed_ns=SECOND_NS)
    assert found == pytest.approx(1280)
    assert found > MODEL.wait_ns(NVRAM, nr_reads=1_250_000, elapsed_ns=SECOND_NS)


@pytest.mark.parametrize("nr_reads", [2_500_000, 2_500_001, 10**9, 10**15])
def test_a_full_memory_makes_all_that_is_under_way_wait(nr_reads):
    found = MODEL.wait_ns(NVRAM, nr_reads=nr_reads, elapsed_ns=SECOND_NS)
    assert found == pytest.approx(NR_UNDER_WAY_MAX * 400)


def test_a_full_memory_serves_its_bandwidth():
    """Little's law: what is under way, by the time of one, is not more than a page each 400 ns."""
    model = replace(MODEL, clients=100)
    under_way = NR_UNDER_WAY_MAX * model.clients
    one_ns = NVRAM.read_ns + model.wait_ns(NVRAM, nr_reads=10**9, elapsed_ns=SECOND_NS)
    assert under_way / one_ns <= 1 / NVRAM.read_transfer_ns
    assert under_way / one_ns == pytest.approx(1 / NVRAM.read_transfer_ns, rel=0.01)


def test_clients_multiply_the_load_and_nothing_else():
    hundred = replace(MODEL, clients=100)
    one = MODEL.wait_ns(NVRAM, nr_reads=1_250_000, elapsed_ns=SECOND_NS)
    assert hundred.wait_ns(NVRAM, nr_reads=12_500, elapsed_ns=SECOND_NS) == pytest.approx(one)
    assert hundred.promote_ns(Waits()) == MODEL.promote_ns(Waits())


pages = st.integers(0, 10**8)
factors = st.floats(1, 100)


@given(pages, pages, factors, st.integers(1, 1000))
def test_more_of_the_same_load_never_waits_shorter(nr_reads, nr_writes, factor, clients):
    model = replace(MODEL, clients=clients)
    waits = [
        model.wait_ns(
            NVRAM, nr_reads=nr_reads, nr_writes=nr_writes, elapsed_ns=round(SECOND_NS / by)
        )
        for by in (1, factor)
    ]
    assert 0 <= waits[0] <= waits[1] * (1 + 1e-9)


@given(pages, pages, st.integers(1, 1000))
def test_more_reads_alone_never_wait_shorter(nr_reads, more, clients):
    model = replace(MODEL, clients=clients)
    fewer_ns = model.wait_ns(NVRAM, nr_reads=nr_reads, elapsed_ns=SECOND_NS)
    assert fewer_ns <= model.wait_ns(NVRAM, nr_reads=nr_reads + more, elapsed_ns=SECOND_NS)


@given(pages, pages, st.integers(1, 1000))
def test_more_clients_never_wait_shorter(nr_reads, nr_writes, clients):
    def wait_ns(clients: int) -> float:
        model = replace(MODEL, clients=clients)
        return model.wait_ns(NVRAM, nr_reads=nr_reads, nr_writes=nr_writes, elapsed_ns=SECOND_NS)

    assert wait_ns(clients) <= wait_ns(clients + 1) * (1 + 1e-9)


# The account


def test_accesses_are_charged_by_tier(account, vmstat):
    read(vmstat, ram=10, nvram=3)
    facts = account.facts()
    assert facts["access_ram_ns"] == 10 * 140
    assert facts["access_nvram_ns"] == 3 * 900
    assert facts["access_mean_ns"] == pytest.approx(4100 / 13, abs=0.05)
    assert facts["access_all_in_nvram_ns"] == 13 * 900
    assert facts["net_benefit_ns"] == 10 * (900 - 140)
    assert facts["clock_ns"] == account.clock_ns == 4100


def test_charging_twice_charges_once(account, vmstat):
    read(vmstat, ram=10, nvram=3)
    account.charge()
    facts = account.facts()
    account.charge()
    assert account.facts() == facts


def test_what_was_before_the_account_is_free(vmstat):
    read(vmstat, ram=5, nvram=5)
    assert CostAccount(MODEL, vmstat).facts()["clock_ns"] == 0


def test_a_hole_is_in_ram_whatever_the_tiers_are(account, vmstat):
    """Else reading zeros from the one shared page would look like a benefit of tiering."""
    read(vmstat, sparse=1000)
    facts = account.facts()
    assert facts["access_ram_ns"] == 1000 * 140
    assert facts["net_benefit_ns"] == 0


def test_a_promotion_reads_nvram_and_writes_ram(account, vmstat):
    vmstat.pgpromote_success += 2
    facts = account.facts()
    assert facts["migration_ns"] == 2 * (PAGE_MIGRATION_NS + 900 + 280)
    assert facts["net_benefit_ns"] == -facts["migration_ns"]
    assert facts["energy_pj"] == 2 * PAGE_SIZE * (3 + 2)


def test_a_clean_page_goes_back_without_a_copy(account, vmstat):
    vmstat.pgdemote_kswapd += 3
    vmstat.pgdemote_direct += 2
    vmstat.xip_shadow_hit += 5
    facts = account.facts()
    assert facts["migration_ns"] == 5 * PAGE_MIGRATION_NS
    assert facts["energy_pj"] == 0


def test_a_dirty_page_goes_back_with_one(account, vmstat):
    vmstat.pgdemote_kswapd += 3
    vmstat.xip_shadow_hit += 1
    facts = account.facts()
    assert facts["migration_ns"] == 3 * PAGE_MIGRATION_NS + 2 * (140 + 5000)
    assert facts["energy_pj"] == 2 * PAGE_SIZE * (1 + 50)


def test_migrating_pays_when_the_page_is_read_often_enough(account, vmstat):
    """(1000 + 900 + 280) / (900 - 140) = 2.9 reads."""
    vmstat.pgpromote_success += 1
    read(vmstat, ram=2)
    assert account.facts()["net_benefit_ns"] < 0
    read(vmstat, ram=1)
    assert account.facts()["net_benefit_ns"] > 0


def test_energy_needs_figures_of_both_media(vmstat):
    account = CostAccount(parse_cost("optane"), vmstat)
    read(vmstat, ram=1, nvram=1)
    assert account.facts()["energy_pj"] is None


def test_wear_is_reported_in_blocks_of_the_medium(account):
    assert account.wear is not None
    account.wear.record(0, PAGE_SIZE)
    account.wear.record(0, 1)
    facts = account.facts()
    assert (facts["wear_blocks"], facts["wear_block_size_bytes"]) == (16, 256)
    assert (facts["wear_max_cycles"], facts["wear_mean_cycles"]) == (2, 1.062)
    assert facts["endurance_cycles"] == 1000


def test_what_does_not_wear_out_is_not_counted(vmstat):
    account = CostAccount(parse_cost("cxl"), vmstat)
    assert account.wear is None
    assert account.facts()["wear_max_cycles"] is None


# Epochs


def test_an_epoch_is_charged_with_its_own_load(account, vmstat):
    """Half of the time NVRAM is busy: everybody waits for 200 ns."""
    read(vmstat, nvram=1_250_000)
    account.tier_facts(SECOND_NS)
    assert account.facts()["access_nvram_ns"] == pytest.approx(1_250_000 * 1100)


def test_the_facts_that_a_policy_gets(account, vmstat):
    read(vmstat, ram=5_000_000, nvram=1_250_000)
    facts = account.tier_facts(SECOND_NS)
    assert facts.nr_accesses == (5_000_000, 1_250_000)
    assert facts.latency_ns == pytest.approx((140 + 5, 900 + 200))
    assert facts.occupancy == pytest.approx((5e6 * 145 / 1e9, 1.25e6 * 1100 / 1e9))
    assert facts.promote_ns == pytest.approx(PAGE_MIGRATION_NS + 1100 + 280 + 5)
    assert facts.write_back_ns == pytest.approx(PAGE_MIGRATION_NS + 145 + 5000 + 200)
    assert account.latency_ns == facts.latency_ns


def test_an_idle_epoch_has_no_load_and_facts_all_the_same(account, vmstat):
    read(vmstat, nvram=1_250_000)
    account.tier_facts(SECOND_NS)
    facts = account.tier_facts(SECOND_NS)
    assert facts.nr_accesses == (0, 0)
    assert facts.latency_ns == pytest.approx((140, 900))
    assert facts.occupancy == (0, 0)


def test_ram_can_become_slower_than_nvram(vmstat):
    """Else a policy that balances latencies (Colloid) would have nothing to do."""
    account = CostAccount(parse_cost("cxl:clients=1000"), vmstat)
    read(vmstat, ram=30_000, nvram=1_000)
    facts = account.tier_facts(SECOND_NS)
    assert facts.latency_ns[0] > facts.latency_ns[1]


def test_migration_loads_the_memories_too(account, vmstat):
    vmstat.pgpromote_success += 1_250_000
    facts = account.tier_facts(SECOND_NS)
    assert facts.latency_ns[1] == pytest.approx(900 + 200)


def test_all_in_nvram_is_reckoned_with_the_load_that_would_have_been(account, vmstat):
    """1.25 million reads of RAM would have kept NVRAM busy for half of the time."""
    read(vmstat, ram=1_250_000)
    account.tier_facts(SECOND_NS)
    assert account.facts()["access_all_in_nvram_ns"] == pytest.approx(1_250_000 * 1100)


def test_an_epoch_of_no_time_at_all(account, vmstat):
    read(vmstat, nvram=10)
    facts = account.tier_facts(0)
    assert facts.latency_ns[1] == pytest.approx(900 + NR_UNDER_WAY_MAX * 400)


events = st.tuples(*[st.integers(0, 10**7)] * 5, st.integers(1, SECOND_NS), st.booleans())


@given(st.sampled_from(list(RAM_AND_NVRAM)), st.integers(1, 1000), st.lists(events, max_size=6))
def test_the_clock_never_goes_back_and_the_sums_are_right(name, clients, history):
    vmstat = VmStat()
    account = CostAccount(CostModel(name, *RAM_AND_NVRAM[name], clients=clients), vmstat)
    clock_ns = 0
    for ram, nvram, sparse, promoted, demoted, elapsed_ns, ends_epoch in history:
        read(vmstat, ram=ram, nvram=nvram, sparse=sparse)
        vmstat.pgpromote_success += promoted
        vmstat.pgdemote_kswapd += demoted
        vmstat.xip_shadow_hit += demoted // 2
        if ends_epoch:
            account.tier_facts(elapsed_ns)
        facts = account.facts()
        assert facts["clock_ns"] >= clock_ns
        clock_ns = facts["clock_ns"]
        parts = facts["access_ram_ns"] + facts["access_nvram_ns"] + facts["migration_ns"]
        assert clock_ns == pytest.approx(parts, rel=1e-9, abs=3)
        assert facts["net_benefit_ns"] == pytest.approx(
            facts["access_all_in_nvram_ns"] - parts, rel=1e-9, abs=3
        )


# Who really waits


def test_runs_cost_what_the_account_charges(account, vmstat):
    runs = [(NVRAM_PADDR + 5, PAGE_SIZE), (0, PAGE_SIZE), (NVRAM_PADDR, 1)]
    assert account.read_ns(runs) == 3 * 900 + 140
    read(vmstat, ram=1, nvram=3)
    assert account.facts()["clock_ns"] == account.read_ns(runs)
    assert account.read_ns([]) == 0


@given(st.integers(0, PAGE_SIZE - 1), st.integers(1, 1 << 20))
def test_a_run_is_charged_for_each_page_it_touches(offset, size_bytes):
    account = CostAccount(MODEL, VmStat())
    touched = {byte >> PAGE_SHIFT for byte in (offset, offset + size_bytes - 1)}
    nr_pages = max(touched) - min(touched) + 1
    assert account.read_ns([(offset, size_bytes)]) == pytest.approx(nr_pages * 140, abs=1)


@given(st.text(max_size=12))
def test_any_other_text_is_refused_in_one_line(text):
    assume(text not in RAM_AND_NVRAM)
    with pytest.raises(ValueError, match="one of optane, cxl, pcm, nor, dcss, dram") as caught:
        parse_cost(text)
    assert str(caught.value).isprintable()
