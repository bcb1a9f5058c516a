"""The records of a run: log.txt, metrics.jsonl, TensorBoard, and lines of progress."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from plrc import distributed
from plrc.files import without_nan, write_text
from plrc.machine import commit, cores, processor, versions
from plrc.progress import OnProgress, ignore_progress
from plrc.text import printable_lines

logger = logging.getLogger(__name__)
library_logger = logging.getLogger("plrc")
progress_logger = logging.getLogger("plrc.progress")


class RunLog:
    """Writes the records of a run, until it is closed.

    Messages go to this module's logger and to log.txt, whatever the level of the logger is; what other modules of plrc
    log meanwhile is written to log.txt too. Only the main process writes: in the others every method does nothing.
    A full disk does not end the run. Lines of log.txt and metrics.jsonl that cannot be written stay in memory, and are
    written with the next line that can be.

    Args:
        out: The run folder.
        first_step: The step from which the run continues; metrics of later steps are cut off, because those steps are
            repeated.
        total_steps: Steps of the whole run.
        main: Whether this is the main process.
        on_progress: Called with every line of progress.
    """

    def __init__(
        self, out: Path, first_step: int, total_steps: int, main: bool, on_progress: OnProgress = ignore_progress
    ) -> None:
        self.main = main
        self.first_step = first_step
        self.total_steps = total_steps
        self.on_progress = on_progress
        self.started = time.perf_counter()
        if not main:
            return
        cut_lines(out / "metrics.jsonl", first_step or -1)  # the health check before step 1 is repeated too
        self.metrics = (out / "metrics.jsonl").open("a", encoding="utf-8")
        repeated_from = first_step + 1 if first_step else None
        self.board: SummaryWriter | None = SummaryWriter(str(out / "tensorboard"), purge_step=repeated_from)
        self.log_file = _LogFile(out / "log.txt")
        library_logger.addHandler(self.log_file)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def info(self, message: str) -> None:
        """Log a message that the user wants to read."""
        self._log(logging.INFO, message)

    def warning(self, message: str) -> None:
        """Log a warning."""
        self._log(logging.WARNING, message)

    def record(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl, {"step", "kind", ...}; numbers go to TensorBoard as kind/name too."""
        if not self.main:
            return
        with contextlib.suppress(OSError):
            self.metrics.write(json.dumps({"step": step, "kind": kind, **without_nan(dict(values))}) + "\n")
            self.metrics.flush()
        try:
            for name, value in values.items():
                if self.board and isinstance(value, (int, float)):
                    self.board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            with contextlib.suppress(OSError):
                if self.board:
                    self.board.close()
            self.board = None
            self.warning(f"the TensorBoard file ends at step {step} ({error.strerror}); metrics.jsonl continues")

    def train_line(self, step: int, values: Mapping[str, float]) -> None:
        """Record the means of a window of training steps and show a line of progress with the time left."""
        if not self.main:
            return
        self.record(step, "train", values)
        seconds_per_step = (time.perf_counter() - self.started) / max(1, step - self.first_step)
        columns = [f"{step}/{self.total_steps}"]
        for name, value in values.items():
            if name == "loss" or name.endswith("_kl"):
                columns.append(f"{name.removesuffix('_kl')} {value:.3f}")
        columns.append(f"{values['images_per_second']:.1f} img/s")
        if "data_wait_share" in values:
            columns.append(f"data wait {100 * values['data_wait_share']:.0f}%")
        columns.append(f"left {_duration(seconds_per_step * (self.total_steps - step))}")
        line = "  ".join(columns)
        progress_logger.info(line)
        self.on_progress(step, self.total_steps, line)

    def close(self) -> None:
        """Close all files; later messages of the library are no longer written to log.txt."""
        if not self.main:
            return
        library_logger.removeHandler(self.log_file)
        for file in (self.board, self.metrics, self.log_file):
            with contextlib.suppress(OSError):
                if file:
                    file.close()

    def _log(self, level: int, message: str) -> None:
        if not self.main:
            return
        message = printable_lines(message)
        if logger.isEnabledFor(level):
            logger.log(level, "%s", message)
        else:  # the application does not want to hear it, but log.txt is complete
            self.log_file.handle(logger.makeRecord(logger.name, level, "", 0, message, (), None))


class _LogFile(logging.FileHandler):
    """log.txt: the time and the message of every record but those of progress."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.addFilter(lambda record: record.name != progress_logger.name)

    def format(self, record: logging.LogRecord) -> str:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {prefix}{printable_lines(record.getMessage())}"

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore that the disk is full: the line stays in the buffer of the file."""


def provenance(device: torch.device) -> dict[str, Any]:
    """Describe the hardware and software versions of this process."""
    name = f"{processor()}, {cores()} cores"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": name,
        "processes": str(distributed.world_size()),  # as text, so that TensorBoard draws no curve
        "versions": versions() | {"commit": commit()},
    }


def cut_lines(path: Path, last_step: int) -> None:
    """Drop the JSON lines of steps after `last_step`, and damaged ones, such as a last line that is half written."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        kept = [f"{line}\n" for line in lines if 0 <= _step_of(line) <= last_step]
        write_text(path, "".join(kept))


def _step_of(line: str) -> int:
    """The step of a line of metrics.jsonl; -1 if the line is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return -1


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
