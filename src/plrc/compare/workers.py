"""Several processes that work on one grid of runs. Their log records and errors reach the parent process."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator
from logging.handlers import QueueHandler, QueueListener
from multiprocessing.connection import wait
from typing import Any

from plrc.compare.grid import POLL_SECONDS, PROGRESS_SECONDS, Grid, GridStart, Run, run_grid
from plrc.data.workers import IMPORTS_SCRIPT, UNGUARDED
from plrc.errors import PlrcError, RunError
from plrc.machine import cores
from plrc.runtime import StopRequest

LIBRARY_LOGGER = logging.getLogger("plrc")


def run_grid_in_processes(grid: Grid[Run], start: GridStart, stop: StopRequest, processes: int) -> None:
    """Share the runs of a grid between worker processes, until all runs are finished or a stop is requested.

    Args:
        grid: The runs; it is pickled.
        start: See `plrc.compare.grid.log_start`.
        stop: Passed on to the workers as SIGTERM: each saves its run and exits.
        processes: Number of worker processes.

    Raises:
        RunError: A worker failed, or reached `end_if_importing_main`. The others are stopped, and save their runs.
    """
    context = multiprocessing.get_context("spawn")
    records: Any = context.Queue()
    errors = context.SimpleQueue()
    level = LIBRARY_LOGGER.getEffectiveLevel()
    arguments = (grid, start, PROGRESS_SECONDS * processes, records, level, errors)
    workers = [context.Process(target=_work, args=arguments) for _ in range(processes)]
    # PyTorch reads this when a worker imports it.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    with _listen(records):
        try:
            for worker in workers:
                worker.start()
            _wait_for(workers, stop)
        finally:
            for worker in workers:
                if worker.pid is not None:  # it was started
                    worker.terminate()
    if any(worker.exitcode == IMPORTS_SCRIPT for worker in workers):
        raise RunError(UNGUARDED)
    if not errors.empty():
        raise RunError(errors.get())
    if not stop.requested and any(worker.exitcode for worker in workers):
        raise RunError("a worker process failed (its message is above); fix the cause and repeat the command")


def _wait_for(workers: list[Any], stop: StopRequest) -> None:
    """Wait for the end of all workers; after a request to stop, or a failure of one, ask all of them to stop."""
    while alive := [worker for worker in workers if worker.is_alive()]:
        if stop.requested or any(worker.exitcode for worker in workers):
            for worker in alive:  # repeated, since a signal may come before the worker listens to it
                worker.terminate()
        wait([worker.sentinel for worker in alive], timeout=POLL_SECONDS)


def _work(grid: Grid[Run], start: GridStart, progress_seconds: float, records: Any, level: int, errors: Any) -> None:
    """Work on a grid in a worker process."""
    stop = StopRequest()
    LIBRARY_LOGGER.addHandler(QueueHandler(records))
    LIBRARY_LOGGER.setLevel(level)
    try:
        run_grid(grid, start, stop, progress_seconds)
    except PlrcError as error:
        errors.put(str(error))
        sys.exit(2)


class _PassOn(logging.Handler):
    """Handles the records of workers as if they had been logged in this process."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


@contextlib.contextmanager
def _listen(records: Any) -> Iterator[None]:
    listener = QueueListener(records, _PassOn())
    listener.start()
    try:
        yield
    finally:
        listener.stop()
