"""Programs that a dying daemon interrupts, and what must be left of their work.

    worker = Worker("files", directory, notes, seed=7)    a process, at work until the mount is gone
    worker.wait()
    check("files", directory, notes)                      on the next mount

Before each step a worker notes what it is about to do, and afterwards, when fsync has returned,
that it is done. The notes are outside of the mount. So what was noted as done must be there, and
of the one step that was not, all of it or nothing, unless it was only on its way to a new file.

    kind     does                                          and must find again
    files    new files, replaced by rename, removed;       whole files, of the version noted or
             a log, records written in place,              of the step on its way; the log up to its
             a directory renamed over and over             last line; exactly one name
    sqlite   commits, in a journal mode                    every commit, by its own checks, too
    git      commits                                       every commit, as git fsck finds it
"""

import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "Worker", "check"]

_TIMEOUT_S = 60
_SLOT_BYTES = 64
_NR_SLOTS = 200

Note = list[Any]


class Notes:
    """What a worker says it does, line by line, in a file that no daemon serves."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def begin(self, *step: object) -> None:
        os.write(self._fd, json.dumps(["begin", *step]).encode() + b"\n")

    def done(self) -> None:
        os.write(self._fd, b'["done"]\n')


def _read_notes(path: Path) -> tuple[list[Note], Note | None]:
    """Return the steps that are done, and the one that is not."""
    done: list[Note] = []
    on_its_way: Note | None = None
    for line in path.read_text().splitlines():
        word, *step = json.loads(line)
        if word == "begin":
            on_its_way = step
        elif on_its_way is not None:
            done.append(on_its_way)
            on_its_way = None
    return done, on_its_way


class Worker:
    """A process of its own that works in *directory*, a new one, until it gets an error."""

    def __init__(self, kind: str, directory: Path, notes: Path, seed: int) -> None:
        directory.mkdir()
        notes.touch()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, kind, directory, notes, str(seed)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        self._process.wait(_TIMEOUT_S)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def check(kind: str, directory: Path, notes: Path) -> int:
    """Look at what is there; return how many steps were done. Raises: AssertionError."""
    done, on_its_way = _read_notes(notes)
    KINDS[kind][1](directory, done, on_its_way)
    return len(done)


# files


def _contents(name: str, version: int, size: int) -> bytes:
    head = f"{name} {version} {size}\n".encode()
    return head + random.Random(f"{name} {version}").randbytes(size)


def _record(slot: int, version: int) -> bytes:
    return f"{slot} {version}".encode().ljust(_SLOT_BYTES, b".")


def _line(number: int) -> bytes:
    return f"{number} {'x' * (number * 37 % 300)}\n".encode()


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _write_file(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for start in range(0, len(data), 30_000):
        os.write(fd, data[start : start + 30_000])
    os.fsync(fd)
    os.close(fd)


def _work_on_files(directory: Path, notes: Notes, rng: random.Random) -> None:
    notes.begin("setup")
    slots = os.open(directory / "slots", os.O_CREAT | os.O_RDWR)
    os.write(slots, b"".join(_record(slot, 0) for slot in range(_NR_SLOTS)))
    os.fsync(slots)
    log = os.open(directory / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    (directory / "chain.0").mkdir()
    _fsync_directory(directory)
    notes.done()
    chain = lines = version = 0
    there: set[str] = set()
    while True:
        version += 1
        name = f"file{rng.randrange(12)}"
        size = rng.choice((0, 100, 5000, rng.randrange(60_000), rng.randrange(300_000)))
        match rng.choice(("new", "replace", "replace", "remove", "log", "log", "slot", "chain")):
            case "new" if name not in there:
                notes.begin("new", name, version, size)
                _write_file(directory / name, _contents(name, version, size))
                _fsync_directory(directory)
                there.add(name)
            case "replace" if name in there:
                notes.begin("replace", name, version, size)
                _write_file(directory / f"{name}.tmp", _contents(name, version, size))
                os.rename(directory / f"{name}.tmp", directory / name)
                _fsync_directory(directory)
            case "remove" if name in there:
                notes.begin("remove", name)
                os.unlink(directory / name)
                _fsync_directory(directory)
                there.remove(name)
            case "log":
                notes.begin("log", lines)
                os.write(log, _line(lines))
                os.fdatasync(log)
                lines += 1
            case "slot":
                slot = rng.randrange(_NR_SLOTS)
                notes.begin("slot", slot, version)
                os.pwrite(slots, _record(slot, version), slot * _SLOT_BYTES)
                os.fdatasync(slots)
            case "chain":
                notes.begin("chain", chain + 1)
                os.rename(directory / f"chain.{chain}", directory / f"chain.{chain + 1}")
                _fsync_directory(directory)
                chain += 1
            case _:
                continue
        notes.done()


def _check_files(directory: Path, done: list[Note], on_its_way: Note | None) -> None:
    if not done:
        return
    files: dict[str, tuple[int, int] | None] = {}
    slots = dict.fromkeys(range(_NR_SLOTS), 0)
    lines = chain = 0
    for word, *what in done:
        match word:
            case "new" | "replace":
                files[what[0]] = (what[1], what[2])
            case "remove":
                files[what[0]] = None
            case "slot":
                slots[what[0]] = what[1]
            case "log":
                lines = what[0] + 1
            case "chain":
                chain = what[0]
    late = on_its_way or ["nothing"]
    for name, state in files.items():
        allowed = [None if state is None else _contents(name, *state)]
        if late[0] == "replace" and late[1] == name:
            allowed.append(_contents(*late[1:]))
        if late[0] == "remove" and late[1] == name:
            allowed.append(None)
        path = directory / name
        found = path.read_bytes() if path.exists() else None
        is_new = late[0] == "new" and late[1] == name
        assert found in allowed or is_new, (
            f"{path}: {found and found[:40]!r}, noted {state}, {late}"
        )
    whole = b"".join(map(_line, range(lines)))
    found = (directory / "log").read_bytes()
    assert found.startswith(whole), f"{directory}/log: {len(found)} of {len(whole)} bytes"
    rest = found[len(whole) :]
    assert late[0] == "log" or not rest, f"{directory}/log: {rest[:40]!r} too much"
    assert _line(lines).startswith(rest), f"{directory}/log: {rest[:40]!r} at the end"
    records = (directory / "slots").read_bytes()
    for slot, version in slots.items():
        record = records[slot * _SLOT_BYTES : (slot + 1) * _SLOT_BYTES]
        allowed_records = [_record(slot, version)]
        if late[:2] == ["slot", slot]:
            allowed_records.append(_record(*late[1:]))
        assert record in allowed_records, f"{directory}/slots: {record!r} at {slot}"
    names = [path.name for path in directory.glob("chain.*")]
    allowed_chain = [chain, chain + 1] if late[0] == "chain" else [chain]
    assert names in [[f"chain.{n}"] for n in allowed_chain], f"{names}, noted {chain}"


# sqlite


def _commit_to_sqlite(mode: str) -> Callable[[Path, Notes, random.Random], None]:
    def work(directory: Path, notes: Notes, rng: random.Random) -> None:
        notes.begin("setup")
        db = sqlite3.connect(directory / "db", isolation_level=None)
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY, text TEXT)")
        notes.done()
        number = 0
        while True:
            notes.begin("commit", number)
            db.execute("BEGIN")
            db.execute("INSERT INTO numbers VALUES (?, ?)", (number, "t" * rng.randrange(3000)))
            db.execute("UPDATE numbers SET text = text || 'u' WHERE number % 7 = ?", (number % 7,))
            db.execute("COMMIT")
            notes.done()
            number += 1

    return work


def _check_sqlite(directory: Path, done: list[Note], on_its_way: Note | None) -> None:
    if not done:
        return
    db = sqlite3.connect(directory / "db")
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    (count,) = db.execute("SELECT count(*) FROM numbers").fetchone()
    db.close()
    nr_done = len(done) - 1
    assert nr_done <= count <= nr_done + bool(on_its_way), f"{count} commits, noted {nr_done}"


# git


def _git(directory: Path, *arguments: str) -> str:
    durable = ["-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync", "-c", "gc.auto=0"]
    names = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    return subprocess.run(
        ["git", *durable, *names, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
        timeout=_TIMEOUT_S,
    ).stdout.strip()


def _commit_to_git(directory: Path, notes: Notes, rng: random.Random) -> None:
    notes.begin("setup")
    _git(directory, "init", "-q", "-b", "main")
    notes.done()
    number = 0
    while True:
        (directory / f"file{number % 5}").write_text(f"{number}\n" * rng.randrange(2000))
        notes.begin("commit", number)
        _git(directory, "add", "-A")
        _git(directory, "commit", "-q", "--allow-empty", "-m", f"commit {number}")
        notes.done()
        number += 1


def _check_git(directory: Path, done: list[Note], on_its_way: Note | None) -> None:
    if not done:
        return
    for lock in directory.rglob("*.lock"):  # as git says of locks that a crash has left
        lock.unlink()
    _git(directory, "fsck", "--strict")
    nr_done = len(done) - 1
    if not nr_done:
        return
    subjects = _git(directory, "log", "--format=%s").splitlines()[::-1]
    assert subjects == [f"commit {number}" for number in range(len(subjects))]
    assert nr_done <= len(subjects) <= nr_done + bool(on_its_way), f"{len(subjects)} of {nr_done}"
    _git(directory, "status")
    _git(directory, "commit", "-q", "--allow-empty", "-a", "-m", "afterwards")


KINDS: dict[
    str,
    tuple[
        Callable[[Path, Notes, random.Random], None],
        Callable[[Path, list[Note], Note | None], None],
    ],
] = {
    "files": (_work_on_files, _check_files),
    "sqlite-delete": (_commit_to_sqlite("DELETE"), _check_sqlite),
    "sqlite-persist": (_commit_to_sqlite("PERSIST"), _check_sqlite),
    "sqlite-wal": (_commit_to_sqlite("WAL"), _check_sqlite),
    "git": (_commit_to_git, _check_git),
}


if __name__ == "__main__":
    kind, directory, notes, seed = sys.argv[1:]
    KINDS[kind][0](Path(directory), Notes(Path(notes)), random.Random(seed))
