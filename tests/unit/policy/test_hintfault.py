"""HintFaults: who is armed, who faults, and how late."""

import numpy as np

from tests.kit.policy import EPOCH_NS, make_batch, make_tiers
from xipfs.policy.hintfault import HintFaults
from xipfs.policy.pageset import page_set
from xipfs.policy.pagestats import PageStats


class Scanner:
    """Epoch after epoch: take, then scan."""

    def __init__(self, scan_pages=100, period_ns=EPOCH_NS):
        self.stats = PageStats(scan_ns=np.int64)
        self.faults = HintFaults(self.stats)
        self.size = {"scan_pages": scan_pages, "period_ns": period_ns}
        self.nr_epochs = 0

    def epoch(self, pages, resident=(), latency_ns=None):
        tiers = make_tiers(epoch=self.nr_epochs, resident=resident, nr_ram_frames=100)
        self.nr_epochs += 1
        batch = make_batch(pages, resident, latency_ns)
        self.stats.rows(page_set(np.concatenate([batch.page, tiers.resident])))
        rows, late_ns = self.faults.take(batch, tiers)
        self.faults.scan(tiers, **self.size)
        return dict(zip(self.stats.pages[rows].tolist(), late_ns.tolist(), strict=True))


def test_a_page_faults_when_it_is_used_after_a_scan():
    scanner = Scanner()
    assert scanner.epoch([1, 2]) == {}
    assert list(scanner.epoch([2, 2, 1])) == [2, 1]
    assert list(scanner.epoch([7])) == []


def test_latency_is_time_since_the_scan_that_armed_it():
    scanner = Scanner()
    scanner.epoch([1, 2])
    assert scanner.epoch([9, 9, 9, 1]) == {1: EPOCH_NS}
    assert scanner.epoch([2, 1]) == {2: 3 * EPOCH_NS // 2, 1: EPOCH_NS}


def test_pages_in_ram_are_not_armed():
    scanner = Scanner()
    scanner.epoch([1, 2], resident=[1])
    assert list(scanner.epoch([1, 2], resident=[1])) == [2]


def test_a_scan_goes_round_by_its_size():
    scanner = Scanner(scan_pages=2)
    scanner.epoch(range(5))
    assert list(scanner.epoch(range(5))) == [0, 1]
    assert list(scanner.epoch(range(5))) == [2, 3]
    assert list(scanner.epoch(range(5))) == [0, 4]


def test_what_is_armed_costs_nothing_of_the_size():
    scanner = Scanner(scan_pages=2)
    scanner.epoch(range(4))
    scanner.epoch([])
    assert list(scanner.epoch(range(4))) == [0, 1, 2, 3]


def test_a_slow_scan_saves_up():
    scanner = Scanner(scan_pages=1, period_ns=2 * EPOCH_NS)
    scanner.epoch([1, 2])
    assert scanner.epoch([]) == {}
    assert list(scanner.epoch([1, 2])) == [1]


def test_where_there_is_a_sampler_it_scans():
    scanner = Scanner()
    assert scanner.epoch([1, 2, 3], latency_ns=[5, -1, 7], resident=[3]) == {1: 5}
    assert scanner.epoch([1, 2], latency_ns=[-1, -1]) == {}
    assert scanner.epoch([2, 1, 2], latency_ns=[4, 9, 6]) == {2: 4, 1: 9}
