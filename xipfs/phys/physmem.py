"""PhysMem: the physical address space, RAM from pfn 0 on and NVRAM from NVRAM_PFN_START on.

         0                nr_ram_frames            NVRAM_PFN_START          + nr_nvram_frames
    pfn  |  RAM frames    |      (nothing)         |  the image, page by page  |

Contents leave in two ways: `view` for one run of bytes, without a copy; `gather` for several, into
one buffer, safe against an image cut short. `load` and `store` move bytes of one frame, as the CPU
would.
"""

import mmap
import os
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from xipfs.errors import OutOfFramesError, bug_on
from xipfs.phys.nvram import IOV_MAX, NvramDevice
from xipfs.units import NVRAM_PFN_START, PAGE_SHIFT, PAGE_SIZE, Pfn, format_size

__all__ = ["PhysMem", "Run"]

Run: TypeAlias = tuple[int, int]
"""(paddr of the first byte, size in bytes) of some contiguous physical memory."""

_NVRAM_PADDR_START = NVRAM_PFN_START << PAGE_SHIFT


class PhysMem:
    """RAM of *nr_ram_frames* frames, zeroed, and one NVRAM device.

    nr_ram_frames: may grow up to nr_ram_frames_max, which costs nothing but addresses: the host
        gives a frame memory when it is first touched, and has it back from `discard_frames`.
    Raises: OutOfFramesError when the host refuses that many.
    """

    __slots__ = (
        "_bounce",
        "_ram",
        "_ram_mmap",
        "nr_nvram_frames",
        "nr_ram_frames",
        "nr_ram_frames_max",
        "nvram",
    )

    def __init__(
        self, nvram: NvramDevice, *, nr_ram_frames: int, nr_ram_frames_max: int | None = None
    ) -> None:
        self.nvram = nvram
        self._bounce = memoryview(b"")
        self.nr_nvram_frames = nvram.size_bytes >> PAGE_SHIFT
        self.nr_ram_frames = nr_ram_frames
        self.nr_ram_frames_max = max(nr_ram_frames, nr_ram_frames_max or 0)
        self._ram_mmap = _map_ram(max(self.nr_ram_frames_max, 1) << PAGE_SHIFT)
        self._ram = np.frombuffer(self._ram_mmap, np.uint8).data

    def view(self, paddr: int, size_bytes: int) -> memoryview:
        """Return the bytes at *paddr*, no copy: valid until their frame is given another content.

        A view on NVRAM is read-only and is for system calls only (see `phys.nvram`).
        Bug: there is no memory.
        """
        if paddr >= _NVRAM_PADDR_START:
            found = self.nvram.view(paddr - _NVRAM_PADDR_START, size_bytes)
        else:
            found = self._ram[paddr : paddr + size_bytes]
        if len(found) != size_bytes:
            bug_on(True, "no memory", paddr=paddr, size_bytes=size_bytes)
        return found

    def frame(self, pfn: Pfn) -> memoryview:
        """Return the bytes of RAM frame *pfn*, writable, shape (PAGE_SIZE,)."""
        if not 0 <= pfn < self.nr_ram_frames:
            bug_on(True, "not a RAM frame", pfn=pfn)
        return self._ram[pfn << PAGE_SHIFT : (pfn + 1) << PAGE_SHIFT]

    def gather(self, runs: list[Run]) -> memoryview:
        """Return a copy of all *runs*, one behind the other, valid until the next `gather`.

        The buffer is kept: fresh memory would cost more in page faults than the copying.
        Raises: DeviceError. Bug: there is no such RAM.
        """
        total_bytes = sum(size_bytes for _, size_bytes in runs)
        if len(self._bounce) < total_bytes:
            self._bounce = memoryview(bytearray(total_bytes))
        target = self._bounce[:total_bytes]
        start = 0
        for paddr, size_bytes in runs:
            part = target[start : start + size_bytes]
            if paddr >= _NVRAM_PADDR_START:
                self.nvram.load_into(paddr - _NVRAM_PADDR_START, [part])
            else:
                part[:] = self.view(paddr, size_bytes)
            start += size_bytes
        return target

    def copy_to_frames(self, pfn: Pfn, frames: list[Pfn]) -> None:
        """Copy the NVRAM frames from *pfn* on into RAM *frames*, in order. Raises: DeviceError."""
        offset = (pfn - NVRAM_PFN_START) << PAGE_SHIFT
        if len(frames) == 1:  # scattered pages are common
            self.nvram.load_into(offset, (self.frame(frames[0]),))
            return
        for start in range(0, len(frames), IOV_MAX):
            part = frames[start : start + IOV_MAX]
            self.nvram.load_into(
                offset + (start << PAGE_SHIFT), [self.frame(frame) for frame in part]
            )

    def copy_from_frame(self, frame: Pfn, pfn: Pfn) -> None:
        """Copy RAM *frame* into the NVRAM frame *pfn*, and flush it; a fence is the caller's.

        Raises: DeviceError.
        """
        offset = (pfn - NVRAM_PFN_START) << PAGE_SHIFT
        self.nvram.store_bytes(offset, self.frame(frame))
        self.nvram.flush(offset, PAGE_SIZE)

    def discard_frames(self, frames: list[Pfn]) -> None:
        """Give the host the memory of RAM *frames* back; they read as zeros then."""
        start = 0
        for end in range(1, len(frames) + 1):
            if end == len(frames) or frames[end] != frames[end - 1] + 1:
                size_bytes = (end - start) << PAGE_SHIFT
                self._ram_mmap.madvise(mmap.MADV_REMOVE, frames[start] << PAGE_SHIFT, size_bytes)
                start = end

    def load(self, paddr: int, size_bytes: int) -> bytes:
        """Return a copy of bytes of one kind of memory. Raises: DeviceError. Bug: no memory."""
        if paddr >= _NVRAM_PADDR_START:
            return self.nvram.load(paddr - _NVRAM_PADDR_START, size_bytes)
        return bytes(self.view(paddr, size_bytes))

    def store(self, paddr: int, data: bytes | memoryview) -> None:
        """Write *data* to memory of one kind. Raises: DeviceError. Bug: no memory."""
        if paddr >= _NVRAM_PADDR_START:
            self.nvram.store_bytes(paddr - _NVRAM_PADDR_START, data)
        else:
            self.view(paddr, len(data))[:] = data

    @staticmethod
    def runs(pfns: NDArray[np.int64], offset: int, size_bytes: int) -> list[Run]:
        """Return *size_bytes* from byte *offset* of the first frame on, as contiguous runs.

        pfns: int64, shape (nr_pages,), at least one: the frames of consecutive file pages, just
              enough of them.
        """
        first_paddr = (int(pfns[0]) << PAGE_SHIFT) + offset
        breaks = np.flatnonzero(pfns[1:] - pfns[:-1] != 1)
        if not len(breaks):
            return [(first_paddr, size_bytes)]
        starts = [0, *(breaks + 1).tolist()]
        runs: list[Run] = []
        for start, end in zip(starts, [*starts[1:], len(pfns)], strict=True):
            run_bytes = min(((end - start) << PAGE_SHIFT) - offset, size_bytes)
            runs.append(((int(pfns[start]) << PAGE_SHIFT) + offset, run_bytes))
            size_bytes -= run_bytes
            offset = 0
        return runs

    def close(self) -> None:
        """Give the RAM back; the device stays open."""
        self._ram.release()
        self._ram_mmap.close()


def _map_ram(size_bytes: int) -> mmap.mmap:
    """Return that many addresses, of a file in memory: only what is touched is charged for."""
    fd = os.memfd_create("xipfs-ram", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
        return mmap.mmap(fd, size_bytes)
    except (OSError, OverflowError) as exc:
        raise OutOfFramesError(f"no {format_size(size_bytes)} of RAM: {exc}") from exc
    finally:
        os.close(fd)
