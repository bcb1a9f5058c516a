"""What all benchmarks share: taking turns, peak memory, the machine, and the report with its table and JSON file.

Layer 5: imports config and files.
"""

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

from plrc.errors import PlrcError
from plrc.files import write_json
from plrc.machine import commit, cores, plrc_version, processor

median = statistics.median


@dataclass(frozen=True)
class Bench:
    """A finished benchmark. Values are numbers, words, or lists of them; bytes and seconds where a name says so."""

    kind: str
    settings: dict[str, Any]
    figures: dict[str, Any]
    """The results by name; ratios compare variants of this run."""
    rows: list[dict[str, Any]]
    """What was measured, one row a variant."""

    def table(self) -> str:
        """Settings, rows and figures as text."""
        settings = ", ".join(f"{name} {_text(value)}" for name, value in self.settings.items())
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        cells = [columns, *([_text(row.get(name, "")) for name in columns] for row in self.rows)]
        figures = [[name, _text(value)] for name, value in self.figures.items()]
        return "\n".join([f"{self.kind}: {settings}", "", *_aligned(cells), "", *_aligned(figures)])

    def save(self, path: Path) -> None:
        """Write kind, date, machine, settings, figures and rows as JSON. Raises PlrcError where that is impossible."""
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
            raise PlrcError(f"cannot write {path} ({error.strerror}); name another --json FILE") from error


def machine() -> dict[str, Any]:
    """Processor, GPU, threads, versions, and the commit of the checkout that plrc runs from ("": not a checkout)."""
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


def interleaved(
    functions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warmup: int = 1
) -> dict[str, list[float]]:
    """Call the functions in turn, A B C A B C ..., so that slow moments of a shared machine hit all of them.

    Returns the seconds of each call that is not among the first `warmup` rounds; each waits for the device.
    Raises PlrcError where `repeats` is below 1.
    """
    if repeats < 1:
        raise PlrcError(f"repeats is {repeats}; write 1 or more")
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            synchronise(device)
            started = time.perf_counter()
            function()
            synchronise(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors alive at once while `function` runs, beyond those that were alive before.

    Counted by PyTorch's own allocators; on a CPU through the profiler's memory events, where the same function gives
    the same number to the byte. (The peak of a process's memory does not: for one step of a ResNet-18 it ranged from 14
    to 45 MB above the memory before, in processes that had taken a step already.) What libraries such as oneDNN take
    for themselves is not counted, nor, on a CPU, that memory from before is given back meanwhile.
    """
    if device.type == "cuda":
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        synchronise(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler tells of every start and stop
    with torch.autograd.profiler.profile(use_device=None, profile_memory=True) as profile:
        function()
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(max(accumulate((event.nbytes() for event in changes), initial=0)))


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> float:
    """Interquartile range."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low)


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equally many cells as lines: first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in cells
    ]


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
