"""Operations of a workload, and how they are written: one line each, `;` between them.

    create /A/new 644; write /A/new 0 5000; fsync /A/new; rename /A/new /foo exchange

The language is made for command lines: no quotes, no spaces in names. What is written is not in
the line: `written_bytes` makes it from the number of the operation in its workload, each word of 8
bytes unlike any other, so that a page that comes back tells who wrote it.

    create PATH MODE            mkdir PATH MODE            mknod PATH MODE RDEV
    symlink PATH TARGET         link OLD NEW               rename OLD NEW [noreplace|exchange]
    unlink PATH                 rmdir PATH
    write PATH OFFSET SIZE      append PATH SIZE           truncate PATH SIZE
    chmod PATH MODE             chown PATH UID GID         utimens PATH ATIME_NS MTIME_NS
    setxattr PATH NAME SIZE     removexattr PATH NAME      fsync PATH
    hold PATH                   drop PATH                  open it, and close it under the same name
    promote SEED                demote SEED                move some of the pages between the tiers

`n{240}` in a word stands for 240 times n.
"""

import re
import stat
from dataclasses import dataclass
from functools import lru_cache

from xipfs.errors import InvalidArgumentError
from xipfs.ondisk.inode import FILE_SIZE_BYTES_MAX

__all__ = [
    "MOVES",
    "NAMES",
    "Operation",
    "format_operations",
    "parse_operations",
    "shorten",
    "written_bytes",
]

_PATH, _MODE, _NUMBER, _WORD, _HOW = "path", "mode", "number", "word", "how"

_ARGUMENTS = {
    "create": (_PATH, _MODE),
    "mkdir": (_PATH, _MODE),
    "mknod": (_PATH, _MODE, _NUMBER),
    "symlink": (_PATH, _WORD),
    "link": (_PATH, _PATH),
    "rename": (_PATH, _PATH, _HOW),
    "unlink": (_PATH,),
    "rmdir": (_PATH,),
    "write": (_PATH, _NUMBER, _NUMBER),
    "append": (_PATH, _NUMBER),
    "truncate": (_PATH, _NUMBER),
    "chmod": (_PATH, _MODE),
    "chown": (_PATH, _NUMBER, _NUMBER),
    "utimens": (_PATH, _NUMBER, _NUMBER),
    "setxattr": (_PATH, _WORD, _NUMBER),
    "removexattr": (_PATH, _WORD),
    "fsync": (_PATH,),
    "hold": (_PATH,),
    "drop": (_PATH,),
    "promote": (_NUMBER,),
    "demote": (_NUMBER,),
}

NAMES = tuple(_ARGUMENTS)

MOVES = ("promote", "demote")
"""Operations that nobody must notice."""

_RENAMES = ("", "noreplace", "exchange")

_WRITE_SIZE_BYTES_MAX = 1 << 20

_REPEATED = re.compile(r"([a-z])\{(\d{1,4})\}", re.ASCII)
_LONG_RUN = re.compile(r"([a-z])\1{15,}")


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. name: of NAMES. arguments: as in the table above, strings and integers."""

    name: str
    arguments: tuple[str | int, ...]

    def __str__(self) -> str:
        kinds = _ARGUMENTS[self.name]
        words = [
            f"{argument:o}" if kind == _MODE else shorten(str(argument))
            for kind, argument in zip(kinds, self.arguments, strict=True)
            if argument != ""
        ]
        return " ".join([self.name, *words])

    def path(self, number: int = 0) -> str:
        """Return the argument *number*, which is a path or a word."""
        return str(self.arguments[number])

    def number(self, number: int) -> int:
        """Return the argument *number*, which is a number or a mode."""
        return int(self.arguments[number])


def parse_operations(text: str) -> tuple[Operation, ...]:
    """Read operations. Raises: InvalidArgumentError for what is none."""
    lines = [line.strip() for line in text.split(";")]
    return tuple(_parse(line) for line in lines if line)


def format_operations(operations: tuple[Operation, ...]) -> str:
    """Write operations so that `parse_operations` reads the same."""
    return "; ".join(map(str, operations))


@lru_cache(maxsize=256)
def written_bytes(number: int, size_bytes: int) -> bytes:
    """Return what operation *number* of a workload writes."""
    nr_words = -(-size_bytes // 8)
    return b"".join(b"%02x%06x" % (number & 0xFF, i) for i in range(nr_words))[:size_bytes]


def _parse(line: str) -> Operation:
    name, *words = line.split()
    kinds = _ARGUMENTS.get(name)
    if kinds is None:
        raise InvalidArgumentError(f"{line}: no operation: {', '.join(NAMES)}")
    if kinds[-1] == _HOW and len(words) == len(kinds) - 1:
        words.append("")
    if len(words) != len(kinds):
        raise InvalidArgumentError(f"{line}: {name} takes {' '.join(kinds).upper()}")
    arguments = tuple(
        _parse_argument(line, kind, word) for kind, word in zip(kinds, words, strict=True)
    )
    if name in ("write", "append") and int(arguments[-1]) > _WRITE_SIZE_BYTES_MAX:
        raise InvalidArgumentError(f"{line}: at most {_WRITE_SIZE_BYTES_MAX} bytes at once")
    return Operation(name, arguments)


def _parse_argument(line: str, kind: str, word: str) -> str | int:
    if kind == _PATH and not word.startswith("/"):
        raise InvalidArgumentError(f"{line}: {word}: a path starts with /")
    if kind == _HOW and word not in _RENAMES:
        raise InvalidArgumentError(f"{line}: {word}: a rename is noreplace or exchange, or plain")
    if kind not in (_MODE, _NUMBER):
        return _REPEATED.sub(lambda found: found[1] * int(found[2]), word)
    try:
        number = int(word, 8 if kind == _MODE else 10)
    except ValueError:
        raise InvalidArgumentError(f"{line}: {word}: not a number") from None
    limit = stat.S_IFMT(0o177777) | 0o7777 if kind == _MODE else FILE_SIZE_BYTES_MAX
    if not 0 <= number <= limit:
        raise InvalidArgumentError(f"{line}: {word}: 0 to {limit}")
    return number


def shorten(text: str) -> str:
    """Return *text* with `n{240}` for 240 times n."""
    return _LONG_RUN.sub(lambda found: f"{found[1]}{{{len(found[0])}}}", text)
