"""MountOptions: what `xipfs mount -o NAME[=VALUE],...` can say."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from xipfs.errors import MountError
from xipfs.mm.arch import ARCH_DEFAULT, ARCHS
from xipfs.phys.cost import COST_DEFAULT, CostModel, parse_cost
from xipfs.policy.registry import POLICY_DEFAULT
from xipfs.units import PAGE_SIZE, parse_size

__all__ = ["OPTION_HELP", "CacheMode", "MountOptions", "Promoted", "Sync", "parse_options"]


class CacheMode(StrEnum):
    """What is done about the kernel's page cache, which hides accesses (docs/LIMITS.md)."""

    NONE = "none"
    SAMPLED = "sampled"
    FULL = "full"


class Sync(StrEnum):
    """What a fence waits for, and so what survives: a killed daemon, or the host's end, too."""

    DAEMON = "daemon"
    FULL = "full"


class Promoted(StrEnum):
    """What is done about the kernel's own copy of a page that was promoted."""

    KEEP = "keep"
    PUSH = "push"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """One mount's options; the defaults are those of the command line.

    events: under `sampled`, have the kernel tell of cached reads, where it can.
    ro: read-only. rw: read-write, or not at all; with neither, read-only where the image cannot be
        written. sync: what a fence waits for.
    acl: have the kernel ask for ACLs, also of an image that has none yet.
    ram_bytes: size of the RAM tier. prefetch: a profile whose pages come to RAM at mount.
    epoch_ms: time between two decisions of the policy.
    budget_pages: most pages moved in one epoch; rate_bytes_per_s: in one second.
    inject: reads really take the time of the cost model. fsname: what df and mount show as the
        source.
    """

    ro: bool = False
    rw: bool = False
    sync: Sync = Sync.DAEMON
    allow_other: bool = False
    suid: bool = False
    dev: bool = False
    noexec: bool = False
    acl: bool = False
    cache: CacheMode = CacheMode.SAMPLED
    events: bool = True
    ram_bytes: int = 64 << 20
    policy: str = POLICY_DEFAULT
    epoch_ms: int = 1000
    budget_pages: int = 4096
    rate_bytes_per_s: int | None = None
    prefetch: str = ""
    promoted: Promoted = Promoted.KEEP
    arch: str = ARCH_DEFAULT.name
    cost: CostModel = COST_DEFAULT
    inject: bool = False
    fsname: str = ""


OPTION_HELP = {
    "ro": "read-only; several mounts can share an image so",
    "rw": "read-write or not at all; without either, read-only where the image cannot be written",
    "sync": "daemon (default): what is synced survives a killed daemon; full: the host, too",
    "allow_other": "let other users in",
    "suid": "honour setuid bits (root only; nosuid by default)",
    "dev": "honour device nodes (root only; nodev by default)",
    "noexec": "run no programs from the mount",
    "acl": "let programs set POSIX ACLs; by itself where the image has some",
    "cache": "none, sampled (default) or full: what is done about the kernel's page cache",
    "noevents": "under cache=sampled, do not use the kernel's tracepoints",
    "ram": "size of the RAM tier, default 64M",
    "policy": "a policy's name, or a file: ./mine.py; then any `:PARAMETER=VALUE`",
    "epoch": "milliseconds between two decisions of the policy, default 1000",
    "budget": "most pages moved in one epoch, default 4096",
    "rate": "most bytes moved in one second, like 100M; default no limit",
    "prefetch": "bring the pages of this profile to RAM at mount: xipfs trace profile makes one",
    "promoted": "keep (default), push or drop the kernel's copy of pages that are promoted",
    "arch": "simulated architecture: generic (default), x86, powerpc, s390",
    "cost": "memories to reckon with: optane (default), cxl, pcm, nor, dcss, dram; :clients=N",
    "inject": "let reads really take the time that the cost model says",
    "fsname": "what df shows as the source, default the image",
}

