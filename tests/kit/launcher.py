"""The `xipfs` command in processes of their own that do not begin with a third of a second of
imports: a launcher has imported everything, and forks.

    process = launch(["umount", "mnt"], cwd=..., output=fd, errors=fd)
    process.wait(10)                     its exit status, -9 for one that was killed

A process that was launched is in a session of its own, as are those that a shell puts behind.

    tests     --(arguments, descriptors)-->  launcher  --fork-->  waiter  --fork-->  command
      ^------------------------(pid, then exit status)-------------'

The waiter is there because only a parent is told the exit status.
"""

import atexit
import contextlib
import functools
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

__all__ = ["TIMEOUT_S", "Launched", "launch"]

TIMEOUT_S = 100.0
"""What takes longer hangs: a machine in trouble, not a slow one."""

_MESSAGE_SIZE_BYTES_MAX = 1 << 16


class Launched:
    """A running command. pid: of its process."""

    def __init__(self, status: int) -> None:
        self._status = os.fdopen(status, "rb", buffering=0)
        self._returncode: int | None = None
        self.pid = int(self._read())

    def poll(self) -> int | None:
        """The exit status if it has ended."""
        return self._returncode if self._ended(0) else None

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """The exit status. Raises: TimeoutError."""
        if not self._ended(timeout_s):
            raise TimeoutError(f"process {self.pid} has not ended in {timeout_s} s")
        assert self._returncode is not None
        return self._returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout_s: float) -> bool:
        if self._returncode is None and select.select([self._status], [], [], timeout_s)[0]:
            self._returncode = int(self._read())
            self._status.close()
        return self._returncode is not None

    def _read(self) -> bytes:
        line = self._status.readline()
        assert line, "the launcher died"
        return line


def launch(
    arguments: Sequence[str], *, cwd: Path | None, output: int, errors: int, prelude: str = ""
) -> Launched:
    """Start `xipfs` with *arguments*, writing to two descriptors, which stay the caller's.

    prelude: Python to run before it.
    """
    status, their_status = os.pipe()
    message = {"arguments": arguments, "cwd": str(cwd or Path.cwd()), "prelude": prelude}
    try:
        socket.send_fds(_launcher(), [json.dumps(message).encode()], [output, errors, their_status])
    finally:
        os.close(their_status)
    return Launched(status)


@functools.cache
def _launcher() -> socket.socket:
    """The socket of the launcher, one for all tests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        launcher = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a Ctrl-C is for pytest, which then ends us in order
        )

    def end() -> None:
        ours.close()
        launcher.wait()

    atexit.register(end)
    return ours


def _serve(connection: socket.socket) -> None:
    """Be the launcher."""
    import xipfs.cli.main
    import xipfs.fuse.server

    # What is imported only when it is needed is needed now.
    with contextlib.redirect_stdout(io.StringIO()):
        for command in xipfs.cli.main.COMMANDS:
            xipfs.cli.main.main([command, "--help"])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for the waiters
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_SIZE_BYTES_MAX, 3)
        if not message:
            return
        if os.fork() == 0:
            connection.close()
            _wait_for(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _wait_for(message: dict[str, str], descriptors: list[int]) -> NoReturn:
    """Be the waiter."""
    output, errors, status = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(status)
        os.setsid()
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.closerange(3, max(descriptors) + 1)
        _run(message)
    for descriptor in (output, errors):
        os.close(descriptor)
    os.write(status, b"%d\n" % pid)
    _, found = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):  # the tests have ended
        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(found))
    os._exit(0)


def _run(message: dict[str, str]) -> NoReturn:
    """Be the command."""
    from xipfs.cli.main import main

    returncode = 70
    try:
        os.chdir(message["cwd"])
        exec(message["prelude"], {})
        returncode = main(list(message["arguments"]))
    except SystemExit as exc:
        returncode = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        returncode = 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(returncode)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
