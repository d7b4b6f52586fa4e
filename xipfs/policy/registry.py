"""Policies by name, or from a file of the user's.

A policy is a module with a class `Policy` (see `policy.contract.Policy`) that can be made without
arguments: one file in this folder, or any file on the user's disk. Nothing else is to be edited.
"""

import importlib
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType

import xipfs.policy
from xipfs.errors import PolicyError
from xipfs.policy.contract import Policy

__all__ = ["POLICY_DEFAULT", "load_policy", "policy_names"]

POLICY_DEFAULT = "second_chance"

_NOT_POLICIES = {"contract", "pageset", "registry"}


def policy_names() -> list[str]:
    """Return the names of the policies that come with xipfs, sorted."""
    modules = pkgutil.iter_modules(xipfs.policy.__path__)
    return sorted(module.name for module in modules if module.name not in _NOT_POLICIES)


def load_policy(name_or_file: str) -> Policy:
    """Return a new policy: by name, or from a file if the argument has a "/" or ends in ".py".

    Raises: PolicyError with one line that says what is wrong and, in a file, where.
    """
    if "/" in name_or_file or name_or_file.endswith(".py"):
        module = _load_file(Path(name_or_file))
    elif name_or_file in policy_names():
        module = importlib.import_module(f"xipfs.policy.{name_or_file}")
    else:
        raise PolicyError(
            f"no policy {name_or_file!r}: there are {', '.join(policy_names())}; "
            f"or give a file, ./mine.py"
        )
    policy_class = getattr(module, "Policy", None)
    if not isinstance(policy_class, type) or not callable(getattr(policy_class, "decide", None)):
        raise PolicyError(
            f"{name_or_file}: no class Policy with a method decide(self, batch, tiers)"
        )
    try:
        policy: Policy = policy_class()
    except (Exception, SystemExit) as exc:
        raise PolicyError(
            f"{name_or_file}: Policy(): {_describe(exc, Path(name_or_file))}"
        ) from exc
    return policy


def _load_file(path: Path) -> ModuleType:
    """Run the file, as it is now: nothing of it is cached beside it."""
    if not path.is_file():
        raise PolicyError(f"{path}: no such policy file: give a Python file, ./mine.py")
    module = ModuleType(f"xipfs_user_policy_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # data classes look their own module up
    try:
        exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as exc:
        raise PolicyError(f"{path}: {_describe(exc, path)}") from exc
    return module


def _describe(exc: BaseException, path: Path) -> str:
    """Return one line for a mistake in a user's file, with the last line of it that was run."""
    if isinstance(exc, SyntaxError) and exc.filename == str(path):
        return f"line {exc.lineno}: {exc.msg}"
    frames = traceback.extract_tb(exc.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(exc).__name__}: {' '.join(str(exc).split())}"
