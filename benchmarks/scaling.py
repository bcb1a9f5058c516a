"""Images a second of 1, 2, ... processes with the same batch for each, against as many times one process.

Layer 5: imports the engine, and the epoch and report of this folder. Each run is the command line's own
(`plrc pretrain --devices N`: torchrun, nccl between GPUs, gloo between CPUs), so loaders and exchange are real.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.epoch import short_run, windows
from benchmarks.photographs import write_photographs
from benchmarks.report import Bench, median, spread
from plrc.config import Config
from plrc.errors import PlrcError
from plrc.runtime import choose_device


def run(
    *,
    processes: Sequence[int] = (1, 2),
    backbone: str = "resnet50",
    size: int = 224,
    batch: int = 16,
    steps: int = 5,
    repeats: int = 5,
    workers: int = -1,
    device: str = "auto",
) -> Bench:
    """Pre-train with `batch` images a process and, on every line, the same CPU threads a process; see `epoch.run`.

    `workers`: loader processes of each; -1: with GPUs as for `plrc pretrain`, on a CPU none, since they would take the
    other processes' cores. Efficiency: images a second and process, over those of the first line. Raises PlrcError with
    the run's own sentence where one fails.
    """
    if not processes or min(processes) < 1:
        raise PlrcError(f"processes is {list(processes)}; write one or more numbers of at least 1, such as 1 2 4")
    kind = choose_device(device).type
    workers = 0 if workers < 0 and kind == "cpu" else workers
    threads = max(1, torch.get_num_threads() // max(processes))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder) / "images", 2 * batch * max(processes))
        for count in processes:
            config = short_run(Path(folder), backbone, size, count * batch, steps, repeats, workers, kind).with_values(
                {
                    "run.out": str(Path(folder) / f"run-{count}"),
                    "run.devices": count,
                    "run.threads": threads,
                    "model.bn_groups": 1,  # the processes are the groups
                }
            )
            print(f"scaling: {count} processes, {config.optim.steps} steps of {count * batch} images", file=sys.stderr)
            _pretrain(config, Path(folder) / f"run-{count}.toml")
            rates = [row["images_per_second"] for row in windows(config)]
            rows.append({"processes": count, "images_per_second": median(rates), "spread": spread(rates)})
    alone = rows[0]["images_per_second"] / rows[0]["processes"]
    for row in rows:
        row["efficiency"] = row["images_per_second"] / row["processes"] / alone
    return Bench(
        kind="scaling",
        settings={
            "processes": list(processes), "backbone": backbone, "size": size, "batch": batch, "steps": steps,
            "repeats": repeats, "workers": workers, "threads": threads, "device": kind,
        },
        figures={key: rows[-1][key] for key in ("processes", "images_per_second", "efficiency")},
        rows=rows,
    )  # fmt: skip


def _pretrain(config: Config, path: Path) -> None:
    """`plrc pretrain` with this configuration, in processes of its own."""
    config.save(path)
    command = [sys.executable, "-m", "plrc", "pretrain", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sentence = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("plrc: ")
        raise PlrcError(f"plrc pretrain --devices {config.run.devices} ended with status {done.returncode}: {sentence}")
