"""Everything that must hold between page tables, struct pages and files, counted anew.

    C1  Each reference of a frame is accounted for: a pte, i_pages, the kernel's own, or *pins*.
    C2  mapcount is the number of ptes that map the frame as a normal page.
    C3  No reference is on a page without struct page (it has nowhere to be).
    C4  A frame holds one page: of one file at one offset, or of one anonymous page.
    C5  Every pte is reachable by offset: its vma is in the i_mmap of its file.
    C6  rss_file and rss_anon of an mm are the normal ptes it has.
    C7  An exclusive anonymous page is mapped once.
    C8  Counters of pages promoted, demoted and resident add up (VmStat.check_sums).
    C9  The tier is the frames that exist and are not offline, but for the kernel's own.
    C10 No page is under write-back while nobody writes one back.

with the invariants of MemMap, Mm and AddressSpace. Slow: for tests and explorers.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import bug_on
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.machine import NR_KERNEL_FRAMES, Machine
from xipfs.mm.mem_map import PAGE_ANON_EXCLUSIVE, PG_WRITEBACK
from xipfs.mm.mixedmap import vm_normal_page
from xipfs.mm.pgtable import PMD_SHIFT
from xipfs.mm.vma import Mm
from xipfs.units import PAGE_SHIFT, Pfn, Vaddr

__all__ = ["check_invariants"]


def check_invariants(
    machine: Machine,
    mms: Sequence[Mm],
    mappings: Sequence[AddressSpace],
    pins: Iterable[int] = (),
) -> None:
    """Raise BugError, with values, where something does not hold.

    mms, mappings: all there are. pins: frames that others hold, once for each reference.
    """
    mem_map = machine.mem_map
    nr_ram_frames = machine.physmem.nr_ram_frames
    references: Counter[int] = Counter(pins)
    references.update((machine.sparse_pfn, machine.zero_pfn))
    references.update(mem_map.offline_pfns)
    for mapping in mappings:
        references.update(int(pfn) for pfn in mapping.i_pages.values())
    mapcounts: Counter[int] = Counter()
    for mm in mms:
        mm.check_invariants()
        mapcounts.update(_count_normal_ptes(mm))
    references.update(mapcounts)
    no_page = [pfn for pfn in references if not 0 <= pfn < mem_map.nr_frames]
    bug_on(bool(no_page), "C3: a reference on a page without struct page", pfns=no_page)
    _compare("C2: mapcount", mem_map.mapcount, mapcounts)
    is_hole = np.arange(mem_map.nr_frames) >= nr_ram_frames  # reserved
    _compare("C1: refcount", mem_map.refcount - is_hole, references)
    exclusive = np.flatnonzero(mem_map.flags & PAGE_ANON_EXCLUSIVE)
    shared = exclusive[mem_map.mapcount[exclusive] > 1]
    bug_on(len(shared) > 0, "C7: an exclusive page is shared", pfns=shared)
    mem_map.check_invariants()
    places = Counter(int(pfn) for mapping in mappings for pfn in mapping.i_pages.values())
    twice = [pfn for pfn, count in places.items() if count > 1]
    bug_on(bool(twice), "C4: a frame holds two pages", pfns=twice)
    for mapping in mappings:
        mapping.check_invariants(mem_map)
    wrong = machine.vmstat.check_sums(places.total(), has_policy=False)
    bug_on(bool(wrong), "C8: sums of counters", wrong=wrong)
    nr_used = nr_ram_frames - NR_KERNEL_FRAMES - len(mem_map.offline_pfns)
    bug_on(nr_used != machine.nr_tier_frames, "C9: the tier has another size", nr_frames=nr_used)
    under_io = np.flatnonzero(mem_map.flags & PG_WRITEBACK)
    bug_on(len(under_io) > 0, "C10: pages under write-back", pfns=under_io)


def _count_normal_ptes(mm: Mm) -> Counter[int]:
    """Return how often each frame is mapped as a normal page; check C5 and C6."""
    mem_map = mm.machine.mem_map
    found: Counter[int] = Counter()
    for number, leaf in mm.page_table.leaves.items():
        for index in np.flatnonzero(leaf.ptes).tolist():
            address = Vaddr((number << PMD_SHIFT) + (index << PAGE_SHIFT))
            vma = mm.find_vma(address)
            assert vma is not None, "Mm.check_invariants finds these"
            if vma.vm_file is not None:
                reachable = vma in vma.vm_file.i_mmap
                bug_on(not reachable, "C5: a pte out of reach", vma=vma, address=address)
            page = vm_normal_page(vma, address, leaf.words[index])
            if page is not None:
                found[page] += 1
    nr_anon = sum(count for pfn, count in found.items() if mem_map.page_anon(Pfn(pfn)))
    counted = (mm.rss_file, mm.rss_anon)
    expected = (found.total() - nr_anon, nr_anon)
    bug_on(counted != expected, "C6: rss is wrong", rss=counted, ptes=expected)
    return found


def _compare(what: str, counts: NDArray[np.int32], expected: Counter[int]) -> None:
    wanted = np.zeros(len(counts), np.int64)
    wanted[list(expected)] = list(expected.values())
    wrong = {
        pfn: (int(counts[pfn]), int(wanted[pfn]))
        for pfn in np.flatnonzero(counts != wanted).tolist()
    }
    bug_on(bool(wrong), f"{what} is wrong: pfn -> (is, should be)", wrong=wrong)
