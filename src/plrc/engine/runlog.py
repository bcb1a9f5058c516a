"""The records of a run: log.txt, metrics.jsonl, its loggers such as TensorBoard, and lines of progress."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from plrc import distributed
from plrc.engine.budget import UNLIMITED_STEPS, TimeBudget
from plrc.engine.loggers import MetricLoggers, Status
from plrc.files import without_nan, write_text
from plrc.machine import commit, cores, processor, versions
from plrc.progress import OnProgress, ignore_progress
from plrc.text import printable_lines

logger = logging.getLogger(__name__)
library_logger = logging.getLogger("plrc")
progress_logger = logging.getLogger("plrc.progress")

SILENT_SECONDS = 20.0
"""Seconds without a line of progress after which slow work shows its position and the time left."""


class RunLog:
    """Writes the records of a run.

    Messages go to this module's logger, and always to log.txt, even if the logger's level hides them. Until the log is
    closed, log.txt also receives the messages of all other modules of plrc. Only the main process writes; in other
    processes every method does nothing.

    A full disk does not end the run: lines of log.txt and metrics.jsonl that cannot be written stay in the buffers of
    the files and are written later, when there is space again.

    Args:
        out: The run folder.
        start_step: The step from which the run continues, 0 for a new run. Lines of metrics.jsonl for later steps are
            deleted, because those steps are trained again.
        total_steps: Steps of the whole run.
        main: Whether this is the main process.
        on_progress: Called with every line of progress.
        loggers: Names of the loggers, keys of `plrc.engine.loggers.LOGGERS`.
        settings: The configuration by dotted name, for the loggers.
    """

    def __init__(
        self,
        out: Path,
        start_step: int,
        total_steps: int,
        main: bool,
        on_progress: OnProgress = ignore_progress,
        loggers: Sequence[str] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.main = main
        self.total_steps = total_steps
        self.on_progress = on_progress
        self.is_finished = False
        self._has_training_line = False
        self.start_clock(start_step)
        if not main:  # no file is opened
            return
        # A new run keeps no line, not even that of step 0: the health check before step 1 is repeated.
        last_kept_step = start_step if start_step > 0 else -1
        cut_lines(out / "metrics.jsonl", last_kept_step)
        self.metrics = (out / "metrics.jsonl").open("a", encoding="utf-8")
        self.log_file = _LogFile(out / "log.txt")
        library_logger.addHandler(self.log_file)
        self.loggers: MetricLoggers | None = None
        try:
            self.loggers = MetricLoggers(loggers, out, start_step, settings or {}, self.warning)
        except BaseException:
            self.close("failed")
            raise

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.close("failed")
        else:
            self.close("finished" if self.is_finished else "stopped")

    def info(self, message: str) -> None:
        """Log a message that the user wants to read."""
        self._log(logging.INFO, message)

    def warning(self, message: str) -> None:
        """Log a warning."""
        self._log(logging.WARNING, message)

    def record(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl, and its numbers to the loggers under the name "kind/name".

        Args:
            step: The step that the values belong to.
            kind: "start", "train" or "health".
            values: What the line holds besides "step" and "kind".
        """
        if not self.main:
            return
        with contextlib.suppress(OSError):  # the line stays in the buffer of the file
            self.metrics.write(json.dumps({"step": step, "kind": kind, **without_nan(dict(values))}) + "\n")
            self.metrics.flush()
        numbers: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, (int, float)):
                numbers[f"{kind}/{name}"] = value
        if self.loggers is not None:
            self.loggers.log(step, numbers)

    def start_clock(self, done: int = 0) -> None:
        """Estimate the time left from the pace from now on. What came before is not repeated at every step.

        Args:
            done: Number of units of work, such as steps, that are finished already.
        """
        self._clock_started = time.perf_counter()
        self._done_at_start = done
        self._last_line = self._clock_started

    def log_time_left(self, done: int, total: int, line: str) -> None:
        """Log a line of progress with the time left, unless there was one in the last `SILENT_SECONDS`."""
        if self._is_silent():
            self._log_progress(done, total, [line], self._seconds_left(done, total))

    def log_step(self, step: int, budget: TimeBudget | None = None) -> None:
        """Log the time left while the first losses are still to come, which takes minutes if steps are slow."""
        if not self._has_training_line and self._is_silent():
            total_steps, position, seconds_left = self._outlook(step, budget)
            self._log_progress(step, total_steps, [position], seconds_left)

    def log_training(self, step: int, values: Mapping[str, float], budget: TimeBudget | None = None) -> None:
        """Record the means since the last call, and log a line of progress with the time left.

        Args:
            step: The last step that was trained.
            values: Means by name. The line shows "loss", the KL divergence of each term ("image_kl" as "image"),
                "images_per_second" and "data_wait_share".
            budget: The time budget of the run, if it has one.
        """
        if not self.main:
            return
        if budget is not None and budget.total:
            values = {**values, "seconds_used": budget.used}
        self.record(step, "train", values)
        self._has_training_line = True
        total_steps, position, seconds_left = self._outlook(step, budget)
        columns = [position]
        for name, value in values.items():
            if name == "loss" or name.endswith("_kl"):
                columns.append(f"{name.removesuffix('_kl')} {value:.3f}")
        columns.append(f"{values['images_per_second']:.1f} img/s")
        if "data_wait_share" in values:
            columns.append(f"data wait {100 * values['data_wait_share']:.0f}%")
        self._log_progress(step, total_steps, columns, seconds_left)

    def close(self, status: Status) -> None:
        """Close all files; later messages of the library are no longer written to log.txt."""
        if not self.main:
            return
        if self.loggers is not None:
            self.loggers.close(status)
        library_logger.removeHandler(self.log_file)
        for file in (self.metrics, self.log_file):
            with contextlib.suppress(OSError):
                file.close()

    def _is_silent(self) -> bool:
        return self.main and time.perf_counter() >= self._last_line + SILENT_SECONDS

    def _seconds_left(self, done: int, total: int) -> float:
        seconds = time.perf_counter() - self._clock_started
        return seconds / max(1, done - self._done_at_start) * (total - done)

    def _outlook(self, step: int, budget: TimeBudget | None) -> tuple[int, str, float]:
        """Return the steps of the whole run, the step with them as text, and the seconds left."""
        if budget is not None and budget.total:
            total_steps = round(budget.expected_steps(step, 0))
            return total_steps, f"{step}/~{total_steps}", budget.seconds_left
        return self.total_steps, f"{step}/{self.total_steps}", self._seconds_left(step, self.total_steps)

    def _log_progress(self, done: int, total: int, columns: Sequence[str], seconds_left: float) -> None:
        self._last_line = time.perf_counter()
        line = "  ".join([*columns, f"left {duration(seconds_left)}"])
        progress_logger.info(line)
        self.on_progress(done, total, line)

    def _log(self, level: int, message: str) -> None:
        if not self.main:
            return
        message = printable_lines(message)
        if logger.isEnabledFor(level):
            logger.log(level, "%s", message)
        else:  # the application hides this level; log.txt holds all messages
            record = logger.makeRecord(logger.name, level, fn="", lno=0, msg=message, args=(), exc_info=None)
            self.log_file.handle(record)


