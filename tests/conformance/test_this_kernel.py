"""VM_MIXEDMAP areas of the kernel that runs this test: rings of a packet socket and of io_uring.

packet_mmap maps a ring's pages by vm_insert_page, io_uring (since 6.10; by remap_pfn_range before)
by vm_insert_pages, while they hold mmap_lock for writing, which is what makes the areas mixed maps.
The same on the model must look the same.
"""

import ctypes
import errno
import mmap
import os
import re
import socket
import struct
from collections.abc import Iterator

import pytest

from xipfs.mm.access import user_load, user_store
from xipfs.mm.address_space import AddressSpace
from xipfs.mm.arch import get_arch
from xipfs.mm.gup_users import Pipe, futex_wake_shared, mem_rw, process_vm_rw
from xipfs.mm.machine import Machine
from xipfs.mm.mixedmap import vm_insert_page
from xipfs.mm.mmap import do_mmap, exit_mmap
from xipfs.mm.proc import pagemap_entry, smaps, vm_flag_names
from xipfs.mm.vma import VM_DONTEXPAND, VM_MIXEDMAP, VM_READ, VM_WRITE, Mm, Vma
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SIZE, Pfn, Vaddr

NR_PAGES = 8
SOL_PACKET, PACKET_RX_RING = 263, 5
SYS_FUTEX, FUTEX_WAKE = 202, 1
SYS_IO_URING_SETUP, IORING_OFF_SQ_RING, IORING_OFF_SQES = 425, 0, 0x10000000
SQE_SIZE_BYTES, CQE_SIZE_BYTES = 64, 16

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86-64"),
]


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def packet_ring() -> tuple[int, int, int]:
    """Make a packet socket with a ring. Returns: (its file, where in it, nr_pages)."""
    try:
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except OSError as exc:
        pytest.skip(f"no packet sockets here: {exc.strerror}")
    request = struct.pack("IIII", NR_PAGES * PAGE_SIZE, 1, PAGE_SIZE, NR_PAGES)
    packets.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
    return packets.detach(), 0, NR_PAGES


