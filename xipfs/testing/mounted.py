"""TestMount: a mount in a process of its own, for one test.

mount = TestMount(image, mountpoint)
(mount.path / "file").write_bytes(b"..")
mount.kill()                       SIGKILL: nothing is written any more
mount.remount()                    the journal is replayed
mount.unmount()                    and the exit status of the daemon was 0
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from xipfs.errors import MountError
from xipfs.fuse.mountpoint import find_mount, unmount
from xipfs.testing.recording import check_fault

__all__ = ["TestMount"]

_TIMEOUT_S = 60.0
_POLL_S = 0.01


class TestMount:
    """*image* mounted at *path*, a directory that is made if it is missing.

    options: as of `xipfs mount -o`. record: a file that gets a log of all stores. fault: see
    `testing.recording`. Raises: MountError with what the daemon said if it does not come to that.
    """

    __test__ = False  # pytest: this is no test

    def __init__(
        self,
        image: Path,
        path: Path,
        *,
        options: str = "",
        record: Path | None = None,
        fault: str = "",
    ) -> None:
        self.image = image
        self.path = path
        self._options = options
        self._record = record
        self._log = path.with_name(path.name + ".log")
        self._process: subprocess.Popen[bytes] | None = None
        path.mkdir(exist_ok=True)
        self._start(fault)

    @property
    def log(self) -> str:
        """What the daemon has said: warnings and errors."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def is_alive(self) -> bool:
        """Does the daemon run?"""
        return self._process is not None and self._process.poll() is None

    def wait_dead(self) -> None:
        """Return when the daemon has ended, by a fault, and take its mount away."""
        if self._process is not None:
            self._process.wait(_TIMEOUT_S)
        self._tear_away()

    def kill(self) -> None:
        """Kill the daemon, as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
        self.wait_dead()

    def unmount(self) -> None:
        """Unmount as a user would. Raises: MountError if the daemon did not end well."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        status = process.wait(_TIMEOUT_S)
        self._tear_away()
        if status:
            raise MountError(f"{self.path}: the daemon ended with status {status}: {self.log}")

    def remount(self, *, options: str | None = None, fault: str = "") -> None:
        """Mount it again, after it was unmounted or killed."""
        if options is not None:
            self._options = options
        self._start(fault)

    def close(self) -> None:
        """Leave nothing behind, whatever has happened."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait(_TIMEOUT_S)
        self._tear_away()

    def _start(self, fault: str) -> None:
        if fault:
            check_fault(fault)
        words = ["-m", "xipfs.testing.daemon", str(self.image), str(self.path)]
        words += ["--options", self._options]
        words += ["--record", str(self._record)] if self._record else []
        words += ["--fault", fault] if fault else []
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end_s = time.monotonic() + _TIMEOUT_S
        while find_mount(self.path.resolve()) is None:
            if self._process.poll() is not None or time.monotonic() > end_s:
                self.close()
                raise MountError(f"{self.path}: not mounted: {self.log}")
            time.sleep(_POLL_S)
        os.statvfs(self.path)

    def _tear_away(self) -> None:
        self._process = None
        while find_mount(self.path.resolve()) is not None:
            unmount(self.path, abort=True)
