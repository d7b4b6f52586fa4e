"""The demo: an image made, mounted, used by programs, explained in figures, unmounted.

    tools/demo          sets the checkout up, then runs this

The image is that of nvram_images/userland.py. What programs print when they run from the mount must
be what they print when they run from the tree that the image was made of. Where nothing can be
mounted, the same files are read through `xipfs.fuse.mount.Mount` in this process.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xipfs.cli.stat import render_map
from xipfs.errors import XipfsError
from xipfs.fs.inode import Inode
from xipfs.fuse.client import ask
from xipfs.fuse.mount import Mount
from xipfs.fuse.mountpoint import find_mount
from xipfs.fuse.options import parse_options
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import STRUCT_PAGE_SIZE_BYTES, Ino, format_size

__all__ = ["Demo", "main"]

_NVRAM_IMAGES = Path(__file__).resolve().parent.parent / "nvram_images"
_RECIPE = _NVRAM_IMAGES / "userland.py"

# In the demo's own directory, which is the working directory.
_TREE = Path("tree")
_MOUNTPOINT = Path("mnt")
_PYTHON = Path("python", "bin", "python3")

_RAM = "24M"
_EPOCH_MS = 200
_NR_GUESTS = 100
_MAP_COLUMNS, _MAP_ROWS = 72, 12
_DIGITS = re.compile(r"(?<=^[0-9a-f]{16})[0-9a-f]{48}\b")  # enough remain to look at
_READ_SIZE_BYTES = 128 << 10  # as the kernel asks when it reads ahead
_STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Command = Sequence[str | Path]


class DemoError(Exception):
    """The demo cannot go on; one line says why."""


class Demo:
    """What one run of the demo knows.

    get_facts: returns what `xipfs stat --json` does. same: have all results been equal so far?
    """

    def __init__(self, get_facts: Callable[[], dict[str, Any]]) -> None:
        self.same = True
        self._get_facts = get_facts
        self._steps: list[tuple[str, dict[str, int]]] = []

    def check(self, what: str, found: str, expected: str) -> None:
        """Say whether two results are equal."""
        if found == expected:
            print(f"   equal: {what}")
        else:
            self.same = False
            print(f"   DIFFERENT: {what}: {found!r}, should be {expected!r}")

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note what the mount counts meanwhile."""
        before = self._get_facts()["vmstat"]
        yield
        after = self._get_facts()["vmstat"]
        self._steps.append((name, {key: after[key] - before[key] for key in after}))

    def explain(self) -> None:
        """Print what became of the pages, step by step and in all."""
        facts = self._get_facts()
        total = facts["vmstat"]
        print("\n== what became of the pages (4 KiB each), by the counters of xipfs stat")
        columns = {
            "read": "xip_access",
            "in RAM": "xip_access_ram",
            "faulted": "pgfault",
            "by pfn": "xip_insert_pfn",
            "by page": "xip_insert_page",
            "promoted": "pgpromote_success",
            "demoted": "pgdemote",
        }
        print(" " * 28 + "".join(f"{title:>9}" for title in columns))
        for name, counters in [*self._steps, ("since the mount", total)]:
            cells = "".join(f"{counters[key]:9}" for key in columns.values())
            print(f"   {name:<25}{cells}  {_percent(counters)}")
        print(
            "   faulted: no pte was there; by pfn: a pte of a bare NVRAM frame; by page: a pte of\n"
            "   a RAM frame, reference counted; in RAM, and the percentage: read from such frames"
        )
        page, nr_pages = facts["page_size_bytes"], facts["nvram_pages"]
        saved = facts["struct_page_saved_bytes"]
        print(
            f"\n   the image has {nr_pages} pages. Struct pages for them would take {nr_pages} x "
            f"{STRUCT_PAGE_SIZE_BYTES} B = {format_size(saved)}\n"
            f"   of RAM in each system that maps it; {_NR_GUESTS} guests sharing it would spend "
            f"{format_size(saved * _NR_GUESTS)}. Here there\n"
            f"   are struct pages for the RAM tier only: {facts['struct_pages']} x "
            f"{STRUCT_PAGE_SIZE_BYTES} B = {format_size(facts['struct_page_bytes'])} "
            f"(for {format_size(facts['ram_frames'] * page)} of RAM)"
        )


