"""The RAM tier grows and shrinks while pages are in it.

    online_pages   frames that are offline come back, then new ones are added behind the last
    offline_pages  free frames are taken away, and the host has their memory back
    resize_tier    either, until the tier has the size that is asked for; pages leave for it

A frame that is offline keeps its pfn and its struct page (PageOffline): any will do, so nothing has
to move from one frame to another, and a pinned page in the wrong place stops nobody.

Source: mm/memory_hotplug.c by name, drivers/virtio/virtio_balloon.c by what it does.
"""

from collections.abc import Iterable
from itertools import islice

from xipfs.mm.address_space import AddressSpace
from xipfs.mm.machine import Machine
from xipfs.mm.migrate import DemoteReason, demote_pages

__all__ = ["offline_pages", "online_pages", "resize_tier"]


def resize_tier(
    machine: Machine,
    nr_tier_frames: int,
    victims: Iterable[tuple[AddressSpace, Iterable[int]]] = (),
) -> int:
    """Give the tier another size, as far as possible.

    victims: (file, pgoffs) whose pages leave if there are not enough free frames; taken in order,
             and only as far as needed.
    Returns: frames that are missing to the size asked for: held by somebody or still in use when it
             shrinks, beyond the most that the machine can have when it grows.
    """
    nr_more = nr_tier_frames - machine.nr_tier_frames
    if nr_more >= 0:
        return nr_more - online_pages(machine, nr_more)
    nr_less = -nr_more
    nr_less -= offline_pages(machine, nr_less)
    for mapping, pgoffs in victims:
        pages = iter(pgoffs)
        while nr_less and (batch := list(islice(pages, nr_less))):
            demote_pages(machine, mapping, batch, DemoteReason.DIRECT)
            nr_less -= offline_pages(machine, nr_less)
    return nr_less


def online_pages(machine: Machine, nr_pages: int) -> int:
    """Add free frames to the tier, up to nr_pages. Returns: how many."""
    nr_online = machine.mem_map.online_pages(nr_pages)
    physmem = machine.physmem
    nr_new = min(nr_pages - nr_online, physmem.nr_ram_frames_max - physmem.nr_ram_frames)
    if nr_new:
        machine.add_memory(nr_new)
    machine.set_tier_frames(machine.nr_tier_frames + nr_online + nr_new)
    return nr_online + nr_new


def offline_pages(machine: Machine, nr_pages: int) -> int:
    """Take free frames from the tier, up to nr_pages. Returns: how many."""
    frames = machine.mem_map.offline_pages(nr_pages)
    machine.physmem.discard_frames(frames)
    machine.set_tier_frames(machine.nr_tier_frames - len(frames))
    return len(frames)
