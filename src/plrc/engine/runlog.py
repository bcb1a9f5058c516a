"""What a run tells: metrics.jsonl, TensorBoard, log.txt, and one progress line on the screen.

Layer 4. Only the main process writes; in the others every method does nothing. A full disk ends no run: what could not
be written of log.txt and metrics.jsonl stays in memory and is tried again with the next line.
"""

from __future__ import annotations

import contextlib
import json
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch.utils.tensorboard import SummaryWriter

from plrc import distributed
from plrc.files import without_nan, write_text
from plrc.machine import commit, cores, processor, versions
from plrc.text import printable_lines


class RunLog:
    """Opened on a run folder; on resume, metrics after `first_step` are cut off, since those steps will come again."""

    def __init__(self, out: Path, first_step: int, total_steps: int, main: bool) -> None:
        self.main, self.total_steps, self.first_step = main, total_steps, first_step
        self.started = time.perf_counter()
        if not main:
            return
        self.console = Console(highlight=False, soft_wrap=True)
        self.text = (out / "log.txt").open("a", encoding="utf-8")
        cut_lines(out / "metrics.jsonl", first_step or -1)  # the check before step 1 comes again with it
        self.metrics = (out / "metrics.jsonl").open("a", encoding="utf-8")
        purge = first_step + 1 if first_step else None
        self.board: SummaryWriter | None = SummaryWriter(str(out / "tensorboard"), purge_step=purge)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[line]}"),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.progress.add_task("pretrain", total=total_steps, completed=first_step, line="")
        self.progress.start()

    def say(self, sentence: str) -> None:
        """A sentence for the user, on the screen and in log.txt."""
        if self.main:
            sentence = printable_lines(sentence)
            self._show(sentence)
            with contextlib.suppress(OSError):
                self.text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}\n")
                self.text.flush()

    def record(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """One JSON line {"step", "kind", ...}; numbers go to TensorBoard as kind/name too."""
        if not self.main:
            return
        with contextlib.suppress(OSError):
            self.metrics.write(json.dumps({"step": step, "kind": kind, **without_nan(values)}) + "\n")
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
            self.say(f"warning: TensorBoard's file ends at step {step} ({error.strerror}); metrics.jsonl goes on")

    def train_line(self, step: int, values: dict[str, float]) -> None:
        """Record a window of training steps and show the progress line with the time left."""
        if not self.main:
            return
        self.record(step, "train", values)
        pace = (time.perf_counter() - self.started) / max(1, step - self.first_step)
        left = _duration(pace * (self.total_steps - step))
        losses = [f"{k.removesuffix('_kl')} {v:.3f}" for k, v in values.items() if k == "loss" or k.endswith("_kl")]
        waited = [f"data wait {100 * values['data_wait_share']:.0f}%"] if "data_wait_share" in values else []
        pace_text = f"{values['images_per_second']:.1f} img/s"
        line = "  ".join([f"{step}/{self.total_steps}", *losses, pace_text, *waited, f"left {left}"])
        self.progress.update(self.task, completed=step, line=line)
        if self.progress.disable:
            self._show(line)

    def _show(self, line: str) -> None:
        # Standard output may be a file on the same full disk, or a pipe whose reader is gone: rich then says no more,
        # and exits, which a run of days must not.
        with contextlib.suppress(OSError, SystemExit):
            self.console.print(line, markup=False)

    def close(self) -> None:
        if self.main:
            self.progress.stop()
            for file in (self.board, self.metrics, self.text):
                with contextlib.suppress(OSError):
                    if file:
                        file.close()


def provenance(device: torch.device) -> dict[str, Any]:
    """What a start of a run is computed by."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, {cores()} cores"
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": name,
        "processes": str(distributed.world_size()),  # as text: no curve for TensorBoard
        "versions": versions() | {"commit": commit()},
    }


def cut_lines(path: Path, last_step: int) -> None:
    """Drop the JSON lines of steps after `last_step`, and those that are damaged, such as a half-written last one."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        write_text(path, "".join(f"{line}\n" for line in lines if 0 <= _step(line) <= last_step))


def _step(line: str) -> int:
    """The step of a line of metrics.jsonl; -1 where it is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return -1


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
