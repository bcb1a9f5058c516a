"""Features of a frozen backbone, and a linear probe on them.

Shapes: n images, C channels, h x w the feature grid, H x W the images and labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plrc.data.photometric import normalize
from plrc.errors import ConfigError
from plrc.measures.linear_probe import ProbeResult, evaluate_probe, fit_probe
from plrc.model.modes import evaluation_mode
from plrc.pixels import IMAGENET, PixelStatistics


def extract_features(backbone: nn.Module, images: Tensor, stride: int, batch_size: int = 64) -> Tensor:
    """Compute the features of one level; see `extract_levels`.

    Returns:
        float32 [n, C, h, w] on the CPU.
    """
    return extract_levels(backbone, images, [stride], batch_size)[stride]


@torch.no_grad()
def extract_levels(
    backbone: nn.Module, images: Tensor, strides: Sequence[int], batch_size: int = 64
) -> dict[int, Tensor]:
    """Compute features in evaluation mode, on the device of the backbone; every module's mode is restored afterwards.

    Args:
        backbone: Normalized images [B, 3, H, W] -> {stride: features}. Images are normalized with its `pixels`, or with
            ImageNet's statistics if it has no such attribute.
        images: uint8 RGB [n, 3, H, W].
        strides: The levels that are returned.
        batch_size: Images per forward pass.

    Returns:
        Stride -> float32 [n, C, h, w] on the CPU.

    Raises:
        ConfigError: The backbone has no such level.
    """
    device = next(backbone.parameters()).device
    pixels: PixelStatistics = getattr(backbone, "pixels", IMAGENET)
    features: dict[int, list[Tensor]] = {stride: [] for stride in strides}
    with evaluation_mode(backbone):
        for batch in torch.split(images, batch_size):
            levels = backbone(normalize(batch.to(device), pixels))
            for stride in strides:
                if stride not in levels:
                    raise ConfigError(f"the backbone has no level of stride {stride}; choose one of {sorted(levels)}")
                features[stride].append(levels[stride].float().cpu())
    return {stride: torch.cat(parts) for stride, parts in features.items()}


def probe_backbone(
    backbone: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    stride: int,
    classes: int,
) -> ProbeResult:
    """Fit a linear probe on one level of a frozen backbone and score it.

    Args:
        backbone: Normalized images [B, 3, H, W] -> {stride: features}.
        train: Images uint8 [n, 3, H, W], and labels [n, H, W] from 0 to `classes` - 1, 255 ignored, to fit the probe.
        test: Images and labels of the same kind, to score it.
        stride: The level that is probed.
        classes: Number of classes.
    """
    probe = fit_probe(extract_features(backbone, train[0], stride), train[1], classes)
    return evaluate_probe(probe, extract_features(backbone, test[0], stride), test[1])
