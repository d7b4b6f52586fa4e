"""Policies by name, or from a file of the user's; and their parameters.

    load_policy("hemem")                            a module of this folder
    load_policy("hemem:hot_read=8:scale=0.1")       with parameters
    load_policy("./mine.py")                        a file
    load_policy("theirs")                           an entry point of an installed package

A policy is a module with a class `Policy` (see `policy.contract.Policy`) that can be made without
arguments: one file in this folder, any file on the user's disk, or the object that an entry point
of the group xipfs.policies names. Nothing else is to be edited. Its parameters are the keyword
arguments of the class; each stands, with its default, its meaning and its source, as a constant of
the module: HOT_READ for hot_read. The file of a name that begins with a digit has a "_" before it.
"""

import ast
import importlib
import importlib.metadata
import inspect
import itertools
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import xipfs.policy
from xipfs.errors import PolicyError
from xipfs.policy.contract import Policy

__all__ = [
    "POLICY_DEFAULT",
    "Parameter",
    "load_policy",
    "policy_names",
    "policy_parameters",
    "policy_summary",
]

POLICY_DEFAULT = "second_chance"

ENTRY_POINT_GROUP = "xipfs.policies"

_NOT_POLICIES = {
    "cache",
    "contract",
    "cooling",
    "hintfault",
    "lrulists",
    "pageset",
    "pagestats",
    "profile",
    "registry",
    "scale",
    "target",
}

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Parameter(NamedTuple):
    """A keyword argument of a policy. help: what its constant's docstring says, if it has one."""

    name: str
    default: Any
    help: str


def policy_names() -> list[str]:
    """Return the names of the policies that come with xipfs or are installed, sorted."""
    modules = {module.name for module in pkgutil.iter_modules(xipfs.policy.__path__)}
    own = {name.removeprefix("_") for name in modules - _NOT_POLICIES}
    return sorted(own | set(_entry_points()))


def load_policy(text: str) -> Policy:
    """Return a new policy: NAME or FILE, then any number of :PARAMETER=VALUE.

    A file has a "/" in its name or ends in ".py".
    Raises: PolicyError with one line that says what is wrong and, in a file, where.
    """
    name, settings = _split(text)
    policy_class = _find_class(name)
    arguments = _parse_settings(name, settings, _parameters(policy_class))
    try:
        policy: Policy = policy_class(**arguments)
    except PolicyError as exc:
        raise PolicyError(f"{name}: {exc}") from exc
    except (Exception, SystemExit) as exc:
        raise PolicyError(f"{name}: Policy(): {_describe(exc, Path(name))}") from exc
    return policy


def policy_parameters(name: str) -> list[Parameter]:
    """Return the parameters of a policy, by its name or file. Raises: PolicyError."""
    return _parameters(_find_class(name))


def policy_summary(name: str) -> str:
    """Return the first line of a policy's module, or of its class. Raises: PolicyError."""
    policy_class = _find_class(name)
    text = sys.modules[policy_class.__module__].__doc__ or policy_class.__doc__ or ""
    return text.strip().partition("\n")[0]


def _split(text: str) -> tuple[str, dict[str, str]]:
    """Cut NAME:a=1:b=2 apart; a ":" without a "=" behind it belongs to the name."""
    name, *parts = text.split(":")
    settings: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if equals:
            settings[key] = value
        elif settings:
            raise PolicyError(f"policy {text!r}: {part!r} is no PARAMETER=VALUE")
        else:
            name = f"{name}:{part}"
    return name, settings


def _find_class(name: str) -> type:
    if _is_file(name):
        module = _load_file(Path(name))
    elif name in _entry_points():
        return _load_entry_point(name)
    elif name in policy_names():
        prefix = "_" if name[:1].isdigit() else ""
        module = importlib.import_module(f"xipfs.policy.{prefix}{name}")
    else:
        raise PolicyError(
            f"no policy {name!r}: there are {', '.join(policy_names())}; or give a file, ./mine.py"
        )
    return _check_class(name, getattr(module, "Policy", None))


def _check_class(name: str, policy_class: object) -> type:
    if not isinstance(policy_class, type) or not callable(getattr(policy_class, "decide", None)):
        raise PolicyError(f"{name}: no class Policy with a method decide(self, batch, tiers)")
    return policy_class


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return {point.name: point for point in points}


def _load_entry_point(name: str) -> type:
    point = _entry_points()[name]
    try:
        found = point.load()
    except (Exception, SystemExit) as exc:
        raise PolicyError(f"{name}: {point.value}: {_describe(exc, Path())}") from exc
    return _check_class(name, found)


def _is_file(name: str) -> bool:
    return "/" in name or name.endswith(".py")


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


def _parameters(policy_class: type) -> list[Parameter]:
    helps = _constant_docstrings(sys.modules[policy_class.__module__])
    try:
        signature = inspect.signature(policy_class)
    except ValueError:  # no Python class
        return []
    return [
        Parameter(parameter.name, parameter.default, helps.get(parameter.name.upper(), ""))
        for parameter in signature.parameters.values()
        if parameter.default is not inspect.Parameter.empty
    ]


def _parse_settings(
    name: str, settings: dict[str, str], parameters: list[Parameter]
) -> dict[str, Any]:
    """Give each value the type of its parameter's default; what has none (None) is a number."""
    defaults = {parameter.name: parameter.default for parameter in parameters}
    arguments = {}
    for key, text in settings.items():
        if key not in defaults:
            known = ", ".join(defaults) or "none"
            raise PolicyError(f"policy {name}: no parameter {key!r}: there are {known}")
        default = defaults[key]
        kind = float if default is None else type(default)
        try:
            arguments[key] = _TRUTH[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise PolicyError(f"policy {name}: {key}={text!r}: no {kind.__name__}") from None
    return arguments


def _constant_docstrings(module: ModuleType) -> dict[str, str]:
    """Return the string that stands behind each assignment of a module, by the name assigned to."""
    try:
        body = ast.parse(inspect.getsource(module)).body
    except (OSError, TypeError, SyntaxError):
        return {}
    found = {}
    for statement, behind in itertools.pairwise(body):
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and isinstance(behind, ast.Expr)
            and isinstance(behind.value, ast.Constant)
        ):
            found[statement.targets[0].id] = " ".join(str(behind.value.value).split())
    return found


def _describe(exc: BaseException, path: Path) -> str:
    """Return one line for a mistake in a user's file, with the last line of it that was run."""
    if isinstance(exc, SyntaxError) and exc.filename == str(path):
        return f"line {exc.lineno}: {exc.msg}"
    frames = traceback.extract_tb(exc.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(exc).__name__}: {' '.join(str(exc).split())}"
