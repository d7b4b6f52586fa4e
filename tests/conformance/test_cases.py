"""The kernel's rules for mixed maps are 56 numbered cases; each has tests, named by its number."""

import re
from pathlib import Path

NR_CASES = 56


def test_every_case_is_played():
    found: set[int] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        found.update(map(int, re.findall(r"^def test_(\d\d)_", path.read_text(), re.MULTILINE)))
    assert found >= set(range(1, NR_CASES + 1))
