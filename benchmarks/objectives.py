"""What the objectives cost, forward and backward, against the number of points: the full matrices or linear memory.

Layer 5: imports the objectives, the engine's choice of a device, and the report of this folder. Features are random
directions in float32, as the engine passes them.
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

from benchmarks.report import Bench, interleaved, median, peak_bytes, spread
from plrc import rng
from plrc.objectives import Backend, affinity_distillation, point_region_contrast
from plrc.runtime import choose_device

BACKENDS: tuple[Backend, ...] = ("dense", "fused")
DENSE_MATRICES = 6  # [N, M] matrices in float32 that the full form holds at once: measured 5.1, rounded up
DENSE_LIMIT = 4 * 2**30  # bytes; the full form is left out where it would need more
CONTRAST_WIDTH, REGIONS = 128, 16  # the method's: width of its features, regions of an image


def run(
    *,
    points: Sequence[int] = (196, 784, 3136, 12544),
    references: Sequence[int] = (196, 784, 3136, 12544),
    width: int = 256,
    batch: int = 1,
    repeats: int = 5,
    device: str = "auto",
) -> Bench:
    """Measure `affinity_distillation` at features of `width` for every pair of points and references of an image (the
    defaults are lattices of 14 x 14 up to 112 x 112), and `point_region_contrast` at features of 128 with as many keys
    as points, for `batch` images at a time. The full form is left out above 4 GB.

    Peak bytes do not count the features themselves. Figures, of distillation: how memory and time grow, as the slope of
    log(peak bytes) and log(seconds) against log(points) between the two largest sizes. BACKEND_memory_exponent and
    BACKEND_time_exponent: references fixed at their largest number; 1 is linear in the points. As of the full matrices
    too this is linear, BACKEND_memory_exponent_square is where references are as many as points: 1 is linear, 2 is a
    matrix of them.
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
            "points": list(points), "references": list(references), "width": width, "batch": batch,
            "repeats": repeats, "device": str(chosen), "threads": torch.get_num_threads(),
        },
        figures=_exponents(rows, max(references)),
        rows=rows,
    )  # fmt: skip


def _measure(
    name: str,
    term: Callable[..., Tensor],
    arguments: list[Tensor],
    points: int,
    references: int,
    batch: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """A row for each backend, which take turns. The first of the arguments learns."""
    device = arguments[0].device
    learner = arguments[0].requires_grad_()

    def once(backend: Backend) -> None:
        term(*arguments, backend=backend).backward()
        learner.grad = None

    fits = DENSE_MATRICES * 4 * batch * points * references <= DENSE_LIMIT
    calls: dict[str, Callable[[], object]] = {b: functools.partial(once, b) for b in BACKENDS if b != "dense" or fits}
    print(f"objectives: {name}, {points} points, {references} references, {', '.join(calls)}", file=sys.stderr)
    seconds = interleaved(calls, repeats, device)
    return [
        {
            "objective": name,
            "points": points,
            "references": references,
            "backend": backend,
            "seconds": median(seconds[backend]),
            "spread": spread(seconds[backend]),
            "peak_bytes": peak_bytes(call, device),
        }
        for backend, call in calls.items()
    ]


def _distillation(batch: int, points: int, references: int, width: int, device: torch.device) -> list[Tensor]:
    """Student and teacher [B, N, D], reference [B, M, D]."""
    return [_unit(i, (batch, n, width), device) for i, n in enumerate((points, points, references))]


def _contrast(batch: int, points: int, device: torch.device) -> list[Tensor]:
    """Query and keys [B, N, D], regions of both [B, N]."""
    regions = (torch.arange(points, device=device) % REGIONS).expand(batch, -1)
    shape = (batch, points, CONTRAST_WIDTH)
    return [_unit(0, shape, device), _unit(1, shape, device), regions, regions]


def _unit(index: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    drawn = rng.generator(0, "points", index=index).standard_normal(shape, dtype=np.float32)
    return F.normalize(torch.from_numpy(drawn), dim=-1).to(device)


def _exponents(rows: list[dict[str, Any]], references: int) -> dict[str, float]:
    """Growth of distillation's bytes and seconds between the two largest numbers of points, where there are two."""
    figures = {}
    for backend in BACKENDS:
        mine = [r for r in rows if r["objective"] == "affinity_distillation" and r["backend"] == backend]
        fixed = [r for r in mine if r["references"] == references]
        square = [r for r in mine if r["references"] == r["points"]]
        for name, key, chosen in (
            ("memory_exponent", "peak_bytes", fixed),
            ("time_exponent", "seconds", fixed),
            ("memory_exponent_square", "peak_bytes", square),
        ):
            if len(chosen) > 1:
                small, large = sorted(chosen, key=lambda row: int(row["points"]))[-2:]
                growth = math.log(large[key] / small[key])
                figures[f"{backend}_{name}"] = growth / math.log(large["points"] / small["points"])
    return figures
