"""From what a policy wants to a plan that is within room and budget.

    plan = plan_towards(target, tiers)

for policies that keep a set of their own, and do not care how the frames follow it. And for those
that choose who comes and who goes:

    victims = ...at most nr_to_demote(len(promote), tiers)
    plan = plan_moves(promote, victims, tiers)
"""

import numpy as np

from xipfs.policy.contract import PageIds, Plan, Tiers
from xipfs.policy.pageset import is_in

__all__ = ["nr_to_demote", "plan_moves", "plan_towards"]


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


def nr_to_demote(nr_promote: int, tiers: Tiers, *, nr_keep_free: int = 0) -> int:
    """Return how many pages have to go for *nr_promote* to come, and nr_keep_free frames be free.

    Promotions have the budget first, and free frames before those that must be made free.
    """
    nr_filled = max(min(nr_promote, tiers.nr_free_frames, tiers.budget_pages), 0)
    nr_swaps = min(nr_promote - nr_filled, (tiers.budget_pages - nr_filled) // 2)
    nr_short = nr_keep_free - (tiers.nr_free_frames - nr_filled)
    return nr_swaps + max(min(nr_short, tiers.budget_pages - nr_filled - 2 * nr_swaps), 0)


def plan_moves(promote: PageIds, demote: PageIds, tiers: Tiers) -> Plan:
    """Return the plan with as many of *demote*, then of *promote*, as budget and room allow."""
    demote = demote[: tiers.budget_pages]
    nr_promote = min(tiers.nr_free_frames, tiers.budget_pages - 2 * len(demote)) + len(demote)
    return Plan(promote=promote[: max(nr_promote, 0)], demote=demote)
