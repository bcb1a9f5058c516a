"""The two projection heads, applied at every position of the feature grid as 1 x 1 convolutions.

Shapes: B images, h x w the feature grid.
"""

from __future__ import annotations

from torch import nn


def contrast_head(channels: int, hidden: int, dim: int) -> nn.Sequential:
    """Build the head of the image and point terms (METHOD section 3): [B, channels, h, w] -> [B, dim, h, w].

    Two layers with ReLU, without BatchNorm.
    """
    return nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, dim, 1))


def distill_head(channels: int, hidden: int, dim: int) -> nn.Sequential:
    """Build the head of the distillation term (METHOD section 3): [B, channels, h, w] -> [B, dim, h, w].

    Three layers with BatchNorm and ReLU between them.
    """
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, dim, 1),
    )
