"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Found by their text, so that a module without examples is not imported for nothing.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "xipfs").rglob("*.py")
    if ">>> " in path.read_text()
)


def test_the_ground_floor_has_examples():
    assert "xipfs.units" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str):
    said: list[str] = []
    runner = doctest.DocTestRunner()
    module = importlib.import_module(name.removesuffix(".__init__"))
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=said.append)
    assert runner.tries > 0, f"the examples of {name} are not in docstrings that doctest finds"
    assert runner.failures == 0, "".join(said)
