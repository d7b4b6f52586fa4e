"""Files whose pages are memory, with struct pages or without: fault, read, write, truncate.

The contract of `xip_file_fault` (mm/filemap_xip.c of 2.6.28, with the "EBUSY is fine" of 3.14):

    situation                                              result
    pgoff at or past the end of the file                   VM_FAULT_SIGBUS
    get_xip_mem finds the page                             vm_insert_mixed, VM_FAULT_NOPAGE
    get_xip_mem fails with anything but "no data"          VM_FAULT_OOM
    a hole; vma may be written and is shared; fs writable  get_xip_mem(create), or SIGBUS; the
                                                           sparse page goes from all vmas; insert
    a hole otherwise                                       the sparse page, VM_FAULT_NOPAGE
    vm_insert_* finds a pte already there (-EBUSY)         VM_FAULT_NOPAGE: another fault won

The sparse race: a fault that found a hole looks again under xip_sparse_mutex before it maps the
sparse page; who fills the hole takes sparse ptes away afterwards (`_xip_unmap`), and once more if
xip_sparse_seq tells that a fault was at it meanwhile.

Differs from Linux: there a page of memory stays where it is, here it moves between the tiers. So a
fault also looks whether the mapping's invalidate_seq is what it was when it asked get_xip_mem, as
KVM does with its mmu_invalidate_seq, and asks again if not.
"""

import errno
import logging

from xipfs.errors import NoDataError, XipfsError, bug_on
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.lock import atomic_step
from xipfs.mm.machine import Machine
from xipfs.mm.mixedmap import vm_insert_mixed, vm_insert_page
from xipfs.mm.rmap import unmap_frame
from xipfs.mm.vm_fault import FaultResult, VmFault, VmOperations
from xipfs.mm.vma import VM_MAYSHARE, VM_MAYWRITE, VM_SHARED, VM_WRITE, VM_XIP_FILE, Mm, Vma
from xipfs.units import (
    NVRAM_PFN_START,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PFN_NONE,
    Kaddr,
    Pfn,
    Pgoff,
    bytes_to_pages,
    virt_to_pfn,
)

__all__ = [
    "XIP_FILE_VM_OPS",
    "allocates_on_fault",
    "xip_file_fault",
    "xip_file_mmap",
    "xip_file_read",
    "xip_file_write",
    "xip_file_write_range",
    "xip_hole_filled",
    "xip_truncate_page",
]

_log = logging.getLogger(__name__)

_NVRAM_PADDR_START = NVRAM_PFN_START << PAGE_SHIFT
_POSSIBLE_ERRORS = (0, -errno.EBUSY, -errno.ENOMEM)


def xip_file_fault(vmf: VmFault) -> FaultResult:
    """Map file page vmf.pgoff at vmf.address, by the contract in the head of this module."""
    vma = vmf.vma
    mapping = vma.vm_file
    assert mapping is not None, "a file's fault without a file"
    a_ops = mapping.a_ops
    pgoff = vmf.pgoff
    while True:
        seq = mapping.read_invalidate_begin()
        if pgoff >= mapping.nr_pages:
            return FaultResult.SIGBUS
        try:
            kaddr, pfn = a_ops.get_xip_mem(mapping, pgoff, create=False)
        except NoDataError:
            if not allocates_on_fault(vma):
                result = _fault_sparse(vmf, mapping, seq)
                if result is None:
                    continue
                return result
            try:
                kaddr, pfn = _fill_hole(vma.vm_mm.machine, mapping, pgoff)
            except XipfsError:
                return FaultResult.SIGBUS
        except XipfsError as exc:
            # The kernel's answer hides the reason, so it is told here.
            _log.error("%s", exc)
            return FaultResult.OOM
        atomic_step("xip_file_fault: insert")
        if mapping.invalidate_seq == seq:
            return _insert(vmf, kaddr, pfn)


def xip_file_mmap(
    mm: Mm,
    mapping: AddressSpace,
    *,
    nr_pages: int,
    pgoff: Pgoff = Pgoff(0),
    vm_flags: int = VM_XIP_FILE,
) -> Vma:
    """Map pages of *mapping* where there is room; the flags must have VM_MIXEDMAP.

    Raises: OutOfFramesError (ENOMEM) when no address range is left.
    """
    return mm.mmap(
        mapping, nr_pages=nr_pages, pgoff=pgoff, vm_flags=vm_flags, vm_ops=XIP_FILE_VM_OPS
    )


