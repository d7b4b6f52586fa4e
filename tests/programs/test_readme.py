"""What the documents show is true: sessions run and print what they say, tables are the code's.

A block marked `console` is run by bash, all of them in one directory, one behind the other; a block
of Python that begins with `# NAME.py` is that file there. What a command prints must be what stands
below it. `...` is anything, and alone on a line any lines; a number may be another number, but
neither become nor cease to be 0. Blocks with other marks are not run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.policy import PolicyWorld
from xipfs.cli.main import COMMANDS
from xipfs.fuse.options import OPTION_HELP
from xipfs.policy.registry import load_policy

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
POLICIES = (ROOT / "docs" / "POLICIES.md").read_text()

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.py)\b")
TOKEN = re.compile(r"\.\.\.|(?<![\w.])\d+(?:\.\d+)?(?![\w.])|\s+")


class Command(NamedTuple):
    """A line behind a `$`, and what is printed below."""

    line: str
    output: str


def blocks(document: str, mark: str) -> list[str]:
    return [text for found, text in BLOCK.findall(document) if found == mark]


def commands(block: str) -> list[Command]:
    found = []
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        found.append(Command(line, output))
    return found


def pattern(output: str) -> str:
    """Return the regular expression of what a command may print for it to be as written."""

    def token(match: re.Match[str]) -> str:
        text = match[0]
        if text == "...":
            return ".*"
        if text.isspace():
            return r"\s+"
        return r"(?=[\d.]*[1-9])\d+(?:\.\d+)?" if float(text) else r"0(?:\.0+)?"

    lines = []
    for line in output.splitlines():
        if line == "...":
            lines.append(r"(?s:.*)")
            continue
        parts, end = [], 0
        for match in TOKEN.finditer(line):
            parts += [re.escape(line[end : match.start()]), token(match)]
            end = match.end()
        lines.append("".join(parts) + re.escape(line[end:]) + "\n")
    return "".join(lines)


@pytest.mark.fuse
@pytest.mark.parametrize("document", [README, POLICIES], ids=["README.md", "POLICIES.md"])
def test_sessions(document: str, tmp_path: Path):
    for source in blocks(document, "python"):
        name = FILE_NAME.match(source)
        assert name is not None, "a block of Python that is no file"
        (tmp_path / name[1]).write_text(source)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "80",
        "LC_ALL": "C.UTF-8",
    }
    try:
        for line, expected in [c for block in blocks(document, "console") for c in commands(block)]:
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", line],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            assert re.fullmatch(pattern(expected), done.stdout + done.stderr), (
                f"{line}\nshould print\n{expected}\nand printed\n{done.stdout}{done.stderr}"
            )
    finally:
        if os.path.ismount(tmp_path / "mnt"):
            command = [sys.executable, "-m", "xipfs", "umount", "--lazy", tmp_path / "mnt"]
            subprocess.run(command, check=False)


def test_the_policy_has_fifteen_lines():
    (source,) = blocks(README, "python")
    assert len(source.splitlines()) <= 16  # with its name


def test_the_policy_of_the_page_is_a_sound_one(tmp_path: Path):
    """It obeys the contract, and a hot set comes to RAM, and another one after."""
    (source,) = blocks(POLICIES, "python")
    (tmp_path / "frequent.py").write_text(source)
    world = PolicyWorld(load_policy(f"{tmp_path}/frequent.py:half_life=2"), nr_ram_frames=4)
    for hot in ([1, 2, 3, 4], [5, 6, 7, 8]):
        for epoch in range(8):
            world.epoch([*hot * 5, 100 + epoch])
        assert world.resident == set(hot)


def table(title: str) -> dict[str, str]:
    """Return the rows of the table below a heading, first cell to second."""
    section = README.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    return dict(rows[1:])


def test_options_are_those_of_the_code():
    assert table("Options of mount") == {f"`{name}`": text for name, text in OPTION_HELP.items()}


def test_commands_are_those_of_the_code():
    named = set(re.findall(r"`(?:xipfs )?(\w+)`", " ".join(table("Commands"))))
    assert named == set(COMMANDS)


@pytest.mark.parametrize(
    ("written", "printed", "same"),
    [
        ("up 4 s\n", "up 17 s\n", True),
        ("up 4 s\n", "up 0 s\n", False),
        ("0 errors\n", "1 errors\n", False),
        ("  5 90ab  -\n", "      5 90ab  -\n", True),
        ("5 90ab -\n", "5 91ab -\n", False),
        ('{"ram":16,"nvram":0}\n', '{"ram":9,"nvram":0}\n', True),
        ('{"ram":16,"nvram":0}\n', '{"ram":9,"nvram":7}\n', False),
        ("a\n...\n", "a\nb\nc\n", True),
        ("a\n", "a\nb\n", False),
        ("", "a\n", False),
        ("in .../demo.img, 7.449 MiB\n", "in /tmp/demo.img, 7.5 MiB\n", True),
    ],
)
def test_what_counts_as_the_same(written: str, printed: str, same: bool):
    assert bool(re.fullmatch(pattern(written), printed)) == same
