"""IMAGE:PATH, by which commands name a file in an image that is not mounted."""

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from xipfs.errors import DeviceError, InvalidArgumentError, XipfsError
from xipfs.fs.contents import find_paths, printable
from xipfs.fs.superblock import SuperBlock

__all__ = ["open_image", "paths_of", "split_image_path"]


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


def paths_of(image: Path, inos: Collection[int]) -> dict[int, str]:
    """Return a path of each inode, printable; "inode N" where it has none, or we may not look."""
    found: dict[int, bytes] = {}
    with contextlib.suppress(XipfsError), open_image(image) as sb:
        found = find_paths(sb, inos)
    return {ino: printable(found[ino]) if ino in found else f"inode {ino}" for ino in inos}