def allocates_on_fault(vma: Vma) -> bool:
    """May a fault in *vma* fill a hole? The fault's own kind, read or write, plays no part."""
    flags = vma.vm_flags
    return bool(
        flags & (VM_WRITE | VM_MAYWRITE)
        and flags & (VM_SHARED | VM_MAYSHARE)
        and vma.vm_file is not None
        and not vma.vm_file.read_only
    )


def xip_file_read(machine: Machine, mapping: AddressSpace, pos: int, size_bytes: int) -> bytes:
    """Read through kernel addresses, without ptes; holes read as zeros, up to the end of the file.

    Returns: the bytes, fewer at the end of the file or before a page that cannot be read.
    Raises: XipfsError when the first page cannot be read.
    Source: mm/filemap_xip.c do_xip_mapping_read, 3.14 (2.6.28 could read past *size_bytes*).
    """
    end = min(pos + size_bytes, mapping.i_size_bytes)
    parts: list[bytes] = []
    while pos < end:
        offset = pos & PAGE_MASK
        count = min(end - pos, PAGE_SIZE - offset)
        try:
            kaddr, _ = mapping.a_ops.get_xip_mem(mapping, Pgoff(pos >> PAGE_SHIFT), create=False)
            parts.append(machine.physmem.load(kaddr + offset, count))
        except NoDataError:
            parts.append(bytes(count))
        except XipfsError:
            if parts:
                break
            raise
        pos += count
    return b"".join(parts)


def xip_file_write(machine: Machine, mapping: AddressSpace, pos: int, data: bytes) -> int:
    """Write through kernel addresses; existing ptes of the pages see it at once, holes are filled.

    Returns: the number of bytes written, fewer when a later page cannot be had.
    Raises: XipfsError when the first cannot.
    Source: mm/filemap_xip.c __xip_file_write, Linux 2.6.28.
    """
    written = 0
    with mapping.i_rwsem.write():
        while written < len(data):
            at = pos + written
            offset = at & PAGE_MASK
            part = data[written : written + PAGE_SIZE - offset]
            try:
                kaddr = _get_xip_mem_create(machine, mapping, Pgoff(at >> PAGE_SHIFT))
                atomic_step("xip_file_write: copy")
                machine.physmem.store(kaddr + offset, part)
            except XipfsError:
                if written:
                    break
                raise
            _mark_dirty(machine, kaddr)
            written += len(part)
            mapping.i_size_bytes = max(mapping.i_size_bytes, at + len(part))
    return written


def xip_file_write_range(
    machine: Machine, mapping: AddressSpace, pos: int, data: bytes | memoryview
) -> None:
    """Write over bytes that the file has, in pages that exist: `xip_file_write` of many at once.

    What went to NVRAM is flushed; a fence is the caller's.
    Raises: XipfsError; some of the bytes may be written then. Bug: one of the pages is a hole.
    """
    offset = pos & PAGE_MASK
    first = Pgoff(pos >> PAGE_SHIFT)
    nr_pages = bytes_to_pages(offset + len(data))
    physmem = machine.physmem
    with mapping.i_rwsem.write():
        pfns = mapping.a_ops.get_xip_pfns(mapping, first, nr_pages)
        bug_on(bool((pfns == PFN_NONE).any()), "written over a hole", pgoff=first, nr=nr_pages)
        done = 0
        for paddr, size_bytes in physmem.runs(pfns, offset, len(data)):
            atomic_step("xip_file_write_range: copy")
            physmem.store(paddr, data[done : done + size_bytes])
            done += size_bytes
            pfn = paddr >> PAGE_SHIFT
            if machine.is_nvram(Pfn(pfn)):
                physmem.nvram.flush(paddr - _NVRAM_PADDR_START, size_bytes)
                continue
            for frame in range(pfn, pfn + bytes_to_pages((paddr & PAGE_MASK) + size_bytes)):
                machine.mem_map.set_page_dirty(Pfn(frame))


def xip_hole_filled(machine: Machine, mapping: AddressSpace, pgoff: Pgoff, nr_pages: int) -> None:
    """Let those see the pages that were put into a hole who read zeros there."""
    if mapping.i_mmap:
        for page in range(pgoff, pgoff + nr_pages):
            _xip_unmap(machine, mapping, Pgoff(page))


