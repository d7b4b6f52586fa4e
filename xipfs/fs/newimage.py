"""NewImage: an image file in the making. It is whole and has its name, or it never was there.

    with NewImage.create("system.img", force=False) as image:
        os.pwrite(image.fd, ...)
        image.commit()

Before `commit` the file has no name at all (O_TMPFILE), so nothing is left behind even by SIGKILL;
on filesystems that cannot do that it has a name with TEMPORARY_PREFIX, which leaving the block
removes. An image of that name that exists is locked, and stands untouched until `commit` renames
the new one over it: a reader sees the old or the new image, never half of one.
"""

import errno
import fcntl
import os
import secrets
import stat
from types import TracebackType

from xipfs.errors import ImageBusyError, InvalidArgumentError, IsDirError, NoEntryError

__all__ = ["TEMPORARY_PREFIX", "NewImage"]

TEMPORARY_PREFIX = ".xipfs-new-"

# What open(2) says where O_TMPFILE is not supported: by the filesystem, by the kernel.
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}


class NewImage:
    """A new image. path: where it will stand, symbolic links followed; fd: open for writing."""

    __slots__ = ("_directory_fd", "_old_fd", "_temporary", "fd", "path")

    def __init__(self, path: str, directory_fd: int, old_fd: int | None) -> None:
        self.path = path
        self._directory_fd = directory_fd
        self._old_fd = old_fd
        self._temporary = TEMPORARY_PREFIX + secrets.token_hex(8)
        self.fd, has_name = self._open()
        if not has_name:
            self._temporary = ""

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, force: bool) -> "NewImage":
        """Begin an image at *path*. force: one that is there, and not in use, may be replaced.

        Raises: IsDirError, NoEntryError (no such directory), InvalidArgumentError (something is
                there that may not or cannot be replaced), ImageBusyError; OSError.
        """
        real_path = os.path.realpath(path)
        if os.path.isdir(real_path):
            raise IsDirError(f"{path}: is a directory: name the file that the image shall be")
        try:
            directory_fd = os.open(
                os.path.dirname(real_path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise NoEntryError(f"{path}: there is no directory to put it in") from exc
        old_fd = None
        try:
            old_fd = _lock_old_image(real_path, force=force)
            return cls(real_path, directory_fd, old_fd)
        except BaseException:
            os.close(directory_fd)
            if old_fd is not None:
                os.close(old_fd)
            raise

    def commit(self) -> None:
        """Make the image durable and give it its name.

        Raises: InvalidArgumentError if something of that name appeared meanwhile; OSError.
        """
        name = os.path.basename(self.path)
        if self._old_fd is not None:
            self._take_over_permissions(self._old_fd)
        os.fsync(self.fd)
        if self._old_fd is None and os.path.lexists(self.path):
            raise InvalidArgumentError(f"{self.path}: somebody else made it meanwhile: left alone")
        if not self._temporary:
            if self._old_fd is None:
                self._link(name)
                os.fsync(self._directory_fd)
                return
            temporary = TEMPORARY_PREFIX + secrets.token_hex(8)
            self._link(temporary)
            self._temporary = temporary
        os.rename(
            self._temporary, name, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd
        )
        self._temporary = ""
        os.fsync(self._directory_fd)

    def __enter__(self) -> "NewImage":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._temporary:
            os.unlink(self._temporary, dir_fd=self._directory_fd)
        os.close(self.fd)
        os.close(self._directory_fd)
        if self._old_fd is not None:
            os.close(self._old_fd)

    def _open(self) -> tuple[int, bool]:
        """Return a new open file, and whether it has the temporary name."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            fd = os.open(".", flags | os.O_TMPFILE, 0o666, dir_fd=self._directory_fd)
            if os.path.exists(f"/proc/self/fd/{fd}"):  # without /proc it could never be named
                return fd, False
            os.close(fd)
        except OSError as exc:
            if exc.errno not in _NO_TMPFILE:
                raise
        flags |= os.O_CREAT | os.O_EXCL
        return os.open(self._temporary, flags, 0o666, dir_fd=self._directory_fd), True

    def _link(self, name: str) -> None:
        # src_dir_fd is not used for an absolute path, but makes Python call linkat(2), which alone
        # can follow the link in /proc.
        os.link(
            f"/proc/self/fd/{self.fd}",
            name,
            src_dir_fd=self._directory_fd,
            dst_dir_fd=self._directory_fd,
            follow_symlinks=True,
        )

    def _take_over_permissions(self, old_fd: int) -> None:
        status = os.fstat(old_fd)
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
            os.fchown(self.fd, status.st_uid, status.st_gid)
        os.fchmod(self.fd, stat.S_IMODE(status.st_mode))


def _lock_old_image(path: str, *, force: bool) -> int | None:
    """Return the file at *path*, open and locked against all users, None if there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise InvalidArgumentError(f"{path}: not a regular file: an image is one")
    if status.st_size and not force:
        raise InvalidArgumentError(f"{path}: exists: use --force to replace it")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ImageBusyError(f"{path}: in use: unmount it first") from None
    except BaseException:
        os.close(fd)
        raise
    return fd
