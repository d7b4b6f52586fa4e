"""What a whole mount, without FUSE, is charged for reading and for moving pages."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.kit.files import DirectFiles
from tests.kit.tree import random_bytes
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import Entry
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import CacheMode, MountOptions
from xipfs.mm.migrate import DemoteReason, demote_pages, promote_pages
from xipfs.phys.cost import PAGE_MIGRATION_NS, parse_cost
from xipfs.units import PAGE_SIZE

NR_PAGES = 64
NR_HOLES = 16


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A file of 64 pages and 16 of hole behind them; the policy moves nothing by itself."""
    size_bytes = (NR_PAGES + NR_HOLES) * PAGE_SIZE
    pieces = [(0, random_bytes(NR_PAGES * PAGE_SIZE, 1))]
    entry = Entry(b"file", 0o100644, 0, 0, 0, size_bytes=size_bytes, pieces=pieces)
    mkfs(tmp_path / "nvram.img", [entry], now_ns=0)
    options = MountOptions(
        ro=True,
        ram_bytes=NR_PAGES * PAGE_SIZE,
        policy="none",
        cache=CacheMode.NONE,
        cost=parse_cost("cxl"),
    )
    mount = Mount.open(tmp_path / "nvram.img", options)
    yield mount
    mount.close()


def bill(mount: Mount) -> dict:
    return mount.statistics()["cost"]


def test_reads_of_every_form_are_charged_by_the_page(mount: Mount):
    files = DirectFiles(mount)
    opened = files.open(b"file")
    files.read(opened, 0, 1)
    files.read(opened, PAGE_SIZE - 1, 2)
    files.read(opened, 0, NR_PAGES * PAGE_SIZE)
    found = bill(mount)
    assert found["model"] == "cxl"
    assert found["inject"] is False
    assert found["accesses"] == 3 + NR_PAGES
    nvram = mount.options.cost.nvram
    assert found["access_nvram_ns"] == round((3 + NR_PAGES) * nvram.read_ns)
    assert (found["access_ram_ns"], found["migration_ns"], found["net_benefit_ns"]) == (0, 0, 0)
    assert found["clock_ns"] == found["access_nvram_ns"]


def test_pages_in_ram_pay_back_what_moving_them_cost(mount: Mount):
    files = DirectFiles(mount)
    opened = files.open(b"file")
    promote_pages(mount.machine, opened[1].mapping, np.arange(NR_PAGES))
    model = mount.options.cost
    spent_ns = NR_PAGES * (PAGE_MIGRATION_NS + model.nvram.read_ns + model.ram.write_ns)
    assert bill(mount)["net_benefit_ns"] == -round(spent_ns)
    saved_ns = NR_PAGES * (model.nvram.read_ns - model.ram.read_ns)
    for _ in range(20):
        files.read(opened, 0, NR_PAGES * PAGE_SIZE)
    assert bill(mount)["net_benefit_ns"] == pytest.approx(20 * saved_ns - spent_ns, abs=1)
    demote_pages(mount.machine, opened[1].mapping, range(NR_PAGES), DemoteReason.KSWAPD)
    assert bill(mount)["migration_ns"] == pytest.approx(
        spent_ns + NR_PAGES * PAGE_MIGRATION_NS, abs=1
    )


def test_holes_neither_cost_nvram_nor_are_a_benefit(mount: Mount):
    files = DirectFiles(mount)
    opened = files.open(b"file")
    start = NR_PAGES * PAGE_SIZE
    files.read(opened, start, PAGE_SIZE)
    files.read(opened, start, NR_HOLES * PAGE_SIZE)
    assert mount.machine.vmstat.xip_access_sparse == 1 + NR_HOLES
    found = bill(mount)
    assert found["access_nvram_ns"] == 0
    assert found["access_ram_ns"] == round((1 + NR_HOLES) * mount.options.cost.ram.read_ns)
    assert found["net_benefit_ns"] == 0
    files.read(opened, start - PAGE_SIZE, 2 * PAGE_SIZE)  # one of each
    assert mount.machine.vmstat.xip_access_sparse == 2 + NR_HOLES
    assert bill(mount)["access_nvram_ns"] == round(mount.options.cost.nvram.read_ns)


def test_an_epoch_ends_with_its_load(mount: Mount):
    """The epochs of a mount are told to the account; what its policy is then told comes of that."""
    files = DirectFiles(mount)
    opened = files.open(b"file")
    mount.log.clock = lambda: 0
    mount.run_epoch()
    files.read(opened, 0, NR_PAGES * PAGE_SIZE)
    mount.log.clock = lambda: 64 * 256  # NVRAM is busy for 64 * 128 ns of it
    mount.run_epoch()
    # rho = 0.5: half a transfer of 128 ns.
    assert bill(mount)["latency_nvram_ns"] == pytest.approx(155 + 128 + 64, abs=0.1)
    assert bill(mount)["access_mean_ns"] == pytest.approx(155 + 128 + 64, abs=0.1)


def test_a_mount_of_flash_counts_what_wears_it(tmp_path: Path, mount: Mount):
    """Nothing is written yet, but by who writes to the device."""
    options = MountOptions(ro=True, cost=parse_cost("nor"))
    worn = Mount.open(mount.sb.nvram.path, options)
    assert (bill(worn)["wear_blocks"], bill(worn)["wear_block_size_bytes"]) == (0, 128 << 10)
    assert worn.sb.nvram.wear is worn.cost.wear
    assert mount.sb.nvram.wear is None
    worn.close()
