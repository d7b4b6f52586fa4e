"""IMAGE:PATH, by which commands name a file in an image that is not mounted."""

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from xipfs.errors import ControlError, DeviceError, InvalidArgumentError, XipfsError
from xipfs.fs.contents import find_paths, printable
from xipfs.fs.superblock import SuperBlock
from xipfs.fuse.client import ask

__all__ = ["looked_up_paths", "open_image", "paths_of", "split_image_path"]

_NR_ASKED = 1000
"""Inodes in one request, which is a line of limited length."""


def split_image_path(text: str) -> tuple[Path, bytes]:
    """Return image and path in it; the root for an image alone.

    Split at the first colon behind an existing file, so that both sides may have more of them.
    Raises: DeviceError if there is no such file; InvalidArgumentError without any colon.
    """
    colons = [i for i, character in enumerate(text) if character == ":"]
    for end in [*colons, len(text)]:
        if os.path.isfile(text[:end]):
            return Path(text[:end]), os.fsencode(text[end + 1 :]) or b"/"
    if not colons:
        raise InvalidArgumentError(f"{text}: no such file: name IMAGE:PATH, like nvram.img:/etc")
    raise DeviceError(f"{text[: colons[0]]}: no such image")


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[SuperBlock]:
    """Open an image for the time of the block. Raises: as `SuperBlock.open`."""
    sb = SuperBlock.open(path)
    try:
        yield sb
    finally:
        sb.close()


def paths_of(mountpoint: Path, image: Path, inos: Collection[int]) -> dict[int, str]:
    """Return a path of each inode, printable; "inode N" where it has none, or we may not look.

    The daemon is asked first, who knows what was looked up; then the image, which cannot be opened
    while it is mounted to write.
    """
    found = looked_up_paths(mountpoint, inos)
    missing = [ino for ino in inos if ino not in found]
    in_image: dict[int, bytes] = {}
    if missing:
        with contextlib.suppress(XipfsError), open_image(image) as sb:
            in_image = find_paths(sb, missing)
    found |= {ino: printable(path) for ino, path in in_image.items()}
    return {ino: found.get(ino, f"inode {ino}") for ino in inos}


def looked_up_paths(mountpoint: Path, inos: Collection[int]) -> dict[int, str]:
    """Return a path of each inode that the daemon knows one of, printable."""
    found: dict[int, str] = {}
    asked = list(inos)
    with contextlib.suppress(ControlError):
        for start in range(0, len(asked), _NR_ASKED):
            answer = ask(mountpoint, "paths", inos=asked[start : start + _NR_ASKED])
            found |= {int(ino): printable(os.fsencode(path)) for ino, path in answer.items()}
    return found
