"""What keeps a tree tidy: documents that point to what exists, modules that say what they are.

Looks at the files that git knows (in a source archive: at all files), never at the web.
"""

import ast
import itertools
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE_SIZE_BYTES_MAX = 256 << 10

FENCE = re.compile(r"^(```|~~~).*?^\1[ ]*$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^(#{1,6}) +(.+?) *#*$", re.MULTILINE)
# A file of this project, as prose names it: `xipfs/mm/fault.py`, `fault.py:handle_mm_fault`.
MENTION = re.compile(
    r"(?<![\w/.-])((?:xipfs|docs|tests|tools|nvram_images)/[\w./-]*\w)(?::([A-Za-z_][\w.]*))?"
)
SYMBOL = re.compile(r"^([\w/]+\.py):([A-Za-z_][\w.]*)$")
DOCUMENT_NAME = re.compile(r"(?<![\w./-])(?:docs/|tests/)?[A-Za-z][\w-]*\.md\b")
# Folders of somebody's own machine, which mean nothing on another.
PRIVATE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/|\.\./shared\b")


@cache
def project_files() -> list[Path]:
    """Return all files of the project, sorted."""
    if (ROOT / ".git").exists():
        # Whoever runs the tests need not own the checkout.
        command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        paths = [ROOT / name for name in listed.decode().split("\0") if name]
    else:
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(part.startswith((".", "__")) for part in path.relative_to(ROOT).parts[:-1])
        ]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def files(suffix: str) -> list[Path]:
    return [path for path in project_files() if path.suffix == suffix]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_document = pytest.mark.parametrize("path", files(".md"), ids=shown)
every_module = pytest.mark.parametrize(
    "path", [path for path in files(".py") if path.is_relative_to(ROOT / "xipfs")], ids=shown
)


def names_bound(body: list[ast.stmt]) -> set[str]:
    """Return the names that statements at the top of a module, or in a class, bind."""
    names: set[str] = set()
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Import() | ast.ImportFrom():
                names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            case ast.If() | ast.Try() | ast.With():
                inner = [*node.body, *getattr(node, "orelse", [])]
                for handler in getattr(node, "handlers", []):
                    inner += handler.body
                names |= names_bound(inner)
    return names


def find_symbol(path: Path, dotted: str) -> bool:
    """Does *path* define `name`, or is there a `Class` that speaks of its `name`?"""
    body = ast.parse(path.read_text()).body
    outer, _, inner = dotted.partition(".")
    if not inner:
        return outer in names_bound(body)
    classes = [n for n in body if isinstance(n, ast.ClassDef) and n.name == outer]
    return any(re.search(rf"\b{re.escape(inner)}\b", ast.unparse(c)) for c in classes)


def exported(tree: ast.Module) -> list[str] | None:
    """Return what `__all__` lists, None if there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def without_code(text: str) -> str:
    return INLINE_CODE.sub("", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors of all headings, made the way that code hosts make them."""
    found: set[str] = set()
    for _, title in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 1
        unique = slug
        while unique in found:
            unique = f"{slug}-{number}"
            number += 1
        found.add(unique)
    return found


def broken_links(path: Path, text: str) -> list[str]:
    """Return the relative links of a document that lead to nothing, or out of the project."""
    broken = []
    for match in LINK.finditer(without_code(text)):
        link = match[1] or match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path.resolve()
        if not target.is_relative_to(ROOT):
            broken.append(f"{link}: outside of the project")
        elif name and not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md":
            if anchor not in anchors(target.read_text() if name else text):
                broken.append(f"{link}: no such heading")
        # Not #L12, which is another line tomorrow.
        elif anchor and target.suffix == ".py" and not find_symbol(target, anchor):
            broken.append(f"{link}: no such symbol")
    return broken


def broken_symbols(text: str) -> list[str]:
    """Return the `file.py:symbol` of a document whose file or symbol does not exist."""
    broken = []
    for code in INLINE_CODE.findall(FENCE.sub("", text)):
        match = SYMBOL.match(code)
        if not match:
            continue
        candidates = [p for p in files(".py") if f"/{shown(p)}".endswith(f"/{match[1]}")]
        if not any(find_symbol(p, match[2].removesuffix("()")) for p in candidates):
            broken.append(code)
    return broken


def broken_mentions(text: str) -> list[str]:
    """Return the files and folders of this project that a text names and that do not exist."""
    return [name for name, _ in MENTION.findall(text) if not (ROOT / name).exists()]


