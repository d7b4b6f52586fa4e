"""posix_fadvise on a file whose pages are memory: nothing to read ahead, nothing to drop.

Source: mm/fadvise.c, Linux 2.6.28, the case of a_ops->get_xip_mem.
"""

import errno
import os

__all__ = ["xip_file_fadvise"]

_ADVICE = frozenset(
    {
        os.POSIX_FADV_NORMAL,
        os.POSIX_FADV_RANDOM,
        os.POSIX_FADV_SEQUENTIAL,
        os.POSIX_FADV_WILLNEED,
        os.POSIX_FADV_DONTNEED,
        os.POSIX_FADV_NOREUSE,
    }
)


def xip_file_fadvise(advice: int) -> int:
    """Take *advice*, POSIX_FADV_*, and do nothing. Returns: 0, or -EINVAL for no such advice."""
    return 0 if advice in _ADVICE else -errno.EINVAL
