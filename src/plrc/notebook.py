"""Progress in notebooks: one output per call that is updated, with sentences of the log and a line of progress."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from plrc.progress import OnProgress, ignore_progress
from plrc.text import printable_lines

library_logger = logging.getLogger("plrc")

MAX_SENTENCES = 40  # the last ones are shown
UPDATE_SECONDS = 0.2  # least time between two updates by lines of progress


@contextlib.contextmanager
def notebook_output() -> Iterator[OnProgress]:
    """In a notebook, show the log and the progress of the job in the block; elsewhere do nothing.

    It also does nothing if the application shows the messages of plrc itself, because its loggers have handlers.

    Returns:
        A context manager that gives the progress callback of the job.
    """
    if not _is_notebook() or _is_logging():
        yield ignore_progress
        return
    output = _Output()
    level = library_logger.level
    propagate = library_logger.propagate
    library_logger.addHandler(output)
    library_logger.setLevel(logging.INFO)
    library_logger.propagate = False  # a handler of the root logger would show warnings again
    try:
        yield output.on_progress
    finally:
        library_logger.propagate = propagate
        library_logger.setLevel(level)
        library_logger.removeHandler(output)
        output.update()


def _is_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which can update an output."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _is_logging() -> bool:
    return library_logger.hasHandlers() and library_logger.isEnabledFor(logging.INFO)


class _Output(logging.Handler):
    """A handler whose repr is what the notebook shows."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._sentences: deque[str] = deque(maxlen=MAX_SENTENCES)
        self._line = ""
        self._display: Any = None
        self._next_update = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Show a sentence of the log; lines of progress come through `on_progress`."""
        if record.name == "plrc.progress":
            return
        sentence = printable_lines(record.getMessage())
        if record.levelno >= logging.WARNING:
            sentence = f"warning: {sentence}"
        self._sentences.append(sentence)
        self.update()

    def on_progress(self, done: int, total: int, line: str = "") -> None:
        """Replace the line of progress."""
        self._line = line or f"{done}/{total}"
        if time.monotonic() >= self._next_update:
            self.update()

    def update(self) -> None:
        """Show the present state."""
        if not self._sentences and not self._line:
            return
        if self._display is None:
            from IPython import display

            self._display = display.display(self, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._display.update(self)
        self._next_update = time.monotonic() + UPDATE_SECONDS

    def __repr__(self) -> str:
        return "\n".join([*self._sentences, *([self._line] if self._line else [])])
