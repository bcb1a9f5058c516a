"""The bar with the time left that long verbs show on a terminal. Layer 6."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from plrc.progress import OnProgress


@contextmanager
def progress(what: str) -> Iterator[OnProgress]:
    """A function to call with (done, total); nothing is shown where standard error is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def on_progress(done: int, total: int, line: str = "") -> None:
            bar.update(task, completed=done, total=total)

        yield on_progress