class _LogFile(logging.FileHandler):
    """log.txt: time and message of every log record, without lines of progress."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.addFilter(lambda record: record.name != progress_logger.name)

    def format(self, record: logging.LogRecord) -> str:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {prefix}{printable_lines(record.getMessage())}"

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing if the disk is full: the line stays in the buffer of the file."""


def provenance(device: torch.device) -> dict[str, Any]:
    """Describe the hardware and software versions of this process."""
    device_name = f"{processor()}, {cores()} cores"
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        device_name = f"GPU (mps) of {device_name}"
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name,
        "processes": str(distributed.world_size()),  # as text, so that TensorBoard draws no curve
        "versions": versions() | {"commit": commit()},
    }


def cut_lines(path: Path, last_step: int) -> None:
    """Delete the JSON lines of steps after `last_step`, and damaged lines (a killed process may leave half a line)."""
    if not path.exists():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        step = _step_of(line)
        if step is not None and 0 <= step <= last_step:
            kept.append(f"{line}\n")
    write_text(path, "".join(kept))


def _step_of(line: str) -> int | None:
    """The step of a line of metrics.jsonl; None if the line is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return None


def position(step: int, total_steps: int) -> str:
    """Return where a run is, such as "step 5 of 20"; without the number of steps if a time budget ends it."""
    return f"step {step}" if total_steps == UNLIMITED_STEPS else f"step {step} of {total_steps}"


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds, such as 1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
