"""Batches and tiers for policies, and a RAM tier that carries their plans out.

tier = PolicyWorld(Policy(), nr_ram_frames=4)
tier.epoch([1, 2, 3])                 these pages were read; the policy decides; its plan is done
tier.resident                         what is in RAM now
"""

from collections.abc import Iterable

import numpy as np

from xipfs.mm.watermark import setup_per_zone_wmarks
from xipfs.policy.contract import AccessKind, Batch, Plan, Policy, Tier, Tiers

__all__ = ["EPOCH_NS", "PolicyWorld", "check_plan", "make_batch", "make_tiers"]

EPOCH_NS = 1_000_000_000


def make_batch(
    pages: Iterable[int],
    resident: Iterable[int] = (),
    latency_ns: Iterable[int] | None = None,
    written: Iterable[int] = (),
) -> Batch:
    """Return a batch of accesses to *pages*, in this order: readings, but for *written* ones."""
    page = np.array(list(pages), np.int64)
    latencies = np.full(len(page), -1) if latency_ns is None else np.array(list(latency_ns))
    in_ram = np.isin(page, np.array(sorted(resident), np.int64))
    is_written = np.isin(page, np.array(sorted(written), np.int64))
    return Batch(
        page=page,
        kind=np.where(is_written, AccessKind.WRITE, AccessKind.READ).astype(np.uint8),
        tier=np.where(in_ram, Tier.RAM, Tier.NVRAM).astype(np.uint8),
        latency_ns=latencies.astype(np.int64),
    )


def make_tiers(
    *,
    epoch: int = 0,
    nr_ram_frames: int = 8,
    budget_pages: int = 1024,
    resident: Iterable[int] = (),
    blind: Iterable[int] = (),
    blind_chunks: Iterable[int] = (),
    dirty: Iterable[int] = (),
    nr_accesses: tuple[int, int] = (0, 0),
    latency_ns: tuple[float, float] = (80.0, 300.0),
    occupancy: tuple[float, float] = (0.0, 0.0),
    is_sampled: bool = False,
) -> Tiers:
    """Return facts about the tiers that fit together."""
    in_ram = np.array(sorted(resident), np.int64)
    return Tiers(
        epoch=epoch,
        nr_ram_frames=nr_ram_frames,
        nr_free_frames=nr_ram_frames - len(in_ram),
        watermarks=setup_per_zone_wmarks(nr_ram_frames),
        budget_pages=budget_pages,
        epoch_ns=EPOCH_NS,
        resident=in_ram,
        blind=np.array(sorted(blind), np.int64),
        blind_chunks=np.array(sorted(blind_chunks), np.int64),
        dirty=np.array(sorted(dirty), np.int64),
        nr_accesses=nr_accesses,
        latency_ns=latency_ns,
        occupancy=occupancy,
        promote_ns=2000.0,
        write_back_ns=4000.0,
        is_sampled=is_sampled,
    )


def check_plan(plan: Plan, tiers: Tiers) -> None:
    """Assert that *plan* can be carried out as it stands: nothing of it would be refused."""
    assert plan.exchange.dtype == np.int64
    out, into = plan.exchange[:, 0].tolist(), plan.exchange[:, 1].tolist()
    promote, demote = plan.promote.tolist() + into, plan.demote.tolist() + out
    resident = set(tiers.resident.tolist())
    assert plan.promote.dtype == plan.demote.dtype == np.int64
    assert len(set(promote)) == len(promote), "promotes a page twice"
    assert len(set(demote)) == len(demote), "demotes a page twice"
    assert resident.isdisjoint(promote), "promotes what is in RAM"
    assert resident.issuperset(demote), "demotes what is not in RAM"
    assert len(promote) + len(demote) <= tiers.budget_pages, "over budget"
    assert len(promote) <= tiers.nr_free_frames + len(demote), "more than there is room for"


class PolicyWorld:
    """A RAM tier of nr_ram_frames frames that does what *policy* says, if it may."""

    def __init__(self, policy: Policy, *, nr_ram_frames: int = 8, budget_pages: int = 1024) -> None:
        self.policy = policy
        self.resident: set[int] = set()
        self.nr_ram_frames = nr_ram_frames
        self.budget_pages = budget_pages
        self.nr_epochs = 0

    def epoch(
        self,
        pages: Iterable[int],
        *,
        blind: Iterable[int] = (),
        dirty: Iterable[int] = (),
        written: Iterable[int] = (),
        latency_ns: Iterable[int] | None = None,
        tier_latency_ns: tuple[float, float] = (80.0, 300.0),
        occupancy: tuple[float, float] = (0.0, 0.0),
    ) -> Plan:
        """Let *pages* be accessed and the policy decide, as `make_batch` and `make_tiers` have it.

        Of *blind* and *dirty* pages only those count that are in RAM by then.
        """
        batch = make_batch(pages, self.resident, latency_ns, written)
        nr_in_ram = int(np.count_nonzero(batch.tier == Tier.RAM))
        tiers = make_tiers(
            epoch=self.nr_epochs,
            nr_ram_frames=self.nr_ram_frames,
            budget_pages=self.budget_pages,
            resident=self.resident,
            blind=self.resident & set(blind),
            dirty=self.resident & set(dirty),
            nr_accesses=(nr_in_ram, len(batch.page) - nr_in_ram),
            latency_ns=tier_latency_ns,
            occupancy=occupancy,
        )
        self.nr_epochs += 1
        plan = self.policy.decide(batch, tiers)
        check_plan(plan, tiers)
        self.resident -= {*plan.demote.tolist(), *plan.exchange[:, 0].tolist()}
        self.resident |= {*plan.promote.tolist(), *plan.exchange[:, 1].tolist()}
        return plan
