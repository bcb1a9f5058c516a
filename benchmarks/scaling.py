"""Images per second of 1, 2, ... processes with the same batch each, compared with as many times one process.

Each run is the command line's own (`plrc pretrain --devices N`: torchrun, nccl between GPUs, gloo between CPUs), so
that loaders and the exchange between processes are real.
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
from benchmarks.report import Bench, interquartile_range, median
from plrc.config import Config
from plrc.errors import ConfigError, RunError
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
    """Measure how the speed grows with the number of processes.

    Args:
        processes: Numbers of processes to measure.
        backbone: A torchvision ResNet.
        size: Side of a view, pixels.
        batch: Images per step of each process; each also gets the same number of CPU threads.
        steps: Steps per measured window; one more window warms up.
        repeats: Measured windows.
        workers: Loader processes of each process; -1: as `plrc pretrain` on GPUs, none on a CPU, where they would take
            cores from the other processes.
        device: auto, cpu, cuda or cuda:N.

    Efficiency is images per second and process, divided by that of the first number of processes.

    Raises:
        ConfigError: A number that cannot be used.
        RunError: A run failed; the message is the run's own.
    """
    if not processes or min(processes) < 1:
        raise ConfigError(f"processes must be one or more numbers >= 1, such as 1 2 4, got {list(processes)}")
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
            rows.append({"processes": count, "images_per_second": median(rates), "spread": interquartile_range(rates)})
    alone = rows[0]["images_per_second"] / rows[0]["processes"]
    for row in rows:
        row["efficiency"] = row["images_per_second"] / row["processes"] / alone
    return Bench(
        kind="scaling",
        settings={
            "processes": list(processes),
            "backbone": backbone,
            "size": size,
            "batch": batch,
            "steps": steps,
            "repeats": repeats,
            "workers": workers,
            "threads": threads,
            "device": kind,
        },
        figures={key: rows[-1][key] for key in ("processes", "images_per_second", "efficiency")},
        rows=rows,
    )


def _pretrain(config: Config, path: Path) -> None:
    """Run `plrc pretrain` with this configuration in its own processes."""
    config.save(path)
    command = [sys.executable, "-m", "plrc", "pretrain", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = lines[-1].removeprefix("plrc: ")
        raise RunError(f"plrc pretrain --devices {config.run.devices} ended with status {done.returncode}: {reason}")