def test_there_is_something_to_look_at():
    assert ROOT / "docs" / "FORMAT.md" in project_files()
    assert Path(__file__).with_name("test_layering.py") in project_files()


@every_module
def test_a_module_says_what_it_is(path: Path):
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    first_line = docstring.split("\n")[0]
    assert first_line, "a module without a docstring"
    assert first_line.endswith((".", ":", "?")), f"not a sentence: {first_line}"


@every_module
def test_all_names_what_exists(path: Path):
    tree = ast.parse(path.read_text())
    bound = names_bound(tree.body)
    names = exported(tree)
    if names is None:
        # Nobody imports what `python -m` runs.
        missing = {name for name in bound if not name.startswith("_")}
        assert not missing or path.name == "__main__.py", f"no __all__, but {sorted(missing)}"
        return
    assert set(names) <= bound
    assert len(set(names)) == len(names)


@every_module
def test_what_is_not_in_all_is_private(path: Path):
    tree = ast.parse(path.read_text())
    public = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
    }
    missing = public - set(exported(tree) or [])
    assert not missing, f"neither in __all__ nor with an underscore: {sorted(missing)}"


@every_document
def test_a_document_has_one_title(path: Path):
    levels = [len(marks) for marks, _ in HEADING.findall(FENCE.sub("", path.read_text()))]
    assert levels[:1] == [1], "a document starts with its title"
    assert levels.count(1) == 1
    jumps = [b for a, b in itertools.pairwise(levels) if b > a + 1]
    assert not jumps, "a heading skips a level"


@every_document
def test_links_lead_somewhere(path: Path):
    assert broken_links(path, path.read_text()) == []


@every_document
def test_symbols_exist(path: Path):
    assert broken_symbols(path.read_text()) == []


@every_document
def test_files_that_a_document_names_exist(path: Path):
    assert broken_mentions(path.read_text()) == []


def missing_documents(text: str) -> list[str]:
    """Return the documents that a text names, by path or by name alone, and that do not exist."""
    known = {name for path in files(".md") for name in (path.name, shown(path))}
    return sorted(set(DOCUMENT_NAME.findall(text)) - known)


@pytest.mark.parametrize("path", [p for p in files(".py") if p != Path(__file__)], ids=shown)
def test_documents_that_a_module_names_exist(path: Path):
    assert missing_documents(path.read_text()) == []


@pytest.mark.parametrize("path", [p for p in project_files() if p != Path(__file__)], ids=shown)
def test_a_file_is_small_and_speaks_of_nobodys_machine(path: Path):
    assert path.stat().st_size <= FILE_SIZE_BYTES_MAX
    content = path.read_bytes()
    if b"\0" in content:
        return
    found = PRIVATE_PATH.search(content.decode())
    assert not found, f"a path of one machine only: {found and found[0]}"


DOCUMENT = """# Title

See [the format](FORMAT.md#feature-bits), [here](#a-second-heading), `units.py:parse_size`,
[gone](GONE.md), [no such](FORMAT.md#gone), [out](../../x.md), `units.py:gone`,
`xipfs/errors.py:XipfsError.errno`, [code](../xipfs/units.py#gone), [ref],
xipfs/gone.py and docs/FORMAT.md.

```
# no heading, [no link](nowhere)
```

## A `second` heading

[ref]: nowhere.md
"""


def test_the_readers_above_see_what_is_broken():
    path = ROOT / "docs" / "example.md"
    assert broken_links(path, DOCUMENT) == [
        "GONE.md: no such file",
        "FORMAT.md#gone: no such heading",
        "../../x.md: outside of the project",
        "../xipfs/units.py#gone: no such symbol",
        "nowhere.md: no such file",
    ]
    assert broken_symbols(DOCUMENT) == ["units.py:gone"]
    assert broken_mentions(DOCUMENT) == ["xipfs/gone.py"]
    assert missing_documents("FORMAT.md docs/FORMAT.md gone.md") == ["gone.md"]
    assert anchors(DOCUMENT) == {"title", "a-second-heading"}
    assert anchors("# A\n# A\n") == {"a", "a-1"}


def test_names_bound_sees_every_way_to_bind_one():
    source = "import a.b, c as d\nfrom e import f as g\nh = i, j = 1, 2\nk: int = 1\n"
    source += "def l(): m = 1\nclass n: o = 1\nif a:\n    p = 1\nelse:\n    q = 1\n"
    source += "try:\n    r = 1\nexcept E:\n    s = 1\n"
    assert names_bound(ast.parse(source).body) == set("adghijklnpqrs")