def _percent(counters: Mapping[str, int]) -> str:
    return f"{counters['xip_access_ram'] / max(counters['xip_access'], 1):5.0%}"


def main() -> int:
    """Run the demo; return its exit status."""
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__)
    parser.add_argument("--in-process", action="store_true", help="do not mount")
    parser.add_argument("--image", type=Path, default=_NVRAM_IMAGES / "userland.img")
    arguments = parser.parse_args()
    image: Path = arguments.image.absolute()
    for number in _STOPPERS:
        signal.signal(number, _stop)
    started_s = time.monotonic()
    work = Path(os.path.realpath(tempfile.mkdtemp(prefix="xipfs-demo-")))
    os.chdir(work)  # so that commands are short to read
    try:
        _build_image(image, work)
        reason = "as you asked" if arguments.in_process else _why_no_fuse()
        same = _with_mount(image) if reason is None else _in_process(image, reason)
        elapsed_s = time.monotonic() - started_s
        print(f"\n== {'all results were equal' if same else 'RESULTS DIFFER'} ({elapsed_s:.0f} s)")
        return 0 if same else 1
    except KeyboardInterrupt:
        print("tools/demo: interrupted", file=sys.stderr)
        return 130
    except (DemoError, XipfsError, OSError) as exc:
        print(f"tools/demo: {exc}", file=sys.stderr)
        return 1
    finally:
        os.chdir("/")
        if find_mount(work / _MOUNTPOINT) is None:
            shutil.rmtree(work, ignore_errors=True)


