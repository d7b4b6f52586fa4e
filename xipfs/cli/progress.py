"""task_bar: how far a long command is, on a terminal.

with task_bar(TextColumn("{task.description}")) as update:
    work(update and (lambda done: update(description=done.what)))
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn

__all__ = ["task_bar"]


@contextmanager
def task_bar(*columns: ProgressColumn, **fields: Any) -> Iterator[Callable[..., None] | None]:  # noqa: ANN401
    """Show *columns* on stderr while the block runs; yield what updates them by keywords.

    That is None where stderr is no terminal. fields: what the columns show at first.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        yield partial(bar.update, bar.add_task("", total=None, **fields))
