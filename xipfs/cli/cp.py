"""`xipfs cp [-r] IMAGE:PATH DEST`: copy out of an image, without a mount."""

import os
import sys
from typing import Annotated

import typer

from xipfs.cli.imagepath import open_image, split_image_path
from xipfs.errors import InvalidArgumentError, IsDirError
from xipfs.fs.copyout import copy_out
from xipfs.fs.namei import path_lookup

__all__ = ["cp"]


def cp(
    source: Annotated[str, typer.Argument(metavar="IMAGE:PATH")],
    dest: Annotated[
        str, typer.Argument(metavar="DEST", help="A directory to copy into, or the new name.")
    ],
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Directories with all that is in them.")
    ] = False,
) -> int:
    """Copy a file or, with -r, a tree out of an image; nothing that exists is replaced.

    Modes, times, links, holes and attributes are kept, for root also owners and devices.
    """
    image, path = split_image_path(source)
    with open_image(image) as sb:
        inode = path_lookup(sb, path, follow=not recursive)
        if inode.is_dir and not recursive:
            raise IsDirError(f"{source}: is a directory: copy it with -r")
        result = copy_out(sb, inode, _target(path, dest), warn=_warn)
    return 1 if result.nr_failures else 0


def _target(path: bytes, dest: str) -> bytes:
    """Return where the copy goes: into a directory that exists, else to *dest* itself."""
    if not os.path.isdir(dest):
        return os.fsencode(dest)
    name = path.rstrip(b"/").rpartition(b"/")[2]
    if name in (b"", b".", b".."):
        raise InvalidArgumentError(
            f"{dest}: exists, and the copy of {os.fsdecode(path)!r} has no name to go by in there"
        )
    return os.path.join(os.fsencode(dest), name)


def _warn(text: str) -> None:
    print(f"xipfs: {text}", file=sys.stderr)
