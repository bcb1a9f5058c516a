"""Pre-training from files on disk, end to end: images per second, and the share of time spent waiting for data.

The real training loop runs on generated JPEGs; the figures are the run's own, from its metrics.jsonl. On a GPU the loop
runs ahead of the device, which may still be busy while the loop waits: there the share is an upper bound
of the device's idle time.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.photographs import write_photographs
from benchmarks.report import Bench, interquartile_range, median
from plrc.config import Config
from plrc.engine.adapt import GROUP
from plrc.engine.pretrain import pretrain
from plrc.errors import ConfigError, RunError
from plrc.runtime import choose_device, choose_workers

PAPER = Config(adapt=False)


def run(
    *,
    backbone: str = "resnet50",
    size: int = 224,
    batch: int = 32,
    steps: int = 10,
    repeats: int = 5,
    workers: int = -1,
    device: str = "auto",
) -> Bench:
    """Measure images per second and the share of time spent waiting for data in a real run.

    Args:
        backbone: A torchvision ResNet.
        size: Side of a view, pixels.
        batch: Images per step.
        steps: Steps per measured window; one more window warms up.
        repeats: Measured windows; figures are medians over them.
        workers: Loader processes; -1: chosen as `plrc pretrain` does.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: A number that cannot be used.
        RunError: The run was stopped.
    """
    chosen = choose_device(device)
    workers = choose_workers(workers, chosen)
    with tempfile.TemporaryDirectory() as folder:
        config = short_run(Path(folder), backbone, size, batch, steps, repeats, workers, str(chosen))
        write_photographs(Path(config.data.source), 2 * batch)
        print(f"epoch: {backbone}, {size} px, batch {batch}, {config.optim.steps} steps", file=sys.stderr)
        if not pretrain(config).finished:
            raise RunError("stopped before the last step, so nothing was measured; start it again")
        rows = windows(config)
    rate = [row["images_per_second"] for row in rows]
    wait = [row["data_wait_share"] for row in rows]
    return Bench(
        kind="epoch",
        settings={
            "backbone": backbone,
            "size": size,
            "batch": batch,
            "steps": steps,
            "repeats": repeats,
            "workers": workers,
            "device": str(chosen),
        },
        figures={
            "data_wait_share": median(wait),
            "data_wait_share_spread": interquartile_range(wait),
            "images_per_second": median(rate),
            "images_per_second_spread": interquartile_range(rate),
        },
        rows=rows,
    )


def short_run(
    folder: Path,
    backbone: str,
    size: int,
    batch: int,
    steps: int,
    repeats: int,
    workers: int,
    device: str,
    recipe: Config = PAPER,
) -> Config:
    """Configure a recipe for 1 + `repeats` windows of `steps` steps on FOLDER/images; no health checks."""
    if min(batch, steps, repeats) < 1:
        raise ConfigError(f"batch, steps and repeats must be >= 1, got {batch}, {steps} and {repeats}")
    total = (1 + repeats) * steps
    return recipe.with_values(
        {
            "adapt": False,
            "data.source": str(folder / "images"),
            "data.held_out": 0,
            "views.size": size,
            "model.backbone": backbone,
            "model.bn_groups": max(1, min(8, batch // GROUP)),
            "optim.batch_size": batch,
            "optim.steps": total,
            "run.out": str(folder / "run"),
            "run.device": device,
            "run.workers": workers,
            "run.log_every_steps": steps,
            "run.checkpoint_every_steps": total,
        }
    )


def windows(config: Config) -> list[dict[str, Any]]:
    """Return step, images_per_second and data_wait_share of all windows of a finished `short_run` except the first."""
    rows = []
    for line in (Path(config.run.out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "train":
            rows.append({name: record[name] for name in ("step", "images_per_second", "data_wait_share")})
    return rows[1:]
