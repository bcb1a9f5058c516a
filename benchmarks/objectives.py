"""Cost of the objectives, forward and backward, against the number of points: dense matrices or linear memory.

Features are random directions in float32, as the engine passes them.

Shapes: B images, N points, M reference positions, D feature width.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import Bench, interquartile_range, median, peak_bytes, time_interleaved
from plrc import rng
from plrc.objectives import Backend, affinity_distillation, point_region_contrast
from plrc.runtime import choose_device

BACKENDS: tuple[Backend, ...] = ("dense", "fused")
DENSE_MATRICES = 6  # [N, M] matrices in float32 that the dense form holds at once, rounded up
DENSE_LIMIT = 4 * 2**30  # bytes; the dense form is skipped where it would need more
CONTRAST_WIDTH = 128  # width of the features that the point term compares
REGIONS = 16  # regions per image


def run(
    *,
    points: Sequence[int] = (196, 784, 3136, 12544),
    references: Sequence[int] = (196, 784, 3136, 12544),
    width: int = 256,
    batch: int = 1,
    repeats: int = 5,
    device: str = "auto",
) -> Bench:
    """Measure seconds and peak bytes of `affinity_distillation` and `point_region_contrast`.

    Args:
        points: Numbers of points N per image.
        references: Numbers of reference positions M per image; distillation is measured for every pair (N, M). The
            defaults are grids of 14 x 14 to 112 x 112.
        width: Width of the features of distillation; region contrast uses 128, with as many keys as points.
        batch: Images B.
        repeats: Measured rounds.
        device: auto, cpu, cuda or cuda:N.

    The dense form is skipped above 4 GB. Peak bytes do not count the features themselves. Figures describe how
    distillation grows between the two largest sizes, as the slope of log(bytes) or log(seconds) against log(points):
    BACKEND_memory_exponent and BACKEND_time_exponent with M fixed at its largest value (1: linear in the points);
    BACKEND_memory_exponent_square with M = N (1: linear, 2: a full matrix).
    """
    chosen = choose_device(device)
    rows: list[dict[str, Any]] = []
    for n in points:
        for m in references:
            arguments = _distillation(batch, n, m, width, chosen)
            rows += _measure("affinity_distillation", affinity_distillation, arguments, n, m, batch, repeats)
        arguments = _contrast(batch, n, chosen)
        rows += _measure("point_region_contrast", point_region_contrast, arguments, n, n, batch, repeats)
    return Bench(
        kind="objectives",
        settings={
            "points": list(points),
            "references": list(references),
            "width": width,
            "batch": batch,
            "repeats": repeats,
            "device": str(chosen),
            "threads": torch.get_num_threads(),
        },
        figures=_exponents(rows, max(references)),
        rows=rows,
    )


def _measure(
    name: str,
    term: Callable[..., Tensor],
    arguments: list[Tensor],
    points: int,
    references: int,
    batch: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Measure all backends, interleaved; one row each. The first argument receives the gradient."""
    device = arguments[0].device
    features = arguments[0].requires_grad_()

    def forward_and_backward(backend: Backend) -> None:
        term(*arguments, backend=backend).backward()
        features.grad = None

    calls: dict[str, Callable[[], object]] = {}
    if DENSE_MATRICES * 4 * batch * points * references <= DENSE_LIMIT:
        calls["dense"] = functools.partial(forward_and_backward, "dense")
    calls["fused"] = functools.partial(forward_and_backward, "fused")
    print(f"objectives: {name}, {points} points, {references} references, {', '.join(calls)}", file=sys.stderr)
    seconds = time_interleaved(calls, repeats, device)
    return [
        {
            "objective": name,
            "points": points,
            "references": references,
            "backend": backend,
            "seconds": median(seconds[backend]),
            "spread": interquartile_range(seconds[backend]),
            "peak_bytes": peak_bytes(call, device),
        }
        for backend, call in calls.items()
    ]


def _distillation(batch: int, points: int, references: int, width: int, device: torch.device) -> list[Tensor]:
    """Return student and teacher [B, N, D] and reference [B, M, D]."""
    return [_unit(i, (batch, n, width), device) for i, n in enumerate((points, points, references))]


def _contrast(batch: int, points: int, device: torch.device) -> list[Tensor]:
    """Return query and keys [B, N, D] and the regions of both [B, N]."""
    regions = (torch.arange(points, device=device) % REGIONS).expand(batch, -1)
    shape = (batch, points, CONTRAST_WIDTH)
    return [_unit(0, shape, device), _unit(1, shape, device), regions, regions]


def _unit(index: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    drawn = rng.generator(0, "points", index=index).standard_normal(shape, dtype=np.float32)
    return F.normalize(torch.from_numpy(drawn), dim=-1).to(device)


def _exponents(rows: list[dict[str, Any]], references: int) -> dict[str, float]:
    """Return the growth of distillation's bytes and seconds between its two largest numbers of points."""
    figures = {}
    for backend in BACKENDS:
        measured = [r for r in rows if r["objective"] == "affinity_distillation" and r["backend"] == backend]
        fixed = [row for row in measured if row["references"] == references]
        square = [row for row in measured if row["references"] == row["points"]]
        if len(fixed) > 1:
            figures[f"{backend}_memory_exponent"] = _exponent(fixed, "peak_bytes")
            figures[f"{backend}_time_exponent"] = _exponent(fixed, "seconds")
        if len(square) > 1:
            figures[f"{backend}_memory_exponent_square"] = _exponent(square, "peak_bytes")
    return figures


def _exponent(rows: list[dict[str, Any]], key: str) -> float:
    small, large = sorted(rows, key=lambda row: int(row["points"]))[-2:]
    return math.log(large[key] / small[key]) / math.log(large["points"] / small["points"])
