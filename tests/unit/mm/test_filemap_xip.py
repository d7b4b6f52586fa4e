"""filemap_xip: when a fault may fill a hole. The fault contract is in tests/conformance."""

import itertools

import pytest

from tests.kit.mm import World
from xipfs.mm.filemap_xip import allocates_on_fault
from xipfs.mm.vma import VM_MAYSHARE, VM_MAYWRITE, VM_MIXEDMAP, VM_READ, VM_SHARED, VM_WRITE


@pytest.mark.parametrize("read_only", [True, False])
def test_only_a_shared_map_that_may_be_written_fills_holes(world: World, read_only: bool):
    mapping = world.fs.make_file({}, nr_pages=1, read_only=read_only)
    flags = [VM_WRITE, VM_MAYWRITE, VM_SHARED, VM_MAYSHARE, VM_READ]
    for chosen in itertools.product([False, True], repeat=len(flags)):
        write, maywrite, shared, mayshare, _ = chosen
        vm_flags = VM_MIXEDMAP | sum(itertools.compress(flags, chosen))
        vma = world.mmap(mapping, vm_flags=vm_flags)
        expected = (write or maywrite) and (shared or mayshare) and not read_only
        assert allocates_on_fault(vma) is expected, chosen
