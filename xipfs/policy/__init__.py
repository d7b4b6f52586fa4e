"""Policies decide which pages should be where: arrays in, a plan out, nothing else.

    contract       Batch, Tiers, Plan and Policy; page ids
    registry       policies by name (a module here is one), from a file, from an entry point
    pageset        sets of pages, as sorted arrays
    pagestats      numbers about pages, a row each
    profile        which pages were hot, as text
    target         from what is wanted to a plan within room and budget
    cache          what the classic caches have in common, which decide at every access
    hintfault      what NUMA balancing's policies see: who was scanned, who faulted, how late
    lrulists       the kernel's active and inactive lists
    cooling        counts that are halved after so many samples
    scale          constants of large machines, brought to a small one

Every other module here is a policy; its first line says what it does.

A policy sees no page table, no clock and no trio, so that the same object decides in a mount, in
a replay of a trace, and in a unit test.
"""

from xipfs.policy.contract import Batch, Plan, Policy, Tier, Tiers, page_id

__all__ = ["Batch", "Plan", "Policy", "Tier", "Tiers", "page_id"]
