"""Pre-training from files on disk, end to end: images a second, and the share of time spent waiting for data.

Layer 5: imports the engine, and the report of this folder. It is the real loop on generated JPEGs; the figures are the
run's own, from its metrics.jsonl. On a GPU the loop runs ahead of the device, which may still be at work while the loop
waits: there the share is an upper bound of the device's idle time.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.photographs import write_photographs
from benchmarks.report import Bench, median, spread
from plrc.config import Config
from plrc.engine.adapt import GROUP
from plrc.engine.pretrain import pretrain
from plrc.errors import PlrcError
from plrc.runtime import choose_device, choose_workers


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
    """Pre-train for `repeats` windows of `steps` steps, after one more that warms up; figures are medians of windows.

    `workers`: loader processes, -1: chosen as for `plrc pretrain`. Raises PlrcError for a number that
    cannot be used, and where the run was stopped.
    """
    chosen = choose_device(device)
    workers = choose_workers(workers, chosen)
    with tempfile.TemporaryDirectory() as folder:
        config = short_run(Path(folder), backbone, size, batch, steps, repeats, workers, str(chosen))
        write_photographs(Path(config.data.source), 2 * batch)
        print(f"epoch: {backbone}, {size} px, batch {batch}, {config.optim.steps} steps", file=sys.stderr)
        with contextlib.redirect_stdout(sys.stderr):
            if not pretrain(config).finished:
                raise PlrcError("stopped before the last step, so nothing was measured; start it again")
        rows = windows(config)
    rate = [row["images_per_second"] for row in rows]
    wait = [row["data_wait_share"] for row in rows]
    return Bench(
        kind="epoch",
        settings={
            "backbone": backbone, "size": size, "batch": batch, "steps": steps, "repeats": repeats, "workers": workers,
            "device": str(chosen),
        },
        figures={
            "data_wait_share": median(wait),
            "data_wait_share_spread": spread(wait),
            "images_per_second": median(rate),
            "images_per_second_spread": spread(rate),
        },
        rows=rows,
    )  # fmt: skip


def short_run(
    folder: Path, backbone: str, size: int, batch: int, steps: int, repeats: int, workers: int, device: str
) -> Config:
    """The paper's recipe for 1 + `repeats` windows of `steps` steps: FOLDER/images -> FOLDER/run, no health checks."""
    if min(batch, steps, repeats) < 1:
        raise PlrcError(f"batch is {batch}, steps is {steps}, repeats is {repeats}; write 1 or more for each")
    total = (1 + repeats) * steps
    return Config(adapt=False).with_values(
        {
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
    """Step, images_per_second and data_wait_share of each window of a finished `short_run` but the first."""
    lines = (Path(config.run.out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    return [{k: r[k] for k in ("step", "images_per_second", "data_wait_share")} for r in records[1:]]
