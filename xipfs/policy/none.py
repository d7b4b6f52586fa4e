"""Moves nothing: every page stays in NVRAM. The lower bound of all comparisons."""

from xipfs.policy.contract import Batch, Plan, Tiers

__all__ = ["Policy"]


class Policy:
    """Never promotes, never demotes."""

    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        """Return an empty plan."""
        return Plan()
