"""What all benchmarks share: interleaved timing, peak memory, the machine, and the report with its table and JSON."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plrc.errors import ConfigError
from plrc.files import write_json
from plrc.machine import commit, cores, plrc_version, processor

median = statistics.median


@dataclass(frozen=True)
class Bench:
    """A finished benchmark.

    Attributes:
        kind: Name of the benchmark, such as "step".
        settings: What it was run with.
        figures: The results by name; ratios compare variants of this run. Units (bytes, seconds) are part of a name.
        rows: The measurements, one row for each variant.
    """

    kind: str
    settings: dict[str, Any]
    figures: dict[str, Any]
    rows: list[dict[str, Any]]

    def table(self) -> str:
        """Return settings, rows and figures as text."""
        settings = ", ".join(f"{name} {_text(value)}" for name, value in self.settings.items())
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        cells = [columns, *(_cells(row, columns) for row in self.rows)]
        figures = [[name, _text(value)] for name, value in self.figures.items()]
        return "\n".join([f"{self.kind}: {settings}", "", *_align(cells), "", *_align(figures)])

    def save(self, path: Path) -> None:
        """Write kind, date, machine, settings, figures and rows as JSON.

        Raises:
            ConfigError: The file cannot be written.
        """
        content = {
            "kind": self.kind,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(),
            "settings": self.settings,
            "figures": self.figures,
            "rows": self.rows,
        }
        try:
            write_json(path, content)
        except OSError as error:
            raise ConfigError(f"cannot write {path} ({error.strerror}); name another --json FILE") from error


def machine() -> dict[str, Any]:
    """Describe processor, GPU, threads and versions; `commit` is empty outside a checkout."""
    return {
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "plrc": plrc_version(),
        "commit": commit(),
    }


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warmup: int = 1,
) -> dict[str, list[float]]:
    """Time functions in turn, A B C A B C ..., so that slow moments of a shared machine affect all of them.

    Args:
        functions: The variants to time, by name.
        repeats: Measured rounds.
        device: Device to wait for before and after each call.
        warmup: Rounds before these that are not measured.

    Returns:
        Seconds of each measured call, by name.

    Raises:
        ConfigError: `repeats` is below 1.
    """
    if repeats < 1:
        raise ConfigError(f"repeats must be >= 1, got {repeats}")
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            synchronize(device)
            started = time.perf_counter()
            function()
            synchronize(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Return the peak size of live tensors while `function` runs, in bytes, beyond those that were alive before.

    PyTorch's own allocators count them; on a CPU through the profiler's memory events, which give the same number to
    the byte on every call (the peak of a process's memory does not). Memory that libraries such as oneDNN allocate for
    themselves is not counted. On a CPU, memory from before that is freed meanwhile is not subtracted.
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler logs each start and stop
    with torch.autograd.profiler.profile(use_device=None, profile_memory=True) as profile:
        function()
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(max(accumulate((event.nbytes() for event in changes), initial=0)))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work queued so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interquartile_range(values: Sequence[float]) -> float:
    """Return the distance between the 25th and the 75th percentile."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low)


def ratios(name: str, numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Return the figures NAME, the median over rounds of the ratio within a round, and NAME_spread."""
    quotients = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return {name: median(quotients), f"{name}_spread": interquartile_range(quotients)}


def _cells(row: dict[str, Any], columns: list[str]) -> list[str]:
    return [_text(row.get(name, "")) for name in columns]


def _align(cells: Sequence[Sequence[str]]) -> list[str]:
    """Join rows of equally many cells to lines: the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [row[0].ljust(widths[0])]
        for cell, width in zip(row[1:], widths[1:], strict=True):
            padded.append(cell.rjust(width))
        lines.append("  ".join(padded).rstrip())
    return lines


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