def io_uring_ring() -> tuple[int, int, int]:
    """Make an io_uring. Returns: (its file, where its SQ and CQ rings are, their nr_pages)."""
    file, params = io_uring_setup()
    cq_entries, cqes_offset = params[1], params[25]
    array_offset, sq_entries = params[16], params[0]
    end = max(cqes_offset + cq_entries * CQE_SIZE_BYTES, array_offset + sq_entries * 4)
    return file, IORING_OFF_SQ_RING, -(-end // PAGE_SIZE)


def io_uring_sqes() -> tuple[int, int, int]:
    """The same for its submission queue's entries."""
    return io_uring_setup()[0], IORING_OFF_SQES, NR_PAGES


def io_uring_setup() -> tuple[int, tuple[int, ...]]:
    """Make an io_uring with NR_PAGES of entries. Returns: (its file, struct io_uring_params)."""
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if release < (6, 10):
        pytest.skip("io_uring's rings are VM_PFNMAP before Linux 6.10")
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(120)
    file = libc.syscall(SYS_IO_URING_SETUP, NR_PAGES * PAGE_SIZE // SQE_SIZE_BYTES, params)
    if file < 0:
        error = ctypes.get_errno()
        assert error in (errno.ENOSYS, errno.EPERM), os.strerror(error)
        pytest.skip(f"no io_uring here: {os.strerror(error)}")
    return file, struct.unpack("30I", params.raw)


class KernelRing:
    """Pages of a real ring, mapped, and what this kernel says of them."""

    def __init__(self, file: int, offset: int, nr_pages: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = file
        self.nr_pages = nr_pages
        self._map = mmap.mmap(file, nr_pages * PAGE_SIZE, offset=offset)
        self._view = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._view)

    def close(self) -> None:
        del self._view
        self._map.close()
        os.close(self._file)

    def write(self) -> None:
        self._map[0] = self._map[0]

    def flags(self) -> set[str]:
        (line,) = self._smaps("VmFlags")
        return set(line.split())

    def sizes_kib(self) -> dict[str, int]:
        names = ("Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty")
        return {name: int(self._smaps(name)[0].split()[0]) for name in names}

    def pagemap(self) -> list[tuple[bool, bool, bool]]:
        with open("/proc/self/pagemap", "rb") as file:
            file.seek(self.address // PAGE_SIZE * 8)
            entries = struct.unpack(f"{self.nr_pages}Q", file.read(self.nr_pages * 8))
        return [tuple(bool(entry >> bit & 1) for bit in (63, 61, 56)) for entry in entries]

    def users(self) -> dict[str, int]:
        buffer = ctypes.create_string_buffer(64)
        local = Iovec(ctypes.addressof(buffer), 64)
        remote = Iovec(self.address, 64)
        libc = self._libc
        found = {
            "process_vm_readv": self._result(
                libc.process_vm_readv(
                    os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0
                )
            )
        }
        reader, writer = os.pipe()
        found["vmsplice"] = self._result(libc.vmsplice(writer, ctypes.byref(remote), 1, 0))
        os.close(reader)
        os.close(writer)
        wake = libc.syscall(SYS_FUTEX, ctypes.c_void_p(self.address), FUTEX_WAKE, 1, None, None, 0)
        found["futex"] = self._result(wake)
        memory = os.open("/proc/self/mem", os.O_RDONLY)
        found["proc_mem_read"] = len(os.pread(memory, 64, self.address))
        os.close(memory)
        return found

    def _smaps(self, key: str) -> list[str]:
        with open("/proc/self/smaps") as file:
            areas = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", file.read(), flags=re.MULTILINE)
        (area,) = [area for area in areas if area.startswith(f"{self.address:x}-")]
        return re.findall(rf"^{key}:\s*(.*)$", area, re.MULTILINE)

    @staticmethod
    def _result(value: int) -> int:
        return value if value >= 0 else -ctypes.get_errno()


class ModelRing:
    """The same on the model: a file whose mmap inserts its pages.

    vm_flags: what its mmap adds, besides.
    """

    may_write = True

    def __init__(self, nr_pages: int, vm_flags: int) -> None:
        self.nr_pages = nr_pages
        self.vm_flags = vm_flags
        self._nvram = NvramDevice.scratch(PAGE_SIZE)
        arch = get_arch("x86", "6.18")
        self.machine = Machine(self._nvram, nr_tier_frames=nr_pages, arch=arch)
        self.f_mapping = AddressSpace(1, None, i_size_bytes=0, read_only=False)  # type: ignore[arg-type]
        self.mm = Mm(self.machine)
        prot = VM_READ | VM_WRITE
        address = do_mmap(self.mm, self, nr_pages=nr_pages, prot=prot, shared=True)
        assert address > 0
        self.address = Vaddr(address)

    def mmap(self, vma: Vma) -> int:
        vma.vm_flags |= self.vm_flags
        for i in range(self.nr_pages):
            page = self.machine.mem_map.alloc_page()
            assert page is not None
            self.machine.physmem.frame(Pfn(page))[:] = bytes(PAGE_SIZE)
            error = vm_insert_page(vma, Vaddr(vma.vm_start + i * PAGE_SIZE), page)
            if error:
                return error
        assert vma.vm_flags & VM_MIXEDMAP, "vm_insert_page makes it one"
        return 0

    def close(self) -> None:
        exit_mmap(self.mm)
        self.machine.close()
        self._nvram.close()

    def write(self) -> None:
        data = user_load(self.mm, self.address, 1)
        assert isinstance(data, bytes)
        assert user_store(self.mm, self.address, data) is None

    def flags(self) -> set[str]:
        return set(vm_flag_names(self._vma().vm_flags))

    def sizes_kib(self) -> dict[str, int]:
        sums = smaps(self._vma())
        figures = (
            ("Rss", sums.rss_bytes),
            ("Pss", sums.pss_bytes),
            ("Shared_Clean", sums.shared_clean_bytes),
            ("Shared_Dirty", sums.shared_dirty_bytes),
            ("Private_Clean", sums.private_clean_bytes),
            ("Private_Dirty", sums.private_dirty_bytes),
        )
        return {name: int(size_bytes) // 1024 for name, size_bytes in figures}

    def pagemap(self) -> list[tuple[bool, bool, bool]]:
        addresses = (Vaddr(self.address + i * PAGE_SIZE) for i in range(self.nr_pages))
        return [pagemap_entry(self.mm, address)[:3] for address in addresses]

    def users(self) -> dict[str, int]:
        buffer = bytearray(64)
        pipe = Pipe(self.mm)
        found = {
            "process_vm_readv": process_vm_rw(self.mm, self.address, buffer, write=False),
            "vmsplice": pipe.vmsplice(self.address, 64),
            "futex": futex_wake_shared(self.mm, self.address),
            "proc_mem_read": mem_rw(self.mm, self.address, buffer, write=False),
        }
        pipe.close()
        return found

    def _vma(self) -> Vma:
        vma = self.mm.find_vma(self.address)
        assert vma is not None
        return vma


RINGS = {packet_ring: 0, io_uring_ring: VM_DONTEXPAND, io_uring_sqes: VM_DONTEXPAND}
"""How to make a ring -> what its mmap adds to vm_flags, besides VM_MIXEDMAP."""


@pytest.fixture(params=RINGS, ids=lambda make: make.__name__)
def kernel(request: pytest.FixtureRequest) -> Iterator[KernelRing]:
    ring = KernelRing(*request.param())
    yield ring
    ring.close()


@pytest.fixture
def model(kernel: KernelRing, request: pytest.FixtureRequest) -> Iterator[ModelRing]:
    ring = ModelRing(kernel.nr_pages, RINGS[request.node.callspec.params["kernel"]])
    yield ring
    ring.close()


def test_area_looks_the_same(kernel: KernelRing, model: ModelRing):
    assert "mm" in kernel.flags()
    # A socket's file may not be executed, and kernels mark soft-dirty areas or do not.
    assert model.flags() - {"me"} == kernel.flags() - {"me", "sd"}
    assert model.sizes_kib() == kernel.sizes_kib()
    assert model.pagemap() == kernel.pagemap() == [(True, True, True)] * kernel.nr_pages


def test_a_written_page_is_dirty(kernel: KernelRing, model: ModelRing):
    kernel.write()
    model.write()
    assert model.sizes_kib() == kernel.sizes_kib()
    assert kernel.sizes_kib()["Private_Dirty"] == PAGE_SIZE // 1024


def test_users_of_its_pages_are_answered_the_same(kernel: KernelRing, model: ModelRing):
    assert model.users() == kernel.users()
    assert model.users()["futex"] == -errno.EFAULT, "a page of no file"
