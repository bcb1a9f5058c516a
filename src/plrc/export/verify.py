"""The proofs behind a receipt: equal tensors, bit for bit, and equal features.

Layer 5: imports config only. Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from plrc.config import PlrcError

TOLERANCE = 1e-5  # of the largest feature: the same float32 operations, in whatever order the library runs them
Features = Callable[[Tensor], Mapping[int, Tensor]]


@dataclass(frozen=True)
class Proof:
    """What was compared: how many tensors, how far the features differ, what the target's network has beside them."""

    tensors: int
    largest_difference: float
    left_random: tuple[str, ...]
    tolerance: float = TOLERANCE


def read_as_user(path: Path) -> dict[str, Tensor]:
    """The file as a user reads it, with the library's own call."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raise PlrcError unless both hold the same names with the same bits."""
    if found.keys() != expected.keys():
        names = sorted(found.keys() ^ expected.keys())
        raise PlrcError(f"{where} does not hold the run's tensors: {', '.join(names)} on one side only; export again")
    differ = [name for name, tensor in expected.items() if not _same_bits(found[name], tensor)]
    if differ:
        raise PlrcError(f"{where} differs from the run in {len(differ)} tensors: {', '.join(differ[:5])}; export again")


def check_features(theirs: Features, ours: Features) -> float:
    """The largest difference of two networks in eval mode, relative to the largest feature of its level.

    Raises PlrcError above TOLERANCE, for other levels or shapes, and for features that are not finite.
    """
    largest = 0.0
    with torch.inference_mode():
        images = example_images()
        a, b = theirs(images), ours(images)
    if {s: f.shape for s, f in a.items()} != {s: f.shape for s, f in b.items()}:
        raise PlrcError("the exported network has features of other levels or shapes than the run's")
    for stride, features in b.items():
        difference = float((a[stride] - features).abs().max() / features.abs().max().clamp_min(1e-12))
        if not math.isfinite(difference) or difference > TOLERANCE:
            raise PlrcError(
                f"the exported network's features of stride {stride} differ from the run's by {difference:.1e} of the "
                f"largest (allowed {TOLERANCE:.0e})"
            )
        largest = max(largest, difference)
    return largest


def example_images(size: int = 96) -> Tensor:
    """[2, 3, size, size] in normalised units: noise and a smooth picture, the same in every call."""
    noise = torch.randn(3, size, size, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.linspace(0, 3, size), torch.linspace(0, 2, size), indexing="ij")
    smooth = torch.stack([torch.sin(x + y), torch.cos(2 * x), torch.sin(x * y)])
    return torch.stack([noise, smooth])


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.contiguous().reshape(-1), b.contiguous().reshape(-1)
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))
