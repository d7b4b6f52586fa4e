"""Every failure has a class, in three kinds that are never mixed.

1. Operating errors, `XipfsError`: the caller's or the world's fault. Each class carries the errno
   that a program sees; the message is one line: what, where, and what to do.
2. Expected outcomes are values, not exceptions (`VM_FAULT_SIGBUS`, `MigrateStatistics`, ...).
3. `BugError`: our fault. Raised by `bug_on`, always on, caught nowhere below `fuse/`.
"""

import errno
from typing import ClassVar, NoReturn

__all__ = [
    "BugError",
    "ControlError",
    "DeviceError",
    "ExistsError",
    "FileTooLargeError",
    "FormatError",
    "FsError",
    "ImageBusyError",
    "InvalidArgumentError",
    "IsDirError",
    "MountError",
    "NameTooLongError",
    "NoDataError",
    "NoEntryError",
    "NoSpaceError",
    "NotDirError",
    "NotEmptyError",
    "NotPermittedError",
    "NotSupportedError",
    "OutOfFramesError",
    "PolicyError",
    "RangeError",
    "ReadOnlyFsError",
    "SourceError",
    "StaleError",
    "SymlinkLoopError",
    "TooBigError",
    "TooManyLinksError",
    "TracingError",
    "XipfsError",
    "bug_on",
]


class XipfsError(Exception):
    """The root of all operating errors; `errno` is what a system call would answer."""

    errno: ClassVar[int] = errno.EIO


class FormatError(XipfsError):
    """The image's bytes are not what docs/FORMAT.md allows. Run `xipfs fsck` on it."""

    errno = errno.EUCLEAN


class DeviceError(XipfsError):
    """The image could not be read or written: I/O error, or the file shrank under us."""

    errno = errno.EIO


class ImageBusyError(XipfsError):
    """Somebody else holds the image: one writer or many readers. Unmount it first."""

    errno = errno.EBUSY


class OutOfFramesError(XipfsError):
    """The RAM tier has no free frame."""

    errno = errno.ENOMEM


class PolicyError(XipfsError):
    """A policy cannot be loaded, or decided something impossible."""

    errno = errno.EINVAL


class MountError(XipfsError):
    """The mount cannot be made or undone as asked."""

    errno = errno.EINVAL


class ControlError(XipfsError):
    """No daemon answers for this mount, or it refused the request."""

    errno = errno.ENOTCONN


class TracingError(XipfsError):
    """The kernel's tracepoints cannot be had."""

    errno = errno.ENODEV


class SourceError(XipfsError):
    """What mkfs should copy cannot be read or cannot be stored in an image."""

    errno = errno.EINVAL


class InvalidArgumentError(XipfsError):
    """A request that makes no sense, by the caller's fault."""

    errno = errno.EINVAL


class FsError(XipfsError):
    """What the rules of a filesystem forbid; each subclass is one errno."""


class NoEntryError(FsError):
    """No such file or directory."""

    errno = errno.ENOENT


class ExistsError(FsError):
    """The name is taken."""

    errno = errno.EEXIST


class NotEmptyError(FsError):
    """A directory that must be empty has entries."""

    errno = errno.ENOTEMPTY


class TooBigError(FsError):
    """A value larger than can be stored."""

    errno = errno.E2BIG


class TooManyLinksError(FsError):
    """An inode has as many names as it can count."""

    errno = errno.EMLINK


class NotDirError(FsError):
    """A directory is needed and this is none."""

    errno = errno.ENOTDIR


class IsDirError(FsError):
    """A directory stands where none is allowed."""

    errno = errno.EISDIR


class NameTooLongError(FsError):
    """A name of more than 255 bytes."""

    errno = errno.ENAMETOOLONG


class FileTooLargeError(FsError):
    """A file would be longer than the image format has numbers for."""

    errno = errno.EFBIG


class NoDataError(FsError):
    """No such extended attribute."""

    errno = errno.ENODATA


class NoSpaceError(FsError):
    """No free page or inode is left in the image, or no room on its disk."""

    errno = errno.ENOSPC


class NotPermittedError(FsError):
    """Not allowed whoever asks."""

    errno = errno.EPERM


class NotSupportedError(FsError):
    """Something that this filesystem, or Linux, does not have."""

    errno = errno.EOPNOTSUPP


class RangeError(FsError):
    """A number does not fit where it must."""

    errno = errno.ERANGE


class ReadOnlyFsError(FsError):
    """The filesystem is mounted read-only."""

    errno = errno.EROFS


class StaleError(FsError):
    """A file handle or inode number that names nothing any more."""

    errno = errno.ESTALE


class SymlinkLoopError(FsError):
    """Too many symbolic links on the way to a file."""

    errno = errno.ELOOP


class BugError(AssertionError):
    """xipfs broke a rule of its own: please report the message, it carries the values."""


def bug_on(condition: bool, message: str, **values: object) -> None:
    """Stop with BugError if *condition* holds: the kernel's BUG_ON, with the values in the text."""
    if condition:
        _bug(message, values)


def _bug(message: str, values: dict[str, object]) -> NoReturn:
    text = " ".join(f"{name}={value!r}" for name, value in values.items())
    raise BugError(f"BUG: {message}" + (f": {text}" if text else ""))
