"""Policies by name, or from a file of the user's.

A policy is a module with a class `Policy` (see `policy.contract.Policy`) that can be made without
arguments: one file in this folder, or any file on the user's disk. Nothing else is to be edited.
"""

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

import xipfs.policy
from xipfs.errors import PolicyError
from xipfs.policy.contract import Policy

__all__ = ["POLICY_DEFAULT", "load_policy", "policy_names"]

POLICY_DEFAULT = "second_chance"

_NOT_POLICIES = {"contract", "registry"}


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
    except Exception as exc:
        raise PolicyError(f"{name_or_file}: Policy(): {_describe(exc)}") from exc
    return policy


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"xipfs_user_policy_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise PolicyError(f"{path}: no such policy file: give a Python file, ./mine.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        raise PolicyError(f"{path}: {_describe(exc)}") from exc
    return module


def _describe(exc: Exception) -> str:
    """Return one line for a mistake in a user's file, with the line it was made in."""
    if isinstance(exc, SyntaxError):
        return f"line {exc.lineno}: {exc.msg}"
    line = exc.__traceback__
    while line is not None and line.tb_next is not None:
        line = line.tb_next
    where = f"line {line.tb_lineno}: " if line is not None else ""
    return f"{where}{type(exc).__name__}: {exc}"
