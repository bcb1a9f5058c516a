"""Execute a set of runs ("a grid"), each of them once.

The work can be stopped and resumed at any point, and any number of processes can share it: a run is executed by the
process that holds the lock of its folder. Comparisons and studies use this.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from plrc.files import claim
from plrc.progress import OnProgress
from plrc.runtime import StopRequest

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # between two looks at the runs of other processes
PROGRESS_SECONDS = 30.0  # between two lines about the run in progress

# While a run is executed, only these loggers and warnings reach the terminal.
GRID_LOGGERS = ("plrc.compare", "plrc.study")
DATA_CHECKS = "plrc.transfer.data_checks"  # its warnings are the same in every run

Run = TypeVar("Run")
"""A run of a grid. `str(run)` describes it in the log."""


class Grid(Protocol[Run]):
    """Runs to execute, and which of them are finished."""

    @property
    def num_runs(self) -> int:
        """Total number of runs."""
        ...

    @property
    def num_done(self) -> int:
        """Number of finished runs."""
        ...

    def pending_runs(self) -> Sequence[Run]:
        """Return the runs that can start and are not finished."""
        ...

    def folder(self, run: Run) -> Path:
        """Return the folder of a run. The process that executes the run holds its lock."""
        ...

    def is_finished(self, run: Run) -> bool:
        """Return whether the run has a result."""
        ...

    def execute(self, run: Run, on_progress: OnProgress) -> str | None:
        """Execute a run and store its result.

        Returns:
            Its scores in one line, or None if it was asked to stop and saved its state.
        """
        ...


@dataclass(frozen=True)
class GridStart:
    """The state of a grid when work on it started, from which the time left is estimated.

    Args:
        unix_time: When the work started, in seconds.
        num_done: Number of runs that were finished at that time.
    """

    unix_time: float
    num_done: int

    def time_left(self, num_done: int, num_runs: int) -> timedelta:
        """Estimate the time until all runs are finished, from the pace of all processes since the start."""
        num_done_since_start = num_done - self.num_done
        seconds_per_run = (time.time() - self.unix_time) / max(1, num_done_since_start)
        return timedelta(seconds=round(seconds_per_run * (num_runs - num_done)))


def log_start(grid: Grid[Run], log_pattern: str) -> GridStart:
    """Log how many runs there are, and return the start from which the time left is estimated.

    Args:
        grid: The runs.
        log_pattern: Pattern of the paths of the runs' own log files, such as "out/*/log.txt".
    """
    start = GridStart(time.time(), grid.num_done)
    logger.info("%d runs, %d of them done; each is logged in %s", grid.num_runs, start.num_done, log_pattern)
    return start


def run_grid(grid: Grid[Run], start: GridStart, stop: StopRequest, progress_seconds: float) -> bool:
    """Execute the pending runs that no other process executes, and wait for the others.

    Args:
        grid: The runs.
        start: See `log_start`.
        stop: When it is requested, no further run is started. It is not passed on to the current run, which stops early
            only if it has a `StopRequest` of its own.
        progress_seconds: Seconds between two lines about the run in progress.

    Returns:
        True if all runs are finished, False if the process was asked to stop.
    """
    while pending := grid.pending_runs():
        num_executed = 0
        for run in pending:
            if _must_stop(stop):
                return False
            with claim(grid.folder(run)) as is_free:
                if not is_free or grid.is_finished(run):
                    continue
                with _only_grid_lines():
                    scores = grid.execute(run, _ProgressLog(str(run), progress_seconds))
            if scores is None:
                return False
            num_executed += 1
            num_done = grid.num_done
            time_left = start.time_left(num_done, grid.num_runs)
            logger.info("[%d/%d] %s: %s; left %s", num_done, grid.num_runs, run, scores, time_left)
        if _must_stop(stop):
            return False
        if num_executed == 0:
            time.sleep(POLL_SECONDS)
    return True


def log_stopped(grid: Grid[Run]) -> None:
    """Log that the work was stopped, and how many runs are done."""
    logger.info("stopped: %d of %d runs are done; repeat the command to continue", grid.num_done, grid.num_runs)


def _must_stop(stop: StopRequest) -> bool:
    """Return whether this process was asked to stop, or is a worker whose parent process ended."""
    parent = multiprocessing.parent_process()
    return stop.requested or (parent is not None and not parent.is_alive())


class _ProgressLog:
    """Logs the progress of a run at most every `seconds` seconds."""

    def __init__(self, run: str, seconds: float) -> None:
        self.run = run
        self.seconds = seconds
        self.last_line = time.monotonic()

    def __call__(self, done: int, total: int, line: str = "") -> None:
        if time.monotonic() >= self.last_line + self.seconds:
            logger.info("%s: %s", self.run, line or f"{done}/{total}")
            self.last_line = time.monotonic()


def _is_grid_line(record: logging.LogRecord) -> bool:
    is_repeated = record.name == DATA_CHECKS
    return (record.levelno >= logging.WARNING and not is_repeated) or record.name.startswith(GRID_LOGGERS)


@contextlib.contextmanager
def _only_grid_lines() -> Iterator[None]:
    """Hide the log lines of a run, except warnings, from the handlers installed now.

    The run still writes them to its own log.txt.
    """
    handlers = [*logging.getLogger().handlers, *logging.getLogger("plrc").handlers]
    for handler in handlers:
        handler.addFilter(_is_grid_line)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_grid_line)
