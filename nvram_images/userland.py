#!/usr/bin/env python3
"""Recipe: a small userland made of this machine's own parts, to run programs from.

    nvram_images/userland.py [IMAGE] [--tree DIR]        default: nvram_images/userland.img

    /python       the Python that runs this, or the one its virtual environment was made from:
                  /python/bin/python3 and the standard library, without tests and site-packages
    /bin          a shell and some tools, real binaries
    /lib          every shared library that one of these needs, all in this one directory
    /lib64, ..    the dynamic loader, where the binaries look for it
    /programs     what stands in nvram_images/programs

A chroot into it works, and so does running from anywhere with LD_LIBRARY_PATH=.../lib. The same
machine and SOURCE_DATE_EPOCH (default 0) give the same image.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from xipfs.errors import XipfsError
from xipfs.fs.mkfs import mkfs
from xipfs.fs.source import walk_tree
from xipfs.units import format_size

__all__ = ["copy_libraries", "make_image", "make_tree"]

TOOLS = ("sh", "cat", "env", "find", "grep", "head", "ls", "sha256sum", "sort", "wc")

_HERE = Path(__file__).resolve().parent
_LEFT_OUT = shutil.ignore_patterns(
    *("site-packages", "dist-packages", "test", "tests", "idle_test", "config-*"),
    *("*.opt-?.pyc", "*.pyc.*"),  # for python -O; what another Python is just writing
)
# `libc.so.6 => /lib/libc.so.6 (0x..)`, and `/lib64/ld-linux-x86-64.so.2 (0x..)`: the loader.
_LDD_LINE = re.compile(r"^\s*(?:(\S+) => )?(/.*) \(0x[0-9a-f]+\)$", re.MULTILINE)


def make_image(image: Path, tree: Path) -> str:
    """Build *image* from the userland, made in the new directory *tree*; return what it is.

    Raises: XipfsError, OSError.
    """
    now_ns = int(os.environ.get("SOURCE_DATE_EPOCH", "0")) * 10**9
    make_tree(tree, mtime_ns=now_ns)
    made = mkfs(
        image, walk_tree(tree), now_ns=now_ns, label=b"userland", reproducible=True, force=True
    )
    return (
        f"{image}: {format_size(made.size_bytes)}, {made.nr_files} files in "
        f"{made.nr_directories} directories"
    )


def make_tree(tree: Path, *, mtime_ns: int) -> None:
    """Make the userland in the new directory *tree*; all its directories get *mtime_ns*.

    Raises: OSError.
    """
    for name in ("bin", "lib", "programs", "python/bin", "usr"):
        (tree / name).mkdir(parents=True)
    binaries = [*_copy_python(tree / "python"), *_copy_tools(tree / "bin")]
    copy_libraries(binaries, tree)
    for program in (_HERE / "programs").iterdir():
        shutil.copy2(program, tree / "programs")
    bin_link = tree / "usr" / "bin"  # for #!/usr/bin/env
    bin_link.symlink_to("../bin")
    os.utime(bin_link, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
    for directory, _, _ in os.walk(tree):
        os.utime(directory, ns=(mtime_ns, mtime_ns))


def _copy_python(target: Path) -> list[Path]:
    """Copy interpreter and standard library; return the binaries that need libraries."""
    standard_library = Path(sysconfig.get_path("stdlib"))
    # In a virtual environment, the one it was made from.
    interpreter = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    shutil.copy2(interpreter, target / "bin" / "python3")
    shutil.copytree(
        standard_library,
        # Where an interpreter in ../bin looks for it.
        target / standard_library.relative_to(sys.base_prefix),
        ignore=_LEFT_OUT,
        ignore_dangling_symlinks=True,
    )
    modules = (standard_library / "lib-dynload").glob("*.so")
    # With _tkinter half of X11 would come along.
    return [interpreter, *(path for path in modules if not path.name.startswith("_tkinter"))]


def _copy_tools(target: Path) -> list[Path]:
    tools = []
    for name in TOOLS:
        found = shutil.which(name)
        if found is None:
            raise FileNotFoundError(2, "no such program on the PATH", name)
        shutil.copy2(found, target / name)
        tools.append(Path(found))
    return tools


def copy_libraries(binaries: list[Path], tree: Path) -> None:
    """Copy what *binaries* are linked with, as ldd(1) finds it, to where *tree* has libraries."""
    listed = subprocess.run(
        ["ldd", *binaries],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # "not a dynamic executable": needs nothing
        text=True,
        check=False,
    ).stdout
    for name, found in set(_LDD_LINE.findall(listed)):
        place = tree / "lib" / name if name else tree / found.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            shutil.copy2(found, place)


def main() -> int:
    """Run the recipe as a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="?", type=Path, default=_HERE / "userland.img")
    parser.add_argument("--tree", type=Path, help="keep the files here, a new directory")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="xipfs-userland-") as work:
            print(make_image(arguments.image, arguments.tree or Path(work) / "tree"))
    except (XipfsError, OSError) as exc:
        print(f"userland.py: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
