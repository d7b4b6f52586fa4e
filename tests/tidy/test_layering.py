"""The house has one direction: who may import whom. The table below is the only copy of it.

Every import statement counts, wherever it stands: at the top, inside a function, under
`if TYPE_CHECKING`. A room that needs a new import changes the table in the same commit, with the
reason in the message.
"""

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

GROUND = ["_version", "units", "errors"]
"""The modules that stand beside the rooms, lowest first: each may import those before it."""

MAY_IMPORT = {
    "phys": {"ground"},
    "ondisk": {"ground"},
    "policy": {"ground"},
    "mm": {"ground", "phys"},
    # mm is handed an operations object by fs (`get_xip_mem`). That protocol is what fs sees of mm,
    # and, in fs.file, what a filesystem calls when a file is written, cut or synced.
    "fs": {
        "ground",
        "phys",
        "ondisk",
        "mm.address_space",
        "mm.filemap_xip",
        "mm.machine",
        "mm.page_writeback",
        "mm.truncate",
    },
    "oracle": {"ground", "phys", "mm"},
    # What the tiers cost is told to policies.
    "tiering": {"ground", "mm", "policy", "phys.cost"},
    "lab": {"ground", "policy"},
    "fuse": {"ground", "phys", "ondisk", "policy", "mm", "fs", "tiering"},
    # A filesystem without FUSE, its pages moved by the mount's own mover.
    "crash": {"ground", "phys", "ondisk", "mm", "fs", "tiering.mover", "policy.contract"},
    # A mount in a process of its own, and what crashes leave of its image.
    "testing": {"ground", "phys", "fs", "fuse", "crash"},
    "cli": {
        *("ground", "phys", "ondisk", "policy", "mm", "fs", "tiering", "lab", "fuse", "oracle"),
        "crash",
    },
}
"""room -> rooms, or single modules of a room, that it may import; lowest first."""

LIBRARIES = {
    "numpy": set(MAY_IMPORT),
    "sortedcontainers": set(MAY_IMPORT),
    "textual": {"cli"},
    "trio": {"fuse", "tiering"},
    "pyarrow": {"lab"},
    "pyfuse3": {"fuse", "cli"},
    "pytest": {"testing"},
    "rich": {"cli"},
    "typer": {"cli"},
}
"""What does not come with Python -> rooms that may import it. The ground floor imports none."""


class Import(NamedTuple):
    """One import statement's target, `xipfs.mm.fault` or `trio`, and its line."""

    target: str
    line: int


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted((ROOT / "xipfs").rglob("*.py"))
MODULES = {module_name(path): path for path in FILES}


