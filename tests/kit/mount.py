"""Real mounts for tests, each served by a process of its own, and never left behind.

    with mounted(image, tmp_path / "mnt", "cache=none") as live:
        (live.path / "hello").read_bytes()
        live.tiers("hello")                   {"pages": 1, "ram": 0, "nvram": 1, "hole": 0}
        live.wait_epochs(3)

    done = xipfs("mount", image, tmp_path / "mnt")      the command, as a user would

At the end of the block the daemon gets SIGTERM: it must end with status 0, leave nothing mounted,
and have logged nothing but what `live.expected_logs` announces. Should anything fail, in the test
or at the end, the mount is torn away and the daemon killed.

A client of a daemon that does not answer hangs. So a watchdog kills a daemon that lives for too
long: its clients then get an error, and the test fails.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kit.launcher import TIMEOUT_S, Launched, launch
from xipfs.fuse.client import ask
from xipfs.fuse.mountpoint import find_mount

__all__ = ["TIMEOUT_S", "LiveMount", "is_mounted", "mounted", "python", "tear_away", "xipfs"]

_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = os.environ | {"PYTHONPATH": str(_ROOT)}

# What a daemon writes without anything being wrong.
_ORDINARY = re.compile(r"^(.* xipfs\[\d+\] (INFO|DEBUG): |xipfs: cache=none: )")


class LiveMount:
    """*image* mounted at *path*, served by *process*, which writes to the file *log*.

    expected_logs: regular expressions; each must be found in some line of the log or in the
    traceback below it, and what else is in there must be ordinary.
    """

    def __init__(self, image: Path, path: Path, process: Launched, log: Path) -> None:
        self.image = image
        self.path = path
        self.process = process
        self.log = log
        self.expected_logs: list[str] = []

    def stat(self) -> dict[str, Any]:
        """What `xipfs stat --json` shows."""
        return ask(self.path, "stat")

    def vmstat(self, counter: str) -> int:
        return int(self.stat()["vmstat"][counter])

    def tiers(self, name: str | Path) -> dict[str, int]:
        """What user.xipfs.tiers says about the file *name*."""
        value: dict[str, int] = json.loads(os.getxattr(self.path / name, "user.xipfs.tiers"))
        return value

    def wait_epochs(self, count: int) -> None:
        """Return when *count* more epochs have begun."""
        end = self.stat()["epochs"] + count
        while self.stat()["epochs"] < end:
            time.sleep(0.01)

    def wait_ended(self) -> int:
        """Return the status of the daemon, which somebody has told to end; nothing is mounted."""
        status = self.process.wait(TIMEOUT_S)
        assert not is_mounted(self.path)
        return status

    def end(self) -> None:
        """Let the daemon end, as it should, unless it has done so; look at what it wrote."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.wait_ended() == 0, self.log.read_text(errors="replace")
        complaints = self.complaints()
        assert not complaints, "\n".join(complaints)

    def kill_hung(self) -> None:
        """Be the watchdog."""
        with self.log.open("a") as log:
            log.write("killed by the watchdog of the tests\n")
        self.process.kill()

    def complaints(self) -> list[str]:
        """Records of the log that nobody announced, and announcements that nothing came of."""
        records = _records(self.log.read_text(errors="replace"))
        unexpected = [
            record
            for record in records
            if not _ORDINARY.match(record)
            and not any(re.search(pattern, record) for pattern in self.expected_logs)
        ]
        missing = [
            f"announced, but not logged: {pattern!r}"
            for pattern in self.expected_logs
            if not any(re.search(pattern, record) for record in records)
        ]
        return unexpected + missing


def _records(log: str) -> list[str]:
    """Return the lines of a log, each with the traceback that follows it."""
    records: list[str] = []
    in_traceback = False
    for line in log.splitlines():
        if records and (in_traceback or line.startswith("Traceback ")):
            in_traceback = line.startswith(("Traceback ", " "))
            records[-1] += f"\n{line}"
        else:
            records.append(line)
    return records


@contextmanager
def mounted(
    image: Path,
    path: Path,
    options: str = "",
    *,
    prelude: str = "",
    must_end_well: bool = True,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[LiveMount]:
    """Mount *image* at *path*, a directory that is made if it is missing, for the block.

    prelude: Python that the daemon runs before anything else, to break or to watch something.
    must_end_well: whether the end of the block is as the head of this module tells; else the
    daemon is just killed. timeout_s: how long the watchdog lets it live.
    """
    path.mkdir(exist_ok=True)
    log = path.with_name(path.name + ".log")
    arguments = ["mount", "-f", str(image), str(path), *(["-o", options] if options else [])]
    with log.open("ab") as output:
        process = launch(
            arguments, cwd=None, output=output.fileno(), errors=output.fileno(), prelude=prelude
        )
    live = LiveMount(image, path, process, log)
    watchdog = threading.Timer(timeout_s, live.kill_hung)
    watchdog.daemon = True
    watchdog.start()
    try:
        _wait_answers(live)
        yield live
        if must_end_well:
            live.end()
    finally:
        watchdog.cancel()
        tear_away(path)
        process.kill()
        process.wait(TIMEOUT_S)


def _wait_answers(live: LiveMount) -> None:
    while find_mount(live.path.resolve()) is None:
        if live.process.poll() is not None:
            raise AssertionError(f"no mount: {live.log.read_text(errors='replace')}")
        time.sleep(0.01)
    os.statvfs(live.path)


def is_mounted(path: Path) -> bool:
    """Is anything mounted at *path*? Never asks a daemon."""
    return find_mount(Path(os.path.realpath(path.parent)) / path.name) is not None


def tear_away(path: Path) -> None:
    """Take away whatever is mounted at *path*, as often as that is."""
    while is_mounted(path):
        subprocess.run(["fusermount3", "-u", "-z", "-q", "--", path], check=False)
        if is_mounted(path):
            subprocess.run(["umount", "-l", "--", path], check=True)


def xipfs(
    *arguments: object, cwd: Path | None = None, prelude: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run the `xipfs` command, by `tests.kit.launcher`; what hangs is killed.

    What it writes is read until the command ends, whoever else may hold on to its output.
    """
    words = [os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = launch(
            words, cwd=cwd, output=output.fileno(), errors=errors.fileno(), prelude=prelude
        )
        try:
            returncode = process.wait(TIMEOUT_S)
        finally:
            process.kill()
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="surrogateescape"))
    return subprocess.CompletedProcess(words, returncode, *texts)


def python(*arguments: object, timeout_s: float = TIMEOUT_S, **options: Any) -> Any:
    """Run this Python; what hangs is killed. Returns the CompletedProcess, its output as text."""
    return subprocess.run(
        [sys.executable, *map(_argument, arguments)],
        **(
            {
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "env": _ENVIRONMENT,
                "text": True,
                "errors": "surrogateescape",
                "timeout": timeout_s,
                "check": False,
            }
            | options
        ),
    )


def _argument(argument: object) -> str | bytes:
    return argument if isinstance(argument, bytes) else str(argument)
