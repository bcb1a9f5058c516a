"""A training step of each detector: forward, loss, backward and update, on a batch in memory.

Every detector has the network and image size of its small protocol, and a ResNet-18 or the vision transformer of that
protocol with random weights. They run in turn in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.report import Bench, interquartile_range, median, peak_bytes, ratios, time_interleaved
from plrc.model import build_backbone
from plrc.runtime import choose_device
from plrc.transfer.optim import build_optimizer
from plrc.transfer.presets import protocol
from plrc.transfer.tasks import DetectionModel

BASELINE = "faster_rcnn"
PROTOCOLS = {
    BASELINE: "small_detection",
    "rt_detr_v2": "small_rt_detr_v2",
    "d_fine": "small_d_fine",
    "rf_detr": "small_rf_detr",
}
CLASSES = 9
OBJECTS = 5  # in an image


def run(*, size: int = 192, batch: int = 4, repeats: int = 5, device: str = "auto") -> Bench:
    """Measure time and peak memory of a training step of each detector.

    Args:
        size: Side of the images, pixels.
        batch: Images per step.
        repeats: Measured rounds.
        device: auto, cpu, cuda or cuda:N.

    Figures are `NAME_time_ratio` and `NAME_memory_ratio` to Faster R-CNN. Memory is the peak of live tensors of a step
    beyond weights and optimizer.
    """
    chosen = choose_device(device)
    steps = {name: _training_step(name, size, batch, chosen) for name in PROTOCOLS}
    print(f"detectors: {size} px, batch {batch}; {', '.join(steps)}", file=sys.stderr)
    for step in steps.values():
        step()  # the optimizer's state exists after the first step
    peaks = {name: peak_bytes(step, chosen) for name, step in steps.items()}
    seconds = time_interleaved(steps, repeats, chosen)
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for name in steps:
        row = {
            "variant": name,
            "seconds": median(seconds[name]),
            "spread": interquartile_range(seconds[name]),
            "peak_bytes": peaks[name],
        }
        rows.append(row)
        if name != BASELINE:
            figures |= ratios(f"{name}_time_ratio", seconds[name], seconds[BASELINE])
            figures[f"{name}_memory_ratio"] = peaks[name] / peaks[BASELINE]
    settings = {"size": size, "batch": batch, "repeats": repeats, "device": str(chosen)}
    return Bench(kind="detectors", settings=settings, figures=figures, rows=rows)


def _training_step(name: str, size: int, batch: int, device: torch.device) -> Callable[[], object]:
    sides = {"input.train_size": (float(size), float(size)), "input.test_size": float(size), "input.max_size": size}
    config = protocol(PROTOCOLS[name], "detection").with_values(sides)
    torch.manual_seed(0)
    task_model = DetectionModel(config, build_backbone(config.model.backbone), CLASSES, device)
    model = task_model.model.train()
    optimizer = build_optimizer(model, config.optim)
    items = [_item(size) for _ in range(batch)]

    def step() -> None:
        optimizer.zero_grad()
        task_model.loss(items).backward()
        optimizer.step()

    return step


def _item(size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """An image of noise uint8 [3, size, size] with boxes."""
    corners = torch.rand(OBJECTS, 2) * size / 2
    boxes = torch.cat([corners, corners + size / 4], dim=1)
    image = torch.randint(256, (3, size, size), dtype=torch.uint8)
    return image, {"boxes": boxes, "labels": torch.randint(1, CLASSES + 1, (OBJECTS,))}
