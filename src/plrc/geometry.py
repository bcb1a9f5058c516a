"""Boxes, view <-> image maps, and the ONE function that reads features at points.

Layer 0: imports nothing of ours.

Shapes: B images, N points, C channels, H x W feature cells.
Convention: a point is (x, y) in [0, 1] x [0, 1] of its frame (image or view), whatever the frame's size in pixels; the
centre of cell i of n lies at (i + 0.5) / n. A box is (x0, y0, x1, y1) in the same units. A map is (sx, sy, ox, oy):
point in the image = (sx, sy) * point in the view + (ox, oy). A horizontal flip is a negative sx.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Box = tuple[float, float, float, float]
Map = tuple[float, float, float, float]


def crop_map(box: Box, flip: bool) -> Map:
    """The map of a view that shows `box` of the image, mirrored left to right if `flip`."""
    x0, y0, x1, y1 = box
    return (x0 - x1, y1 - y0, x1, y0) if flip else (x1 - x0, y1 - y0, x0, y0)


def to_image(points: Tensor, maps: Tensor) -> Tensor:
    """Points [B, N, 2] of views with maps [B, 4] -> the same physical points in the image frame [B, N, 2]."""
    return points * maps[:, None, :2] + maps[:, None, 2:]


def to_view(points: Tensor, maps: Tensor) -> Tensor:
    """Inverse of `to_image`: image-frame points [B, N, 2] -> the frames of views with maps [B, 4]."""
    return (points - maps[:, None, 2:]) / maps[:, None, :2]


def inside(points: Tensor) -> Tensor:
    """Which points [..., 2] lie in their frame: bool [...]."""
    return ((points >= 0) & (points <= 1)).all(dim=-1)


def cell_centers(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the centers of a height x width grid of cells, row by row: [height * width, 2]."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def sample(features: Tensor, points: Tensor) -> Tensor:
    """Read features [B, C, H, W] bilinearly at points [B, N, 2] of their frame -> [B, N, C], in float32 or wider.

    Beyond the outermost cell centers the border value is continued (METHOD section 2).
    """
    features = features if features.dtype == torch.float64 else features.float()
    grid = (2 * points.to(features.dtype) - 1)[:, :, None, :]
    out = F.grid_sample(features, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out[..., 0].transpose(1, 2)


def look_up(ids: Tensor, points: Tensor) -> Tensor:
    """Region ids at image-frame points: id maps [B, H, W], points [B, N, 2] -> [B, N] (of the cell they are in)."""
    height, width = ids.shape[1:]
    column = (points[..., 0] * width).long().clamp_(0, width - 1)
    row = (points[..., 1] * height).long().clamp_(0, height - 1)
    return ids.flatten(1).gather(1, row * width + column).long()
