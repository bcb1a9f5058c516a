"""The two projection heads, applied at every position of the feature lattice as 1 x 1 convolutions.

Layer 2: imports nothing of ours. Shapes: B images, C channels, h x w the lattice.
"""

from __future__ import annotations

from torch import nn


def contrast_head(channels: int, hidden: int, dim: int) -> nn.Sequential:
    """[B, channels, h, w] -> [B, dim, h, w]: two layers, ReLU, no BN; for the image and point terms (METHOD 3)."""
    return nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, dim, 1))


def distill_head(channels: int, hidden: int, dim: int) -> nn.Sequential:
    """[B, channels, h, w] -> [B, dim, h, w]: three layers with BN and ReLU between them (METHOD 3)."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, dim, 1),
    )
