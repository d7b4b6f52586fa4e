"""The wheel and the source archive, and what works without the extra `[fuse]`."""

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest

from xipfs.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent.parent
BUILD = """
from setuptools import build_meta
build_meta.build_wheel("dist")
build_meta.build_sdist("dist")
"""


def files_below(top: Path, *folders: str) -> set[str]:
    """Return the paths of all files in these folders, from `top` on, but compiled Python."""
    return {
        path.relative_to(top).as_posix()
        for folder in folders
        for path in (top / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with its `dist/` built and a big image that must stay out of it."""

    def left_behind(folder: str, names: list[str]) -> set[str]:
        top = Path(folder) == ROOT
        return {
            name
            for name in names
            if name in ("__pycache__", "build", "dist")
            or name.endswith(".egg-info")
            or (top and name.startswith(".") and name != ".ci")
            or (Path(folder) == ROOT / "nvram_images" and name.endswith(".img"))
        }

    copy = tmp_path_factory.mktemp("packaging") / "xipfs"
    shutil.copytree(ROOT, copy, ignore=left_behind)
    (copy / "nvram_images" / "big.img").write_bytes(b"big")
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> zipfile.Path:
    """The top of the wheel."""
    (path,) = (checkout / "dist").glob("*.whl")
    return zipfile.Path(path)


@pytest.fixture(scope="module")
def installed(checkout: Path, wheel: zipfile.Path) -> Path:
    """A folder with the wheel unpacked in it, as pip would."""
    site = checkout.parent / "site"
    wheel.root.extractall(site)
    return site


def metadata(wheel: zipfile.Path, name: str) -> str:
    """Return the text of a file in the wheel's .dist-info."""
    (folder,) = (path for path in wheel.iterdir() if path.name.endswith(".dist-info"))
    return (folder / name).read_text()


def test_wheel_has_every_module_of_every_room_and_nothing_else(checkout: Path, wheel: zipfile.Path):
    names = {name for name in wheel.root.namelist() if not name.endswith("/")}
    package = {name for name in names if not PurePosixPath(name).parts[0].endswith(".dist-info")}
    assert package == files_below(checkout, "xipfs")
    assert "xipfs/py.typed" in package


def test_commands_of_the_wheel_exist(wheel: zipfile.Path):
    config = configparser.ConfigParser()
    config.optionxform = str
    config.read_string(metadata(wheel, "entry_points.txt"))
    assert set(config["console_scripts"]) == {"xipfs", "mount.xipfs"}
    for place in config["console_scripts"].values():
        module, function = place.split(":")
        source = wheel.joinpath(*module.split(".")).parent / f"{module.split('.')[-1]}.py"
        assert f"def {function}(" in source.read_text()


def test_source_archive_has_all_but_big_images(checkout: Path):
    (path,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = files_below(checkout, ".ci", "docs", "nvram_images", "tests", "tools", "xipfs")
    wanted |= {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml"}
    assert wanted - names == {"nvram_images/big.img"}


# Runs what follows on the command line as if what the extras bring were not installed.
WITHOUT_FUSE = """
import sys
for name in ("pyfuse3", "trio", "textual", "pyarrow"):
    sys.modules[name] = None
exec(sys.argv.pop(1))
"""


def without_fuse(installed: Path, code: str, *argv: str | Path) -> str:
    """Return what the code prints; the wheel is all it finds of xipfs."""
    command = [sys.executable, "-P", "-c", WITHOUT_FUSE, code, *argv]
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("room", ["fs", "mm", "ondisk", "phys", "policy"])
def test_room_needs_no_fuse(installed: Path, room: str):
    code = f"import pkgutil, xipfs.{room} as room"
    code += "\nfor module in pkgutil.iter_modules(room.__path__):"
    code += "\n    __import__(f'{room.__name__}.{module.name}')"
    code += "\nprint(room.__file__)"
    printed = without_fuse(installed, code)
    assert Path(printed.strip()).is_relative_to(installed)


XIPFS = "from xipfs.cli.main import main; sys.exit(main())"


def test_version_is_that_of_the_metadata(installed: Path, wheel: zipfile.Path):
    version = Parser().parsestr(metadata(wheel, "METADATA"))["Version"]
    assert without_fuse(installed, XIPFS, "--version").split()[-1] == version


def test_help_needs_no_extra(installed: Path):
    shown = without_fuse(installed, XIPFS, "--help")
    assert all(command in shown for command in COMMANDS)


def test_image_commands_need_no_fuse(installed: Path, tmp_path: Path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "hello").write_text("hello, world\n")
    image = tmp_path / "a.img"
    without_fuse(installed, XIPFS, "mkfs", image, "--from", tmp_path / "tree")
    without_fuse(installed, XIPFS, "fsck", image)
    assert "hello" in without_fuse(installed, XIPFS, "ls", f"{image}:/")
    assert without_fuse(installed, XIPFS, "cat", f"{image}:/hello") == "hello, world\n"
    assert without_fuse(installed, XIPFS, "info", image)
