"""Builds the kernels that answer scenes, and plays scenes on them: tools/oracle-kernel --help.

    linux-source-6.1 (Debian)   unpacked, with the special bit's patch and the device in it
    tools/oracle_kernel/        the device, the player, the patch, the configurations: GPL-2.0
      -> ~/.cache/xipfs/oracle-kernel/VERSION-HASH/{um,um-special}/linux, player.cpio
         ~/.cache/xipfs/oracle-kernel/current, a link to it, where xipfs.oracle.live looks

The kernels are user-mode Linux: ordinary programs, which need no KVM, no root and no image.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from xipfs.oracle.live import ARCHS, cache_dir

ROOT = Path(__file__).parent.parent
SOURCES = Path(__file__).parent / "oracle_kernel"
PACKAGE = "linux-source-6.1"
ARCHIVE = Path(f"/usr/src/{PACKAGE}.tar.xz")
PLAYER_ARCHIVE = """\
dir /dev 755 0 0
dir /proc 755 0 0
nod /dev/console 600 0 0 c 5 1
file /init {init} 755 0 0
"""


class Failed(Exception):
    """A step failed; the message is for the user."""


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="tools/oracle-kernel",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build_parser = commands.add_parser("build", help="build what is not built yet: five minutes")
    build_parser.add_argument(
        "--keep-tree", action="store_true", help="keep the kernel's sources for the next build"
    )
    scenes_parser = commands.add_parser("scenes", help="build, then play random scenes")
    scenes_parser.add_argument("--nr", type=int, default=1000, help="scenes on each kernel")
    options, rest = parser.parse_known_args()
    if rest and options.command != "scenes":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        build(keep_tree=getattr(options, "keep_tree", False))
    except Failed as exc:
        sys.exit(f"tools/oracle-kernel: {exc}")
    if options.command == "scenes":
        play_scenes(options.nr, rest)


def build(*, keep_tree: bool) -> None:
    """Build both kernels and the player, unless they are in the cache."""
    cache = cache_dir()
    target = cache / f"{package_version()}-{sources_hash()}"
    cache.mkdir(parents=True, exist_ok=True)
    if not (target / "complete").exists():
        tree = cache / "tree"
        log = cache / "build.log"
        log.write_text("")
        unpack(tree, log)
        for arch in ARCHS:
            build_kernel(arch, tree, target / arch, log)
        build_player(tree, target, log)
        (target / "complete").touch()
        if not keep_tree:
            say(f"removing {tree}")
            shutil.rmtree(tree)
    link = cache / "current"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    say(f"kernels are in {target}")


def package_version() -> str:
    """Return the version of Debian's kernel source, 6.1.192-2."""
    query = ["dpkg-query", "-W", "-f", "${Version}", PACKAGE]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode or not ARCHIVE.exists():
        raise Failed(f"Debian's package {PACKAGE} is not installed: tools/setup --kernel gets it")
    return done.stdout


def sources_hash() -> str:
    """Return a short hash of all that goes into the kernels."""
    parts = [path.read_bytes() for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def unpack(tree: Path, log: Path) -> None:
    """Have the kernel's sources in *tree*, with our own in them."""
    source = tree / PACKAGE
    if not (tree / "patched").exists():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        step(f"unpacking {ARCHIVE}", ["tar", "xf", ARCHIVE, "-C", tree], log)
        patch = SOURCES / "pte-special.patch"
        step(f"applying {patch.name}", ["patch", "-p1", "-d", source, "-i", patch], log)
        with (source / "mm" / "Makefile").open("a") as makefile:
            makefile.write("obj-y += mixmap.o\n")
        (tree / "patched").touch()
    for name in ("mixmap.c", "mixmap.h"):
        shutil.copy2(SOURCES / name, source / "mm" / name)


def build_kernel(arch: str, tree: Path, target: Path, log: Path) -> None:
    """Build the kernel of one architecture, outside of its sources."""
    output = tree / arch
    output.mkdir(exist_ok=True)
    config = (SOURCES / "um.config").read_text()
    if arch != "um":
        config += (SOURCES / f"{arch}.config").read_text()
    wanted = output / "wanted.config"
    wanted.write_text(config)
    make: list[str | Path] = ["make", "-C", tree / PACKAGE, "ARCH=um", f"O={output}"]
    step(f"configuring {arch}", [*make, f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"], log)
    check_config(config, output / ".config")
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    step(f"building {arch}: some minutes", [*make, jobs, "linux"], log)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(output / "linux", target / "linux")
    step("stripping it", ["strip", "--strip-debug", target / "linux"], log)


def check_config(wanted: str, config: Path) -> None:
    """Raise Failed if kconfig dropped what was wanted."""
    got = config.read_text().splitlines()
    missing = [line for line in wanted.splitlines() if line and line[0] != "#" and line not in got]
    if missing:
        raise Failed(f"this kernel cannot be configured with {', '.join(missing)}")


def build_player(tree: Path, target: Path, log: Path) -> None:
    """Compile the player, and put it into an archive that the kernel starts from."""
    init = tree / "init"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-static"]
    source = SOURCES / "player.c"
    step("compiling the player", ["gcc", *flags, "-o", init, source], log)
    listing = tree / "player.list"
    listing.write_text(PLAYER_ARCHIVE.format(init=init))
    archive = target / "player.cpio"
    with archive.open("wb") as stream:
        subprocess.run(
            [tree / ARCHS[0] / "usr" / "gen_init_cpio", listing], stdout=stream, check=True
        )


def step(what: str, command: list[str | Path], log: Path) -> None:
    """Say *what* and do it, its words into the log. Raises: Failed."""
    say(what)
    with log.open("a") as stream:
        print("###", *command, file=stream, flush=True)
        done = subprocess.run(command, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        raise Failed(f"failed at {what}: {log} has its words")


def say(what: str) -> None:
    """Print one line, at once."""
    print(f"oracle-kernel: {what}", flush=True)


def play_scenes(nr_scenes: int, arguments: list[str]) -> None:
    """Let pytest write scenes and play them; does not return."""
    os.chdir(ROOT)
    command = ["-m", "pytest", "-m", "kernel", "-o", "faulthandler_timeout=0"]
    command += [f"--nr-scenes={nr_scenes}", *arguments]
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
