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
    """

    def __init__(
        self, out: Path, start_step: int, total_steps: int, main: bool, on_progress: OnProgress = ignore_progress
    ) -> None:
        self.main = main
        self.start_step = start_step
        self.total_steps = total_steps
        self.on_progress = on_progress
        self.started = time.perf_counter()
        if not main:  # no file is opened
            return
        # A new run keeps no line, not even that of step 0: the health check before step 1 is repeated.
        last_kept_step = start_step if start_step > 0 else -1
        cut_lines(out / "metrics.jsonl", last_kept_step)
        self.metrics = (out / "metrics.jsonl").open("a", encoding="utf-8")
        purge_step = start_step + 1 if start_step > 0 else None
        self.tensorboard: SummaryWriter | None = SummaryWriter(str(out / "tensorboard"), purge_step=purge_step)
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
        """Write a line of metrics.jsonl, and its numbers to TensorBoard under the name "kind/name".

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
        try:
            for name, value in values.items():
                if self.tensorboard and isinstance(value, (int, float)):
                    self.tensorboard.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            with contextlib.suppress(OSError):
                if self.tensorboard:
                    self.tensorboard.close()
            self.tensorboard = None
            self.warning(f"the TensorBoard file ends at step {step} ({error.strerror}); metrics.jsonl continues")

    def log_training(self, step: int, values: Mapping[str, float]) -> None:
        """Record the means since the last call, and log a line of progress with the time left.

        Args:
            step: The last step that was trained.
            values: Means by name. The line shows "loss", the KL divergence of each term ("image_kl" as "image"),
                "images_per_second" and "data_wait_share".
        """
        if not self.main:
            return
        self.record(step, "train", values)
        seconds_per_step = (time.perf_counter() - self.started) / max(1, step - self.start_step)
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
        for file in (self.tensorboard, self.metrics, self.log_file):
            with contextlib.suppress(OSError):
                if file:
                    file.close()

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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