def _stop(number: int, _: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _build_image(image: Path, work: Path) -> None:
    print("== an image of the Python that runs this, and of a shell with some tools")
    _show(["cd", work])
    _show([_RECIPE, image, "--tree", _TREE])
    print(f"   {_run([sys.executable, _RECIPE, image, '--tree', _TREE])}")


def _why_no_fuse() -> str | None:
    """Return what keeps us from mounting, None if nothing does."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return f"/dev/fuse: {exc.strerror}"
    return None


# With a mount.


def _with_mount(image: Path) -> bool:
    """Mount the image, run programs from it, say what happened; return whether all was equal."""
    nr_cells = _MAP_COLUMNS * _MAP_ROWS
    demo = Demo(lambda: ask(_MOUNTPOINT, "stat", cells=nr_cells))
    with _mounted(image):
        _compare_trees(demo)
        _run_python(demo)
        _run_binaries(demo)
        _run_script(demo)
        demo.explain()
        print("\n== where is what?")
        library = _MOUNTPOINT / "lib" / "libc.so.6"
        _show(["getfattr", "-n", "user.xipfs.tiers", library])
        _show_tiers(os.getxattr(library, "user.xipfs.tiers"))
        _show(["xipfs", "stat", _MOUNTPOINT])
        _show_map(ask(_MOUNTPOINT, "stat", cells=nr_cells)["map"])
    return demo.same


@contextlib.contextmanager
def _mounted(image: Path) -> Iterator[None]:
    """Mount the image; unmount it, whatever happens."""
    print(f"\n== mount: {_RAM} of RAM for hot pages, and an epoch of {_EPOCH_MS} ms")
    _MOUNTPOINT.mkdir()
    options = f"ram={_RAM},epoch={_EPOCH_MS}"
    _show(["xipfs", "mount", image, _MOUNTPOINT, "-o", options])
    print("   that is less than by default, so that something happens before our eyes")
    try:
        with _uninterrupted():
            _xipfs("mount", image, _MOUNTPOINT, "-o", options)
        yield
    finally:
        with _uninterrupted():
            if find_mount(_MOUNTPOINT.absolute()) is not None:
                try:
                    _xipfs("umount", _MOUNTPOINT)
                except DemoError:  # in use, by a program that is just being interrupted
                    _xipfs("umount", "--lazy", _MOUNTPOINT)
                print("\n== unmounted")
                _show(["xipfs", "umount", _MOUNTPOINT])


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let no signal in while a mount is being made or undone; take it afterwards."""
    came: list[int] = []
    for number in _STOPPERS:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number in _STOPPERS:
            signal.signal(number, _stop)
    if came:
        _stop(came[0], None)


def _compare_trees(demo: Demo) -> None:
    print("\n== is the mount what the image was made of? (reads every page, each one once)")
    command = ["rsync", "-aHAXcn", "--delete", "-i", f"{_TREE}/", f"{_MOUNTPOINT}/"]
    _show(command)
    with demo.step("rsync, a scan"):
        found = _run(command)
    demo.check("rsync would change nothing", found, "")


def _run_python(demo: Demo) -> None:
    print("\n== that Python parses its whole standard library")
    print("   (PATH and LD_LIBRARY_PATH lead to bin and lib beside it, for all that follows)")
    expected = _run_shown(_TREE, *_python(_TREE))
    for i in (1, 2):
        with demo.step(f"Python, run {i}"):
            found = _run_shown(_MOUNTPOINT, *_python(_MOUNTPOINT))
        demo.check("syntax trees", found, expected)
    _show_maps()


def _python(top: Path) -> Command:
    """Return the command that parses; that Python shall not look for anything elsewhere."""
    return [top / _PYTHON, "-ISB", top / "programs" / "parse_library.py"]


def _show_maps() -> None:
    """Say from where such a Python maps its code."""
    code = "import hashlib; print(open('/proc/self/maps').read())"
    maps = _run([_MOUNTPOINT / _PYTHON, "-ISBc", code], top=_MOUNTPOINT)
    files = set(re.findall(r" (/.+)$", maps, re.MULTILINE))
    others = sorted(file for file in files if not file.startswith(f"{_MOUNTPOINT.absolute()}/"))
    print(
        f"   {len(files) - len(others)} of the {len(files)} files that such a Python maps are of "
        f"the mount" + (f", not {', '.join(others)}" if others else "")
    )


def _run_binaries(demo: Demo) -> None:
    print("\n== binaries with their shared libraries, a #! script and, as root, a chroot")
    with demo.step("sha256sum"):
        expected, found = (
            _run_shown(
                top, top / "bin" / "sha256sum", top / "bin" / "sh", top / "lib" / "libc.so.6"
            )
            for top in (_TREE, _MOUNTPOINT)
        )
    demo.check(
        "checksums of the shell and the C library",
        found.replace(f"{_MOUNTPOINT}/", ""),
        expected.replace(f"{_TREE}/", ""),
    )


def _run_script(demo: Demo) -> None:
    program = Path("programs", "checksum_library.sh")
    expected = _run_shown(_TREE, _TREE / program, _TREE / "python")
    with demo.step("#! script"):
        found = _run_shown(_MOUNTPOINT, _MOUNTPOINT / program, _MOUNTPOINT / "python")
    demo.check("checksum of the library", found, expected)
    if os.geteuid() != 0:
        print("   no chroot: only root can do that")
        return
    chroot = shutil.which("chroot", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "chroot"
    with demo.step("#! script in a chroot"):
        found = _run_shown(Path("/"), chroot, _MOUNTPOINT, f"/{program}", "/python")
    demo.check("checksum of the library", found, expected)


def _xipfs(*arguments: str | Path) -> None:
    """Run a command of xipfs, in a session of its own: out of Ctrl-C's reach."""
    _run([sys.executable, "-m", "xipfs", *arguments], start_new_session=True)


def _run_shown(top: Path, *command: str | Path) -> str:
    """Run a program of the userland in *top*, showing it; return what it printed."""
    _show(command)
    started_s = time.monotonic()
    output = _run(command, top=top)
    elapsed_s = time.monotonic() - started_s
    for line in output.splitlines():
        print("   " + _DIGITS.sub("..", line))
    print(f"   ({elapsed_s:.1f} s)")
    return output


def _show(command: Command) -> None:
    print("   $ " + " ".join(str(word) for word in command))


def _run(command: Command, *, top: Path | None = None, start_new_session: bool = False) -> str:
    """Run a command and return what it prints; top: by libraries and tools of that userland.

    Raises: DemoError, with its last words.
    """
    environment = None
    if top is not None:
        top = top.absolute()
        environment = {"PATH": f"{top / 'bin'}", "LD_LIBRARY_PATH": f"{top / 'lib'}", "LC_ALL": "C"}
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=start_new_session,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DemoError(f"{Path(command[0]).name} failed: {words[-1]}")
    return done.stdout.strip()


# Without one.


def _in_process(image: Path, reason: str) -> bool:
    """Read the image's files through `Mount`, several epochs long; return whether all was equal."""
    print(f"\n== no mount ({reason}): the same files are read in this process")
    print(f"   {_RAM} of RAM for hot pages; an epoch after every 100 files")
    mount = Mount.open(image, parse_options(f"ram={_RAM},cache=none"))
    with contextlib.closing(mount):
        demo = Demo(mount.statistics)
        files = dict(_list_files(mount, INO_ROOT, ""))
        library = [name for name in files if name.endswith(".py")]
        binaries = [name for name in files if name.startswith(("bin/", "lib"))]
        for name, names in (
            ("every file, a scan", list(files)),
            ("Python sources, run 1", library),
            ("Python sources, run 2", library),
            ("libraries, run 1", binaries),
            ("libraries, run 2", binaries),
            ("libraries, run 3", binaries),
        ):
            with demo.step(name):
                found = _checksum(mount, [files[name] for name in names])
            demo.check(f"{name}, {len(names)} files", found, _checksum_tree(names))
        demo.explain()
        print("\n== where is what?")
        name = "lib/libc.so.6"
        print(f"   user.xipfs.tiers of {name}")
        _show_tiers(mount.dispatch(mount.operations.getxattr, files[name], b"user.xipfs.tiers"))
        _show_map(mount.region_map(_MAP_COLUMNS * _MAP_ROWS)._asdict())
    return demo.same


def _list_files(mount: Mount, directory: Ino, path: str) -> Iterator[tuple[str, Ino]]:
    """Yield all regular files below a directory: path and inode number, a lookup counted each."""
    entries: list[tuple[bytes, Inode]] = []

    def emit(name: bytes, inode: Inode, position: int) -> bool:
        entries.append((name, inode))
        return True

    fh = mount.dispatch(mount.operations.opendir, directory)
    mount.dispatch(mount.operations.readdir, fh, 0, emit)
    mount.dispatch(mount.operations.release, fh)
    for name, inode in sorted(entries):
        if inode.is_regular:
            yield path + os.fsdecode(name), inode.ino
        elif inode.is_dir and name not in (b".", b".."):
            yield from _list_files(mount, inode.ino, f"{path}{os.fsdecode(name)}/")


def _checksum(mount: Mount, files: Sequence[Ino]) -> str:
    """Return the checksum of the contents of *files*; an epoch passes with every 100 of them."""
    digest = hashlib.sha256()
    for i, ino in enumerate(files, 1):
        fh = mount.dispatch(mount.operations.open, ino, os.O_RDONLY)
        offset = 0
        while runs := mount.dispatch(mount.operations.read, fh, offset, _READ_SIZE_BYTES):
            data = mount.machine.physmem.gather(runs)
            digest.update(data)
            offset += len(data)
        mount.dispatch(mount.operations.release, fh)
        if i % 100 == 0 or i == len(files):
            mount.run_epoch()
    return digest.hexdigest()


def _checksum_tree(names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update((_TREE / name).read_bytes())
    return digest.hexdigest()


# For both.


def _show_tiers(value: bytes) -> None:
    tiers = json.loads(value)
    print("   " + ", ".join(f"{count} {tier}" for tier, count in tiers.items()))


def _show_map(region: dict[str, Any]) -> None:
    print("   " + render_map(region, _MAP_COLUMNS).replace("\n", "\n   "))


if __name__ == "__main__":
    sys.exit(main())
