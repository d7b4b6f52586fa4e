"""A target: the set of pages that a policy would like to see in RAM, and the way there.

    plan = plan_towards(target, tiers)

Policies that keep a set of their own, and do not care how the frames follow it, end with this call.
"""

import numpy as np

from xipfs.policy.contract import PageIds, Plan, Tiers
from xipfs.policy.pageset import is_in

__all__ = ["plan_towards"]


def plan_towards(target: PageIds, tiers: Tiers) -> Plan:
    """Return the plan that brings RAM nearest to *target* (no page twice, the most wanted first).

    A page outside of the target stays until its frame is needed, since to keep it costs nothing;
    of those, the blind ones stay longest, as nobody knows whether they are used.
    """
    absent = target[~is_in(target, tiers.resident)]
    surplus = tiers.resident[~is_in(tiers.resident, np.sort(target))]
    surplus = surplus[np.argsort(is_in(surplus, tiers.blind), kind="stable")]
    nr_free = min(len(absent), tiers.nr_free_frames, tiers.budget_pages)
    nr_swaps = min(len(absent) - nr_free, len(surplus), (tiers.budget_pages - nr_free) // 2)
    return Plan(promote=absent[: nr_free + nr_swaps], demote=surplus[:nr_swaps])
