"""What the command line shows: log records, progress bars, exit statuses."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from plrc.progress import OnProgress
from plrc.text import printable_lines

if TYPE_CHECKING:
    from rich.console import Console

USER_ERROR = 2  # exit statuses
STOPPED = 75  # saved; the same command with --resume continues
INTERRUPTED = 130
OUTPUT_CLOSED = 141  # the reader of a pipe went away: the status that a shell shows for SIGPIPE

FIRST_FAILURE = "PLRC_FIRST_FAILURE"  # names the file by which several processes agree on which of them reports


class ScreenHandler(logging.Handler):
    """Shows log records as sentences on standard output."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record. A full disk or a closed pipe stops no run: rich then raises OSError or SystemExit."""
        if record.name == "plrc.progress" and console().is_terminal:
            return  # the progress bar shows it
        sentence = printable_lines(record.getMessage())
        if record.levelno >= logging.WARNING:
            sentence = f"warning: {sentence}"
        with contextlib.suppress(OSError, SystemExit):
            console().print(sentence, markup=False)


@contextlib.contextmanager
def screen() -> Iterator[None]:
    """Show the package's log records on standard output; of several processes, only the first one's."""
    console.cache_clear()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot write a file's name shows its code
    logger = logging.getLogger("plrc")
    level = logger.level
    handler = ScreenHandler() if is_first_process() else logging.NullHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def is_first_process() -> bool:
    """Return whether this is the process of a run whose output the user sees."""
    return os.environ.get("RANK", "0") == "0"


@lru_cache(maxsize=1)
def console() -> Console:
    """Return the console that log records, tables and progress bars share."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress(unit: str) -> Iterator[OnProgress]:
    """Show a progress bar of `unit`, such as "images", with the time left; on a terminal only."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    rest_of_line = Column(ratio=1, no_wrap=True)
    columns = (
        BarColumn(bar_width=20),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.description}", markup=False, table_column=rest_of_line),
    )
    shown = console().is_terminal and is_first_process()
    with Progress(*columns, console=console(), transient=True, expand=True, disable=not shown) as bar:
        task = bar.add_task(unit, total=None)

        def on_progress(done: int, total: int, line: str = "") -> None:
            bar.update(task, completed=done, total=total, description=line or f"{done}/{total} {unit}")

        yield on_progress


def fail(status: int, sentence: str) -> int:
    """Report an error; of the processes of one `--devices` run only the first that fails does."""
    if FIRST_FAILURE in os.environ:
        try:
            Path(os.environ[FIRST_FAILURE]).touch(exist_ok=False)
        except FileExistsError:
            return status
    print(f"plrc: {printable_lines(sentence)}", file=sys.stderr)
    return status
