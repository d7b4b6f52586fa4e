"""xipfs: files in memory without struct pages, hot pages in RAM, one mixed mapping over both.

General layout, lowest first; a room imports only what stands above it in this list
(`tests/tidy/test_layering.py` keeps the table):

    units errors   ground floor: every quantity a type, every failure a class
    phys/          RAM and NVRAM as one physical address space; all loads and stores
    ondisk/        image format: bytes <-> records, no I/O (docs/FORMAT.md)
    policy/        pure decisions, one file per policy
    mm/            vma, page table, mem_map, fault, mixed map, rmap, migrate
    fs/            superblock, inode, dentry, extent, mkfs, fsck; implements get_xip_mem
    tiering/       epoch loop: sample -> policy -> migrate
    fuse/          operations, the pyfuse3 adapter, mount, control; wires everything
    cli/           the `xipfs` command and mount.xipfs

docs/ARCHITECTURE.md follows one request through the rooms.
"""

from xipfs._version import __version__

__all__ = ["__version__"]
