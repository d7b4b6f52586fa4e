"""Specs: one state of one workload in one line, so that anybody can replay it.

    create /new 644; unlink /foo @17 1*3.0
    ^ operations                 ^   ^ which lines in flight survived (`crash.enumerator`)
                                 ` the event before which power is lost

A second `@NUMBER CHOICE` is a crash in the recovery from the first; without any, the operations are
just played.
"""

import re
from typing import NamedTuple

from xipfs.crash.enumerator import format_choice, parse_choice
from xipfs.crash.explorer import Crashes
from xipfs.crash.operations import Operation, format_operations, parse_operations
from xipfs.errors import InvalidArgumentError

__all__ = ["Spec", "parse_spec"]

_SPEC = re.compile(r"([^@]*)((?:@\d{1,9} +[\d.*-]+ *){0,2})", re.ASCII)
_CRASH = re.compile(r"@(\d+) +(\S+)", re.ASCII)


class Spec(NamedTuple):
    """A crash state: of these operations, after these crashes."""

    operations: tuple[Operation, ...]
    crashes: Crashes

    def __str__(self) -> str:
        crashes = [f"@{number} {format_choice(choice)}" for number, choice in self.crashes]
        return " ".join([format_operations(self.operations), *crashes])


def parse_spec(text: str) -> Spec:
    """Read what `str` of a Spec is. Raises: InvalidArgumentError."""
    match = _SPEC.fullmatch(text.strip())
    if not match:
        raise InvalidArgumentError(f"{text}: no state: OPERATIONS @NUMBER CHOICE")
    crashes = tuple((int(m[1]), parse_choice(m[2])) for m in _CRASH.finditer(match[2]))
    return Spec(parse_operations(match[1]), crashes)
