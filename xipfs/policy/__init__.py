"""Policies decide which pages should be where: arrays in, a plan out, nothing else.

    contract       Batch, Tiers, Plan and Policy; page ids
    pageset        sets of pages, as sorted arrays
    registry       policies by name (a module here is a policy) or from a user's file
    none           moves nothing
    second_chance  promotes what is read again, demotes by CLOCK

A policy sees no page table, no clock and no trio, so that the same object decides in a mount, in
a replay of a trace, and in a unit test.
"""

from xipfs.policy.contract import Batch, Plan, Policy, Tiers, page_id

__all__ = ["Batch", "Plan", "Policy", "Tiers", "page_id"]