# Passed by mount(8) and fstab, and without meaning here.
_IGNORED = {"defaults", "auto", "noauto", "user", "nouser", "users", "nofail", "_netdev"}
_FLAGS: dict[str, dict[str, Any]] = {
    "ro": {"ro": True, "rw": False},
    "rw": {"rw": True, "ro": False},
    "sync": {"sync": Sync.FULL},
    "allow_other": {"allow_other": True},
    "suid": {"suid": True},
    "nosuid": {"suid": False},
    "dev": {"dev": True},
    "nodev": {"dev": False},
    "noexec": {"noexec": True},
    "exec": {"noexec": False},
    "inject": {"inject": True},
    "events": {"events": True},
    "noevents": {"events": False},
    "acl": {"acl": True},
    # What a mount without access times, whose changes are never late, does anyway.
    "noatime": {},
    "relatime": {},
    "dirsync": {},
    "async": {},
}
_NR_DIGITS_MAX = 20
"""int() has a limit of its own, far above, and complains in its own way."""


def _cache(text: str) -> CacheMode:
    try:
        return CacheMode(text)
    except ValueError:
        raise MountError(f"cache={text!r}: one of {', '.join(CacheMode)}") from None


def _sync(text: str) -> Sync:
    try:
        return Sync(text)
    except ValueError:
        raise MountError(f"sync={text!r}: one of {', '.join(Sync)}") from None


def _promoted(text: str) -> Promoted:
    try:
        return Promoted(text)
    except ValueError:
        raise MountError(f"promoted={text!r}: one of {', '.join(Promoted)}") from None


def _ram_bytes(text: str) -> int:
    try:
        size_bytes = parse_size(text)
    except ValueError as exc:
        raise MountError(f"ram: {exc}") from None
    return size_bytes // PAGE_SIZE * PAGE_SIZE


def _rate(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as exc:
        raise MountError(f"rate: {exc}") from None


def _number(name: str, least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text) if text.isdecimal() and len(text) <= _NR_DIGITS_MAX else -1
        if not least <= number <= most:
            raise MountError(f"{name}={text!r}: a number from {least} to {most}")
        return number

    return parse


def _arch(text: str) -> str:
    names = sorted({arch.name for arch in ARCHS if arch.version == ARCH_DEFAULT.version})
    if text not in names:
        raise MountError(f"arch={text!r}: one of {', '.join(names)}")
    return text


def _cost(text: str) -> CostModel:
    try:
        return parse_cost(text)
    except ValueError as exc:
        raise MountError(f"cost={exc}") from None


_VALUES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "cache": ("cache", _cache),
    "sync": ("sync", _sync),
    "ram": ("ram_bytes", _ram_bytes),
    "policy": ("policy", str),
    "epoch": ("epoch_ms", _number("epoch", 10, 3_600_000)),
    "budget": ("budget_pages", _number("budget", 1, 1 << 24)),
    "rate": ("rate_bytes_per_s", _rate),
    "prefetch": ("prefetch", str),
    "promoted": ("promoted", _promoted),
    "arch": ("arch", _arch),
    "cost": ("cost", _cost),
    "fsname": ("fsname", str),
}


def parse_options(text: str, defaults: MountOptions | None = None) -> MountOptions:
    """Read a comma-separated list of options, later ones winning.

    Raises: MountError in one line: an unknown option (with the list of those there are), a
            missing or superfluous value, a bad one.

    >>> parse_options("cache=none,ram=1M").ram_bytes
    1048576
    """
    options = defaults or MountOptions()
    for option in filter(None, text.split(",")):
        name, equals, value = option.partition("=")
        if option in _IGNORED or name.startswith("x-"):
            continue
        if name in _FLAGS and not equals:
            options = replace(options, **_FLAGS[name])
        elif name in _VALUES and value:
            attribute, parse = _VALUES[name]
            options = replace(options, **{attribute: parse(value)})
        elif name in _VALUES:
            raise MountError(f"option {name}: needs a value, {name}=...: {OPTION_HELP[name]}")
        elif name in _FLAGS:
            raise MountError(f"option {name}: takes no value")
        else:
            known = ", ".join([*OPTION_HELP, "nosuid", "nodev"])
            raise MountError(f"unknown option {option!r}: there are {known}")
    return options
