"""Boxes, maps between view and image, and the only function that reads features at points.

Shapes: B images, N points, C channels, H x W cells of a feature grid or an id map.
Convention: a point is (x, y) in [0, 1] x [0, 1] of its frame (image or view), independent of the size in pixels; the
center of cell i of n is at (i + 0.5) / n. A box is (x0, y0, x1, y1) in the same units. A map is (sx, sy, ox, oy):
point in the image = (sx, sy) * point in the view + (ox, oy). A horizontal flip is a negative sx.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Box = tuple[float, float, float, float]
Map = tuple[float, float, float, float]


def crop_map(box: Box, flip: bool) -> Map:
    """Return the map of a view.

    Args:
        box: The part of the image that the view shows.
        flip: Whether the view is flipped horizontally.
    """
    x0, y0, x1, y1 = box
    return (x0 - x1, y1 - y0, x1, y0) if flip else (x1 - x0, y1 - y0, x0, y0)


def to_image(points: Tensor, maps: Tensor) -> Tensor:
    """Convert points from the frames of views to the frames of their images.

    Args:
        points: [B, N, 2], in the frames of the views.
        maps: [B, 4], one map per view.

    Returns:
        The same physical points in the frames of the images [B, N, 2].
    """
    return points * maps[:, None, :2] + maps[:, None, 2:]


def to_view(points: Tensor, maps: Tensor) -> Tensor:
    """Convert points from the frames of images to the frames of their views, the inverse of `to_image`.

    Args:
        points: [B, N, 2], in the frames of the images.
        maps: [B, 4], one map per view.

    Returns:
        The same physical points in the frames of the views [B, N, 2].
    """
    return (points - maps[:, None, 2:]) / maps[:, None, :2]


def inside(points: Tensor) -> Tensor:
    """Return whether points [..., 2] lie inside their frame, as bool [...]."""
    return ((points >= 0) & (points <= 1)).all(dim=-1)


def cell_centers(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the centers of the cells of a regular grid.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        device: Where the result is created.

    Returns:
        The centers [height * width, 2], row by row.

    Examples:
        >>> cell_centers(1, 2)
        tensor([[0.2500, 0.5000],
                [0.7500, 0.5000]])
    """
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def sample(features: Tensor, points: Tensor) -> Tensor:
    """Read features at points by bilinear interpolation.

    Beyond the centers of the outermost cells the value at the border is used (METHOD section 2).

    Args:
        features: [B, C, H, W].
        points: [B, N, 2], in the frame that the features cover.

    Returns:
        The features at the points [B, N, C], in float32, or in float64 if `features` is float64.

    Examples:
        >>> features = torch.tensor([[[[0.0, 1.0]]]])  # one image, one channel, 1 x 2 cells
        >>> sample(features, torch.tensor([[[0.5, 0.5]]]))  # half-way between the centers of the cells
        tensor([[[0.5000]]])
    """
    features = features if features.dtype == torch.float64 else features.float()
    grid = (2 * points.to(features.dtype) - 1)[:, :, None, :]
    out = F.grid_sample(features, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out[..., 0].transpose(1, 2)


def look_up(ids: Tensor, points: Tensor) -> Tensor:
    """Read region ids at points: the id of the cell that a point lies in.

    Args:
        ids: Id maps [B, H, W], in the frames of the images.
        points: [B, N, 2], in the frames of the images.

    Returns:
        The ids [B, N], int64.

    Examples:
        >>> look_up(torch.tensor([[[7, 9]]]), torch.tensor([[[0.2, 0.5], [0.8, 0.5]]]))
        tensor([[7, 9]])
    """
    height, width = ids.shape[1:]
    column = (points[..., 0] * width).long().clamp_(0, width - 1)
    row = (points[..., 1] * height).long().clamp_(0, height - 1)
    return ids.flatten(1).gather(1, row * width + column).long()
