"""`plrc demo`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plrc.cli.options import about, read_options
from plrc.cli.output import console, progress
from plrc.errors import ConfigError

NEXT_STEPS = """next, with your own images:
  plrc scan FOLDER
  plrc pretrain --preset small_r18 --data FOLDER --out runs/first
  plrc visualize runs/first --images FOLDER
  plrc export runs/first --to torchvision"""


@dataclass(frozen=True)
class DemoOptions:
    out: Path = Path("plrc-demo")
    """Folder to write into: empty, absent, or that of a stopped demo."""
    steps: int = 200
    """Optimiser steps."""


def run(arguments: Sequence[str]) -> int:
    """Render scenes, pre-train on them, and show what was learned: minutes on a CPU.

    examples:
      plrc demo
      plrc demo --out my-demo
    """
    options = read_options("demo", DemoOptions, arguments, about(run))
    if options.steps < 1:
        raise ConfigError(f"--steps must be >= 1, got {options.steps}")
    from plrc.demo import run_demo

    started = time.perf_counter()
    with progress("steps") as on_progress:
        result = run_demo(options.out, options.steps, on_progress=on_progress)
    show_result(result, options.out, time.perf_counter() - started)
    return 0


def show_result(result: dict[str, dict[str, float]], out: Path, seconds: float) -> None:
    """Print the scores of `run_demo`, where its files are, and what to do next."""
    from rich.table import Table

    table = Table("frozen features", "mIoU of a linear probe", "pixel accuracy", "grouping AUC (chance 0.5)")
    for name, values in result.items():
        table.add_row(name, f"{values['miou']:.3f}", f"{values['accuracy']:.3f}", f"{values['grouping_auc']:.3f}")
    console().print(table)
    better = "better" if result["plrc"]["miou"] > result["random"]["miou"] else "NOT better"
    print(
        f"done in {seconds / 60:.1f} minutes: the pre-trained features separate the classes of objects {better} than "
        "those of a random network. See:"
    )
    for name in ("run/report.html", "affinity.png", "result.json", "run/exported/backbone.safetensors"):
        print(f"  {out / name}")
    print(NEXT_STEPS)