def find_imports(source: str, module: str, *, is_package: bool = False) -> Iterator[Import]:
    """Yield all that *source* imports: modules, or packages for names that are no module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                package = parts[: len(parts) - node.level + is_package]
                base = ".".join([*package, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in MODULES else base, node.lineno)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            argument = node.args[0]
            if name in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                yield Import(str(argument.value), node.lineno)


def without_type_checking(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = [ast.Pass()]
    return ast.unparse(tree)


def room_of(module: str) -> str:
    """Return the room of a module of xipfs; "ground" for those that stand beside the rooms."""
    parts = module.split(".")
    if module == "xipfs.__main__":
        return "cli"
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "ground"


def why_not(module: str, target: str) -> str | None:
    """Return what forbids *module* to import *target*, None if nothing does."""
    room = room_of(module)
    top = target.split(".")[0]
    if top != "xipfs":
        if top in sys.stdlib_module_names:
            return None
        if top not in LIBRARIES:
            return f"{top} is not in LIBRARIES"
        return None if room in LIBRARIES[top] else f"{room} may not import {top}"
    below = target.removeprefix("xipfs").strip(".")
    if room == "ground":
        name = module.removeprefix("xipfs").strip(".")
        # xipfs/__init__.py says the version and hides nothing else.
        allowed = GROUND[: GROUND.index(name)] if name in GROUND else ["_version"]
        return None if below in allowed else f"the ground floor may not import {target}"
    if room_of(target) in (room, "ground"):
        return None
    if any(below == a or below.startswith(f"{a}.") for a in MAY_IMPORT[room]):
        return None
    return f"{room} may not import {target}"


def complaints(source: str, module: str, *, is_package: bool = False) -> list[str]:
    return [
        f"{module}, line {found.line}: {reason}"
        for found in find_imports(source, module, is_package=is_package)
        if (reason := why_not(module, found.target))
    ]


def test_every_room_is_in_the_table():
    rooms = {path.name for path in (ROOT / "xipfs").iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(MAY_IMPORT)


def test_every_module_beside_the_rooms_is_in_the_list():
    modules = {path.stem for path in (ROOT / "xipfs").glob("*.py")}
    assert modules - {"__init__", "__main__"} == set(GROUND)


def test_the_table_has_one_direction():
    seen = ["ground"]
    for room, allowed in MAY_IMPORT.items():
        assert {a.split(".")[0] for a in allowed} <= set(seen), f"{room} looks upwards"
        seen.append(room)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports(path: Path):
    found = complaints(path.read_text(), module_name(path), is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_modules_do_not_import_each_other_in_circles():
    """Of two modules one stands below; types may look both ways (`if TYPE_CHECKING`)."""
    graph = {}
    for module, path in MODULES.items():
        source = without_type_checking(path.read_text())
        found = find_imports(source, module, is_package=path.name == "__init__.py")
        graph[module] = {i.target for i in found if i.target in MODULES} - {module}
    graphlib.TopologicalSorter(graph).prepare()


def test_every_library_is_a_declared_dependency_and_the_other_way_round():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["fuse"], *extras["trace"], *extras["pytest"]]
    assert {re.split(r"[^\w-]", line)[0] for line in declared} == set(LIBRARIES)


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("xipfs.mm.fault", "import xipfs.fs.inode", "mm may not import xipfs.fs.inode"),
        ("xipfs.mm.fault", "from xipfs.fs import inode", "mm may not import xipfs.fs"),
        ("xipfs.mm.fault", "from ..fs.inode import Inode", "mm may not import xipfs.fs.inode"),
        ("xipfs.mm.fault", "from .. import fs", "mm may not import xipfs.fs"),
        ("xipfs.mm.fault", "def f():\n    import trio", "mm may not import trio"),
        ("xipfs.mm.fault", "import importlib\nimportlib.import_module('xipfs.cli')", "xipfs.cli"),
        (
            "xipfs.ondisk.inode",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import xipfs.phys.nvram",
            "ondisk may not import xipfs.phys.nvram",
        ),
        ("xipfs.policy.lru", "from xipfs.mm.fault import x", "policy may not import"),
        ("xipfs.fs.xip", "from xipfs.mm import fault", "fs may not import xipfs.mm"),
        ("xipfs.fs.xip", "import pyfuse3", "fs may not import pyfuse3"),
        ("xipfs.tiering.epoch", "from xipfs.fs.inode import Inode", "tiering may not import"),
        ("xipfs.cli.main", "import trio", "cli may not import trio"),
        ("xipfs.fuse.mount", "from xipfs.cli.main import main", "fuse may not import xipfs.cli"),
        ("xipfs.fuse.mount", "import tests.kit", "tests is not in LIBRARIES"),
        ("xipfs.fuse.mount", "import requests", "requests is not in LIBRARIES"),
        ("xipfs.units", "from xipfs.errors import bug_on", "the ground floor may not import"),
        ("xipfs.units", "import numpy", "ground may not import numpy"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str, reason: str):
    found = complaints(source, module)
    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("xipfs.fs.xip", "from xipfs.mm.address_space import AddressSpace"),
        ("xipfs.fs.xip", "from xipfs.mm import address_space"),
        ("xipfs.fs.xip", "from .inode import Inode\nfrom . import extent"),
        ("xipfs.fuse.mount", "import pyfuse3, trio, os.path\nfrom xipfs import __version__"),
        ("xipfs.errors", "from xipfs.units import Ino"),
    ],
)
def test_an_allowed_import_is_not(module: str, source: str):
    assert complaints(source, module) == []
