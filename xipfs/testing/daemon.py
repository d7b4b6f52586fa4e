"""The daemon of a test's mount: as `xipfs mount -f`, but it can record, die and fail on purpose.

    python -m xipfs.testing.daemon IMAGE MNT --options ram=1M --record LOG --fault kill-at-fence=7

`testing.recording` says which faults there are.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from xipfs.errors import DeviceError, FormatError
from xipfs.fs.superblock import SuperBlock
from xipfs.fuse.mount import Mount
from xipfs.fuse.options import parse_options
from xipfs.fuse.server import serve
from xipfs.phys.nvram import NvramDevice
from xipfs.testing.recording import Watcher, check_fault

__all__ = ["FaultyDevice", "main"]


class FaultyDevice(NvramDevice):
    """An image whose stores fail from a number on. nr_stores_left: how many still work."""

    __slots__ = ("nr_stores_left",)

    nr_stores_left: float

    def store_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See `NvramDevice.store_bytes`."""
        if self.nr_stores_left <= 0:
            raise DeviceError(f"{self.path}: a test wants this store to fail")
        self.nr_stores_left -= 1
        super().store_bytes(offset, data)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve a mount until it is unmounted or SIGTERM comes. Raises: XipfsError."""
    parser = argparse.ArgumentParser(prog="python -m xipfs.testing.daemon")
    parser.add_argument("image", type=Path)
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("--options", default="")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--fault")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    name, number = check_fault(arguments.fault) if arguments.fault else ("", 0)
    nvram = FaultyDevice.open(arguments.image, writable=True)
    if not isinstance(nvram, FaultyDevice):
        raise FormatError(f"{arguments.image}: not opened for a test")
    nvram.nr_stores_left = float("inf")
    log = arguments.record.open("ab", buffering=0) if arguments.record else None
    Watcher(nvram, log, number if name == "kill-at-fence" else float("inf"))
    sb = SuperBlock.mount(nvram, writable=True, clock=time.time_ns)
    if name == "fail-stores-at":
        nvram.nr_stores_left = number
    with closing(Mount(sb, parse_options(arguments.options))) as mount:
        serve(mount, arguments.mountpoint, lambda: None)


if __name__ == "__main__":
    main()
