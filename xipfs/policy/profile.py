"""Profiles: which pages were hot, as text; what AXFS took at image build, and a mount takes here.

    # ino pgoff                 a comment, to the end of its line
    12 0                        page 0 of file 12 (`ls -i`), the most wanted page first
    12 7

`xipfs trace profile` makes one of a recording; `mount -o prefetch=` and the policy `static` use it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import numpy as np

from xipfs.errors import PolicyError
from xipfs.policy.contract import PGOFF_BITS, PageIds, page_id, page_id_parts

__all__ = ["read_profile", "write_profile"]


def write_profile(file: TextIO, pages: PageIds, comments: Iterable[str] = ()) -> None:
    """Write *pages* (none twice, the most wanted first), below some comments."""
    for comment in comments:
        file.write(f"# {comment}\n")
    inos, pgoffs = page_id_parts(pages)
    for ino, pgoff in zip(inos.tolist(), pgoffs.tolist(), strict=True):
        file.write(f"{ino} {pgoff}\n")


def read_profile(path: Path) -> PageIds:
    """Return the pages of a profile, the most wanted first. Raises: PolicyError."""
    try:
        lines = path.read_text().splitlines()
    except OSError as exc:
        raise PolicyError(f"profile {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise PolicyError(f"profile {path}: is no text") from exc
    pages: dict[int, None] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            ino, pgoff = (int(word) for word in words)
        except ValueError:
            ino = pgoff = -1
        if not (0 <= ino < 1 << (63 - PGOFF_BITS) and 0 <= pgoff < 1 << PGOFF_BITS):
            raise PolicyError(
                f"profile {path}: line {number}: {line!r} is no page: "
                "give the number of a file and an offset in pages, 12 0"
            )
        pages[page_id(ino, pgoff)] = None
    return np.fromiter(pages, np.int64, len(pages))
