"""Crash states of a program: what the image may be if power is lost while it runs.

    for image in crash_states(before, events, nr_states=20, seed=1): ...

As `xipfs crash` makes them, of the stores that a mount's daemon has recorded; spread over all its
fences. docs/CRASH.md has the model.
"""

import random
from collections.abc import Iterable, Iterator

from xipfs.crash.enumerator import Cut
from xipfs.crash.persistence import Persistence
from xipfs.crash.recorder import Event, Fence

__all__ = ["crash_states"]


def crash_states(
    before: bytes, events: Iterable[Event], *, nr_states: int, seed: int = 0
) -> Iterator[bytes]:
    """Yield images that a crash may leave, none twice, in the order of time.

    before: the image before the first event. nr_states: at most; the last is that without a crash.
    """
    log = list(events)
    fences = [number for number, event in enumerate(log) if isinstance(event, Fence)]
    rng = random.Random(seed)
    nr_cuts = min(len(fences), max(nr_states - 1, 0))
    chosen = {fences[i * len(fences) // nr_cuts] for i in range(nr_cuts)}
    medium = Persistence(before)
    seen: set[bytes] = set()
    for number, event in enumerate(log):
        if number in chosen:
            cut = Cut(medium)
            choices = list(cut.choices(nr_states_max=16, seed=seed))
            image = bytearray(medium.durable)
            for offset, data in cut.changes(rng.choice(choices)):
                image[offset : offset + len(data)] = data
            state = bytes(image)
            if state not in seen:
                seen.add(state)
                yield state
        medium.apply(event)
    if (state := bytes(medium.newest())) not in seen:
        yield state
