"""The live kernel: scenes, played by a real Linux.

    with LiveKernel("um-special") as kernel:
        kernel.play(["device plan=RRPV vm=mixed hooks=full", "0 map A rw private 4"])
        -> ["ok", "ok"]

The kernel is user-mode Linux, a program that `tools/oracle-kernel build` puts into the cache, with
the test device built in and a player of scenes for its init. We talk to that by two pipes, which
are its second console; what the kernel itself has to say goes to a log.

    scene -> stdin -> /dev/tty1 -> player -> /dev/tty1 -> stdout -> answers
                      printk    -> stderr -> log        -> complaints

Where a kernel stops, the answer is BUG, where it does not answer, HANG; the scene ends there, and
the next one gets a new boot.
"""

import bisect
import contextlib
import itertools
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from xipfs.errors import XipfsError
from xipfs.oracle.player import BUG

__all__ = ["ARCHS", "HANG", "KernelError", "LiveKernel", "cache_dir"]

ARCHS = ("um-special", "um")
"""The kernels that are built; their rows are in `xipfs.mm.arch`, version 6.1."""

HANG = "HANG"

_RAW_MEMORY_SIZE_BYTES = 1 << 20
_CONSOLE_SIZE_BYTES = 2000
"""So many bytes are sent at a time; a tty takes 4096 before somebody reads."""

_BOOT_TIMEOUT_S = 60
_ANSWER_TIMEOUT_S = 30


class KernelError(XipfsError):
    """There is no kernel, or it does not start."""


def cache_dir() -> Path:
    """Return the directory of built kernels; `current` in it is the one to use."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "xipfs" / "oracle-kernel"


class LiveKernel:
    """A kernel of one architecture, booted when it is first needed, again when it has stopped.

    `nr_boots` counts; `complaints` are the lines that the kernel logged while it played the last
    scene. Raises: KernelError if none has been built.
    """

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.nr_boots = 0
        self.complaints: list[str] = []
        self._home = cache_dir() / "current"
        if not (self._home / arch / "linux").exists():
            raise KernelError(
                f"no {arch} kernel in {self._home}: tools/oracle-kernel build makes it"
            )
        self._boot: _Boot | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def play(self, scene: Iterable[str]) -> list[str]:
        """Return the answer to each line of *scene*, header first; BUG or HANG may be the last.

        Raises: KernelError where the kernel does not boot, or the player has died.
        """
        if self._boot is None:
            self._boot = _Boot(self._home, self.arch)
            self.nr_boots += 1
        answers = self._boot.ask([*scene, "end"])
        self.complaints = self._boot.new_complaints()
        if answers[-1] in (BUG, HANG):
            self.close()
            return answers
        return answers[:-1]

    def close(self) -> None:
        """Stop the kernel."""
        if self._boot is not None:
            self._boot.close()
            self._boot = None


class _Boot:
    """A running kernel."""

    def __init__(self, home: Path, arch: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="xipfs-kernel-")
        directory = Path(self._directory.name)
        memory = directory / "raw"
        memory.touch()
        os.truncate(memory, _RAW_MEMORY_SIZE_BYTES)
        self._log = (directory / "log").open("w+b")
        command: list[str | Path] = [
            *("setarch", "-R", home / arch / "linux", "mem=64M", f"iomem=xip,{memory}"),
            *(f"initrd={home / 'player.cpio'}", f"uml_dir={directory}", "con1=fd:0,fd:1"),
            *("loglevel=5", "oops=panic", "panic=-1"),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"TMPDIR": self._directory.name},
            bufsize=0,
            start_new_session=True,
        )
        self._received = b""
        self._read_to = 0
        assert self._process.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        if self._receive(_BOOT_TIMEOUT_S) != "ready":
            said = " / ".join(self.new_complaints()[-3:]) or "it says nothing"
            self.close()
            raise KernelError(f"the {arch} kernel does not boot: {said}")
        self.new_complaints()

    def ask(self, lines: list[str]) -> list[str]:
        """Return the player's answers to *lines*; BUG or HANG where one does not come."""
        assert self._process.stdin is not None
        answers: list[str] = []
        while len(answers) < len(lines):
            sizes = itertools.accumulate(len(line) + 1 for line in lines[len(answers) :])
            count = bisect.bisect_right(list(sizes), _CONSOLE_SIZE_BYTES)
            part = lines[len(answers) : len(answers) + count]
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write("".join(f"{line}\n" for line in part).encode())
            for _ in part:
                answers.append(self._receive(_ANSWER_TIMEOUT_S))
                if answers[-1] in (BUG, HANG):
                    return answers
        return answers

    def _receive(self, timeout_s: float) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            if not self._selector.select(timeout_s):
                return HANG
            data = os.read(self._process.stdout.fileno(), 4096)
            if not data:
                return BUG
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return line.decode()

    def new_complaints(self) -> list[str]:
        """Return what the kernel has logged since the last call, a line each."""
        size = os.fstat(self._log.fileno()).st_size
        data = os.pread(self._log.fileno(), size - self._read_to, self._read_to)
        self._read_to = size
        return data.decode(errors="replace").splitlines()

    def close(self) -> None:
        """End the kernel, by force: it has nothing to lose, and children to lose with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()
        self._directory.cleanup()
