"""`xipfs cat IMAGE:PATH...`: contents of files in an image, without a mount."""

import sys
from typing import Annotated

import typer

from xipfs.cli.imagepath import open_image, split_image_path
from xipfs.errors import IsDirError
from xipfs.fs.contents import iter_contents
from xipfs.fs.namei import path_lookup

__all__ = ["cat"]


def cat(
    targets: Annotated[list[str], typer.Argument(metavar="IMAGE:PATH...")],
) -> None:
    """Write files to standard output, one behind the other, holes as zeros."""
    for target in targets:
        image, path = split_image_path(target)
        with open_image(image) as sb:
            inode = path_lookup(sb, path)
            if inode.is_dir:
                raise IsDirError(f"{target}: is a directory")
            for part in iter_contents(sb, inode):
                sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