def xip_truncate_page(machine: Machine, mapping: AddressSpace, from_bytes: int) -> None:
    """Zero the rest of the page that byte *from_bytes* of the file is in; a hole stays one.

    Raises: XipfsError. Source: mm/filemap_xip.c xip_truncate_page, Linux 2.6.28.
    """
    offset = from_bytes & PAGE_MASK
    if not offset:
        return
    try:
        pgoff = Pgoff(from_bytes >> PAGE_SHIFT)
        kaddr, _ = mapping.a_ops.get_xip_mem(mapping, pgoff, create=False)
    except NoDataError:
        return
    machine.physmem.store(kaddr + offset, bytes(PAGE_SIZE - offset))
    _mark_dirty(machine, kaddr)


class _XipFileOperations(VmOperations):
    """Source: mm/filemap_xip.c xip_file_vm_ops, Linux 2.6.28: a fault and nothing else."""

    def fault(self, vmf: VmFault) -> FaultResult:
        return xip_file_fault(vmf)


XIP_FILE_VM_OPS = _XipFileOperations()


def _insert(vmf: VmFault, kaddr: Kaddr, pfn: Pfn) -> FaultResult:
    vma = vmf.vma
    if pfn == PFN_NONE:
        # In RAM: what we got is its kernel address.
        pfn = virt_to_pfn(kaddr)
        if vma.vm_mm.machine.arch.pte_special:
            return _fault_result(vm_insert_page(vma, vmf.address, pfn))
    return _fault_result(vm_insert_mixed(vma, vmf.address, pfn))


def _fault_sparse(vmf: VmFault, mapping: AddressSpace, seq: int) -> FaultResult | None:
    """Map the sparse page if there still is a hole. Returns: None when there is none any more."""
    machine = vmf.vma.vm_mm.machine
    atomic_step("xip_file_fault: sparse")
    with machine.xip_sparse_mutex.write():
        machine.xip_sparse_seq += 1
        try:
            mapping.a_ops.get_xip_mem(mapping, vmf.pgoff, create=False)
        except NoDataError:
            if mapping.invalidate_seq != seq:
                return None
            error = vm_insert_page(vmf.vma, vmf.address, machine.sparse_pfn)
            if not error:
                machine.vmstat.xip_insert_sparse += 1
            return _fault_result(error)
        except XipfsError as exc:
            _log.error("%s", exc)
            return FaultResult.OOM
        finally:
            atomic_step("xip_file_fault: sparse mapped")
            machine.xip_sparse_seq += 1
    return None


def _get_xip_mem_create(machine: Machine, mapping: AddressSpace, pgoff: Pgoff) -> Kaddr:
    try:
        return mapping.a_ops.get_xip_mem(mapping, pgoff, create=False)[0]
    except NoDataError:
        return _fill_hole(machine, mapping, pgoff)[0]


def _fill_hole(machine: Machine, mapping: AddressSpace, pgoff: Pgoff) -> tuple[Kaddr, Pfn]:
    """Allocate a zeroed page, and let those see it who read zeros in the hole."""
    with machine.xip_sparse_mutex.write():
        found = mapping.a_ops.get_xip_mem(mapping, pgoff, create=True)
    _xip_unmap(machine, mapping, pgoff)
    return found


def _xip_unmap(machine: Machine, mapping: AddressSpace, pgoff: Pgoff) -> None:
    """Take the sparse page's ptes of file page *pgoff* away.

    By frame, since unmap_mapping_range without even_cows would spare them in 2.6.28.
    Source: mm/filemap_xip.c __xip_unmap, Linux 2.6.28.
    """
    seq = machine.xip_sparse_seq
    atomic_step("__xip_unmap: walk")
    unmap_frame(mapping, pgoff, machine.sparse_pfn)
    atomic_step("__xip_unmap: look again")
    if seq & 1 or machine.xip_sparse_seq != seq:
        with machine.xip_sparse_mutex.write():
            unmap_frame(mapping, pgoff, machine.sparse_pfn)


def _mark_dirty(machine: Machine, kaddr: Kaddr) -> None:
    """Note that a page in RAM holds what NVRAM has not."""
    pfn = virt_to_pfn(kaddr)
    if not machine.is_nvram(pfn):
        machine.mem_map.set_page_dirty(pfn)


def _fault_result(error: int) -> FaultResult:
    bug_on(error not in _POSSIBLE_ERRORS, "xip_file_fault: insertion failed", error=error)
    return FaultResult.OOM if error == -errno.ENOMEM else FaultResult.NOPAGE
