"""Sowing bugs into the product's own code, to see that tests find them."""

import inspect
import sys
import textwrap
from typing import Any

import pytest

__all__ = ["sow"]


def sow(monkeypatch: pytest.MonkeyPatch, bug: tuple[Any, str, str, str]) -> None:
    """Replace a piece of a product's function or method, everywhere it is known by name."""
    module, name, old, new = bug
    owner, _, name = name.rpartition(".")
    function = getattr(getattr(module, owner) if owner else module, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has changed: sow the bug anew"
    names: dict[str, Any] = {}
    exec(compile(source.replace(old, new), f"<{name}, sown>", "exec"), module.__dict__, names)
    if owner:
        monkeypatch.setattr(getattr(module, owner), name, names[name])
        return
    for other in list(sys.modules.values()):
        if getattr(other, "__name__", "").startswith(("xipfs.mm", "tests.model")) and (
            getattr(other, name, None) is function
        ):
            monkeypatch.setattr(other, name, names[name])
