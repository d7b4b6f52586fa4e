"""How much the random tests do: counted by who plays, told at the end of the run.

OPERATIONS["scenes"] += 1
@settings(max_examples=nr_examples(30, 5000))      in every run, with `--long`
"""

from collections import Counter

import hypothesis

__all__ = ["OPERATIONS", "nr_examples"]

OPERATIONS: Counter[str] = Counter()
"""Operations played since the start, of each kind of player."""


def nr_examples(short: int, long: int) -> int:
    """Return how many examples hypothesis shall try, by the profile of the run."""
    is_long = hypothesis.settings.get_current_profile_name() == "long"
    return long if is_long else short
